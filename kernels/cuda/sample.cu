/* sample.cu - choosing tokens (docs/sampling.md), one block a row, everything of kernels/cpu/sample.c.
 *
 * Every filter keeps a prefix of one total order (logit descending, id ascending), so the survivors are "not
 * after `last`", a single 64-bit key, found by radix selection over weighted histograms. Weights are
 * fixed-point integers (2^-40), so that sums do not depend on the order in which threads add: the same row
 * gives the same token always. */
#include "kernels/cuda/internal.h"
#include "kernels/cuda/rng.h"

extern "C" {
#include "base/limits.h"
}

enum { THREADS = 1024, WARPS = THREADS / 32, BINS = 256, ACCEPT = 2, FINAL = 3 /* DS_RNG_* of base/rng.h */ };
#define ALL_KEYS UINT64_MAX

typedef unsigned long long u64;

__device__ static float gumbel(uint32_t u)
{
    return -logf(-logf(unit(u)));
}

/* Smaller is better: descending value, then ascending id. -0 counts as 0. */
__device__ static uint64_t order_key(float z, int id)
{
    uint32_t u = __float_as_uint(z + 0.0f);
    u = u >> 31 ? u : ~u & 0x7fffffffu;
    return (uint64_t)u << 32 | (uint32_t)id;
}

struct shared {
    u64 bin[BINS];
    u64 part[WARPS];
    double dpart[WARPS];
    uint64_t best[DS_MAX_TOP_LOGPROBS];
    uint64_t prefix, found;
    u64 before; /* weight of all smaller keys */
    int n_best, flag, done;
};

struct row_state {
    float *x;
    int V;
    float max, scale;
    uint64_t last; /* key of the last survivor */
    float *undo;   /* what the changes replaced */
};

/* --- sums over the block: every thread gets the result, in one fixed order ------------------------------ */

__device__ static u64 block_sum(u64 v, shared *s)
{
    for (int d = 16; d; d >>= 1)
        v += __shfl_xor_sync(0xffffffffu, v, d);
    __syncthreads();
    if (threadIdx.x % 32 == 0)
        s->part[threadIdx.x / 32] = v;
    __syncthreads();
    u64 sum = 0;
    for (int i = 0; i < WARPS; i++)
        sum += s->part[i];
    return sum;
}

__device__ static uint64_t block_min(uint64_t v, shared *s)
{
    for (int d = 16; d; d >>= 1) {
        uint64_t o = __shfl_xor_sync(0xffffffffu, (u64)v, d);
        v = o < v ? o : v;
    }
    __syncthreads();
    if (threadIdx.x % 32 == 0)
        s->part[threadIdx.x / 32] = v;
    __syncthreads();
    uint64_t least = s->part[0];
    for (int i = 1; i < WARPS; i++)
        least = s->part[i] < least ? s->part[i] : least;
    return least;
}

__device__ static double block_sum_f64(double v, shared *s)
{
    for (int d = 16; d; d >>= 1)
        v += __shfl_xor_sync(0xffffffffu, v, d);
    __syncthreads();
    if (threadIdx.x % 32 == 0)
        s->dpart[threadIdx.x / 32] = v;
    __syncthreads();
    double sum = 0;
    for (int i = 0; i < WARPS; i++)
        sum += s->dpart[i];
    return sum;
}

/* --- scanning a row ------------------------------------------------------------------------------------- */

/* Sets max; 1 when the row holds a NaN, +inf, or nothing but -inf. The key of the best is returned in
 * *ret_best. */
__device__ static int scan_max(row_state *r, shared *s, uint64_t *ret_best)
{
    uint64_t best = ALL_KEYS;
    int bad = 0;
    for (int i = (int)threadIdx.x; i < r->V; i += THREADS) {
        float z = r->x[i];
        bad |= !(z < INFINITY); /* NaN or +inf */
        uint64_t key = order_key(z, i);
        best = key < best ? key : best;
    }
    bad = __syncthreads_or(bad);
    best = block_min(best, s);
    if (bad)
        return 1;
    *ret_best = best;
    r->max = r->x[(uint32_t)best];
    return !(r->max > -INFINITY);
}

__device__ static double sum_exp(const row_state *r, shared *s)
{
    double sum = 0;
    for (int i = (int)threadIdx.x; i < r->V; i += THREADS)
        sum += (double)expf(r->x[i] - r->max);
    return block_sum_f64(sum, s);
}

