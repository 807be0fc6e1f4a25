/* attention_prefill.cu - attention of dense blocks of rows (prompts) over bf16 pages of 16 tokens, on tensor
 * cores.
 *
 * A block of 4 warps holds 128 query vectors: 128 / (H / G) rows times the heads of one KV head, 32 a warp
 * (two tiles of 16, so that a key read from shared memory serves both). Keys and values pass through shared
 * memory in tiles of 64 tokens, two in flight (cp.async, 16-byte pieces swizzled by row); an online softmax
 * in registers, as in FlashAttention-2 (Dao 2023). Queries and weights are rounded to bf16 once. */
#include "kernels/cuda/attention.h"
#include "kernels/cuda/mma.h"

enum { WARPS = 4, THREADS = 32 * WARPS, KEYS = 64, MT = 2 /* query tiles of a warp */, PAGE = DS_ATTN_PAGE };

__device__ static uint32_t smem_of(const void *p)
{
    return (uint32_t)__cvta_generic_to_shared(p);
}

__device__ static void copy16(uint32_t dst, const void *src, int valid) /* invalid: zeros */
{
    asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;" ::"r"(dst), "l"(src), "r"(valid ? 16 : 0)
                 : "memory");
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

/* Shared address of 16-byte piece `piece` of row `row` in a tile of rows of D. */
template <int D> __device__ static uint32_t piece_at(uint32_t tile, int row, int piece)
{
    return tile + (uint32_t)(row * D * 2 + ((piece ^ (row & 7)) << 4));
}

template <int D>
__device__ static void load_tile(uint32_t k_tile, uint32_t v_tile, const ds_attn_args *a,
                                 const int32_t *table, int g, int first, int last)
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

template <int D> struct warp_state {
    float acc[MT][D / 8][4];
    float m[MT][2], l[MT][2]; /* of query rows r, r + 8 of a tile, in units of log2; l: this lane's part */
    int pos[MT][2];           /* -1: none */
};

template <int D>
__device__ static void scores(uint32_t q_tile, uint32_t k_tile, int warp, int lane,
                              float (&s)[MT][KEYS / 8][4])
{
    const int key = lane / 16 * 8 + lane % 8,
              k_half = lane / 8 % 2; /* of the four 8 x 8 matrices of a load */
    const int row = lane / 8 % 2 * 8 + lane % 8 + warp * 16 * MT, q_half = lane / 16;
#pragma unroll
    for (int t = 0; t < MT; t++)
#pragma unroll
        for (int n = 0; n < KEYS / 8; n++)
#pragma unroll
            for (int e = 0; e < 4; e++)
                s[t][n][e] = 0;
#pragma unroll
    for (int i = 0; i < D / 16; i++) {
        uint32_t q[MT][4];
#pragma unroll
        for (int t = 0; t < MT; t++)
            load4(q[t], piece_at<D>(q_tile, row + 16 * t, 2 * i + q_half));
#pragma unroll
        for (int n = 0; n < KEYS / 16; n++) {
            uint32_t b[4];
            load4(b, piece_at<D>(k_tile, n * 16 + key, 2 * i + k_half));
#pragma unroll
            for (int t = 0; t < MT; t++) {
                mma(s[t][2 * n], q[t], b[0], b[1]);
                mma(s[t][2 * n + 1], q[t], b[2], b[3]);
            }
        }
    }
}

