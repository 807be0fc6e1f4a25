/* hash_draft.h - a drafter for hash_target.h that is right with a chosen probability at each position of its
 * block. It keeps the context's chain in pages of its own, written by `context` alone, and scribbles over the
 * positions a block may use: a context row that is missing, foreign or not rewritten makes every draft behind
 * it wrong, which shows as lost acceptance. */
#ifndef DS_TESTS_LIB_HASH_DRAFT_H
#define DS_TESTS_LIB_HASH_DRAFT_H

#include "tests/lib/hash_target.h"

#include <math.h>

typedef struct hash_draft {
    const hash_target *t;
    hash_target own; /* its pages, as a chain of the same kind */
    int block;
    double right[DS_MAX_BLOCK]; /* probability that slot k is drawn as the target will */
    uint64_t salt;
    long passes, fail_every; /* one pass in fail_every fails; 0: none */
} hash_draft;

static inline ds_code hash_draft_kv_alloc(void *draft, int pages, int page_tokens, ds_kv_pool *ret,
                                          ds_err *err)
{
    return hash_kv_alloc(&((hash_draft *)draft)->own, pages, page_tokens, ret, err);
}

static inline void hash_draft_kv_free(void *draft, ds_kv_pool *kv)
{
    hash_kv_free(&((hash_draft *)draft)->own, kv);
}

static inline ds_code hash_draft_context(void *draft, const ds_kv_pool *kv, const ds_rows *r,
                                         const float *taps, const int32_t *pick, ds_err *err)
{
    hash_draft *d = draft;
    (void)kv, (void)taps, (void)pick, (void)err;
    for (int i = 0; i < r->T; i++) {
        uint64_t before = r->pos[i] ? *hash_at(&d->own, r, r->slot[i], r->pos[i] - 1) : 0;
        *hash_at(&d->own, r, r->slot[i], r->pos[i]) = hash_mix(before, (uint64_t)r->token[i] + 7);
    }
    return DS_OK;
}

static inline ds_code hash_draft_propose(void *draft, const ds_kv_pool *kv, const ds_draft_batch *b,
                                         ds_err *err)
{
    hash_draft *d = draft;
    ds_rows at = {.page_table = b->page_table, .page_stride = b->page_stride, .page_tokens = b->page_tokens};
    (void)kv;
    if (d->fail_every && ++d->passes % d->fail_every == 0)
        return ds_err_set(err, DS_EDEVICE, "fault order");
    for (int i = 0; i < b->R; i++) {
        uint64_t seed = b->row[i].temperature > 0 ? b->row[i].seed : 0;
        uint64_t chain = b->start[i] ? *hash_at(&d->own, &at, b->slot[i], b->start[i] - 1) : 0;
        int32_t token = b->anchor[i];
        for (int k = 0; k < d->block; k++) {
            chain = hash_mix(chain, (uint64_t)token + 7);
            token = hash_token(d->t, chain, seed);
            uint64_t h = hash_mix(hash_mix(chain, d->salt), (uint64_t)k);
            if ((double)(h >> 11) * 0x1p-53 >= d->right[k])
                token = d->t->first + (token - d->t->first + 1) % d->t->span;
            b->token[i * d->block + k] = token;
            b->conf[i * d->block + k] = (float)log((d->right[k] + 1e-6) / (1 - d->right[k] + 1e-6));
            *hash_at(&d->own, &at, b->slot[i], b->start[i] + k) = 0x5c71bb1e;
        }
    }
    return DS_OK;
}

/* hash_draft_init: every slot right with the same probability. */
static inline ds_drafter hash_draft_init(hash_draft *d, const hash_target *t, int block, double right)
{
    *d = (hash_draft){.t = t, .block = block};
    for (int k = 0; k < block; k++)
        d->right[k] = right;
    return (ds_drafter){
        d, block, hash_draft_kv_alloc, hash_draft_kv_free, hash_draft_context, hash_draft_propose};
}

#endif
