/* http_conn.h - HTTP connections on libuv streams: accept, read, answer, deadlines, backpressure.
 * Owner: the loop thread. One message of a connection is served at a time; what a client pipelines behind it
 * waits (bounded). An exchange belongs to its owner from on_request until the reply is finished or `gone` is
 * called, exactly one of the two. End of the client's stream counts as gone: a half-closed client is not
 * served. */
#ifndef DS_DAEMON_HTTP_CONN_H
#define DS_DAEMON_HTTP_CONN_H

#include "daemon/http.h"

#include <uv.h>

typedef struct ds_httpd ds_httpd; /* the listener and its connections */
typedef struct ds_hconn ds_hconn;

typedef struct ds_httpd_opts {
    const char *listen;  /* ADDR:PORT, [V6]:PORT; port 0: any */
    int max_connections; /* one more is answered 503 and closed */
    size_t max_body;     /* bytes */
    size_t max_backlog;  /* bytes a stream may lie unsent before its client is dropped */
    uint64_t head_ms;    /* from the first byte to the end of the head */
    uint64_t idle_ms;    /* keep-alive without a byte */
    uint64_t stall_ms;   /* unsent bytes without progress */
    void (*on_request)(void *ctx, ds_hconn *c,
                       ds_http_reader *msg); /* msg: valid during the call; body may be taken */
    void *ctx;
} ds_httpd_opts;

/* ds_httpd_parse_listen: ADDR:PORT or [V6]:PORT; "localhost" is 127.0.0.1, no other name is looked up. */
ds_code ds_httpd_parse_listen(const char *text, struct sockaddr_storage *ret, ds_err *err);
/* ds_httpd_open: bind and listen. Errors: DS_EINVAL the address, DS_EIO bind. */
ds_code ds_httpd_open(uv_loop_t *loop, const ds_httpd_opts *opts, ds_httpd **ret, ds_err *err);
int ds_httpd_port(const ds_httpd *h);
int ds_httpd_connections(const ds_httpd *h);
uint64_t ds_httpd_dropped(const ds_httpd *h); /* clients cut for being slow, malformed or too many */
/* ds_httpd_drain: stop listening, close idle connections, answer the rest with Connection: close. */
void ds_httpd_drain(ds_httpd *h);
/* ds_httpd_idle: nothing is being answered and no byte waits to leave. */
int ds_httpd_idle(const ds_httpd *h);
/* ds_httpd_close: everything at once; the memory goes when the loop has run the close callbacks. */
void ds_httpd_close(ds_httpd *h);

/* ds_hconn_own: `gone` is called once if the client leaves before ds_hconn_reply/ds_hconn_finish. */
void ds_hconn_own(ds_hconn *c, void *owner, void (*gone)(void *owner));
/* ds_hconn_reply: a whole answer. extra: header lines "Name: value\r\n" or "". Ends the exchange. */
void ds_hconn_reply(ds_hconn *c, int status, const char *type, const char *extra, const char *body, size_t n);
/* ds_hconn_stream: start a streamed answer. ds_hconn_send: one piece. ds_hconn_finish: its end; ends the
 * exchange. */
void ds_hconn_stream(ds_hconn *c, int status, const char *type);
void ds_hconn_send(ds_hconn *c, const char *data, size_t n);
void ds_hconn_finish(ds_hconn *c);
/* ds_hconn_fail: the answer cannot be completed; the client is cut soon (`gone` follows, not below this
 * call). */
void ds_hconn_fail(ds_hconn *c);
/* ds_httpd_flush: send what this loop turn has gathered; cut who must be cut. Call before the loop sleeps. */
void ds_httpd_flush(ds_httpd *h);

#endif
