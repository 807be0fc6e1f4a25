/* calib.h - calibration of the confidence head: sequential temperature scaling and its measures. Pure.
 * A record is one round verified at full block length: logits z_1..z_m and labels y_j = 1 iff slots 1..j were
 * accepted. Source: DSpark paper 3.2.1; grid and ties as in docs/speculation.md. */
#ifndef DS_WORKER_CALIB_H
#define DS_WORKER_CALIB_H

#include "base/err.h"

enum { DS_CALIB_BINS = 20, DS_CALIB_MIN_RECORDS = 200, DS_CALIB_GRID = 97 /* 2^(i/16), i = -48..48 */ };

typedef struct ds_calib_data {
    const float *z;         /* [n, gamma] */
    const unsigned char *y; /* [n, gamma] */
    const int *m;           /* [n] slots that count, 0..gamma; NULL: all gamma */
    int n, gamma;
} ds_calib_data;

/* ds_calib_ece: expected calibration error of the cumulative prediction at slot k (0-based) under
 * temperatures T. */
double ds_calib_ece(const ds_calib_data *d, const double *T, int k);
/* ds_calib_fit: fits T [gamma] slot by slot; a slot with fewer than DS_CALIB_MIN_RECORDS records keeps 1.
 * DS_ENOMEM; DS_EINVAL a logit that is not finite. */
ds_code ds_calib_fit(const ds_calib_data *d, double *ret_T, ds_err *err);
/* ds_calib_survival: a_1..a_gamma from logits z and temperatures T (NULL: all 1). */
void ds_calib_survival(const float *z, const double *T, int gamma, float *ret_a);

#endif
