/* internal.h - inside the CUDA back end: its state, launching, and the capturable forms of ops. C++ only.
 *
 * Owner: the engine thread; everything runs on one stream. Rules that keep CUDA graphs possible: an op
 * neither synchronises nor allocates once its largest shape has run eagerly (`ds_cuda_room` grows scratch by
 * doubling and keeps the old blocks, so that graphs captured earlier stay valid). Kernels launch with
 * programmatic dependent launch: each calls ds_pdl_wait before it touches memory that an earlier kernel may
 * write, and ds_pdl_next at its start.
 *
 * Two things are deferred so that the op table stays plain: consecutive `linear` calls over one x are held
 * back and become one launch (`ds_cuda_flush`, called by every other op), and an op that makes the input of a
 * linear also leaves it rounded to bf16 in `xb` (the record `shadow` says of which buffer). */
#ifndef DS_CUDA_INTERNAL_H
#define DS_CUDA_INTERNAL_H

#include <cuda_bf16.h>
#include <cuda_fp16.h>
#include <cuda_runtime.h>
#include <math.h>
#include <stdint.h>

extern "C" {
#include "kernels/kernels.h"
}

enum { DS_CUDA_GROUP = 4, DS_CUDA_OLD = 64 };
/* Above: kernels for many rows (cuBLASLt, prefill attention), unless results may not depend on the row count.
 */
enum { DS_CUDA_FEW_ROWS = 64 };

typedef struct ds_cuda_room_block { /* scratch that grows and never moves under a captured graph */
    void *p;
    size_t bytes;
} ds_cuda_room_block;

typedef struct ds_cuda_blas ds_cuda_blas; /* blaslt.cu */
typedef struct ds_cuda_maps ds_cuda_maps; /* sm90/maps.cu: tensor maps of weights */

typedef struct ds_cuda {
    ds_backend b; /* first: a ds_backend * is a ds_cuda * */
    cudaStream_t stream;
    int sms, cc, lost;
    int fast;         /* bf16 activations on tensor cores (sm_90a); else f32 SIMT */
    int invariant;    /* no path may depend on the number of rows */
    cudaError_t last; /* of the last failed call, for messages */
    char detail[128];

    ds_cuda_room_block xb;      /* [T, K] bf16: the rounded input of the next linear */
    ds_cuda_room_block parts;   /* partial tiles of linears */
    ds_cuda_room_block tickets; /* one counter per output tile, 0 between launches */
    ds_cuda_room_block split;   /* partial sums of attention */
    ds_cuda_room_block sampler; /* rows, lists, results of `sample` */
    void *old[DS_CUDA_OLD];     /* outgrown scratch that a graph may still use */
    int n_old;
    void *pinned; /* host staging of `sample` */
    size_t pinned_bytes;

    struct { /* what xb holds: rows [T, K] of the f32 buffer `of`; NULL: nothing */
        const float *of;
        int T, K;
    } shadow;
    ds_linear_args group[DS_CUDA_GROUP]; /* linears held back */
    int n_group;
    ds_cuda_blas *blas; /* NULL: not there */
    ds_cuda_maps *maps;
    cudaEvent_t mark[DS_MARKS]; /* graph.cu; NULL: not yet used */
    ds_cuda_room_block draws;   /* sample.cu: undo places of `draw` */
} ds_cuda;

static inline ds_cuda *ds_cuda_of(ds_backend *b)
{
    return (ds_cuda *)b;
}

/* ds_cuda_code: DS_OK, DS_ENOMEM, DS_ELOST (sticky: the process must end) or DS_EDEVICE; remembers a loss. */
ds_code ds_cuda_code(ds_cuda *c, cudaError_t e);
/* ds_cuda_room: at least `bytes` of device scratch in *r; the new part is zeroed when it grows. */
ds_code ds_cuda_room(ds_cuda *c, ds_cuda_room_block *r, size_t bytes);
/* ds_cuda_flush: launch the linears held back. Call before a kernel of your own reads what a linear wrote. */
ds_code ds_cuda_flush(ds_cuda *c);
/* ds_cuda_wrote: [p, p + bytes) was written; a shadow of it is void. */
void ds_cuda_wrote(ds_cuda *c, const void *p, size_t bytes);
/* ds_cuda_shadow: room in xb for T rows of K when the next linear may want them rounded, else NULL in *ret.
 * The caller's kernel writes f32 to `of` and bf16 to *ret. */
ds_code ds_cuda_shadow(ds_cuda *c, const float *of, int T, int K, __nv_bfloat16 **ret);

ds_code ds_cuda_embed(ds_backend *b, const ds_embed_args *a);
ds_code ds_cuda_rmsnorm(ds_backend *b, const ds_rmsnorm_args *a);
ds_code ds_cuda_linear(ds_backend *b, const ds_linear_args *a);
ds_code ds_cuda_qkv(ds_backend *b, const ds_qkv_args *a);
ds_code ds_cuda_attention(ds_backend *b, const ds_attn_args *a);
ds_code ds_cuda_silu_mul(ds_backend *b, const ds_silu_mul_args *a);
ds_code ds_cuda_gather(ds_backend *b, const ds_gather_args *a);
ds_code ds_cuda_cell(ds_backend *b, const ds_cell_args *a);
ds_code ds_cuda_sample(ds_backend *b, const ds_sample_args *a);

