/* target.c - the real target: a model on a back end. */
#include "worker/target.h"

static ds_code kv_alloc(void *model, int pages, int page_tokens, ds_kv_pool *ret, ds_err *err)
{
    return ds_model_kv_alloc(model, pages, page_tokens, ret, err);
}

static void kv_free(void *model, ds_kv_pool *kv)
{
    ds_model_kv_free(model, kv);
}

static ds_code forward(void *model, const ds_kv_pool *kv, ds_step_args *a, ds_err *err)
{
    return ds_model_forward(model, kv, a, err);
}

static ds_code sample(void *device, const ds_sample_args *a)
{
    ds_backend *b = device;
    return b->sample(b, a);
}

static ds_code draft_kv_alloc(void *draft, int pages, int page_tokens, ds_kv_pool *ret, ds_err *err)
{
    return ds_draft_kv_alloc(draft, pages, page_tokens, ret, err);
}

static void draft_kv_free(void *draft, ds_kv_pool *kv)
{
    ds_draft_kv_free(draft, kv);
}

static ds_code draft_context(void *draft, const ds_kv_pool *kv, const ds_rows *rows, const float *taps,
                             const int32_t *pick, ds_err *err)
{
    return ds_draft_context(draft, kv, rows, taps, pick, err);
}

static ds_code draft_propose(void *draft, const ds_kv_pool *kv, const ds_draft_batch *b, ds_err *err)
{
    return ds_draft_block(draft, kv, b, err);
}

ds_code ds_engine_create_drafted(const ds_engine_conf *conf, ds_model *model, ds_draft *draft, ds_backend *b,
                                 ds_event_fn fn, void *ctx, ds_engine **ret, ds_err *err)
{
    ds_target target = {model, b, ds_model_get_info(model), kv_alloc, kv_free, forward, sample, 1};
    ds_drafter drafter = {draft,
                          draft ? ds_draft_get_info(draft)->block : 0,
                          draft_kv_alloc,
                          draft_kv_free,
                          draft_context,
                          draft_propose,
                          draft ? !ds_draft_get_info(draft)->confidence : 0};
    return ds_engine_create_on(conf, &target, draft ? &drafter : NULL, fn, ctx, ret, err);
}

ds_code ds_engine_create(const ds_engine_conf *conf, ds_model *model, ds_backend *b, ds_event_fn fn,
                         void *ctx, ds_engine **ret, ds_err *err)
{
    return ds_engine_create_drafted(conf, model, NULL, b, fn, ctx, ret, err);
}
