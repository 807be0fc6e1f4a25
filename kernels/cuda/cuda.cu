/* cuda.cu - opening the CUDA back end, its memory and its errors. */
#include "kernels/cuda/internal.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

extern "C" {
#include "kernels/cuda/cuda.h"
}

/* --- errors -------------------------------------------------------------------------------------------- */

/* After one of these the context is gone for good: the worker must report and exit. */
static int is_sticky(cudaError_t e)
{
    switch (e) {
    case cudaErrorIllegalAddress:
    case cudaErrorIllegalInstruction:
    case cudaErrorMisalignedAddress:
    case cudaErrorInvalidAddressSpace:
    case cudaErrorInvalidPc:
    case cudaErrorHardwareStackError:
    case cudaErrorLaunchFailure:
    case cudaErrorLaunchTimeout:
    case cudaErrorAssert:
    case cudaErrorECCUncorrectable:
    case cudaErrorNvlinkUncorrectable:
    case cudaErrorContained:
    case cudaErrorTensorMemoryLeak:
    case cudaErrorDevicesUnavailable:
    case cudaErrorUnknown:
        return 1;
    default:
        return 0;
    }
}

ds_code ds_cuda_code(ds_cuda *c, cudaError_t e)
{
    if (e == cudaSuccess)
        return c->lost ? DS_ELOST : DS_OK;
    c->last = e;
    (void)cudaGetLastError(); /* clears it unless it is sticky */
    if (e == cudaErrorMemoryAllocation)
        return DS_ENOMEM;
    if (!is_sticky(e))
        return DS_EDEVICE;
    c->lost = 1;
    return DS_ELOST;
}

/* --- memory -------------------------------------------------------------------------------------------- */

static ds_code cuda_alloc(ds_backend *b, size_t bytes, void **ret, ds_err *err)
{
    ds_cuda *c = ds_cuda_of(b);
    *ret = NULL;
    cudaError_t e = cudaMalloc(ret, bytes ? bytes : 1);
    if (e == cudaSuccess)
        e = cudaMemsetAsync(*ret, 0, bytes, c->stream);
    if (e == cudaSuccess)
        return DS_OK;
    ds_code code = ds_cuda_code(c, e);
    size_t free_now = 0, total = 0;
    (void)cudaMemGetInfo(&free_now, &total);
    cudaFree(*ret);
    *ret = NULL;
    if (code == DS_ENOMEM)
        return ds_err_set(err, code, "no device memory for %zu bytes: %.2f of %.2f GiB are free", bytes,
                          (double)free_now / (1 << 30), (double)total / (1 << 30));
    return ds_err_set(err, code, "device memory of %zu bytes: %s", bytes, cudaGetErrorString(e));
}

static void cuda_free(ds_backend *b, void *p)
{
    ds_cuda *c = ds_cuda_of(b);
    if (!p)
        return;
    (void)ds_cuda_flush(c);
    if (c->shadow.of == p)
        c->shadow.of = NULL;
    ds_cuda_maps_forget(c->maps, p);
    (void)ds_cuda_code(c, cudaStreamSynchronize(c->stream));
    (void)ds_cuda_code(c, cudaFree(p));
}

static ds_code cuda_upload(ds_backend *b, void *dst, const void *src, size_t bytes)
{
    ds_cuda *c = ds_cuda_of(b);
    if (bytes == 0)
        return DS_OK;
    DS_TRY(ds_cuda_flush(c));
    ds_cuda_wrote(c, dst, bytes);
    return ds_cuda_code(c, cudaMemcpyAsync(dst, src, bytes, cudaMemcpyHostToDevice, c->stream));
}

static ds_code cuda_sync(ds_backend *b)
{
    ds_cuda *c = ds_cuda_of(b);
    DS_TRY(ds_cuda_flush(c));
    return ds_cuda_code(c, cudaStreamSynchronize(c->stream));
}

static ds_code cuda_download(ds_backend *b, void *dst, const void *src, size_t bytes)
{
    ds_cuda *c = ds_cuda_of(b);
    DS_TRY(ds_cuda_flush(c));
    if (bytes)
        DS_TRY(ds_cuda_code(c, cudaMemcpyAsync(dst, src, bytes, cudaMemcpyDeviceToHost, c->stream)));
    return cuda_sync(b);
}

ds_code ds_cuda_room(ds_cuda *c, ds_cuda_room_block *r, size_t bytes)
{
    if (bytes <= r->bytes)
        return DS_OK;
    size_t want = bytes > 2 * r->bytes ? bytes : 2 * r->bytes;
    want = (want + 255) & ~(size_t)255;
    if (c->n_old == DS_CUDA_OLD)
        return DS_ENOMEM;
    void *p = NULL;
    cudaError_t e = cudaMalloc(&p, want);
    if (e == cudaSuccess)
        e = cudaMemsetAsync(p, 0, want, c->stream);
    if (e != cudaSuccess) {
        cudaFree(p);
        return ds_cuda_code(c, e);
    }
    if (r->p)
        c->old[c->n_old++] = r->p;
    *r = {p, want};
    return DS_OK;
}

void ds_cuda_wrote(ds_cuda *c, const void *p, size_t bytes)
{
    const char *of = (const char *)c->shadow.of, *at = (const char *)p;
    size_t held = sizeof(float) * (size_t)c->shadow.T * (size_t)c->shadow.K;
    if (of && at < of + held && of < at + bytes)
        c->shadow.of = NULL;
}

