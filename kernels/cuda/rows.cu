/* rows.cu - ops that go row by row: embed, rmsnorm, silu_mul, gather, cell, qkv. One block computes a row in
 * an order that depends on its width alone. */
#include "kernels/cuda/internal.h"

enum { BLOCK = 256, WIDE = 512 };

static int weight_ok(ds_dtype t)
{
    return t == DS_F32 || t == DS_BF16 || t == DS_F16;
}

/* Sum over the block's threads, in a fixed order; every thread gets it. part: one float a warp. */
__device__ static float block_sum(float x, float *part)
{
    const int warps = (int)blockDim.x / 32, warp = (int)threadIdx.x / 32;
    x = ds_warp_sum(x);
    __syncthreads(); /* part may still be read by an earlier sum */
    if (threadIdx.x % 32 == 0)
        part[warp] = x;
    __syncthreads();
    float s = 0;
    for (int i = 0; i < warps; i++)
        s += part[i];
    return s;
}

/* --- embed --------------------------------------------------------------------------------------------- */

/* A token outside the table (the caller checks; nothing else stands between it and memory) gives a row of
 * NaN. */
__global__ static void embed_kernel(ds_embed_args a)
{
    ds_pdl_next();
    ds_pdl_wait();
    const int t = (int)blockIdx.x, k = a.table.k, id = a.token[t];
    float *y = a.y + (size_t)t * k;
    const size_t row = (size_t)id * k;
    for (int i = (int)threadIdx.x; i < k; i += (int)blockDim.x) {
        if (id < 0 || id >= a.table.n) {
            y[i] = nanf("");
            continue;
        }
        float w = ds_load_f32(a.table.data, a.table.dtype, row + i);
        y[i] = a.table.dtype == DS_I8 ? w * a.table.scale[(row + i) / DS_I8_BLOCK] : w;
    }
}

ds_code ds_cuda_embed(ds_backend *b, const ds_embed_args *a)
{
    ds_cuda *c = ds_cuda_of(b);
    if (a->T < 0 || !a->table.data || a->table.n <= 0 || a->table.k <= 0 ||
        (a->table.dtype == DS_I8 && (!a->table.scale || a->table.k % DS_I8_BLOCK)))
        return DS_EINVAL;
    DS_TRY(ds_cuda_flush(c));
    if (a->T == 0)
        return DS_OK;
    ds_cuda_wrote(c, a->y, sizeof(float) * (size_t)a->T * (size_t)a->table.k);
    return ds_launch(c, embed_kernel, dim3((unsigned)a->T), dim3(BLOCK), 0, *a);
}

/* --- rmsnorm ------------------------------------------------------------------------------------------- */

__global__ static void rmsnorm_kernel(ds_rmsnorm_args a, __nv_bfloat16 *rounded)
{
    __shared__ float part[32];
    ds_pdl_next();
    ds_pdl_wait();
    const int n = a.w.n;
    const size_t row = (size_t)blockIdx.x * n;
    const float *x = a.x + row;
    float *y = a.y + row, ss = 0;
    for (int i = (int)threadIdx.x; i < n; i += (int)blockDim.x)
        ss += x[i] * x[i];
    const float r = rsqrtf(block_sum(ss, part) / (float)n + a.eps);
    for (int i = (int)threadIdx.x; i < n; i += (int)blockDim.x) {
        float v = x[i] * r * ds_load_f32(a.w.data, a.w.dtype, i);
        y[i] = v;
        if (rounded)
            rounded[row + i] = __float2bfloat16_rn(v);
    }
}