template <int D>
__device__ static void softmax(warp_state<D> *w, int t, float (&s)[KEYS / 8][4], int first, int c)
{
#pragma unroll
    for (int h = 0; h < 2; h++) {
        float most = w->m[t][h], sum = 0;
        if (first + KEYS - 1 > w->pos[t][h])
#pragma unroll
            for (int n = 0; n < KEYS / 8; n++)
#pragma unroll
                for (int e = 0; e < 2; e++)
                    if (first + n * 8 + 2 * c + e > w->pos[t][h])
                        s[n][2 * h + e] = -INFINITY;
#pragma unroll
        for (int n = 0; n < KEYS / 8; n++)
            most = fmaxf(most, fmaxf(s[n][2 * h], s[n][2 * h + 1]));
        most = fmaxf(most, __shfl_xor_sync(0xffffffffu, most, 1));
        most = fmaxf(most, __shfl_xor_sync(0xffffffffu, most, 2));
        const float base = most == -INFINITY ? 0 : most, shrink = exp2f(w->m[t][h] - base);
        w->m[t][h] = most;
#pragma unroll
        for (int n = 0; n < KEYS / 8; n++)
#pragma unroll
            for (int e = 0; e < 2; e++) {
                s[n][2 * h + e] = exp2f(s[n][2 * h + e] - base);
                sum += s[n][2 * h + e];
            }
        w->l[t][h] = w->l[t][h] * shrink + sum;
#pragma unroll
        for (int j = 0; j < D / 8; j++) {
            w->acc[t][j][2 * h] *= shrink;
            w->acc[t][j][2 * h + 1] *= shrink;
        }
    }
}

template <int D>
__device__ static void values(warp_state<D> *w, const float (&s)[MT][KEYS / 8][4], uint32_t v_tile, int lane)
{
    const int key = lane / 8 % 2 * 8 + lane % 8, half = lane / 16;
#pragma unroll
    for (int n = 0; n < KEYS / 16; n++) {
        uint32_t p[MT][4];
#pragma unroll
        for (int t = 0; t < MT; t++)
#pragma unroll
            for (int e = 0; e < 4; e++)
                p[t][e] = pack(s[t][2 * n + e / 2][e % 2 * 2], s[t][2 * n + e / 2][e % 2 * 2 + 1]);
#pragma unroll
        for (int i = 0; i < D / 16; i++) {
            uint32_t b[4];
            load4_transposed(b, piece_at<D>(v_tile, n * 16 + key, 2 * i + half));
#pragma unroll
            for (int t = 0; t < MT; t++) {
                mma(w->acc[t][2 * i], p[t], b[0], b[1]);
                mma(w->acc[t][2 * i + 1], p[t], b[2], b[3]);
            }
        }
    }
}

/* All queries of the block, scaled and rounded, to shared memory; missing ones are zeros. */
template <int D>
__device__ static void load_queries(uint32_t q_tile, const ds_attn_args *a, int t0, int rows, int g)
{
    const int group = a->H / a->G;
    const float scale = a->scale * 1.44269504088896341f;
    for (int i = (int)threadIdx.x; i < 16 * MT * WARPS * (D / 8); i += THREADS) {
        const int q = i / (D / 8), piece = i % (D / 8);
        float4 lo = make_float4(0, 0, 0, 0), hi = lo;
        if (q / group < rows) {
            const float *from = a->q + (size_t)(t0 + q / group) * a->q_stride +
                                (size_t)(g * group + q % group) * D + piece * 8;
            lo = *(const float4 *)from;
            hi = *(const float4 *)(from + 4);
        }
        asm volatile("st.shared.v4.b32 [%0], {%1, %2, %3, %4};" ::"r"(piece_at<D>(q_tile, q, piece)),
                     "r"(pack(lo.x * scale, lo.y * scale)), "r"(pack(lo.z * scale, lo.w * scale)),
                     "r"(pack(hi.x * scale, hi.y * scale)), "r"(pack(hi.z * scale, hi.w * scale))
                     : "memory");
    }
}

template <int D>
__device__ static void start(warp_state<D> *w, const ds_attn_args *a, int t0, int rows, int warp, int r)
{
    const int group = a->H / a->G;
#pragma unroll
    for (int t = 0; t < MT; t++) {
#pragma unroll
        for (int h = 0; h < 2; h++) {
            const int i = (warp * MT + t) * 16 + r + 8 * h;
            w->pos[t][h] = i / group < rows ? a->rows.pos[t0 + i / group] : -1;
            w->m[t][h] = -INFINITY;
            w->l[t][h] = 0;
        }
#pragma unroll
        for (int j = 0; j < D / 8; j++)
#pragma unroll
            for (int e = 0; e < 4; e++)
                w->acc[t][j][e] = 0;
    }
}

