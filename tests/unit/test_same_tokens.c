/* Same seed, same tokens: 32 mixed requests through the real model on the CPU, bit for bit the same tokens
 * and log-probabilities alone, together, in other chunks, after a prefix hit, after preemption, after a
 * resume, and with every kind of draft under every schedule. */
#include "tests/lib/test.h"
#include "tests/lib/tiny_pair.h"
#include "worker/engine.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum { N = 32, MAX_PROMPT = 128, MAX_OUT = 72, ROWS = 256 };

typedef struct answer {
    ds_sample_out out[MAX_OUT], scored[MAX_PROMPT];
    int n, n_scored, n_cached;
    ds_finish finish;
} answer;

typedef struct house { /* a model, the requests, and what each gave alone */
    ds_backend *b;
    ds_model *m;
    ds_draft *draft; /* NULL: plain decoding */
    ds_spec_mode spec;
    ds_acceptance acceptance;
    ds_req q[N];
    int32_t prompt[N][MAX_PROMPT], stop[2], bias_id[2];
    float bias[2];
    answer alone[N], got[N];
} house;

static void on_event(void *ctx, const ds_event *ev)
{
    house *h = ctx;
    answer *a = &h->got[ev->id];
    CHECK_MSG(ev->kind != DS_EV_ERROR, "request %d: %s", (int)ev->id, ev->msg);
    CHECK_EQ(a->finish, DS_FINISH_NONE);
    if (ev->kind == DS_EV_PROMPT) {
        CHECK(ev->first == a->n_scored + 1 && ev->first + ev->n <= MAX_PROMPT);
        memcpy(a->scored + a->n_scored, ev->token, (size_t)ev->n * sizeof *ev->token);
        a->n_scored += ev->n;
    } else if (ev->kind == DS_EV_TOKENS) {
        CHECK(ev->first == a->n && a->n + ev->n <= MAX_OUT);
        memcpy(a->out + a->n, ev->token, (size_t)ev->n * sizeof *ev->token);
        a->n += ev->n;
    } else {
        a->finish = ev->finish;
        a->n_cached = ev->n_cached;
    }
}

static const char *g_device = "cpu", *g_level; /* level NULL: the best of the machine */

static void open_house(house *h, const char *dir, const char *weights, const int *taps, int n_taps)
{
    ds_err err = {0};
    ds_code code = ds_backend_open(g_device, 2, g_level, &h->b, &err);
    if (code == DS_EUNSUPPORTED)
        ds_test_skip(err.msg);
    CHECK_OK(code, err);
    ds_model_opts opts = {.max_rows = ROWS,
                          .max_logit_rows = ROWS,
                          .weights = weights,
                          .kv_dtype = "auto",
                          .taps = taps,
                          .n_taps = n_taps};
    CHECK_OK(ds_model_open(dir, &opts, h->b, &h->m, &err), err);
    int vocab = ds_model_get_info(h->m)->vocab;
    for (int id = 0; id < N; id++) {
        ds_req *q = &h->q[id];
        int n = 1 + (id * 37) % (MAX_PROMPT - 1), shared = id % 3 ? 70 : 0;
        for (int i = 0; i < n; i++)
            h->prompt[id][i] =
                (int32_t)((unsigned)(i * i * 7 + i * 13 + (i < shared ? 1 : id * 101)) % (unsigned)vocab);
        *q = (ds_req){.id = (uint64_t)id,
                      .prompt = h->prompt[id],
                      .n_prompt = n,
                      .max_tokens = 8 + 2 * id,
                      .top_p = 1,
                      .repetition = 1,
                      .seed = 1000u + (uint64_t)(id / 2),
                      .n_logprobs = id % 4 - 1,
                      .prompt_logprobs = id % 5 == 2 ? id % 3 : -1,
                      .ignore_eos = id % 2,
                      .temperature = id % 4 == 0 ? 0.0f : 0.4f * (float)(id % 5)};
        if (id % 6 == 1)
            q->top_p = 0.9f;
        if (id % 7 == 2)
            q->top_k = 5;
        if (id % 8 == 3)
            q->min_p = 0.05f;
        if (id % 3 == 1) {
            q->repetition = 1.2f;
            q->presence = 0.3f;
            q->frequency = -0.2f;
        }
        if (id % 5 == 4) {
            q->stop_id = h->stop;
            q->n_stop_id = 2;
            q->min_tokens = 4;
            q->bias_id = h->bias_id;
            q->bias = h->bias;
            q->n_bias = 2;
        }
    }
    h->stop[1] = vocab - 1;
    h->bias_id[0] = 1;
    h->bias_id[1] = 2;
    h->bias[0] = 2.5f;
    h->bias[1] = -INFINITY;
}

typedef struct plan {
    int seqs, rows, logits, pages, page_tokens, cache;
} plan;

