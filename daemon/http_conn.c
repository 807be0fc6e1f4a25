/* http_conn.c - see http_conn.h. States and their only transition function are below. Writes collect in `out`
 * and leave once per loop turn (ds_httpd_flush), first by uv_try_write, the rest by one uv_write at a time.
 */
#include "daemon/http_conn.h"

#include "base/log.h"

#include <netinet/in.h>
#include <stdlib.h>
#include <string.h>

enum {
    READ_BYTES = 64 << 10,    /* one shared read buffer */
    PENDING_BYTES = 64 << 10, /* pipelined bytes kept while an answer is under way */
    EARLY_BYTES = 32 << 10,   /* unsent bytes that do not wait for the end of the turn */
    LINGER_MS = 2000,         /* after our last byte: time for the client to read it and close */
    SWEEP_MS = 250,           /* how often deadlines are looked at */
    BODY_GRACE_MS = 10000,    /* a body must then come at BODY_BYTES_PER_MS or faster */
    BODY_BYTES_PER_MS = 1,
};

typedef enum {
    CONN_READ,   /* reading a message, or idle between two */
    CONN_BUSY,   /* a message is with its owner, nothing sent yet */
    CONN_STREAM, /* a streamed answer is under way */
    CONN_LINGER, /* last bytes leaving, then shutdown; input is thrown away */
    CONN_CLOSED  /* uv_close called */
} conn_state;

struct ds_hconn {
    uv_tcp_t tcp;
    uv_write_t write;
    uv_shutdown_t shutdown;
    ds_httpd *http;
    ds_hconn *next, *prev; /* all connections */
    ds_hconn *next_dirty;
    conn_state state;
    ds_http_reader reader;
    ds_buf pending; /* pipelined input */
    ds_buf out;     /* not yet given to libuv */
    ds_buf flight;  /* given to uv_write */
    void *owner;
    void (*gone)(void *owner);
    uint64_t since_ms;    /* state CONN_READ: first byte of the message or start of idleness */
    uint64_t progress_ms; /* last time unsent bytes got fewer */
    unsigned dirty : 1, writing : 1, minor : 1, keep : 1, doomed : 1, shut : 1, continued : 1;
    unsigned bodiless : 1; /* HEAD: the answer has a length but no body */
};

struct ds_httpd {
    uv_loop_t *loop;
    ds_httpd_opts opts;
    uv_tcp_t listener;
    uv_timer_t sweep;
    ds_hconn *conns, *dirty;
    int n_conns, draining, closing, handles, port;
    uint64_t dropped;
    char read_buf[READ_BYTES];
};

static void conn_pump(ds_hconn *c);
static void conn_write_out(ds_hconn *c);

/* ---- state ---- */

static void conn_closed(uv_handle_t *handle)
{
    ds_hconn *c = handle->data;
    ds_httpd *h = c->http;
    ds_http_reader_free(&c->reader);
    ds_buf_free(&c->pending);
    ds_buf_free(&c->out);
    ds_buf_free(&c->flight);
    free(c);
    if (--h->n_conns == 0 && h->closing && h->handles == 0)
        free(h);
}

static void undirty(ds_hconn *c)
{
    for (ds_hconn **p = &c->http->dirty; *p; p = &(*p)->next_dirty)
        if (*p == c) {
            *p = c->next_dirty;
            break;
        }
    c->dirty = 0;
}

/* The one place that changes a connection's state. */
static void conn_enter(ds_hconn *c, conn_state to)
{
    if (c->state == CONN_CLOSED || c->state == to)
        return;
    c->state = to;
    c->since_ms = uv_now(c->http->loop);
    if (to == CONN_LINGER || to == CONN_CLOSED) {
        void (*gone)(void *) = c->gone;
        c->gone = NULL;
        if (gone)
            gone(c->owner);
    }
    if (to == CONN_CLOSED) {
        if (c->dirty)
            undirty(c);
        if (c->prev)
            c->prev->next = c->next;
        else
            c->http->conns = c->next;
        if (c->next)
            c->next->prev = c->prev;
        uv_close((uv_handle_t *)&c->tcp, conn_closed);
    }
}

