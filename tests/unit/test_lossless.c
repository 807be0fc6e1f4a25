/* Speculation draws from the target's distribution: chi-square of emitted tokens, given their context,
 * against exact probabilities, through the real engine and the real sampler. Cells are both rules under every
 * scheduler at three temperatures with top-p, filters and penalties, and a tiny real pair. None may be
 * improbable at 0.001 over the number of cells; planted faults must be. Everything is seeded, so the outcome
 * is the same each time. DS_LOSSLESS_TOKENS sets the tokens of a cell (200,000). */
#include "tests/lib/accept_ref.h"
#include "tests/lib/chain_pair.h"
#include "tests/lib/test.h"
#include "tests/lib/tiny_pair.h"
#include "worker/engine.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum { SEQS = 8, ROWS = 96, MAX_OUT = 240, MAX_V = TINY_V, MAX_CONTEXTS = CHAIN_CONTEXTS, BLOCK = 4 };

/* Under a sanitizer the point is what the sanitizer sees. */
#if defined(__SANITIZE_ADDRESS__) || defined(__SANITIZE_THREAD__)
enum { TOKENS = 20000 };
#elif defined(__has_feature)
#if __has_feature(address_sanitizer) || __has_feature(thread_sanitizer)
enum { TOKENS = 20000 };
#else
enum { TOKENS = 200000 };
#endif
#else
enum { TOKENS = 200000 };
#endif

/* --- chi-square ---------------------------------------------------------------------------------------- */

/* Upper tail of the chi-square distribution: regularised incomplete gamma Q(k/2, x/2), by series or by
 * continued fraction (Abramowitz and Stegun 6.5.29, 6.5.31). */
static double chi2_tail(double x, double k)
{
    double a = k / 2, z = x / 2, front = exp(a * log(z) - z - lgamma(a));
    if (z <= 0)
        return 1;
    if (z < a + 1) {
        double term = 1 / a, sum = term;
        for (double n = a + 1; term > sum * 1e-15; n++)
            sum += term *= z / n;
        return 1 - front * sum;
    }
    double b = z + 1 - a, c = 1e300, d = 1 / b, h = d;
    for (int i = 1; i < 10000; i++) {
        double an = -i * (i - a), step;
        b += 2;
        d = 1 / (an * d + b);
        c = b + an / c;
        h *= step = c * d;
        if (fabs(step - 1) < 1e-14)
            break;
    }
    return front * h;
}

typedef struct tally { /* of one cell: tokens seen and expected by context */
    int V, contexts;
    long n, seen[MAX_CONTEXTS][MAX_V];
    double want[MAX_CONTEXTS][MAX_V];
    long impossible; /* tokens whose probability was 0 */
} tally;

/* Tokens expected fewer than five times in a context share one class, which joins the last when it is small
 * too. With penalties the probabilities change within a context: then the statistic is smaller than
 * chi-square, never larger. */
static double tally_test(const tally *t, double *ret_x, int *ret_df)
{
    double x = 0;
    int df = 0;
    for (int c = 0; c < t->contexts; c++) {
        double want[MAX_V + 1] = {0}, few = 0;
        long seen[MAX_V + 1] = {0}, few_seen = 0;
        int k = 0;
        for (int v = 0; v < t->V; v++)
            if (t->want[c][v] >= 5) {
                want[k] = t->want[c][v];
                seen[k++] = t->seen[c][v];
            } else {
                few += t->want[c][v];
                few_seen += t->seen[c][v];
            }
        if (few >= 5 || k == 0)
            k++;
        want[k ? k - 1 : 0] += few;
        seen[k ? k - 1 : 0] += few_seen;
        for (int i = 0; i < k && k > 1; i++)
            x += ((double)seen[i] - want[i]) * ((double)seen[i] - want[i]) / want[i];
        df += k > 1 ? k - 1 : 0;
    }
    *ret_x = x;
    *ret_df = df;
    return t->impossible ? 0 : chi2_tail(x, df);
}

static void tally_add(tally *t, int context, int32_t token, const double *p)
{
    t->n++;
    t->seen[context][token]++;
    t->impossible += p[token] <= 0;
    for (int v = 0; v < t->V; v++)
        t->want[context][v] += p[v];
}

/* --- exact probabilities ------------------------------------------------------------------------------- */

