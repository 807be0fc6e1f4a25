/* The engine over the fake target: limits at their edges, faults, cancel, resume, statistics. Random
 * schedules are in tests/sim/test_engine.c, the real model in test_same_tokens.c. */
#include "tests/lib/test.h"
#include "tests/sim/fake_target.h"

#include <limits.h>
#include <stdio.h>

enum { MAX_LOG = 4096 };

typedef struct bench { /* one engine and all it has said */
    ds_engine_conf conf;
    fake_target fake;
    ds_engine *e;
    ds_event ev[MAX_LOG]; /* token pointers are not kept */
    char msg[128];
    int n;
    uint64_t cancel_on_token_of; /* cancel this id when it emits; submit `chained` when `chain_on` is done */
    uint64_t chain_on;
    const ds_req *chained;
} bench;

static uint64_t tick(void *ctx)
{
    return *(uint64_t *)ctx += 1000;
}
static uint64_t g_now;

static void on_event(void *ctx, const ds_event *ev)
{
    bench *b = ctx;
    CHECK(b->n < MAX_LOG);
    b->ev[b->n] = *ev;
    b->ev[b->n++].token = NULL;
    if (ev->msg)
        snprintf(b->msg, sizeof b->msg, "%s", ev->msg);
    if (ev->kind == DS_EV_TOKENS && ev->id == b->cancel_on_token_of)
        CHECK_EQ(ds_engine_cancel(b->e, ev->id), DS_OK);
    if (ev->kind == DS_EV_DONE && b->chained && ev->id == b->chain_on)
        CHECK_EQ(ds_engine_submit(b->e, b->chained, NULL), DS_OK);
}

static bench *start(int seqs, int rows, int pages, int page_tokens, int positions)
{
    bench *b = calloc(1, sizeof *b);
    ds_err err = {0};
    b->conf = (ds_engine_conf){.max_seqs = seqs,
                               .max_step_rows = rows,
                               .max_logit_rows = rows,
                               .max_queue = 8,
                               .kv_pages = pages,
                               .page_tokens = page_tokens,
                               .prefix_cache = 1,
                               .clock = {tick, &g_now}};
    ds_target t = fake_init(&b->fake, &b->conf, positions);
    b->cancel_on_token_of = UINT64_MAX;
    CHECK_OK(ds_engine_create_on(&b->conf, &t, NULL, on_event, b, &b->e, &err), err);
    return b;
}

static void stop(bench *b)
{
    CHECK_EQ(b->fake.corrupt, 0);
    ds_engine_destroy(b->e);
    fake_fini(&b->fake);
    free(b);
}

static int step(bench *b)
{
    ds_err err = {0};
    int work;
    CHECK_OK(ds_engine_step(b->e, &work, &err), err);
    CHECK_OK(ds_engine_audit(b->e, &err), err);
    return work;
}

static void run(bench *b)
{
    for (int i = 0; step(b); i++)
        CHECK(i < 10000);
}

static int32_t g_prompt[512];

static ds_req request(uint64_t id, int n_prompt, int max_tokens, int first_token)
{
    for (int i = 0; i < n_prompt; i++)
        g_prompt[i] = 4 + (first_token + i * 7) % 40;
    return (ds_req){.id = id,
                    .prompt = g_prompt,
                    .n_prompt = n_prompt,
                    .max_tokens = max_tokens,
                    .top_p = 1,
                    .repetition = 1,
                    .seed = id,
                    .temperature = 1,
                    .ignore_eos = 1,
                    .n_logprobs = -1,
                    .prompt_logprobs = -1};
}

static void submit(bench *b, ds_req q)
{
    ds_err err = {0};
    CHECK_OK(ds_engine_submit(b->e, &q, &err), err);
}

/* The single DONE or ERROR of a request; n_tokens: how many TOKENS tokens came before it. */
static const ds_event *outcome(const bench *b, uint64_t id, int *n_tokens)
{
    const ds_event *end = NULL;
    int n = 0;
    for (int i = 0; i < b->n; i++) {
        if (b->ev[i].id != id)
            continue;
        CHECK(!end);
        if (b->ev[i].kind == DS_EV_DONE || b->ev[i].kind == DS_EV_ERROR)
            end = &b->ev[i];
        else if (b->ev[i].kind == DS_EV_TOKENS)
            n += b->ev[i].n;
    }
    CHECK_MSG(end, "request %llu has no outcome", (unsigned long long)id);
    if (n_tokens)
        *n_tokens = n;
    return end;
}