static ds_engine *make(house *h, plan p)
{
    ds_engine_conf conf = {.max_seqs = p.seqs,
                           .max_step_rows = p.rows,
                           .max_logit_rows = p.logits,
                           .max_queue = N,
                           .kv_pages = p.pages,
                           .page_tokens = p.page_tokens,
                           .prefix_cache = p.cache,
                           .spec = h->spec,
                           .acceptance = h->acceptance,
                           .schedule = h->acceptance ? DS_SCHED_STALE : DS_SCHED_GLOBAL,
                           .clock = ds_clock_system()};
    ds_engine *e;
    ds_err err = {0};
    memset(h->got, 0, sizeof h->got);
    CHECK_OK(ds_engine_create_drafted(&conf, h->m, h->draft, h->b, on_event, h, &e, &err), err);
    return e;
}

static void run(ds_engine *e)
{
    ds_err err = {0};
    for (int work = 1; work;)
        CHECK_OK(ds_engine_step(e, &work, &err), err);
}

static void submit(ds_engine *e, const ds_req *q)
{
    ds_err err = {0};
    CHECK_OK(ds_engine_submit(e, q, &err), err);
}

static int same_out(const ds_sample_out *a, const ds_sample_out *b, int with_logprobs)
{
    if (a->token != b->token)
        return 0;
    return !with_logprobs ||
           (a->logprob == b->logprob && a->rank == b->rank && a->n_top == b->n_top &&
            memcmp(a->top_id, b->top_id, (size_t)a->n_top * sizeof *a->top_id) == 0 &&
            memcmp(a->top_logprob, b->top_logprob, (size_t)a->n_top * sizeof *a->top_logprob) == 0);
}

static void check_same(const house *h, int id, const char *how)
{
    const answer *want = &h->alone[id], *got = &h->got[id];
    CHECK_MSG(got->finish == want->finish && got->n == want->n && got->n_scored == want->n_scored,
              "%s: request %d gave %d tokens and %d scores, alone %d and %d", how, id, got->n, got->n_scored,
              want->n, want->n_scored);
    for (int i = 0; i < got->n; i++)
        CHECK_MSG(same_out(&got->out[i], &want->out[i], h->q[id].n_logprobs >= 0),
                  "%s: request %d differs at output %d: token %d logprob %.9g, alone %d %.9g", how, id, i,
                  got->out[i].token, (double)got->out[i].logprob, want->out[i].token,
                  (double)want->out[i].logprob);
    for (int i = 0; i < got->n_scored; i++)
        CHECK_MSG(same_out(&got->scored[i], &want->scored[i], 1), "%s: request %d differs at prompt %d", how,
                  id, i + 1);
}

static void all_alone(house *h)
{
    for (int id = 0; id < N; id++) {
        ds_engine *e = make(h, (plan){1, ROWS, ROWS, 64, 16, 0});
        submit(e, &h->q[id]);
        run(e);
        ds_engine_destroy(e);
        h->alone[id] = h->got[id];
        CHECK(h->got[id].n > 0);
        if (h->q[id].prompt_logprobs >= 0)
            CHECK_EQ(h->got[id].n_scored, h->q[id].n_prompt - 1);
    }
}

static ds_engine_stats all_together(house *h, plan p, const char *how)
{
    ds_engine *e = make(h, p);
    ds_engine_stats s;
    for (int id = 0; id < N; id++)
        submit(e, &h->q[id]);
    run(e);
    for (int id = 0; id < N; id++)
        if (h->acceptance == DS_ACCEPT_COUPLED || h->q[id].temperature == 0)
            check_same(h, id, how);
        else
            CHECK(h->got[id].finish != DS_FINISH_NONE && h->got[id].n > 0);
    ds_engine_get_stats(e, &s);
    ds_engine_destroy(e);
    return s;
}

static void after_prefix_hit(house *h)
{
    ds_engine *e = make(h, (plan){8, 64, 32, 400, 16, 1});
    int hits = 0;
    for (int round = 0; round < 2; round++) {
        memset(h->got, 0, sizeof h->got);
        for (int id = N - 1; id >= 0; id--)
            submit(e, &h->q[id]);
        run(e);
        for (int id = 0; id < N; id++) {
            check_same(h, id, "prefix hit");
            hits += round ? h->got[id].n_cached : 0;
        }
    }
    CHECK(hits > N * 30);
    ds_engine_destroy(e);
}

static void after_resume(house *h)
{
    int32_t given[N][MAX_OUT];
    ds_engine *e = make(h, (plan){16, 48, 32, 200, 16, 1});
    for (int id = 0; id < N; id++) { /* as after a worker's death: some tokens are already with the client */
        ds_req q = h->q[id];
        q.n_output = h->alone[id].n * (id % 4) / 4;
        q.output = given[id];
        for (int i = 0; i < q.n_output; i++)
            given[id][i] = h->alone[id].out[i].token;
        h->got[id].n = q.n_output; /* events go on from there */
        memcpy(h->got[id].out, h->alone[id].out, sizeof h->got[id].out);
        submit(e, &q);
    }
    run(e);
    for (int id = 0; id < N; id++)
        check_same(h, id, "resume");
    ds_engine_destroy(e);
}

