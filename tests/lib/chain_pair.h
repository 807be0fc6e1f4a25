/* chain_pair.h - a target and a drafter that are Markov chains of order two over a few tokens, so that the
 * exact next-token probabilities are a small table. Both keep their tokens in pages like a model keeps its KV
 * (a stale or foreign row is counted in `corrupt`), both draw through the real sampler, and a clock of its
 * own makes passes cost what the caller says. The drafter's confidences hang on the token drafted before,
 * which is what an unlawful scheduler would give away. Included by tests only. */
#ifndef DS_TESTS_LIB_CHAIN_PAIR_H
#define DS_TESTS_LIB_CHAIN_PAIR_H

#include "base/rng.h"
#include "worker/target.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

enum { CHAIN_V = 8, CHAIN_CONTEXTS = CHAIN_V * CHAIN_V };

/* Wrong on purpose, each in one place: what a lossless engine must not do. */
typedef enum {
    CHAIN_RIGHT,
    CHAIN_GREEDY_ACCEPT, /* drafts are accepted half again as often as they may be */
    CHAIN_RESIDUAL_P,    /* a refused draft is replaced by a draw from p, not from what p has beyond q */
    CHAIN_Q_LIES,        /* the drafter reports another distribution than it drew from */
    CHAIN_SHARED_NOISE   /* drafts share their noise with the residual draw */
} chain_fault;

typedef struct chain_pair {
    ds_model_info info;
    ds_backend *b; /* draws */
    int block, max_seqs;
    chain_fault fault;
    float target[CHAIN_CONTEXTS][CHAIN_V], draft[CHAIN_CONTEXTS][CHAIN_V], conf[CHAIN_CONTEXTS];
    uint64_t now, base_ns, row_ns, draft_ns; /* a target pass costs base and so much a row */
    int stair;                               /* rows are paid for in so many */
    ds_kv_layer kv, ctx;
    float *logits, *draft_logits, *told;
    ds_sample_row *row;
    ds_sample_out *out;
    long corrupt, refused;
} chain_pair;

static inline float chain_normal(uint64_t seed, uint32_t i)
{
    float u = ds_rng_unit(ds_rng_u32(seed, DS_RNG_INIT, 0, 2 * i)),
          v = ds_rng_unit(ds_rng_u32(seed, DS_RNG_INIT, 0, 2 * i + 1));
    return sqrtf(-2 * logf(u)) * cosf(6.2831853f * v);
}

static inline uint64_t chain_clock(void *ctx)
{
    return ((chain_pair *)ctx)->now += 1;
}

/* A page entry: token and position. */
static inline int32_t *chain_at(void *layer, const ds_rows *r, int slot, int pos)
{
    int32_t page = r->page_table[(size_t)slot * (size_t)r->page_stride + (size_t)(pos / r->page_tokens)];
    return (int32_t *)layer + 2 * ((size_t)page * (size_t)r->page_tokens + (size_t)(pos % r->page_tokens));
}

static inline ds_code chain_alloc(ds_kv_layer *layer, int pages, int page_tokens, ds_kv_pool *ret)
{
    layer->k = calloc(2 * (size_t)pages * (size_t)page_tokens, sizeof(int32_t));
    *ret = (ds_kv_pool){layer, 1, pages, page_tokens};
    return DS_OK;
}

static inline ds_code chain_kv_alloc(void *p, int pages, int page_tokens, ds_kv_pool *ret, ds_err *err)
{
    (void)err;
    return chain_alloc(&((chain_pair *)p)->kv, pages, page_tokens, ret);
}

static inline ds_code chain_ctx_alloc(void *p, int pages, int page_tokens, ds_kv_pool *ret, ds_err *err)
{
    (void)err;
    return chain_alloc(&((chain_pair *)p)->ctx, pages, page_tokens, ret);
}

static inline void chain_kv_free(void *p, ds_kv_pool *kv)
{
    (void)p;
    free(kv->layer[0].k);
}

static inline void chain_put(void *layer, const ds_rows *r, int t)
{
    int32_t *e = chain_at(layer, r, r->slot[t], r->pos[t]);
    e[0] = r->token[t];
    e[1] = r->pos[t];
}

