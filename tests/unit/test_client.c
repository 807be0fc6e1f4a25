/* test_client.c - libdspark-client against a scripted router: streams, cancel, refusals, calls in the middle
 * of streams, lost connections. The script follows the `user` field of a request. */
#include "client/client.h"
#include "tests/lib/fake_router.h"
#include "tests/lib/test.h"

#include <math.h>
#include <pthread.h>
#include <stdatomic.h>

enum { CREDITS = 8 };

typedef struct world {
    fake_router r;
    pthread_t thread;
    atomic_int stop, hellos, cancels;
    ds_client *c;
} world;

/* ---- the script (its own thread) ---- */

static void send_credits(fake_router *r, uint32_t n)
{
    ds_pb_credits c = DSPARK__V1__CREDITS__INIT;
    c.add = n;
    router_send(r, BODY(CREDITS), &c);
}

static void send_done(fake_router *r, uint64_t id, int finish, uint32_t tokens)
{
    ds_pb_done d = DSPARK__V1__DONE__INIT;
    d.id = id;
    d.finish = (Dspark__V1__Done__Finish)finish;
    d.output_tokens = tokens;
    router_send(r, BODY(DONE), &d);
    send_credits(r, 1);
}

static void send_tokens(fake_router *r, uint64_t id, uint32_t n)
{
    for (uint32_t i = 0; i < n; i++) {
        int32_t token = (int32_t)i;
        ds_pb_tokens t = DSPARK__V1__TOKENS__INIT;
        t.id = id;
        t.index = i;
        t.ids = &token;
        t.n_ids = 1;
        t.text = (char *)"x";
        router_send(r, BODY(TOKENS), &t);
    }
}

static void send_error(fake_router *r, uint64_t id, ds_code code)
{
    ds_pb_error e = DSPARK__V1__ERROR__INIT;
    e.id = id;
    e.code = (uint32_t)code;
    e.field = (char *)"top_p";
    e.message = (char *)"no";
    e.retry_after_ms = 5;
    router_send(r, BODY(ERROR), &e);
}

static void on_submit(fake_router *r)
{
    char user[32];
    uint64_t id = r->f.env->submit->id;
    uint32_t n = r->f.env->submit->sampling->max_tokens;
    snprintf(user, sizeof user, "%s", r->f.env->submit->user);
    if (strcmp(user, "hold") == 0) {
        send_tokens(r, id, 1);
    } else if (strcmp(user, "refuse") == 0) {
        send_error(r, id, DS_EINVAL);
        send_credits(r, 1);
    } else if (strcmp(user, "drop") == 0) {
        router_unbind(r);
        router_bind(r);
    } else if (strcmp(user, "forget") == 0) {
        send_error(r, 0, DS_EPROTO);
    } else if (strcmp(user, "junk") == 0) {
        zmq_send(r->sock, r->peer.id, r->peer.len, ZMQ_SNDMORE);
        zmq_send(r->sock, "junk", 4, 0);
    } else {
        send_tokens(r, id, n);
        send_done(r, id, DSPARK__V1__DONE__FINISH__LENGTH, n);
        send_tokens(r, id, 1); /* late frames of an ended request must not be seen */
        send_done(r, id, DSPARK__V1__DONE__FINISH__LENGTH, n);
    }
}

static void on_tokenize(fake_router *r)
{
    const ds_pb_tokenize *q = r->f.env->tokenize;
    ds_pb_tokenize_reply a = DSPARK__V1__TOKENIZE_REPLY__INIT;
    int32_t ids[64];
    char text[64] = "";
    a.id = q->id;
    a.ids = ids;
    for (const char *p = q->text; *p && a.n_ids < 64; p++)
        ids[a.n_ids++] = *p;
    for (size_t i = 0; i < q->n_ids && i < 63; i++)
        text[i] = (char)q->ids[i];
    a.text = text;
    if (q->n_ids && q->ids[0] < 0)
        send_error(r, q->id, DS_EINVAL);
    else
        router_send(r, BODY(TOKENIZE_REPLY), &a);
}

