/* draft_int.h - inside the draft: what draft.c opens and draft_pass.c runs. */
#ifndef DS_WORKER_MODEL_DRAFT_INT_H
#define DS_WORKER_MODEL_DRAFT_INT_H

#include "worker/model/draft.h"
#include "worker/model/mirror.h"
#include "worker/model/qwen3.h"

struct ds_draft {
    ds_draft_info info;
    ds_draft_conf conf;
    ds_qwen3 q; /* layers, final norm, embedding and head (own or the target's), scratch */
    ds_weights weights;
    ds_backend *backend;
    int max_rows, max_reqs;
    ds_dtype kv_dtype;                 /* the target's */
    ds_mat fc;                         /* [C, n_taps * C] */
    ds_vec hidden_norm;                /* [C] */
    ds_mat w1, w2;                     /* [V, r] */
    ds_mat gate, gate_b;               /* GATED: [r, C + r], [r, 1]; RNN: [3r, 2r + C], [3r, 1] */
    ds_mat conf_w, conf_b;             /* [1, C (+ r)], [1, 1] */
    ds_mat own_embed, own_head;        /* data NULL: not in the file */
    void *block;                       /* device scratch below, one allocation; rows = max_reqs * block */
    float *f;                          /* [max_rows, n_taps * C] taps of accepted rows */
    float *cat;                        /* [rows, C + r] h, e */
    float *joint;                      /* [R, 2r + C] state, e, h of one slot */
    float *e;                          /* [rows, r] */
    float *cell_in, *cell_out, *state; /* [R, 3r], [R, r], [R, r] */
    float *h;                          /* [block * R, C] slot-major hidden */
    float *z;                          /* [block * R] confidence logits */
    float *one;                        /* [rows] 1.0 */
    int32_t *iota;                     /* [rows] 0, 1, 2, ... */
    int32_t *token, *pos, *limit, *slot, *order; /* [rows]: of a pass driven by the device */
    int32_t *start, *row_seat;                   /* [R] */
    int32_t *prev;  /* [block + 1, R] anchors, then the drafts: those before each slot, and one on */
    int32_t *rows;  /* host: row arrays of a pass driven by the host */
    float *numbers; /* host: [rows], [R, r] */
    ds_row_mirror mirror;
    ds_sample_row *row; /* [R] host */
    ds_sample_out *out; /* [R] host */
};

#endif