__device__ static u64 weight_of(const row_state *r, float z, int probs)
{
    return probs ? (u64)((double)expf((z - r->max) * r->scale) * 0x1p40) : 1;
}

/* The smallest prefix of the survivors (in key order) that weighs at least `target`: key of its last element,
 * or r->last when all weigh less. Eight bits of the key a pass. */
__device__ static uint64_t prefix_last(const row_state *r, shared *s, int probs, u64 target)
{
    uint64_t prefix = 0, mask = 0;
    u64 before = 0;
    for (int shift = 56; shift >= 0; shift -= 8) {
        if (shift == 24)
            shift = 16; /* ids have at most 24 bits (DS_MAX_VOCAB) */
        if (threadIdx.x < BINS)
            s->bin[threadIdx.x] = 0;
        __syncthreads();
        for (int i = (int)threadIdx.x; i < r->V; i += THREADS) {
            float z = r->x[i];
            uint64_t key = order_key(z, i);
            if ((key & mask) == prefix && key <= r->last) {
                u64 w = weight_of(r, z, probs);
                if (w)
                    atomicAdd(&s->bin[(key >> shift) & 255], w);
            }
        }
        __syncthreads();
        if (threadIdx.x == 0) {
            int bin = 0;
            u64 sum = before;
            while (bin < BINS && sum + s->bin[bin] < target)
                sum += s->bin[bin++];
            s->done = bin == BINS;
            s->prefix = prefix | (uint64_t)bin << shift;
            s->before = sum;
        }
        __syncthreads();
        if (s->done)
            return r->last;
        prefix = s->prefix;
        before = s->before;
        mask |= (uint64_t)255 << shift;
        __syncthreads();
    }
    return prefix;
}

/* --- reports -------------------------------------------------------------------------------------------- */

__device__ static void report_top(const row_state *r, shared *s, int n, double lse, ds_sample_out *o)
{
    n = n < r->V ? n : r->V;
    if (threadIdx.x == 0)
        o->n_top = n > 0 ? n : 0;
    if (n <= 0)
        return;
    row_state all = *r;
    all.last = ALL_KEYS;
    uint64_t last = prefix_last(&all, s, 0, (u64)n);
    if (threadIdx.x == 0)
        s->n_best = 0;
    __syncthreads();
    for (int i = (int)threadIdx.x; i < r->V; i += THREADS) {
        uint64_t key = order_key(r->x[i], i);
        if (key <= last)
            s->best[atomicAdd(&s->n_best, 1)] = key;
    }
    __syncthreads();
    if (threadIdx.x == 0)
        for (int i = 1; i < n; i++)
            for (int j = i; j > 0 && s->best[j - 1] > s->best[j]; j--) {
                uint64_t t = s->best[j];
                s->best[j] = s->best[j - 1];
                s->best[j - 1] = t;
            }
    __syncthreads();
    if ((int)threadIdx.x < n) {
        int id = (int)(uint32_t)s->best[threadIdx.x];
        o->top_id[threadIdx.x] = id;
        o->top_logprob[threadIdx.x] = (float)((double)r->x[id] - lse);
    }
}

__device__ static void report_token(const row_state *r, shared *s, int token, double lse, ds_sample_out *o)
{
    const uint64_t key = order_key(r->x[token], token);
    u64 ahead = 0;
    for (int i = (int)threadIdx.x; i < r->V; i += THREADS)
        ahead += order_key(r->x[i], i) < key;
    ahead = block_sum(ahead, s);
    if (threadIdx.x == 0) {
        o->logprob = (float)((double)r->x[token] - lse);
        o->rank = (int32_t)ahead + 1;
    }
}

/* --- penalties, bias, bans ------------------------------------------------------------------------------ */

__device__ static int times(const int32_t *ids, int n, int32_t id)
{
    int count = 0;
    for (int i = 0; i < n; i++)
        count += ids[i] == id;
    return count;
}

__device__ static float penalized(const ds_cuda_row *p, float z, int count)
{
    z = z > 0 ? z / p->repetition : z * p->repetition;
    return count > 0 ? z - p->presence - __fmul_rn(p->frequency, (float)count) : z; /* as the CPU rounds it */
}

