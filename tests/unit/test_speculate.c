/* Speculation in the engine by a clock that target and draft move: what is skipped, what the guard does, what
 * the operator's settings mean. Tokens are checked in tests/sim. */
#include "tests/lib/test.h"
#include "tests/sim/fake_draft.h"
#include "worker/profile.h"

#include <stdio.h>

enum { BLOCK = 4, MAX_LEN = 4096 };

typedef struct house {
    ds_engine_conf conf;
    fake_target fake;
    fake_draft draft;
    ds_engine *e;
    uint64_t now;
    uint64_t base_ns, row_ns, draft_ns; /* of a target pass, of each of its rows, of a draft pass */
    long tokens;
    int done, accepted;
} house;

static house *g; /* the passes below move its clock */

static uint64_t read_clock(void *ctx)
{
    return ((house *)ctx)->now;
}

static ds_code timed_forward(void *model, const ds_kv_pool *kv, ds_step_args *a, ds_err *err)
{
    g->now += g->base_ns + g->row_ns * (uint64_t)a->rows.T;
    return fake_forward(model, kv, a, err);
}

static ds_code timed_propose(void *draft, const ds_kv_pool *kv, const ds_draft_batch *b, ds_err *err)
{
    g->now += g->draft_ns;
    return fake_draft_propose(draft, kv, b, err);
}

static void on_event(void *ctx, const ds_event *ev)
{
    house *h = ctx;
    h->tokens += ev->kind == DS_EV_TOKENS ? ev->n : 0;
    h->accepted += ev->kind == DS_EV_TOKENS ? ev->n_accepted : 0;
    h->done += ev->kind == DS_EV_DONE;
    CHECK(ev->kind != DS_EV_ERROR);
}

static house *start(ds_engine_conf special, int wrong_odds)
{
    house *h = g = calloc(1, sizeof *h);
    ds_err err = {0};
    h->conf = special;
    h->conf.max_seqs = 8;
    h->conf.max_step_rows = h->conf.max_logit_rows = 8 * (1 + BLOCK);
    h->conf.max_queue = 8;
    h->conf.kv_pages = 2048;
    h->conf.page_tokens = 16;
    h->conf.clock = (ds_clock){read_clock, h};
    h->base_ns = 10000000;
    h->row_ns = 100000;
    h->draft_ns = 2000000;
    ds_target t = fake_init(&h->fake, &h->conf, MAX_LEN);
    ds_drafter d = fake_draft_init(&h->draft, &h->fake, BLOCK);
    h->draft.wrong_odds = wrong_odds;
    h->draft.salt = 5;
    t.forward = timed_forward;
    d.propose = timed_propose;
    CHECK_OK(ds_engine_create_on(&h->conf, &t, &d, on_event, h, &h->e, &err), err);
    h->fake.corrupt = h->draft.lost = 0; /* step costs are measured over pages without content */
    return h;
}

static void stop(house *h)
{
    CHECK_EQ(h->fake.corrupt, 0);
    CHECK_EQ(h->draft.lost, 0); /* the context was never stale */
    ds_engine_destroy(h->e);
    fake_fini(&h->fake);
    fake_draft_fini(&h->draft);
    free(h);
}

static void submit(house *h, int id, int max_tokens, ds_spec_mode mode)
{
    static const int32_t prompt[] = {4, 9, 14};
    ds_err err = {0};
    ds_req q = {.id = (uint64_t)id,
                .prompt = prompt,
                .n_prompt = 3,
                .max_tokens = max_tokens,
                .temperature = 1,
                .top_p = 1,
                .repetition = 1,
                .seed = (uint64_t)id,
                .ignore_eos = 1,
                .n_logprobs = -1,
                .prompt_logprobs = -1,
                .spec = mode};
    CHECK_OK(ds_engine_submit(h->e, &q, &err), err);
}

static ds_spec_stats run(house *h, int steps)
{
    ds_err err = {0};
    ds_engine_stats s;
    for (int i = 0, work = 1; work && i < steps; i++)
        CHECK_OK(ds_engine_step(h->e, &work, &err), err);
    ds_engine_get_stats(h->e, &s);
    return s.spec;
}

DS_TEST(what_pays_is_drafted)
{
    house *h =
        start((ds_engine_conf){0}, 8); /* seven of eight slots are right, a pass costs a fifth of a step */
    submit(h, 1, 1000, DS_SPEC_AUTO);
    uint64_t began = h->now;
    ds_spec_stats s = run(h, 10000);
    double plain = 1000 * 10.1e6;
    CHECK(h->tokens == 1000 && s.accepted > 600);
    CHECK_MSG((double)(h->now - began) < 0.5 * plain, "%g of plain decoding",
              (double)(h->now - began) / plain);
    CHECK(s.regret < -1); /* and the meter says so: twice as fast */
    CHECK(s.measured_s > 0 && s.plain_s / s.measured_s > 2);
    stop(h);
}

