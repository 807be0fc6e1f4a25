/* Scheduler policy and acceptance rules: published vectors, the paper's counterexample, and losslessness by
 * counting. */
#include "worker/spec.h"

#include "base/rng.h"
#include "tests/lib/test.h"
#include "worker/calib.h"

#include <math.h>
#include <string.h>

static const float CONF[3][7] = {{.95f, .9f, .9f, .8f, .7f, .6f, .5f},
                                 {.8f, .6f, .5f, .5f, .4f, .3f, .2f},
                                 {.99f, .98f, .97f, .96f, .95f, .94f, .93f}};
static float g_a[3][7];
static ds_spec_cand g_cand[21];

static int ranked(void)
{
    ds_spec_req req[3];
    for (int r = 0; r < 3; r++) {
        float a = 1;
        for (int j = 0; j < 7; j++)
            g_a[r][j] = a *= CONF[r][j];
        req[r] = (ds_spec_req){g_a[r], 7};
    }
    return ds_spec_rank(req, 3, g_cand);
}

static double smooth(void *ctx, int rows)
{
    (void)ctx;
    return 100.0 / (1.0 + .05 * rows);
}

static double stair(void *ctx, int rows)
{
    (void)ctx;
    return rows <= 4 ? 100 : rows <= 8 ? 92 : rows <= 16 ? 80 : rows <= 24 ? 66 : 55;
}

DS_TEST(algorithm_1_vectors)
{
    int len[3];
    double theta;
    CHECK_EQ(ranked(), 21);
    CHECK_EQ(ds_spec_early_stop(g_cand, 21, 3, 0, smooth, NULL, len, &theta), 14);
    CHECK(len[0] == 5 && len[1] == 2 && len[2] == 7);
    CHECK(fabs(theta - 763.3042931) < 1e-3);
    CHECK_EQ(ds_spec_early_stop(g_cand, 21, 3, 0, stair, NULL, len, &theta), 5);
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
    ds_spec_req req[3] = {{a, 4}, {a, 3}, {a, 4}};
    ds_spec_cand cand[11];
    int n = ds_spec_rank(req, 3, cand), next[3] = {1, 1, 1};
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

/* The appendix's counterexample: p = (.7, .3), q = (.5, .5), SPS 1, .5, .45; c_2 is .9 after A and 0 after B.
 */
static double appendix_sps(void *ctx, int rows)
{
    (void)ctx;
    return rows == 1 ? 1.0 : rows == 2 ? .5 : .45;
}

/* share_of_a: how often the first emitted token is A when lengths come from early stop or from the global
 * search. */
static double share_of_a(int global)
{
    static const float p[4] = {.7f, .3f, .7f, .3f}, q[4] = {.5f, .5f, .5f, .5f};
    enum { TRIALS = 200000 };
    int a_first = 0;
    for (uint32_t i = 0; i < TRIALS; i++) {
        int32_t x[2] = {ds_rng_unit(ds_rng_u32(1, DS_RNG_DRAFT, i, 0)) < .5f ? 0 : 1, 0};
        float surv[2] = {.8f, x[0] == 0 ? .72f : 0.0f};
        ds_spec_req req = {surv, 2};
        ds_spec_cand cand[2];
        double theta;
        int len, n = ds_spec_rank(&req, 1, cand);
        if (global)
            ds_spec_top_k(cand, n, 1, ds_spec_best_budget(cand, n, 1, 0, appendix_sps, NULL, &theta), &len);
        else
            ds_spec_early_stop(cand, n, 1, 0, appendix_sps, NULL, &len, &theta);
        if (len > 1)
            len = 1; /* the second slot cannot change the first token */
        float u[2] = {ds_rng_unit(ds_rng_u32(1, DS_RNG_ACCEPT, i, 0)), .5f};
        int32_t y;
        int n_ok = ds_spec_reject(p, q, x, len, 2, u, ds_rng_unit(ds_rng_u32(1, DS_RNG_FINAL, i, 0)), &y);
        a_first += (n_ok > 0 ? x[0] : y) == 0;
    }
    return (double)a_first / TRIALS;
}

DS_TEST(early_stop_does_not_anticipate)
{
    CHECK(fabs(share_of_a(0) - .7) < .005);  /* 5 sigma at 200,000 trials */
    CHECK(fabs(share_of_a(1) - .85) < .005); /* the bias the appendix derives: the test can see it */
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
        int n = ds_spec_reject(p, q, &x, 1, V, &u, ds_rng_unit(ds_rng_u32(9, DS_RNG_FINAL, i, 0)), &y);
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
        int n = ds_spec_couple(&x, y, 1);
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
    CHECK_EQ(ds_spec_reject(p, q, &x, 1, 2, &u, .999999f, &y), 0); /* p(x) = 0 is never accepted */
    CHECK_EQ(y, 1);
    CHECK_EQ(ds_spec_reject(p, q, &x, 0, 2, &u, .5f, &y), 0); /* no drafts: a plain draw */
    CHECK_EQ(y, 1);
}
