/* model.h - what every target model offers the engine. A model is opened from a Hugging Face folder, maps its
 * weights read-only, owns scratch sized for max_rows, and runs one flattened forward pass at a time.
 * Owner: the engine thread. */
#ifndef DS_WORKER_MODEL_H
#define DS_WORKER_MODEL_H

#include "base/err.h"
#include "kernels/kernels.h"

typedef struct ds_model ds_model;

typedef struct ds_model_opts {
    int max_rows;         /* T of the largest step */
    int max_logit_rows;   /* R of the largest step */
    int max_positions;    /* 0: the config's max_position_embeddings; larger than that is refused */
    const char *weights;  /* "auto" (as stored) or "int8" */
    const char *kv_dtype; /* "auto" (bf16 for bf16/f16 checkpoints, else f32), "f32", "bf16" */
    const int *taps; /* [n_taps] layer ids, strictly increasing, whose residual after the layer is kept; -1:
                      * the embedding */
    int n_taps;
} ds_model_opts;

enum { DS_MAX_EOS = 16 };

typedef struct ds_model_info {
    char arch[64]; /* "Qwen3ForCausalLM" */
    int vocab;     /* V: width of the logits */
    int hidden, layers, heads, kv_heads, head_dim, mlp;
    int max_positions;
    int n_eos, eos[DS_MAX_EOS]; /* generation_config.json, else config.json */
    int kv_layers;              /* layers of paged KV */
    int kv_heads_cache, kv_head_dim;
    ds_dtype kv_dtype, weight_dtype;
    size_t kv_bytes_per_token; /* all layers, K and V */
    size_t weight_bytes;       /* read by one step */
    size_t weight_mem_bytes;   /* of all weights, as held in memory (mapped or made at load) */
    size_t scratch_bytes;
    uint64_t params;
    float temperature, top_p; /* defaults of generation_config.json; NAN when absent */
    int top_k;                /* -1 when absent */
} ds_model_info;

/* Paged KV of the whole worker: one ds_kv_layer per layer, all with `pages` pages of `page_tokens` tokens. */
typedef struct ds_kv_pool {
    ds_kv_layer *layer; /* [kv_layers] */
    int layers, pages, page_tokens;
} ds_kv_pool;

/* ds_kv_pool_alloc: zeroed pages of every layer. DS_EINVAL sizes, DS_ENOMEM. */
ds_code ds_kv_pool_alloc(ds_backend *b, int layers, int kv_heads, int head_dim, ds_dtype dtype, int pages,
                         int page_tokens, ds_kv_pool *ret, ds_err *err);
void ds_kv_pool_free(ds_backend *b, ds_kv_pool *kv);

typedef struct ds_step_args {
    ds_rows rows;
    const int32_t *logit_row; /* [R] rows whose logits are wanted, ascending */
    int R;
    float *logits; /* [R, V] device, owned by the model: set by forward */
    float *taps;   /* [T, n_taps * C] device, owned by the model: set by forward when taps are kept */
} ds_step_args;

/* ds_model_open: errors name the file, tensor or key: DS_ENOTFOUND, DS_ECORRUPT (bounds, overlap, shape,
 * NaN), DS_EUNSUPPORTED (architecture, dtype, rope type), DS_ENOMEM. The folder is hostile input. */
ds_code ds_model_open(const char *dir, const ds_model_opts *opts, ds_backend *b, ds_model **ret, ds_err *err);
void ds_model_close(ds_model *m);
const ds_model_info *ds_model_get_info(const ds_model *m);
/* ds_model_plan: sizes of a folder without mapping weights, for the memory plan (info without device use). */
ds_code ds_model_plan(const char *dir, const ds_model_opts *opts, ds_model_info *ret, ds_err *err);
ds_code ds_model_kv_alloc(ds_model *m, int pages, int page_tokens, ds_kv_pool *ret, ds_err *err);
void ds_model_kv_free(ds_model *m, ds_kv_pool *kv);
/* ds_model_tables: the embedding and the head, for a draft that shares them. */
void ds_model_tables(const ds_model *m, ds_mat *ret_embed, ds_mat *ret_head);
/* ds_model_forward: all rows write their K/V, then attend; logits of logit_row. Row arrays in `rows` are host
 * memory here; the model uploads them. */
ds_code ds_model_forward(ds_model *m, const ds_kv_pool *kv, ds_step_args *a, ds_err *err);
/* ds_model_forward_rows: the same with row arrays and page table in device memory, unread by the host, and
 * logits of every row: a->R and a->logit_row are set here. T <= max_logit_rows. Only enqueues ops. */
ds_code ds_model_forward_rows(ds_model *m, const ds_kv_pool *kv, ds_step_args *a, ds_err *err);

#endif
