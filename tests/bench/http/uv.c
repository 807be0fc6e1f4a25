/* uv.c - the daemon's own http_conn: http-parser on libuv streams. */
#include "daemon/http_conn.h"
#include "tests/bench/http/bench_http.h"

#include <stdlib.h>

static ds_hconn *streams[STREAMS];
static ds_httpd *http;
static uv_timer_t tick;
static uv_prepare_t prepare;
static int n_streams, rounds;
static double cpu0;

static void on_end(uv_timer_t *t)
{
    uv_stop(t->loop);
}

static void on_tick(uv_timer_t *t)
{
    for (int i = 0; i < STREAMS; i++) {
        ds_hconn_send(streams[i], bench_event, EVENT_BYTES);
        if (rounds + 1 == ROUNDS)
            ds_hconn_finish(streams[i]);
    }
    if (++rounds == ROUNDS)
        uv_timer_start(t, on_end, 1000, 0);
}

static void on_prepare(uv_prepare_t *p)
{
    (void)p;
    ds_httpd_flush(http);
}

static void on_request(void *ctx, ds_hconn *c, ds_http_reader *msg)
{
    (void)ctx, (void)msg;
    ds_hconn_stream(c, 200, "text/event-stream");
    streams[n_streams++] = c;
    if (n_streams == STREAMS) {
        cpu0 = bench_cpu();
        uv_timer_start(&tick, on_tick, ROUND_US / 1000, ROUND_US / 1000);
    }
}

int main(int argc, char **argv)
{
    char listen[64];
    ds_err err;
    bench_init();
    snprintf(listen, sizeof listen, "127.0.0.1:%s", argv[argc - 1]);
    uv_loop_t *loop = uv_default_loop();
    ds_httpd_opts o = {.listen = listen,
                       .max_connections = 2000,
                       .max_body = 1 << 20,
                       .max_backlog = 1 << 20,
                       .head_ms = 10000,
                       .idle_ms = 60000,
                       .stall_ms = 30000,
                       .on_request = on_request};
    if (ds_httpd_open(loop, &o, &http, &err)) {
        fprintf(stderr, "%s\n", err.msg);
        return 1;
    }
    uv_timer_init(loop, &tick);
    uv_prepare_init(loop, &prepare);
    uv_prepare_start(&prepare, on_prepare);
    uv_run(loop, UV_RUN_DEFAULT);
    bench_report("http-parser on libuv", cpu0);
    return 0;
}
