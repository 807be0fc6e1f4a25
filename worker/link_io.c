/* link_io.c - the socket thread: connection, frames from and to the router, heartbeats, signals.
 *
 * States and their changes are in one table below. A connection is an epoch: when it ends, every request that
 * came by it is cancelled and whatever is posted for it is dropped, so a new router starts with a clean
 * worker. */
#include "base/clock.h"
#include "base/log.h"
#include "proto/socket.h"
#include "proto/status.h"
#include "proto/validate.h"
#include "worker/exit.h"
#include "worker/link_int.h"

#include <errno.h>
#include <poll.h>
#include <stdio.h>
#include <string.h>
#include <sys/signalfd.h>
#include <unistd.h>
#include <zmq.h>

#define BODY(kind) DSPARK__V1__ENVELOPE__BODY_##kind

enum { MAX_FRAMES_A_ROUND = 256, CLOSE_MS = 500 };

static const uint8_t g_may_change[4][4] = {
    /* from \ to        CLOSED CONNECTING GREETING UP */
    [LINK_CLOSED] = {0, 1, 0, 0},
    [LINK_CONNECTING] = {1, 0, 1, 0},
    [LINK_GREETING] = {1, 0, 0, 1},
    [LINK_UP] = {1, 0, 0, 0},
};

static void change(ds_link *l, link_state to)
{
    DS_ASSERT(g_may_change[l->state][to]);
    l->state = to;
}

static uint64_t ms(uint64_t n)
{
    return n * 1000000;
}

/* ---- connection ---- */

static void go_down(ds_link *l, const char *why)
{
    if (l->state == LINK_CLOSED)
        return;
    if (l->state == LINK_UP)
        ds_log(DS_LOG_WARN, "link", "router at %s lost: %s", l->conf.endpoint, why);
    else
        ds_log(DS_LOG_DEBUG, "link", "no link to %s: %s", l->conf.endpoint, why);
    if (l->state == LINK_UP)
        l->backoff_ms = 0;
    change(l, LINK_CLOSED);
    ds_conn_close(&l->conn, 0);
    pthread_mutex_lock(&l->lock);
    l->up = 0;
    l->overflow = 0;
    l->epoch++;
    ds_buf_clear(&l->out);
    for (int i = 0; i < l->conf.slots; i++)
        link_cancel_slot(l, &l->slots[i]);
    pthread_mutex_unlock(&l->lock);
    ds_buf_clear(&l->sending);
    l->sent = 0;
    l->backoff_ms = l->backoff_ms == 0                             ? DS_SOCK_RECONNECT_MS
                    : l->backoff_ms * 2 > DS_SOCK_RECONNECT_MAX_MS ? DS_SOCK_RECONNECT_MAX_MS
                                                                   : l->backoff_ms * 2;
    l->reopen_ns = ds_now_ns() + ms(l->backoff_ms);
}

static void reopen(ds_link *l)
{
    ds_err err;
    change(l, LINK_CONNECTING);
    if (ds_conn_open(l->zctx, l->conf.endpoint, &l->conn, &err) != DS_OK)
        go_down(l, err.msg);
}

static void greet(ds_link *l)
{
    ds_err err;
    ds_pb_hello h = DSPARK__V1__HELLO__INIT;
    h.role = (char *)"worker";
    h.name = (char *)l->conf.name;
    h.software = (char *)"dspark-worker " DS_VERSION;
    h.incarnation = l->incarnation;
    h.heartbeat_ms = (uint32_t)l->conf.heartbeat_ms;
    h.capabilities = (ds_pb_caps *)l->conf.caps;
    ds_pb_envelope env = ds_frame_wrap(BODY(HELLO), &h);
    change(l, LINK_GREETING);
    l->heard_ns = ds_now_ns();
    if (ds_frame_send(l->conn.sock, NULL, &env, &err) != DS_OK)
        go_down(l, err.msg);
}

static void on_monitor(ds_link *l)
{
    for (ds_conn_event ev; (ev = ds_conn_next(&l->conn)) != DS_CONN_NONE;) {
        if (ev == DS_CONN_DOWN) {
            go_down(l, "disconnected");
            return;
        }
        if (l->state == LINK_CONNECTING)
            greet(l);
    }
}

