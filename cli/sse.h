/* sse.h - incremental reader of server-sent events (WHATWG HTML, section 9.2): bytes in, whole events out. */
#ifndef DS_CLI_SSE_H
#define DS_CLI_SSE_H

#include "base/buf.h"

enum { DS_SSE_MAX_EVENT = 8 << 20 }; /* bytes of one event's data */

/* One event's data, NUL-terminated, valid during the call. Returning nonzero stops the reader with
 * DS_ECANCELLED. */
typedef int (*ds_sse_fn)(void *ctx, char *data, size_t n);

typedef struct ds_sse {
    ds_buf line, data;
    int has_data, after_cr;
    ds_sse_fn fn;
    void *ctx;
} ds_sse;

void ds_sse_init(ds_sse *s, ds_sse_fn fn, void *ctx);
/* ds_sse_feed: any split of the stream gives the same events. DS_ELIMIT: an event is too large. */
ds_code ds_sse_feed(ds_sse *s, const char *p, size_t n);
void ds_sse_reset(ds_sse *s); /* ready for another stream, memory kept */
void ds_sse_fini(ds_sse *s);

#endif