/* docs/sampling.md in f64 and by sorting: penalties over a history, temperature, top-k, top-p, min-p. */
static void exact(const float *logits, int V, const ds_req *q, const int32_t *history, int n, double *p)
{
    double z[MAX_V], sum = 0, mass = 0, top;
    int order[MAX_V], in[MAX_V] = {0}, times[MAX_V] = {0}, keep = V;
    for (int i = 0; i < n; i++) {
        in[history[i]] = 1;
        times[history[i]] += i >= q->n_prompt;
    }
    for (int v = 0; v < V; v++) {
        z[v] = (double)logits[v];
        if (in[v])
            z[v] = z[v] > 0 ? z[v] / (double)q->repetition : z[v] * (double)q->repetition;
        if (times[v])
            z[v] -= (double)q->presence + (double)q->frequency * times[v];
        p[v] = 0;
        int at = v;
        for (; at > 0 && z[order[at - 1]] < z[v]; at--)
            order[at] = order[at - 1];
        order[at] = v;
    }
    keep = q->top_k > 0 && q->top_k < keep ? q->top_k : keep;
    for (int i = 0; i < keep; i++)
        sum += p[order[i]] = exp((z[order[i]] - z[order[0]]) / (double)q->temperature);
    for (int i = 0; i < keep && q->top_p < 1; i++)
        if ((mass += p[order[i]]) >= (double)q->top_p * sum)
            keep = i + 1;
    top = p[order[0]];
    while (keep > 1 && p[order[keep - 1]] < (double)q->min_p * top)
        keep--;
    for (int i = keep; i < V; i++)
        p[order[i]] = 0;
    sum = 0;
    for (int v = 0; v < V; v++)
        sum += p[v];
    for (int v = 0; v < V; v++)
        p[v] /= sum;
}

/* --- a cell -------------------------------------------------------------------------------------------- */

typedef struct setting { /* how drafts are scheduled */
    const char *name;
    ds_sched_kind kind;
    double threshold;
    int max_draft, seqs;
    uint64_t base_ns, row_ns, draft_ns;
    int stair;
    int mixed; /* requests of all modes side by side */
    int skips; /* some steps leave the draft pass out */
    int once;  /* a variant: at one temperature only */
} setting;

typedef struct cell {
    const setting *how;
    ds_acceptance rule;
    float temperature, top_p, min_p, repetition, presence, frequency;
    int top_k;
    chain_fault fault;
    float likeness;
    long tokens; /* 0: tokens_of_a_cell */
} cell;

typedef struct text {
    int32_t token[2 + MAX_OUT]; /* prompt of two, then output */
    int n;
    ds_req q;
} text;

typedef struct run {
    const cell *c;
    chain_pair pair;
    tally t;
    text live[SEQS];
    ds_engine *e;
    uint64_t next;
    long want;
    double table[CHAIN_CONTEXTS][CHAIN_V]; /* exact, without penalties */
    ds_engine_stats stats;
} run;

static int penalised(const cell *c)
{
    return c->repetition != 1 || c->presence != 0 || c->frequency != 0;
}

static void submit(run *r, int at)
{
    text *x = &r->live[at];
    ds_err err = {0};
    uint64_t seed = r->next * SEQS + (uint64_t)at;
    static const ds_spec_mode modes[] = {DS_SPEC_AUTO, DS_SPEC_OFF, DS_SPEC_MAX};
    r->next++;
    x->n = 2;
    x->token[0] = (int32_t)(ds_rng_u32(77, DS_RNG_INIT, seed, 0) % CHAIN_V);
    x->token[1] = (int32_t)(ds_rng_u32(77, DS_RNG_INIT, seed, 1) % CHAIN_V);
    x->q = (ds_req){.id = seed,
                    .prompt = x->token,
                    .n_prompt = 2,
                    .max_tokens = 40 + (int)(ds_rng_u32(77, DS_RNG_INIT, seed, 2) % (MAX_OUT - 40)),
                    .temperature = r->c->temperature,
                    .top_p = r->c->top_p,
                    .min_p = r->c->min_p,
                    .top_k = r->c->top_k,
                    .repetition = r->c->repetition,
                    .presence = r->c->presence,
                    .frequency = r->c->frequency,
                    .seed = seed * 0x9E3779B97F4A7C15u + 1,
                    .n_logprobs = -1,
                    .prompt_logprobs = -1,
                    .spec = r->c->how->mixed ? modes[seed % 3] : DS_SPEC_AUTO};
    CHECK_OK(ds_engine_submit(r->e, &x->q, &err), err);
}