__device__ static int n_banned(const ds_cuda_row *p)
{
    return p->pos < p->banned_until ? p->n_banned : 0;
}

/* Each change saves what it replaces. Ids of one list are distinct, except bias and bans: those go in order.
 */
__device__ static void apply_changes(row_state *r, const ds_cuda_row *p)
{
    float *undo = r->undo;
    for (int i = (int)threadIdx.x; i < p->n_seen; i += THREADS) {
        int id = p->seen[i];
        undo[i] = r->x[id];
        r->x[id] = penalized(p, undo[i], p->seen_count[i] + times(p->extra, p->n_extra, id));
    }
    undo += p->n_seen;
    __syncthreads();
    for (int i = (int)threadIdx.x; i < p->n_extra; i += THREADS) {
        int id = p->extra[i];
        if (times(p->seen, p->n_seen, id) || times(p->extra, i, id))
            continue;
        undo[i] = r->x[id];
        r->x[id] = penalized(p, undo[i], times(p->extra, p->n_extra, id));
    }
    undo += p->n_extra;
    __syncthreads();
    for (int i = 0; i < p->n_bias && threadIdx.x == 0; i++) {
        undo[i] = r->x[p->bias_id[i]];
        r->x[p->bias_id[i]] = undo[i] + p->bias[i];
    }
    undo += p->n_bias;
    __syncthreads();
    for (int i = 0; i < n_banned(p) && threadIdx.x == 0; i++) {
        undo[i] = r->x[p->banned[i]];
        r->x[p->banned[i]] = -INFINITY;
    }
    __syncthreads();
}

__device__ static void undo_changes(row_state *r, const ds_cuda_row *p)
{
    const float *extra = r->undo + p->n_seen, *bias = extra + p->n_extra, *banned = bias + p->n_bias;
    __syncthreads();
    if (threadIdx.x == 0) {
        for (int i = n_banned(p) - 1; i >= 0; i--)
            r->x[p->banned[i]] = banned[i];
        for (int i = p->n_bias - 1; i >= 0; i--)
            r->x[p->bias_id[i]] = bias[i];
    }
    __syncthreads();
    for (int i = (int)threadIdx.x; i < p->n_extra; i += THREADS) {
        int id = p->extra[i];
        if (!times(p->seen, p->n_seen, id) && !times(p->extra, i, id))
            r->x[id] = extra[i];
    }
    for (int i = (int)threadIdx.x; i < p->n_seen; i += THREADS)
        r->x[p->seen[i]] = r->undo[i];
    __syncthreads();
}

/* --- filters and the draw ------------------------------------------------------------------------------- */

__device__ static void filter(row_state *r, shared *s, const ds_cuda_row *p)
{
    r->scale = 1.0f / p->temperature;
    r->last = ALL_KEYS;
    if (p->top_k > 0 && p->top_k < r->V)
        r->last = prefix_last(r, s, 0, (u64)p->top_k);
    if (p->top_p < 1) {
        u64 total = 0;
        for (int i = (int)threadIdx.x; i < r->V; i += THREADS)
            if (order_key(r->x[i], i) <= r->last)
                total += weight_of(r, r->x[i], 1);
        total = block_sum(total, s);
        u64 target = (u64)ceil((double)total * (double)p->top_p);
        r->last = prefix_last(r, s, 1, target > 0 ? target : 1);
    }
    if (p->min_p > 0) {
        double least = (double)r->max + log((double)p->min_p) / (double)r->scale;
        float low = (float)least;
        if ((double)low < least)
            low = nextafterf(low, INFINITY);
        low = low > r->max ? r->max : low;
        uint64_t key = order_key(low, -1); /* any id at this logit */
        r->last = key < r->last ? key : r->last;
    }
}

