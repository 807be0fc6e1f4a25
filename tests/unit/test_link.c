/* test_link.c - the worker link against a router made of one socket: greeting, credits, ordering, exactly one
 * outcome, cancel, lost routers, draining; then the same as a process with fault orders (dspark-fake-worker).
 */
#include "tests/lib/fake_router.h"
#include "tests/lib/hash_target.h"
#include "tests/lib/test.h"
#include "worker/exit.h"
#include "worker/link.h"

#include <errno.h>
#include <signal.h>
#include <spawn.h>
#include <sys/wait.h>

enum { SLOTS = 3 };
extern char **environ;

typedef struct world {
    fake_router r;
    ds_pb_caps caps;
    ds_link *l;
} world;

static void open_link(world *w, int router_timeout_ms)
{
    ds_err err = {0};
    router_open(&w->r);
    w->caps = (ds_pb_caps)DSPARK__V1__CAPABILITIES__INIT;
    w->caps.model = (char *)"m";
    w->caps.vocab = 100;
    w->caps.max_positions = 64;
    w->caps.max_seqs = SLOTS;
    ds_link_conf conf = {.endpoint = w->r.endpoint,
                         .name = "w0",
                         .caps = &w->caps,
                         .slots = SLOTS,
                         .heartbeat_ms = 50,
                         .router_timeout_ms = router_timeout_ms,
                         .signal_fd = -1};
    CHECK_OK(ds_link_open(&conf, &w->l, &err), err);
}

static void greet(world *w, unsigned credits)
{
    const ds_pb_envelope *env = router_want(&w->r, BODY(HELLO));
    CHECK_STR(env->hello->role, "worker");
    CHECK_STR(env->hello->name, "w0");
    CHECK_EQ(env->hello->capabilities->vocab, 100);
    router_hello(&w->r, NULL);
    CHECK_EQ(router_want(&w->r, BODY(CREDITS))->credits->add, credits);
}

static void up(world *w)
{
    open_link(w, 60000);
    greet(w, SLOTS);
}

static void down(world *w)
{
    ds_link_close(w->l);
    router_close(&w->r);
}

static uint64_t take(world *w, ds_link_kind kind)
{
    ds_link_cmd cmd;
    CHECK_MSG(ds_link_take(w->l, 10000, &cmd), "no command of kind %d came", kind);
    CHECK_EQ(cmd.kind, kind);
    if (kind == DS_LINK_SUBMIT)
        CHECK_EQ(cmd.frame.env->submit->n_prompt_ids, 2);
    ds_frame_clear(&cmd.frame);
    return cmd.id;
}

static void flush(world *w)
{
    ds_pb_stats s = DSPARK__V1__STATS__INIT;
    s.steps = 77;
    ds_link_flush(w->l, &s);
}

static void post_tokens(world *w, uint64_t id, int32_t token)
{
    ds_pb_tokens t = DSPARK__V1__TOKENS__INIT;
    t.ids = &token;
    t.n_ids = 1;
    ds_link_tokens(w->l, id, &t);
}

static void post_done(world *w, uint64_t id)
{
    ds_pb_done d = DSPARK__V1__DONE__INIT;
    d.finish = DSPARK__V1__DONE__FINISH__LENGTH;
    ds_link_done(w->l, id, &d);
}

static const int32_t g_prompt[] = {5, 6};

DS_TEST(order)
{
    world w;
    up(&w);
    router_submit(&w.r, 900, g_prompt, 2, 4);
    uint64_t id = take(&w, DS_LINK_SUBMIT);
    for (int32_t i = 0; i < 4; i++)
        post_tokens(&w, id, i);
    post_done(&w, id);
    CHECK_EQ(ds_link_live(w.l), 0);
    flush(&w);
    for (int i = 0; i < 4; i++) {
        const ds_pb_envelope *env = router_want(&w.r, BODY(TOKENS));
        CHECK_EQ(env->tokens->id, 900);
        CHECK_EQ(env->tokens->ids[0], i);
    }
    CHECK_EQ(router_want(&w.r, BODY(DONE))->done->id, 900);
    CHECK_EQ(router_want(&w.r, BODY(CREDITS))->credits->add, 1);
    down(&w);
}

