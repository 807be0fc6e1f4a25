/* evhttp.c - libevent's evhttp with chunked replies. */
#include "tests/bench/http/bench_http.h"

#include <event2/buffer.h>
#include <event2/event.h>
#include <event2/http.h>
#include <stdlib.h>

static struct evhttp_request *streams[STREAMS];
static struct event_base *base;
static struct event *tick;
static int n_streams, rounds;
static double cpu0;

static void on_tick(evutil_socket_t fd, short what, void *ctx)
{
    (void)fd, (void)what;
    struct evbuffer *b = ctx;
    for (int i = 0; i < STREAMS; i++) {
        evbuffer_add(b, bench_event, EVENT_BYTES);
        evhttp_send_reply_chunk(streams[i], b);
        if (rounds + 1 == ROUNDS)
            evhttp_send_reply_end(streams[i]);
    }
    if (++rounds == ROUNDS) {
        struct timeval soon = {1, 0}; /* the last bytes leave */
        event_del(tick);
        event_base_loopexit(base, &soon);
    }
}

static void on_request(struct evhttp_request *req, void *ctx)
{
    (void)ctx;
    evhttp_add_header(evhttp_request_get_output_headers(req), "Content-Type", "text/event-stream");
    evhttp_send_reply_start(req, 200, "OK");
    streams[n_streams++] = req;
    if (n_streams == STREAMS) {
        struct timeval period = {0, ROUND_US};
        cpu0 = bench_cpu();
        event_add(tick, &period);
    }
}

int main(int argc, char **argv)
{
    bench_init();
    base = event_base_new();
    struct evbuffer *b = evbuffer_new();
    struct evhttp *http = evhttp_new(base);
    tick = event_new(base, -1, EV_PERSIST, on_tick, b);
    evhttp_set_gencb(http, on_request, NULL);
    if (evhttp_bind_socket(http, "127.0.0.1", (uint16_t)atoi(argv[argc - 1])))
        return 1;
    event_base_dispatch(base);
    bench_report("libevent evhttp", cpu0);
    return 0;
}