/* argmax over survivors of (x - max) * scale + Gumbel; lowest id on ties. Four ids share one Philox call. */
__device__ static int32_t draw(const row_state *r, shared *s, const ds_cuda_row *p)
{
    uint64_t best = ALL_KEYS;
    for (int quad = (int)threadIdx.x; 4 * quad < r->V; quad += THREADS) {
        float z[4];
        int any = 0;
        for (int e = 0; e < 4; e++) {
            int id = 4 * quad + e;
            z[e] = id < r->V ? r->x[id] : -INFINITY;
            any |= z[e] > -INFINITY && order_key(z[e], id) <= r->last;
        }
        if (!any)
            continue;
        const uint4 u4 =
            philox(p->seed, (uint32_t)quad, (uint32_t)p->pos, (uint32_t)((uint64_t)p->pos >> 32), p->stream);
        const uint32_t u[4] = {u4.x, u4.y, u4.z, u4.w};
        for (int e = 0; e < 4; e++) {
            int id = 4 * quad + e;
            if (!(z[e] > -INFINITY) || order_key(z[e], id) > r->last)
                continue;
            uint64_t key = order_key(__fadd_rn(__fmul_rn(z[e] - r->max, r->scale), gumbel(u[e])), id);
            best = key < best ? key : best;
        }
    }
    return (int32_t)(uint32_t)block_min(best, s);
}

/* --- maximal coupling with a draft ---------------------------------------------------------------------- */

__device__ static double mass_left(const row_state *r, shared *s)
{
    double sum = 0;
    for (int i = (int)threadIdx.x; i < r->V; i += THREADS)
        if (order_key(r->x[i], i) <= r->last)
            sum += (double)expf((r->x[i] - r->max) * r->scale);
    return block_sum_f64(sum, s);
}

__device__ static float prob_of(const row_state *r, int id, double mass)
{
    float z = r->x[id];
    return order_key(z, id) <= r->last ? (float)((double)expf((z - r->max) * r->scale) / mass) : 0;
}

/* argmax over max(p - q, 0) of its log + Gumbel; -1 when nothing is left. */
__device__ static int32_t draw_residual(const row_state *r, double p_mass, const row_state *d, double q_mass,
                                        shared *s, const ds_cuda_row *p)
{
    uint64_t best = ALL_KEYS;
    for (int quad = (int)threadIdx.x; 4 * quad < r->V; quad += THREADS) {
        float w[4];
        int any = 0;
        for (int e = 0; e < 4; e++) {
            int id = 4 * quad + e;
            w[e] = id < r->V ? prob_of(r, id, p_mass) - prob_of(d, id, q_mass) : 0;
            any |= w[e] > 0;
        }
        if (!any)
            continue;
        const uint4 u4 =
            philox(p->seed, (uint32_t)quad, (uint32_t)p->pos, (uint32_t)((uint64_t)p->pos >> 32), FINAL);
        const uint32_t u[4] = {u4.x, u4.y, u4.z, u4.w};
        for (int e = 0; e < 4; e++)
            if (w[e] > 0) {
                uint64_t key = order_key(logf(w[e]) + gumbel(u[e]), 4 * quad + e);
                best = key < best ? key : best;
            }
    }
    best = block_min(best, s);
    return best == ALL_KEYS ? -1 : (int32_t)(uint32_t)best;
}

/* r holds p: the draft, or a draw from what p has beyond q. */
__device__ static int32_t couple(const row_state *r, shared *s, const ds_cuda_row *p)
{
    const int changes = p->n_seen + p->n_extra + p->n_bias + n_banned(p);
    row_state d = {p->draft_logits, r->V, 0, 1, ALL_KEYS, r->undo ? r->undo + changes : NULL};
    uint64_t best;
    int bad = scan_max(&d, s, &best), changed = !bad && changes;
    int32_t token = -1;
    if (changed) {
        apply_changes(&d, p);
        bad = scan_max(&d, s, &best);
    }
    if (!bad) {
        filter(&d, s, p);
        const double p_mass = mass_left(r, s), q_mass = mass_left(&d, s);
        const float pd = prob_of(r, p->draft, p_mass), qd = prob_of(&d, p->draft, q_mass);
        const uint4 u4 = philox(p->seed, 0, (uint32_t)p->pos, (uint32_t)((uint64_t)p->pos >> 32), ACCEPT);
        if (qd > 0 && unit(u4.x) * qd < pd)
            token = p->draft;
        else if (qd > 0)
            token = draw_residual(r, p_mass, &d, q_mass, s, p);
    }
    if (changed)
        undo_changes(&d, p);
    return token >= 0 ? token : draw(r, s, p);
}

