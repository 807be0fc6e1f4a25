/* dist.h - a distribution of measured values: exact up to a bound, then a uniform sample of what came. */
#ifndef DS_CLI_DIST_H
#define DS_CLI_DIST_H

#include "base/err.h"

#include <stdint.h>

enum { DS_DIST_MAX_KEPT = 1 << 21 }; /* 16 MiB */

typedef struct ds_dist {
    double *kept; /* [n_kept] */
    int n_kept, cap, sorted;
    uint64_t n; /* values added; above DS_DIST_MAX_KEPT a reservoir keeps each with equal chance */
    double sum, min, max;
} ds_dist;

ds_code ds_dist_add(ds_dist *d, double v);
/* ds_dist_percentile: p in [0, 100], linear between the two nearest ranks (numpy's default); NAN when empty.
 */
double ds_dist_percentile(ds_dist *d, double p);
double ds_dist_mean(const ds_dist *d); /* NAN when empty */
void ds_dist_clear(ds_dist *d);        /* memory kept */
void ds_dist_fini(ds_dist *d);

#endif