/* The same for widths that are multiples of 4: the row stays in registers between the two passes. */
template <int PER> __global__ static void rmsnorm_wide_kernel(ds_rmsnorm_args a, __nv_bfloat16 *rounded)
{
    __shared__ float part[32];
    ds_pdl_next();
    const int n = a.w.n, quads = n / 4;
    const size_t row = (size_t)blockIdx.x * n;
    float w[PER][4];
    for (int j = 0; j < PER; j++) { /* weights never change: read them before the wait */
        int q = j * (int)blockDim.x + (int)threadIdx.x;
        for (int e = 0; e < 4; e++)
            w[j][e] = q < quads ? ds_load_f32(a.w.data, a.w.dtype, 4 * q + e) : 0;
    }
    ds_pdl_wait();
    const float4 *x = (const float4 *)(a.x + row);
    float4 *y = (float4 *)(a.y + row), v[PER];
    float ss = 0;
    for (int j = 0; j < PER; j++) {
        int q = j * (int)blockDim.x + (int)threadIdx.x;
        v[j] = q < quads ? x[q] : make_float4(0, 0, 0, 0);
        ss += v[j].x * v[j].x + v[j].y * v[j].y + v[j].z * v[j].z + v[j].w * v[j].w;
    }
    const float r = rsqrtf(block_sum(ss, part) / (float)n + a.eps);
    for (int j = 0; j < PER; j++) {
        int q = j * (int)blockDim.x + (int)threadIdx.x;
        if (q >= quads)
            continue;
        float4 o = make_float4(v[j].x * r * w[j][0], v[j].y * r * w[j][1], v[j].z * r * w[j][2],
                               v[j].w * r * w[j][3]);
        y[q] = o;
        if (rounded) {
            __nv_bfloat162 lo = __floats2bfloat162_rn(o.x, o.y), hi = __floats2bfloat162_rn(o.z, o.w);
            uint2 u = {*(uint32_t *)&lo, *(uint32_t *)&hi};
            ((uint2 *)(rounded + row))[q] = u;
        }
    }
}

ds_code ds_cuda_rmsnorm(ds_backend *b, const ds_rmsnorm_args *a)
{
    ds_cuda *c = ds_cuda_of(b);
    if (a->T < 0 || a->w.n <= 0 || !a->w.data || !weight_ok(a->w.dtype))
        return DS_EINVAL;
    DS_TRY(ds_cuda_flush(c));
    if (a->T == 0)
        return DS_OK;
    __nv_bfloat16 *rounded;
    DS_TRY(ds_cuda_shadow(c, a->y, a->T, a->w.n, &rounded));
    const dim3 grid((unsigned)a->T);
    const int aligned = a->w.n % 4 == 0 && ((uintptr_t)a->x | (uintptr_t)a->y) % 16 == 0;
    if (aligned && a->w.n <= 4 * WIDE)
        return ds_launch(c, rmsnorm_wide_kernel<1>, grid, dim3(WIDE), 0, *a, rounded);
    if (aligned && a->w.n <= 8 * WIDE)
        return ds_launch(c, rmsnorm_wide_kernel<2>, grid, dim3(WIDE), 0, *a, rounded);
    if (aligned && a->w.n <= 16 * WIDE)
        return ds_launch(c, rmsnorm_wide_kernel<4>, grid, dim3(WIDE), 0, *a, rounded);
    return ds_launch(c, rmsnorm_kernel, grid, dim3(BLOCK), 0, *a, rounded);
}

/* --- silu_mul ------------------------------------------------------------------------------------------ */

__device__ static float silu_mul(float g, float u)
{
    return g / (1.0f + expf(-g)) * u;
}

__global__ static void silu_mul_kernel(ds_silu_mul_args a, __nv_bfloat16 *rounded)
{
    ds_pdl_next();
    ds_pdl_wait();
    const int i = (int)(blockIdx.x * blockDim.x + threadIdx.x);
    const size_t t = blockIdx.y, n = (size_t)a.I;
    if (i >= a.I)
        return;
    float v = silu_mul(a.gu[t * 2 * n + i], a.gu[t * 2 * n + n + i]);
    a.y[t * n + i] = v;
    if (rounded)
        rounded[t * n + i] = __float2bfloat16_rn(v);
}

__global__ static void silu_mul_quad_kernel(ds_silu_mul_args a, __nv_bfloat16 *rounded)
{
    ds_pdl_next();
    ds_pdl_wait();
    const int q = (int)(blockIdx.x * blockDim.x + threadIdx.x);
    const size_t t = blockIdx.y, n = (size_t)a.I / 4;
    if (q >= (int)n)
        return;
    const float4 g = ((const float4 *)a.gu)[t * 2 * n + q], u = ((const float4 *)a.gu)[t * 2 * n + n + q];
    float4 o = make_float4(silu_mul(g.x, u.x), silu_mul(g.y, u.y), silu_mul(g.z, u.z), silu_mul(g.w, u.w));
    ((float4 *)a.y)[t * n + q] = o;
    if (rounded) {
        __nv_bfloat162 lo = __floats2bfloat162_rn(o.x, o.y), hi = __floats2bfloat162_rn(o.z, o.w);
        uint2 v = {*(uint32_t *)&lo, *(uint32_t *)&hi};
        ((uint2 *)rounded)[t * n + q] = v;
    }
}