static void conn_drop(ds_hconn *c)
{
    c->http->dropped++;
    conn_enter(c, CONN_CLOSED);
}

/* ---- writing ---- */

static void mark_dirty(ds_hconn *c)
{
    if (c->dirty || c->state == CONN_CLOSED)
        return;
    c->dirty = 1;
    c->next_dirty = c->http->dirty;
    c->http->dirty = c;
}

static void on_shutdown(uv_shutdown_t *req, int status)
{
    (void)status;
    ds_hconn *c = req->data;
    c->since_ms = uv_now(c->http->loop);
}

static void on_written(uv_write_t *req, int status)
{
    ds_hconn *c = req->data;
    c->writing = 0;
    ds_buf_clear(&c->flight);
    c->progress_ms = uv_now(c->http->loop);
    if (status < 0)
        conn_enter(c, CONN_CLOSED);
    else
        conn_write_out(c);
}

/* What a connection without unsent bytes does next. */
static void conn_written(ds_hconn *c)
{
    if (c->state == CONN_LINGER && !c->shut) {
        c->shut = 1;
        c->shutdown.data = c;
        if (uv_shutdown(&c->shutdown, (uv_stream_t *)&c->tcp, on_shutdown) != 0)
            conn_enter(c, CONN_CLOSED);
    } else if (c->state == CONN_READ) {
        ds_buf_free(&c->out); /* an idle connection keeps no buffers */
        ds_buf_free(&c->flight);
    }
}

/* What the socket takes at once. 0, or -1 when the connection is broken. */
static int conn_try(ds_hconn *c)
{
    uv_buf_t b = uv_buf_init(c->out.data, (unsigned)c->out.len);
    int n = uv_try_write((uv_stream_t *)&c->tcp, &b, 1);
    if (n > 0) {
        c->progress_ms = uv_now(c->http->loop);
        ds_buf_consume(&c->out, (size_t)n);
    }
    return n < 0 && n != UV_EAGAIN ? -1 : 0;
}

static void conn_write_out(ds_hconn *c)
{
    if (c->writing || c->state == CONN_CLOSED)
        return;
    if (c->out.len && conn_try(c) < 0) {
        conn_enter(c, CONN_CLOSED);
        return;
    }
    if (!c->out.len) {
        conn_written(c);
        return;
    }
    ds_buf t = c->flight;
    c->flight = c->out;
    c->out = t;
    uv_buf_t b = uv_buf_init(c->flight.data, (unsigned)c->flight.len);
    c->write.data = c;
    c->writing = 1;
    if (uv_write(&c->write, (uv_stream_t *)&c->tcp, &b, 1, on_written) != 0) {
        c->writing = 0;
        conn_enter(c, CONN_CLOSED);
    }
}

void ds_httpd_flush(ds_httpd *h)
{
    while (h->dirty) {
        ds_hconn *c = h->dirty;
        h->dirty = c->next_dirty;
        c->dirty = 0;
        if (c->doomed)
            conn_drop(c);
        else
            conn_write_out(c);
        conn_pump(c);
    }
}

/* After appending to out: a client that does not read is cut before it costs more than max_backlog. The cut
 * waits for ds_httpd_flush, because `gone` must not run below its owner's own call. */
static void conn_appended(ds_hconn *c, ds_code code)
{
    if (c->out.len > EARLY_BYTES && !c->writing && code == DS_OK && conn_try(c) < 0)
        c->doomed = 1;
    if (code || c->out.len + c->flight.len > c->http->opts.max_backlog)
        c->doomed = 1;
    mark_dirty(c);
}

/* The answer is complete: next message, or goodbye. */
static void conn_answered(ds_hconn *c)
{
    c->gone = NULL;
    if (c->state == CONN_CLOSED)
        return;
    mark_dirty(c);
    if (!c->keep || c->http->draining) {
        conn_enter(c, CONN_LINGER);
        return;
    }
    ds_http_reader_reset(&c->reader);
    c->continued = 0;
    conn_enter(c, CONN_READ); /* what was pipelined is served by ds_httpd_flush */
}

void ds_hconn_own(ds_hconn *c, void *owner, void (*gone)(void *))
{
    c->owner = owner;
    c->gone = gone;
}