DS_TEST(heartbeats)
{
    world w;
    int beats = 0, stats = 0;
    up(&w);
    flush(&w);
    for (uint64_t until = ds_now_ns() + 10000000000u; beats < 4 && ds_now_ns() < until;) {
        if (router_any(&w.r, 1000) != 1)
            continue;
        if (w.r.f.env->body_case == BODY(HEARTBEAT) && beats++ > 1)
            CHECK_EQ(w.r.f.env->heartbeat->step, 77);
        if (w.r.f.env->body_case == BODY(STATS) && stats++ > 1) {
            CHECK_STR(w.r.f.env->stats->worker, "w0");
            CHECK(w.r.f.env->stats->rss_bytes > 0);
        }
    }
    CHECK(beats >= 4 && stats >= 3);
    down(&w);
}

DS_TEST(refusals_and_credits)
{
    world w;
    const int32_t bad[] = {5, 100};
    up(&w);
    router_submit(&w.r, 1, bad, 2, 4);
    const ds_pb_envelope *env = router_want(&w.r, BODY(ERROR));
    CHECK_EQ(env->error->id, 1);
    CHECK_EQ(env->error->code, DS_EINVAL);
    CHECK_STR(env->error->field, "prompt_ids");
    CHECK_EQ(router_want(&w.r, BODY(CREDITS))->credits->add, 1);
    for (uint64_t i = 0; i < SLOTS; i++)
        router_submit(&w.r, 10 + i, g_prompt, 2, 4);
    router_submit(&w.r, 20, g_prompt, 2, 4); /* beyond the credits */
    env = router_want(&w.r, BODY(ERROR));
    CHECK_EQ(env->error->id, 20);
    CHECK_EQ(env->error->code, DS_ELIMIT);
    router_submit(&w.r, 11, g_prompt, 2, 4); /* the id of a live request: that one goes on */
    env = router_want(&w.r, BODY(ERROR));
    CHECK_EQ(env->error->id, 0);
    CHECK_EQ(env->error->code, DS_EPROTO);
    CHECK_EQ(router_want(&w.r, BODY(CREDITS))->credits->add, 1);
    for (int i = 0; i < SLOTS; i++)
        post_done(&w, take(&w, DS_LINK_SUBMIT));
    flush(&w);
    for (uint64_t i = 0; i < SLOTS; i++)
        CHECK_EQ(router_want(&w.r, BODY(DONE))->done->id, 10 + i);
    CHECK_EQ(router_want(&w.r, BODY(CREDITS))->credits->add, SLOTS);
    down(&w);
}

DS_TEST(cancel_races)
{
    world w;
    ds_link_cmd cmd;
    up(&w);
    router_cancel(&w.r, 5); /* never heard of */
    router_submit(&w.r, 5, g_prompt, 2, 4);
    for (int i = 0; i < 10; i++)
        router_cancel(&w.r, 5);
    uint64_t id = take(&w, DS_LINK_SUBMIT);
    CHECK_EQ(take(&w, DS_LINK_CANCEL), id);
    CHECK_EQ(ds_link_take(w.l, 100, &cmd), 0); /* one cancel, however often it is asked */
    ds_link_error(w.l, id, DS_ENUMERIC, "", "nan");
    flush(&w);
    CHECK_EQ(router_want(&w.r, BODY(ERROR))->error->code, DS_ENUMERIC);
    router_want(&w.r, BODY(CREDITS));
    router_cancel(&w.r, 5); /* its outcome is known */
    CHECK_EQ(ds_link_take(w.l, 100, &cmd), 0);
    for (int round = 0; round < 50; round++) { /* every slot, again and again: the queue never overflows */
        for (uint64_t i = 0; i < SLOTS; i++) {
            router_submit(&w.r, 100 + i, g_prompt, 2, 4);
            router_cancel(&w.r, 100 + i);
        }
        for (int n = 0; n < SLOTS;) { /* a CANCEL may be left for the next round */
            CHECK(ds_link_take(w.l, 10000, &cmd));
            if (cmd.kind != DS_LINK_SUBMIT)
                continue;
            ds_frame_clear(&cmd.frame);
            post_done(&w, cmd.id);
            n++;
        }
        flush(&w);
        unsigned done = 0, credits = 0;
        while (done < SLOTS || credits < SLOTS) {
            CHECK_EQ(router_any(&w.r, 10000), 1);
            done += w.r.f.env->body_case == BODY(DONE);
            CHECK(w.r.f.env->body_case != BODY(ERROR));
            credits += w.r.f.env->body_case == BODY(CREDITS) ? w.r.f.env->credits->add : 0;
            CHECK(credits <= done); /* a credit comes after the outcome that freed it */
        }
    }
    down(&w);
}