ds_code ds_cuda_admit(ds_backend *b, const ds_admit_args *a);
ds_code ds_cuda_draw(ds_backend *b, const ds_draw_args *a);
ds_code ds_cuda_accept(ds_backend *b, const ds_accept_args *a);
ds_code ds_cuda_block(ds_backend *b, const ds_block_args *a);
ds_code ds_cuda_offer(ds_backend *b, const ds_offer_args *a);
/* graph.cu: fills in graphs, marks and transfers; frees what they and `draw` made. */
void ds_cuda_graph_open(ds_cuda *c);
void ds_cuda_graph_close(ds_cuda *c);

/* linear.cu: f32 arithmetic on any card, any dtype, any shape. */
ds_code ds_cuda_linear_simt(ds_cuda *c, const ds_linear_args *a);
/* linear.cu: x [T, K] with row stride x_stride as bf16 rows of K in xb. */
ds_code ds_cuda_round(ds_cuda *c, const float *x, int T, int K, int x_stride);
/* sm90/linear_sm90.cu: n products over the rounded x in xb, T <= DS_SM90_ROWS. */
enum { DS_SM90_ROWS = 128 };
int ds_cuda_sm90_fits(const ds_linear_args *a);
ds_code ds_cuda_sm90_linear(ds_cuda *c, const ds_linear_args *group, int n);
void ds_cuda_maps_destroy(ds_cuda_maps *m);
void ds_cuda_maps_forget(ds_cuda_maps *m, const void *p); /* memory p was freed */
/* blaslt.cu: cuBLASLt, opened at run time. */
ds_cuda_blas *ds_cuda_blas_open(void); /* NULL: no library */
void ds_cuda_blas_close(ds_cuda_blas *l);
ds_code ds_cuda_blas_linear(ds_cuda *c, const ds_linear_args *a);

/* One row of `sample` in device memory, fields as ds_sample_row: lists and draft_logits are device memory.
 * Without lists all n are 0 and the pointers may be NULL. */
typedef struct ds_cuda_row {
    float temperature, top_p, min_p, repetition, presence, frequency;
    int32_t top_k, n_logprobs, given, draft;
    uint32_t stream;
    int32_t n_seen, n_bias, n_banned, n_extra;
    const int32_t *seen, *seen_count, *bias_id, *banned, *extra;
    const float *bias;
    float *draft_logits;
    float *undo; /* scratch: as many floats as there are list entries, twice that with draft_logits */
    uint64_t seed;
    int64_t pos, banned_until;
} ds_cuda_row;
/* ds_cuda_sample_enqueue: rows and out in device memory; no synchronisation; token -1 and bad 1 for a bad
 * row. */
ds_code ds_cuda_sample_enqueue(ds_backend *b, float *logits, int R, int V, const ds_cuda_row *rows,
                               ds_sample_out *out);

#ifdef __CUDACC__
__device__ __forceinline__ void ds_pdl_wait(void)
{
#if __CUDA_ARCH__ >= 900
    asm volatile("griddepcontrol.wait;" ::: "memory");
#endif
}

__device__ __forceinline__ void ds_pdl_next(void)
{
#if __CUDA_ARCH__ >= 900
    asm volatile("griddepcontrol.launch_dependents;" ::: "memory");
#endif
}

/* Launch with programmatic dependence on the kernel before; the error code of the launch. */
template <typename... P, typename... A>
static inline ds_code ds_launch(ds_cuda *c, void (*kernel)(P...), dim3 grid, dim3 block, size_t smem,
                                A... args)
{
    if (c->lost)
        return DS_ELOST;
    cudaLaunchConfig_t conf = {};
    cudaLaunchAttribute attr = {};
    attr.id = cudaLaunchAttributeProgrammaticStreamSerialization;
    attr.val.programmaticStreamSerializationAllowed = 1;
    conf.gridDim = grid;
    conf.blockDim = block;
    conf.dynamicSmemBytes = smem;
    conf.stream = c->stream;
    conf.attrs = &attr;
    conf.numAttrs = c->cc >= 90;
    return ds_cuda_code(c, cudaLaunchKernelEx(&conf, kernel, P(args)...));
}

/* Element i of a weight row of any dtype as f32; scale: DS_I8 only. */
__device__ __forceinline__ float ds_load_f32(const void *p, ds_dtype t, size_t i)
{
    switch (t) {
    case DS_BF16:
        return __bfloat162float(((const __nv_bfloat16 *)p)[i]);
    case DS_F16:
        return __half2float(((const __half *)p)[i]);
    case DS_I8:
        return (float)((const int8_t *)p)[i];
    default:
        return ((const float *)p)[i];
    }
}

__device__ __forceinline__ float ds_warp_sum(float x) /* every lane gets the sum, in one fixed order */
{
    for (int d = 16; d; d >>= 1)
        x += __shfl_xor_sync(0xffffffffu, x, d);
    return x;
}

__device__ __forceinline__ float ds_warp_max(float x)
{
    for (int d = 16; d; d >>= 1)
        x = fmaxf(x, __shfl_xor_sync(0xffffffffu, x, d));
    return x;
}
#endif

#endif
