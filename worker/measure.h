/* measure.h - a first profile: a few passes of each kind on an idle pool, within a time budget. Sizes beyond
 * it are extrapolated and mended while serving (profile.h). */
#ifndef DS_WORKER_MEASURE_H
#define DS_WORKER_MEASURE_H

#include "worker/profile.h"
#include "worker/target.h"

typedef struct ds_measure {
    const ds_target *target;
    const ds_drafter *drafter;
    const ds_kv_pool *kv, *draft_kv;
    int max_rows, max_seqs, max_len, page_tokens; /* max_rows: of a decoding step */
    ds_clock clock;
    double budget_s; /* 0: DS_MEASURE_BUDGET_S */
} ds_measure;

#define DS_MEASURE_BUDGET_S 0.4 /* the start stays fast; one pass more than it is finished */

/* ds_measure_profile: every pool page may be written. Errors of the passes. */
ds_code ds_measure_profile(const ds_measure *m, ds_profile *ret, ds_err *err);

#endif
