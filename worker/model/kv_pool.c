/* kv_pool.c - memory of the paged KV: two blocks a layer, so that a page of a layer is one stretch. */
#include "worker/model/model.h"

#include <stdlib.h>

ds_code ds_kv_pool_alloc(ds_backend *b, int layers, int kv_heads, int head_dim, ds_dtype dtype, int pages,
                         int page_tokens, ds_kv_pool *ret, ds_err *err)
{
    size_t bytes = ds_dtype_size(dtype) * (size_t)kv_heads * (size_t)head_dim;
    *ret = (ds_kv_pool){.layers = layers, .pages = pages, .page_tokens = page_tokens};
    if (pages < 1 || page_tokens < 1 || page_tokens > 1024 ||
        __builtin_mul_overflow(bytes, (size_t)pages * (size_t)page_tokens, &bytes))
        return ds_err_field(err, DS_EINVAL, "kv_pages", "kv_pages %d of %d tokens: sizes must be positive",
                            pages, page_tokens);
    ret->layer = calloc((size_t)layers, sizeof *ret->layer);
    if (!ret->layer)
        return ds_err_set(err, DS_ENOMEM, "no memory for %d KV layers", layers);
    for (int i = 0; i < layers; i++) {
        ret->layer[i].dtype = dtype;
        ds_code code = b->alloc(b, bytes, &ret->layer[i].k, err);
        if (code == DS_OK)
            code = b->alloc(b, bytes, &ret->layer[i].v, err);
        if (code != DS_OK) {
            ds_kv_pool_free(b, ret);
            return code;
        }
    }
    return DS_OK;
}

void ds_kv_pool_free(ds_backend *b, ds_kv_pool *kv)
{
    for (int i = 0; kv->layer && i < kv->layers; i++) {
        if (kv->layer[i].k)
            b->free(b, kv->layer[i].k);
        if (kv->layer[i].v)
            b->free(b, kv->layer[i].v);
    }
    free(kv->layer);
    *kv = (ds_kv_pool){0};
}
