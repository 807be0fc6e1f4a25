/* linear_sm90.cu - products of few rows (1..128) with large weights, bound by the memory that holds the
 * weights.
 *
 * y^T = W x^T: weight rows are the tensor cores' M (64 a warpgroup, 128 a tile), activation rows their N. The
 * work of up to DS_CUDA_GROUP products over one x is a row of units, (tile of 128 weight rows) x (64 inputs),
 * which is cut in equal shares, one a block, one block a multiprocessor: every multiprocessor streams the
 * same number of bytes. A tile that several blocks share is summed from their parts in ascending order by the
 * block that ends last. The cut depends on the weights and the card alone, so a row's bits depend on neither
 * the number of rows nor their place.
 *
 * One warp asks the copy engine for tiles, several stages ahead; two warpgroups multiply. Weights do not
 * change, so the first stages are asked for before the kernels that make x have ended (programmatic dependent
 * launch): memory works while the norm or the gate before runs. Two blocks fit in a multiprocessor for that
 * reason. */
#include "kernels/cuda/sm90/maps.h"
#include "kernels/cuda/sm90/tma.h"
#include "kernels/cuda/sm90/wgmma.h"

enum { TILE_BYTES = DS_SM90_N * DS_SM90_K * 2, CONSUMERS = 256, THREADS = CONSUMERS + 32, MIN_UNITS = 4 };

typedef struct product {
    float *y;
    int n, y_stride, first_tile, accumulate; /* first_tile: of this product among all */
} product;

typedef struct job {
    product p[DS_CUDA_GROUP];
    int n_products, tiles, blocks_k, T; /* blocks_k: units of one tile */
    int quot, rest;                     /* units / grid, units % grid */
    float *parts;                       /* [2 * grid, NT / 2 * CONSUMERS] */
    unsigned *ticket;                   /* [tiles], 0 */
} job;

typedef struct maps {
    CUtensorMap w[DS_CUDA_GROUP], x;
} maps;

/* --- shares --------------------------------------------------------------------------------------------- */

/* The share of block b begins at unit b * all / grid, kept in 32 bits: b * quot + b * rest / grid. */
__device__ static int share_begin(const job *j, int block)
{
    return block * j->quot + block * j->rest / (int)gridDim.x;
}

/* The block whose share holds a unit: the last b with b * all < (unit + 1) * grid. */
__device__ static int block_of(const job *j, int unit)
{
    return (int)(((unsigned)(unit + 1) * gridDim.x - 1) / (unsigned)(j->tiles * j->blocks_k));
}

__device__ static int product_of(const job *j, int tile)
{
    int i = 0;
    while (i + 1 < j->n_products && tile >= j->p[i + 1].first_tile)
        i++;
    return i;
}

/* --- the two roles -------------------------------------------------------------------------------------- */

template <int NT, int STAGES> struct ring {
    static constexpr int STAGE_BYTES = TILE_BYTES + NT * DS_SM90_K * 2;
    uint32_t base, full, empty; /* shared addresses: stages, barriers [STAGES] each */
};

typedef struct place { /* of a unit */
    int product, row, k;
} place;

__device__ static place place_of(const job *j, int unit)
{
    const int tile = unit / j->blocks_k, p = product_of(j, tile);
    return {p, (tile - j->p[p].first_tile) * DS_SM90_N, (unit - tile * j->blocks_k) * DS_SM90_K};
}

/* Before the wait: the weights of the first stages. Then x of those, then stage after stage as consumers free
 * them. */
template <int NT, int STAGES>
__device__ static void produce(const ring<NT, STAGES> *r, const job *j, const maps *m, int begin, int end)
{
    const int ahead = end - begin < STAGES ? end - begin : STAGES;
    for (int i = 0; i < ahead; i++) {
        const place at = place_of(j, begin + i);
        const uint32_t full = r->full + 8 * (uint32_t)i;
        bar_expect(full, r->STAGE_BYTES);
        copy_tile(r->base + (uint32_t)(i * r->STAGE_BYTES), &m->w[at.product], at.k, at.row, full,
                  EVICT_FIRST);
    }
    ds_pdl_wait();
    for (int i = 0; i < ahead; i++)
        copy_tile(r->base + (uint32_t)(i * r->STAGE_BYTES) + TILE_BYTES, &m->x,
                  (begin + i) % j->blocks_k * DS_SM90_K, 0, r->full + 8 * (uint32_t)i, EVICT_LAST);
    for (int i = ahead; begin + i < end; i++) {
        const int stage = i % STAGES;
        const place at = place_of(j, begin + i);
        const uint32_t to = r->base + (uint32_t)(stage * r->STAGE_BYTES),
                       full = r->full + 8 * (uint32_t)stage;
        bar_wait(r->empty + 8 * (uint32_t)stage, (i / STAGES - 1) & 1);
        bar_expect(full, r->STAGE_BYTES);
        copy_tile(to, &m->w[at.product], at.k, at.row, full, EVICT_FIRST);
        copy_tile(to + TILE_BYTES, &m->x, at.k, 0, full, EVICT_LAST);
    }
}

