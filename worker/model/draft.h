/* draft.h - a DSpark (or DFlash) draft of a Qwen3 target: a parallel backbone over one block of slots that
 * attends to context K/V made from the target's hidden states, a serial head, and a confidence head. Context
 * K/V lives in the same pages as the target's, in layers of its own. Owner: the engine thread. Source:
 * docs/speculation.md. */
#ifndef DS_WORKER_MODEL_DRAFT_H
#define DS_WORKER_MODEL_DRAFT_H

#include "worker/model/config.h"
#include "worker/model/model.h"

typedef struct ds_draft ds_draft;

typedef struct ds_draft_info {
    int block; /* gamma: slots of one block, 1..DS_MAX_BLOCK */
    int layers, n_taps, taps[DS_MAX_TAPS];
    int mask_token, markov_rank, confidence; /* confidence: 1 when the checkpoint has the head */
    ds_head_kind head;
    int own_tables; /* 1: its embedding or head differs from the target's and was kept */
    size_t kv_bytes_per_token, weight_bytes, scratch_bytes;
    int calibrated;              /* sts.json was there */
    double T[DS_MAX_BLOCK_SIZE]; /* [block] its temperatures, else 1 */
} ds_draft_info;

/* Where a pass left the logits its drafts were drawn from (device), until the next pass: those of slot k of
 * request r begin at data + k * slot_stride + r * req_stride. */
typedef struct ds_draft_logits {
    float *data;
    size_t slot_stride, req_stride;
} ds_draft_logits;

/* One draft pass over R requests. All arrays are host memory. */
typedef struct ds_draft_batch {
    int R;
    const int32_t *anchor; /* [R] last emitted token */
    const int32_t *start;  /* [R] its position; context K/V holds 0..start-1 */
    const int32_t *slot; /* [R] rows of page_table; pages up to start+block-1 must be private and reserved */
    const int32_t *page_table;
    int page_stride, page_tokens;
    const ds_sample_row *row; /* [R] how the request samples; pos and logprobs are set by the pass */
    int32_t *token;           /* [R, block] out: x_1..x_block */
    float *conf;              /* [R, block] out: confidence logits; large when there is no confidence head */
    int independent; /* 1: noise of its own, keyed by start and slot (rule `rejection`); 0: the target's */
    ds_draft_logits *logits; /* out, or NULL */
} ds_draft_batch;

/* ds_draft_plan: read and check dir/config.json against the target's; needed before the target is opened,
 * which must keep the taps. Refusals (DS_EINVAL, DS_ECORRUPT) name the key: vocab_size, hidden_size,
 * num_target_layers, target_layer_ids, block_size, mask_token_id. target: dir of the target. */
ds_code ds_draft_plan(const char *dir, const char *target_dir, ds_draft_info *ret, ds_err *err);
/* ds_draft_open: max_rows of context a step may append, max_reqs of one pass. Shares the target's embedding
 * and head when the draft has none or equal ones. */
ds_code ds_draft_open(const char *dir, ds_model *target, int max_rows, int max_reqs, ds_backend *b,
                      ds_draft **ret, ds_err *err);
void ds_draft_close(ds_draft *d);
const ds_draft_info *ds_draft_get_info(const ds_draft *d);
/* ds_draft_kv_alloc: of the target's KV element type. */
ds_code ds_draft_kv_alloc(ds_draft *d, int pages, int page_tokens, ds_kv_pool *ret, ds_err *err);
void ds_draft_kv_free(ds_draft *d, ds_kv_pool *kv);
/* ds_draft_context: context K/V of rows->T rows from taps (device, [T of the step, n_taps*C]); pick [rows->T]
 * (host) is the step row of each. Positions are rows->pos. */
ds_code ds_draft_context(ds_draft *d, const ds_kv_pool *kv, const ds_rows *rows, const float *taps,
                         const int32_t *pick, ds_err *err);
/* ds_draft_block: backbone, serial head with sampling, confidences. A request's result does not depend on the
 * others. */
ds_code ds_draft_block(ds_draft *d, const ds_kv_pool *kv, const ds_draft_batch *b, ds_err *err);

/* A pass of the device loop (docs/loop.md); all pointers are device memory. */
typedef struct ds_draft_round {
    const int32_t *control;
    ds_seat *seat;             /* [S] */
    const int32_t *page_table; /* [S + 1, page_stride]: slot S is padding's */
    int R, S;                  /* requests the pass has room for */
    int page_stride, page_tokens, max_len;
} ds_draft_round;

/* ds_draft_context_rows: ds_draft_context of every row of a step whose row arrays are device memory.
 * ds_draft_round_pass: a block for the first R seats of the control array that want one, left in the seats.
 * Both only enqueue ops and run nothing on the host, so a graph can hold them. */
ds_code ds_draft_context_rows(ds_draft *d, const ds_kv_pool *kv, const ds_rows *rows, const float *taps,
                              ds_err *err);
ds_code ds_draft_round_pass(ds_draft *d, const ds_kv_pool *kv, const ds_draft_round *r, ds_err *err);

#endif
