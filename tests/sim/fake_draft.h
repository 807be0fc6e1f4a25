/* fake_draft.h - a drafter for fake_target.h that knows the truth: it draws as the target will, drafts of the
 * block counted for the penalties, or at chosen odds from something else. Its context is a chain in pages of
 * its own, written by `context` alone; `propose` scribbles over the positions its block may use, so pages
 * that are shared, missing or not caught up show as lost acceptance (`lost`). */
#ifndef DS_TESTS_SIM_FAKE_DRAFT_H
#define DS_TESTS_SIM_FAKE_DRAFT_H

#include "tests/sim/fake_target.h"

typedef struct fake_draft {
    const fake_target *target;
    fake_target own; /* only its pages are used */
    int block, wrong_odds /* one slot in so many; 0: none */, fail_odds;
    uint64_t salt;
    float *logits; /* [block, R, V] of the last pass */
    long passes, drafted, lost /* anchors whose context was not what the target saw */;
} fake_draft;

static inline ds_code fake_draft_kv_alloc(void *draft, int pages, int page_tokens, ds_kv_pool *ret,
                                          ds_err *err)
{
    return fake_kv_alloc(&((fake_draft *)draft)->own, pages, page_tokens, ret, err);
}

static inline void fake_draft_kv_free(void *draft, ds_kv_pool *kv)
{
    fake_kv_free(&((fake_draft *)draft)->own, kv);
}

static inline ds_code fake_draft_context(void *draft, const ds_kv_pool *kv, const ds_rows *r,
                                         const float *taps, const int32_t *pick, ds_err *err)
{
    fake_draft *d = draft;
    (void)kv, (void)taps, (void)pick, (void)err;
    for (int t = 0; t < r->T; t++) {
        uint64_t before = r->pos[t] ? fake_at(&d->own, r, r->slot[t], r->pos[t] - 1)->chain : 0;
        *fake_at(&d->own, r, r->slot[t], r->pos[t]) =
            (fake_entry){r->token[t], r->pos[t], 0, fake_mix(before, (uint64_t)r->token[t] + 7)};
    }
    return DS_OK;
}

static inline void fake_draft_one(fake_draft *d, const ds_draft_batch *b, const ds_rows *at, int i)
{
    int start = b->start[i], slot = b->slot[i];
    uint64_t chain = start ? fake_at(&d->own, at, slot, start - 1)->chain : 0;
    d->lost += start > 0 && fake_at(d->target, at, slot, start - 1)->chain != chain;
    int32_t token = b->anchor[i], *x = b->token + (size_t)i * (size_t)d->block;
    for (int k = 0; k < d->block; k++) {
        float *y = d->logits + ((size_t)k * (size_t)b->R + (size_t)i) * FAKE_V;
        ds_sample_out out;
        ds_sample_row w = b->row[i];
        chain = fake_mix(chain, (uint64_t)token + 7);
        uint64_t h = fake_mix(fake_mix(chain, d->salt), (uint64_t)k);
        int wrong = d->wrong_odds && h % (uint64_t)d->wrong_odds == 0;
        fake_logits(wrong ? h : chain, 0, y); /* what is drafted is always drawn from y */
        w.pos = start + k + 1;
        w.extra = x;
        w.n_extra = w.n_seen ? k : 0;
        w.stream = b->independent ? ds_rng_draft_stream(k) : DS_RNG_TOKEN;
        fake_sample_one(y, &w, &out);
        token = x[k] = out.token;
        b->conf[(size_t)i * (size_t)d->block + (size_t)k] = (float)(h >> 32) * 0x1p-32f * 6 - 2;
        *fake_at(&d->own, at, slot, start + k) = (fake_entry){-1, -1, 0, h};
        d->drafted++;
    }
}

static inline ds_code fake_draft_propose(void *draft, const ds_kv_pool *kv, const ds_draft_batch *b,
                                         ds_err *err)
{
    fake_draft *d = draft;
    ds_rows at = {.page_table = b->page_table, .page_stride = b->page_stride, .page_tokens = b->page_tokens};
    (void)kv;
    d->passes++;
    if (d->fail_odds && fake_mix(d->salt, (uint64_t)d->passes) % (uint64_t)d->fail_odds == 0)
        return ds_err_set(err, DS_EDEVICE, "injected fault");
    size_t n = (size_t)b->R * FAKE_V;
    d->logits = realloc(d->logits, (size_t)d->block * n * sizeof *d->logits);
    for (int i = 0; i < b->R; i++)
        fake_draft_one(d, b, &at, i);
    if (b->logits)
        *b->logits = (ds_draft_logits){d->logits, n, FAKE_V};
    return DS_OK;
}

static inline void fake_draft_fini(fake_draft *d)
{
    free(d->logits);
}

static inline ds_drafter fake_draft_init(fake_draft *d, const fake_target *target, int block)
{
    *d = (fake_draft){.target = target, .block = block};
    return (ds_drafter){
        d, block, fake_draft_kv_alloc, fake_draft_kv_free, fake_draft_context, fake_draft_propose};
}

#endif
