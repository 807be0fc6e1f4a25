/* attention_prefill.cu - attention of dense blocks of rows (prompts) over bf16 pages of 16 tokens, on tensor cores.
 *
 * A block of 8 warps holds 128 query vectors: 128 / (H / G) rows times the heads of one KV head, 16 a warp. Keys and values
 * pass through shared memory in tiles of 64 tokens, two in flight (cp.async, 16-byte pieces swizzled by row); an online
 * softmax in registers, as in FlashAttention-2 (Dao 2023). Queries and weights are rounded to bf16 once. */
#include "kernels/cuda/attention.h"

enum { WARPS = 8, THREADS = 32 * WARPS, KEYS = 64, PAGE = DS_ATTN_PAGE };

__device__ static uint32_t smem_of(const void *p)
{
    return (uint32_t)__cvta_generic_to_shared(p);
}

__device__ static void copy16(uint32_t dst, const void *src, int valid) /* invalid: zeros */
{
    asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;" ::"r"(dst), "l"(src), "r"(valid ? 16 : 0) : "memory");
}

__device__ static void load4(uint32_t (&r)[4], uint32_t at)
{
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0,%1,%2,%3}, [%4];"
                 : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3])
                 : "r"(at)
                 : "memory");
}

__device__ static void load4_transposed(uint32_t (&r)[4], uint32_t at)
{
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0,%1,%2,%3}, [%4];"
                 : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3])
                 : "r"(at)
                 : "memory");
}

__device__ static void mma(float (&d)[4], const uint32_t (&a)[4], uint32_t b0, uint32_t b1)
{
    asm volatile("mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, {%0,%1,%2,%3};"
                 : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
                 : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));
}

__device__ static uint32_t pack(float lo, float hi)
{
    __nv_bfloat162 v = __floats2bfloat162_rn(lo, hi);
    return *(uint32_t *)&v;
}

/* Shared address of 16-byte piece `piece` of row `row` in a tile of rows of D. */
template <int D>
__device__ static uint32_t piece_at(uint32_t tile, int row, int piece)
{
    return tile + (uint32_t)(row * D * 2 + ((piece ^ (row & 7)) << 4));
}

template <int D>
__device__ static void load_tile(uint32_t k_tile, uint32_t v_tile, const ds_attn_args *a, const int32_t *table, int g, int first,
                                 int last)
{
    constexpr int PIECES = D / 8;
    for (int i = (int)threadIdx.x; i < KEYS * PIECES; i += THREADS) {
        const int row = i / PIECES, piece = i % PIECES, key = first + row, valid = key <= last;
        const size_t page = valid ? (size_t)table[key / PAGE] : 0;
        const size_t at = ((page * a->G + g) * PAGE + key % PAGE) * D + piece * 8;
        copy16(piece_at<D>(k_tile, row, piece), (const __nv_bfloat16 *)a->kv.k + at, valid);
        copy16(piece_at<D>(v_tile, row, piece), (const __nv_bfloat16 *)a->kv.v + at, valid);
    }
    asm volatile("cp.async.commit_group;" ::: "memory");
}

template <int D>
struct warp_state {
    uint32_t q[D / 16][4];
    float acc[D / 8][4];
    float m[2], l[2]; /* in units of log2; l: this lane's part */
    int pos[2];       /* of query rows r, r + 8; -1: none */
};

template <int D>
__device__ static void scores(const warp_state<D> *w, uint32_t k_tile, int lane, float (&s)[KEYS / 8][4])
{
    const int key = lane / 16 * 8 + lane % 8, half = lane / 8 % 2;
#pragma unroll
    for (int n = 0; n < KEYS / 16; n++) {
#pragma unroll
        for (int e = 0; e < 4; e++)
            s[2 * n][e] = s[2 * n + 1][e] = 0;
#pragma unroll
        for (int i = 0; i < D / 16; i++) {
            uint32_t b[4];
            load4(b, piece_at<D>(k_tile, n * 16 + key, 2 * i + half));
            mma(s[2 * n], w->q[i], b[0], b[1]);
            mma(s[2 * n + 1], w->q[i], b[2], b[3]);
        }
    }
}

