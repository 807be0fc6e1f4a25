#include "worker/spec.h"

#include <string.h>

double ds_cost_seconds(const ds_cost_table *t, int rows, int staircase)
{
    int hi = 0;
    while (hi < t->n && t->rows[hi] < rows)
        hi++;
    if (hi < t->n && (staircase || t->rows[hi] == rows || hi == 0))
        return t->seconds[hi];
    if (t->n == 1)
        return t->seconds[0];
    if (hi == t->n)
        hi = t->n - 1; /* beyond the table: the last slope */
    double slope = (t->seconds[hi] - t->seconds[hi - 1]) / (t->rows[hi] - t->rows[hi - 1]);
    return t->seconds[hi - 1] + slope * (rows - t->rows[hi - 1]);
}

/* ---- ranking ---- */

enum { DIGIT_BITS = 10, DIGITS = 1 << DIGIT_BITS, ONE = 0x3f800000 /* bits of 1.0f */ };

/* Bits of a float in [0, 1] order like the float; smaller is better here. */
static uint32_t key_of(float a)
{
    uint32_t u;
    memcpy(&u, &a, sizeof u);
    return u < ONE ? ONE - u : 0;
}

/* Stable radix sort by key, 30 bits in three passes: about 10 us for 256 requests of 7. A pass in which all
 * agree is left out. The result is in cand. */
static void sort(ds_spec_cand *cand, ds_spec_cand *tmp, int n)
{
    ds_spec_cand *from = cand, *to = tmp;
    for (int shift = 0; shift < 3 * DIGIT_BITS; shift += DIGIT_BITS) {
        int at[DIGITS] = {0};
        for (int i = 0; i < n; i++)
            at[key_of(from[i].a) >> shift & (DIGITS - 1)]++;
        if (n && at[key_of(from[0].a) >> shift & (DIGITS - 1)] == n)
            continue;
        for (int d = 0, sum = 0; d < DIGITS; d++) {
            int count = at[d];
            at[d] = sum;
            sum += count;
        }
        for (int i = 0; i < n; i++)
            to[at[key_of(from[i].a) >> shift & (DIGITS - 1)]++] = from[i];
        ds_spec_cand *swap = from;
        from = to;
        to = swap;
    }
    if (from != cand)
        memcpy(cand, from, (size_t)n * sizeof *cand);
}

/* Candidates in order of position, then request: the order of ties. */
static int collect(const ds_spec_req *req, int R, int stale, ds_spec_cand *cand)
{
    int n = 0;
    for (int j = 0, more = 1; more; j++) {
        more = 0;
        for (int r = 0; r < R; r++) {
            const float *a = stale ? req[r].stale : req[r].survival;
            float x = j >= req[r].n ? 0.0f : req[r].all ? 1.0f : a[j];
            if (!(x > 0.0f))
                continue;
            cand[n++] = (ds_spec_cand){x < 1.0f ? x : 1.0f, r, j + 1};
            more = 1;
        }
    }
    return n;
}

int ds_spec_rank(const ds_spec_req *req, int R, ds_spec_cand *cand, ds_spec_cand *tmp)
{
    int n = collect(req, R, 0, cand);
    sort(cand, tmp, n);
    return n;
}

int ds_spec_top_k(const ds_spec_cand *cand, int n_cand, int R, int K, int *ret_len)
{
    if (K > n_cand)
        K = n_cand;
    memset(ret_len, 0, (size_t)R * sizeof *ret_len);
    for (int i = 0; i < K; i++)
        ret_len[cand[i].req] = cand[i].pos;
    return K;
}

/* ---- budgets ---- */

int ds_spec_early_stop(const ds_spec_cand *cand, int n_cand, int R, int plain, ds_cost_fn cost, void *ctx,
                       double *ret_theta)
{
    double tau = R + plain, best = tau / cost(ctx, R + plain, R);
    int k = 0;
    for (; k < n_cand; k++) {
        tau += (double)cand[k].a;
        double theta = tau / cost(ctx, R + plain + k + 1, R);
        if (!(theta > best))
            break;
        best = theta;
    }
    *ret_theta = best;
    return k;
}