/* The token before position pos, as the pages have it. */
static inline int chain_before(chain_pair *c, void *layer, const ds_rows *r, int slot, int pos)
{
    if (pos == 0)
        return 0;
    const int32_t *e = chain_at(layer, r, slot, pos - 1);
    c->corrupt += e[1] != pos - 1;
    return e[0];
}

static inline ds_code chain_forward(void *p, const ds_kv_pool *kv, ds_step_args *a, ds_err *err)
{
    chain_pair *c = p;
    const ds_rows *r = &a->rows;
    (void)kv, (void)err;
    c->now += c->base_ns + c->row_ns * (uint64_t)((r->T + c->stair - 1) / c->stair * c->stair);
    for (int t = 0; t < r->T; t++)
        chain_put(c->kv.k, r, t);
    for (int k = 0; k < a->R; k++) {
        int t = a->logit_row[k], before = chain_before(c, c->kv.k, r, r->slot[t], r->pos[t]);
        memcpy(c->logits + (size_t)k * CHAIN_V, c->target[before * CHAIN_V + r->token[t]],
               sizeof c->target[0]);
    }
    a->logits = c->logits;
    return DS_OK;
}

static inline ds_code chain_context(void *p, const ds_kv_pool *kv, const ds_rows *r, const float *taps,
                                    const int32_t *pick, ds_err *err)
{
    (void)kv, (void)taps, (void)pick, (void)err;
    for (int t = 0; t < r->T; t++)
        chain_put(((chain_pair *)p)->ctx.k, r, t);
    return DS_OK;
}

static inline uint32_t chain_stream(const chain_pair *c, const ds_draft_batch *b, int k)
{
    if (!b->independent)
        return DS_RNG_TOKEN;
    return c->fault == CHAIN_SHARED_NOISE ? (uint32_t)DS_RNG_FINAL : ds_rng_draft_stream(k);
}

/* As the real drafter: slot by slot for all requests, each slot's logits kept for the acceptance test. */
static inline ds_code chain_propose(void *p, const ds_kv_pool *kv, const ds_draft_batch *b, ds_err *err)
{
    chain_pair *c = p;
    ds_rows at = {.page_table = b->page_table, .page_stride = b->page_stride, .page_tokens = b->page_tokens};
    size_t n = (size_t)b->R * CHAIN_V;
    (void)kv, (void)err;
    c->now += c->draft_ns;
    for (int k = 0; k < c->block; k++) {
        float *y = c->draft_logits + (size_t)k * n;
        for (int i = 0; i < b->R; i++) {
            const int32_t *x = b->token + i * c->block;
            int last = k ? x[k - 1] : b->anchor[i],
                before = k > 1   ? x[k - 2]
                         : k > 0 ? b->anchor[i]
                                 : chain_before(c, c->ctx.k, &at, b->slot[i], b->start[i]);
            memcpy(y + i * CHAIN_V, c->draft[before * CHAIN_V + last], sizeof c->draft[0]);
            b->conf[i * c->block + k] = c->conf[before * CHAIN_V + last];
            c->row[i] = b->row[i];
            c->row[i].pos = (int64_t)b->start[i] + k + 1;
            c->row[i].n_logprobs = c->row[i].given = -1;
            c->row[i].stream = chain_stream(c, b, k);
            c->row[i].extra = x;
            c->row[i].n_extra = b->row[i].n_seen ? k : 0;
        }
        ds_sample_args s = {y, b->R, CHAIN_V, c->row, c->out};
        DS_TRY(c->b->sample(c->b, &s));
        for (int i = 0; i < b->R; i++)
            b->token[i * c->block + k] = c->out[i].token;
    }
    for (size_t i = 0; i < (size_t)c->block * n; i++)
        c->told[i] = c->draft_logits[i] * 0.6f;
    if (b->logits)
        *b->logits = (ds_draft_logits){c->fault == CHAIN_Q_LIES ? c->told : c->draft_logits, n, CHAIN_V};
    return DS_OK;
}

/* softmax(logits / T); temperature only. */
static inline void chain_softmax(const float *logits, double temperature, double *p)
{
    double sum = 0;
    for (int v = 0; v < CHAIN_V; v++)
        sum += p[v] = exp((double)logits[v] / temperature);
    for (int v = 0; v < CHAIN_V; v++)
        p[v] /= sum;
}

