#include "worker/calib.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

static double sigmoid(double x)
{
    return x >= 0 ? 1.0 / (1.0 + exp(-x)) : exp(x) / (1.0 + exp(x));
}

static int counts(const ds_calib_data *d, int i, int k)
{
    return !d->m || d->m[i] > k;
}

/* Count-weighted ECE over equal-width bins: sum over bins of |sum P - sum y| / N. */
static double ece(const ds_calib_data *d, const double *prefix, double T, int k)
{
    double p_sum[DS_CALIB_BINS] = {0}, y_sum[DS_CALIB_BINS] = {0}, total = 0;
    long n = 0;
    for (int i = 0; i < d->n; i++) {
        if (!counts(d, i, k))
            continue;
        double P = prefix[i] * sigmoid((double)d->z[(size_t)i * (size_t)d->gamma + (size_t)k] / T);
        P = fmin(fmax(P, 1e-8), 1.0 - 1e-8);
        int b = (int)floor(DS_CALIB_BINS * P);
        b = b < DS_CALIB_BINS ? b : DS_CALIB_BINS - 1;
        p_sum[b] += P;
        y_sum[b] += d->y[(size_t)i * (size_t)d->gamma + (size_t)k];
        n++;
    }
    for (int b = 0; b < DS_CALIB_BINS; b++)
        total += fabs(p_sum[b] - y_sum[b]);
    return n ? total / (double)n : 0.0;
}

static void advance(const ds_calib_data *d, double *prefix, double T, int k)
{
    for (int i = 0; i < d->n; i++)
        if (counts(d, i, k))
            prefix[i] *= sigmoid((double)d->z[(size_t)i * (size_t)d->gamma + (size_t)k] / T);
}

static double *ones(int n)
{
    double *p = malloc((size_t)(n > 0 ? n : 1) * sizeof *p);
    for (int i = 0; p && i < n; i++)
        p[i] = 1.0;
    return p;
}

double ds_calib_ece(const ds_calib_data *d, const double *T, int k)
{
    double *prefix = ones(d->n);
    if (!prefix)
        return NAN;
    for (int j = 0; j < k; j++)
        advance(d, prefix, T[j], j);
    double e = ece(d, prefix, T[k], k);
    free(prefix);
    return e;
}

ds_code ds_calib_fit(const ds_calib_data *d, double *ret_T, ds_err *err)
{
    for (long i = 0; i < (long)d->n * d->gamma; i++)
        if (!isfinite(d->z[i]))
            return ds_err_field(err, DS_EINVAL, "z", "confidence logit %ld is not a finite number", i);
    double *prefix = ones(d->n);
    if (!prefix)
        return ds_err_set(err, DS_ENOMEM, "no memory for %d calibration records", d->n);
    for (int k = 0; k < d->gamma; k++) {
        int n = 0;
        for (int i = 0; i < d->n; i++)
            n += counts(d, i, k);
        double best = INFINITY;
        ret_T[k] = 1.0;
        /* from T = 1 outwards, colder first: a strict comparison then prefers the smallest |ln T|, the
         * smaller T */
        for (int s = 0; n >= DS_CALIB_MIN_RECORDS && s < DS_CALIB_GRID; s++) {
            int i = s % 2 ? -(s + 1) / 2 : s / 2;
            double T = exp2(i / 16.0), e = ece(d, prefix, T, k);
            if (e < best) {
                best = e;
                ret_T[k] = T;
            }
        }
        advance(d, prefix, ret_T[k], k);
    }
    free(prefix);
    return DS_OK;
}

void ds_calib_survival(const float *z, const double *T, int gamma, float *ret_a)
{
    double a = 1.0;
    for (int k = 0; k < gamma; k++) {
        a *= sigmoid((double)z[k] / (T ? T[k] : 1.0));
        ret_a[k] = (float)a;
    }
}