void ds_hconn_reply(ds_hconn *c, int status, const char *type, const char *extra, const char *body, size_t n)
{
    DS_ASSERT(c->state == CONN_BUSY);
    c->progress_ms = uv_now(c->http->loop);
    ds_code code =
        ds_http_write_head(&c->out, status, type, (int64_t)n, c->minor, c->keep && !c->http->draining, extra);
    if (code == DS_OK && !c->bodiless)
        code = ds_buf_append(&c->out, body, n);
    if (code)
        c->doomed = 1;
    conn_answered(c);
}

void ds_hconn_stream(ds_hconn *c, int status, const char *type)
{
    DS_ASSERT(c->state == CONN_BUSY);
    c->progress_ms = uv_now(c->http->loop);
    if (!c->minor)
        c->keep = 0; /* HTTP/1.0: the end of the stream is the end of the connection */
    ds_code code = ds_http_write_head(&c->out, status, type, -1, c->minor, c->keep && !c->http->draining, "");
    conn_enter(c, CONN_STREAM);
    conn_appended(c, code);
}

void ds_hconn_send(ds_hconn *c, const char *data, size_t n)
{
    if (c->state != CONN_STREAM || n == 0)
        return;
    if (!c->out.len && !c->flight.len)
        c->progress_ms = uv_now(c->http->loop);
    ds_code code = DS_OK;
    if (c->minor) {
        static const char hex[] = "0123456789abcdef";
        char t[20], *p = t + sizeof t;
        *--p = '\n';
        *--p = '\r';
        for (size_t v = n; v; v >>= 4)
            *--p = hex[v & 15];
        code = ds_buf_append(&c->out, p, (size_t)(t + sizeof t - p));
    }
    if (code == DS_OK)
        code = ds_buf_append(&c->out, data, n);
    if (code == DS_OK && c->minor)
        code = ds_buf_append(&c->out, "\r\n", 2);
    conn_appended(c, code);
}

void ds_hconn_fail(ds_hconn *c)
{
    c->doomed = 1;
    mark_dirty(c);
}

void ds_hconn_finish(ds_hconn *c)
{
    if (c->state != CONN_STREAM)
        return;
    if (c->minor && ds_buf_append(&c->out, "0\r\n\r\n", 5))
        c->doomed = 1;
    conn_answered(c);
}

/* ---- reading ---- */

static void refuse(ds_hconn *c)
{
    char body[256];
    int n = snprintf(body, sizeof body,
                     "{\"error\":{\"message\":\"%s\",\"type\":\"invalid_request_error\",\"param\":null,"
                     "\"code\":\"http\"}}",
                     c->reader.why);
    c->http->dropped++;
    c->keep = c->bodiless = 0;
    c->minor = 1;
    conn_enter(c, CONN_BUSY);
    ds_hconn_reply(c, c->reader.status, "application/json", "", body, (size_t)n);
}

/* Serve messages from `data`, then keep what is left over for later. */
static void conn_input(ds_hconn *c, const char *data, size_t n)
{
    size_t used = 0;
    while (c->state == CONN_READ && used < n) {
        if (c->reader.state == DS_HTTP_HEAD && c->reader.head.len == 0)
            c->since_ms = uv_now(c->http->loop);
        used += ds_http_reader_feed(&c->reader, data + used, n - used);
        if (c->reader.state == DS_HTTP_BAD) {
            refuse(c);
        } else if (c->reader.state == DS_HTTP_DONE) {
            c->keep = c->reader.keep_alive != 0;
            c->minor = c->reader.minor != 0;
            c->bodiless = !strcmp(c->reader.method, "HEAD");
            conn_enter(c, CONN_BUSY);
            c->http->opts.on_request(c->http->opts.ctx, c, &c->reader);
        } else if (c->reader.state == DS_HTTP_BODY && c->reader.expect_continue && !c->continued) {
            c->continued = 1;
            conn_appended(c, ds_buf_puts(&c->out, "HTTP/1.1 100 Continue\r\n\r\n"));
        }
    }
    if (used < n && (c->state == CONN_BUSY || c->state == CONN_STREAM) &&
        ds_buf_append(&c->pending, data + used, n - used)) {
        c->doomed = 1;
        mark_dirty(c);
    }
}

