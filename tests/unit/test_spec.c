/* Scheduler policy: published vectors, the paper's counterexample for every kind, ranking, whom to draft for.
 * And the reference rules of acceptance, by counting. */
#include "worker/spec.h"

#include "base/rng.h"
#include "tests/lib/accept_ref.h"
#include "tests/lib/test.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

static const float CONF[3][7] = {{.95f, .9f, .9f, .8f, .7f, .6f, .5f},
                                 {.8f, .6f, .5f, .5f, .4f, .3f, .2f},
                                 {.99f, .98f, .97f, .96f, .95f, .94f, .93f}};
static float g_a[3][7];
static ds_spec_cand g_cand[21], g_tmp[21];

static int ranked(void)
{
    ds_spec_req req[3];
    for (int r = 0; r < 3; r++) {
        float a = 1;
        for (int j = 0; j < 7; j++)
            g_a[r][j] = a *= CONF[r][j];
        req[r] = (ds_spec_req){.survival = g_a[r], .n = 7};
    }
    return ds_spec_rank(req, 3, g_cand, g_tmp);
}

static double smooth(void *ctx, int rows, int drafted)
{
    (void)ctx, (void)drafted;
    return (1.0 + .05 * rows) / 100.0;
}

static double stair(void *ctx, int rows, int drafted)
{
    (void)ctx, (void)drafted;
    return 1.0 / (rows <= 4 ? 100 : rows <= 8 ? 92 : rows <= 16 ? 80 : rows <= 24 ? 66 : 55);
}

DS_TEST(algorithm_1_vectors)
{
    int len[3];
    double theta;
    CHECK_EQ(ranked(), 21);
    CHECK_EQ(ds_spec_early_stop(g_cand, 21, 3, 0, smooth, NULL, &theta), 14);
    CHECK_EQ(ds_spec_top_k(g_cand, 21, 3, 14, len), 14);
    CHECK(len[0] == 5 && len[1] == 2 && len[2] == 7);
    CHECK(fabs(theta - 763.3042931) < 1e-3);
    CHECK_EQ(ds_spec_early_stop(g_cand, 21, 3, 0, stair, NULL, &theta), 5);
    CHECK_EQ(ds_spec_top_k(g_cand, 21, 3, 5, len), 5);
    CHECK(len[0] == 1 && len[1] == 0 && len[2] == 4);
    CHECK(fabs(theta - 713.4364701) < 1e-3);
}

DS_TEST(global_budget_vector)
{
    int len[3];
    double theta;
    ranked();
    CHECK_EQ(ds_spec_best_budget(g_cand, 21, 3, 0, stair, NULL, &theta), 13);
    CHECK(fabs(theta - 1095.2167538) < 1e-3);
    CHECK_EQ(ds_spec_top_k(g_cand, 21, 3, 13, len), 13);
    CHECK(len[0] == 4 && len[1] == 2 && len[2] == 7);
    CHECK_EQ(ds_spec_top_k(g_cand, 21, 3, 99, len), 21);
}

/* Exact ties (saturated confidences) must keep every prefix of the list a prefix of each row. */
DS_TEST(ties_keep_prefixes)
{
    float a[4] = {1, 1, 1, 1};
    ds_spec_req req[3] = {{.survival = a, .n = 4}, {.survival = a, .n = 3}, {.survival = a, .n = 4}};
    ds_spec_cand cand[11], tmp[11];
    int n = ds_spec_rank(req, 3, cand, tmp), next[3] = {1, 1, 1};
    CHECK_EQ(n, 11);
    for (int i = 0; i < n; i++)
        CHECK_EQ(cand[i].pos, next[cand[i].req]++);
}

DS_TEST(cost_table_between_and_beyond)
{
    static const int rows[] = {1, 8, 16};
    static const double sec[] = {1.0, 1.7, 3.3};
    ds_cost_table t = {rows, sec, 3};
    CHECK(fabs(ds_cost_seconds(&t, 1, 0) - 1.0) < 1e-12);
    CHECK(fabs(ds_cost_seconds(&t, 4, 0) - 1.3) < 1e-12);
    CHECK(fabs(ds_cost_seconds(&t, 4, 1) - 1.7) < 1e-12);
    CHECK(fabs(ds_cost_seconds(&t, 16, 0) - 3.3) < 1e-12);
    CHECK(fabs(ds_cost_seconds(&t, 32, 0) - 6.5) < 1e-12);
}

