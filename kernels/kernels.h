/* kernels.h - the one op table for every back end.
 *
 * A step is a list of flattened rows: each token of each request, prefill or verify, is one independent row.
 * Ops are model-sized, enqueue on the back end's stream and do not allocate, so a CUDA graph can hold them.
 * Every pointer below is device memory of the back end (`alloc`), unless its comment says host.
 *
 * Batch invariance (docs/architecture.md, Decided 4): the result of a row does not depend on which other rows
 * are in the call. Reductions run in one fixed order; no split depends on the number of rows.
 *
 * Shape letters (docs/shapes.md): T rows of the step, R rows whose logits are wanted, S sequence slots,
 * C hidden size, H query heads, G KV heads, D head size, I MLP size, V vocabulary rows, P pages,
 * N/K output/input width of a linear. Matrices are row-major, [out, in]. Activations are f32 on the CPU. */
#ifndef DS_KERNELS_H
#define DS_KERNELS_H

#include "base/err.h"

#include <stddef.h>
#include <stdint.h>

typedef enum { DS_F32 = 0, DS_BF16 = 1, DS_F16 = 2, DS_I8 = 3 } ds_dtype;
size_t ds_dtype_size(ds_dtype t);      /* bytes of one element */
const char *ds_dtype_name(ds_dtype t); /* "f32", ... */

/* A weight matrix [n, k]. I8 has one f32 scale per row and block of 32 inputs: w = scale[n, k/32] * q. */
typedef struct ds_mat {
    const void *data;   /* [n, k] of dtype; may point into a mapped checkpoint (any 2-byte alignment) */
    const float *scale; /* [n, k/32] f32 for DS_I8, else NULL */
    int n, k;
    ds_dtype dtype;
} ds_mat;
enum { DS_I8_BLOCK = 32 };

typedef struct ds_vec { /* a weight vector [n], e.g. of a norm */
    const void *data;
    int n;
    ds_dtype dtype;
} ds_vec;

/* One layer's paged KV: element (page, head, slot, j) of K is k[((page * G + head) * page_tokens + slot) * D
 * + j]. */
typedef struct ds_kv_layer {
    void *k, *v;
    ds_dtype dtype; /* F32 or BF16 */
} ds_kv_layer;

/* Rows of the step. Rows of one sequence are contiguous and in position order. */
typedef struct ds_rows {
    int T;
    const int32_t *token;      /* [T] token id, 0 <= id < V */
    const int32_t *pos;        /* [T] absolute position in the sequence */
    const int32_t *slot;       /* [T] sequence slot: row of page_table */
    const int32_t *page_table; /* [S, page_stride] page id of each page of a slot */
    int page_stride;           /* entries per slot */
    int page_tokens;           /* tokens per page */
} ds_rows;

typedef struct ds_embed_args { /* y[t] = table[token[t]] */
    ds_mat table;              /* [V, C] */
    const int32_t *token;      /* [T] */
    float *y;                  /* [T, C] */
    int T;
} ds_embed_args;

typedef struct ds_rmsnorm_args { /* y = x * rsqrt(mean(x^2) + eps) * w; y may be x */
    const float *x;              /* [T, C] */
    ds_vec w;                    /* [C] */
    float *y;                    /* [T, C] */
    float eps;
    int T;
} ds_rmsnorm_args;

typedef struct ds_linear_args { /* y = x W^T, or y += x W^T */
    const float *x;             /* [T, K], row stride x_stride */
    ds_mat w;                   /* [N, K] */
    float *y;                   /* [T, N], row stride y_stride */
    int T, x_stride, y_stride;  /* strides in elements */
    int accumulate;             /* 1: y += (residual add) */
} ds_linear_args;

typedef struct ds_rope {    /* tables made at load; YaRN and others only change the tables */
    const float *cos, *sin; /* [positions, D/2], attention factor multiplied in */
    int positions;
} ds_rope;

typedef struct ds_qkv_args { /* per head rms-norm of q and k, rope (half-split pairs j, j+D/2), K and V to
                                pages */
    ds_rows rows;
    float *qkv; /* [T, (H + 2G) * D]: q heads, k heads, v heads; q is normed and rotated in place */
    ds_vec q_norm, k_norm; /* [D]; data NULL: no norm */
    ds_rope rope;
    ds_kv_layer kv;
    float eps;
    int H, G, D; /* H may be 0: only K and V */
} ds_qkv_args;

typedef struct ds_attn_args { /* causal: row at pos p reads keys 0..p of its slot from pages */
    ds_rows rows;
    const float *q; /* [T, q_stride], first H*D of each row used */
    int q_stride;
    ds_kv_layer kv;
    float *out;  /* [T, H*D] */
    float scale; /* D^-0.5 */
    int H, G, D;
} ds_attn_args;