static void *script(void *arg)
{
    world *w = arg;
    fake_router *r = &w->r;
    while (!w->stop) {
        if (router_any(r, 20) != 1)
            continue;
        switch (r->f.env->body_case) {
        case BODY(HELLO): {
            ds_pb_caps caps = DSPARK__V1__CAPABILITIES__INIT;
            caps.model = (char *)"m";
            caps.vocab = 300;
            caps.max_positions = 1000;
            caps.default_temperature = 0.5;
            caps.default_top_p = NAN;
            caps.default_top_k = -1;
            w->hellos++;
            router_hello(r, &caps);
            send_credits(r, CREDITS);
            break;
        }
        case BODY(SUBMIT):
            on_submit(r);
            break;
        case BODY(CANCEL):
            w->cancels++;
            send_done(r, r->f.env->cancel->id, DSPARK__V1__DONE__FINISH__CANCELLED, 1);
            break;
        case BODY(STATS_REQUEST): {
            ds_pb_stats s = DSPARK__V1__STATS__INIT;
            s.running = 7;
            router_send(r, BODY(STATS), &s);
            break;
        }
        case BODY(TOKENIZE):
            on_tokenize(r);
            break;
        default:
            break;
        }
    }
    return NULL;
}

static void up(world *w)
{
    ds_err err = {0};
    *w = (world){0};
    router_open(&w->r);
    w->r.lenient = 1;
    CHECK_EQ(pthread_create(&w->thread, NULL, script, w), 0);
    CHECK_OK(ds_client_open(w->r.endpoint, NULL, &w->c, &err), err);
}

static void down(world *w)
{
    ds_client_close(w->c);
    w->stop = 1;
    pthread_join(w->thread, NULL);
    router_close(&w->r);
}

static uint64_t submit(world *w, const char *user, int max_tokens)
{
    ds_err err = {0};
    uint64_t id = 0;
    ds_client_req req = ds_client_req_default(w->c);
    req.text = "hello";
    req.user = user;
    req.max_tokens = max_tokens;
    CHECK_OK(ds_client_submit(w->c, &req, &id, &err), err);
    CHECK(id != 0);
    return id;
}

static ds_client_event next(world *w)
{
    ds_err err = {0};
    ds_client_event ev;
    CHECK_OK(ds_client_next(w->c, 10000, &ev, &err), err);
    return ev;
}

static void expect_quiet(world *w)
{
    ds_err err;
    ds_client_event ev;
    CHECK_EQ(ds_client_next(w->c, 100, &ev, &err), DS_ETIMEOUT);
}

/* ---- cases ---- */

DS_TEST(stream)
{
    world w;
    up(&w);
    CHECK_STR(ds_client_caps(w.c)->model, "m");
    CHECK(ds_client_req_default(w.c).temperature == 0.5f);
    CHECK(ds_client_req_default(w.c).top_p == 1.0f);
    uint64_t id = submit(&w, "", 5);
    for (uint32_t i = 0; i < 5; i++) {
        ds_client_event ev = next(&w);
        CHECK_EQ(ev.kind, DS_CLIENT_TOKENS);
        CHECK_EQ(ev.id, id);
        CHECK_EQ(ev.tokens->index, i);
        CHECK_STR(ev.tokens->text, "x");
    }
    ds_client_event ev = next(&w);
    CHECK_EQ(ev.kind, DS_CLIENT_DONE);
    CHECK_EQ(ev.done->output_tokens, 5);
    CHECK_EQ(ds_client_live(w.c), 0);
    expect_quiet(&w); /* late frames are dropped */
    down(&w);
}

DS_TEST(cancel_and_errors)
{
    world w;
    ds_err err;
    up(&w);
    uint64_t id = submit(&w, "hold", 5);
    CHECK_EQ(next(&w).kind, DS_CLIENT_TOKENS);
    CHECK_EQ(ds_client_cancel(w.c, id, &err), DS_OK);
    ds_client_event ev = next(&w);
    CHECK_EQ(ev.kind, DS_CLIENT_DONE);
    CHECK_EQ(ev.done->finish, DSPARK__V1__DONE__FINISH__CANCELLED);
    CHECK_EQ(ds_client_cancel(w.c, id, &err), DS_ENOTFOUND);
    id = submit(&w, "refuse", 5);
    ev = next(&w);
    CHECK_EQ(ev.kind, DS_CLIENT_ERROR);
    CHECK_EQ(ev.id, id);
    CHECK_EQ(ev.code, DS_EINVAL);
    CHECK_STR(ev.field, "top_p");
    CHECK_EQ(ev.retry_after_ms, 5);
    CHECK_EQ(ds_client_live(w.c), 0);
    down(&w);
}

