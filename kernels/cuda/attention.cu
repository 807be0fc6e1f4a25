/* attention.cu - attention of flattened rows over paged KV: which kernel serves, and the portable one.
 *
 * Portable: one block a (row, head). Keys go in blocks of 32 to four warps in turn; each warp keeps an online
 * softmax, one key a lane; the four are merged in warp order. The order of every sum depends on the row's
 * position alone. */
#include "kernels/cuda/internal.h"

#include "kernels/cuda/attention.h"

enum { WARPS = 4, KEYS = 32, MAX_D = 512, PER = MAX_D / 32 };

struct page_walk { /* where key `key` of a slot lies: element offset of its head's row */
    const int32_t *table;
    int page_tokens, G, g, D;
    __device__ size_t at(int key) const
    {
        size_t page = (size_t)table[key / page_tokens];
        return ((page * G + g) * page_tokens + key % page_tokens) * D;
    }
};

template <int DT> __global__ static void attention_kernel(ds_attn_args a, __nv_bfloat16 *rounded)
{
    __shared__ float q[MAX_D], p[WARPS][KEYS], acc_of[WARPS][MAX_D], m_of[WARPS], l_of[WARPS];
    ds_pdl_next();
    ds_pdl_wait();
    const int lane = (int)threadIdx.x % 32, warp = (int)threadIdx.x / 32, D = a.D;
    const int t = (int)blockIdx.x, h = (int)blockIdx.y, pos = a.rows.pos[t];
    const page_walk walk = {a.rows.page_table + (size_t)a.rows.slot[t] * a.rows.page_stride,
                            a.rows.page_tokens, a.G, h / (a.H / a.G), D};
    for (int i = (int)threadIdx.x; i < D; i += 32 * WARPS)
        q[i] = a.q[(size_t)t * a.q_stride + (size_t)h * D + i];
    __syncthreads();
    float m = -INFINITY, l = 0, acc[PER] = {0};
    for (int first = warp * KEYS; first <= pos; first += WARPS * KEYS) {
        const int key = first + lane, n = pos - first + 1 < KEYS ? pos - first + 1 : KEYS;
        float s = -INFINITY;
        if (key <= pos) {
            const size_t at = walk.at(key);
            s = 0;
            for (int i = 0; i < D; i++)
                s = fmaf(q[i], ds_load_f32(a.kv.k, (ds_dtype)DT, at + i), s);
            s *= a.scale;
        }
        const float most = fmaxf(m, ds_warp_max(s)), shrink = expf(m - most),
                    e = key <= pos ? expf(s - most) : 0;
        m = most;
        l = l * shrink + ds_warp_sum(e);
        __syncwarp();
        p[warp][lane] = e;
        __syncwarp();
#pragma unroll
        for (int j = 0; j < PER; j++)
            acc[j] *= shrink;
        for (int k = 0; k < n; k++) {
            const size_t at = walk.at(first + k);
            const float w = p[warp][k];
#pragma unroll
            for (int j = 0; j < PER; j++)
                if (j * 32 + lane < D)
                    acc[j] = fmaf(w, ds_load_f32(a.kv.v, (ds_dtype)DT, at + j * 32 + lane), acc[j]);
        }
    }
#pragma unroll
    for (int j = 0; j < PER; j++)
        if (j * 32 + lane < D)
            acc_of[warp][j * 32 + lane] = acc[j];
    if (lane == 0) {
        m_of[warp] = m;
        l_of[warp] = l;
    }
    __syncthreads();
    float most = m_of[0], sum = 0, f[WARPS]; /* warp 0 holds key 0: never empty */
    for (int w = 1; w < WARPS; w++)
        most = fmaxf(most, m_of[w]);
    for (int w = 0; w < WARPS; w++) {
        f[w] = expf(m_of[w] - most);
        sum += l_of[w] * f[w];
    }
    const size_t out = ((size_t)t * a.H + h) * D;
    for (int i = (int)threadIdx.x; i < D; i += 32 * WARPS) {
        float v = 0;
        for (int w = 0; w < WARPS; w++)
            v += acc_of[w][i] * f[w];
        v /= sum;
        a.out[out + i] = v;
        if (rounded)
            rounded[out + i] = __float2bfloat16_rn(v);
    }
}

ds_code ds_cuda_attention(ds_backend *b, const ds_attn_args *a)
{
    ds_cuda *c = ds_cuda_of(b);
    const ds_rows *r = &a->rows;
    if (r->T < 0 || r->page_tokens <= 0 || r->page_tokens % 16 != 0 || r->page_stride <= 0 || a->H <= 0 ||
        a->G <= 0 || a->H % a->G != 0 || a->H > 65535 || a->D <= 0 || a->D > MAX_D ||
        a->q_stride < a->H * a->D || (a->kv.dtype != DS_F32 && a->kv.dtype != DS_BF16))
        return DS_EINVAL;
    DS_TRY(ds_cuda_flush(c));
    if (r->T == 0)
        return DS_OK;
    __nv_bfloat16 *rounded;
    DS_TRY(ds_cuda_shadow(c, a->out, r->T, a->H * a->D, &rounded));
    if (ds_cuda_attention_mma_fits(a)) {
        const int group = a->H / a->G, many = c->fast && !c->invariant && r->T > DS_CUDA_FEW_ROWS;
        const int dense = many && (group & (group - 1)) == 0 ? DS_ATTN_DENSE / group : 0;
        if (dense)
            DS_TRY(ds_cuda_attention_prefill(c, a, rounded, dense));
        return ds_cuda_attention_mma(c, a, rounded, dense);
    }
    const dim3 grid((unsigned)r->T, (unsigned)a->H), block(32 * WARPS);
    if (a->kv.dtype == DS_BF16)
        return ds_launch(c, attention_kernel<DS_BF16>, grid, block, 0, *a, rounded);
    return ds_launch(c, attention_kernel<DS_F32>, grid, block, 0, *a, rounded);
}