typedef struct ds_silu_mul_args { /* y[t,i] = silu(gu[t,i]) * gu[t,I+i] */
    const float *gu;              /* [T, 2I]: gate then up */
    float *y;                     /* [T, I] */
    int T, I;
} ds_silu_mul_args;

typedef struct ds_gather_args { /* y[r] = x[row[r]] */
    const float *x;             /* [T, C] */
    const int32_t *row;         /* [R] */
    float *y;                   /* [R, y_stride] */
    int R, C, y_stride;
} ds_gather_args;

/* The gates of a draft's serial head (docs/speculation.md). GATED: y = sigmoid(t) * e, t [R, N]. RNN: t [R,
 * 3N] holds gate, candidate, output; y = tanh(output), then state = sigmoid(gate) * state + (1 -
 * sigmoid(gate)) * tanh(cand). */
typedef enum { DS_CELL_GATED, DS_CELL_RNN } ds_cell_kind;
typedef struct ds_cell_args {
    ds_cell_kind kind;
    const float *t, *e; /* e [R, N]: GATED only */
    float *state;       /* [R, N]: RNN only */
    float *y;           /* [R, N] */
    int R, N;
} ds_cell_args;

/* How to sample one row. All fields are validated by the caller; host memory. */
typedef struct ds_sample_row {
    float temperature;         /* 0: argmax, lowest id on ties */
    float top_p;               /* (0, 1]; 1: off */
    float min_p;               /* [0, 1]; 0: off */
    int32_t top_k;             /* 0: off */
    float repetition;          /* > 0; 1: off; divides positive, multiplies negative logits of tokens seen */
    float presence, frequency; /* subtracted once / per count, over generated tokens */
    uint64_t seed;
    int64_t pos;         /* absolute position of the token being chosen: key of its noise */
    const int32_t *seen; /* [n_seen] token ids of prompt and output, each once, with counts; for penalties */
    const int32_t *seen_count; /* [n_seen] times in the output only (0: prompt only) */
    int32_t n_seen;
    const int32_t *bias_id; /* [n_bias] */
    const float *bias;      /* [n_bias] added to the logit; -inf forbids */
    int32_t n_bias;
    const int32_t *banned; /* [n_banned] ids forbidden where pos < banned_until (stop ids below min_tokens) */
    int32_t n_banned;
    int64_t banned_until;
    int32_t n_logprobs;   /* -1: none; 0: of the chosen token; k <= DS_MAX_TOP_LOGPROBS: and of the k best */
    int32_t given;        /* >= 0: do not sample; report log-probabilities of this id (prompt log-probs) */
    const int32_t *extra; /* [n_extra] drafted tokens before this row: output on top of seen, for penalties */
    int32_t n_extra;
    uint32_t stream; /* of its noise: 0 (DS_RNG_TOKEN), or ds_rng_draft_stream for drafts under `rejection` */
    int32_t draft;   /* with draft_logits: the id drafted for this position */
    float *draft_logits; /* [V] device, or NULL. What the draft was drawn from, by this row's rules and
                          * temperature: then the token is that draft whenever maximal coupling allows */
} ds_sample_row;

typedef struct ds_sample_out { /* host memory */
    int32_t token;
    float logprob; /* of token, from the raw logits (before penalties, bias, temperature), natural log */
    int32_t rank;  /* 1-based rank of token among the raw logits; 0 when not asked */
    int32_t n_top;
    int32_t top_id[20]; /* best first, lowest id on ties */
    float top_logprob[20];
    int32_t bad; /* 1: the row held a NaN or +inf; token is meaningless, its sequence must fail */
} ds_sample_out;

/* Order of the filters (docs/sampling.md): repetition, presence, frequency, bias, banned, temperature, top-k,
 * top-p, min-p; then token = argmax(log p + Gumbel(seed, pos, id)) (base/rng.h, the row's stream), which
 * draws exactly from p. With draft_logits, q comes from them through the same filters, and the token is
 * the draft when u q(draft) < p(draft), u of DS_RNG_ACCEPT, else argmax(log max(p - q, 0) + Gumbel of
 * DS_RNG_FINAL): a draw from p too, when the draft was drawn from q with noise independent of both. At
 * temperature 0 it is the argmax. A draft_logits row without usable numbers, or whose draft q forbids, is
 * ignored. */
typedef struct ds_sample_args {
    float *logits; /* [R, V]; the op may change them (and draft_logits) while it runs, and puts them back */
    int R, V;
    const ds_sample_row *row; /* [R] host */
    ds_sample_out *out;       /* [R] host */
} ds_sample_args;

/* --- the device loop (docs/loop.md): ops that keep a round of speculation on the device --- */