/* The appendix's counterexample: p = (.7, .3), q = (.5, .5), SPS 1, .5, .45; c_1 is .8, c_2 is .9 after A and
 * 0 after B. */
static double appendix(void *ctx, int rows, int drafted)
{
    (void)ctx, (void)drafted;
    return rows == 1 ? 1.0 : rows == 2 ? 1 / .5 : 1 / .45;
}

/* share_of_a: how often the first emitted token is A when a scheduler chooses the length. Rounds follow each
 * other: what was drafted two rounds ago is stale, what is drafted now is judged. */
static double share_of_a(ds_sched_kind kind, double threshold)
{
    static const float p[4] = {.7f, .3f, .7f, .3f}, q[4] = {.5f, .5f, .5f, .5f};
    enum { TRIALS = 200000 };
    int a_first = 0;
    float past[2][2] = {{.8f, .4f}, {.8f, .4f}};
    for (uint32_t i = 0; i < TRIALS; i++) {
        int32_t x[2] = {ds_rng_unit(ds_rng_u32(1, DS_RNG_DRAFT, i, 0)) < .5f ? 0 : 1, 0};
        float a[2] = {.8f, x[0] == 0 ? .72f : 0.0f};
        ds_spec_req req = {.survival = a, .n = 2, .stale = past[1]};
        ds_spec_cand cand[2], tmp[2];
        ds_spec_choice c = {.kind = kind,
                            .threshold = threshold,
                            .req = &req,
                            .R = 1,
                            .room = 2,
                            .cost = appendix,
                            .cand = cand,
                            .tmp = tmp};
        int len;
        ds_spec_choose(&c, &len);
        memcpy(past[1], past[0], sizeof past[1]);
        memcpy(past[0], a, sizeof past[0]);
        if (len > 1)
            len = 1; /* the second slot cannot change the first token */
        float u[2] = {ds_rng_unit(ds_rng_u32(1, DS_RNG_ACCEPT, i, 0)), .5f};
        int32_t y;
        int n_ok = accept_ref_reject(p, q, x, len, 2, u, ds_rng_unit(ds_rng_u32(1, DS_RNG_FINAL, i, 0)), &y);
        a_first += (n_ok > 0 ? x[0] : y) == 0;
    }
    return (double)a_first / TRIALS;
}

DS_TEST(schedulers_do_not_anticipate)
{
    CHECK(fabs(share_of_a(DS_SCHED_EARLY_STOP, 0) - .7) < .005); /* 5 sigma at 200,000 trials */
    CHECK(fabs(share_of_a(DS_SCHED_STALE, 0) - .7) < .005);
    CHECK(fabs(share_of_a(DS_SCHED_THRESHOLD, .85) - .7) < .005);
    CHECK(fabs(share_of_a(DS_SCHED_FIXED, 0) - .7) < .005);
    CHECK(fabs(share_of_a(DS_SCHED_GLOBAL, 0) - .85) < .005); /* the bias of the appendix: the test sees it */
}

/* Lengths of one step of three requests; costs as given. */
static int choose(ds_sched_kind kind, double threshold, ds_cost_fn cost, int room, const float (*stale)[7],
                  int all, int *len)
{
    static ds_spec_cand cand[21], tmp[21];
    ds_spec_req req[3];
    ranked();
    for (int r = 0; r < 3; r++)
        req[r] =
            (ds_spec_req){.survival = g_a[r], .n = 7, .stale = stale ? stale[r] : g_a[r], .all = r == all};
    ds_spec_choice c = {kind, threshold, req, 3, 0, room, cost, NULL, cand, tmp};
    return ds_spec_choose(&c, len);
}