/* ---- frames from the router ---- */

static void on_hello(ds_link *l, const ds_pb_hello *h)
{
    ds_err err;
    if (l->state != LINK_GREETING) {
        go_down(l, "a second Hello");
        return;
    }
    if (ds_proto_validate_hello(h, "router", &err) != DS_OK) {
        go_down(l, err.msg);
        return;
    }
    change(l, LINK_UP);
    l->heartbeat_ns = ds_now_ns();
    ds_log(DS_LOG_INFO, "link", "serving router %s at %s", h->name, l->conf.endpoint);
    ds_pb_credits c = DSPARK__V1__CREDITS__INIT;
    pthread_mutex_lock(&l->lock);
    l->up = 1;
    l->credits_owed = 0; /* requests of the router before that still end give theirs back later */
    c.add = (uint32_t)(l->conf.slots - l->n_live);
    link_post(l, ds_frame_wrap(BODY(CREDITS), &c));
    if (l->draining)
        link_post_error(l, 0, DS_EDRAINING, "", "the worker is draining");
    pthread_mutex_unlock(&l->lock);
}

/* Lock held. NULL when no slot is free; *ret_again when the wire id is live already. */
static link_slot *new_slot(ds_link *l, uint64_t wire_id, int *ret_again)
{
    link_slot *unused = NULL;
    *ret_again = 0;
    for (int i = 0; i < l->conf.slots; i++) {
        link_slot *s = &l->slots[i];
        if (s->id == 0)
            unused = unused ? unused : s;
        else if (s->wire_id == wire_id && s->epoch == l->epoch)
            *ret_again = 1;
    }
    return unused;
}

static void refuse(ds_link *l, uint64_t wire_id, ds_code code, const char *field, const char *msg)
{
    link_post_error(l, wire_id, code, field, msg);
    l->credits_owed++;
}

static void on_submit(ds_link *l)
{
    ds_err err = {0};
    int again;
    const ds_pb_submit *sub = l->in.env->submit;
    ds_code code = ds_proto_validate_submit(sub, l->conf.caps, 0, &err);
    pthread_mutex_lock(&l->lock);
    link_slot *s = new_slot(l, sub->id, &again);
    if (again || sub->id == 0) {
        link_post_error(l, 0, DS_EPROTO, "id", again ? "a Submit repeats the id of a live request" : err.msg);
        l->credits_owed++;
    } else if (code != DS_OK) {
        refuse(l, sub->id, code, err.field, err.msg);
    } else if (l->draining || l->stopping) {
        refuse(l, sub->id, DS_EDRAINING, "", "the worker is draining");
    } else if (!s) { /* sent without a credit, so none is given back */
        link_post_error(l, sub->id, DS_ELIMIT, "", "no credit: the worker's queue is full");
    } else {
        *s = (link_slot){.wire_id = sub->id,
                         .id = ++l->generation * (DS_LINK_MAX_SLOTS + 1) + (uint64_t)(s - l->slots),
                         .epoch = l->epoch};
        l->n_live++;
        link_push(l, (ds_link_cmd){.kind = DS_LINK_SUBMIT, .id = s->id, .frame = l->in});
        l->in = (ds_frame){0};
    }
    pthread_mutex_unlock(&l->lock);
}

static void on_cancel(ds_link *l, uint64_t wire_id)
{
    pthread_mutex_lock(&l->lock);
    for (int i = 0; i < l->conf.slots; i++)
        if (l->slots[i].id && l->slots[i].wire_id == wire_id && l->slots[i].epoch == l->epoch)
            link_cancel_slot(l, &l->slots[i]);
    pthread_mutex_unlock(&l->lock);
}

static void start_drain(ds_link *l, uint32_t deadline_ms, int asked_by_router)
{
    pthread_mutex_lock(&l->lock);
    if (!l->draining && l->up && !asked_by_router) /* tells the router to send no more */
        link_post_error(l, 0, DS_EDRAINING, "", "the worker is draining");
    link_push_once(l, DS_LINK_DRAIN, deadline_ms);
    pthread_mutex_unlock(&l->lock);
}

