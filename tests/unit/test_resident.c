/* The engine with the device loop: whatever comes and goes between its rounds, and whenever it must hand over
 * to the ordinary step and take back, each request gets the tokens that it gets alone without the loop. */
#include "base/rng.h"
#include "tests/lib/test.h"
#include "tests/lib/tiny_pair.h"
#include "worker/engine.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum { N = 48, MAX_PROMPT = 60, MAX_OUT = 80, ROWS = 96, BATCH = 12 };

typedef struct ask {
    ds_req q;
    int32_t prompt[MAX_PROMPT], stop[2], bias_id, want[MAX_OUT], got[MAX_OUT];
    float bias;
    int n_want, n, submitted, cancelled, accepted;
    ds_finish want_finish, finish;
} ask;

typedef struct house {
    ds_backend *b;
    ds_model *m;
    ds_draft *draft;
    ds_engine *e;
    ask ask[N];
    int alone; /* answers are the wanted ones */
    uint32_t seed, dice_at;
} house;

static uint32_t dice(house *h, uint32_t n)
{
    return ds_rng_u32(h->seed, DS_RNG_INIT, h->dice_at++, 0) % n;
}

static void on_event(void *ctx, const ds_event *ev)
{
    house *h = ctx;
    ask *a = &h->ask[ev->id];
    CHECK_MSG(ev->kind != DS_EV_ERROR, "request %d: %s", (int)ev->id, ev->msg);
    CHECK_EQ(a->finish, DS_FINISH_NONE);
    if (ev->kind == DS_EV_TOKENS) {
        CHECK_EQ(ev->first, a->n);
        a->accepted += ev->n_accepted;
        CHECK(ev->n >= 1 && ev->n_accepted <= ev->n && ev->n_rejected >= 0);
        for (int k = 0; k < ev->n_accepted + ev->n_rejected;
             k++) /* the router is told of every verified draft */
            CHECK(ev->survival && ev->survival[k] >= 0 && ev->survival[k] <= (k ? ev->survival[k - 1] : 1));
        for (int i = 0; i < ev->n; i++, a->n++) {
            CHECK_MSG(a->n < MAX_OUT &&
                          (h->alone || (a->n < a->n_want && ev->token[i].token == a->want[a->n])),
                      "request %d: token %d is %d, alone %d of %d", (int)ev->id, a->n, ev->token[i].token,
                      a->want[a->n], a->n_want);
            a->got[a->n] = ev->token[i].token;
        }
    } else if (ev->kind == DS_EV_DONE) {
        a->finish = ev->finish;
        CHECK(ev->n_output == a->n && ev->accepted == a->accepted);
    }
}

static void make_asks(house *h)
{
    for (int id = 0; id < N; id++) {
        ask *a = &h->ask[id];
        int from =
            id % 12 == 6 ? id - 6 : id; /* those say the same as another: their full pages become one */
        int n = 1 + (from * 23) % MAX_PROMPT, shared = from % 3 ? 40 : 0;
        for (int i = 0; i < n; i++)
            a->prompt[i] = (i * i * 7 + i * 13 + (i < shared ? 1 : from * 101)) % TINY_V;
        a->stop[0] = (id * 7) % TINY_V;
        a->stop[1] = TINY_V - 1;
        a->bias_id = 3;
        a->bias = 1.5f;
        a->q = (ds_req){.id = (uint64_t)id,
                        .prompt = a->prompt,
                        .n_prompt = n,
                        .max_tokens = id % 6 == 0 ? MAX_OUT : 1 + (id * 31) % MAX_OUT,
                        .min_tokens = id % 5 == 2 ? 9 : 0,
                        .temperature = id % 3 == 0 ? 0.0f : 0.3f * (float)(1 + id % 4),
                        .top_p = id % 4 == 1 ? 0.9f : 1.0f,
                        .min_p = id % 7 == 3 ? 0.05f : 0.0f,
                        .top_k = id % 6 == 2 ? 5 : 0,
                        .repetition = id % 12 == 5 ? 1.2f : 1.0f, /* three of twelve are the host's */
                        .seed = 300u + (uint64_t)id,
                        .stop_id = a->stop,
                        .n_stop_id = id % 6 == 0 ? 0
                                     : id % 3    ? id % 3
                                                 : 2,
                        .bias_id = &a->bias_id,
                        .bias = &a->bias,
                        .n_bias = id % 12 == 8,
                        .n_logprobs = id % 12 == 11 ? 2 : -1,
                        .prompt_logprobs = id % 24 == 11 ? 0 : -1,
                        .spec = id % 8 == 6   ? DS_SPEC_OFF
                                : id % 8 == 3 ? DS_SPEC_MAX
                                              : DS_SPEC_AUTO,
                        .max_draft = id % 9 == 4 ? 1 : 0};
    }
}