DS_TEST(each_kind_chooses_by_its_own_rule)
{
    int len[3];
    CHECK_EQ(choose(DS_SCHED_EARLY_STOP, 0, smooth, 99, NULL, -1, len), 14);
    CHECK(len[0] == 5 && len[1] == 2 && len[2] == 7);
    CHECK_EQ(choose(DS_SCHED_GLOBAL, 0, stair, 99, NULL, -1, len), 13);
    CHECK(len[0] == 4 && len[1] == 2 && len[2] == 7);
    CHECK_EQ(choose(DS_SCHED_FIXED, 0, smooth, 99, NULL, -1, len), 21);
    CHECK_EQ(choose(DS_SCHED_THRESHOLD, .55, smooth, 99, NULL, -1, len), 6 + 2 + 7);
    CHECK(len[0] == 6 && len[1] == 2 && len[2] == 7); /* .5 and .5 are below, each alone */
    CHECK_EQ(choose(DS_SCHED_THRESHOLD, 0, smooth, 99, NULL, -1, len), 21);
    CHECK_EQ(choose(DS_SCHED_GLOBAL, 0, NULL, 99, NULL, -1, len), 21); /* unknown costs: everything pays */
    CHECK_EQ(choose(DS_SCHED_FIXED, 0, smooth, 8, NULL, -1, len), 8);  /* the best eight */
    CHECK(len[0] == 2 && len[1] == 0 && len[2] == 6);
    CHECK_EQ(choose(DS_SCHED_EARLY_STOP, 0, stair, 99, NULL, 1, len), 7); /* who insists comes first */
    CHECK_EQ(len[1], 7);
}

/* STALE: how many comes from the old confidences, which from the new. */
DS_TEST(stale_budget_ranks_by_what_is_new)
{
    static const float flat[3][7] = {{.1f}, {.1f}, {.1f}};
    int len[3];
    CHECK_EQ(choose(DS_SCHED_STALE, 0, stair, 99, NULL, -1, len), 13);
    CHECK_EQ(choose(DS_SCHED_STALE, 0, smooth, 99, flat, -1, len), 0);
    float old[3][7];
    memcpy(old, g_a, sizeof old);
    memset(old[2], 0, sizeof old[2]); /* the third request looked hopeless then */
    int K = choose(DS_SCHED_STALE, 0, stair, 99, (const float(*)[7])old, -1, len);
    CHECK(K > 7);
    CHECK_EQ(len[2], 7); /* and is the best now */
}

/* Radix against a plain sort, with many exact ties. */
static int slow_order(const void *x, const void *y)
{
    const ds_spec_cand *l = x, *r = y;
    if (l->a != r->a)
        return l->a > r->a ? -1 : 1;
    return l->pos != r->pos ? l->pos - r->pos : l->req - r->req;
}

DS_TEST(ranking_equals_a_plain_sort)
{
    enum { REQS = 300, SLOTS = 8 };
    static float a[REQS][SLOTS];
    static ds_spec_req req[REQS];
    static ds_spec_cand cand[REQS * SLOTS], tmp[REQS * SLOTS], want[REQS * SLOTS];
    for (int trial = 0; trial < 20; trial++) {
        for (int r = 0; r < REQS; r++) {
            float x = 1;
            for (int k = 0; k < SLOTS; k++) {
                uint32_t u = ds_rng_u32((uint64_t)trial, DS_RNG_INIT, (uint64_t)r, (uint32_t)k);
                a[r][k] = x *= u % 3 ? 1.0f : ds_rng_unit(u) * (trial % 2 ? 1e-5f : 1.0f);
            }
            req[r] = (ds_spec_req){.survival = a[r], .n = r % (SLOTS + 1)};
        }
        int n = ds_spec_rank(req, REQS, cand, tmp);
        memcpy(want, cand, sizeof want);
        qsort(want, (size_t)n, sizeof *want, slow_order);
        CHECK(n > REQS * 3 && memcmp(want, cand, (size_t)n * sizeof *want) == 0);
    }
}

/* A draft pass costs .3 and .05 for each request, a target pass 1 and .02 a row. */
static double draft_costs(void *ctx, int rows, int drafted)
{
    return 1 + *(double *)ctx * rows + (drafted ? .3 + .05 * drafted : 0);
}

DS_TEST(drafting_is_left_out_where_it_cannot_pay)
{
    float good[3] = {.9f, .8f, .7f}, poor[3] = {.2f, .04f, .01f}, bad[3] = {.01f, 0, 0};
    ds_spec_req req[3] = {{.survival = good, .n = 3}, {.survival = poor, .n = 3}, {.survival = bad, .n = 3}};
    ds_spec_cand cand[9], tmp[9];
    double per_row = .02;
    ds_spec_choice c = {.req = req, .R = 3, .room = 9, .cost = draft_costs, .ctx = &per_row};
    c.cand = cand;
    c.tmp = tmp;
    int want[3];
    CHECK_EQ(ds_spec_worth(&c, want), 1); /* the pass is there for the first; a second seat costs .05 */
    CHECK(want[0] && !want[1] && !want[2]);
    per_row = 1; /* rows cost what they bring */
    CHECK_EQ(ds_spec_worth(&c, want), 0);
    req[2].all = 1; /* who insists is drafted for */
    CHECK(ds_spec_worth(&c, want) >= 1 && want[2]);
    c.cost = NULL; /* unknown costs */
    req[2].n = 0;
    CHECK_EQ(ds_spec_worth(&c, want), 2);
}