static void on_event(void *ctx, const ds_event *ev)
{
    run *r = ctx;
    int at = (int)(ev->id % SEQS);
    text *x = &r->live[at];
    CHECK_MSG(ev->kind != DS_EV_ERROR, "%s", ev->msg);
    for (int i = 0; ev->kind == DS_EV_TOKENS && i < ev->n; i++) {
        int context = x->token[x->n - 2] * CHAIN_V + x->token[x->n - 1];
        double p[CHAIN_V], *exactly = r->table[context];
        if (penalised(r->c))
            exact(r->pair.target[context], CHAIN_V, &x->q, x->token, x->n, exactly = p);
        tally_add(&r->t, context, ev->token[i].token, exactly);
        x->token[x->n++] = ev->token[i].token;
    }
    if (ev->kind == DS_EV_DONE && r->t.n < r->want)
        submit(r, at);
}

static long tokens_of_a_cell(void)
{
    const char *s = getenv("DS_LOSSLESS_TOKENS");
    return s && atol(s) > 0 ? atol(s) : TOKENS;
}

/* Probability of what the cell gave, or more; prints a line. */
static double run_cell(const cell *c)
{
    static run r_;
    run *r = &r_;
    ds_err err = {0};
    ds_backend *b;
    int work = 1, df, seqs = c->how->seqs ? c->how->seqs : SEQS;
    double x;
    memset(r, 0, sizeof *r);
    r->c = c;
    r->t.V = CHAIN_V;
    r->t.contexts = CHAIN_CONTEXTS;
    r->want = c->tokens ? c->tokens : tokens_of_a_cell();
    CHECK_OK(ds_backend_open("cpu", 1, NULL, &b, &err), err);
    chain_init(&r->pair, b, BLOCK, c->likeness, SEQS, ROWS, 5);
    r->pair.fault = c->fault;
    r->pair.base_ns = c->how->base_ns;
    r->pair.row_ns = c->how->row_ns;
    r->pair.stair = c->how->stair;
    r->pair.draft_ns = c->how->draft_ns;
    ds_engine_conf conf = {.max_seqs = seqs,
                           .max_step_rows = ROWS,
                           .max_logit_rows = ROWS,
                           .max_queue = SEQS,
                           .kv_pages = SEQS * (2 + MAX_OUT + 16) / 16,
                           .page_tokens = 16,
                           .schedule = c->how->kind,
                           .threshold = c->how->threshold,
                           .max_draft = c->how->max_draft,
                           .acceptance = c->rule,
                           .clock = {chain_clock, &r->pair}};
    ds_target t = chain_target(&r->pair);
    ds_drafter d = chain_drafter(&r->pair);
    CHECK_OK(ds_engine_create_on(&conf, &t, &d, on_event, r, &r->e, &err), err);
    r->pair.corrupt = 0; /* the profile runs on empty pages */
    ds_req plain = {.temperature = c->temperature,
                    .top_p = c->top_p,
                    .min_p = c->min_p,
                    .top_k = c->top_k,
                    .repetition = 1};
    for (int i = 0; i < CHAIN_CONTEXTS; i++)
        exact(r->pair.target[i], CHAIN_V, &plain, NULL, 0, r->table[i]);
    for (int i = 0; i < seqs; i++)
        submit(r, i);
    while (work)
        CHECK_OK(ds_engine_step(r->e, &work, &err), err);
    ds_engine_get_stats(r->e, &r->stats);
    double p = tally_test(&r->t, &x, &df);
    const ds_spec_stats *s = &r->stats.spec;
    printf("  %-9s %-17s T %.1f: p %.4f (chi2 %.0f, %d df, %ld tokens; verified %.2f of %.2f a round, "
           "accepted %.2f)\n",
           c->rule == DS_ACCEPT_COUPLED ? "coupled" : "rejection", c->how->name, (double)c->temperature, p, x,
           df, r->t.n, (double)s->verified / (double)(s->rounds + !s->rounds),
           (double)s->drafted / (double)(s->rounds + !s->rounds),
           (double)s->accepted / (double)(s->verified + !s->verified));
    CHECK_EQ(r->pair.corrupt, 0);
    CHECK(s->accepted > 0 && s->accepted < s->verified);
    CHECK(!c->how->skips || s->skips > 100);
    ds_engine_destroy(r->e);
    chain_fini(&r->pair);
    b->destroy(b);
    return p;
}

/* Costs of a target pass, in ns of the pair's own clock: base, each row, rows paid for at once; and of a
 * draft pass. */
