/* mhd.c - libmicrohttpd driven by its epoll descriptor, answers suspended while they have nothing
 * to say. */
#include "tests/bench/http/bench_http.h"

#include <microhttpd.h>
#include <poll.h>
#include <stdlib.h>
#include <time.h>

typedef struct stream {
    struct MHD_Connection *conn;
    char buf[EVENT_BYTES * 64];
    size_t len;
    int suspended, ended, gone;
} stream;

static stream streams[STREAMS];
static int n_streams, n_gone;

static ssize_t read_stream(void *ctx, uint64_t pos, char *buf, size_t max)
{
    (void)pos;
    stream *s = ctx;
    if (!s->len) {
        if (s->ended)
            return MHD_CONTENT_READER_END_OF_STREAM;
        MHD_suspend_connection(s->conn);
        s->suspended = 1;
        return 0;
    }
    size_t n = s->len < max ? s->len : max;
    memcpy(buf, s->buf, n);
    memmove(s->buf, s->buf + n, s->len - n);
    s->len -= n;
    return (ssize_t)n;
}

static void gone(void *ctx)
{
    ((stream *)ctx)->gone = 1;
    n_gone++;
}

static enum MHD_Result answer(void *ctx, struct MHD_Connection *c, const char *url, const char *method,
                              const char *version, const char *data, size_t *n, void **state)
{
    (void)ctx, (void)url, (void)method, (void)version, (void)data, (void)n, (void)state;
    if (n_streams == STREAMS)
        return MHD_NO;
    stream *s = &streams[n_streams++];
    s->conn = c;
    struct MHD_Response *r = MHD_create_response_from_callback(MHD_SIZE_UNKNOWN, 4096, read_stream, s, gone);
    MHD_add_response_header(r, "Content-Type", "text/event-stream");
    enum MHD_Result ok = MHD_queue_response(c, 200, r);
    MHD_destroy_response(r);
    return ok;
}

static void wake(stream *s)
{
    if (s->suspended) {
        s->suspended = 0;
        MHD_resume_connection(s->conn);
    }
}

static double now(void)
{
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (double)t.tv_sec + 1e-9 * (double)t.tv_nsec;
}

int main(int argc, char **argv)
{
    bench_init();
    struct MHD_Daemon *d =
        MHD_start_daemon(MHD_USE_EPOLL | MHD_ALLOW_SUSPEND_RESUME, (uint16_t)atoi(argv[argc - 1]), NULL, NULL,
                         answer, NULL, MHD_OPTION_CONNECTION_LIMIT, 2000, MHD_OPTION_END);
    if (!d)
        return 1;
    struct pollfd p = {.fd = MHD_get_daemon_info(d, MHD_DAEMON_INFO_EPOLL_FD)->epoll_fd, .events = POLLIN};
    double cpu0 = 0, next = 0;
    for (int round = 0; n_gone < STREAMS;) {
        if (n_streams == STREAMS && round < ROUNDS && now() >= next) {
            if (!round++)
                cpu0 = bench_cpu(), next = now();
            next += ROUND_US * 1e-6;
            for (int i = 0; i < STREAMS; i++) {
                stream *s = &streams[i];
                if (s->len + EVENT_BYTES <= sizeof s->buf) {
                    memcpy(s->buf + s->len, bench_event, EVENT_BYTES);
                    s->len += EVENT_BYTES;
                }
                s->ended = round == ROUNDS;
                wake(s);
            }
        }
        MHD_run(d);
        double wait = n_streams == STREAMS && round < ROUNDS ? (next - now()) * 1e3 : 1;
        poll(&p, 1, wait < 0 ? 0 : (int)wait);
    }
    bench_report("libmicrohttpd, epoll", cpu0);
    MHD_stop_daemon(d);
    return 0;
}
