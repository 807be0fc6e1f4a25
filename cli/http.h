/* http.h - blocking HTTP towards one daemon, over libcurl: JSON in, JSON or a stream of events out.
 * Used by dsparkctl and for the short calls of dspark-bench (its load runs in bench_http.c). One thread. */
#ifndef DS_CLI_HTTP_H
#define DS_CLI_HTTP_H

#include "base/buf.h"
#include "cli/sse.h"

enum { DS_HTTP_MAX_BODY = 64 << 20 };

typedef struct ds_http ds_http;

/* ds_http_open: url is http://HOST:PORT without a path. stop: polled; nonzero ends a call with DS_ECANCELLED.
 */
ds_code ds_http_open(const char *url, int timeout_ms, const volatile int *stop, ds_http **ret, ds_err *err);
void ds_http_close(ds_http *h);
/* ds_http_get, ds_http_post: body is replaced. A status other than 2xx is an error made from the body
 * (ds_http_error); ret_status may be NULL, else every status is left to the caller. */
ds_code ds_http_get(ds_http *h, const char *path, ds_buf *body, long *ret_status, ds_err *err);
ds_code ds_http_post(ds_http *h, const char *path, const char *json, ds_buf *body, ds_err *err);
/* ds_http_stream: posts and hands out each event's data until the stream ends. */
ds_code ds_http_stream(ds_http *h, const char *path, const char *json, ds_sse_fn fn, void *ctx, ds_err *err);
/* ds_http_error: the error of an answer: OpenAI's {"error": {"message", "param"}} or the status alone. */
ds_code ds_http_error(long status, const char *body, size_t n, ds_err *err);

#endif