/* One row by one block; thread 0 writes *o. */
__device__ static void sample_one(float *x, int V, const ds_cuda_row &p, ds_sample_out *o)
{
    __shared__ shared s;
    row_state r = {x, V, 0, 1, ALL_KEYS, p.undo};
    const int asked = p.n_logprobs >= 0 || p.given >= 0,
              changes = p.n_seen + p.n_extra + p.n_bias + n_banned(&p);
    uint64_t best = 0;
    if (threadIdx.x == 0) {
        o->token = -1;
        o->logprob = 0;
        o->rank = o->n_top = o->bad = 0;
    }
    if (scan_max(&r, &s, &best)) {
        if (threadIdx.x == 0)
            o->bad = 1;
        return;
    }
    double lse = 0;
    if (asked) {
        lse = (double)r.max + log(sum_exp(&r, &s));
        report_top(&r, &s, p.n_logprobs, lse, o);
    }
    int token = p.given, bad = 0;
    if (p.given < 0) {
        if (changes) {
            apply_changes(&r, &p);
            bad = scan_max(&r, &s, &best); /* 1: every token is forbidden */
        }
        if (!bad && p.temperature == 0) {
            token = (int)(uint32_t)best;
        } else if (!bad) {
            filter(&r, &s, &p);
            token = p.draft_logits ? couple(&r, &s, &p) : draw(&r, &s, &p);
        }
        if (changes)
            undo_changes(&r, &p);
    }
    if (threadIdx.x == 0) {
        o->token = bad ? -1 : token;
        o->bad = bad;
    }
    if (asked && !bad)
        report_token(&r, &s, token, lse, o);
}

__global__ static void __launch_bounds__(THREADS)
    sample_kernel(float *logits, int V, const ds_cuda_row *rows, ds_sample_out *out)
{
    ds_pdl_next();
    ds_pdl_wait();
    const ds_cuda_row p = rows[blockIdx.x];
    sample_one(logits + (size_t)blockIdx.x * V, V, p, out + blockIdx.x);
}

/* The same with the rules of a seat of the device loop; undo: [R, DS_SEAT_STOPS]. */
__global__ static void __launch_bounds__(THREADS) draw_kernel(ds_draw_args a, float *undo)
{
    __shared__ ds_sample_out o;
    ds_pdl_next();
    ds_pdl_wait();
    int r = blockIdx.x, seat = a.row_seat[r];
    if (seat < 0) {
        if (threadIdx.x == 0)
            a.token[r] = 0;
        return;
    }
    const ds_seat *q = a.seat + seat;
    ds_cuda_row p = {};
    p.temperature = q->temperature;
    p.top_p = q->top_p;
    p.min_p = q->min_p;
    p.repetition = 1.0f;
    p.top_k = q->top_k;
    p.n_logprobs = p.given = -1;
    p.n_banned = q->n_stop;
    p.banned = q->stop;
    p.banned_until = q->min_pos;
    p.undo = undo + (size_t)r * DS_SEAT_STOPS;
    p.seed = q->seed;
    p.pos = (int64_t)a.row_pos[r] + a.ahead;
    sample_one(a.logits + (size_t)r * a.V, a.V, p, &o);
    if (threadIdx.x == 0)
        a.token[r] = o.bad ? a.bad : o.token;
}

ds_code ds_cuda_draw(ds_backend *b, const ds_draw_args *a)
{
    ds_cuda *c = ds_cuda_of(b);
    if (a->R < 0 || a->V <= 0 || a->V > DS_MAX_VOCAB)
        return DS_EINVAL;
    DS_TRY(ds_cuda_flush(c));
    if (a->R == 0)
        return DS_OK;
    DS_TRY(ds_cuda_room(c, &c->draws, sizeof(float) * (size_t)a->R * DS_SEAT_STOPS));
    return ds_launch(c, draw_kernel, dim3((unsigned)a->R), dim3(THREADS), 0, *a, (float *)c->draws.p);
}

ds_code ds_cuda_sample_enqueue(ds_backend *b, float *logits, int R, int V, const ds_cuda_row *rows,
                               ds_sample_out *out)
{
    ds_cuda *c = ds_cuda_of(b);
    if (R < 0 || V <= 0 || V > DS_MAX_VOCAB)
        return DS_EINVAL;
    DS_TRY(ds_cuda_flush(c));
    if (R == 0)
        return DS_OK;
    return ds_launch(c, sample_kernel, dim3((unsigned)R), dim3(THREADS), 0, logits, V, rows, out);
}