DS_TEST(local_refusals)
{
    world w;
    ds_err err = {0};
    up(&w);
    ds_client_req req = ds_client_req_default(w.c);
    CHECK_EQ(ds_client_submit(w.c, &req, NULL, &err), DS_EINVAL); /* no prompt */
    req.text = "a";
    req.temperature = NAN;
    CHECK_EQ(ds_client_submit(w.c, &req, NULL, &err), DS_EINVAL);
    CHECK_STR(err.field, "temperature");
    req = ds_client_req_default(w.c);
    req.text = "a";
    req.max_tokens = -1;
    CHECK_EQ(ds_client_submit(w.c, &req, NULL, &err), DS_EINVAL);
    CHECK_STR(err.field, "max_tokens");
    int32_t bad = 300;
    req = ds_client_req_default(w.c);
    req.prompt_ids = &bad;
    req.n_prompt_ids = 1;
    CHECK_EQ(ds_client_submit(w.c, &req, NULL, &err), DS_EINVAL);
    CHECK_STR(err.field, "prompt_ids");
    for (int i = 0; i < CREDITS; i++)
        submit(&w, "hold", 5);
    req.n_prompt_ids = 0;
    req.text = "a";
    CHECK_EQ(ds_client_submit(w.c, &req, NULL, &err), DS_ELIMIT);
    CHECK_EQ(ds_client_live(w.c), CREDITS);
    down(&w);
}

DS_TEST(calls_between_events)
{
    world w;
    ds_err err = {0};
    const ds_pb_stats *stats;
    const int32_t *ids;
    const char *text;
    size_t n;
    up(&w);
    submit(&w, "", 3);
    submit(&w, "hold", 3);
    CHECK_OK(ds_client_stats(w.c, &stats, &err), err); /* the streams' events come before the answer */
    CHECK_EQ(stats->running, 7);
    CHECK_OK(ds_client_tokenize(w.c, "ab", &ids, &n, &err), err);
    CHECK(n == 2 && ids[0] == 'a' && ids[1] == 'b');
    const int32_t back[] = {'h', 'i'}, bad[] = {-1};
    CHECK_OK(ds_client_detokenize(w.c, back, 2, &text, &err), err);
    CHECK_STR(text, "hi");
    CHECK_EQ(ds_client_detokenize(w.c, bad, 1, &text, &err), DS_EINVAL);
    int tokens = 0, done = 0;
    while (tokens + done < 5) {
        ds_client_event ev = next(&w);
        tokens += ev.kind == DS_CLIENT_TOKENS;
        done += ev.kind == DS_CLIENT_DONE;
    }
    CHECK(tokens == 4 && done == 1);
    expect_quiet(&w);
    down(&w);
}

DS_TEST(lost_router)
{
    const char *how[] = {"drop", "forget", "junk"};
    for (int i = 0; i < 3; i++) {
        world w;
        up(&w);
        uint64_t first = submit(&w, "hold", 5), second = submit(&w, how[i], 5);
        int errors = 0;
        uint64_t seen = 0;
        while (errors < 2) { /* each live request gets exactly one outcome */
            ds_client_event ev = next(&w);
            if (ev.kind != DS_CLIENT_ERROR)
                continue;
            CHECK_EQ(ev.code, DS_EIO);
            seen ^= ev.id;
            errors++;
        }
        CHECK_EQ(seen, first ^ second);
        CHECK_EQ(ds_client_live(w.c), 0);
        expect_quiet(&w);
        ds_err err = {0};
        const ds_pb_stats *stats;
        CHECK_OK(ds_client_stats(w.c, &stats, &err), err); /* connected again by itself */
        CHECK(w.hellos >= 2);
        submit(&w, "", 1);
        CHECK_EQ(next(&w).kind, DS_CLIENT_TOKENS);
        CHECK_EQ(next(&w).kind, DS_CLIENT_DONE);
        down(&w);
    }
}

DS_TEST(nobody_there)
{
    ds_err err = {0};
    ds_client *c;
    ds_client_opts opts = {.timeout_ms = 100};
    CHECK_EQ(ds_client_open("ipc://" P_tmpdir "/dspark-nobody-is-here", &opts, &c, &err), DS_ETIMEOUT);
    CHECK(strstr(err.msg, "nobody"));
    CHECK_EQ(ds_client_open("nonsense", &opts, &c, &err), DS_EINVAL);
    char name[DS_MAX_NAME_BYTES + 2];
    memset(name, 'n', sizeof name - 1);
    name[sizeof name - 1] = 0;
    opts.name = name;
    CHECK_EQ(ds_client_open("ipc://x", &opts, &c, &err), DS_EINVAL);
    ds_client_close(NULL);
}
