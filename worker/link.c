/* link.c - the engine's side of the link: slots, command queue, posting of frames. See link.h.
 * Owner: the engine thread; what both threads touch is under one lock, held for microseconds. */
#include "worker/link.h"

#include "base/clock.h"
#include "base/log.h"
#include "proto/socket.h"
#include "proto/status.h"
#include "worker/link_int.h"

#include <errno.h>
#include <signal.h>
#include <stdlib.h>
#include <string.h>
#include <sys/eventfd.h>
#include <time.h>
#include <unistd.h>
#include <zmq.h>

enum { SLOT_STRIDE = DS_LINK_MAX_SLOTS + 1 };

/* ---- shared state, lock held ---- */

ds_code link_post(ds_link *l, ds_pb_envelope env)
{
    ds_err err;
    size_t at = l->out.len;
    uint32_t n = 0;
    ds_code code = ds_buf_append(&l->out, &n, sizeof n);
    if (code == DS_OK)
        code = ds_frame_encode(&env, &l->out, &err);
    if (code != DS_OK) {
        l->out.len = at;
        l->overflow = 1;
        return code;
    }
    n = (uint32_t)(l->out.len - at - sizeof n);
    memcpy(l->out.data + at, &n, sizeof n);
    return DS_OK;
}

void link_post_error(ds_link *l, uint64_t wire_id, ds_code code, const char *field, const char *msg)
{
    ds_pb_error e = DSPARK__V1__ERROR__INIT;
    e.id = wire_id;
    e.code = (uint32_t)code;
    e.field = (char *)field;
    e.message = (char *)msg;
    e.retry_after_ms = (uint32_t)ds_status_of(code)->retry_after_ms;
    link_post(l, ds_frame_wrap(DSPARK__V1__ENVELOPE__BODY_ERROR, &e));
}

void link_push(ds_link *l, ds_link_cmd cmd)
{
    DS_ASSERT(l->ring_n < l->ring_cap); /* a slot: a CANCEL left by the request before, SUBMIT, CANCEL */
    l->ring[(l->ring_head + l->ring_n++) % l->ring_cap] = cmd;
    pthread_cond_signal(&l->cond);
}

void link_push_once(ds_link *l, ds_link_kind kind, uint32_t deadline_ms)
{
    int *flag = kind == DS_LINK_DRAIN ? &l->draining : &l->stopping;
    if (!*flag)
        link_push(l, (ds_link_cmd){.kind = kind, .deadline_ms = deadline_ms});
    *flag = 1;
}

void link_cancel_slot(ds_link *l, link_slot *s)
{
    if (s->id && !s->cancelled) {
        s->cancelled = 1;
        link_push(l, (ds_link_cmd){.kind = DS_LINK_CANCEL, .id = s->id});
    }
}

static link_slot *slot_of(ds_link *l, uint64_t id)
{
    uint64_t s = id % SLOT_STRIDE;
    return id && s < (uint64_t)l->conf.slots && l->slots[s].id == id ? &l->slots[s] : NULL;
}

/* ---- engine side ---- */

static link_slot *post_id(ds_link *l, uint64_t id, link_slot **ret)
{
    pthread_mutex_lock(&l->lock);
    *ret = slot_of(l, id);
    DS_ASSERT(*ret); /* a post after the outcome is the engine's bug */
    return l->up && (*ret)->epoch == l->epoch ? *ret : NULL;
}

static void release(ds_link *l, link_slot *s)
{
    s->id = 0;
    l->n_live--;
    l->credits_owed++;
}

void ds_link_tokens(ds_link *l, uint64_t id, ds_pb_tokens *t)
{
    link_slot *s;
    if (post_id(l, id, &s)) {
        t->id = s->wire_id;
        link_post(l, ds_frame_wrap(DSPARK__V1__ENVELOPE__BODY_TOKENS, t));
    }
    pthread_mutex_unlock(&l->lock);
}

void ds_link_done(ds_link *l, uint64_t id, ds_pb_done *d)
{
    link_slot *s;
    if (post_id(l, id, &s)) {
        d->id = s->wire_id;
        link_post(l, ds_frame_wrap(DSPARK__V1__ENVELOPE__BODY_DONE, d));
    }
    release(l, s);
    pthread_mutex_unlock(&l->lock);
}

void ds_link_error(ds_link *l, uint64_t id, ds_code code, const char *field, const char *msg)
{
    link_slot *s;
    if (post_id(l, id, &s))
        link_post_error(l, s->wire_id, code, field, msg);
    release(l, s);
    pthread_mutex_unlock(&l->lock);
}

void ds_link_lost(ds_link *l, const char *msg)
{
    pthread_mutex_lock(&l->lock);
    if (l->up)
        link_post_error(l, 0, DS_ELOST, "", msg);
    pthread_mutex_unlock(&l->lock);
}

static void wake(ds_link *l)
{
    uint64_t one = 1;
    ssize_t n = write(l->wake_fd, &one, sizeof one);
    DS_ASSERT(n == sizeof one || errno == EAGAIN);
}

