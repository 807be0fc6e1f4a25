/* attention_mma.cu - attention over bf16 pages of 16 tokens on tensor cores, for few rows (decode, verify).
 *
 * A tile is up to 16 query vectors: all heads of one KV head, times the rows of one sequence that fit (GQA
 * packing). Its keys are cut in chunks of 128 by position; chunk i goes to split i % splits, inside it two
 * pages to each of four warps. A warp keeps an online softmax in registers, the warps and then the splits are
 * merged in one fixed order. Which rows share a tile does not change a row's arithmetic: pages beyond its
 * position are exact no-ops for it.
 *
 * Keys and values go from memory to the registers of mma.m16n8k16 without shared memory: lane (r = lane/4, c
 * = lane%4) loads 16 bytes of a key's row, and the order of the inner dimension (of output columns, for
 * values) is permuted to suit, alike on both sides. Queries and weights, which are f32, are split in a bf16
 * head and a bf16 rest, so that products lose nothing but the rest's last bits. */
#include "kernels/cuda/attention.h"
#include "kernels/cuda/mma.h"

enum { WARPS = 4, PAGE = DS_ATTN_PAGE, CHUNK = 128, WARP_PAGES = 2, TILE = 16, HEADS = 4 };
/* Splits of a row's keys, and rows of one launch (bounds the scratch). One pair for all row counts, unless
 * many rows keep the card busy anyway and results may depend on that. */
enum { SPLITS = 16, GROUP_ROWS = 64, MANY_SPLITS = 4, MANY_GROUP_ROWS = 2048 };

/* The bf16 head of two floats, and what is left of them. */
__device__ static uint32_t split2(float lo, float hi, uint32_t *rest)
{
    uint32_t head = pack(lo, hi);
    *rest = pack(lo - __uint_as_float(head << 16), hi - __uint_as_float(head & 0xffff0000u));
    return head;
}

struct tile {
    int row, rows; /* rows [row, row + rows) of the step */
    int last;      /* largest position */
};

/* The tile that starts at row t, rows 0 when t is not the first of one. Tiles start where positions are
 * multiples. */
__device__ static tile tile_at(const ds_rows *r, int t, int per)
{
    const int slot = r->slot[t], pos = r->pos[t];
    if (t > 0 && pos % per != 0 && r->slot[t - 1] == slot && r->pos[t - 1] + 1 == pos)
        return {t, 0, 0};
    int n = 1;
    while (n < per && t + n < r->T && r->slot[t + n] == slot && r->pos[t + n] == pos + n &&
           (pos + n) % per != 0)
        n++;
    return {t, n, pos + n - 1};
}

/* Partial result of (row, head, split): m, l, then D sums; [T, H, splits, D + 2]. */
__device__ static size_t part_at(const ds_attn_args *a, int splits, int t, int h, int split)
{
    return (((size_t)t * a->H + h) * splits + split) * (a->D + 2);
}

/* Two query fragments (head, rest) of inner block i (32 wide: two k16 steps) for rows r and r + 8 of the
 * tile. The elements of step s that lane c holds are i*32 + c*8 + s*4 + {0, 1} and + {2, 3}. */
__device__ static void load_q(const float *q0, const float *q1, int at, uint32_t *head, uint32_t *rest)
{
    float4 lo = q0 ? *(const float4 *)(q0 + at) : make_float4(0, 0, 0, 0);
    float4 hi = q1 ? *(const float4 *)(q1 + at) : make_float4(0, 0, 0, 0);
    head[0] = split2(lo.x, lo.y, &rest[0]);
    head[1] = split2(hi.x, hi.y, &rest[1]);
    head[2] = split2(lo.z, lo.w, &rest[2]);
    head[3] = split2(hi.z, hi.w, &rest[3]);
}

/* Keys of a page: [n-tile of 8 keys][inner block]; values: [64 columns][keys 2c, 2c+1, 2c+8, 2c+9]. */
template <int D> struct key_regs {
    uint4 k[2][D / 32];
};

template <int D> struct value_regs {
    uint4 v[D / 64][4];
};

__device__ static size_t page_at(const ds_attn_args *a, int page, int g)
{
    return ((size_t)page * a->G + g) * PAGE * a->D;
}

template <int D>
__device__ static void load_keys(key_regs<D> *p, const ds_attn_args *a, size_t at, int r, int c)
{
    const __nv_bfloat16 *k = (const __nv_bfloat16 *)a->kv.k + at;
#pragma unroll
    for (int j = 0; j < 2; j++)
#pragma unroll
        for (int i = 0; i < D / 32; i++)
            p->k[j][i] = __ldcg((const uint4 *)(k + (j * 8 + r) * D + i * 32 + c * 8));
}