ds_code ds_cuda_silu_mul(ds_backend *b, const ds_silu_mul_args *a)
{
    ds_cuda *c = ds_cuda_of(b);
    if (a->T < 0 || a->I <= 0 || a->T > 65535)
        return DS_EINVAL;
    DS_TRY(ds_cuda_flush(c));
    if (a->T == 0)
        return DS_OK;
    __nv_bfloat16 *rounded;
    DS_TRY(ds_cuda_shadow(c, a->y, a->T, a->I, &rounded));
    if (a->I % 4 == 0 && ((uintptr_t)a->gu | (uintptr_t)a->y) % 16 == 0)
        return ds_launch(c, silu_mul_quad_kernel, dim3((unsigned)(a->I / 4 + 127) / 128, (unsigned)a->T),
                         dim3(128), 0, *a, rounded);
    return ds_launch(c, silu_mul_kernel, dim3((unsigned)(a->I + BLOCK - 1) / BLOCK, (unsigned)a->T),
                     dim3(BLOCK), 0, *a, rounded);
}

/* --- gather -------------------------------------------------------------------------------------------- */

__global__ static void gather_kernel(ds_gather_args a)
{
    ds_pdl_next();
    ds_pdl_wait();
    const int row = a.row[blockIdx.x];
    float *y = a.y + (size_t)blockIdx.x * a.y_stride;
    const float *x = a.x + (size_t)row * a.C;
    for (int i = (int)threadIdx.x; i < a.C; i += (int)blockDim.x)
        y[i] = row < 0 ? nanf("") : x[i];
}

ds_code ds_cuda_gather(ds_backend *b, const ds_gather_args *a)
{
    ds_cuda *c = ds_cuda_of(b);
    if (a->R < 0 || a->C <= 0 || a->y_stride < a->C)
        return DS_EINVAL;
    DS_TRY(ds_cuda_flush(c));
    if (a->R == 0)
        return DS_OK;
    ds_cuda_wrote(c, a->y, sizeof(float) * (size_t)a->R * (size_t)a->y_stride);
    return ds_launch(c, gather_kernel, dim3((unsigned)a->R), dim3(BLOCK), 0, *a);
}

/* --- cell ---------------------------------------------------------------------------------------------- */

__device__ static float sigmoid(float x)
{
    return 1.0f / (1.0f + expf(-x));
}

__global__ static void cell_kernel(ds_cell_args a)
{
    ds_pdl_next();
    ds_pdl_wait();
    const size_t r = blockIdx.x, n = (size_t)a.N;
    const float *t = a.t + r * (a.kind == DS_CELL_RNN ? 3 * n : n);
    for (size_t i = threadIdx.x; i < n; i += blockDim.x) {
        float g = sigmoid(t[i]), *y = a.y + r * n + i;
        if (a.kind == DS_CELL_GATED) {
            *y = g * a.e[r * n + i];
            continue;
        }
        float *s = a.state + r * n + i;
        *y = tanhf(t[2 * n + i]);
        *s = g * *s + (1.0f - g) * tanhf(t[n + i]);
    }
}

ds_code ds_cuda_cell(ds_backend *b, const ds_cell_args *a)
{
    ds_cuda *c = ds_cuda_of(b);
    if (a->R < 0 || a->N <= 0)
        return DS_EINVAL;
    DS_TRY(ds_cuda_flush(c));
    if (a->R == 0)
        return DS_OK;
    size_t bytes = sizeof(float) * (size_t)a->R * (size_t)a->N;
    ds_cuda_wrote(c, a->y, bytes);
    if (a->kind == DS_CELL_RNN)
        ds_cuda_wrote(c, a->state, bytes);
    return ds_launch(c, cell_kernel, dim3((unsigned)a->R), dim3(BLOCK), 0, *a);
}

/* --- qkv ----------------------------------------------------------------------------------------------- */