void ds_link_flush(ds_link *l, const ds_pb_stats *stats)
{
    pthread_mutex_lock(&l->lock);
    int any = l->out.len > 0 || l->credits_owed > 0;
    ds_frame_keep_stats(stats, &l->stats, &l->stats_at);
    pthread_mutex_unlock(&l->lock);
    if (any)
        wake(l);
}

int ds_link_live(ds_link *l)
{
    pthread_mutex_lock(&l->lock);
    int n = l->n_live;
    pthread_mutex_unlock(&l->lock);
    return n;
}

int ds_link_take(ds_link *l, int timeout_ms, ds_link_cmd *ret)
{
    struct timespec until;
    int rc = 0;
    if (timeout_ms > 0) {
        clock_gettime(CLOCK_MONOTONIC, &until);
        until.tv_sec += timeout_ms / 1000;
        until.tv_nsec += timeout_ms % 1000 * 1000000L;
        if (until.tv_nsec >= 1000000000L) {
            until.tv_nsec -= 1000000000L;
            until.tv_sec++;
        }
    }
    pthread_mutex_lock(&l->lock);
    while (l->ring_n == 0 && timeout_ms != 0 && rc == 0)
        rc = timeout_ms < 0 ? pthread_cond_wait(&l->cond, &l->lock)
                            : pthread_cond_timedwait(&l->cond, &l->lock, &until);
    int got = l->ring_n > 0;
    if (got) {
        *ret = l->ring[l->ring_head];
        l->ring_head = (l->ring_head + 1) % l->ring_cap;
        l->ring_n--;
    }
    pthread_mutex_unlock(&l->lock);
    return got;
}

/* ---- life ---- */

static void destroy(ds_link *l)
{
    for (; l->ring_n > 0; l->ring_n--, l->ring_head = (l->ring_head + 1) % l->ring_cap)
        ds_frame_clear(&l->ring[l->ring_head].frame);
    if (l->zctx)
        zmq_ctx_term(l->zctx);
    if (l->wake_fd >= 0)
        close(l->wake_fd);
    pthread_mutex_destroy(&l->lock);
    pthread_cond_destroy(&l->cond);
    ds_frame_clear(&l->in);
    ds_buf_free(&l->out);
    ds_buf_free(&l->sending);
    free(l->slots);
    free(l->ring);
    free(l);
}

/* Signals belong to signal_fd: no thread of ours or of ZeroMQ may take them. */
static ds_code start_threads(ds_link *l, ds_err *err)
{
    sigset_t all, old;
    sigfillset(&all);
    pthread_sigmask(SIG_SETMASK, &all, &old);
    l->zctx = zmq_ctx_new();
    int rc = l->zctx ? pthread_create(&l->thread, NULL, link_io_main, l) : ENOMEM;
    pthread_sigmask(SIG_SETMASK, &old, NULL);
    return rc == 0 ? DS_OK : ds_err_set(err, DS_EIO, "starting the socket thread: %s", strerror(rc));
}

ds_code ds_link_open(const ds_link_conf *conf, ds_link **ret, ds_err *err)
{
    if (conf->slots < 1 || conf->slots > DS_LINK_MAX_SLOTS)
        return ds_err_field(err, DS_EINVAL, "slots", "%d requests at once, must be in [1, %d]", conf->slots,
                            DS_LINK_MAX_SLOTS);
    ds_link *l = calloc(1, sizeof *l);
    if (!l)
        return ds_err_set(err, DS_ENOMEM, "no memory for the link");
    pthread_condattr_t attr;
    pthread_condattr_init(&attr);
    pthread_condattr_setclock(&attr, CLOCK_MONOTONIC);
    pthread_mutex_init(&l->lock, NULL);
    pthread_cond_init(&l->cond, &attr);
    pthread_condattr_destroy(&attr);
    l->conf = *conf;
    l->ring_cap = 3 * conf->slots + 2;
    l->out.max = l->sending.max = DS_LINK_MAX_OUT_BYTES;
    l->incarnation = ds_now_ns() ^ (uint64_t)getpid() << 40;
    l->stats = (ds_pb_stats)DSPARK__V1__STATS__INIT;
    l->slots = calloc((size_t)conf->slots, sizeof *l->slots);
    l->ring = calloc((size_t)l->ring_cap, sizeof *l->ring);
    l->wake_fd = eventfd(0, EFD_NONBLOCK | EFD_CLOEXEC);
    ds_code code = l->slots && l->ring && l->wake_fd >= 0
                       ? start_threads(l, err)
                       : ds_err_set(err, DS_ENOMEM, "no memory for a link of %d requests", conf->slots);
    if (code != DS_OK) {
        destroy(l);
        return code;
    }
    *ret = l;
    return DS_OK;
}

void ds_link_close(ds_link *l)
{
    if (!l)
        return;
    pthread_mutex_lock(&l->lock);
    l->closing = 1;
    pthread_mutex_unlock(&l->lock);
    wake(l);
    pthread_join(l->thread, NULL);
    destroy(l);
}
