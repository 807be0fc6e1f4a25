#include "worker/spec.h"

#include <math.h>
#include <stdlib.h>
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

static int by_rank(const void *x, const void *y)
{
    const ds_spec_cand *l = x, *r = y;
    if (l->a != r->a)
        return l->a > r->a ? -1 : 1;
    if (l->pos != r->pos)
        return l->pos < r->pos ? -1 : 1;
    return l->req < r->req ? -1 : l->req > r->req;
}

int ds_spec_rank(const ds_spec_req *req, int R, ds_spec_cand *cand)
{
    int n = 0;
    for (int r = 0; r < R; r++)
        for (int j = 0; j < req[r].n && req[r].survival[j] > 0.0f; j++)
            cand[n++] = (ds_spec_cand){req[r].survival[j], r, j + 1};
    qsort(cand, (size_t)n, sizeof *cand, by_rank);
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

int ds_spec_early_stop(const ds_spec_cand *cand, int n_cand, int R, int base_rows, ds_sps_fn sps, void *ctx,
                       int *ret_len, double *ret_theta)
{
    double tau = R, best = R * sps(ctx, base_rows + R);
    int k = 0;
    for (; k < n_cand; k++) {
        tau += (double)cand[k].a;
        double theta = tau * sps(ctx, base_rows + R + k + 1);
        if (!(theta > best))
            break;
        best = theta;
    }
    *ret_theta = best;
    return ds_spec_top_k(cand, n_cand, R, k, ret_len);
}

int ds_spec_best_budget(const ds_spec_cand *cand, int n_cand, int R, int base_rows, ds_sps_fn sps, void *ctx,
                        double *ret_theta)
{
    double tau = R, best = R * sps(ctx, base_rows + R);
    int best_k = 0;
    for (int k = 1; k <= n_cand; k++) {
        tau += (double)cand[k - 1].a;
        double theta = tau * sps(ctx, base_rows + R + k);
        if (theta > best) {
            best = theta;
            best_k = k;
        }
    }
    *ret_theta = best;
    return best_k;
}

/* draw: inverse transform over non-negative weights whose sum is total; returns the last positive id on
 * rounding. */
static int32_t draw(const float *p, const float *q, int V, double total, double u)
{
    double want = u * total, sum = 0;
    int32_t last = 0;
    for (int v = 0; v < V; v++) {
        double w = q ? fmax((double)p[v] - (double)q[v], 0.0) : (double)p[v];
        if (w <= 0.0)
            continue;
        last = v;
        sum += w;
        if (sum > want)
            return v;
    }
    return last;
}

int ds_spec_reject(const float *p, const float *q, const int32_t *x, int l, int V, const float *accept_u,
                   float final_u, int32_t *ret_token)
{
    for (int k = 0; k < l; k++) {
        const float *pk = p + (size_t)k * (size_t)V, *qk = q + (size_t)k * (size_t)V;
        if ((double)accept_u[k] * (double)qk[x[k]] < (double)pk[x[k]])
            continue;
        double residual = 0, all = 0;
        for (int v = 0; v < V; v++) {
            residual += fmax((double)pk[v] - (double)qk[v], 0.0);
            all += (double)pk[v];
        }
        /* p = q up to rounding: the residual is empty and p itself is the right distribution (spec 6.2) */
        *ret_token = residual <= 1e-8 ? draw(pk, NULL, V, all, (double)final_u)
                                      : draw(pk, qk, V, residual, (double)final_u);
        return k;
    }
    const float *last = p + (size_t)l * (size_t)V;
    double all = 0;
    for (int v = 0; v < V; v++)
        all += (double)last[v];
    *ret_token = draw(last, NULL, V, all, (double)final_u);
    return l;
}

int ds_spec_couple(const int32_t *x, const int32_t *y, int l)
{
    int n = 0;
    while (n < l && x[n] == y[n])
        n++;
    return n;
}