enum { DS_STEP_BLOCK = 32, DS_SEAT_STOPS = 16 };

typedef enum {
    DS_SEAT_EMPTY,
    DS_SEAT_LIVE,
    DS_SEAT_STOPPED, /* its newest token is a stop id */
    DS_SEAT_FULL,    /* it holds `end` tokens */
    DS_SEAT_BAD      /* no usable numbers after its newest token */
} ds_seat_state;

/* One request of the device loop. A seat has the number of its slot in the page table. */
typedef struct ds_seat {
    uint64_t seed;
    int32_t state;                   /* ds_seat_state; only LIVE ones get rows */
    int32_t anchor;                  /* newest token; its K/V is not there yet */
    int32_t start;                   /* position of the anchor: K/V of 0..start-1 are there */
    int32_t end;                     /* tokens it may hold: it is FULL when start + 1 = end */
    int32_t min_pos;                 /* stop ids are forbidden at positions below */
    int32_t max_draft;               /* drafts verified at once; 0: none are made */
    int32_t eager;                   /* 1: its drafts rank before all others, as if sure to be accepted */
    int32_t n_draft;                 /* drafts on offer: 0 or the block */
    int32_t n_verify;                /* of them in the round under way */
    float temperature, top_p, min_p; /* as in ds_sample_row */
    int32_t top_k, n_stop;
    int32_t stop[DS_SEAT_STOPS];
    int32_t draft[DS_STEP_BLOCK];
    float conf[DS_STEP_BLOCK]; /* confidence logits */
} ds_seat;

/* What the host decides for a round, int32 in one array: n, K, n_patch, 0, seat[n] (each once), then n_patch
 * pairs (index into the page table, page). */
enum { DS_CONTROL_N, DS_CONTROL_BUDGET, DS_CONTROL_PATCHES, DS_CONTROL_SEATS = 4 };

/* What a round did to one seat; written in the order of the list. */
typedef struct ds_round_out {
    int32_t seat, state;          /* state after the round */
    int32_t n_verify, n_accepted; /* drafts verified; of them emitted */
    int32_t n;                    /* new tokens, 0 for a seat that was not LIVE */
    int32_t token[DS_STEP_BLOCK + 1];
    float survival[DS_STEP_BLOCK]; /* of the drafts that were on offer; [0] < 0: none were */
} ds_round_out;

typedef struct ds_admit_args { /* page table patches, survivals, the K best drafts, rows */
    const int32_t *control;
    ds_seat *seat;         /* [S]; sets n_verify */
    int32_t *page_table;   /* [S + 1, page_stride] */
    const float *inv_temp; /* [block] 1 / T_k of the calibration */
    const float *odds; /* [block] or NULL: given conditional acceptance instead of confidences (benchmarks) */
    int T, S, block;   /* T rows; padding stands in slot S. n <= T, n <= 1024 */
    int max_n;         /* room of first, survival */
    int32_t *token, *pos, *slot; /* [T] */
    int32_t *row_seat;           /* [T] seat, -1: padding */
    int32_t *first;              /* [max_n + 1] first row of each listed seat, then the number of rows */
    float *survival;             /* [max_n, block] */
} ds_admit_args;

typedef struct ds_draw_args { /* token[r]: sampled as `sample` would with the seat's parameters */
    float *logits;            /* [R, V]; may be overwritten */
    int R, V, S;
    const ds_seat *seat;     /* [S] */
    const int32_t *row_seat; /* [R]; -1: token 0 */
    const int32_t *row_pos;  /* [R] the token's position is row_pos + ahead */
    int ahead;
    int32_t bad;    /* token of a row without usable numbers */
    int32_t *token; /* [R] */
} ds_draw_args;

typedef struct ds_accept_args { /* keeps drafts that equal the draws; moves the seats on */
    const int32_t *control, *first;
    const int32_t *drawn; /* [T] token drawn from each row, -1: unusable */
    const float *survival;
    const float *odds; /* as in ds_admit_args: drafts stand by these odds, whatever was drawn */
    ds_seat *seat;
    int S, block, max_n;
    ds_round_out *out; /* [max_n] */
} ds_accept_args;

typedef struct ds_block_args { /* rows of a draft pass over the first R of the list; the rest is padding */
    const int32_t *control;
    const ds_seat *seat;
    int R, S, block, mask_token;
    int max_len;                         /* positions of a slot: blocks that would pass it are not drafted */
    int32_t *token, *pos, *limit, *slot; /* [R * block] request-major; limit: last position a row sees */
    int32_t *order;                      /* [block * R] request-major row of each slot-major one */
    int32_t *anchor, *start, *row_seat;  /* [R] */
    float *state;                        /* [n_state] zeroed */
    int n_state;
} ds_block_args;

