/* worker_link.c - see worker_link.h. */
#include "daemon/worker_link.h"

#include "base/log.h"
#include "proto/socket.h"
#include "proto/status.h"
#include "proto/validate.h"

#include <inttypes.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>
#include <zmq.h>

enum { DRAIN_FRAMES = 2048 /* frames taken per call, then other work gets its turn */ };

typedef struct flight {
    uint64_t wire; /* 0: free */
    void *owner;   /* NULL: cancelled */
    int worker;
    uint32_t cost; /* tokens counted as outstanding */
    int next_free;
} flight;

struct ds_links {
    ds_links_opts opts;
    void *sock;
    int lock;
    ds_worker worker[DS_MAX_WORKERS];
    int last_pick;
    int ready;
    ds_pb_caps *caps; /* of the first worker; all must agree */
    ds_worker model;  /* keeps what caps points to after that worker is gone */
    flight *flights;
    int n_slots, free_slot, n_flights;
    uint64_t generation;
    uint64_t beat, beat_ns;
    ds_frame frame;
};

/* ---- flights ---- */

static flight *find_flight(const ds_links *l, uint64_t wire)
{
    uint64_t slot = wire % DS_MAX_FLIGHTS;
    if (!wire || slot >= (uint64_t)l->n_slots || l->flights[slot].wire != wire)
        return NULL;
    return &l->flights[slot];
}

static flight *new_flight(ds_links *l)
{
    if (l->free_slot < 0 && l->n_slots < DS_MAX_FLIGHTS) {
        int n = l->n_slots ? l->n_slots * 2 : 64;
        flight *p = realloc(l->flights, (size_t)n * sizeof *p);
        if (!p)
            return NULL;
        l->flights = p;
        for (int i = n - 1; i >= l->n_slots; i--) {
            p[i] = (flight){.next_free = l->free_slot};
            l->free_slot = i;
        }
        l->n_slots = n;
    }
    if (l->free_slot < 0)
        return NULL;
    flight *f = &l->flights[l->free_slot];
    int slot = l->free_slot;
    l->free_slot = f->next_free;
    *f = (flight){.wire = ++l->generation * DS_MAX_FLIGHTS + (uint64_t)slot};
    l->n_flights++;
    return f;
}

static void *end_flight(ds_links *l, flight *f)
{
    ds_worker *w = &l->worker[f->worker];
    void *owner = f->owner;
    w->flights--;
    w->outstanding -= f->cost;
    *f = (flight){.next_free = l->free_slot};
    l->free_slot = (int)(f - l->flights);
    l->n_flights--;
    return owner;
}

/* ---- workers ---- */

static ds_worker *find_peer(ds_links *l, const ds_peer *peer)
{
    for (int i = 0; i < DS_MAX_WORKERS; i++) {
        ds_worker *w = &l->worker[i];
        if (w->state != LINK_EMPTY && w->peer.len == peer->len && !memcmp(w->peer.id, peer->id, peer->len))
            return w;
    }
    return NULL;
}

/* The one place that changes a worker's state. Losing one ends its flights, one by one. */
static void worker_enter(ds_links *l, ds_worker *w, ds_link_state to, const char *why)
{
    l->ready += (to == LINK_READY) - (w->state == LINK_READY);
    w->state = to;
    if (to != LINK_EMPTY)
        return;
    int i = (int)(w - l->worker);
    ds_log(DS_LOG_WARN, "link", "worker %s is gone: %s; it held %d requests", w->name, why, w->flights);
    char name[sizeof w->name], reason[128];
    memcpy(name, w->name, sizeof name);
    snprintf(reason, sizeof reason, "%s", why); /* why may live in a frame that goes away */
    l->opts.on.gone(l->opts.on.ctx, name);
    for (int s = 0; s < l->n_slots; s++)
        if (l->flights[s].wire && l->flights[s].worker == i) {
            void *owner = end_flight(l, &l->flights[s]);
            if (owner) /* may cancel other flights of this worker: they are met here later, without owner */
                l->opts.on.lost(owner, reason);
        }
    DS_ASSERT(w->flights == 0 && w->outstanding == 0);
}