__device__ static void consumers_sync(void)
{
    asm volatile("bar.sync 1, 256;" ::: "memory");
}

/* Sum of an output tile that several blocks hold parts of: 1 when this block is the last and acc holds the
 * whole. */
template <int NT> __device__ static int gather_parts(const job *j, int tile, float (&acc)[NT / 2], int *flag)
{
    const int first = block_of(j, tile * j->blocks_k), last = block_of(j, (tile + 1) * j->blocks_k - 1);
    if (first == last)
        return 1;
    const int me = (int)blockIdx.x, tid = (int)threadIdx.x;
    const size_t part = (size_t)NT / 2 * CONSUMERS;
    const int mine = 2 * me + (me == first && share_begin(j, me) < tile * j->blocks_k);
#pragma unroll
    for (int i = 0; i < NT / 2; i++)
        __stcg(&j->parts[mine * part + (size_t)i * CONSUMERS + tid], acc[i]);
    __threadfence();
    consumers_sync();
    if (tid == 0) {
        const unsigned before = atomicAdd(&j->ticket[tile], 1u);
        *flag = before == (unsigned)(last - first);
        if (*flag)
            j->ticket[tile] = 0;
    }
    consumers_sync();
    const int whole = *flag;
    if (!whole)
        return 0;
    __threadfence();
#pragma unroll
    for (int i = 0; i < NT / 2; i++)
        acc[i] = 0;
    constexpr int TOGETHER = NT <= 16   ? 4
                             : NT <= 32 ? 2
                                        : 1; /* parts in flight at once: one trip to the L2 for several */
    for (int b = first; b <= last; b += TOGETHER) {
        float v[TOGETHER][NT / 2];
#pragma unroll
        for (int k = 0; k < TOGETHER; k++) {
            const float *from =
                &j->parts[(2 * (b + k) + (share_begin(j, b + k) < tile * j->blocks_k)) * part + tid];
#pragma unroll
            for (int i = 0; i < NT / 2; i++)
                v[k][i] = b + k <= last ? __ldcg(from + (size_t)i * CONSUMERS) : 0;
        }
#pragma unroll
        for (int k = 0; k < TOGETHER; k++)
#pragma unroll
            for (int i = 0; i < NT / 2; i++)
                acc[i] += v[k][i];
    }
    return 1;
}

/* Fragment of m64nN: lane holds weight rows (warp * 16 + lane / 4) and + 8, activation rows 8 i + 2 (lane %
 * 4) + {0, 1}. */
template <int NT> __device__ static void store_tile(const job *j, int tile, const float (&acc)[NT / 2])
{
    const product *p = &j->p[product_of(j, tile)];
    const int lane = (int)threadIdx.x % 32, warp = (int)threadIdx.x / 32;
    const int n0 = (tile - p->first_tile) * DS_SM90_N + warp * 16 + lane / 4;
#pragma unroll
    for (int i = 0; i < NT / 8; i++)
#pragma unroll
        for (int e = 0; e < 4; e++) {
            const int n = n0 + 8 * (e / 2), t = 8 * i + 2 * (lane % 4) + e % 2;
            if (n < p->n && t < j->T) {
                float *y = p->y + (size_t)t * p->y_stride + n;
                *y = p->accumulate ? *y + acc[4 * i + e] : acc[4 * i + e];
            }
        }
}

template <int NT, int STAGES>
__device__ static void consume(const ring<NT, STAGES> *r, const job *j, int begin, int end, int *flag)
{
    const uint32_t group = (threadIdx.x / 128) * (TILE_BYTES / 2);
    float acc[NT / 2];
    for (int unit = begin, i = 0; unit < end; unit++, i++) {
        const int stage = i % STAGES, tile = unit / j->blocks_k;
        const uint32_t at = r->base + (uint32_t)(stage * r->STAGE_BYTES);
        const int fresh = unit == begin || unit % j->blocks_k == 0;
        bar_wait(r->full + 8 * (uint32_t)stage, (i / STAGES) & 1);
        const uint64_t a = wgmma_desc(at + group), b = wgmma_desc(at + TILE_BYTES);
        wgmma_fence();
#pragma unroll
        for (int s = 0; s < DS_SM90_K / 16; s++) /* 16 inputs are 32 bytes: 2 in a descriptor */
            wgmma<NT>::run(acc, a + 2 * s, b + 2 * s, !(fresh && s == 0));
        wgmma_commit();
        wgmma_wait<0>();
        if (threadIdx.x % 32 == 0)
            bar_arrive(r->empty + 8 * (uint32_t)stage);
        if (unit + 1 == end || (unit + 1) % j->blocks_k == 0)
            if (gather_parts<NT>(j, tile, acc, flag))
                store_tile<NT>(j, tile, acc);
    }
}