/* valid: keys of the page up to the tile's last position; slots beyond may hold NaN, and 0 * NaN is not 0. */
template <int D>
__device__ static void load_values(value_regs<D> *p, const ds_attn_args *a, size_t at, int valid, int r,
                                   int c)
{
    const __nv_bfloat16 *v = (const __nv_bfloat16 *)a->kv.v + at;
#pragma unroll
    for (int e = 0; e < 4; e++) {
        const int key = 2 * c + (e & 1) + (e & 2) * 4;
#pragma unroll
        for (int i = 0; i < D / 64; i++)
            p->v[i][e] =
                key < valid ? __ldcg((const uint4 *)(v + key * D + i * 64 + r * 8)) : make_uint4(0, 0, 0, 0);
    }
}

template <int D> struct warp_state {
    float acc[D / 8][4]; /* column tile j + 8 i holds columns 64 i + 8 (2c + {0, 1}) + j of rows r (0, 1) and
                            r + 8 */
    float m[2], l[2];    /* rows r and r + 8; l: this lane's part */
};

/* q: the tile's query fragments [k16 step][head, rest][lane], in shared memory. */
template <int D>
__device__ static void one_page(warp_state<D> *w, const key_regs<D> *p, const value_regs<D> *values,
                                const uint4 (*q)[2][32], int first, const int pos[2], float scale, int lane)
{
    const int c = lane % 4;
    float s[2][4] = {}, s_rest[2][4] = {}; /* two chains: a product waits for the one before it in its sum */
#pragma unroll
    for (int i = 0; i < D / 16; i++) {
        const uint4 head = q[i][0][lane], rest = q[i][1][lane];
#pragma unroll
        for (int j = 0; j < 2; j++) {
            const uint4 k = p->k[j][i / 2];
            mma(s[j], &head.x, i % 2 ? k.z : k.x, i % 2 ? k.w : k.y);
            mma(s_rest[j], &rest.x, i % 2 ? k.z : k.x, i % 2 ? k.w : k.y);
        }
    }
#pragma unroll
    for (int j = 0; j < 2; j++)
#pragma unroll
        for (int e = 0; e < 4; e++)
            s[j][e] += s_rest[j][e];
    float shrink[2];
#pragma unroll
    for (int h = 0; h < 2; h++) { /* row r, row r + 8 */
        float most = w->m[h];
#pragma unroll
        for (int j = 0; j < 2; j++)
#pragma unroll
            for (int e = 0; e < 2; e++) {
                float *x = &s[j][2 * h + e];
                *x = first + j * 8 + 2 * c + e <= pos[h] ? *x * scale : -INFINITY;
                most = fmaxf(most, *x);
            }
        most = fmaxf(most, __shfl_xor_sync(0xffffffffu, most, 1));
        most = fmaxf(most, __shfl_xor_sync(0xffffffffu, most, 2));
        const float base = most == -INFINITY ? 0 : most;
        shrink[h] = __expf(w->m[h] - base);
        w->m[h] = most;
        float sum = 0;
#pragma unroll
        for (int j = 0; j < 2; j++)
#pragma unroll
            for (int e = 0; e < 2; e++) {
                float *x = &s[j][2 * h + e];
                *x = __expf(*x - base);
                sum += *x;
            }
        w->l[h] = w->l[h] * shrink[h] + sum;
    }
    uint32_t ph[4], pl[4];
    ph[0] = split2(s[0][0], s[0][1], &pl[0]);
    ph[1] = split2(s[0][2], s[0][3], &pl[1]);
    ph[2] = split2(s[1][0], s[1][1], &pl[2]);
    ph[3] = split2(s[1][2], s[1][3], &pl[3]);
#pragma unroll
    for (int i = 0; i < D / 64; i++) {
        const uint32_t *v0 = &values->v[i][0].x, *v1 = &values->v[i][1].x, *v2 = &values->v[i][2].x,
                       *v3 = &values->v[i][3].x;
#pragma unroll
        for (int j = 0; j < 8; j++) {
            float *d = w->acc[i * 8 + j];
            d[0] *= shrink[0];
            d[1] *= shrink[0];
            d[2] *= shrink[1];
            d[3] *= shrink[1];
            const uint32_t half = j % 2 ? 0x7632 : 0x5410; /* pair element j of two keys */
            const uint32_t b0 = __byte_perm(v0[j / 2], v1[j / 2], half),
                           b1 = __byte_perm(v2[j / 2], v3[j / 2], half);
            mma(d, ph, b0, b1);
            mma(d, pl, b0, b1);
        }
    }
}