static void send_error(ds_links *l, const ds_peer *peer, const ds_err *e)
{
    ds_pb_error m = DSPARK__V1__ERROR__INIT;
    m.code = (uint32_t)e->code;
    m.field = (char *)e->field;
    m.message = (char *)e->msg;
    ds_pb_envelope env = ds_frame_wrap(DSPARK__V1__ENVELOPE__BODY_ERROR, &m);
    ds_frame_send(l->sock, peer, &env, NULL); /* a peer that cannot be told is cut by its own timeouts */
}

static void copy_text(char *to, size_t size, const char *from, char **ret)
{
    snprintf(to, size, "%s", from ? from : "");
    *ret = to;
}

static void copy_caps(ds_worker *w, const ds_pb_caps *c)
{
    w->caps = *c;
    copy_text(w->model, sizeof w->model, c->model, &w->caps.model);
    copy_text(w->arch, sizeof w->arch, c->arch, &w->caps.arch);
    copy_text(w->device, sizeof w->device, c->device, &w->caps.device);
    copy_text(w->weights, sizeof w->weights, c->weights, &w->caps.weights);
    copy_text(w->draft, sizeof w->draft, c->draft, &w->caps.draft);
    if (c->n_eos) /* <= DS_MAX_STOP_TOKENS was validated */
        memcpy(w->eos, c->eos, c->n_eos * sizeof *w->eos);
    w->caps.eos = w->eos;
}

static void answer_hello(ds_links *l, ds_worker *w)
{
    ds_pb_hello m = DSPARK__V1__HELLO__INIT;
    m.role = (char *)"router";
    m.name = (char *)l->opts.name;
    m.software = (char *)"dsparkd " DS_VERSION;
    m.incarnation = l->generation + 1;
    m.heartbeat_ms = l->opts.heartbeat_ms;
    ds_pb_envelope env = ds_frame_wrap(DSPARK__V1__ENVELOPE__BODY_HELLO, &m);
    ds_err err = {0};
    if (ds_frame_send(l->sock, &w->peer, &env, &err))
        worker_enter(l, w, LINK_EMPTY, err.msg);
}

static ds_code judge_hello(ds_links *l, const ds_pb_hello *h, ds_err *err)
{
    DS_TRY(ds_proto_validate_hello(h, "worker", err));
    if (l->caps && l->caps->model_hash != h->capabilities->model_hash)
        return ds_err_field(err, DS_EINVAL, "model_hash",
                            "worker %s serves another model (hash %016" PRIx64
                            ", this router serves %016" PRIx64 ")",
                            h->name, h->capabilities->model_hash, l->caps->model_hash);
    return DS_OK;
}

static void on_hello(ds_links *l, const ds_peer *peer, const ds_pb_hello *h)
{
    ds_err err = {0};
    if (judge_hello(l, h, &err)) {
        ds_log(DS_LOG_WARN, "link", "refused a worker: %s", err.msg);
        send_error(l, peer, &err);
        return;
    }
    ds_worker *w = NULL;
    for (int i = 0; i < DS_MAX_WORKERS; i++) { /* a restarted worker takes its old name's place */
        ds_worker *o = &l->worker[i];
        if (o->state != LINK_EMPTY && (!strcmp(o->name, h->name) || find_peer(l, peer) == o))
            worker_enter(l, o, LINK_EMPTY, "it said hello again");
    }
    for (int i = DS_MAX_WORKERS - 1; i >= 0; i--)
        if (l->worker[i].state == LINK_EMPTY)
            w = &l->worker[i];
    if (!w) {
        ds_err_set(&err, DS_ELIMIT, "this router has %d workers already", DS_MAX_WORKERS);
        send_error(l, peer, &err);
        return;
    }
    memset(w, 0, sizeof *w);
    w->peer = *peer;
    snprintf(w->name, sizeof w->name, "%s", h->name);
    w->incarnation = h->incarnation;
    w->last_ns = w->step_ns = ds_clock_ns(l->opts.clock);
    copy_caps(w, h->capabilities);
    dspark__v1__stats__init(&w->stats);
    if (!l->caps) {
        l->model = *w;
        copy_caps(&l->model, h->capabilities);
        l->caps = &l->model.caps;
    }
    worker_enter(l, w, LINK_READY, NULL);
    ds_log(DS_LOG_INFO, "link", "worker %s is ready: %s, %s, %s", w->name, w->model, w->device, w->weights);
    answer_hello(l, w);
}

