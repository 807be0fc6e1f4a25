/* hash_target.h - a target model in O(1) per row whose next token is a keyed hash of the whole context, so
 * that a lost, doubled or foreign token shows by arithmetic (also in tests/e2e: fake_model.py has the same
 * lines). chain(0) = 0;  chain(i+1) = mix(chain(i), token[i] + 7);  next = first + mix(chain, T > 0 ? seed :
 * 0) % span */
#ifndef DS_TESTS_LIB_HASH_TARGET_H
#define DS_TESTS_LIB_HASH_TARGET_H

#include "worker/target.h"

#include <stdlib.h>

typedef struct hash_target {
    ds_model_info info;
    ds_kv_layer layer; /* k: [pages * page_tokens] u64, the chain of each position */
    uint64_t *chain;   /* [max_logit_rows] of the rows to sample */
    int first, span;   /* tokens are in [first, first + span) */
    int eos, eos_odds; /* one in eos_odds tokens is eos; 0: never */
    void (*before_step)(struct hash_target *t, ds_code *ret); /* fault orders; may be NULL */
    long tokens;                                              /* sampled so far */
    int nan_next;                                             /* 1: the next sampled row is bad */
} hash_target;

static inline uint64_t hash_mix(uint64_t h, uint64_t v)
{
    h = (h ^ v) * 0x9E3779B97F4A7C15u;
    h = (h ^ h >> 30) * 0xBF58476D1CE4E5B9u;
    return h ^ h >> 27;
}

static inline int32_t hash_token(const hash_target *t, uint64_t chain, uint64_t seed)
{
    uint64_t h = hash_mix(chain, seed);
    if (t->eos_odds && h % (uint64_t)t->eos_odds == 0)
        return t->eos;
    return (int32_t)((uint64_t)t->first + (h >> 8) % (uint64_t)t->span);
}

static inline ds_code hash_kv_alloc(void *model, int pages, int page_tokens, ds_kv_pool *ret, ds_err *err)
{
    hash_target *t = model;
    t->layer.k = calloc((size_t)pages * (size_t)page_tokens, sizeof(uint64_t));
    *ret = (ds_kv_pool){&t->layer, 1, pages, page_tokens};
    return t->layer.k ? DS_OK : ds_err_set(err, DS_ENOMEM, "no memory for %d pages", pages);
}

static inline void hash_kv_free(void *model, ds_kv_pool *kv)
{
    (void)kv;
    free(((hash_target *)model)->layer.k);
}

static inline uint64_t *hash_at(const hash_target *t, const ds_rows *r, int slot, int pos)
{
    int32_t page = r->page_table[(size_t)slot * (size_t)r->page_stride + (size_t)(pos / r->page_tokens)];
    return (uint64_t *)t->layer.k + (size_t)page * (size_t)r->page_tokens + pos % r->page_tokens;
}

static inline ds_code hash_forward(void *model, const ds_kv_pool *kv, ds_step_args *a, ds_err *err)
{
    hash_target *t = model;
    const ds_rows *r = &a->rows;
    ds_code code = DS_OK;
    (void)kv;
    if (t->before_step)
        t->before_step(t, &code);
    if (code != DS_OK)
        return ds_err_set(err, code, "fault order");
    for (int i = 0; i < r->T; i++) {
        uint64_t before = r->pos[i] ? *hash_at(t, r, r->slot[i], r->pos[i] - 1) : 0;
        *hash_at(t, r, r->slot[i], r->pos[i]) = hash_mix(before, (uint64_t)r->token[i] + 7);
    }
    for (int k = 0; k < a->R; k++)
        t->chain[k] = *hash_at(t, r, r->slot[a->logit_row[k]], r->pos[a->logit_row[k]]);
    return DS_OK;
}

static inline ds_code hash_sample(void *device, const ds_sample_args *a)
{
    hash_target *t = device;
    for (int k = 0; k < a->R; k++) {
        const ds_sample_row *w = &a->row[k];
        ds_sample_out *o = &a->out[k];
        *o = (ds_sample_out){.token = w->given, .logprob = -1, .rank = 1};
        if (w->given < 0) {
            o->token = hash_token(t, t->chain[k], w->temperature > 0 ? w->seed : 0);
            for (int i = 0; w->pos < w->banned_until && i < w->n_banned; i++)
                if (o->token == w->banned[i])
                    o->token = t->first + (o->token + 1 - t->first) % t->span;
            t->tokens++;
            o->bad = t->nan_next;
            t->nan_next = 0;
        }
        for (int i = 0; i < w->n_logprobs; i++) {
            o->top_id[i] = t->first + (o->token + i) % t->span;
            o->top_logprob[i] = -1.0f - (float)i;
            o->n_top = i + 1;
        }
    }
    return DS_OK;
}

/* hash_init: first, span, eos and eos_odds are set by the caller afterwards. max_logit_rows: of the engine's
 * conf. */
static inline ds_target hash_init(hash_target *t, int vocab, int max_positions, int max_logit_rows)
{
    *t = (hash_target){.first = 0, .span = vocab, .eos = -1};
    t->info = (ds_model_info){.arch = "Hash", .vocab = vocab, .max_positions = max_positions};
    t->chain = calloc((size_t)max_logit_rows, sizeof *t->chain);
    return (ds_target){t, t, &t->info, hash_kv_alloc, hash_kv_free, hash_forward, hash_sample};
}

#endif