/* Merge the four warps in order through shared memory and write the split's part. */
template <int D>
__device__ static void finish(const ds_attn_args *a, const warp_state<D> *w, const tile *tl, int g, int group,
                              float *part, float (*acc_of)[TILE][D], float (*m_of)[TILE], float (*l_of)[TILE])
{
    const int lane = (int)threadIdx.x % 32, warp = (int)threadIdx.x / 32, r = lane / 4, c = lane % 4;
    for (int h = 0; h < 2; h++) {
        float l = w->l[h];
        l += __shfl_xor_sync(0xffffffffu, l, 1);
        l += __shfl_xor_sync(0xffffffffu, l, 2);
        if (c == 0) {
            m_of[warp][r + 8 * h] = w->m[h];
            l_of[warp][r + 8 * h] = l;
        }
#pragma unroll
        for (int j = 0; j < D / 8; j++)
#pragma unroll
            for (int e = 0; e < 2; e++)
                acc_of[warp][r + 8 * h][j / 8 * 64 + (2 * c + e) * 8 + j % 8] = w->acc[j][2 * h + e];
    }
    __syncthreads();
    for (int i = (int)threadIdx.x; i < tl->rows * group * D; i += 32 * WARPS) {
        const int q = i / D, d = i % D;
        float most = m_of[0][q], sum = 0, l = 0;
        for (int k = 1; k < WARPS; k++)
            most = fmaxf(most, m_of[k][q]);
        const float base = most == -INFINITY ? 0 : most;
        for (int k = 0; k < WARPS; k++) {
            const float f = __expf(m_of[k][q] - base);
            sum += acc_of[k][q][d] * f;
            l += l_of[k][q] * f;
        }
        float *to =
            part + part_at(a, (int)gridDim.z, tl->row + q / group, g * group + q % group, (int)blockIdx.z);
        to[2 + d] = sum;
        if (d == 0) {
            to[0] = most;
            to[1] = l;
        }
    }
}

/* First key of the n-th page of a warp in split z; rises with n. */
__device__ static int page_key(int n, int z, int splits, int warp)
{
    return (z + n / WARP_PAGES * splits) * CHUNK + (warp * WARP_PAGES + n % WARP_PAGES) * PAGE;
}

template <int D>
__global__ static void __launch_bounds__(32 * WARPS) split_kernel(ds_attn_args a, float *part, int dense)
{
    extern __shared__ float smem[];
    __shared__ float m_of[WARPS][TILE], l_of[WARPS][TILE];
    __shared__ uint4 q_of[D / 16][2][32];
    ds_pdl_next();
    ds_pdl_wait();
    const int lane = (int)threadIdx.x % 32, warp = (int)threadIdx.x / 32, r = lane / 4, c = lane % 4;
    const int group = a.H / a.G, per = TILE / group, g = (int)blockIdx.y, z = (int)blockIdx.z,
              splits = (int)gridDim.z;
    const tile tl = tile_at(&a.rows, (int)blockIdx.x, per);
    if (tl.rows == 0 || z * CHUNK > tl.last || (dense && ds_attn_is_dense(&a.rows, tl.row, dense)))
        return;
    const int queries = tl.rows * group, last = tl.last;
    const int32_t *table = a.rows.page_table + (size_t)a.rows.slot[tl.row] * a.rows.page_stride;
    key_regs<D> even, odd; /* one is loaded while the other is used */
    value_regs<D> values;
    int n = 0, key = page_key(0, z, splits, warp);
    size_t at = key <= last ? page_at(&a, table[key / PAGE], g) : 0, next_at = 0;
    if (key <= last)
        load_keys<D>(&even, &a, at, r, c);
    int pos[2];
    const float *q[2];
#pragma unroll
    for (int h = 0; h < 2; h++) {
        const int i = r + 8 * h;
        pos[h] = i < queries ? last - tl.rows + 1 + i / group : -1;
        q[h] = i < queries
                   ? a.q + (size_t)(tl.row + i / group) * a.q_stride + (size_t)(g * group + i % group) * D
                   : NULL;
    }
    for (int s = warp; s < D / 16; s += WARPS) {
        uint4 head, rest;
        load_q(q[0], q[1], s / 2 * 32 + c * 8 + s % 2 * 4, &head.x, &rest.x);
        q_of[s][0][lane] = head;
        q_of[s][1][lane] = rest;
    }
    __syncthreads();
    warp_state<D> w = {};
    w.m[0] = w.m[1] = -INFINITY;
#pragma unroll 1
    while (key <= last) {
        const int next = page_key(++n, z, splits, warp);
        load_values<D>(&values, &a, at, last - key + 1, r, c);
        if (next <= last)
            load_keys<D>(&odd, &a, next_at = page_at(&a, table[next / PAGE], g), r, c);
        one_page<D>(&w, &even, &values, q_of, key, pos, a.scale, lane);
        if (next > last)
            break;
        key = page_key(++n, z, splits, warp);
        load_values<D>(&values, &a, next_at, last - next + 1, r, c);
        if (key <= last)
            load_keys<D>(&even, &a, at = page_at(&a, table[key / PAGE], g), r, c);
        one_page<D>(&w, &odd, &values, q_of, next, pos, a.scale, lane);
    }
    finish<D>(&a, &w, &tl, g, group, part, (float(*)[TILE][D])smem, m_of, l_of);
}