ds_code ds_cuda_shadow(ds_cuda *c, const float *of, int T, int K, __nv_bfloat16 **ret)
{
    *ret = NULL;
    c->shadow.of = NULL;
    if (!c->fast || K % 8 != 0)
        return DS_OK;
    DS_TRY(ds_cuda_room(c, &c->xb, sizeof(__nv_bfloat16) * (size_t)T * (size_t)K));
    *ret = (__nv_bfloat16 *)c->xb.p;
    c->shadow = {of, T, K};
    return DS_OK;
}

/* --- open ---------------------------------------------------------------------------------------------- */

static void cuda_destroy(ds_backend *b)
{
    ds_cuda *c = ds_cuda_of(b);
    if (c->stream)
        cudaStreamSynchronize(c->stream);
    ds_cuda_room_block *rooms[] = {&c->xb, &c->parts, &c->tickets, &c->split, &c->sampler};
    for (ds_cuda_room_block *r : rooms)
        cudaFree(r->p);
    for (int i = 0; i < c->n_old; i++)
        cudaFree(c->old[i]);
    cudaFreeHost(c->pinned);
    ds_cuda_graph_close(c);
    ds_cuda_blas_close(c->blas);
    ds_cuda_maps_destroy(c->maps);
    if (c->stream)
        cudaStreamDestroy(c->stream);
    free(c);
}

static ds_code find_device(ds_cuda *c, ds_err *err)
{
    int n = 0;
    cudaError_t e = cudaGetDeviceCount(&n);
    if (e != cudaSuccess || n == 0)
        return ds_err_field(err, DS_EUNSUPPORTED, "device", "no CUDA device: %s",
                            e == cudaSuccess ? "none is visible" : cudaGetErrorString(e));
    cudaDeviceProp p;
    e = cudaSetDevice(0);
    if (e == cudaSuccess)
        e = cudaGetDeviceProperties(&p, 0);
    if (e != cudaSuccess)
        return ds_err_field(err, ds_cuda_code(c, e), "device", "CUDA device 0: %s", cudaGetErrorString(e));
    c->cc = 10 * p.major + p.minor;
    c->sms = p.multiProcessorCount;
    if (c->cc < 80)
        return ds_err_field(err, DS_EUNSUPPORTED, "device", "%s has compute capability %d.%d; 8.0 is needed",
                            p.name, p.major, p.minor);
    snprintf(c->detail, sizeof c->detail, "%.64s, sm_%d, %d multiprocessors", p.name, c->cc, c->sms);
    return DS_OK;
}

static ds_code set_level(ds_cuda *c, const char *level, ds_err *err)
{
    int is_auto = !level || !level[0] || strcmp(level, "auto") == 0;
    int portable = !is_auto && strcmp(level, "portable") == 0;
    if (!is_auto && !portable && strcmp(level, "invariant") != 0)
        return ds_err_field(err, DS_EINVAL, "isa",
                            "isa \"%s\" is not one of the CUDA back end: auto, invariant, portable", level);
    c->fast = c->cc == 90 && !portable;
    c->invariant = !is_auto || !c->fast;
    size_t at = strlen(c->detail);
    snprintf(c->detail + at, sizeof c->detail - at, ", %s",
             !c->fast       ? "portable"
             : c->invariant ? "invariant"
                            : "auto");
    return DS_OK;
}

static ds_code open_on(ds_cuda *c, const char *level, ds_err *err)
{
    DS_TRY(find_device(c, err));
    DS_TRY(set_level(c, level, err));
    cudaError_t e = cudaStreamCreateWithFlags(&c->stream, cudaStreamNonBlocking);
    if (e == cudaSuccess)
        e = cudaMemGetInfo(&c->b.mem_free, &c->b.mem_total);
    if (e != cudaSuccess)
        return ds_err_field(err, ds_cuda_code(c, e), "device", "CUDA device 0: %s", cudaGetErrorString(e));
    if (c->fast && !c->invariant)
        c->blas = ds_cuda_blas_open();
    return DS_OK;
}

ds_code ds_cuda_open(const char *level, ds_backend **ret, ds_err *err)
{
    ds_cuda *c = (ds_cuda *)calloc(1, sizeof *c);
    *ret = NULL;
    if (!c)
        return ds_err_set(err, DS_ENOMEM, "no memory for the CUDA back end");
    ds_backend *b = &c->b;
    b->name = "cuda";
    b->detail = c->detail;
    b->alloc = cuda_alloc;
    b->free = cuda_free;
    b->upload = cuda_upload;
    b->download = cuda_download;
    b->sync = cuda_sync;
    b->destroy = cuda_destroy;
    b->embed = ds_cuda_embed;
    b->rmsnorm = ds_cuda_rmsnorm;
    b->linear = ds_cuda_linear;
    b->qkv = ds_cuda_qkv;
    b->attention = ds_cuda_attention;
    b->silu_mul = ds_cuda_silu_mul;
    b->gather = ds_cuda_gather;
    b->cell = ds_cuda_cell;
    b->sample = ds_cuda_sample;
    b->admit = ds_cuda_admit;
    b->draw = ds_cuda_draw;
    b->accept = ds_cuda_accept;
    b->block = ds_cuda_block;
    b->offer = ds_cuda_offer;
    ds_cuda_graph_open(c);
    ds_code code = open_on(c, level, err);
    if (code != DS_OK) {
        cuda_destroy(b);
        return code;
    }
    *ret = b;
    return DS_OK;
}