enum { V = 7, ROUNDS = 200000 };
static const double P1[V] = {.30, .22, .18, .12, .10, .06, .02}, Q1[V] = {.10, .30, .05, .25, .05, .05, .20};

static double chi2(const long *count, const double *p, long n)
{
    double x = 0;
    for (int v = 0; v < V; v++)
        x += (count[v] - p[v] * n) * (count[v] - p[v] * n) / (p[v] * n);
    return x; /* 6 degrees of freedom: p < 0.001 above 22.46 */
}

static double reject_chi2(int wrong)
{
    float p[2 * V], q[V], u;
    long count[V] = {0};
    for (int v = 0; v < V; v++)
        p[v] = p[V + v] = (float)P1[v], q[v] = (float)Q1[v];
    for (uint32_t i = 0; i < ROUNDS; i++) {
        double r = (double)ds_rng_unit(ds_rng_u32(9, DS_RNG_DRAFT, i, 0)), s = 0;
        int32_t x = 0, y;
        while (x < V - 1 && (s += Q1[x]) <= r)
            x++;
        u = wrong ? 0.5f : ds_rng_unit(ds_rng_u32(9, DS_RNG_ACCEPT, i, 0));
        int n = accept_ref_reject(p, q, &x, 1, V, &u, ds_rng_unit(ds_rng_u32(9, DS_RNG_FINAL, i, 0)), &y);
        count[n ? x : y]++;
    }
    return chi2(count, P1, ROUNDS);
}

DS_TEST(rejection_is_lossless)
{
    CHECK(reject_chi2(0) < 22.46);
    CHECK(reject_chi2(1) > 100); /* a wrong acceptance rule is caught */
}

static int32_t gumbel_draw(const double *p, uint64_t seed, uint64_t pos, ds_rng_purpose purpose)
{
    int32_t best = 0;
    double best_x = -INFINITY;
    for (int v = 0; v < V; v++) {
        double x = log(p[v]) + (double)ds_rng_gumbel(ds_rng_u32(seed, purpose, pos, (uint32_t)v));
        if (x > best_x) {
            best_x = x;
            best = v;
        }
    }
    return best;
}

/* Coupled: the emitted token is the target's own draw, so it equals plain decoding, and acceptance beats
 * chance. */
DS_TEST(coupled_is_lossless_and_equals_plain)
{
    long count[V] = {0}, accepted = 0;
    for (uint32_t i = 0; i < ROUNDS; i++) {
        int32_t x = gumbel_draw(Q1, 5, i, DS_RNG_TOKEN);
        int32_t y[2] = {gumbel_draw(P1, 5, i, DS_RNG_TOKEN), 0};
        int n = accept_ref_couple(&x, y, 1);
        CHECK_EQ(n ? x : y[0], y[0]);
        accepted += n;
        count[y[0]]++;
    }
    CHECK(chi2(count, P1, ROUNDS) < 22.46);
    double want = 0; /* P(x = y = v) = 1 / sum_u max(p_u/p_v, q_u/q_v) */
    for (int v = 0; v < V; v++) {
        double s = 0;
        for (int w = 0; w < V; w++)
            s += fmax(P1[w] / P1[v], Q1[w] / Q1[v]);
        want += 1 / s;
    }
    CHECK(fabs((double)accepted / ROUNDS - want) < 0.006);
}

DS_TEST(reject_edges)
{
    float p[2] = {0, 1}, q[2] = {1, 0}, u = 1e-7f;
    int32_t x = 0, y = -1;
    CHECK_EQ(accept_ref_reject(p, q, &x, 1, 2, &u, .999999f, &y), 0); /* p(x) = 0 is never accepted */
    CHECK_EQ(y, 1);
    CHECK_EQ(accept_ref_reject(p, q, &x, 0, 2, &u, .5f, &y), 0); /* no drafts: a plain draw */
    CHECK_EQ(y, 1);
}