/* One block a row and HEADS heads: merge the splits that the row's position reaches, in order. */
__global__ static void combine_kernel(ds_attn_args a, const float *part, int splits, __nv_bfloat16 *rounded,
                                      int dense)
{
    ds_pdl_next();
    ds_pdl_wait();
    const int t = (int)blockIdx.x, h = (int)(blockIdx.y * HEADS + threadIdx.y), d = (int)threadIdx.x;
    const int chunks = a.rows.pos[t] / CHUNK + 1, n = chunks < splits ? chunks : splits;
    if (h >= a.H || (dense && ds_attn_is_dense(&a.rows, t, dense)))
        return;
    const float *p = part + part_at(&a, splits, t, h, 0);
    float m[SPLITS], l[SPLITS], v[SPLITS], most = -INFINITY, sum = 0, weight = 0;
#pragma unroll
    for (int s = 0; s < SPLITS; s++) { /* all loads first */
        const float *from = p + (size_t)s * (a.D + 2);
        m[s] = s < n ? __ldcg(from) : -INFINITY;
        l[s] = s < n ? __ldcg(from + 1) : 0;
        v[s] = s < n ? __ldcg(from + 2 + d) : 0;
    }
#pragma unroll
    for (int s = 0; s < SPLITS; s++)
        most = fmaxf(most, m[s]);
#pragma unroll
    for (int s = 0; s < SPLITS; s++) {
        const float f = __expf(m[s] - most);
        sum += v[s] * f;
        weight += l[s] * f;
    }
    const size_t out = ((size_t)t * a.H + h) * a.D + d;
    sum /= weight;
    a.out[out] = sum;
    if (rounded)
        rounded[out] = __float2bfloat16_rn(sum);
}

int ds_cuda_attention_mma_fits(const ds_attn_args *a)
{
    return a->kv.dtype == DS_BF16 && a->rows.page_tokens == PAGE && (a->D == 64 || a->D == 128) &&
           a->H / a->G <= TILE && a->q_stride % 4 == 0 && (uintptr_t)a->q % 16 == 0;
}

template <int D>
static ds_code run(ds_cuda *c, const ds_attn_args *a, int splits, __nv_bfloat16 *rounded, int dense)
{
    const size_t smem = sizeof(float) * WARPS * TILE * D;
    const int chunks = (a->rows.page_stride * PAGE + CHUNK - 1) / CHUNK;
    const unsigned T = (unsigned)a->rows.T;
    splits = chunks < splits ? chunks : splits;
    DS_TRY(
        ds_cuda_room(c, &c->split, sizeof(float) * T * (size_t)a->H * (size_t)splits * (size_t)(a->D + 2)));
    float *part = (float *)c->split.p;
    DS_TRY(ds_launch(c, split_kernel<D>, dim3(T, (unsigned)a->G, (unsigned)splits), dim3(32 * WARPS), smem,
                     *a, part, dense));
    return ds_launch(c, combine_kernel, dim3(T, (unsigned)(a->H + HEADS - 1) / HEADS), dim3(D, HEADS), 0, *a,
                     (const float *)part, splits, rounded, dense);
}

ds_code ds_cuda_attention_mma(ds_cuda *c, const ds_attn_args *a, __nv_bfloat16 *rounded, int dense)
{
    const int most = dense ? MANY_GROUP_ROWS : GROUP_ROWS, splits = dense ? MANY_SPLITS : SPLITS;
    for (int t0 = 0; t0 < a->rows.T; t0 += most) { /* MANY_GROUP_ROWS is a multiple of every dense block */
        ds_attn_args part = *a;
        const size_t width = (size_t)a->H * (size_t)a->D;
        part.rows.T = a->rows.T - t0 < most ? a->rows.T - t0 : most;
        part.rows.token += t0;
        part.rows.pos += t0;
        part.rows.slot += t0;
        part.q += (size_t)t0 * (size_t)a->q_stride;
        part.out += (size_t)t0 * width;
        __nv_bfloat16 *to = rounded ? rounded + (size_t)t0 * width : NULL;
        DS_TRY(a->D == 128 ? run<128>(c, &part, splits, to, dense) : run<64>(c, &part, splits, to, dense));
    }
    return DS_OK;
}
