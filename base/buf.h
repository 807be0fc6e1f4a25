/* buf.h - a growable byte buffer with a hard maximum.
 * Zero-initialised is empty and valid. Appending beyond max fails and leaves the buffer as it was. */
#ifndef DS_BASE_BUF_H
#define DS_BASE_BUF_H

#include "base/err.h"

#include <stddef.h>

typedef struct ds_buf {
    char *data; /* NUL-terminated when cap > 0 */
    size_t len, cap;
    size_t max; /* bytes; 0 = no limit of its own */
} ds_buf;

ds_code ds_buf_reserve(ds_buf *b, size_t extra);
ds_code ds_buf_append(ds_buf *b, const void *p, size_t n);
ds_code ds_buf_puts(ds_buf *b, const char *s);
ds_code ds_buf_printf(ds_buf *b, const char *fmt, ...) __attribute__((format(printf, 2, 3)));
void ds_buf_consume(ds_buf *b, size_t n); /* drop n <= len bytes from the front */
void ds_buf_clear(ds_buf *b);             /* len = 0, memory kept */
void ds_buf_free(ds_buf *b);              /* memory released, max kept */

#endif
