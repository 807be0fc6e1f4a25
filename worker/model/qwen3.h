/* qwen3.h - Qwen3 dense: binding of its tensors and the forward pass over flattened rows, in ops of kernels.h
 * only. Owner: the engine thread, through worker/model/model.c. Shapes: docs/shapes.md.
 * Source: transformers models/qwen3/modeling_qwen3.py; names and order as in docs/models.md. */
#ifndef DS_WORKER_MODEL_QWEN3_H
#define DS_WORKER_MODEL_QWEN3_H

#include "worker/model/config.h"
#include "worker/model/weights.h"

typedef struct ds_qwen3_layer {
    ds_vec attn_norm, mlp_norm; /* [C] */
    ds_vec q_norm, k_norm;      /* [D] */
    ds_mat q, k, v, o;          /* [H*D, C], [G*D, C], [G*D, C], [C, H*D] */
    ds_mat q_b, k_b, v_b, o_b;  /* [N, 1] with attention_bias, else data NULL */
    ds_mat gate, up, down;      /* [I, C], [I, C], [C, I] */
} ds_qwen3_layer;

/* Scratch of one forward pass; device memory in one block. */
typedef struct ds_qwen3_scratch {
    void *block;
    float *x;      /* [T, C] residual */
    float *y;      /* [T, C] normed input of the next linear */
    float *wide;   /* [T, max((H+2G)D, 2I)] */
    float *mid;    /* [T, max(HD, I)] */
    float *g;      /* [R, C] rows whose logits are wanted */
    float *logits; /* [R, V] */
    float *taps;   /* [T, n_taps * C] or NULL */
    float *ones;   /* [T] 1.0: a bias is the rank-one product ones * b^T */
    float *cos, *sin;
    int32_t *iota; /* [T] 0, 1, 2, ... */
} ds_qwen3_scratch;

typedef struct ds_qwen3 {
    ds_config conf;
    const char *prefix; /* of its tensors' names: "model." (target), "" (draft) */
    int max_rows, max_logit_rows, max_positions;
    int *tap; /* [n_taps] */
    int n_taps;
    ds_mat embed, head; /* [V, C] */
    ds_vec norm;        /* [C] */
    ds_qwen3_layer *layer;
    ds_qwen3_scratch s;
    size_t scratch_bytes;
} ds_qwen3;

/* ds_qwen3_bind: check and bind all tensors of w; sizes the scratch. q must stay at its address until the
 * load. Errors: those of ds_weights_mat, DS_EINVAL for opts (err.field names the field), DS_ENOMEM. */
ds_code ds_qwen3_bind(ds_qwen3 *q, const ds_config *conf, const ds_model_opts *opts, ds_weights *w,
                      ds_err *err);
/* The parts of ds_qwen3_bind and of the forward pass that a draft of the same layers shares (draft.c).
 * _init: conf, opts, scratch sizes. _bind_layers: its layers' tensors under q->prefix. _project: s.x -> K and
 * V of all rows in their pages, q in s.wide. _attend: s.wide -> s.mid; row t sees positions 0..rows->pos[t].
 * _finish: x += o(heads); x += mlp(norm x), T rows. _linear: y (+)= x W^T. _bias: y += b, nothing
 * without attention_bias. */
ds_code ds_qwen3_init(ds_qwen3 *q, const ds_config *conf, const ds_model_opts *opts, const char *prefix,
                      ds_err *err);
ds_code ds_qwen3_bind_layers(ds_qwen3 *q, ds_weights *w, ds_err *err);
ds_code ds_qwen3_project(ds_qwen3 *q, ds_backend *b, int layer, const ds_kv_pool *kv, const ds_rows *rows);
ds_code ds_qwen3_attend(ds_qwen3 *q, ds_backend *b, int layer, const ds_kv_pool *kv, const ds_rows *rows);
ds_code ds_qwen3_finish(ds_qwen3 *q, ds_backend *b, int layer, const float *heads, float *x, int T);
ds_code ds_qwen3_linear(ds_backend *b, const ds_mat *w, const float *x, float *y, int y_stride, int T,
                        int add);
ds_code ds_qwen3_bias(ds_qwen3 *q, ds_backend *b, const ds_mat *w, float *y, int y_stride, int T);
/* ds_qwen3_alloc: scratch and rope tables on b; after ds_weights_load. */
ds_code ds_qwen3_alloc(ds_qwen3 *q, ds_backend *b, ds_err *err);
void ds_qwen3_free(ds_qwen3 *q, ds_backend *b);
/* ds_qwen3_forward: all pointers of a are device memory here, its fields are checked. Sets a->logits and
 * a->taps. Work on the last layer that only feeds rows without logits is left out. */
ds_code ds_qwen3_forward(ds_qwen3 *q, ds_backend *b, const ds_kv_pool *kv, ds_step_args *a, ds_err *err);

#endif