DS_TEST(router_restarts)
{
    world w;
    up(&w);
    router_submit(&w.r, 1, g_prompt, 2, 4);
    uint64_t old = take(&w, DS_LINK_SUBMIT);
    router_unbind(&w.r);
    CHECK_EQ(take(&w, DS_LINK_CANCEL), old); /* nobody can receive it any more */
    post_tokens(&w, old, 1);
    router_bind(&w.r);
    greet(&w, SLOTS - 1);                   /* the slot is not free yet */
    router_submit(&w.r, 1, g_prompt, 2, 4); /* the same id, another router */
    uint64_t id = take(&w, DS_LINK_SUBMIT);
    CHECK(id != old);
    post_tokens(&w, old, 2);
    post_done(&w, old);
    post_tokens(&w, id, 3);
    post_done(&w, id);
    flush(&w);
    CHECK_EQ(router_want(&w.r, BODY(TOKENS))->tokens->ids[0], 3);
    CHECK_EQ(router_want(&w.r, BODY(DONE))->done->id, 1);
    CHECK_EQ(router_want(&w.r, BODY(CREDITS))->credits->add, 2);
    down(&w);
}

DS_TEST(silent_or_broken_router)
{
    world w;
    open_link(&w, 300);
    greet(&w, SLOTS);
    ds_peer first = w.r.peer;
    greet(&w, SLOTS); /* we sent nothing for 300 ms: it tries again */
    CHECK(first.len != w.r.peer.len || memcmp(first.id, w.r.peer.id, first.len) != 0);
    zmq_send(w.r.sock, w.r.peer.id, w.r.peer.len, ZMQ_SNDMORE);
    zmq_send(w.r.sock, "junk", 4, 0);
    greet(&w, SLOTS);
    router_submit(&w.r, 1, g_prompt, 2, 4);
    uint64_t id = take(&w, DS_LINK_SUBMIT);
    ds_pb_error e = DSPARK__V1__ERROR__INIT;
    e.code = DS_EPROTO;
    router_send(&w.r, BODY(ERROR), &e);
    CHECK_EQ(take(&w, DS_LINK_CANCEL), id);
    greet(&w, SLOTS - 1);
    post_done(&w, id);
    down(&w);
}

DS_TEST(drain_and_lost)
{
    world w;
    up(&w);
    router_submit(&w.r, 1, g_prompt, 2, 4);
    uint64_t id = take(&w, DS_LINK_SUBMIT);
    ds_pb_drain d = DSPARK__V1__DRAIN__INIT;
    router_send(&w.r, BODY(DRAIN), &d);
    router_send(&w.r, BODY(DRAIN), &d);
    take(&w, DS_LINK_DRAIN);
    router_submit(&w.r, 2, g_prompt, 2, 4);
    const ds_pb_envelope *env = router_want(&w.r, BODY(ERROR));
    CHECK_EQ(env->error->id, 2);
    CHECK_EQ(env->error->code, DS_EDRAINING);
    router_want(&w.r, BODY(CREDITS));
    post_done(&w, id);
    ds_link_lost(w.l, "Xid 79");
    ds_link_close(w.l); /* what was posted still arrives */
    CHECK_EQ(router_want(&w.r, BODY(DONE))->done->id, 1);
    env = router_want(&w.r, BODY(ERROR));
    CHECK_EQ(env->error->id, 0);
    CHECK_EQ(env->error->code, DS_ELOST);
    CHECK_STR(env->error->message, "Xid 79");
    router_close(&w.r);
}

/* ---- as a process ---- */

