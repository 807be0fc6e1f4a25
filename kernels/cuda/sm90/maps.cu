/* maps.cu - tensor maps of weight matrices, made once each; the copy engine reads tiles through them. */
#include "kernels/cuda/sm90/maps.h"

#include <stdlib.h>
#include <string.h>

typedef CUresult (*encode_fn)(CUtensorMap *, CUtensorMapDataType, cuuint32_t, void *, const cuuint64_t *,
                              const cuuint64_t *, const cuuint32_t *, const cuuint32_t *,
                              CUtensorMapInterleave, CUtensorMapSwizzle, CUtensorMapL2promotion,
                              CUtensorMapFloatOOBfill);

typedef struct entry {
    const void *data; /* NULL: free */
    int n, k;
    CUtensorMap map;
} entry;

struct ds_cuda_maps {
    encode_fn encode;
    entry *slot; /* [cap] open addressing by data */
    size_t cap, used;
};

static ds_cuda_maps *maps_of(ds_cuda *c)
{
    if (c->maps)
        return c->maps;
    void *fn = NULL;
    cudaDriverEntryPointQueryResult found;
    if (cudaGetDriverEntryPointByVersion("cuTensorMapEncodeTiled", &fn, 12000, cudaEnableDefault, &found) !=
            cudaSuccess ||
        found != cudaDriverEntryPointSuccess)
        return NULL;
    c->maps = (ds_cuda_maps *)calloc(1, sizeof *c->maps);
    if (c->maps)
        c->maps->encode = (encode_fn)fn;
    return c->maps;
}

void ds_cuda_maps_destroy(ds_cuda_maps *m)
{
    if (m)
        free(m->slot);
    free(m);
}

void ds_cuda_maps_forget(ds_cuda_maps *m, const void *p)
{
    for (size_t i = 0; m && i < m->cap; i++) /* the entry stays as a tombstone: it is found but never equal */
        if (m->slot[i].data == p)
            m->slot[i].n = m->slot[i].k = 0;
}

ds_code ds_cuda_map_make(ds_cuda *c, const void *data, int rows, int k, int box_rows, CUtensorMap *ret)
{
    ds_cuda_maps *m = maps_of(c);
    if (!m)
        return DS_EDEVICE;
    const cuuint64_t dims[2] = {(cuuint64_t)k, (cuuint64_t)rows}, strides[1] = {2 * (cuuint64_t)k};
    const cuuint32_t box[2] = {DS_SM90_K, (cuuint32_t)box_rows}, step[2] = {1, 1};
    CUresult e = m->encode(ret, CU_TENSOR_MAP_DATA_TYPE_BFLOAT16, 2, (void *)(uintptr_t)data, dims, strides,
                           box, step, CU_TENSOR_MAP_INTERLEAVE_NONE, CU_TENSOR_MAP_SWIZZLE_128B,
                           CU_TENSOR_MAP_L2_PROMOTION_L2_256B, CU_TENSOR_MAP_FLOAT_OOB_FILL_NONE);
    return e == CUDA_SUCCESS ? DS_OK : DS_EDEVICE;
}

static entry *find(ds_cuda_maps *m, const void *data)
{
    size_t i = ((uintptr_t)data >> 8) * 0x9E3779B97F4A7C15u % m->cap;
    while (m->slot[i].data && m->slot[i].data != data)
        i = (i + 1) % m->cap;
    return &m->slot[i];
}

static ds_code grow(ds_cuda_maps *m)
{
    entry *old = m->slot;
    size_t n = m->cap;
    entry *bigger = (entry *)calloc(n ? 2 * n : 1024, sizeof *bigger);
    if (!bigger)
        return DS_ENOMEM;
    m->slot = bigger;
    m->cap = n ? 2 * n : 1024;
    for (size_t i = 0; i < n; i++)
        if (old[i].data)
            *find(m, old[i].data) = old[i];
    free(old);
    return DS_OK;
}

ds_code ds_cuda_map_weights(ds_cuda *c, const ds_mat *w, CUtensorMap *ret)
{
    ds_cuda_maps *m = maps_of(c);
    if (!m)
        return DS_EDEVICE;
    if (2 * m->used >= m->cap)
        DS_TRY(grow(m));
    entry *e = find(m, w->data);
    if (e->n != w->n || e->k != w->k || !e->data) {
        m->used += !e->data;
        e->data = w->data;
        e->n = e->k = 0;
        DS_TRY(ds_cuda_map_make(c, w->data, w->n, w->k, DS_SM90_N, &e->map));
        e->n = w->n;
        e->k = w->k;
    }
    *ret = e->map;
    return DS_OK;
}