#define CHEAP .base_ns = 60000, .row_ns = 2500, .stair = 8, .draft_ns = 5000
static const setting HOW[] = {
    {.name = "fixed", .kind = DS_SCHED_FIXED, CHEAP},
    {.name = "fixed, 2", .kind = DS_SCHED_FIXED, .max_draft = 2, .once = 1, CHEAP},
    {.name = "threshold", .kind = DS_SCHED_THRESHOLD, .threshold = 0.5, CHEAP},
    {.name = "early stop", .kind = DS_SCHED_EARLY_STOP, CHEAP},
    {.name = "early stop, skips",
     .kind = DS_SCHED_EARLY_STOP,
     .base_ns = 60000,
     .row_ns = 5000,
     .stair = 8,
     .draft_ns = 60000,
     .skips = 1},
    {.name = "stale", .kind = DS_SCHED_STALE, CHEAP},
    {.name = "stale, alone",
     .kind = DS_SCHED_STALE,
     .base_ns = 20000,
     .row_ns = 20000,
     .stair = 1,
     .draft_ns = 100,
     .seqs = 1,
     .once = 1},
    {.name = "mixed", .kind = DS_SCHED_EARLY_STOP, .mixed = 1, .once = 1, CHEAP},
    {.name = "global", .kind = DS_SCHED_GLOBAL, CHEAP}, /* the last: refused under `rejection` */
};
enum { N_HOW = sizeof HOW / sizeof *HOW, FIXED = 0, EARLY_STOP = 3, CELLS = 6 * N_HOW + 5 };
static const double LIMIT = 0.001 / CELLS;

static void check_rule(ds_acceptance rule)
{
    static const float temperature[] = {0.3f, 1.0f, 1.5f};
    cell c = {.rule = rule, .top_p = 0.9f, .repetition = 1, .likeness = 0.6f};
    for (int h = 0; h < N_HOW - (rule == DS_ACCEPT_REJECTION); h++)
        for (int t = HOW[h].once; t < (HOW[h].once ? 2 : 3); t++) {
            c.how = &HOW[h];
            c.temperature = temperature[t];
            CHECK(run_cell(&c) > LIMIT);
        }
    c.how = &HOW[EARLY_STOP];
    c.temperature = 1;
    c.top_p = 1;
    CHECK(run_cell(&c) > LIMIT);
    c.top_k = 5;
    c.min_p = 0.08f;
    c.top_p = 0.95f;
    CHECK(run_cell(&c) > LIMIT);
    c.top_k = 0;
    c.min_p = 0;
    c.repetition = 1.2f;
    c.presence = 0.3f;
    c.frequency = 0.02f;
    CHECK(run_cell(&c) > LIMIT);
}

DS_TEST(coupled_draws_from_the_target)
{
    check_rule(DS_ACCEPT_COUPLED);
}

DS_TEST(rejection_draws_from_the_target)
{
    check_rule(DS_ACCEPT_REJECTION);
}

DS_TEST(planted_faults_are_caught)
{
    static const chain_fault planted[] = {CHAIN_GREEDY_ACCEPT, CHAIN_RESIDUAL_P, CHAIN_Q_LIES,
                                          CHAIN_SHARED_NOISE};
    for (size_t i = 0; i < sizeof planted / sizeof *planted; i++) {
        cell c = {.how = &HOW[FIXED],
                  .rule = DS_ACCEPT_REJECTION,
                  .temperature = 1,
                  .top_p = 1,
                  .repetition = 1,
                  .likeness = 0.6f,
                  .fault = planted[i],
                  .tokens = planted[i] == CHAIN_SHARED_NOISE ? 200000 : 20000};
        CHECK_MSG(run_cell(&c) < LIMIT, "fault %d is not seen", (int)planted[i]);
    }
}

/* A position drafted twice: slot 2 of a round that verifies nothing, then slot 1 of the next, whose number of
 * drafts comes from the first round's confidences. p = (.7, .3), q = (.5, .5), speeds 1, .5, .45; c_1 is .8,
 * and c_3 of the first round is .9 after A and 0 after B. With noise keyed by the position alone the second
 * draft repeats the first, and the number knows the token it judges. Returns the share of A among the tokens
 * of that position. */
static double appendix_cost(void *ctx, int rows, int drafted)
{
    (void)ctx, (void)drafted;
    return rows == 1 ? 1.0 : rows == 2 ? 1 / .5 : 1 / .45;
}