static pid_t spawn(const char *endpoint, char *const extra[])
{
    char *argv[32] = {(char *)DS_BIN_DIR "/dspark-fake-worker", (char *)"--connect", (char *)endpoint,
                      (char *)"--log-level", (char *)"error"};
    int n = 5;
    pid_t pid;
    while (*extra && n < 31)
        argv[n++] = *extra++;
    argv[n] = NULL;
    CHECK_EQ(posix_spawn(&pid, argv[0], NULL, NULL, argv, environ), 0);
    return pid;
}

static int wait_exit(pid_t pid) /* exit code, or 1000 + signal */
{
    int status;
    for (int i = 0; i < 1000; i++, usleep(10000))
        if (waitpid(pid, &status, WNOHANG) == pid)
            return WIFEXITED(status) ? WEXITSTATUS(status) : 1000 + WTERMSIG(status);
    kill(pid, SIGKILL);
    waitpid(pid, &status, 0);
    return -1;
}

static unsigned process_up(fake_router *r)
{
    do /* the worker before may have left a frame */
        CHECK_EQ(router_any(r, 10000), 1);
    while (r->f.env->body_case != BODY(HELLO));
    router_hello(r, NULL);
    return router_want(r, BODY(CREDITS))->credits->add;
}

#define ARGS(...) ((char *[]){__VA_ARGS__, NULL})

/* The tokens of every request follow from its prompt by arithmetic, whatever else runs and however little KV
 * there is. */
DS_TEST(process_right_tokens)
{
    enum { N = 24, OUT = 40 };
    fake_router r;
    int32_t prompt[N][8];
    uint64_t chain[N] = {0};
    int count[N] = {0}, done = 0;
    hash_target t = {.first = 10, .span = 990};
    router_open(&r);
    pid_t pid = spawn(r.endpoint, ARGS("--first-token", "10", "--kv-pages", "20", "--max-seqs", "8",
                                       "--max-queue", "32", "--max-step-rows", "16"));
    CHECK_EQ(process_up(&r), 40);
    for (int i = 0; i < N; i++) {
        for (int k = 0; k < 8; k++) {
            prompt[i][k] = k < 4 ? k : 17 * i + k;
            chain[i] = hash_mix(chain[i], (uint64_t)prompt[i][k] + 7);
        }
        router_submit(&r, (uint64_t)i + 1, prompt[i], 8, OUT);
    }
    while (done < N) {
        int got = router_any(&r, 10000);
        CHECK_EQ(got, 1);
        if (r.f.env->body_case == BODY(TOKENS)) {
            const ds_pb_tokens *k = r.f.env->tokens;
            int i = (int)k->id - 1;
            CHECK_EQ(k->index, count[i]); /* no gap, no repeat, nothing after Done */
            for (size_t j = 0; j < k->n_ids; j++, count[i]++) {
                CHECK_EQ(k->ids[j], hash_token(&t, chain[i], 0));
                chain[i] = hash_mix(chain[i], (uint64_t)k->ids[j] + 7);
            }
        } else if (r.f.env->body_case == BODY(DONE)) {
            int i = (int)r.f.env->done->id - 1;
            CHECK_EQ(count[i], OUT);
            CHECK_EQ(r.f.env->done->output_tokens, OUT);
            CHECK_EQ(r.f.env->done->prompt_tokens, 8);
            count[i] = 1000;
            done++;
        } else {
            CHECK(r.f.env->body_case != BODY(ERROR));
        }
    }
    kill(pid, SIGTERM);
    CHECK_EQ(wait_exit(pid), DS_EXIT_OK);
    router_close(&r);
}

DS_TEST(process_drain_by_signal)
{
    fake_router r;
    router_open(&r);
    pid_t pid = spawn(r.endpoint, ARGS("--step-us", "5000"));
    process_up(&r);
    router_submit(&r, 1, g_prompt, 2, 30);
    router_want(&r, BODY(TOKENS));
    kill(pid, SIGTERM);
    int tokens = 1, draining = 0;
    for (;;) {
        CHECK_EQ(router_any(&r, 10000), 1);
        tokens += r.f.env->body_case == BODY(TOKENS);
        draining += r.f.env->body_case == BODY(ERROR) && r.f.env->error->code == DS_EDRAINING;
        if (r.f.env->body_case == BODY(DONE))
            break;
    }
    CHECK_EQ(tokens, 30); /* what runs is finished */
    CHECK_EQ(draining, 1);
    CHECK_EQ(wait_exit(pid), DS_EXIT_OK);
    pid = spawn(r.endpoint, ARGS("--step-us", "5000"));
    process_up(&r);
    router_submit(&r, 1, g_prompt, 2, 4000);
    router_want(&r, BODY(TOKENS));
    kill(pid, SIGTERM);
    usleep(100000);
    kill(pid, SIGTERM);
    CHECK_EQ(wait_exit(pid), DS_EXIT_TEMP);
    router_close(&r);
}