/* ---- frames ---- */

static void on_tokens(ds_links *l, ds_worker *w, const ds_pb_tokens *t)
{
    ds_err err = {0};
    flight *f = find_flight(l, t->id);
    if (!f || &l->worker[f->worker] != w || !f->owner)
        return;
    if (ds_proto_validate_tokens(t, &w->caps, &err)) {
        ds_log(DS_LOG_WARN, "link", "worker %s: %s", w->name, err.msg);
        worker_enter(l, w, LINK_EMPTY, err.msg);
        return;
    }
    l->opts.on.tokens(f->owner, t);
}

static void on_done(ds_links *l, ds_worker *w, const ds_pb_done *d)
{
    flight *f = find_flight(l, d->id);
    if (!f || &l->worker[f->worker] != w)
        return;
    void *owner = end_flight(l, f);
    if (owner)
        l->opts.on.done(owner, d);
}

static void on_error(ds_links *l, ds_worker *w, const ds_pb_error *e)
{
    if (e->id == 0) {
        if (e->code != DS_EDRAINING)
            worker_enter(l, w, LINK_EMPTY, e->message);
        else if (w->state == LINK_READY) /* it got a signal of its own: what it holds it finishes */
            worker_enter(l, w, LINK_DRAINING, NULL);
        return;
    }
    flight *f = find_flight(l, e->id);
    if (!f || &l->worker[f->worker] != w)
        return;
    void *owner = end_flight(l, f);
    ds_err err = {0};
    ds_err_field(&err, ds_status_from_wire(e->code), e->field, "%.400s", e->message);
    if (owner)
        l->opts.on.error(owner, &err);
}

static void on_stats(ds_worker *w, const ds_pb_stats *s)
{
    ds_frame_keep_stats(s, &w->stats, &w->stats_at);
    w->stats.worker = w->name;
}

static void on_frame(ds_links *l, const ds_peer *peer, const ds_pb_envelope *env)
{
    if (env->body_case == DSPARK__V1__ENVELOPE__BODY_HELLO) {
        on_hello(l, peer, env->hello);
        return;
    }
    ds_worker *w = find_peer(l, peer);
    if (!w) { /* silence is not enough: a worker we lost must know that it has to say hello again */
        ds_err err = {0};
        ds_err_set(&err, DS_EPROTO, "say hello first");
        send_error(l, peer, &err);
        return;
    }
    w->last_ns = ds_clock_ns(l->opts.clock);
    switch (env->body_case) {
    case DSPARK__V1__ENVELOPE__BODY_TOKENS:
        on_tokens(l, w, env->tokens);
        break;
    case DSPARK__V1__ENVELOPE__BODY_DONE:
        on_done(l, w, env->done);
        break;
    case DSPARK__V1__ENVELOPE__BODY_ERROR:
        on_error(l, w, env->error);
        break;
    case DSPARK__V1__ENVELOPE__BODY_CREDITS:
        if (env->credits->add <= DS_MAX_FLIGHTS && w->credits <= DS_MAX_FLIGHTS)
            w->credits += env->credits->add;
        l->opts.on.room(l->opts.on.ctx);
        break;
    case DSPARK__V1__ENVELOPE__BODY_HEARTBEAT:
        if (env->heartbeat->step != w->step || w->flights == 0)
            w->step_ns = w->last_ns;
        w->step = env->heartbeat->step;
        break;
    case DSPARK__V1__ENVELOPE__BODY_STATS:
        on_stats(w, env->stats);
        break;
    default:
        worker_enter(l, w, LINK_EMPTY, "it sent a frame that workers do not send");
    }
}

