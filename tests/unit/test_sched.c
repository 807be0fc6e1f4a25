/* The scheduler by itself: order, budgets, admission, who gives way. No engine, no target: a step is
 * "computed" by advancing the counters. */
#include "tests/lib/test.h"
#include "worker/sched.h"

enum { V = 100 };

static ds_seq *make_seq(uint64_t id, int n_prompt, int max_tokens, int first_token)
{
    int32_t prompt[512];
    for (int i = 0; i < n_prompt; i++)
        prompt[i] = (first_token + i) % V;
    ds_req q = {.id = id,
                .prompt = prompt,
                .n_prompt = n_prompt,
                .max_tokens = max_tokens,
                .top_p = 1,
                .repetition = 1,
                .n_logprobs = -1,
                .prompt_logprobs = -1};
    ds_seq_limits limits = {V, 512, 0, 0};
    ds_seq *s;
    ds_err err = {0};
    CHECK_OK(ds_seq_create(&q, &limits, &s, &err), err);
    return s;
}

static ds_sched *make_sched(int seqs, int rows, int logits, int queue, int pages, int page_tokens)
{
    ds_sched_conf conf = {seqs, rows, logits, queue, pages * page_tokens, {pages, page_tokens, 1, ~0ull}};
    ds_sched *s;
    ds_err err = {0};
    CHECK_OK(ds_sched_create(&conf, &s, &err), err);
    return s;
}

static void add(ds_sched *s, ds_seq *q)
{
    ds_err err = {0};
    CHECK_OK(ds_sched_add(s, q, &err), err);
}

/* Advance everything planned; finished sequences leave. */
static void run(ds_sched *s, const ds_plan *p)
{
    ds_err err = {0};
    for (int i = 0; i < p->n; i++) {
        ds_plan_item it = p->item[i];
        it.seq->n_computed += it.rows;
        it.seq->n_scored += it.n_score;
        if (it.n_sample) {
            ds_sched_publish(s, it.seq);
            if (ds_seq_append(it.seq, (int32_t)(it.seq->req.id * 7 + (uint64_t)it.seq->n) % V)) {
                ds_sched_remove(s, it.seq, 0);
                ds_seq_destroy(it.seq);
            }
        }
    }
    CHECK_OK(ds_sched_audit(s, &err), err);
}

static const ds_plan_item *item_for(const ds_plan *p, uint64_t id)
{
    for (int i = 0; i < p->n; i++)
        if (p->item[i].seq->req.id == id)
            return &p->item[i];
    return NULL;
}

static void drain(ds_sched *s)
{
    ds_seq *q;
    while ((q = ds_sched_any(s))) {
        ds_sched_remove(s, q, 0);
        ds_seq_destroy(q);
    }
    ds_sched_destroy(s);
}

DS_TEST(prefill_takes_what_decode_leaves)
{
    ds_sched *s = make_sched(4, 10, 4, 8, 64, 4);
    add(s, make_seq(1, 3, 20, 0));
    run(s, ds_sched_plan(s));
    add(s, make_seq(2, 25, 20, 50));
    for (int step = 0, left = 25; step < 3; step++) {
        const ds_plan *p = ds_sched_plan(s);
        int want = left < 9 ? left : 9;
        CHECK_EQ(p->rows, 1 + want);
        CHECK_EQ(p->decode_rows, 1);
        CHECK_EQ(item_for(p, 1)->rows, 1);
        CHECK_EQ(item_for(p, 2)->rows, want);
        CHECK_EQ(item_for(p, 2)->n_sample, left == want);
        left -= want;
        run(s, p);
    }
    CHECK_EQ(ds_sched_plan(s)->decode_rows, 2);
    drain(s);
}

