/* daemon.c - the loop: what wakes it, and in which order things happen before it sleeps.
 *
 * ZMQ_FD is edge-triggered and any send or receive may eat its edge. So frames are not read where the
 * descriptor wakes the loop, but in one prepare callback that runs before every sleep: drain the sockets,
 * move the queue, flush HTTP, and again until no socket has input. When a turn's bound is reached, an idle
 * handle keeps the loop awake. */
#include "daemon/daemon.h"
#include "daemon/rpc.h"
#include "daemon/supervise.h"

#include "base/log.h"

#include <inttypes.h>
#include <signal.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <unistd.h>
#include <zmq.h>

enum { TURN_PASSES = 8, TICK_MS = 50 };

typedef struct handles {
    uv_loop_t loop;
    uv_poll_t links, rpc;
    uv_prepare_t prepare;
    uv_idle_t idle;
    uv_timer_t tick;
    uv_signal_t term, intr;
    int up, rpc_up;
    char dir[256]; /* private folder of the worker socket; "" when none was made */
    char endpoint[512];
} handles;

static handles H;

static int pending(ds_daemon *d)
{
    return ds_links_pending(d->links) || (d->rpc && ds_rpc_pending(d->rpc));
}

static void on_idle(uv_idle_t *h)
{
    (void)h; /* its existence is enough: the loop does not sleep */
}

static void on_prepare(uv_prepare_t *h)
{
    ds_daemon *d = h->data;
    int more = 1;
    for (int i = 0; i < TURN_PASSES && more && !d->stopping; i++) {
        ds_links_drain(d->links);
        if (d->rpc)
            ds_rpc_drain(d->rpc);
        if (d->pump)
            ds_admit_pump(d);
        ds_httpd_flush(d->http); /* may cut clients, and so send cancels: look at the sockets again */
        more = pending(d) || d->pump;
    }
    if (more && !d->stopping)
        uv_idle_start(&H.idle, on_idle);
    else
        uv_idle_stop(&H.idle);
}

static void on_zmq(uv_poll_t *h, int status, int events)
{
    (void)h, (void)status, (void)events; /* on_prepare reads */
}

static void on_tick(uv_timer_t *t)
{
    ds_daemon *d = t->data;
    ds_links_tick(d->links);
    if (d->rpc)
        ds_rpc_tick(d->rpc);
    ds_admit_expire(d);
    ds_drain_tick(d);
}

static void on_signal(uv_signal_t *h, int sig)
{
    (void)sig;
    ds_drain_signal(h->data);
}

static void on_room(void *ctx)
{
    ((ds_daemon *)ctx)->pump = 1;
}

static void on_gone(void *ctx, const char *name)
{
    ds_supervisor_lost(((ds_daemon *)ctx)->sup, name);
}

void ds_daemon_exit(ds_daemon *d, int exit_code)
{
    if (d->stopping)
        return;
    d->stopping = 1;
    d->exit_code = exit_code;
    uv_stop(d->loop);
}

void ds_daemon_fail_all(ds_daemon *d)
{
    ds_err err = {0};
    ds_err_set(&err, DS_EDRAINING, "the server stopped before the answer was complete");
    for (ds_request *r = d->requests, *next; r; r = next) {
        next = r->next;
        if (r->state == REQ_RUNNING)
            ds_request_fail(r, &err);
    }
}

/* ---- opening ---- */

