/* mirror.h - copies of a step's row arrays on a back end whose memory is not the host's. On one whose memory
 * is, nothing is copied. Owner: the engine thread. */
#ifndef DS_WORKER_MODEL_MIRROR_H
#define DS_WORKER_MODEL_MIRROR_H

#include "base/err.h"
#include "kernels/kernels.h"

typedef struct ds_row_mirror {
    int host;
    int32_t *row; /* [3 + n_more, cap]: token, pos, slot, and others */
    size_t cap;
    int32_t *table;
    size_t table_cap; /* entries */
} ds_row_mirror;

/* ds_row_mirror_init: for steps of max_rows rows with n_more arrays of their own. */
ds_code ds_row_mirror_init(ds_row_mirror *m, ds_backend *b, int max_rows, int n_more, ds_err *err);
void ds_row_mirror_free(ds_row_mirror *m, ds_backend *b);
/* ds_row_mirror_rows: copies token, pos, slot and the used slots of the page table, and points r at the
 * copies. The table's grows when a step brings more slots than any before it. DS_ENOMEM, or the upload's. */
ds_code ds_row_mirror_rows(ds_row_mirror *m, ds_backend *b, ds_rows *r, ds_err *err);
/* ds_row_mirror_more: the same of array i < n_more with n <= max_rows entries; points *a at the copy. */
ds_code ds_row_mirror_more(ds_row_mirror *m, ds_backend *b, int i, const int32_t **a, int n);

#endif