/* Drafts that never stand: after a short while only probes are left, and they cost less than 2 %. */
DS_TEST(what_does_not_pay_is_skipped)
{
    house *h = start((ds_engine_conf){0}, 1);
    for (int i = 0; i < 4; i++)
        submit(h, i, 2000, DS_SPEC_AUTO);
    run(h, 200);
    uint64_t began = h->now;
    long before = h->tokens;
    ds_spec_stats s = run(h, 1500);
    double plain = (double)(h->tokens - before) / 4 * 10.4e6;
    CHECK_MSG((double)(h->now - began) < 1.02 * plain, "%g of plain decoding",
              (double)(h->now - began) / plain);
    CHECK(s.skips > 1400 && s.request_skips > 4 * 1400);
    h->draft.wrong_odds = 0; /* every draft is right from now on: the context is there, and probes find out */
    s = run(h, 10000);
    CHECK(h->done == 4 && s.accepted > 200);
    stop(h);
}

/* A profile that says drafts are for free, on a machine where they are not: the clock decides. */
static ds_profile wrong_profile(void)
{
    return (ds_profile){.n_rows = 2,
                        .rows = {1, 40},
                        .n_ctx = 1,
                        .ctx = {0},
                        .verify = {{.0102, .0141}},
                        .n_reqs = 2,
                        .reqs = {1, 8},
                        .draft = {1e-6, 1e-6}};
}

DS_TEST(guard_turns_off_what_loses_by_the_clock)
{
    ds_profile p = wrong_profile();
    house *h = start((ds_engine_conf){.profile = &p}, 2);
    CHECK_EQ(h->fake.forwards, 0); /* a known profile is not measured again */
    h->draft_ns = 100000000;       /* ten steps */
    submit(h, 1, 4000, DS_SPEC_AUTO);
    ds_spec_stats s = run(h, 60);
    CHECK(s.guard_offs >= 1 || s.skips > 20);
    uint64_t began = h->now;
    long before = h->tokens;
    s = run(h, 2000);
    double plain = (double)(h->tokens - before) * 10.1e6;
    CHECK_MSG((double)(h->now - began) < 1.25 * plain, "%g of plain decoding",
              (double)(h->now - began) / plain);
    CHECK(s.plain_s < s.measured_s);
    stop(h);
}

DS_TEST(profile_is_refined_and_handed_out)
{
    ds_profile p = wrong_profile(), q;
    p.verify[0][0] = .020;
    house *h = start((ds_engine_conf){.profile = &p}, 2);
    submit(h, 1, 600, DS_SPEC_AUTO);
    run(h, 2000);
    CHECK_EQ(ds_engine_get_profile(h->e, &q), 1);
    CHECK(q.refined > 50 && q.draft[0] > .0019);
    CHECK(q.verify[0][0] < .012); /* it was told .020 */
    stop(h);
}

DS_TEST(operator_caps_what_clients_ask)
{
    house *h = start((ds_engine_conf){.spec = DS_SPEC_OFF}, 0);
    submit(h, 1, 50, DS_SPEC_MAX);
    CHECK_EQ(run(h, 1000).drafted, 0);
    stop(h);
    h = start((ds_engine_conf){.max_draft = 2}, 0);
    submit(h, 1, 50, DS_SPEC_MAX);
    ds_spec_stats s = run(h, 1000);
    CHECK(s.verified_at[1] > 0 && s.verified_at[2] == 0);
    stop(h);
    h = start((ds_engine_conf){0}, 1); /* who insists is drafted for, even at a loss */
    submit(h, 1, 400, DS_SPEC_MAX);
    CHECK(run(h, 1000).passes > 250);
    stop(h);
}

DS_TEST(synthetic_acceptance_follows_its_odds)
{
    static const double odds[BLOCK] = {.9, .8, .5, .5};
    house *h = start((ds_engine_conf){.synthetic = odds, .schedule = DS_SCHED_FIXED}, 1);
    for (int i = 0; i < 8; i++)
        submit(h, i, 3000, DS_SPEC_AUTO);
    ds_spec_stats s = run(h, 100000);
    for (int k = 0; k < BLOCK; k++)
        CHECK(fabs((double)s.accepted_at[k] / (double)s.reached_at[k] - odds[k]) < .03);
    stop(h);
}

DS_TEST(illegal_schedules_are_refused)
{
    house *h = start((ds_engine_conf){.acceptance = DS_ACCEPT_REJECTION, .schedule = DS_SCHED_STALE}, 2);
    ds_err err = {0};
    CHECK_EQ(ds_engine_set_schedule(h->e, DS_SCHED_GLOBAL, 0, &err), DS_EINVAL);
    CHECK_STR(err.field, "scheduler");
    CHECK_EQ(ds_engine_set_schedule(h->e, DS_SCHED_THRESHOLD, 1.5, &err), DS_EINVAL);
    CHECK_STR(err.field, "draft_threshold");
    CHECK_OK(ds_engine_set_schedule(h->e, DS_SCHED_THRESHOLD, 1, &err), err);
    submit(h, 1, 50, DS_SPEC_AUTO); /* no confidence reaches 1 */
    CHECK_EQ(run(h, 100).verified, 0);
    stop(h);
}
