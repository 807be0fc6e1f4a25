/* linear.cu - y (+)= x W^T: which kernel serves a product, and the portable one.
 *
 * Consecutive products over one x are held back and launched together: a model writes q, k and v (gate and
 * up) as separate calls, and each launch of a few microseconds of weights costs a fill and a drain of the
 * memory pipeline. */
#include "kernels/cuda/internal.h"

/* --- rounding x ---------------------------------------------------------------------------------------- */

__global__ static void round_kernel(const float *x, int K, int x_stride, __nv_bfloat16 *y)
{
    ds_pdl_next();
    ds_pdl_wait();
    const int k = (int)(blockIdx.x * blockDim.x + threadIdx.x);
    if (k < K)
        y[(size_t)blockIdx.y * K + k] = __float2bfloat16_rn(x[(size_t)blockIdx.y * x_stride + k]);
}

ds_code ds_cuda_round(ds_cuda *c, const float *x, int T, int K, int x_stride)
{
    if (c->shadow.of == x && c->shadow.K == K && (x_stride == K || T == 1) && T <= c->shadow.T)
        return DS_OK;
    c->shadow.of = NULL;
    DS_TRY(ds_cuda_room(c, &c->xb, sizeof(__nv_bfloat16) * (size_t)T * (size_t)K));
    DS_TRY(ds_launch(c, round_kernel, dim3((unsigned)(K + 255) / 256, (unsigned)T), dim3(256), 0, x, K,
                     x_stride, (__nv_bfloat16 *)c->xb.p));
    if (x_stride == K)
        c->shadow = {x, T, K};
    return DS_OK;
}

/* --- portable ------------------------------------------------------------------------------------------ */

/* One warp computes one weight row against up to TT rows of x: lane l sums inputs l, l + 32, ... in ascending
 * order, then one tree. The order depends on K alone. Row tiles go over grid.y. */
enum { TT = 8, SIMT_WARPS = 8 };

template <int DT> __global__ static void simt_kernel(ds_linear_args a)
{
    ds_pdl_next();
    ds_pdl_wait();
    const int lane = (int)threadIdx.x % 32, n = (int)blockIdx.x * SIMT_WARPS + (int)threadIdx.x / 32,
              K = a.w.k;
    const int t0 = (int)blockIdx.y * TT, rows = a.T - t0 < TT ? a.T - t0 : TT;
    if (n >= a.w.n)
        return;
    const size_t row = (size_t)n * K;
    float acc[TT] = {0};
    for (int k = lane; k < K; k += 32) {
        float w = ds_load_f32(a.w.data, (ds_dtype)DT, row + k);
        if (DT == DS_I8)
            w *= a.w.scale[(row + k) / DS_I8_BLOCK];
#pragma unroll
        for (int t = 0; t < TT; t++)
            if (t < rows)
                acc[t] = fmaf(w, a.x[(size_t)(t0 + t) * a.x_stride + k], acc[t]);
    }
#pragma unroll
    for (int t = 0; t < TT; t++) {
        float s = ds_warp_sum(acc[t]);
        if (t < rows && lane == 0) {
            float *y = a.y + (size_t)(t0 + t) * a.y_stride + n;
            *y = a.accumulate ? *y + s : s;
        }
    }
}

ds_code ds_cuda_linear_simt(ds_cuda *c, const ds_linear_args *a)
{
    const dim3 grid((unsigned)(a->w.n + SIMT_WARPS - 1) / SIMT_WARPS, (unsigned)(a->T + TT - 1) / TT),
        block(32 * SIMT_WARPS);
    switch (a->w.dtype) {
    case DS_BF16:
        return ds_launch(c, simt_kernel<DS_BF16>, grid, block, 0, *a);
    case DS_F16:
        return ds_launch(c, simt_kernel<DS_F16>, grid, block, 0, *a);
    case DS_I8:
        return ds_launch(c, simt_kernel<DS_I8>, grid, block, 0, *a);
    default:
        return ds_launch(c, simt_kernel<DS_F32>, grid, block, 0, *a);
    }
}

/* --- choice -------------------------------------------------------------------------------------------- */

