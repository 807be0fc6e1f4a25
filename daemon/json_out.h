/* json_out.h - JSON written straight into a buffer: the answer path builds no trees. Every function appends
 * and returns the buffer's verdict (DS_ELIMIT at its maximum, DS_ENOMEM). Pure; any thread. */
#ifndef DS_DAEMON_JSON_OUT_H
#define DS_DAEMON_JSON_OUT_H

#include "base/buf.h"

#include <stdint.h>

/* ds_json_str: s as a JSON string with quotes. s is UTF-8; a byte that is not becomes U+FFFD, so that the
 * output is valid whatever a model says. U+2028 and U+2029 are escaped (they end lines in some SSE readers).
 */
ds_code ds_json_str(ds_buf *out, const char *s, size_t len);
ds_code ds_json_chars(ds_buf *out, const char *s, size_t len); /* the same without the quotes */
ds_code ds_json_int(ds_buf *out, int64_t v);
/* ds_json_logprob: nine digits, so that equal floats print equally; -inf and NaN become -9999.0 as in OpenAI.
 */
ds_code ds_json_logprob(ds_buf *out, float v);
ds_code ds_json_ids(ds_buf *out, const int32_t *ids, int n);   /* [1,2,3] */
ds_code ds_json_bytes(ds_buf *out, const char *s, size_t len); /* [104,105] */

/* ds_utf8_next: length 1..4 of the sequence at s, 0 when it is not valid UTF-8 (len >= 1). */
int ds_utf8_next(const char *s, size_t len);
/* ds_utf8_count: code points of s, counting each invalid byte as one. */
size_t ds_utf8_count(const char *s, size_t len);

#endif
