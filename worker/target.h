/* target.h - the engine's view of a target model: four calls. The engine sees no more of model and back end
 * than this, so a simulation can stand in for them. */
#ifndef DS_WORKER_TARGET_H
#define DS_WORKER_TARGET_H

#include "worker/engine.h"

typedef struct ds_target {
    void *model, *device; /* first arguments of the calls below */
    const ds_model_info *info;
    ds_code (*kv_alloc)(void *model, int pages, int page_tokens, ds_kv_pool *ret, ds_err *err);
    void (*kv_free)(void *model, ds_kv_pool *kv);
    ds_code (*forward)(void *model, const ds_kv_pool *kv, ds_step_args *a, ds_err *err);
    ds_code (*sample)(void *device, const ds_sample_args *a);
    int has_loop; /* model, device and the drafter's draft are a ds_model, ds_backend and ds_draft, so the
                   * device loop can drive them */
} ds_target;

/* ds_drafter: the same of a draft. */
typedef struct ds_drafter {
    void *draft;
    int block; /* drafts of one pass, 1..DS_MAX_BLOCK */
    ds_code (*kv_alloc)(void *draft, int pages, int page_tokens, ds_kv_pool *ret, ds_err *err);
    void (*kv_free)(void *draft, ds_kv_pool *kv);
    ds_code (*context)(void *draft, const ds_kv_pool *kv, const ds_rows *rows, const float *taps,
                       const int32_t *pick, ds_err *err);
    ds_code (*propose)(void *draft, const ds_kv_pool *kv, const ds_draft_batch *b, ds_err *err);
    int no_confidence; /* 1: without the head, confidences are stand-ins: nothing to calibrate */
} ds_drafter;

/* ds_engine_create_on: ds_engine_create over any target and drafter (NULL: none); copies both. */
ds_code ds_engine_create_on(const ds_engine_conf *conf, const ds_target *target, const ds_drafter *drafter,
                            ds_event_fn fn, void *ctx, ds_engine **ret, ds_err *err);

#endif
