/* accept_ref.h - both acceptance rules over one block, from their definitions: the reference that tests judge
 * by. */
#ifndef DS_TESTS_LIB_ACCEPT_REF_H
#define DS_TESTS_LIB_ACCEPT_REF_H

#include <math.h>
#include <stddef.h>
#include <stdint.h>

/* draw: inverse transform over non-negative weights whose sum is total; returns the last positive id on
 * rounding. */
static inline int32_t accept_ref_draw(const float *p, const float *q, int V, double total, double u)
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

/* accept_ref_reject: the maximal-coupling rule over one block. p [l+1, V] target and q [l, V] draft
 * probabilities (each row sums to 1), x [l] drafted ids. accept_u [l] and final_u are uniforms in (0,1),
 * independent of the draft's noise. Returns n accepted, *ret_token the residual draw (n < l) or the bonus (n
 * = l). Never accepts a token with p = 0. */
static inline int accept_ref_reject(const float *p, const float *q, const int32_t *x, int l, int V,
                                    const float *accept_u, float final_u, int32_t *ret_token)
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
        *ret_token = residual <= 1e-8 ? accept_ref_draw(pk, NULL, V, all, (double)final_u)
                                      : accept_ref_draw(pk, qk, V, residual, (double)final_u);
        return k;
    }
    const float *last = p + (size_t)l * (size_t)V;
    double all = 0;
    for (int v = 0; v < V; v++)
        all += (double)last[v];
    *ret_token = accept_ref_draw(last, NULL, V, all, (double)final_u);
    return l;
}

/* accept_ref_couple: the shared-noise rule: y [l+1] are the target's own draws; accepts the longest prefix
 * with x[k] == y[k]. */
static inline int accept_ref_couple(const int32_t *x, const int32_t *y, int l)
{
    int n = 0;
    while (n < l && x[n] == y[n])
        n++;
    return n;
}

#endif
