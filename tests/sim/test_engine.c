/* Whole engines under random schedules, a seed each: random sizes, submits, cancels, faults, half of them
 * with a drafter that is often right. After every step
 * the page accounting is audited; every request must give exactly the tokens that follow from its own
 * definition (fake_expect), and exactly one outcome. A failure prints the seed that repeats it. */
#include "tests/lib/test.h"
#include "tests/sim/fake_draft.h"

#include <malloc.h>
#include <stdio.h>

enum { MAX_REQS = 64, MAX_LEN = 160 };

typedef struct client { /* one request as its sender sees it */
    ds_req q;
    int32_t prompt[MAX_LEN], stop[4], bias_id[4];
    float bias[4];
    fake_result want;
    int submitted, cancelled, cancelled_at, outcome, n, scored, accepted, rejected;
    int free; /* its tokens depend on the schedule (`rejection`): recorded, and replayed at its end */
    int32_t token[MAX_LEN];
    float logprob[MAX_LEN];
} client;

typedef struct world {
    uint64_t seed;
    uint32_t draws;
    ds_engine_conf conf;
    fake_target fake;
    fake_draft draft; /* block 0: none */
    int failed;
    ds_engine *e;
    client *c; /* [n] */
    int n, steps;
    uint64_t now;
    fake_luck luck;  /* of free requests */
    char wrong[256]; /* first broken promise seen by the callback */
} world;

static int rnd(world *w, int n)
{
    return (int)(ds_rng_u32(w->seed, DS_RNG_INIT, 1, w->draws++) % (uint32_t)n);
}

static uint64_t no_time(void *ctx)
{
    (void)ctx;
    return 0;
}

static uint64_t wild_time(void *ctx) /* passes cost anything: the scheduler's choices are random */
{
    world *w = ctx;
    w->now += (uint64_t)(1 + rnd(w, 1000));
    return w->now;
}

