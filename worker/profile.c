#include "worker/profile.h"

#include <math.h>

/* Where x lies: *lo and *lo + 1 are its neighbours (the two last beyond the end), *share the way between. */
static void place(const int *v, int n, double x, int *lo, double *share)
{
    *lo = 0;
    while (*lo < n - 2 && x > v[*lo + 1])
        (*lo)++;
    *share = n < 2 ? 0 : (x - v[*lo]) / (v[*lo + 1] - v[*lo]);
    *share = *share < 0 ? 0 : *share;
}

void ds_profile_at(const ds_profile *p, double ctx, ds_profile_curve *ret)
{
    int lo;
    double share;
    place(p->ctx, p->n_ctx, ctx, &lo, &share);
    int hi = p->n_ctx > 1 ? lo + 1 : lo;
    ret->p = p;
    for (int i = 0; i < p->n_rows; i++) {
        double a = p->verify[lo][i], t = a + share * (p->verify[hi][i] - a);
        t = t > 1e-9 ? t : 1e-9;
        ret->seconds[i] = i && t < ret->seconds[i - 1] ? ret->seconds[i - 1] : t;
    }
}

double ds_profile_verify(const ds_profile_curve *c, int rows)
{
    ds_cost_table t = {c->p->rows, c->seconds, c->p->n_rows};
    return rows > 0 && t.n ? ds_cost_seconds(&t, rows, c->p->staircase) : 0.0;
}

double ds_profile_draft(const ds_profile *p, int reqs)
{
    ds_cost_table t = {p->reqs, p->draft, p->n_reqs};
    return reqs > 0 && t.n ? ds_cost_seconds(&t, reqs, p->staircase) : 0.0;
}

/* ---- refinement ---- */

static const double RATE = 1.0 / 16;

static double step_of(double measured, double predicted)
{
    double r = measured / predicted;
    r = r < 0.5 ? 0.5 : r > 2 ? 2 : r;
    return RATE * (r - 1);
}

/* Scale the neighbours of x by their share of it, so that the next prediction at x is nearer. */
static void pull(double *v, const int *at, int n, double x, double by)
{
    int lo;
    double share;
    place(at, n, x, &lo, &share);
    share = share > 1 ? 1 : share;
    v[lo] *= 1 + by * (1 - share);
    if (n > 1)
        v[lo + 1] *= 1 + by * share;
}

void ds_profile_tell_verify(ds_profile *p, int rows, double ctx, double seconds)
{
    ds_profile_curve c;
    if (!p->n_rows || rows < 1 || !(seconds > 0) || !isfinite(seconds))
        return;
    ds_profile_at(p, ctx, &c);
    double by = step_of(seconds, ds_profile_verify(&c, rows));
    for (int k = 0; k < p->n_ctx; k++) /* a factor of the machine holds for every context */
        pull(p->verify[k], p->rows, p->n_rows, rows, by);
    p->refined++;
}

void ds_profile_tell_draft(ds_profile *p, int reqs, double seconds)
{
    if (p->n_reqs && reqs > 0 && seconds > 0 && isfinite(seconds))
        pull(p->draft, p->reqs, p->n_reqs, reqs, step_of(seconds, ds_profile_draft(p, reqs)));
}

void ds_profile_tell_host(ds_profile *p, double seconds)
{
    if (seconds >= 0 && isfinite(seconds))
        p->host += RATE * (seconds - p->host);
}