void ds_links_drain(ds_links *l)
{
    ds_peer peer;
    for (int i = 0; i < DRAIN_FRAMES; i++) {
        ds_err err = {0};
        ds_code code = ds_frame_recv(l->sock, &peer, &l->frame, &err);
        if (code == DS_ETIMEOUT)
            return;
        if (code == DS_OK) {
            on_frame(l, &peer, l->frame.env);
            continue;
        }
        ds_worker *w = code == DS_EPROTO ? find_peer(l, &peer) : NULL;
        if (w)
            worker_enter(l, w, LINK_EMPTY, err.msg);
        else
            ds_log(DS_LOG_WARN, "link", "a frame from a stranger: %s", err.msg);
        if (code == DS_EIO)
            return;
    }
}

int ds_links_pending(ds_links *l)
{
    int events = 0;
    size_t n = sizeof events;
    return zmq_getsockopt(l->sock, ZMQ_EVENTS, &events, &n) == 0 && (events & ZMQ_POLLIN);
}

int ds_links_fd(const ds_links *l)
{
    int fd = -1;
    size_t n = sizeof fd;
    zmq_getsockopt(l->sock, ZMQ_FD, &fd, &n);
    return fd;
}

void ds_links_tick(ds_links *l)
{
    uint64_t now = ds_clock_ns(l->opts.clock);
    int beat = now - l->beat_ns >= (uint64_t)l->opts.heartbeat_ms * 1000000;
    if (beat) {
        l->beat_ns = now;
        l->beat++;
    }
    for (int i = 0; i < DS_MAX_WORKERS; i++) {
        ds_worker *w = &l->worker[i];
        if (w->state == LINK_EMPTY)
            continue;
        if (now > w->last_ns && now - w->last_ns > (uint64_t)l->opts.timeout_ms * 1000000) {
            worker_enter(l, w, LINK_EMPTY, "no heartbeat");
        } else if (w->flights && now > w->step_ns &&
                   now - w->step_ns > (uint64_t)l->opts.wedge_ms * 1000000) {
            worker_enter(l, w, LINK_EMPTY, "it holds work but makes no step");
        } else if (beat) {
            ds_pb_heartbeat m = DSPARK__V1__HEARTBEAT__INIT;
            m.seq = l->beat;
            ds_pb_envelope env = ds_frame_wrap(DSPARK__V1__ENVELOPE__BODY_HEARTBEAT, &m);
            ds_err err = {0};
            if (ds_frame_send(l->sock, &w->peer, &env, &err) == DS_ENOTFOUND)
                worker_enter(l, w, LINK_EMPTY, err.msg);
        }
    }
}

/* ---- what the owner asks ---- */

static int pick(ds_links *l, const char *avoid)
{
    ds_route_view v[DS_MAX_WORKERS];
    for (int i = 0; i < DS_MAX_WORKERS; i++) {
        const ds_worker *w = &l->worker[i];
        v[i] = (ds_route_view){.ready = w->state == LINK_READY,
                               .credits = w->credits,
                               .outstanding_tokens = w->outstanding,
                               .avoid = avoid && !strcmp(avoid, w->name)};
    }
    return ds_route_pick(v, DS_MAX_WORKERS, l->last_pick);
}