static void on_alloc(uv_handle_t *handle, size_t hint, uv_buf_t *buf)
{
    (void)hint;
    ds_hconn *c = handle->data;
    *buf = uv_buf_init(c->http->read_buf, sizeof c->http->read_buf);
}

static void on_read(uv_stream_t *stream, ssize_t n, const uv_buf_t *buf)
{
    ds_hconn *c = stream->data;
    if (n < 0) {
        conn_enter(c, CONN_CLOSED);
        return;
    }
    if (n == 0 || c->state == CONN_LINGER || c->state == CONN_CLOSED)
        return;
    if (c->state == CONN_READ) {
        conn_input(c, buf->base, (size_t)n);
    } else if (ds_buf_append(&c->pending, buf->base, (size_t)n)) {
        conn_drop(c);
    }
}

/* Serve what was pipelined behind the message that has just been answered. */
static void conn_pump(ds_hconn *c)
{
    if (c->state != CONN_READ || !c->pending.len)
        return;
    ds_buf in = c->pending;
    c->pending = (ds_buf){.max = PENDING_BYTES};
    conn_input(c, in.data, in.len);
    ds_buf_free(&in);
}

/* ---- listening ---- */

static void turn_away(ds_hconn *c)
{
    static const char full[] = "HTTP/1.1 503 Service Unavailable\r\nContent-Length: 0\r\nRetry-After: 1\r\n"
                               "Connection: close\r\n\r\n";
    uv_buf_t b = uv_buf_init((char *)full, sizeof full - 1);
    uv_try_write((uv_stream_t *)&c->tcp, &b, 1);
    conn_drop(c);
}

static void on_accept(uv_stream_t *listener, int status)
{
    ds_httpd *h = listener->data;
    if (status < 0)
        return;
    ds_hconn *c = calloc(1, sizeof *c);
    if (!c)
        return;
    c->http = h;
    c->tcp.data = c;
    c->pending.max = PENDING_BYTES;
    ds_http_reader_init(&c->reader, h->opts.max_body);
    uv_tcp_init(h->loop, &c->tcp);
    c->next = h->conns;
    if (h->conns)
        h->conns->prev = c;
    h->conns = c;
    h->n_conns++;
    c->since_ms = c->progress_ms = uv_now(h->loop);
    if (uv_accept(listener, (uv_stream_t *)&c->tcp) != 0) {
        conn_enter(c, CONN_CLOSED);
        return;
    }
    uv_tcp_nodelay(&c->tcp, 1);
    if (h->n_conns > h->opts.max_connections || h->draining)
        turn_away(c);
    else
        uv_read_start((uv_stream_t *)&c->tcp, on_alloc, on_read);
}

static int overdue(const ds_hconn *c, uint64_t now)
{
    const ds_httpd_opts *o = &c->http->opts;
    uint64_t age = now - c->since_ms;
    if (c->state == CONN_LINGER && c->shut)
        return age > LINGER_MS;
    if ((c->out.len || c->flight.len) && now - c->progress_ms > o->stall_ms)
        return 1;
    if (c->state != CONN_READ)
        return 0;
    if (c->reader.state == DS_HTTP_HEAD)
        return age > (c->reader.head.len ? o->head_ms : o->idle_ms);
    return age > o->head_ms + BODY_GRACE_MS + c->reader.body.len / BODY_BYTES_PER_MS;
}

static void on_sweep(uv_timer_t *t)
{
    ds_httpd *h = t->data;
    uint64_t now = uv_now(h->loop);
    for (ds_hconn *c = h->conns, *next; c; c = next) {
        next = c->next;
        int idle = c->state == CONN_READ && c->reader.state == DS_HTTP_HEAD && c->reader.head.len == 0;
        if (overdue(c, now) && idle)
            conn_enter(c, CONN_CLOSED);
        else if (overdue(c, now))
            conn_drop(c);
        else if (idle && h->draining && !c->out.len && !c->writing)
            conn_enter(c, CONN_CLOSED);
    }
}