template <int D>
__device__ static void store(const warp_state<D> *w, const ds_attn_args *a, __nv_bfloat16 *rounded, int t0,
                             int rows, int g, int warp, int r, int c)
{
    const int group = a->H / a->G;
#pragma unroll
    for (int t = 0; t < MT; t++)
#pragma unroll
        for (int h = 0; h < 2; h++) {
            const int i = (warp * MT + t) * 16 + r + 8 * h;
            float l = w->l[t][h];
            l += __shfl_xor_sync(0xffffffffu, l, 1);
            l += __shfl_xor_sync(0xffffffffu, l, 2);
            if (i / group >= rows)
                continue;
            const size_t at = ((size_t)(t0 + i / group) * a->H + g * group + i % group) * D + 2 * c;
            const float inv = 1 / l;
#pragma unroll
            for (int j = 0; j < D / 8; j++) {
                const float2 v = make_float2(w->acc[t][j][2 * h] * inv, w->acc[t][j][2 * h + 1] * inv);
                *(float2 *)(a->out + at + 8 * j) = v;
                if (rounded)
                    *(uint32_t *)(rounded + at + 8 * j) = pack(v.x, v.y);
            }
        }
}

template <int D>
__global__ static void __launch_bounds__(THREADS, 2)
    prefill_kernel(ds_attn_args a, __nv_bfloat16 *rounded, int dense)
{
    extern __shared__ __align__(128) char smem[];
    ds_pdl_next();
    ds_pdl_wait();
    const int lane = (int)threadIdx.x % 32, warp = (int)threadIdx.x / 32, r = lane / 4, c = lane % 4,
              g = (int)blockIdx.y;
    const int t0 = ((int)gridDim.x - 1 - (int)blockIdx.x) * dense; /* the longest first */
    const int rows = a.rows.T - t0 < dense ? a.rows.T - t0 : dense;
    if (!ds_attn_is_dense(&a.rows, t0, dense))
        return;
    constexpr uint32_t TILE = KEYS * D * 2;
    const uint32_t base = smem_of(smem), queries = base + 4 * TILE;
    const int32_t *table = a.rows.page_table + (size_t)a.rows.slot[t0] * a.rows.page_stride;
    const int last = a.rows.pos[t0] + rows - 1, tiles = last / KEYS + 1;
    load_tile<D>(base, base + TILE, &a, table, g, 0, last);
    load_queries<D>(queries, &a, t0, rows, g);
    warp_state<D> w;
    start<D>(&w, &a, t0, rows, warp, r);
    for (int i = 0; i < tiles; i++) {
        const uint32_t k = base + (uint32_t)(i % 2) * 2 * TILE,
                       next = base + (uint32_t)((i + 1) % 2) * 2 * TILE;
        if (i + 1 < tiles) {
            load_tile<D>(next, next + TILE, &a, table, g, (i + 1) * KEYS, last);
            asm volatile("cp.async.wait_group 1;" ::: "memory");
        } else {
            asm volatile("cp.async.wait_group 0;" ::: "memory");
        }
        __syncthreads();
        float s[MT][KEYS / 8][4];
        scores<D>(queries, k, warp, lane, s);
#pragma unroll
        for (int t = 0; t < MT; t++)
            softmax<D>(&w, t, s[t], i * KEYS, c);
        values<D>(&w, s, k + TILE, lane);
        __syncthreads();
    }
    store<D>(&w, &a, rounded, t0, rows, g, warp, r, c);
}

template <int D> static ds_code run(ds_cuda *c, const ds_attn_args *a, __nv_bfloat16 *rounded, int dense)
{
    const int smem = (4 * KEYS + 16 * MT * WARPS) * D * 2;
    DS_TRY(ds_cuda_code(
        c, cudaFuncSetAttribute(prefill_kernel<D>, cudaFuncAttributeMaxDynamicSharedMemorySize, smem)));
    return ds_launch(c, prefill_kernel<D>, dim3((unsigned)((a->rows.T + dense - 1) / dense), (unsigned)a->G),
                     dim3(THREADS), (size_t)smem, *a, rounded, dense);
}

ds_code ds_cuda_attention_prefill(ds_cuda *c, const ds_attn_args *a, __nv_bfloat16 *rounded, int dense)
{
    return a->D == 128 ? run<128>(c, a, rounded, dense) : run<64>(c, a, rounded, dense);
}