static void same_tokens(const char *folder, const char *weights)
{
    static house house_;
    house *h = &house_;
    memset(h, 0, sizeof *h);
    char dir[512];
    snprintf(dir, sizeof dir, "%s/tests/golden/data/%s", DS_SOURCE_DIR, folder);
    open_house(h, dir, weights, NULL, 0);
    all_alone(h);
    all_together(h, (plan){N, ROWS, ROWS, 600, 16, 0}, "batch of 32");
    all_together(h, (plan){N, 37, 33, 600, 16, 0}, "chunks of 37 rows");
    all_together(h, (plan){5, 5, 5, 600, 16, 1}, "chunks of 5 rows");
    ds_engine_stats s = all_together(h, (plan){N, 96, 64, 14, 16, 1}, "preemption");
    printf("  %llu preemptions\n", (unsigned long long)s.preemptions);
    CHECK(s.preemptions > 3);
    after_prefix_hit(h);
    after_resume(h);
    ds_model_close(h->m);
    h->b->destroy(h->b);
}

DS_TEST(same_tokens_f32)
{
    same_tokens("qwen3-f32", "auto");
}

DS_TEST(same_tokens_bf16)
{
    same_tokens("qwen3-bf16-tied", "auto");
}

DS_TEST(same_tokens_int8)
{
    same_tokens("qwen3-bf16-wide", "int8");
}

/* Random tiny drafts agree with the target now and then: enough to exercise acceptance, rejection and
 * rollback. */
static void same_tokens_drafted(const char *head)
{
    static house house_;
    static const int taps[] = {0, 2};
    house *h = &house_;
    char dir[64] = "/tmp/dspark-same-XXXXXX", target[80], draft[80], cmd[96];
    ds_err err = {0};
    memset(h, 0, sizeof *h);
    CHECK(mkdtemp(dir) != NULL);
    snprintf(target, sizeof target, "%s/target", dir);
    snprintf(draft, sizeof draft, "%s/draft", dir);
    tiny_write_target(target);
    tiny_write_draft(draft, head, "");
    open_house(h, target, "auto", taps, 2);
    all_alone(h);
    CHECK_OK(ds_draft_open(draft, h->m, ROWS, N, h->b, &h->draft, &err), err);
    h->spec = DS_SPEC_MAX;
    ds_spec_stats s = all_together(h, (plan){N, ROWS, ROWS, 600, 16, 0}, "drafted batch of 32").spec;
    printf("  %llu drafts verified, %llu accepted\n", (unsigned long long)s.verified,
           (unsigned long long)s.accepted);
    CHECK(s.verified > 500 && s.accepted > 20 && s.accepted < s.verified);
    all_together(h, (plan){N, 37, 33, 600, 16, 0}, "drafted chunks of 37 rows");
    all_together(h, (plan){5, 11, 9, 600, 16, 1}, "drafted chunks of 11 rows");
    CHECK(all_together(h, (plan){N, 96, 64, 14, 16, 1}, "drafted preemption").preemptions > 0);
    after_prefix_hit(h);
    after_resume(h);
    h->spec = DS_SPEC_AUTO;
    all_together(h, (plan){N, ROWS, ROWS, 600, 16, 0}, "scheduled batch of 32");
    all_together(h, (plan){N, 96, 64, 14, 16, 1}, "scheduled preemption");
    h->acceptance = DS_ACCEPT_REJECTION; /* sampled text may differ then, greedy text may not */
    h->spec = DS_SPEC_MAX;
    ds_spec_stats r = all_together(h, (plan){N, ROWS, ROWS, 600, 16, 0}, "rejection batch of 32").spec;
    printf("  under rejection %llu verified, %llu accepted\n", (unsigned long long)r.verified,
           (unsigned long long)r.accepted);
    CHECK(r.accepted * s.verified >
          s.accepted * r.verified); /* the larger share: it is the maximal coupling */
    all_together(h, (plan){5, 11, 9, 600, 16, 1}, "rejection chunks of 11 rows");
    ds_draft_close(h->draft);
    ds_model_close(h->m);
    h->b->destroy(h->b);
    snprintf(cmd, sizeof cmd, "rm -rf '%s'", dir);
    CHECK_EQ(system(cmd), 0);
}

DS_TEST(same_tokens_drafted_vanilla)
{
    same_tokens_drafted("vanilla");
}

DS_TEST(same_tokens_drafted_rnn)
{
    same_tokens_drafted("rnn");
}

DS_TEST(same_tokens_drafted_dflash)
{
    same_tokens_drafted("none");
}

/* Last: a skip leaves the device set. */
static void same_tokens_on_cuda(const char *level, const char *folder, const char *weights)
{
    g_device = "cuda";
    g_level = level;
    same_tokens(folder, weights);
    g_device = "cpu";
    g_level = NULL;
}

DS_TEST(cuda_same_tokens_invariant)
{
    same_tokens_on_cuda("invariant", "qwen3-bf16-tied", "auto");
}

DS_TEST(cuda_same_tokens_portable)
{
    same_tokens_on_cuda("portable", "qwen3-bf16-wide", "int8");
}