ds_code ds_httpd_parse_listen(const char *text, struct sockaddr_storage *ret, ds_err *err)
{
    char host[128];
    const char *colon = strrchr(text, ':');
    char *end;
    long port = colon ? strtol(colon + 1, &end, 10) : -1;
    size_t n = colon ? (size_t)(colon - text) : 0;
    if (!colon || n >= sizeof host || end == colon + 1 || *end || port < 0 || port > 65535)
        return ds_err_field(err, DS_EINVAL, "listen", "listen is '%s', must be ADDR:PORT", text);
    int v6 = n >= 2 && text[0] == '[' && text[n - 1] == ']';
    snprintf(host, sizeof host, "%.*s", (int)(v6 ? n - 2 : n), v6 ? text + 1 : text);
    if (!strcmp(host, "localhost"))
        strcpy(host, "127.0.0.1");
    int rc = v6 ? uv_ip6_addr(host, (int)port, (struct sockaddr_in6 *)ret)
                : uv_ip4_addr(host, (int)port, (struct sockaddr_in *)ret);
    if (rc)
        return ds_err_field(err, DS_EINVAL, "listen", "listen is '%s': '%s' is not an IP address", text,
                            host);
    return DS_OK;
}

static int bound_port(uv_tcp_t *t)
{
    struct sockaddr_storage a;
    int n = sizeof a;
    if (uv_tcp_getsockname(t, (struct sockaddr *)&a, &n))
        return 0;
    return ntohs(a.ss_family == AF_INET6 ? ((struct sockaddr_in6 *)&a)->sin6_port
                                         : ((struct sockaddr_in *)&a)->sin_port);
}

static void handle_closed(uv_handle_t *handle)
{
    ds_httpd *h = handle->data;
    if (--h->handles == 0 && h->n_conns == 0)
        free(h);
}

ds_code ds_httpd_open(uv_loop_t *loop, const ds_httpd_opts *opts, ds_httpd **ret, ds_err *err)
{
    struct sockaddr_storage addr;
    DS_TRY(ds_httpd_parse_listen(opts->listen, &addr, err));
    ds_httpd *h = calloc(1, sizeof *h);
    if (!h)
        return ds_err_set(err, DS_ENOMEM, "no memory for the HTTP listener");
    h->loop = loop;
    h->opts = *opts;
    h->listener.data = h->sweep.data = h;
    h->handles = 2;
    uv_tcp_init(loop, &h->listener);
    uv_timer_init(loop, &h->sweep);
    int rc = uv_tcp_bind(&h->listener, (struct sockaddr *)&addr, 0);
    if (rc == 0)
        rc = uv_listen((uv_stream_t *)&h->listener, 1024, on_accept);
    if (rc) {
        ds_httpd_close(h);
        return ds_err_field(err, DS_EIO, "listen", "cannot listen on %s: %s", opts->listen, uv_strerror(rc));
    }
    h->port = bound_port(&h->listener);
    uv_timer_start(&h->sweep, on_sweep, SWEEP_MS, SWEEP_MS);
    *ret = h;
    return DS_OK;
}

int ds_httpd_port(const ds_httpd *h)
{
    return h->port;
}

int ds_httpd_connections(const ds_httpd *h)
{
    return h->n_conns;
}

int ds_httpd_idle(const ds_httpd *h)
{
    for (const ds_hconn *c = h->conns; c; c = c->next)
        if (c->state == CONN_BUSY || c->state == CONN_STREAM || c->out.len || c->flight.len)
            return 0;
    return 1;
}

uint64_t ds_httpd_dropped(const ds_httpd *h)
{
    return h->dropped;
}

void ds_httpd_drain(ds_httpd *h)
{
    h->draining = 1;
    on_sweep(&h->sweep);
}

void ds_httpd_close(ds_httpd *h)
{
    if (h->closing)
        return;
    h->closing = 1;
    ds_httpd_flush(h); /* last answers that fit into the socket buffers */
    for (ds_hconn *c = h->conns, *next; c; c = next) {
        next = c->next;
        conn_enter(c, CONN_CLOSED);
    }
    uv_close((uv_handle_t *)&h->listener, handle_closed);
    uv_close((uv_handle_t *)&h->sweep, handle_closed);
}