#define PROMISE(cond)                                                                  \
    do {                                                                               \
        if (!(cond) && !w->wrong[0])                                                   \
            snprintf(w->wrong, sizeof w->wrong, "line %d: request %llu: %s", __LINE__, \
                     (unsigned long long)ev->id, #cond);                               \
    } while (0)

/* What a free request gave, from its definition: it becomes what was wanted. */
static void replay(world *w, client *c, const ds_event *ev)
{
    if (!c->free)
        return;
    fake_result r = fake_follow(&w->fake, &c->q, ds_engine_max_len(w->e), c->token, c->n, &w->luck);
    PROMISE(r.n == c->n);
    for (int i = c->q.n_output; i < c->n && i < r.n; i++)
        PROMISE(r.token[i] == c->token[i] && r.logprob[i] == c->logprob[i]);
    fake_result_free(&c->want);
    c->want = r;
}

static void on_event(void *ctx, const ds_event *ev)
{
    world *w = ctx;
    PROMISE(ev->id < (uint64_t)w->n);
    client *c = &w->c[ev->id];
    PROMISE(c->submitted && !c->outcome);
    if (ev->kind == DS_EV_PROMPT) {
        PROMISE(ev->first == c->scored + 1 && ev->n > 0 && ev->first + ev->n <= c->q.n_prompt);
        for (int i = 0; i < ev->n; i++) {
            PROMISE(ev->token[i].token == c->q.prompt[ev->first + i]);
            PROMISE(ev->token[i].logprob == c->want.prompt_logprob[ev->first + i]);
        }
        c->scored += ev->n;
    } else if (ev->kind == DS_EV_TOKENS) {
        PROMISE(ev->first == c->n && ev->n > 0 && c->n + ev->n <= (c->free ? MAX_LEN : c->want.n));
        PROMISE(c->q.prompt_logprobs < 0 || c->scored == c->q.n_prompt - 1);
        for (int i = 0; c->free && i < ev->n && c->n < MAX_LEN; i++, c->n++) {
            c->token[c->n] = ev->token[i].token;
            c->logprob[c->n] = ev->token[i].logprob;
        }
        for (int i = 0; !c->free && i < ev->n && c->n < c->want.n; i++, c->n++)
            PROMISE(ev->token[i].token == c->want.token[c->n] &&
                    ev->token[i].logprob == c->want.logprob[c->n]);
        int cap = w->draft.block;
        cap = w->conf.max_draft && w->conf.max_draft < cap ? w->conf.max_draft : cap;
        cap = c->q.max_draft && c->q.max_draft < cap ? c->q.max_draft : cap;
        cap = c->q.spec == DS_SPEC_OFF ? 0 : cap;
        PROMISE(ev->n_accepted <= ev->n && ev->n <= ev->n_accepted + 1);
        PROMISE(ev->n_rejected >= 0 && ev->n_accepted + ev->n_rejected <= cap);
        c->accepted += ev->n_accepted;
        c->rejected += ev->n_rejected;
    } else if (ev->kind == DS_EV_DONE) {
        c->outcome = 1;
        replay(w, c, ev);
        PROMISE(ev->accepted == c->accepted && ev->rejected == c->rejected);
        PROMISE(ev->n_prompt == c->q.n_prompt && ev->n_output == c->n && ev->n_cached < ev->n_prompt + 1);
        if (ev->finish == DS_FINISH_CANCELLED) {
            PROMISE(c->cancelled && w->steps <= c->cancelled_at + 1);
        } else {
            PROMISE(ev->finish == c->want.finish && c->n == c->want.n && !c->want.bad);
            PROMISE(ev->stop_id == (ev->finish == DS_FINISH_STOP ? c->want.token[c->n - 1] : -1));
        }
    } else {
        c->outcome = 1;
        w->failed++;
        replay(w, c, ev);
        PROMISE(ev->code == DS_EDEVICE || (ev->code == DS_ENUMERIC && c->want.bad && c->n == c->want.n));
        PROMISE(ev->msg && ev->msg[0]);
    }
}

static void make_request(world *w, client *c, int id)
{
    int max_len = ds_engine_max_len(w->e), family = rnd(w, 3), shared = rnd(w, 4) ? rnd(w, 60) : 0;
    int n = 1 + (rnd(w, 3) ? shared + rnd(w, 20) : rnd(w, 6));
    n = n < max_len ? n : max_len;
    for (int i = 0; i < n; i++) /* prompts of a family share a prefix */
        c->prompt[i] = 4 + (int32_t)(fake_mix((uint64_t)(i < shared ? family : 100 + id), (uint64_t)i) % 40);
    if (rnd(w, 24) == 0)
        c->prompt[rnd(w, n)] = FAKE_POISON;
    c->q = (ds_req){.id = (uint64_t)id, .prompt = c->prompt, .n_prompt = n, .max_tokens = 1 + rnd(w, 50)};
    ds_req *q = &c->q;
    q->min_tokens = rnd(w, 3) ? 0 : rnd(w, q->max_tokens + 1);
    q->temperature = rnd(w, 3) ? 0.1f * (float)rnd(w, 20) : 0.0f;
    q->top_p = q->repetition = 1.0f;
    if (rnd(w, 2)) {
        q->repetition = 0.5f + 0.1f * (float)rnd(w, 12);
        q->presence = 0.2f * (float)rnd(w, 5);
        q->frequency = 0.2f * (float)(rnd(w, 5) - 2);
    }
    q->seed = (uint64_t)rnd(w, 1 << 20);
    q->stop_id = c->stop;
    q->n_stop_id = rnd(w, 3);
    q->bias_id = c->bias_id;
    q->bias = c->bias;
    q->n_bias = rnd(w, 3);
    for (int i = 0; i < 2; i++) {
        c->stop[i] = rnd(w, FAKE_V);
        c->bias_id[i] = rnd(w, FAKE_V - 1);
        c->bias[i] = (float)(rnd(w, 5) - 2);
    }
    q->ignore_eos = rnd(w, 4) == 0;
    q->n_logprobs = -1;
    q->prompt_logprobs = rnd(w, 5) ? -1 : 0;
    q->priority = rnd(w, 4) ? 0 : rnd(w, 3) - 1;
    if (w->draft.block) {
        q->spec = (ds_spec_mode)rnd(w, 3);
        q->max_draft = rnd(w, 2) ? 0 : rnd(w, w->draft.block + 3);
    }
    c->want = fake_expect(&w->fake, q, max_len);
    c->free = w->conf.acceptance == DS_ACCEPT_REJECTION && q->temperature > 0;
    if (rnd(w, 5) == 0 && c->want.n > 0) { /* an earlier attempt delivered a part, or all of it */
        q->n_output = 1 + rnd(w, c->want.n);
        q->output = c->want.token;
        memcpy(c->token, c->want.token, (size_t)q->n_output * sizeof *c->token);
        memset(c->want.logprob, 0, (size_t)q->n_output * sizeof(float));
        c->n = q->n_output;
        int complete = c->n == c->want.n && !c->want.bad;
        c->scored = complete && q->prompt_logprobs >= 0 ? q->n_prompt - 1 : 0;
    }
}

static void submit_one(world *w)
{
    ds_err err = {0};
    client *c = &w->c[w->n];
    make_request(w, c, w->n);
    w->n++; /* the callback may see it at once */
    ds_engine_stats s;
    ds_engine_get_stats(w->e, &s);
    ds_code code = ds_engine_submit(w->e, &c->q, &err);
    c->submitted = code == DS_OK;
    if (code == DS_ELIMIT && s.running + s.waiting >= w->conf.max_seqs + w->conf.max_queue)
        c->outcome = 1; /* refused: nothing more is heard of it */
    else
        CHECK_OK(code, err);
}

static int step(world *w)
{
    ds_err err = {0};
    int work;
    w->steps++;
    CHECK_OK(ds_engine_step(w->e, &work, &err), err);
    CHECK_MSG(!w->wrong[0], "seed %llu step %d: %s", (unsigned long long)w->seed, w->steps, w->wrong);
    CHECK_MSG(w->fake.corrupt == 0, "seed %llu step %d: a row read KV that is not its own",
              (unsigned long long)w->seed, w->steps);
    CHECK_MSG(ds_engine_audit(w->e, &err) == DS_OK, "seed %llu step %d: %s", (unsigned long long)w->seed,
              w->steps, err.msg);
    return work;
}

enum { PLAIN, COUPLED, REJECTION }; /* kinds of worlds */

static void start_world(world *w, uint64_t seed, int drafted)
{
    static const int page_tokens[] = {1, 2, 4, 16};
    *w = (world){.seed = seed};
    ds_engine_conf *c = &w->conf;
    c->acceptance = drafted == REJECTION ? DS_ACCEPT_REJECTION : DS_ACCEPT_COUPLED;
    c->max_seqs = 1 + rnd(w, 8);
    c->max_step_rows = c->max_seqs + rnd(w, 40);
    c->max_logit_rows = c->max_seqs + rnd(w, 8);
    c->max_queue = 1 + rnd(w, 24);
    c->page_tokens = page_tokens[rnd(w, 4)];
    c->kv_pages = 2 + (rnd(w, 2) ? rnd(w, 400) : rnd(w, 120)) / c->page_tokens;
    c->prefix_cache = rnd(w, 4) != 0;
    c->clock = (ds_clock){no_time, 0};
    int block = drafted ? 1 + rnd(w, 8) : 0;
    if (block) {
        c->max_step_rows += c->max_seqs * rnd(w, block + 1);
        c->max_logit_rows += c->max_seqs * rnd(w, block + 1);
        c->max_draft = rnd(w, block + 2);
        c->schedule = (ds_sched_kind)rnd(w, DS_SCHED_KINDS);
        c->threshold = 0.1 * rnd(w, 11);
        if (c->schedule == DS_SCHED_GLOBAL && c->acceptance == DS_ACCEPT_REJECTION)
            c->schedule = DS_SCHED_EARLY_STOP;
        c->spec = rnd(w, 2) ? DS_SPEC_AUTO : DS_SPEC_MAX;
        c->clock = (ds_clock){rnd(w, 4) ? wild_time : no_time, w};
    }
    ds_target target = fake_init(&w->fake, c, MAX_LEN - 60);
    w->fake.poison_mod = rnd(w, 3) ? 0 : 301;
    w->c = calloc(MAX_REQS, sizeof *w->c);
    ds_err err = {0};
    ds_drafter drafter = fake_draft_init(&w->draft, &w->fake, block);
    w->draft.salt = seed;
    w->draft.wrong_odds = rnd(w, 8);
    CHECK_OK(ds_engine_create_on(c, &target, block ? &drafter : NULL, on_event, w, &w->e, &err), err);
    w->fake.corrupt = 0; /* step costs are measured over pages without content */
    w->draft.lost = 0;
    w->draft.fail_odds = rnd(w, 4) ? 0 : 20;
}

static void end_world(world *w)
{
    ds_engine_destroy(w->e);
    fake_fini(&w->fake);
    fake_draft_fini(&w->draft);
    for (int i = 0; i < w->n; i++)
        fake_result_free(&w->c[i].want);
    free(w->c);
}

static fake_luck g_luck; /* of all worlds */

static void run_world(uint64_t seed, int drafted, ds_engine_stats *sum)
{
    world world_, *w = &world_;
    start_world(w, seed, drafted);
    int total = 1 + rnd(w, MAX_REQS), pace = 1 + rnd(w, 8), faults = rnd(w, 4) == 0, tokens = 0;
    while (w->n < total) {
        int what = rnd(w, 10);
        if (what < pace) {
            submit_one(w);
        } else if (what == 9 && w->n) {
            client *c = &w->c[rnd(w, w->n)];
            int live = c->submitted && !c->outcome;
            CHECK_EQ(ds_engine_cancel(w->e, c->q.id), live ? DS_OK : DS_ENOTFOUND);
            if (live && !c->cancelled) {
                c->cancelled = 1;
                c->cancelled_at = w->steps;
            }
        } else {
            if (faults && rnd(w, 30) == 0) {
                w->fake.fail_in = 1;
                w->fake.fail_code = DS_EDEVICE;
            }
            step(w);
        }
    }
    for (int i = 0; i < w->n; i++)
        tokens += w->c[i].q.n_prompt + w->c[i].q.max_tokens;
    int limit = w->steps + 4 * tokens; /* the first in order gains a row a step: nobody waits for ever */
    while (step(w))
        CHECK_MSG(w->steps < limit, "seed %llu: no end after %d steps", (unsigned long long)seed, w->steps);
    ds_engine_stats s;
    ds_engine_get_stats(w->e, &s);
    for (int i = 0; i < w->n; i++)
        CHECK_MSG(w->c[i].outcome, "seed %llu: request %d has no outcome", (unsigned long long)seed, i);
    CHECK_EQ(s.running + s.waiting, 0);
    CHECK_EQ(s.free_pages, s.total_pages);
    CHECK_EQ(s.rows, s.decode_rows + s.prefill_rows);
    CHECK_EQ(w->draft.lost, 0);
    if (!w->failed) { /* those of failed requests are in no event */
        uint64_t accepted = 0, rejected = 0;
        for (int i = 0; i < w->n; i++) {
            accepted += (uint64_t)w->c[i].accepted;
            rejected += (uint64_t)w->c[i].rejected;
        }
        CHECK_EQ(accepted + rejected, s.spec.verified);
        CHECK(accepted <= s.spec.accepted); /* less what stood behind a stop */
    }
    g_luck.sum += w->luck.sum;
    g_luck.var += w->luck.var;
    g_luck.n += w->luck.n;
    sum->preemptions += s.preemptions;
    sum->prefix_hit_tokens += s.prefix_hit_tokens;
    sum->spec.verified += s.spec.verified;
    sum->spec.accepted += s.spec.accepted;
    end_world(w);
}

DS_TEST(random_schedules_keep_every_promise)
{
    ds_engine_stats sum = {0};
    for (uint64_t seed = 1; seed <= 3000; seed++)
        run_world(seed, PLAIN, &sum);
    printf("  %llu preemptions, %llu prefix tokens hit\n", (unsigned long long)sum.preemptions,
           (unsigned long long)sum.prefix_hit_tokens);
    CHECK(sum.preemptions > 1000 && sum.prefix_hit_tokens > 10000); /* the worlds are small enough to hurt */
}

DS_TEST(speculation_changes_no_token_under_random_schedules)
{
    ds_engine_stats sum = {0};
    for (uint64_t seed = 10001; seed <= 13000; seed++)
        run_world(seed, COUPLED, &sum);
    printf("  %llu preemptions, %llu prefix tokens hit, %llu drafts verified, %llu accepted\n",
           (unsigned long long)sum.preemptions, (unsigned long long)sum.prefix_hit_tokens,
           (unsigned long long)sum.spec.verified, (unsigned long long)sum.spec.accepted);
    CHECK(sum.preemptions > 1000 && sum.spec.accepted > 100000);
    CHECK(sum.spec.verified - sum.spec.accepted > 100000);
}

/* Under `rejection` greedy requests give the very tokens of plain decoding; of the others every token must
 * have the log-probability of its own context, and all together must be as probable as draws from the target
 * are: a bias of the accepted or the corrected tokens shows as luck. */
DS_TEST(rejection_keeps_the_distribution_under_random_schedules)
{
    ds_engine_stats sum = {0};
    g_luck = (fake_luck){0};
    for (uint64_t seed = 20001; seed <= 23000; seed++)
        run_world(seed, REJECTION, &sum);
    double z = g_luck.sum / sqrt(g_luck.var);
    printf("  %llu drafts verified, %llu accepted; %ld sampled tokens, luck %+.2f sigma\n",
           (unsigned long long)sum.spec.verified, (unsigned long long)sum.spec.accepted, g_luck.n, z);
    CHECK(sum.spec.accepted > 100000 && sum.spec.verified - sum.spec.accepted > 50000);
    CHECK(g_luck.n > 100000 && fabs(z) < 5);
}

static void count_done(void *ctx, const ds_event *ev)
{
    *(int *)ctx += ev->kind == DS_EV_DONE || ev->kind == DS_EV_ERROR;
}

/* 10^4 requests through one engine: the heap does not grow after the first tenth. */
DS_TEST(soak_ten_thousand_requests_in_constant_memory)
{
    ds_engine_conf conf = {.max_seqs = 16,
                           .max_step_rows = 64,
                           .max_logit_rows = 16,
                           .max_queue = 32,
                           .kv_pages = 60,
                           .page_tokens = 16,
                           .prefix_cache = 1,
                           .clock = {no_time, 0}};
    fake_target fake;
    ds_target target = fake_init(&fake, &conf, 256);
    int done = 0, sent = 0, work = 1;
    ds_engine *e;
    ds_err err = {0};
    CHECK_OK(ds_engine_create_on(&conf, &target, NULL, count_done, &done, &e, &err), err);
    size_t early = 0;
    while (done < 10000) {
        int32_t prompt[80];
        int n = 1 + (int)(fake_mix(7, (uint64_t)sent) % 80);
        for (int i = 0; i < n; i++)
            prompt[i] = 4 + (int32_t)(fake_mix((uint64_t)(sent % 5), (uint64_t)i) % 40);
        ds_req q = {.id = (uint64_t)sent,
                    .prompt = prompt,
                    .n_prompt = n,
                    .max_tokens = 1 + sent % 20,
                    .temperature = 1.0f,
                    .top_p = 1.0f,
                    .repetition = 1.1f,
                    .seed = (uint64_t)sent,
                    .n_logprobs = -1,
                    .prompt_logprobs = -1};
        ds_code code = sent < 10000 ? ds_engine_submit(e, &q, &err) : DS_ELIMIT;
        if (code == DS_OK) {
            if (sent % 50 == 0)
                CHECK_EQ(ds_engine_cancel(e, q.id), DS_OK);
            sent++;
            continue;
        }
        CHECK_EQ(code, DS_ELIMIT);
        CHECK_OK(ds_engine_step(e, &work, &err), err);
        CHECK(work);
        if (!early && done > 1000)
            early = mallinfo2().uordblks;
    }
    size_t late = mallinfo2().uordblks;
    CHECK_MSG(late <= early + 65536, "heap grew from %zu to %zu bytes", early, late);
    CHECK_EQ(fake.corrupt, 0);
    CHECK_OK(ds_engine_step(e, &work, &err), err);
    CHECK_EQ(work, 0);
    ds_engine_stats s;
    ds_engine_get_stats(e, &s);
    CHECK_EQ(s.finished + s.cancelled + s.failed, 10000);
    CHECK_EQ(s.free_pages, s.total_pages);
    ds_engine_destroy(e);
    fake_fini(&fake);
}