static void open_engine(house *h, int seqs, int rows, int pages, int cache, int loop)
{
    ds_engine_conf conf = {.max_seqs = seqs,
                           .max_step_rows = rows,
                           .max_logit_rows = rows < ROWS ? rows : ROWS,
                           .max_queue = N,
                           .kv_pages = pages,
                           .page_tokens = 16,
                           .prefix_cache = cache,
                           .spec = loop ? DS_SPEC_MAX : DS_SPEC_OFF,
                           .device_loop = loop,
                           .clock = ds_clock_system()};
    ds_err err = {0};
    for (int id = 0; id < N; id++) {
        ask *a = &h->ask[id];
        a->n = a->accepted = a->submitted = a->cancelled = 0;
        a->finish = DS_FINISH_NONE;
    }
    CHECK_OK(ds_engine_create_drafted(&conf, h->m, loop ? h->draft : NULL, h->b, on_event, h, &h->e, &err),
             err);
}

static void all_alone(house *h)
{
    ds_err err = {0};
    h->alone = 1;
    open_engine(h, 1, ROWS, 16, 0, 0);
    for (int id = 0; id < N; id++) {
        ask *a = &h->ask[id];
        CHECK_OK(ds_engine_submit(h->e, &a->q, &err), err);
        for (int work = 1; work;)
            CHECK_OK(ds_engine_step(h->e, &work, &err), err);
        memcpy(a->want, a->got, sizeof a->want);
        a->n_want = a->n;
        a->want_finish = a->finish;
        CHECK(a->n_want > 0);
    }
    ds_engine_destroy(h->e);
    h->alone = 0;
}

/* One world: requests come in bursts, some are cancelled; calm stretches let the loop run. */
static ds_engine_stats world(house *h, uint32_t seed, int seqs, int rows, int pages, int cache)
{
    ds_err err = {0};
    ds_engine_stats s;
    int next = 0, order[N];
    h->seed = seed;
    h->dice_at = 0;
    open_engine(h, seqs, rows, pages, cache, 1);
    for (int i = 0; i < N; i++)
        order[i] = i;
    for (int i = N - 1; i > 0; i--) {
        int j = (int)dice(h, (uint32_t)i + 1), t = order[i];
        order[i] = order[j];
        order[j] = t;
    }
    for (int work = 1, calm = 0; work || next < N;) {
        if (calm-- <= 0 && next < N) {
            for (int burst = 1 + (int)dice(h, BATCH); burst && next < N; burst--) {
                ask *a = &h->ask[order[next++]];
                a->submitted = 1;
                CHECK_OK(ds_engine_submit(h->e, &a->q, &err), err);
            }
            calm = (int)dice(h, 40);
        }
        if (dice(h, 25) == 0) {
            ask *a = &h->ask[dice(h, N)];
            if (a->submitted && ds_engine_cancel(h->e, a->q.id) == DS_OK)
                a->cancelled = 1;
        }
        CHECK_OK(ds_engine_step(h->e, &work, &err), err);
        CHECK_OK(ds_engine_audit(h->e, &err), err);
    }
    for (int id = 0; id < N; id++) {
        const ask *a = &h->ask[id];
        CHECK(a->finish == a->want_finish || (a->cancelled && a->finish == DS_FINISH_CANCELLED));
        CHECK(a->n == a->n_want || a->finish == DS_FINISH_CANCELLED);
    }
    ds_engine_get_stats(h->e, &s);
    CHECK_EQ(s.free_pages, s.total_pages);
    CHECK(s.running == 0 && s.waiting == 0);
    ds_engine_destroy(h->e);
    return s;
}

/* The tiny target, and its draft with that head (NULL: none), from checkpoints in a fresh folder. */
static void open_house(house *h, const char *backend, const char *head, char dir[64])
{
    static const int taps[] = {0, 2};
    char target[80], draft[80];
    ds_err err = {0};
    memset(h, 0, sizeof *h);
    ds_code code =
        ds_backend_open(backend, 1, strcmp(backend, "cuda") == 0 ? "invariant" : NULL, &h->b, &err);
    if (code != DS_OK && strcmp(backend, "cpu") != 0)
        ds_test_skip(err.msg);
    CHECK_OK(code, err);
    snprintf(dir, 64, "/tmp/dspark-resident-XXXXXX");
    CHECK(mkdtemp(dir) != NULL);
    snprintf(target, sizeof target, "%s/target", dir);
    snprintf(draft, sizeof draft, "%s/draft", dir);
    tiny_write_target(target);
    ds_model_opts opts = {.max_rows = ROWS, .max_logit_rows = ROWS, .taps = taps, .n_taps = head ? 2 : 0};
    CHECK_OK(ds_model_open(target, &opts, h->b, &h->m, &err), err);
    if (head) {
        tiny_write_draft(draft, head, "");
        CHECK_OK(ds_draft_open(draft, h->m, ROWS, BATCH, h->b, &h->draft, &err), err);
    }
}