int ds_spec_best_budget(const ds_spec_cand *cand, int n_cand, int R, int plain, ds_cost_fn cost, void *ctx,
                        double *ret_theta)
{
    double tau = R + plain, best = tau / cost(ctx, R + plain, R);
    int best_k = 0;
    for (int k = 1; k <= n_cand; k++) {
        tau += (double)cand[k - 1].a;
        double theta = tau / cost(ctx, R + plain + k, R);
        if (theta > best) {
            best = theta;
            best_k = k;
        }
    }
    *ret_theta = best;
    return best_k;
}

static int budget(const ds_spec_choice *c, int n)
{
    double theta;
    if (!c->cost || c->kind == DS_SCHED_FIXED || c->kind == DS_SCHED_THRESHOLD)
        return n;
    if (c->kind == DS_SCHED_EARLY_STOP)
        return ds_spec_early_stop(c->cand, n, c->R, c->plain, c->cost, c->ctx, &theta);
    return ds_spec_best_budget(c->cand, n, c->R, c->plain, c->cost, c->ctx, &theta);
}

/* Drafts of r before the first whose own confidence a_j / a_(j-1) is below the threshold. */
static int confident(const ds_spec_req *r, double threshold)
{
    int j = 0;
    double before = 1.0;
    while (j < r->n && (r->all || (double)r->survival[j] >= threshold * before)) {
        before = (double)r->survival[j];
        j++;
    }
    return j;
}

static int keep_confident(const ds_spec_choice *c, int n)
{
    int kept = 0;
    for (int i = 0; i < n; i++) /* in place and in order: ties stay as they are */
        if (c->cand[i].pos <= confident(&c->req[c->cand[i].req], c->threshold))
            c->cand[kept++] = c->cand[i];
    return kept;
}

int ds_spec_choose(const ds_spec_choice *c, int *ret_len)
{
    int K = 0, sure = 0, n;
    if (c->kind == DS_SCHED_STALE && c->cost) { /* how many: by what was known two rounds ago */
        n = collect(c->req, c->R, 1, c->cand);
        sort(c->cand, c->tmp, n);
        K = budget(c, n);
    }
    n = collect(c->req, c->R, 0, c->cand);
    if (c->kind == DS_SCHED_THRESHOLD)
        n = keep_confident(c, n);
    sort(c->cand, c->tmp, n);
    if (c->kind != DS_SCHED_STALE || !c->cost)
        K = budget(c, n);
    for (int i = 0; i < n && c->cand[i].a >= 1.0f; i++) /* `all` requests are among those that rank first */
        sure = c->req[c->cand[i].req].all ? i + 1 : sure;
    K = K > sure ? K : sure;
    return ds_spec_top_k(c->cand, n, c->R, K < c->room ? K : c->room, ret_len);
}

int ds_spec_worth(const ds_spec_choice *c, int *ret_want)
{
    int n = ds_spec_rank(c->req, c->R, c->cand, c->tmp), m = 0, best_k = 0, want = 0;
    double tau = c->R + c->plain, best = c->cost ? tau / c->cost(c->ctx, c->R + c->plain, 0) : 0;
    for (int k = 1; c->cost && k <= n; k++) {
        tau += (double)c->cand[k - 1].a;
        m += c->cand[k - 1].pos == 1;
        double theta = tau / c->cost(c->ctx, c->R + c->plain + k, m);
        if (theta > best) {
            best = theta;
            best_k = k;
        }
    }
    ds_spec_top_k(c->cand, n, c->R, c->cost ? best_k : n, ret_want);
    for (int r = 0; r < c->R; r++) {
        ret_want[r] = c->req[r].all ? c->req[r].n > 0 : ret_want[r] > 0;
        want += ret_want[r];
    }
    return want;
}