DS_TEST(priority_then_arrival_decides_who_starts)
{
    ds_sched *s = make_sched(1, 8, 1, 8, 16, 4);
    ds_seq *a = make_seq(1, 2, 1, 0), *b = make_seq(2, 2, 1, 10), *c = make_seq(3, 2, 1, 20);
    c->req.priority = -1;
    add(s, a);
    add(s, b);
    add(s, c);
    static const uint64_t want[] = {3, 1, 2};
    for (int i = 0; i < 3; i++) {
        const ds_plan *p = ds_sched_plan(s);
        CHECK_EQ(p->n, 1);
        CHECK_EQ(p->item[0].seq->req.id, want[i]);
        run(s, p);
    }
    drain(s);
}

DS_TEST(queue_limit_is_exact)
{
    ds_sched *s = make_sched(1, 8, 1, 2, 16, 4);
    ds_err err = {0};
    for (uint64_t id = 1; id <= 3; id++) /* one will run, two wait */
        add(s, make_seq(id, 2, 1, 0));
    ds_seq *fourth = make_seq(4, 2, 1, 0);
    CHECK_EQ(ds_sched_add(s, fourth, &err), DS_ELIMIT);
    run(s, ds_sched_plan(s)); /* one finishes */
    add(s, fourth);
    drain(s);
}

DS_TEST(youngest_gives_way_and_returns_before_newcomers)
{
    ds_sched *s = make_sched(2, 16, 2, 8, 8, 2);
    ds_seq *old = make_seq(1, 4, 10, 0), *young = make_seq(2, 4, 10, 40), *newcomer = make_seq(3, 1, 10, 80);
    add(s, old);
    add(s, young);
    add(s, newcomer); /* would fit beside the old one, but a preempted one comes first */
    run(s, ds_sched_plan(s));
    while (!young->preempted) {
        CHECK_EQ(old->preempted, 0);
        run(s, ds_sched_plan(s));
    }
    CHECK(old->slot >= 0 && young->slot < 0);
    CHECK_EQ(young->n_pages, 0);
    while (young->slot < 0) {
        CHECK(newcomer->slot < 0);
        const ds_plan *p = ds_sched_plan(s);
        CHECK(p->n > 0);
        run(s, p);
    }
    CHECK(ds_sched_find(s, 1) == NULL || old->preempted == 0);
    drain(s);
}

DS_TEST(a_large_request_is_not_overtaken_for_ever)
{
    ds_sched *s = make_sched(4, 16, 4, 64, 16, 2);
    add(s, make_seq(1, 3, 3, 0));
    run(s, ds_sched_plan(s));
    ds_seq *large = make_seq(1000, 30, 2, 5);
    add(s, large);
    int steps = 0;
    for (uint64_t id = 2; large->slot < 0; id++, steps++) { /* small ones keep coming */
        CHECK(steps < 10);
        add(s, make_seq(id, 3, 3, (int)id * 13));
        run(s, ds_sched_plan(s));
    }
    drain(s);
}

DS_TEST(siblings_wait_for_the_prefix_one_of_them_computes)
{
    ds_sched *s = make_sched(8, 400, 8, 8, 200, 16);
    for (uint64_t id = 1; id <= 8; id++)
        add(s, make_seq(id, 100, 4, 0));
    const ds_plan *p = ds_sched_plan(s);
    CHECK_EQ(p->rows, 100);
    run(s, p);
    p = ds_sched_plan(s);
    CHECK_EQ(p->n, 8);
    CHECK_EQ(p->rows, 1 + 7 * 4); /* 96 of 100 tokens are shared pages */
    drain(s);
}

DS_TEST(scoring_rows_stay_within_the_logit_budget)
{
    ds_sched *s = make_sched(2, 64, 5, 8, 64, 4);
    ds_seq *q = make_seq(1, 20, 4, 0);
    q->req.prompt_logprobs = 0;
    add(s, q);
    add(s, make_seq(2, 6, 8, 50));
    int scored = 0;
    while (ds_seq_scoring(q)) {
        const ds_plan *p = ds_sched_plan(s);
        CHECK(p->logits <= 5 && p->n > 0);
        const ds_plan_item *it = item_for(p, 1);
        CHECK(it && q->n_computed + it->score_at + 1 == q->n_scored);
        scored += it->n_score;
        run(s, p);
    }
    CHECK_EQ(scored, 19);
    drain(s);
}