static ds_linear_args rows_of(const ds_linear_args *a, int t0, int T)
{
    ds_linear_args part = *a;
    part.x += (size_t)t0 * (size_t)a->x_stride;
    part.y += (size_t)t0 * (size_t)a->y_stride;
    part.T = T;
    return part;
}

/* n products over one x, all fit for the tensor-core kernels. */
static ds_code run_fast(ds_cuda *c, const ds_linear_args *group, int n)
{
    const ds_linear_args *a = group;
    if (c->blas && a->T > DS_CUDA_FEW_ROWS) {
        DS_TRY(ds_cuda_round(c, a->x, a->T, a->w.k, a->x_stride));
        for (int i = 0; i < n; i++)
            DS_TRY(ds_cuda_blas_linear(c, &group[i]));
        return DS_OK;
    }
    for (int t0 = 0; t0 < a->T; t0 += DS_SM90_ROWS) {
        ds_linear_args part[DS_CUDA_GROUP];
        int T = a->T - t0 < DS_SM90_ROWS ? a->T - t0 : DS_SM90_ROWS;
        for (int i = 0; i < n; i++)
            part[i] = rows_of(&group[i], t0, T);
        DS_TRY(ds_cuda_round(c, part->x, T, a->w.k, a->x_stride));
        DS_TRY(ds_cuda_sm90_linear(c, part, n));
    }
    return DS_OK;
}

ds_code ds_cuda_flush(ds_cuda *c)
{
    int n = c->n_group;
    c->n_group = 0;
    if (n == 0)
        return c->lost ? DS_ELOST : DS_OK;
    ds_code code = run_fast(c, c->group, n);
    for (int i = 0; i < n; i++) {
        const ds_linear_args *a = &c->group[i];
        ds_cuda_wrote(c, a->y, sizeof(float) * ((size_t)(a->T - 1) * (size_t)a->y_stride + (size_t)a->w.n));
    }
    return code;
}

static int overlap(const ds_linear_args *a, const ds_linear_args *b)
{
    const float *a1 = a->y + (size_t)(a->T - 1) * (size_t)a->y_stride + a->w.n;
    const float *b1 = b->y + (size_t)(b->T - 1) * (size_t)b->y_stride + b->w.n;
    if (a->y >= b1 || b->y >= a1)
        return 0;
    if (a->y_stride !=
        b->y_stride) /* columns of one wide row are apart; anything else is taken as overlapping */
        return 1;
    ptrdiff_t d = b->y - a->y;
    return d >= 0 ? d < a->w.n || d + b->w.n > a->y_stride : -d < b->w.n || -d + a->w.n > a->y_stride;
}

static int joins(const ds_cuda *c, const ds_linear_args *a)
{
    const ds_linear_args *g = c->group;
    if (c->n_group == 0 || c->n_group == DS_CUDA_GROUP || g->x != a->x || g->T != a->T ||
        g->x_stride != a->x_stride || g->w.k != a->w.k)
        return 0;
    for (int i = 0; i < c->n_group; i++)
        if (overlap(&c->group[i], a))
            return 0;
    return 1;
}

ds_code ds_cuda_linear(ds_backend *b, const ds_linear_args *a)
{
    ds_cuda *c = ds_cuda_of(b);
    if (!a->w.data || a->w.n <= 0 || a->w.k <= 0 || (unsigned)a->w.dtype > DS_I8 || a->T < 0 ||
        a->x_stride < a->w.k || a->y_stride < a->w.n ||
        (a->w.dtype == DS_I8 && (!a->w.scale || a->w.k % DS_I8_BLOCK != 0)))
        return DS_EINVAL;
    if (a->T == 0)
        return DS_OK;
    if (!joins(c, a))
        DS_TRY(ds_cuda_flush(c));
    if (c->fast && ds_cuda_sm90_fits(a)) {
        c->group[c->n_group++] = *a;
        return DS_OK;
    }
    DS_TRY(ds_cuda_flush(c));
    ds_cuda_wrote(c, a->y, sizeof(float) * ((size_t)(a->T - 1) * (size_t)a->y_stride + (size_t)a->w.n));
    return ds_cuda_linear_simt(c, a);
}