static ds_code open_text(ds_daemon *d, ds_err *err)
{
    char path[4096];
    if (!realpath(d->conf.model, path))
        return ds_err_field(err, DS_ENOTFOUND, "model", "%s: no such folder", d->conf.model);
    ds_code code = ds_tokenizer_open(d->conf.model, &d->tok, err);
    if (code == DS_ELIMIT) /* of the file, not of this moment */
        code = err->code = DS_EUNSUPPORTED;
    if (code && code != DS_ENOTFOUND)
        return code;
    if (code) /* a bare checkpoint is served by token ids */
        ds_log(DS_LOG_WARN, "text", "%s; only token ids are taken, and answers have no text", err->msg);
    ds_err why = {0};
    if (!d->tok || ds_chat_detect(d->conf.model, &d->chat, &why)) {
        d->chat = DS_CHAT_NONE;
        snprintf(d->chat_error, sizeof d->chat_error, "this model has no chat template: %.400s",
                 d->tok ? why.msg : "it has no tokenizer");
        ds_log(DS_LOG_WARN, "text", "%s", d->chat_error);
    }
    const char *name = d->conf.served_model_name;
    if (!name || !name[0])
        name = strrchr(path, '/') + 1;
    if (strlen(name) > DS_MAX_MODEL_BYTES || !*name)
        return ds_err_field(err, DS_EINVAL, "served_model_name", "the model's name must have 1..%d bytes",
                            DS_MAX_MODEL_BYTES);
    d->model = strdup(name);
    return d->model ? DS_OK : ds_err_set(err, DS_ENOMEM, "no memory");
}

/* The workers' endpoint: as configured, or a socket in a folder only this user can enter. */
static ds_code choose_endpoint(ds_daemon *d, ds_err *err)
{
    if (d->conf.bind_workers) {
        snprintf(H.endpoint, sizeof H.endpoint, "%s", d->conf.bind_workers);
        return DS_OK;
    }
    snprintf(H.dir, sizeof H.dir, "%s/dsparkd-XXXXXX", d->conf.runtime_dir ? d->conf.runtime_dir : P_tmpdir);
    if (!mkdtemp(H.dir)) {
        H.dir[0] = 0;
        return ds_err_field(err, DS_EIO, "runtime_dir", "cannot make a private folder below %s",
                            d->conf.runtime_dir ? d->conf.runtime_dir : P_tmpdir);
    }
    snprintf(H.endpoint, sizeof H.endpoint, "ipc://%s/workers", H.dir);
    return DS_OK;
}

static ds_code open_links(ds_daemon *d, ds_err *err)
{
    ds_links_opts o = {
        .endpoint = H.endpoint,
        .name = d->name,
        .heartbeat_ms = (uint32_t)d->conf.heartbeat_ms,
        .timeout_ms = (uint32_t)d->conf.worker_timeout_ms,
        .wedge_ms = (uint32_t)d->conf.wedge_ms,
        .on = {ds_choice_tokens, ds_choice_done, ds_choice_error, ds_choice_lost, on_room, on_gone, d},
        .clock = d->clock,
    };
    d->zctx = zmq_ctx_new();
    if (!d->zctx)
        return ds_err_set(err, DS_ENOMEM, "no memory for ZeroMQ");
    DS_TRY(choose_endpoint(d, err));
    DS_TRY(ds_links_open(d->zctx, &o, &d->links, err));
    if (d->conf.rpc)
        DS_TRY(ds_rpc_open(d, d->conf.rpc, &d->rpc, err));
    return DS_OK;
}

static void open_handles(ds_daemon *d)
{
    uv_poll_init(d->loop, &H.links, ds_links_fd(d->links));
    uv_poll_start(&H.links, UV_READABLE, on_zmq);
    if (d->rpc) {
        uv_poll_init(d->loop, &H.rpc, ds_rpc_fd(d->rpc));
        uv_poll_start(&H.rpc, UV_READABLE, on_zmq);
        H.rpc_up = 1;
    }
    uv_prepare_init(d->loop, &H.prepare);
    uv_idle_init(d->loop, &H.idle);
    uv_timer_init(d->loop, &H.tick);
    uv_signal_init(d->loop, &H.term);
    uv_signal_init(d->loop, &H.intr);
    H.prepare.data = H.tick.data = H.term.data = H.intr.data = d;
    uv_prepare_start(&H.prepare, on_prepare);
    uv_timer_start(&H.tick, on_tick, TICK_MS, TICK_MS);
    uv_signal_start(&H.term, on_signal, SIGTERM);
    uv_signal_start(&H.intr, on_signal, SIGINT);
    H.up = 1;
}