DS_TEST(process_faults)
{
    fake_router r;
    router_open(&r);
    pid_t pid = spawn(r.endpoint, ARGS("--fault", "lost", "--fault-after", "3"));
    process_up(&r);
    router_submit(&r, 1, g_prompt, 2, 30);
    for (int i = 0; i < 3; i++)
        router_want(&r, BODY(TOKENS));
    const ds_pb_envelope *env;
    do /* the engine ends its requests first, then the link is told */
        env = router_want(&r, BODY(ERROR));
    while (env->error->id != 0);
    CHECK_EQ(env->error->code, DS_ELOST);
    CHECK_EQ(wait_exit(pid), DS_EXIT_LOST);

    pid = spawn(r.endpoint, ARGS("--fault", "die", "--fault-after", "3"));
    process_up(&r);
    router_submit(&r, 1, g_prompt, 2, 30);
    for (int i = 0; i < 3; i++)
        router_want(&r, BODY(TOKENS));
    CHECK_EQ(wait_exit(pid), 1000 + SIGKILL);

    pid = spawn(r.endpoint, ARGS("--fault", "nan", "--fault-after", "3"));
    process_up(&r);
    router_submit(&r, 1, g_prompt, 2, 30);
    for (int i = 0; i < 3; i++)
        router_want(&r, BODY(TOKENS));
    CHECK_EQ(router_want(&r, BODY(ERROR))->error->code, DS_ENUMERIC);
    router_want(&r, BODY(CREDITS));
    router_submit(&r, 2, g_prompt, 2, 1); /* and lives on */
    router_want(&r, BODY(TOKENS));
    router_want(&r, BODY(DONE));
    kill(pid, SIGKILL);
    wait_exit(pid);

    pid = spawn(r.endpoint, ARGS("--fault", "wedge", "--fault-after", "3"));
    process_up(&r);
    router_submit(&r, 1, g_prompt, 2, 30);
    for (int i = 0; i < 3; i++)
        router_want(&r, BODY(TOKENS));
    uint64_t step = 0;
    for (int beats = 0; beats < 3;) { /* hearts beat, steps do not */
        CHECK_EQ(router_any(&r, 10000), 1);
        if (r.f.env->body_case == BODY(HEARTBEAT) && ++beats) {
            CHECK(beats == 1 || r.f.env->heartbeat->step == step);
            step = r.f.env->heartbeat->step;
        }
    }
    kill(pid, SIGTERM);
    usleep(50000);
    kill(pid, SIGTERM);
    CHECK_EQ(wait_exit(pid), DS_EXIT_TEMP); /* although the engine never answers */
    router_close(&r);
}

DS_TEST(process_idle_is_quiet)
{
    fake_router r;
    char path[64];
    unsigned long user = 0, sys = 0;
    router_open(&r);
    pid_t pid = spawn(r.endpoint, ARGS("--heartbeat-ms", "250"));
    process_up(&r);
    sleep(2);
    snprintf(path, sizeof path, "/proc/%d/stat", (int)pid);
    FILE *f = fopen(path, "r");
    CHECK(f);
    int n = fscanf(f, "%*d %*s %*c %*d %*d %*d %*d %*d %*u %*u %*u %*u %*u %lu %lu", &user, &sys);
    fclose(f);
    kill(pid, SIGTERM);
    CHECK_EQ(wait_exit(pid), DS_EXIT_OK);
    CHECK_EQ(n, 2);
    CHECK_MSG(user + sys < 50, "%lu ticks of CPU in 2 idle seconds", user + sys); /* spinning would be 200 */
    router_close(&r);
}