typedef struct ds_offer_args { /* drafts into their seats */
    ds_seat *seat;
    const int32_t *row_seat; /* [R] -1: nobody */
    const int32_t *token;    /* [block, R] */
    const float *conf;       /* [block, R]; NULL: no confidence head, all 30; NaN counts as -30 */
    int R, S, block;
} ds_offer_args;

typedef struct ds_graph ds_graph;
enum { DS_MARKS = 8 };

typedef struct ds_backend ds_backend;
struct ds_backend {
    const char *name;                                                       /* "cpu", "cuda" */
    const char *detail;                                                     /* e.g. "avx512bf16, 2 threads" */
    size_t mem_total, mem_free;                                             /* bytes, as seen at start */
    ds_code (*alloc)(ds_backend *b, size_t bytes, void **ret, ds_err *err); /* zeroed, 64-byte aligned */
    void (*free)(ds_backend *b, void *p);
    ds_code (*upload)(ds_backend *b, void *dst, const void *src, size_t bytes);   /* host -> device */
    ds_code (*download)(ds_backend *b, void *dst, const void *src, size_t bytes); /* device -> host; waits */
    ds_code (*sync)(ds_backend *b);
    void (*destroy)(ds_backend *b);

    /* Ops. Errors: DS_EINVAL shape or alignment, DS_EDEVICE launch or device fault, DS_ELOST sticky fault. */
    ds_code (*embed)(ds_backend *b, const ds_embed_args *a);
    ds_code (*rmsnorm)(ds_backend *b, const ds_rmsnorm_args *a);
    ds_code (*linear)(ds_backend *b, const ds_linear_args *a);
    ds_code (*qkv)(ds_backend *b, const ds_qkv_args *a);
    ds_code (*attention)(ds_backend *b, const ds_attn_args *a);
    ds_code (*silu_mul)(ds_backend *b, const ds_silu_mul_args *a);
    ds_code (*gather)(ds_backend *b, const ds_gather_args *a);
    ds_code (*cell)(ds_backend *b, const ds_cell_args *a);
    ds_code (*sample)(ds_backend *b, const ds_sample_args *a);

    /* The device loop. Values of control and seats are read on the device only. */
    ds_code (*admit)(ds_backend *b, const ds_admit_args *a);
    ds_code (*draw)(ds_backend *b, const ds_draw_args *a);
    ds_code (*accept)(ds_backend *b, const ds_accept_args *a);
    ds_code (*block)(ds_backend *b, const ds_block_args *a);
    ds_code (*offer)(ds_backend *b, const ds_offer_args *a);

    /* Host memory for transfers that are enqueued like ops: it must stay until they have passed. */
    ds_code (*pin)(ds_backend *b, size_t bytes, void **ret, ds_err *err);
    void (*unpin)(ds_backend *b, void *p);
    ds_code (*push)(ds_backend *b, void *dst, const void *pinned, size_t bytes);
    ds_code (*fetch)(ds_backend *b, void *pinned, const void *src, size_t bytes);
    /* Marks 0..DS_MARKS-1 in the stream: wait blocks the host until the stream has passed the newest mark i;
     * elapsed is the device time between two that it has passed. */
    ds_code (*mark)(ds_backend *b, int i);
    ds_code (*wait)(ds_backend *b, int i);
    ds_code (*elapsed)(ds_backend *b, int from, int to, double *ret_seconds);
    /* Ops between begin and end are collected, not run; launch enqueues them all. sample, transfers and marks
     * do not belong in a graph. After a failed end nothing is collected any more. */
    ds_code (*graph_begin)(ds_backend *b);
    ds_code (*graph_end)(ds_backend *b, ds_graph **ret, ds_err *err);
    ds_code (*graph_launch)(ds_backend *b, ds_graph *g);
    void (*graph_free)(ds_backend *b, ds_graph *g);
};

/* ds_backend_open: "cpu" or "cuda". threads: CPU threads, 0 = one per core of the process's affinity mask.
 * isa: NULL = best of this machine, else "avx512bf16", "avx512", "avx2", "portable" for the CPU; "auto",
 * "invariant", "portable" for CUDA (kernels/cuda/cuda.h). */
ds_code ds_backend_open(const char *name, int threads, const char *isa, ds_backend **ret, ds_err *err);

/* ds_quantize_i8: w [n, k] of src.dtype to DS_I8 blocks; q [n, k] int8, scale [n, k/32], host memory.
 * scale = max|w| / 127 of the block, q = round-to-nearest-even; error per weight <= scale / 2. k % 32 == 0.
 */
ds_code ds_quantize_i8(ds_mat src, int8_t *q, float *scale, ds_err *err);

#endif
