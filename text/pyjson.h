/* pyjson.h - JSON as Python's json.dumps(x, ensure_ascii=False) writes it: what `tojson` is in the chat
 * templates of transformers, so a tool's text must be this to the byte. Pure; any thread. */
#ifndef DS_TEXT_PYJSON_H
#define DS_TEXT_PYJSON_H

#include "base/buf.h"

#include <jansson.h>

/* ds_pyjson_dump: DS_EINVAL beyond DS_MAX_JSON_DEPTH levels, DS_ELIMIT beyond out->max. */
ds_code ds_pyjson_dump(const json_t *v, ds_buf *out);
/* ds_pyjson_float: repr(x) of a finite double: the shortest digits that read back as x. */
ds_code ds_pyjson_float(double x, ds_buf *out);

#endif