template <int D>
__device__ static void softmax(warp_state<D> *w, float (&s)[KEYS / 8][4], int first, int c)
{
#pragma unroll
    for (int h = 0; h < 2; h++) {
        float most = w->m[h], sum = 0;
        if (first + KEYS - 1 > w->pos[h])
#pragma unroll
            for (int n = 0; n < KEYS / 8; n++)
#pragma unroll
                for (int e = 0; e < 2; e++)
                    if (first + n * 8 + 2 * c + e > w->pos[h])
                        s[n][2 * h + e] = -INFINITY;
#pragma unroll
        for (int n = 0; n < KEYS / 8; n++)
            most = fmaxf(most, fmaxf(s[n][2 * h], s[n][2 * h + 1]));
        most = fmaxf(most, __shfl_xor_sync(0xffffffffu, most, 1));
        most = fmaxf(most, __shfl_xor_sync(0xffffffffu, most, 2));
        const float base = most == -INFINITY ? 0 : most, shrink = exp2f(w->m[h] - base);
        w->m[h] = most;
#pragma unroll
        for (int n = 0; n < KEYS / 8; n++)
#pragma unroll
            for (int e = 0; e < 2; e++) {
                s[n][2 * h + e] = exp2f(s[n][2 * h + e] - base);
                sum += s[n][2 * h + e];
            }
        w->l[h] = w->l[h] * shrink + sum;
#pragma unroll
        for (int j = 0; j < D / 8; j++) {
            w->acc[j][2 * h] *= shrink;
            w->acc[j][2 * h + 1] *= shrink;
        }
    }
}

template <int D>
__device__ static void values(warp_state<D> *w, const float (&s)[KEYS / 8][4], uint32_t v_tile, int lane)
{
    const int key = lane / 8 % 2 * 8 + lane % 8, half = lane / 16;
#pragma unroll
    for (int n = 0; n < KEYS / 16; n++) {
        const uint32_t p[4] = {pack(s[2 * n][0], s[2 * n][1]), pack(s[2 * n][2], s[2 * n][3]),
                               pack(s[2 * n + 1][0], s[2 * n + 1][1]), pack(s[2 * n + 1][2], s[2 * n + 1][3])};
#pragma unroll
        for (int i = 0; i < D / 16; i++) {
            uint32_t b[4];
            load4_transposed(b, piece_at<D>(v_tile, n * 16 + key, 2 * i + half));
            mma(w->acc[2 * i], p, b[0], b[1]);
            mma(w->acc[2 * i + 1], p, b[2], b[3]);
        }
    }
}

template <int D>
__device__ static void load_queries(warp_state<D> *w, const ds_attn_args *a, int t0, int rows, int g, int warp, int r, int c)
{
    const int group = a->H / a->G;
    const float scale = a->scale * 1.44269504088896341f;
    const float *q[2];
#pragma unroll
    for (int h = 0; h < 2; h++) {
        const int i = warp * 16 + r + 8 * h, t = t0 + i / group, in = i / group < rows;
        w->pos[h] = in ? a->rows.pos[t] : -1;
        q[h] = in ? a->q + (size_t)t * a->q_stride + (size_t)(g * group + i % group) * D : NULL;
        w->m[h] = -INFINITY;
        w->l[h] = 0;
    }
#pragma unroll
    for (int i = 0; i < D / 16; i++)
#pragma unroll
        for (int e = 0; e < 4; e++) { /* (row r, lower 8), (r + 8, lower), (r, upper), (r + 8, upper) */
            const float *from = q[e % 2];
            float2 v = from ? *(const float2 *)(from + 16 * i + e / 2 * 8 + 2 * c) : make_float2(0, 0);
            w->q[i][e] = pack(v.x * scale, v.y * scale);
        }
#pragma unroll
    for (int j = 0; j < D / 8; j++)
#pragma unroll
        for (int e = 0; e < 4; e++)
            w->acc[j][e] = 0;
}

