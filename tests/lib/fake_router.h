/* fake_router.h - the router's end of a link for tests: one ROUTER socket on a private ipc path, frames sent
 * and received one by one. Header only. */
#ifndef DS_TESTS_LIB_FAKE_ROUTER_H
#define DS_TESTS_LIB_FAKE_ROUTER_H

#include "base/clock.h"
#include "proto/frame.h"
#include "proto/socket.h"
#include "tests/lib/test.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>
#include <zmq.h>

#define BODY(kind) DSPARK__V1__ENVELOPE__BODY_##kind

typedef struct fake_router {
    char dir[64], endpoint[128];
    void *zctx, *sock;
    int lock;
    int lenient; /* 1: on a thread of its own, where a failed CHECK has nowhere to go: a gone peer is no error
                  */
    ds_peer peer; /* who sent the last frame */
    ds_frame f;
} fake_router;

static inline void router_bind(fake_router *r)
{
    ds_err err = {0};
    CHECK_OK(ds_sock_router(r->zctx, &r->sock, &err), err);
    CHECK_OK(ds_sock_bind(r->sock, r->endpoint, &r->lock, &err), err);
}

static inline void router_unbind(fake_router *r)
{
    int zero = 0;
    zmq_setsockopt(r->sock, ZMQ_LINGER, &zero, sizeof zero);
    zmq_close(r->sock);
    close(r->lock);
    r->sock = NULL;
    for (int i = 0; i < 1000 && access(r->endpoint + 6, F_OK) == 0; i++)
        usleep(1000); /* ZeroMQ removes the path later, and would remove that of the next bind */
}

static inline void router_open(fake_router *r)
{
    *r = (fake_router){.zctx = zmq_ctx_new()};
    snprintf(r->dir, sizeof r->dir, P_tmpdir "/dspark-test-XXXXXX");
    CHECK(mkdtemp(r->dir) != NULL);
    snprintf(r->endpoint, sizeof r->endpoint, "ipc://%s/s", r->dir);
    router_bind(r);
}

static inline void router_close(fake_router *r)
{
    char path[80];
    if (r->sock)
        router_unbind(r);
    ds_frame_clear(&r->f);
    zmq_ctx_term(r->zctx);
    snprintf(path, sizeof path, "%s/s", r->dir);
    unlink(path);
    snprintf(path, sizeof path, "%s/s.lock", r->dir);
    unlink(path);
    rmdir(r->dir);
}

/* The next frame of any kind into r->f; 0 after timeout_ms. A frame that does not decode gives -1. */
static inline int router_any(fake_router *r, int timeout_ms)
{
    ds_err err;
    zmq_pollitem_t item = {r->sock, 0, ZMQ_POLLIN, 0};
    if (zmq_poll(&item, 1, timeout_ms) <= 0)
        return 0;
    ds_code code = ds_frame_recv(r->sock, &r->peer, &r->f, &err);
    return code == DS_OK ? 1 : code == DS_EPROTO ? -1 : 0;
}

/* The next frame that is no Heartbeat and no Stats must be of this kind. */
static inline const ds_pb_envelope *router_want(fake_router *r, Dspark__V1__Envelope__BodyCase kind)
{
    uint64_t until = ds_now_ns() + 10000000000u;
    for (;;) {
        CHECK_MSG(ds_now_ns() < until, "no frame of kind %d came", (int)kind);
        int got = router_any(r, 1000);
        CHECK_MSG(got >= 0, "a frame that does not decode");
        if (got == 0 || r->f.env->body_case == BODY(HEARTBEAT) || r->f.env->body_case == BODY(STATS))
            continue;
        CHECK_MSG(r->f.env->body_case == kind, "frame %s, want kind %d: %s", ds_frame_kind(r->f.env),
                  (int)kind, r->f.env->body_case == BODY(ERROR) ? r->f.env->error->message : "");
        return r->f.env;
    }
}

static inline void router_send(fake_router *r, Dspark__V1__Envelope__BodyCase kind, void *body)
{
    ds_err err = {0};
    ds_pb_envelope env = ds_frame_wrap(kind, body);
    ds_code code = ds_frame_send(r->sock, &r->peer, &env, &err);
    CHECK_MSG(r->lenient || code == DS_OK, "sending %s: %s", ds_frame_kind(&env), err.msg);
}

static inline void router_hello(fake_router *r, ds_pb_caps *caps)
{
    ds_pb_hello h = DSPARK__V1__HELLO__INIT;
    h.role = (char *)"router";
    h.name = (char *)"test-router";
    h.heartbeat_ms = 250;
    h.capabilities = caps;
    router_send(r, BODY(HELLO), &h);
}

static inline void router_submit(fake_router *r, uint64_t id, const int32_t *prompt, size_t n,
                                 uint32_t max_tokens)
{
    ds_pb_sampling p = DSPARK__V1__SAMPLING__INIT;
    ds_pb_submit s = DSPARK__V1__SUBMIT__INIT;
    p.max_tokens = max_tokens;
    p.top_p = p.repetition_penalty = 1;
    p.logprobs = p.prompt_logprobs = -1;
    s.id = id;
    s.prompt_ids = (int32_t *)prompt;
    s.n_prompt_ids = n;
    s.sampling = &p;
    router_send(r, BODY(SUBMIT), &s);
}

static inline void router_cancel(fake_router *r, uint64_t id)
{
    ds_pb_cancel c = DSPARK__V1__CANCEL__INIT;
    c.id = id;
    router_send(r, BODY(CANCEL), &c);
}

#endif