/* One warp per (row, head): head norm, rope, and K or V to its page. Lane l holds elements l, l + 32, ... of
 * a head; the rope pair (j, j + D/2) is exchanged through shared memory, which any even D allows. */
enum { QKV_WARPS = 8, QKV_MAX_D = 512 };

__device__ static void kv_store(void *base, ds_dtype t, size_t at, float x)
{
    if (t == DS_BF16)
        ((__nv_bfloat16 *)base)[at] = __float2bfloat16_rn(x);
    else
        ((float *)base)[at] = x;
}

__global__ static void qkv_kernel(ds_qkv_args a)
{
    __shared__ float held[QKV_WARPS][QKV_MAX_D];
    ds_pdl_next();
    ds_pdl_wait();
    const int lane = (int)threadIdx.x % 32, warp = (int)threadIdx.x / 32, heads = a.H + 2 * a.G, D = a.D,
              half = D / 2;
    const int h = (int)blockIdx.y * QKV_WARPS + warp, t = (int)blockIdx.x;
    if (h >= heads)
        return;
    float *x = a.qkv + ((size_t)t * heads + h) * D, *v = held[warp];
    const int pos = a.rows.pos[t], is_v = h >= a.H + a.G;
    for (int i = lane; i < D; i += 32)
        v[i] = x[i];
    const ds_vec w = h < a.H ? a.q_norm : a.k_norm;
    __syncwarp();
    if (!is_v && w.data) {
        float ss = 0;
        for (int i = lane; i < D; i += 32)
            ss += v[i] * v[i];
        const float r = rsqrtf(ds_warp_sum(ss) / (float)D + a.eps);
        for (int i = lane; i < D; i += 32)
            v[i] = v[i] * r * ds_load_f32(w.data, w.dtype, i);
        __syncwarp();
    }
    const size_t page =
        (size_t)a.rows.page_table[(size_t)a.rows.slot[t] * a.rows.page_stride + pos / a.rows.page_tokens];
    const int g = (h - a.H) % a.G;
    const size_t at = ((page * a.G + (h < a.H ? 0 : g)) * a.rows.page_tokens + pos % a.rows.page_tokens) * D;
    const float *cos = a.rope.cos + (size_t)pos * half, *sin = a.rope.sin + (size_t)pos * half;
    for (int j = lane; j < half; j += 32) {
        float lo = v[j], hi = v[j + half];
        if (!is_v) {
            const float cs = cos[j], sn = sin[j], l = lo;
            lo = l * cs - hi * sn;
            hi = hi * cs + l * sn;
        }
        if (h < a.H) {
            x[j] = lo;
            x[j + half] = hi;
        } else {
            void *base = is_v ? a.kv.v : a.kv.k;
            kv_store(base, a.kv.dtype, at + j, lo);
            kv_store(base, a.kv.dtype, at + j + half, hi);
        }
    }
}

ds_code ds_cuda_qkv(ds_backend *b, const ds_qkv_args *a)
{
    ds_cuda *c = ds_cuda_of(b);
    const ds_rows *r = &a->rows;
    if (r->T < 0 || r->page_tokens <= 0 || r->page_tokens % 16 != 0 || r->page_stride <= 0 || a->H < 0 ||
        a->G <= 0 || a->D <= 0 || a->D % 2 != 0 || a->D > QKV_MAX_D ||
        (a->kv.dtype != DS_F32 && a->kv.dtype != DS_BF16) ||
        (a->q_norm.data && (a->q_norm.n != a->D || !weight_ok(a->q_norm.dtype))) ||
        (a->k_norm.data && (a->k_norm.n != a->D || !weight_ok(a->k_norm.dtype))))
        return DS_EINVAL;
    DS_TRY(ds_cuda_flush(c));
    if (r->T == 0)
        return DS_OK;
    const int heads = a->H + 2 * a->G;
    ds_cuda_wrote(c, a->qkv, sizeof(float) * (size_t)r->T * (size_t)heads * (size_t)a->D);
    return ds_launch(c, qkv_kernel, dim3((unsigned)r->T, (unsigned)(heads + QKV_WARPS - 1) / QKV_WARPS),
                     dim3(32 * QKV_WARPS), 0, *a);
}