static void close_house(house *h, const char *dir)
{
    char cmd[96];
    if (h->draft)
        ds_draft_close(h->draft);
    ds_model_close(h->m);
    h->b->destroy(h->b);
    snprintf(cmd, sizeof cmd, "rm -rf '%s'", dir);
    CHECK_EQ(system(cmd), 0);
}

static void worlds(const char *backend, const char *head)
{
    static house house_;
    house *h = &house_;
    char dir[64];
    open_house(h, backend, head, dir);
    make_asks(h);
    all_alone(h);
    uint64_t rounds = 0, steps = 0, preempted = 0, accepted = 0, hits = 0, passes = 0;
    for (uint32_t seed = 1; seed <= 8; seed++) {
        ds_engine_stats s = seed % 4 == 0   ? world(h, seed, BATCH, ROWS, 16, 1)  /* pages run out */
                            : seed % 4 == 1 ? world(h, seed, BATCH, ROWS, 200, 0) /* plenty of all */
                            : seed % 4 == 2 ? world(h, seed, 4, 7, 80, 1)         /* few seats, few rows */
                                            : world(h, seed, 1, 4, 12, 1);
        rounds += s.loop_rounds;
        steps += s.steps;
        preempted += s.preemptions;
        accepted += s.spec.accepted;
        passes += s.spec.passes;
        hits += s.prefix_hit_tokens;
    }
    printf("  %llu rounds in %llu steps, %llu drafts accepted, %llu preemptions\n",
           (unsigned long long)rounds, (unsigned long long)steps, (unsigned long long)accepted,
           (unsigned long long)preempted);
    CHECK(rounds > steps / 5 && rounds < steps && preempted > 0 && hits > 100);
    CHECK(head ? accepted > 50 && passes > 100 : accepted == 0);
    close_house(h, dir);
}

#define WORLDS(name, head)        \
    DS_TEST(worlds_##name##_cpu)  \
    {                             \
        worlds("cpu", head);      \
    }                             \
    DS_TEST(worlds_##name##_cuda) \
    {                             \
        worlds("cuda", head);     \
    }
WORLDS(plain, NULL)
WORLDS(vanilla, "vanilla")
WORLDS(rnn, "rnn")
WORLDS(dflash, "none")

/* Who comes while the loop runs does not wait for those inside to end. */
DS_TEST(newcomers_start_at_once)
{
    static house house_;
    house *h = &house_;
    char dir[64];
    ds_err err = {0};
    open_house(h, "cpu", NULL, dir);
    make_asks(h);
    h->alone = 1; /* their tokens are not the matter here */
    open_engine(h, 4, ROWS, 100, 1, 1);
    for (int i = 0; i < 3; i++) {
        ask *a = &h->ask[i];
        a->q.max_tokens = 60;
        a->q.n_stop_id = 0;
        CHECK_OK(ds_engine_submit(h->e, &a->q, &err), err);
        for (int step = 0, work; step < 12; step++)
            CHECK_OK(ds_engine_step(h->e, &work, &err), err);
        CHECK_MSG(a->n >= 8, "request %d has %d tokens after 12 steps", i, a->n);
    }
    ds_engine_stats s;
    ds_engine_get_stats(h->e, &s);
    CHECK(s.loop_rounds >= 20);
    ds_engine_destroy(h->e); /* rounds in flight */
    close_house(h, dir);
}

DS_TEST(loop_is_refused_where_it_cannot_be)
{
    static house house_;
    house *h = &house_;
    char dir[64];
    ds_err err = {0};
    open_house(h, "cpu", NULL, dir);
    ds_engine_conf conf = {.max_seqs = 2,
                           .max_step_rows = ROWS,
                           .max_queue = 1,
                           .kv_pages = 16,
                           .page_tokens = 16,
                           .acceptance = DS_ACCEPT_REJECTION,
                           .device_loop = 1,
                           .clock = ds_clock_system()};
    CHECK_EQ(ds_engine_create(&conf, h->m, h->b, on_event, h, &h->e, &err), DS_EINVAL);
    CHECK_STR(err.field, "device_loop");
    close_house(h, dir);
}