static ds_engine_stats stats(const bench *b)
{
    ds_engine_stats s;
    ds_engine_get_stats(b->e, &s);
    return s;
}

/* A good request, changed in one way, must be refused with that field's name. */
#define REFUSED(name, change)                                                                   \
    do {                                                                                        \
        ds_req q = request(1, 3, 4, 0);                                                         \
        ds_err err = {0};                                                                       \
        change;                                                                                 \
        CHECK_MSG(ds_engine_submit(b->e, &q, &err) == DS_EINVAL, "accepted although " #change); \
        CHECK_STR(err.field, name);                                                             \
    } while (0)

DS_TEST(every_field_out_of_range_is_refused_by_name)
{
    bench *b = start(2, 8, 16, 4, 64);
    int32_t high[] = {1, FAKE_V, 2}, low[] = {1, -1, 2};
    float nan_bias[] = {0, NAN, 0};
    REFUSED("prompt_ids", q.n_prompt = 0);
    REFUSED("prompt_ids", q.n_prompt = 65);
    REFUSED("prompt_ids", q.n_prompt = INT_MAX);
    REFUSED("prompt_ids", q.prompt = high);
    REFUSED("prompt_ids", q.prompt = low);
    REFUSED("output_ids", q.n_output = 5; q.output = g_prompt);
    REFUSED("output_ids", q.n_output = 1; q.output = high + 1);
    REFUSED("output_ids", q.n_output = -1);
    REFUSED("output_ids", q.n_prompt = 60; q.n_output = 6; q.output = g_prompt; q.max_tokens = 9);
    REFUSED("max_tokens", q.max_tokens = 0);
    REFUSED("min_tokens", q.min_tokens = 5);
    REFUSED("min_tokens", q.min_tokens = -1);
    REFUSED("temperature", q.temperature = 2.01f);
    REFUSED("temperature", q.temperature = NAN);
    REFUSED("top_p", q.top_p = 0);
    REFUSED("top_p", q.top_p = 1.01f);
    REFUSED("min_p", q.min_p = -0.1f);
    REFUSED("top_k", q.top_k = -1);
    REFUSED("repetition_penalty", q.repetition = 0);
    REFUSED("repetition_penalty", q.repetition = 10.1f);
    REFUSED("presence_penalty", q.presence = -2.1f);
    REFUSED("frequency_penalty", q.frequency = INFINITY);
    REFUSED("logprobs", q.n_logprobs = DS_MAX_TOP_LOGPROBS + 1);
    REFUSED("prompt_logprobs", q.prompt_logprobs = -2);
    REFUSED("stop_token_ids", q.n_stop_id = DS_MAX_STOP_TOKENS + 1; q.stop_id = g_prompt);
    REFUSED("stop_token_ids", q.n_stop_id = 1; q.stop_id = high + 1);
    REFUSED("logit_bias", q.n_bias = DS_MAX_LOGIT_BIAS + 1);
    REFUSED("logit_bias", q.n_bias = 1; q.bias_id = low + 1; q.bias = nan_bias);
    REFUSED("logit_bias", q.n_bias = 1; q.bias_id = high; q.bias = nan_bias + 1);
    run(b);
    CHECK_EQ(b->n, 0);
    stop(b);
}

DS_TEST(values_at_the_edge_are_accepted)
{
    static int32_t stops[DS_MAX_STOP_TOKENS], bias_id[DS_MAX_LOGIT_BIAS];
    static float bias[DS_MAX_LOGIT_BIAS];
    bench *b = start(2, 8, 16, 4, 64);
    for (int i = 0; i < DS_MAX_STOP_TOKENS; i++)
        stops[i] = FAKE_POISON;
    ds_req q = request(1, 3, 4, 0);
    q.min_tokens = 4;
    q.temperature = 2;
    q.repetition = 10;
    q.presence = -2;
    q.frequency = 2;
    q.n_logprobs = q.prompt_logprobs = DS_MAX_TOP_LOGPROBS;
    q.stop_id = stops;
    q.n_stop_id = DS_MAX_STOP_TOKENS;
    q.bias_id = bias_id;
    q.bias = bias;
    bias[7] = -INFINITY;
    q.n_bias = DS_MAX_LOGIT_BIAS;
    q.priority = INT_MIN;
    submit(b, q);
    run(b);
    int n;
    CHECK_EQ(outcome(b, 1, &n)->finish, DS_FINISH_LENGTH);
    CHECK_EQ(n, 4);
    stop(b);
}

DS_TEST(position_limit_is_exact_and_a_pool_too_small_is_named_with_figures)
{
    bench *b = start(2, 8, 5, 4, 64); /* 20 tokens of KV, 64 positions */
    ds_err err = {0};
    CHECK_EQ(ds_engine_max_len(b->e), 20);
    ds_req q = request(1, 21, 1, 0);
    CHECK_EQ(ds_engine_submit(b->e, &q, &err), DS_EINVAL);
    CHECK_STR(err.msg, "the prompt has 21 tokens and can never fit: the KV pool holds 20 (5 pages of 4)");
    submit(b, request(2, 20, 9, 0)); /* fills every position; its one token needs none */
    submit(b, request(3, 18, 3, 1));
    submit(b, request(4, 18, INT_MAX, 2));
    run(b);
    int n;
    CHECK_EQ(outcome(b, 2, &n)->finish, DS_FINISH_LENGTH);
    CHECK_EQ(n, 1);
    CHECK_EQ(outcome(b, 3, &n)->finish, DS_FINISH_LENGTH);
    CHECK_EQ(n, 3);
    outcome(b, 4, &n);
    CHECK_EQ(n, 3);
    stop(b);
}

DS_TEST(queue_limit_and_live_ids)
{
    bench *b = start(2, 8, 16, 4, 64);
    ds_err err = {0};
    for (uint64_t id = 0; id < 10; id++) /* two will run, eight wait */
        submit(b, request(id, 3, 2, (int)id));
    ds_req q = request(10, 3, 2, 0);
    CHECK_EQ(ds_engine_submit(b->e, &q, &err), DS_ELIMIT);
    step(b);
    step(b); /* two finish */
    q.id = 2;
    CHECK_EQ(ds_engine_submit(b->e, &q, &err), DS_EINVAL);
    CHECK_STR(err.field, "id");
    q.id = 10;
    submit(b, q);
    run(b);
    for (uint64_t id = 0; id < 11; id++)
        outcome(b, id, NULL);
    b->n = 0;
    q.id = 0; /* free again */
    submit(b, q);
    run(b);
    outcome(b, 0, NULL);
    stop(b);
}

DS_TEST(cancel_ends_waiting_and_running_requests_in_the_next_step)
{
    bench *b = start(1, 4, 16, 4, 64);
    submit(b, request(1, 10, 20, 0));
    submit(b, request(2, 3, 2, 0));
    step(b);
    CHECK_EQ(ds_engine_cancel(b->e, 1), DS_OK); /* in the middle of its prompt */
    CHECK_EQ(ds_engine_cancel(b->e, 1), DS_OK); /* asking twice is fine */
    CHECK_EQ(ds_engine_cancel(b->e, 2), DS_OK); /* waiting */
    CHECK_EQ(ds_engine_cancel(b->e, 3), DS_ENOTFOUND);
    long before = b->fake.forwards;
    CHECK_EQ(step(b), 1);
    CHECK_EQ(b->fake.forwards, before);
    for (uint64_t id = 1; id <= 2; id++)
        CHECK_EQ(outcome(b, id, NULL)->finish, DS_FINISH_CANCELLED);
    CHECK_EQ(ds_engine_cancel(b->e, 1), DS_ENOTFOUND);
    CHECK_EQ(stats(b).cancelled, 2);
    CHECK_EQ(stats(b).free_pages, 16);
    CHECK_EQ(step(b), 0);
    stop(b);
}

DS_TEST(callbacks_may_cancel_and_submit)
{
    bench *b = start(2, 8, 16, 4, 64);
    int n;
    b->cancel_on_token_of = 1;
    b->chain_on = 1;
    ds_req next = request(5, 4, 3, 9);
    b->chained = &next;
    submit(b, request(1, 3, 30, 0));
    run(b);
    CHECK_EQ(outcome(b, 1, &n)->finish, DS_FINISH_CANCELLED);
    CHECK_EQ(n, 1);
    CHECK_EQ(outcome(b, 5, &n)->finish, DS_FINISH_LENGTH);
    CHECK_EQ(n, 3);
    /* a request that ends in the very step of the cancel keeps its own end */
    b->cancel_on_token_of = 2;
    submit(b, request(2, 3, 1, 0));
    run(b);
    CHECK_EQ(outcome(b, 2, &n)->finish, DS_FINISH_LENGTH);
    stop(b);
}

DS_TEST(nan_fails_its_sequence_alone_and_is_never_cached)
{
    bench *b = start(4, 8, 64, 4, 200);
    ds_req good = request(1, 20, 10, 3);
    fake_result want = fake_expect(&b->fake, &good, 200);
    submit(b, good);
    run(b);
    int cached = stats(b).cached_pages;
    CHECK(cached > 0);
    ds_req bad = request(2, 60, 10, 11);
    g_prompt[2] = FAKE_POISON; /* in the first of eight chunks; seen only at the last */
    submit(b, bad);
    for (int i = 0; i < 5; i++) {
        step(b);
        CHECK_EQ(stats(b).cached_pages, cached);
    }
    good = request(3, 20, 10, 3);
    good.seed = 1;
    submit(b, good);
    run(b);
    CHECK_EQ(outcome(b, 2, NULL)->code, DS_ENUMERIC);
    CHECK_STR(b->msg, "the model gave no usable numbers after position 59");
    int n;
    CHECK_EQ(outcome(b, 3, &n)->finish, want.finish);
    CHECK_EQ(n, want.n);
    CHECK_EQ(stats(b).failed, 1);
    CHECK_EQ(stats(b).free_pages, 64);
    fake_result_free(&want);
    stop(b);
}

DS_TEST(nan_while_decoding_withdraws_the_pages_shared_before)
{
    bench *b = start(2, 32, 64, 4, 200);
    b->fake.poison_mod = 23;
    ds_req q = request(1, 30, 100, 0);
    for (uint64_t seed = 1;; seed++) { /* a prompt that is good and an output that goes bad later */
        q = request(seed, 30, 100, (int)seed);
        fake_result want = fake_expect(&b->fake, &q, 200);
        int bad = want.bad, n = want.n;
        fake_result_free(&want);
        if (bad && n > 8)
            break;
        CHECK(seed < 10000);
    }
    submit(b, q);
    step(b);
    CHECK(stats(b).cached_pages >= 7);
    run(b);
    CHECK_EQ(outcome(b, q.id, NULL)->code, DS_ENUMERIC);
    CHECK_EQ(stats(b).cached_pages, 0);
    stop(b);
}

DS_TEST(device_fault_fails_the_steps_sequences_and_no_others)
{
    bench *b = start(2, 8, 64, 4, 200);
    for (uint64_t id = 1; id <= 4; id++)
        submit(b, request(id, 3, 5, (int)id));
    step(b);
    b->fake.fail_in = 1;
    b->fake.fail_code = DS_EDEVICE;
    CHECK_EQ(step(b), 1);
    CHECK_STR(b->msg, "injected fault");
    run(b);
    for (uint64_t id = 1; id <= 2; id++)
        CHECK_EQ(outcome(b, id, NULL)->code, DS_EDEVICE);
    for (uint64_t id = 3; id <= 4; id++)
        CHECK_EQ(outcome(b, id, NULL)->finish, DS_FINISH_LENGTH);
    stop(b);
}

DS_TEST(lost_device_is_reported_and_nothing_is_said_to_requests)
{
    bench *b = start(2, 8, 64, 4, 200);
    ds_err err = {0};
    int work;
    submit(b, request(1, 3, 5, 0));
    b->fake.fail_in = 1;
    b->fake.fail_code = DS_ELOST;
    CHECK_EQ(ds_engine_step(b->e, &work, &err), DS_ELOST);
    CHECK_STR(err.msg, "injected fault");
    CHECK_EQ(ds_engine_step(b->e, &work, &err), DS_ELOST);
    CHECK_EQ(b->n, 0); /* the router moves them to another worker */
    stop(b);
}

DS_TEST(resume_after_the_last_token_ends_without_computing)
{
    bench *b = start(2, 8, 64, 4, 200);
    ds_req q = request(1, 3, 5, 0);
    int32_t all[5] = {9, 9, 9, 9, 9}, stopped[2] = {9, FAKE_EOS};
    q.output = all;
    q.n_output = 5;
    submit(b, q);
    q.id = 2;
    q.output = stopped;
    q.n_output = 2;
    q.ignore_eos = 0;
    submit(b, q);
    run(b);
    CHECK_EQ(outcome(b, 1, NULL)->finish, DS_FINISH_LENGTH);
    CHECK_EQ(outcome(b, 1, NULL)->n_output, 5);
    CHECK_EQ(outcome(b, 2, NULL)->finish, DS_FINISH_STOP);
    CHECK_EQ(outcome(b, 2, NULL)->stop_id, FAKE_EOS);
    CHECK_EQ(b->fake.forwards, 0);
    stop(b);
}

DS_TEST(counts_are_exact)
{
    bench *b = start(2, 16, 64, 4, 200);
    submit(b, request(1, 10, 6, 0));
    run(b);
    const ds_event *end = outcome(b, 1, NULL);
    CHECK_EQ(end->n_prompt, 10);
    CHECK_EQ(end->n_output, 6);
    CHECK_EQ(end->n_cached, 0);
    ds_engine_stats s = stats(b);
    CHECK_EQ(s.steps, 6);
    CHECK_EQ(s.rows, 15);
    CHECK_EQ(s.prefill_rows, 10);
    CHECK_EQ(s.decode_rows, 5);
    CHECK_EQ(s.prompt_tokens, 10);
    CHECK_EQ(s.output_tokens, 6);
    CHECK_EQ(s.cached_pages, 3); /* 15 positions computed, pages of 4 */
    CHECK_EQ(s.last_step_ns, 1000);
    CHECK_EQ(s.busy_ns, 6000);
    submit(b, request(2, 10, 6, 0));
    run(b);
    CHECK_EQ(outcome(b, 2, NULL)->n_cached, 8);
    CHECK_EQ(stats(b).prefix_hit_tokens, 8);
    CHECK_EQ(stats(b).rows, 15 + 7);
    CHECK_EQ(stats(b).finished, 2);
    stop(b);
}

DS_TEST(prompt_scores_skip_the_cache)
{
    bench *b = start(2, 16, 64, 4, 200);
    ds_req q = request(1, 30, 3, 0);
    submit(b, q);
    run(b);
    q.id = 2;
    q.prompt_logprobs = 0;
    submit(b, q);
    run(b);
    int scored = 0;
    for (int i = 0; i < b->n; i++)
        scored += b->ev[i].kind == DS_EV_PROMPT ? b->ev[i].n : 0;
    CHECK_EQ(scored, 29);
    CHECK_EQ(outcome(b, 2, NULL)->n_cached, 0);
    stop(b);
}

DS_TEST(impossible_configurations_are_refused_by_name)
{
    fake_target fake;
    ds_engine_conf good = {.max_seqs = 4,
                           .max_step_rows = 8,
                           .max_queue = 4,
                           .kv_pages = 8,
                           .page_tokens = 16,
                           .clock = {tick, &g_now},
                           .max_logit_rows = 4};
    ds_target t = fake_init(&fake, &good, 64);
    const struct {
        const char *field;
        size_t offset;
        int value;
    } bad[] = {{"max_seqs", offsetof(ds_engine_conf, max_seqs), 0},
               {"max_step_rows", offsetof(ds_engine_conf, max_step_rows), 3},
               {"max_logit_rows", offsetof(ds_engine_conf, max_logit_rows), 3},
               {"max_queue", offsetof(ds_engine_conf, max_queue), 0},
               {"kv_pages", offsetof(ds_engine_conf, kv_pages), 0},
               {"page_tokens", offsetof(ds_engine_conf, page_tokens), 17}};
    for (size_t i = 0; i < sizeof bad / sizeof *bad; i++) {
        ds_engine_conf c = good;
        ds_engine *e;
        ds_err err = {0};
        memcpy((char *)&c + bad[i].offset, &bad[i].value, sizeof(int));
        CHECK_EQ(ds_engine_create_on(&c, &t, NULL, on_event, 0, &e, &err), DS_EINVAL);
        CHECK_STR(err.field, bad[i].field);
    }
    fake_fini(&fake);
}