ds_code ds_daemon_open(ds_daemon *d, ds_err *err)
{
    d->clock = ds_clock_system();
    d->created = (int64_t)time(NULL);
    snprintf(d->name, sizeof d->name, "dsparkd-%d", (int)getpid());
    snprintf(d->fingerprint, sizeof d->fingerprint, "dsparkd-%s", DS_VERSION);
    signal(SIGPIPE, SIG_IGN);
    d->loop = &H.loop;
    if (uv_loop_init(d->loop))
        return ds_err_set(err, DS_EIO, "the event loop cannot be made");
    DS_TRY(ds_metrics_open(d, err));
    DS_TRY(open_text(d, err));
    DS_TRY(open_links(d, err));
    open_handles(d);
    ds_httpd_opts o = {
        .listen = d->conf.listen,
        .max_connections = (int)d->conf.max_connections,
        .max_body = (size_t)d->conf.max_body_bytes,
        .max_backlog = (size_t)d->conf.max_backlog_bytes,
        .head_ms = (uint64_t)d->conf.head_ms,
        .idle_ms = (uint64_t)d->conf.idle_ms,
        .stall_ms = (uint64_t)d->conf.stall_ms,
        .on_request = ds_api_request,
        .ctx = d,
    };
    DS_TRY(ds_httpd_open(d->loop, &o, &d->http, err));
    if (d->conf.workers > 0)
        DS_TRY(ds_supervisor_open(d, H.endpoint, &d->sup, err));
    ds_log(DS_LOG_INFO, "main", "%s is served on port %d; workers connect to %s", d->model,
           ds_httpd_port(d->http), H.endpoint);
    return DS_OK;
}

void ds_daemon_run(ds_daemon *d)
{
    uv_run(d->loop, UV_RUN_DEFAULT);
}

/* ---- closing ---- */

static void close_handles(ds_daemon *d)
{
    if (d->http)
        ds_httpd_close(d->http);
    if (!H.up)
        return;
    uv_close((uv_handle_t *)&H.links, NULL);
    if (H.rpc_up)
        uv_close((uv_handle_t *)&H.rpc, NULL);
    uv_close((uv_handle_t *)&H.prepare, NULL);
    uv_close((uv_handle_t *)&H.idle, NULL);
    uv_close((uv_handle_t *)&H.tick, NULL);
    uv_close((uv_handle_t *)&H.term, NULL);
    uv_close((uv_handle_t *)&H.intr, NULL);
}

void ds_daemon_close(ds_daemon *d)
{
    d->stopping = 1;
    if (d->http)
        ds_httpd_flush(d->http);
    for (ds_request *r = d->requests, *next; r; r = next) {
        next = r->next;
        ds_request_abandon(r);
    }
    ds_supervisor_stop(d->sup, SIGKILL); /* those that were asked have gone already */
    close_handles(d);
    ds_supervisor_close(d->sup);
    uv_run(d->loop, UV_RUN_DEFAULT); /* close callbacks, children, and what the pool still holds */
    uv_loop_close(d->loop);
    ds_rpc_close(d->rpc);
    ds_links_close(d->links);
    if (d->zctx)
        zmq_ctx_term(d->zctx);
    if (H.dir[0]) {
        char path[320];
        static const char *const names[] = {"workers", "workers.lock"};
        for (int i = 0; i < 2; i++) {
            snprintf(path, sizeof path, "%s/%s", H.dir, names[i]);
            unlink(path);
        }
        rmdir(H.dir);
    }
    if (d->tok)
        ds_tokenizer_close(d->tok);
    free(d->model);
    ds_buf_free(&d->scratch);
    ds_metrics_destroy(d->metrics);
}