template <int D>
__device__ static void store(const warp_state<D> *w, const ds_attn_args *a, __nv_bfloat16 *rounded, int t0, int rows, int g,
                             int warp, int r, int c)
{
    const int group = a->H / a->G;
#pragma unroll
    for (int h = 0; h < 2; h++) {
        const int i = warp * 16 + r + 8 * h;
        float l = w->l[h];
        l += __shfl_xor_sync(0xffffffffu, l, 1);
        l += __shfl_xor_sync(0xffffffffu, l, 2);
        if (i / group >= rows)
            continue;
        const size_t at = ((size_t)(t0 + i / group) * a->H + g * group + i % group) * D + 2 * c;
#pragma unroll
        for (int j = 0; j < D / 8; j++) {
            const float2 v = make_float2(w->acc[j][2 * h] / l, w->acc[j][2 * h + 1] / l);
            *(float2 *)(a->out + at + 8 * j) = v;
            if (rounded)
                *(uint32_t *)(rounded + at + 8 * j) = pack(v.x, v.y);
        }
    }
}

template <int D>
__global__ static void __launch_bounds__(THREADS, 1) prefill_kernel(ds_attn_args a, __nv_bfloat16 *rounded, int dense)
{
    extern __shared__ __align__(128) char smem[];
    ds_pdl_next();
    ds_pdl_wait();
    const int lane = (int)threadIdx.x % 32, warp = (int)threadIdx.x / 32, r = lane / 4, c = lane % 4, g = (int)blockIdx.y;
    const int t0 = ((int)gridDim.x - 1 - (int)blockIdx.x) * dense; /* the longest first */
    const int rows = a.rows.T - t0 < dense ? a.rows.T - t0 : dense;
    if (!ds_attn_is_dense(&a.rows, t0, dense))
        return;
    constexpr uint32_t TILE = KEYS * D * 2;
    const uint32_t base = smem_of(smem);
    const int32_t *table = a.rows.page_table + (size_t)a.rows.slot[t0] * a.rows.page_stride;
    const int last = a.rows.pos[t0] + rows - 1, tiles = last / KEYS + 1;
    load_tile<D>(base, base + TILE, &a, table, g, 0, last);
    warp_state<D> w;
    load_queries<D>(&w, &a, t0, rows, g, warp, r, c);
    for (int i = 0; i < tiles; i++) {
        const uint32_t k = base + (uint32_t)(i % 2) * 2 * TILE, next = base + (uint32_t)((i + 1) % 2) * 2 * TILE;
        if (i + 1 < tiles) {
            load_tile<D>(next, next + TILE, &a, table, g, (i + 1) * KEYS, last);
            asm volatile("cp.async.wait_group 1;" ::: "memory");
        } else {
            asm volatile("cp.async.wait_group 0;" ::: "memory");
        }
        __syncthreads();
        float s[KEYS / 8][4];
        scores<D>(&w, k, lane, s);
        softmax<D>(&w, s, i * KEYS, c);
        values<D>(&w, s, k + TILE, lane);
        __syncthreads();
    }
    store<D>(&w, &a, rounded, t0, rows, g, warp, r, c);
}

template <int D>
static ds_code run(ds_cuda *c, const ds_attn_args *a, __nv_bfloat16 *rounded, int dense)
{
    const int smem = 4 * KEYS * D * 2;
    DS_TRY(ds_cuda_code(c, cudaFuncSetAttribute(prefill_kernel<D>, cudaFuncAttributeMaxDynamicSharedMemorySize, smem)));
    return ds_launch(c, prefill_kernel<D>, dim3((unsigned)((a->rows.T + dense - 1) / dense), (unsigned)a->G), dim3(THREADS),
                     (size_t)smem, *a, rounded, dense);
}

ds_code ds_cuda_attention_prefill(ds_cuda *c, const ds_attn_args *a, __nv_bfloat16 *rounded, int dense)
{
    return a->D == 128 ? run<128>(c, a, rounded, dense) : run<64>(c, a, rounded, dense);
}
