/* weights.h - the weights of a checkpoint as ds_mat and ds_vec, by name and expected shape.
 *
 * Two passes. A model file first binds every tensor it needs: names, shapes and dtypes are checked on the
 * headers alone, so that the memory plan needs no mapping. ds_weights_load then maps the files, refuses NaN
 * and infinity, and fills data pointers: into the mapping where the back end reads host memory and the tensor
 * is aligned, else into memory of the back end. With int8, matrices whose input width is a multiple of
 * DS_I8_BLOCK are quantised at load. Owner: the thread that opens the model. */
#ifndef DS_WORKER_MODEL_WEIGHTS_H
#define DS_WORKER_MODEL_WEIGHTS_H

#include "kernels/kernels.h"
#include "worker/model/safetensors.h"

typedef struct ds_weight_job ds_weight_job;

typedef struct ds_weights {
    ds_st st;
    int int8;           /* 1: quantise matrices bound with DS_WEIGHT_LINEAR */
    ds_weight_job *job; /* [n_jobs] one per bound tensor */
    int n_jobs, cap_jobs;
    unsigned char *bound; /* [st.n] how each tensor is used */
    size_t mem_bytes;     /* of all bound tensors, as held in memory */
    size_t step_bytes;    /* of those that every step reads in full */
    uint64_t params;
    ds_backend *backend; /* after load: owner of the allocations */
    void **owned;        /* [n_owned] back-end memory */
    int n_owned;
} ds_weights;

/* How a matrix is used: LINEAR is read in full by every step; TABLE is read by rows (the embedding) and is
 * never quantised: only touched rows stay in memory. */
typedef enum { DS_WEIGHT_LINEAR, DS_WEIGHT_TABLE } ds_weight_use;

ds_code ds_weights_open(const char *dir, int int8, ds_weights *ret, ds_err *err);
void ds_weights_close(ds_weights *w);
int ds_weights_has(const ds_weights *w, const char *name);
/* ds_weights_mat / _vec: bind tensor `name` of shape [n, k] / [n] to *dst (its address must stay until load).
 * ds_weights_column: a vector [n] bound as the matrix [n, 1], for biases.
 * Errors: DS_ECORRUPT missing or wrong shape; DS_EUNSUPPORTED dtype other than F32, BF16, F16. */
ds_code ds_weights_mat(ds_weights *w, const char *name, int n, int k, ds_weight_use use, ds_mat *dst,
                       ds_err *err);
ds_code ds_weights_column(ds_weights *w, const char *name, int n, ds_mat *dst, ds_err *err);
ds_code ds_weights_vec(ds_weights *w, const char *name, int n, ds_vec *dst, ds_err *err);
/* ds_weights_warn_extra: one log line about tensors that nobody bound. */
void ds_weights_warn_extra(const ds_weights *w);
/* ds_weights_load: see above. DS_ECORRUPT: a NaN or infinity (names tensor and element). */
ds_code ds_weights_load(ds_weights *w, ds_backend *b, ds_err *err);

/* ds_backend_is_host: device memory of b is host memory, so that mapped weights are used in place. */
int ds_backend_is_host(const ds_backend *b);

/* ds_weights_scan: index of the first NaN or infinity of n elements, or -1. p: any alignment. */
int64_t ds_weights_scan(const void *p, size_t n, ds_dtype dtype);

#endif