static double share_of_a(int by_position)
{
    static const float p[4] = {.7f, .3f, .7f, .3f}, q[4] = {.5f, .5f, .5f, .5f}, now[2] = {.8f, .72f};
    enum { TRIALS = 200000 };
    int a = 0;
    for (uint32_t pos = 0; pos < TRIALS; pos++) {
        uint32_t first = ds_philox(1, 0, pos, 0, ds_rng_draft_stream(by_position ? 0 : 1)).v[0],
                 again = ds_philox(1, 0, pos, 0, ds_rng_draft_stream(0)).v[0];
        float stale[2] = {.8f, ds_rng_unit(first) < .5f ? .72f : 0.0f},
              u = ds_rng_unit(ds_rng_u32(1, DS_RNG_ACCEPT, pos, 0));
        ds_spec_req req = {.survival = now, .n = 2, .stale = stale};
        ds_spec_cand cand[2], tmp[2];
        ds_spec_choice c = {.kind = DS_SCHED_STALE,
                            .req = &req,
                            .R = 1,
                            .room = 2,
                            .cost = appendix_cost,
                            .cand = cand,
                            .tmp = tmp};
        int len;
        int32_t x = ds_rng_unit(again) < .5f ? 0 : 1, y;
        ds_spec_choose(&c, &len);
        int n =
            accept_ref_reject(p, q, &x, len > 0, 2, &u, ds_rng_unit(ds_rng_u32(1, DS_RNG_FINAL, pos, 0)), &y);
        a += (n ? x : y) == 0;
    }
    return (double)a / TRIALS;
}

DS_TEST(drafts_of_a_position_have_fresh_noise)
{
    CHECK(fabs(share_of_a(0) - .7) < .005); /* 5 sigma */
    CHECK(fabs(share_of_a(1) - .85) < .005);
}

/* --- a real pair --------------------------------------------------------------------------------------- */

/* The tiny target and its draft through the real model code. Exact probabilities come from a second pass of
 * the target over each whole text, in pages of its own. */
typedef struct real {
    char dir[64], target_dir[80], draft_dir[80];
    ds_backend *b;
    ds_model *model;
    ds_draft *draft;
    ds_kv_pool kv;
    tally t;
    text live[SEQS];
    int done[SEQS];
} real;

static void real_event(void *ctx, const ds_event *ev)
{
    real *r = ctx;
    text *x = &r->live[ev->id % SEQS];
    CHECK_MSG(ev->kind != DS_EV_ERROR, "%s", ev->msg);
    for (int i = 0; ev->kind == DS_EV_TOKENS && i < ev->n; i++)
        x->token[x->n++] = ev->token[i].token;
    r->done[ev->id % SEQS] = ev->kind == DS_EV_DONE;
}

static void real_score(real *r, const text *x)
{
    int32_t pos[ROWS], slot[ROWS] = {0}, all[ROWS], pages[16];
    ds_err err = {0};
    for (int i = 0; i < 16; i++)
        pages[i] = i;
    for (int at = 0, n; at < x->n - 1; at += n) {
        n = x->n - 1 - at < ROWS ? x->n - 1 - at : ROWS;
        for (int i = 0; i < n; i++) {
            pos[i] = at + i;
            all[i] = i;
        }
        ds_step_args a = {.rows = {n, x->token + at, pos, slot, pages, 16, 16}, .logit_row = all, .R = n};
        CHECK_OK(ds_model_forward(r->model, &r->kv, &a, &err), err);
        for (int i = 0; i < n; i++) {
            double p[TINY_V];
            if (at + i + 1 < x->q.n_prompt)
                continue;
            exact(a.logits + (size_t)i * TINY_V, TINY_V, &x->q, NULL, 0, p);
            tally_add(&r->t, x->token[at + i], x->token[at + i + 1], p);
        }
    }
}

static void real_submit(real *r, ds_engine *e, uint64_t id, float temperature, float top_p)
{
    text *x = &r->live[id % SEQS];
    ds_err err = {0};
    x->n = 2;
    x->token[0] = (int32_t)(ds_rng_u32(78, DS_RNG_INIT, id, 0) % TINY_V);
    x->token[1] = (int32_t)(ds_rng_u32(78, DS_RNG_INIT, id, 1) % TINY_V);
    x->q = (ds_req){.id = id,
                    .prompt = x->token,
                    .n_prompt = 2,
                    .max_tokens = MAX_OUT,
                    .temperature = temperature,
                    .top_p = top_p,
                    .repetition = 1,
                    .seed = id + 1,
                    .n_logprobs = -1,
                    .prompt_logprobs = -1};
    CHECK_OK(ds_engine_submit(e, &x->q, &err), err);
}