/* A verify row by one of the two wrong rules. */
static inline void chain_wrong(const chain_pair *c, const float *logits, const ds_sample_row *w,
                               ds_sample_out *o)
{
    double p[CHAIN_V], q[CHAIN_V], sum = 0, r[CHAIN_V];
    chain_softmax(logits, (double)w->temperature, p);
    chain_softmax(w->draft_logits, (double)w->temperature, q);
    double u = (double)ds_rng_unit(ds_rng_u32(w->seed, DS_RNG_ACCEPT, (uint64_t)w->pos, 0)),
           f = (double)ds_rng_unit(ds_rng_u32(w->seed, DS_RNG_FINAL, (uint64_t)w->pos, 0));
    o->token = w->draft;
    if (u * q[w->draft] < p[w->draft] * (c->fault == CHAIN_GREEDY_ACCEPT ? 1.5 : 1.0))
        return;
    for (int v = 0; v < CHAIN_V; v++)
        sum += r[v] = c->fault == CHAIN_RESIDUAL_P ? p[v] : fmax(p[v] - q[v], 0);
    for (int v = 0; v < CHAIN_V; v++)
        if ((f -= r[v] / sum) < 0 || v == CHAIN_V - 1) {
            o->token = v;
            return;
        }
}

static inline ds_code chain_sample(void *p, const ds_sample_args *a)
{
    chain_pair *c = p;
    DS_TRY(c->b->sample(c->b, a));
    for (int i = 0; i < a->R; i++) {
        c->refused += a->row[i].draft_logits && a->out[i].token != a->row[i].draft;
        if (a->row[i].draft_logits && (c->fault == CHAIN_GREEDY_ACCEPT || c->fault == CHAIN_RESIDUAL_P))
            chain_wrong(c, a->logits + (size_t)i * CHAIN_V, &a->row[i], &a->out[i]);
    }
    return DS_OK;
}

/* chain_init: for an engine of max_seqs sequences and max_rows rows; fault and costs are set by
 * the caller afterwards. likeness: 0 (the draft knows nothing) .. 1 (the draft is the target). */
static inline void chain_init(chain_pair *c, ds_backend *b, int block, float likeness, int max_seqs,
                              int max_rows, uint64_t seed)
{
    *c = (chain_pair){.b = b, .block = block, .max_seqs = max_seqs, .stair = 1};
    c->info = (ds_model_info){.arch = "Chain", .vocab = CHAIN_V, .max_positions = 1024};
    for (int i = 0; i < CHAIN_CONTEXTS; i++) {
        c->conf[i] = 3 * chain_normal(seed + 2, (uint32_t)i);
        for (int v = 0; v < CHAIN_V; v++) {
            c->target[i][v] = 1.3f * chain_normal(seed, (uint32_t)(i * CHAIN_V + v));
            c->draft[i][v] = likeness * c->target[i][v] +
                             (1 - likeness) * 1.3f * chain_normal(seed + 1, (uint32_t)(i * CHAIN_V + v));
        }
    }
    c->logits = calloc((size_t)max_rows * CHAIN_V, sizeof *c->logits);
    c->draft_logits = calloc((size_t)block * (size_t)max_seqs * CHAIN_V, sizeof *c->draft_logits);
    c->told = calloc((size_t)block * (size_t)max_seqs * CHAIN_V, sizeof *c->told);
    c->row = calloc((size_t)max_seqs, sizeof *c->row);
    c->out = calloc((size_t)max_seqs, sizeof *c->out);
}

static inline void chain_fini(chain_pair *c)
{
    free(c->logits);
    free(c->draft_logits);
    free(c->told);
    free(c->row);
    free(c->out);
}

static inline ds_target chain_target(chain_pair *c)
{
    return (ds_target){c, c, &c->info, chain_kv_alloc, chain_kv_free, chain_forward, chain_sample};
}

static inline ds_drafter chain_drafter(chain_pair *c)
{
    return (ds_drafter){c, c->block, chain_ctx_alloc, chain_kv_free, chain_context, chain_propose};
}

#endif