static void on_frame(ds_link *l)
{
    const ds_pb_envelope *env = l->in.env;
    l->heard_ns = ds_now_ns();
    if (env->body_case == BODY(HELLO)) {
        on_hello(l, env->hello);
        return;
    }
    if (env->body_case == BODY(ERROR)) { /* of the link: the router will not have us */
        ds_log(DS_LOG_WARN, "link", "router: %s", env->error->message);
        go_down(l, "refused by the router");
        return;
    }
    if (l->state != LINK_UP) {
        go_down(l, "a frame before Hello");
        return;
    }
    switch (env->body_case) {
    case BODY(SUBMIT):
        on_submit(l);
        break;
    case BODY(CANCEL):
        on_cancel(l, env->cancel->id);
        break;
    case BODY(DRAIN):
        start_drain(l, env->drain->deadline_ms, 1);
        break;
    case BODY(HEARTBEAT):
        break;
    default:
        ds_log(DS_LOG_WARN, "link", "unexpected frame %s from the router", ds_frame_kind(env));
    }
}

static void receive_some(ds_link *l)
{
    ds_err err = {0};
    for (int i = 0; i < MAX_FRAMES_A_ROUND && l->state >= LINK_GREETING; i++) {
        ds_code code = ds_frame_recv(l->conn.sock, NULL, &l->in, &err);
        if (code == DS_ETIMEOUT)
            return;
        if (code == DS_OK)
            on_frame(l);
        else
            go_down(l, err.msg);
    }
}

/* ---- frames to the router ---- */

/* Takes what the engine posted; credits go after the outcomes that free them. */
static void take_out(ds_link *l)
{
    pthread_mutex_lock(&l->lock);
    if (l->up && l->credits_owed > 0) {
        ds_pb_credits c = DSPARK__V1__CREDITS__INIT;
        c.add = (uint32_t)l->credits_owed;
        if (link_post(l, ds_frame_wrap(BODY(CREDITS), &c)) == DS_OK)
            l->credits_owed = 0;
    }
    int overflow = l->overflow;
    if (l->sending.len == 0) {
        ds_buf out = l->out;
        l->out = l->sending;
        l->sending = out;
        l->sent = 0;
    }
    pthread_mutex_unlock(&l->lock);
    if (overflow)
        go_down(l, "it does not read: too many frames are waiting");
}

static void send_some(ds_link *l)
{
    for (;;) {
        if (l->sent == l->sending.len) {
            ds_buf_clear(&l->sending);
            take_out(l);
            if (l->sending.len == 0)
                return;
        }
        uint32_t n;
        memcpy(&n, l->sending.data + l->sent, sizeof n);
        if (zmq_send(l->conn.sock, l->sending.data + l->sent + sizeof n, n, ZMQ_DONTWAIT) < 0) {
            if (errno != EAGAIN && errno != EINTR)
                go_down(l, zmq_strerror(errno));
            return; /* tried again when the socket takes more */
        }
        l->sent += sizeof n + n;
    }
}

static uint64_t rss_bytes(void)
{
    long pages = 0;
    FILE *f = fopen("/proc/self/statm", "re");
    if (f && fscanf(f, "%*s %ld", &pages) != 1)
        pages = 0;
    if (f)
        fclose(f);
    return (uint64_t)pages * (uint64_t)sysconf(_SC_PAGESIZE);
}

static void beat(ds_link *l, uint64_t now)
{
    ds_pb_heartbeat hb = DSPARK__V1__HEARTBEAT__INIT;
    hb.seq = ++l->beats;
    uint64_t rss = rss_bytes();
    pthread_mutex_lock(&l->lock);
    hb.step = l->stats.steps;
    l->stats.worker = (char *)l->conf.name;
    l->stats.rss_bytes = rss;
    link_post(l, ds_frame_wrap(BODY(HEARTBEAT), &hb));
    link_post(l, ds_frame_wrap(BODY(STATS), &l->stats));
    pthread_mutex_unlock(&l->lock);
    l->heartbeat_ns = now + ms((uint64_t)l->conf.heartbeat_ms);
}

/* ---- signals and timers ---- */

static void stop(ds_link *l, const char *why)
{
    if (l->stop_ns)
        return;
    ds_log(DS_LOG_WARN, "link", "stopping: %s", why);
    l->stop_ns = ds_now_ns() + ms(DS_LINK_STOP_MS);
    pthread_mutex_lock(&l->lock);
    link_push_once(l, DS_LINK_STOP, 0);
    pthread_mutex_unlock(&l->lock);
}