static double run_real(real *r, ds_acceptance rule, float temperature, float top_p)
{
    ds_engine_conf conf = {.max_seqs = SEQS,
                           .max_step_rows = ROWS,
                           .max_logit_rows = ROWS,
                           .max_queue = SEQS,
                           .kv_pages = SEQS * 17,
                           .page_tokens = 16,
                           .schedule = DS_SCHED_FIXED,
                           .acceptance = rule,
                           .clock = ds_clock_system()};
    ds_engine *e;
    ds_engine_stats s;
    ds_err err = {0};
    uint64_t next = 0;
    int df;
    double x;
    memset(&r->t, 0, sizeof r->t);
    memset(r->done, 0, sizeof r->done);
    r->t.V = r->t.contexts = TINY_V;
    CHECK_OK(ds_engine_create_drafted(&conf, r->model, r->draft, r->b, real_event, r, &e, &err), err);
    for (; next < SEQS; next++)
        real_submit(r, e, next, temperature, top_p);
    for (int work = 1; work;) {
        CHECK_OK(ds_engine_step(e, &work, &err), err);
        for (int i = 0; i < SEQS; i++)
            if (r->done[i]) {
                r->done[i] = 0;
                real_score(r, &r->live[i]);
                if (r->t.n < tokens_of_a_cell() / 6) { /* 20 times the work a token */
                    real_submit(r, e, next / SEQS * SEQS + (uint64_t)i, temperature, top_p);
                    next += SEQS;
                }
            }
    }
    ds_engine_get_stats(e, &s);
    double p = tally_test(&r->t, &x, &df);
    printf("  %-9s real pair, T %.1f: p %.4f (chi2 %.0f, %d df, %ld tokens; %.2f of the drafts accepted)\n",
           rule == DS_ACCEPT_COUPLED ? "coupled" : "rejection", (double)temperature, p, x, df, r->t.n,
           (double)s.spec.accepted / (double)s.spec.verified);
    CHECK(s.spec.accepted > 0 && s.spec.accepted < s.spec.verified);
    ds_engine_destroy(e);
    return p;
}

DS_TEST(a_real_pair_draws_from_the_target)
{
    static real r;
    ds_err err = {0};
    char cmd[96];
    static const int taps[] = {0, 2};
    ds_model_opts opts = {.max_rows = ROWS, .max_logit_rows = ROWS, .taps = taps, .n_taps = 2};
    memset(&r, 0, sizeof r);
    snprintf(r.dir, sizeof r.dir, "%s", "/tmp/dspark-lossless-XXXXXX");
    CHECK(mkdtemp(r.dir) != NULL);
    snprintf(r.target_dir, sizeof r.target_dir, "%s/target", r.dir);
    snprintf(r.draft_dir, sizeof r.draft_dir, "%s/draft", r.dir);
    tiny_write_target(r.target_dir);
    tiny_write_draft(r.draft_dir, "vanilla", "");
    CHECK_OK(ds_backend_open("cpu", 1, NULL, &r.b, &err), err);
    CHECK_OK(ds_model_open(r.target_dir, &opts, r.b, &r.model, &err), err);
    CHECK_OK(ds_draft_open(r.draft_dir, r.model, ROWS, SEQS, r.b, &r.draft, &err), err);
    CHECK_OK(ds_model_kv_alloc(r.model, 16, 16, &r.kv, &err), err);
    CHECK(run_real(&r, DS_ACCEPT_COUPLED, 1.0f, 0.9f) > LIMIT);
    CHECK(run_real(&r, DS_ACCEPT_REJECTION, 1.0f, 0.9f) > LIMIT);
    ds_model_kv_free(r.model, &r.kv);
    ds_draft_close(r.draft);
    ds_model_close(r.model);
    r.b->destroy(r.b);
    snprintf(cmd, sizeof cmd, "rm -rf '%s'", r.dir);
    CHECK_EQ(system(cmd), 0);
}

/* The statistic itself: tabulated points. */
DS_TEST(chi_square_tail)
{
    CHECK(fabs(chi2_tail(22.458, 6) - 0.001) < 1e-6);
    CHECK(fabs(chi2_tail(5.348, 6) - 0.5) < 1e-4);
    CHECK(fabs(chi2_tail(553.127, 448) - 0.000488) < 2e-4);
    CHECK(chi2_tail(1, 100) > 0.999999);
}