template <int NT, int STAGES>
__global__ static void __launch_bounds__(THREADS, NT <= 64 ? 2 : 1)
    linear_kernel(const __grid_constant__ job j, const __grid_constant__ maps m)
{
    extern __shared__ char smem[];
    __shared__ uint64_t bars[2 * STAGES];
    __shared__ int flag;
    const ring<NT, STAGES> r = {(smem_of(smem) + 1023) & ~1023u, smem_of(bars), smem_of(bars + STAGES)};
    const int begin = share_begin(&j, (int)blockIdx.x), end = share_begin(&j, (int)blockIdx.x + 1);
    if (threadIdx.x == 0) {
        for (int i = 0; i < STAGES; i++) {
            bar_init(r.full + 8 * (uint32_t)i, 1);
            bar_init(r.empty + 8 * (uint32_t)i, CONSUMERS / 32);
        }
        asm volatile("fence.mbarrier_init.release.cluster;" ::: "memory");
    }
    __syncthreads();
    ds_pdl_next();
    if (threadIdx.x >= CONSUMERS) {
        if (threadIdx.x == CONSUMERS + 1)
            prefetch_map(&m.x);
        if (threadIdx.x == CONSUMERS)
            produce<NT, STAGES>(&r, &j, &m, begin, end);
        return;
    }
    ds_pdl_wait();
    consume<NT, STAGES>(&r, &j, begin, end, &flag);
}

/* --- host ----------------------------------------------------------------------------------------------- */

int ds_cuda_sm90_fits(const ds_linear_args *a)
{
    return a->w.dtype == DS_BF16 && a->w.k % 8 == 0 && a->w.k >= DS_SM90_K && (uintptr_t)a->w.data % 16 == 0;
}

template <int NT, int STAGES> static ds_code launch(ds_cuda *c, job *j, maps *m)
{
    const size_t smem = (size_t)STAGES * ring<NT, STAGES>::STAGE_BYTES + 1024;
    const long long units = (long long)j->tiles * j->blocks_k;
    int grid = c->sms;
    if ((units + 1) * grid > UINT32_MAX)
        return DS_EINVAL;
    if (units < (long long)grid * MIN_UNITS)
        grid = (int)((units + MIN_UNITS - 1) / MIN_UNITS);
    DS_TRY(ds_cuda_room(c, &c->parts, sizeof(float) * 2 * (size_t)c->sms * NT / 2 * CONSUMERS));
    DS_TRY(ds_cuda_room(c, &c->tickets, sizeof(unsigned) * (size_t)j->tiles));
    j->quot = (int)(units / grid);
    j->rest = (int)(units % grid);
    j->parts = (float *)c->parts.p;
    j->ticket = (unsigned *)c->tickets.p;
    DS_TRY(ds_cuda_code(c, cudaFuncSetAttribute(linear_kernel<NT, STAGES>,
                                                cudaFuncAttributeMaxDynamicSharedMemorySize, (int)smem)));
    return ds_launch(c, linear_kernel<NT, STAGES>, dim3((unsigned)grid), dim3(THREADS), smem, *j, *m);
}

ds_code ds_cuda_sm90_linear(ds_cuda *c, const ds_linear_args *group, int n)
{
    job j = {};
    maps m = {};
    const int T = group->T, k = group->w.k,
              nt = T <= 8    ? 8
                   : T <= 16 ? 16
                   : T <= 32 ? 32
                   : T <= 64 ? 64
                             : 128;
    j.n_products = n;
    j.T = T;
    j.blocks_k = (k + DS_SM90_K - 1) / DS_SM90_K;
    for (int i = 0; i < n; i++) {
        const ds_linear_args *a = &group[i];
        j.p[i] = {a->y, a->w.n, a->y_stride, j.tiles, a->accumulate};
        j.tiles += (a->w.n + DS_SM90_N - 1) / DS_SM90_N;
        DS_TRY(ds_cuda_map_weights(c, &a->w, &m.w[i]));
    }
    DS_TRY(ds_cuda_map_make(c, c->xb.p, T, k, nt, &m.x));
    switch (nt) {
    case 8:
        return launch<8, 6>(c, &j, &m);
    case 16:
        return launch<16, 6>(c, &j, &m);
    case 32:
        return launch<32, 5>(c, &j, &m);
    case 64:
        return launch<64, 4>(c, &j, &m);
    default:
        return launch<128, 5>(c, &j, &m);
    }
}
