#include "cli/dist.h"

#include "base/rng.h"

#include <stdlib.h>

static int compare(const void *a, const void *b)
{
    double x = *(const double *)a, y = *(const double *)b;
    return (x > y) - (x < y);
}

ds_code ds_dist_add(ds_dist *d, double v)
{
    if (d->n_kept == d->cap && d->cap < DS_DIST_MAX_KEPT) {
        int cap = d->cap ? 2 * d->cap : 256;
        double *more = realloc(d->kept, (size_t)cap * sizeof *more);
        if (!more)
            return DS_ENOMEM;
        d->kept = more;
        d->cap = cap;
    }
    d->min = d->n == 0 || v < d->min ? v : d->min;
    d->max = d->n == 0 || v > d->max ? v : d->max;
    d->sum += v;
    d->n++;
    if (d->n_kept < DS_DIST_MAX_KEPT) {
        d->kept[d->n_kept++] = v;
    } else { /* Vitter's algorithm R; the draw is keyed by the count, so runs repeat */
        ds_rng4 r = ds_philox(0x64697374, (uint32_t)d->n, (uint32_t)(d->n >> 32), 0, DS_RNG_INIT);
        uint64_t at = ((uint64_t)r.v[0] << 32 | r.v[1]) % d->n;
        if (at >= DS_DIST_MAX_KEPT)
            return DS_OK;
        d->kept[at] = v;
    }
    d->sorted = 0;
    return DS_OK;
}

double ds_dist_percentile(ds_dist *d, double p)
{
    if (d->n_kept == 0)
        return NAN;
    if (!d->sorted)
        qsort(d->kept, (size_t)d->n_kept, sizeof *d->kept, compare);
    d->sorted = 1;
    double rank = p / 100 * (d->n_kept - 1);
    int low = (int)rank;
    if (low >= d->n_kept - 1)
        return d->kept[d->n_kept - 1];
    return d->kept[low] + (rank - low) * (d->kept[low + 1] - d->kept[low]);
}

double ds_dist_mean(const ds_dist *d)
{
    return d->n ? d->sum / (double)d->n : NAN;
}

void ds_dist_clear(ds_dist *d)
{
    *d = (ds_dist){.kept = d->kept, .cap = d->cap};
}

void ds_dist_fini(ds_dist *d)
{
    free(d->kept);
    *d = (ds_dist){0};
}