ds_code ds_links_submit(ds_links *l, ds_pb_submit *s, const char *avoid, void *owner, uint64_t *ret_wire,
                        ds_err *err)
{
    for (;;) {
        int i = pick(l, avoid);
        if (i < 0)
            return ds_err_set(err, DS_ELIMIT, "no worker has room");
        ds_worker *w = &l->worker[i];
        s->id = 1;
        DS_TRY(ds_proto_validate_submit(s, &w->caps, 0, err));
        flight *f = new_flight(l);
        if (!f)
            return ds_err_set(err, DS_ELIMIT, "more than %d requests are with workers", DS_MAX_FLIGHTS);
        f->worker = i;
        f->cost = (uint32_t)s->n_prompt_ids + s->sampling->max_tokens;
        w->flights++;
        w->outstanding += f->cost;
        if (w->flights == 1)
            w->step_ns = ds_clock_ns(l->opts.clock);
        s->id = f->wire;
        ds_pb_envelope env = ds_frame_wrap(DSPARK__V1__ENVELOPE__BODY_SUBMIT, s);
        ds_code code = ds_frame_send(l->sock, &w->peer, &env, err);
        if (code == DS_OK) {
            w->credits--;
            l->last_pick = i;
            f->owner = owner;
            *ret_wire = f->wire;
            return DS_OK;
        }
        end_flight(l, f); /* f had no owner yet, so nobody is told */
        if (code != DS_ENOTFOUND)
            return code;
        worker_enter(l, w, LINK_EMPTY, err->msg);
    }
}

void ds_links_cancel(ds_links *l, uint64_t wire)
{
    flight *f = find_flight(l, wire);
    if (!f || !f->owner)
        return;
    f->owner = NULL;
    ds_pb_cancel m = DSPARK__V1__CANCEL__INIT;
    m.id = wire;
    ds_pb_envelope env = ds_frame_wrap(DSPARK__V1__ENVELOPE__BODY_CANCEL, &m);
    ds_worker *w = &l->worker[f->worker];
    ds_err err = {0};
    if (ds_frame_send(l->sock, &w->peer, &env, &err) == DS_ENOTFOUND)
        w->last_ns = 0; /* lost: the next tick declares it, not this call below its owner's */
}

const char *ds_links_holder(const ds_links *l, uint64_t wire)
{
    flight *f = find_flight(l, wire);
    return f ? l->worker[f->worker].name : NULL;
}

void ds_links_drop(ds_links *l, const char *name, const char *why)
{
    for (int i = 0; i < DS_MAX_WORKERS; i++)
        if (l->worker[i].state != LINK_EMPTY && !strcmp(l->worker[i].name, name))
            worker_enter(l, &l->worker[i], LINK_EMPTY, why);
}

void ds_links_drain_workers(ds_links *l, uint32_t deadline_ms)
{
    ds_pb_drain m = DSPARK__V1__DRAIN__INIT;
    m.deadline_ms = deadline_ms;
    ds_pb_envelope env = ds_frame_wrap(DSPARK__V1__ENVELOPE__BODY_DRAIN, &m);
    for (int i = 0; i < DS_MAX_WORKERS; i++)
        if (l->worker[i].state == LINK_READY) {
            ds_frame_send(l->sock, &l->worker[i].peer, &env, NULL); /* one that is gone needs no drain */
            worker_enter(l, &l->worker[i], LINK_DRAINING, NULL);
        }
}

int ds_links_ready(const ds_links *l)
{
    return l->ready;
}

const ds_worker *ds_links_worker(const ds_links *l, int i)
{
    return &l->worker[i];
}

const ds_pb_caps *ds_links_caps(const ds_links *l)
{
    return l->caps;
}

int ds_links_flights(const ds_links *l)
{
    return l->n_flights;
}

ds_code ds_links_open(void *zctx, const ds_links_opts *opts, ds_links **ret, ds_err *err)
{
    ds_links *l = calloc(1, sizeof *l);
    if (!l)
        return ds_err_set(err, DS_ENOMEM, "no memory for the worker links");
    l->opts = *opts;
    l->lock = -1;
    l->free_slot = -1;
    l->last_pick = DS_MAX_WORKERS - 1;
    ds_code code = ds_sock_router(zctx, &l->sock, err);
    if (code == DS_OK)
        code = ds_sock_bind(l->sock, opts->endpoint, &l->lock, err);
    if (code) {
        ds_links_close(l);
        return code;
    }
    *ret = l;
    return DS_OK;
}

void ds_links_close(ds_links *l)
{
    if (!l)
        return;
    if (l->sock)
        zmq_close(l->sock);
    if (l->lock >= 0)
        close(l->lock);
    ds_frame_clear(&l->frame);
    free(l->flights);
    free(l);
}