static void on_signal(ds_link *l)
{
    struct signalfd_siginfo info;
    if (read(l->conf.signal_fd, &info, sizeof info) != sizeof info)
        return;
    pthread_mutex_lock(&l->lock);
    int draining = l->draining;
    pthread_mutex_unlock(&l->lock);
    if (draining) {
        stop(l, "second signal");
    } else {
        ds_log(DS_LOG_INFO, "link", "draining: signal %u", info.ssi_signo);
        start_drain(l, 0, 0);
    }
}

static void on_timers(ds_link *l, uint64_t now)
{
    if (l->state == LINK_CLOSED && now >= l->reopen_ns)
        reopen(l);
    if (l->state == LINK_UP && now >= l->heartbeat_ns)
        beat(l, now);
    if (l->state >= LINK_GREETING && now - l->heard_ns > ms((uint64_t)l->conf.router_timeout_ms) &&
        now > l->heard_ns)
        go_down(l, "silent for too long");
    if (l->conf.parent && getppid() != l->conf.parent)
        stop(l, "the supervisor is gone");
    if (l->stop_ns && now >= l->stop_ns) {
        ds_log(DS_LOG_ERROR, "link", "the engine did not stop within %d ms", DS_LINK_STOP_MS);
        _exit(DS_EXIT_TEMP);
    }
}

static long poll_ms(const ds_link *l, uint64_t now)
{
    uint64_t until = now + ms((uint64_t)l->conf.heartbeat_ms);
    if (l->state == LINK_CLOSED && l->reopen_ns < until)
        until = l->reopen_ns;
    if (l->state == LINK_UP && l->heartbeat_ns < until)
        until = l->heartbeat_ns;
    return until <= now ? 0 : (long)((until - now + 999999) / 1000000);
}

static void wait_some(ds_link *l)
{
    int open = l->state != LINK_CLOSED, n = 0;
    short sock_events = (short)(ZMQ_POLLIN | (l->sending.len ? ZMQ_POLLOUT : 0));
    zmq_pollitem_t items[4];
    items[n++] = (zmq_pollitem_t){NULL, l->wake_fd, ZMQ_POLLIN, 0};
    if (l->conf.signal_fd >= 0)
        items[n++] = (zmq_pollitem_t){NULL, l->conf.signal_fd, ZMQ_POLLIN, 0};
    if (open) {
        items[n++] = (zmq_pollitem_t){l->conn.mon, 0, ZMQ_POLLIN, 0};
        items[n++] = (zmq_pollitem_t){l->conn.sock, 0, sock_events, 0};
    }
    if (zmq_poll(items, n, poll_ms(l, ds_now_ns())) <= 0)
        return;
    uint64_t count;
    if (items[0].revents && read(l->wake_fd, &count, sizeof count) < 0)
        DS_ASSERT(errno == EAGAIN);
    if (l->conf.signal_fd >= 0 && items[1].revents)
        on_signal(l);
}

/* One round. 0: the link is closing and nothing more can be sent. */
static int round_of(ds_link *l, uint64_t *closing_ns)
{
    wait_some(l);
    if (l->state != LINK_CLOSED)
        receive_some(l); /* before the monitor: what came before a disconnect still counts */
    if (l->state != LINK_CLOSED)
        on_monitor(l);
    uint64_t now = ds_now_ns();
    on_timers(l, now);
    if (l->state == LINK_UP)
        send_some(l);
    pthread_mutex_lock(&l->lock);
    int closing = l->closing;
    pthread_mutex_unlock(&l->lock);
    if (closing && *closing_ns == 0)
        *closing_ns = now + ms(CLOSE_MS);
    return !closing || (l->state == LINK_UP && l->sending.len && now < *closing_ns);
}

void *link_io_main(void *link)
{
    ds_link *l = link;
    uint64_t closing_ns = 0;
    reopen(l);
    while (round_of(l, &closing_ns))
        ;
    ds_conn_close(&l->conn, l->state == LINK_UP ? CLOSE_MS : 0);
    return NULL;
}
