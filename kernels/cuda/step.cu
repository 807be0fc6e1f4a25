/* step.cu - the ops of the device loop (docs/loop.md); what each does is written out plainly in
 * kernels/cpu/step.c. All of a round's decisions are a few thousand values: one block admits, one warp a seat
 * accepts. `draw` is in sample.cu. */
#include "kernels/cuda/internal.h"
#include "kernels/cuda/rng.h"

enum { ADMIT = 1024, WARP = 32, ACCEPT_PURPOSE = 2 /* DS_RNG_ACCEPT of base/rng.h */ };

/* --- admit --------------------------------------------------------------------------------------------- */

struct admit_shared {
    int sum[WARP];
    int total;
};

/* Sum over the block, and in *before the sum of the threads before this one. */
__device__ static int block_scan(int v, int *before, admit_shared *s)
{
    int lane = threadIdx.x % WARP, warp = threadIdx.x / WARP, at = v;
    for (int d = 1; d < WARP; d *= 2) {
        int left = __shfl_up_sync(0xffffffffu, at, d);
        at += lane >= d ? left : 0;
    }
    __syncthreads(); /* the last result has been read */
    if (lane == WARP - 1)
        s->sum[warp] = at;
    __syncthreads();
    if (warp == 0) {
        int n = blockDim.x / WARP, w = lane < n ? s->sum[lane] : 0, all = w;
        for (int d = 1; d < WARP; d *= 2) {
            int left = __shfl_up_sync(0xffffffffu, all, d);
            all += lane >= d ? left : 0;
        }
        s->sum[lane] = all - w;
        if (lane == WARP - 1)
            s->total = all;
    }
    __syncthreads();
    if (before)
        *before = s->sum[warp] + at - v;
    return s->total;
}

__device__ static int cap_of(const ds_seat *q)
{
    int cap = min(min(q->n_draft, q->max_draft), q->end - q->start - 2);
    return q->state != DS_SEAT_LIVE || cap < 0 ? 0 : cap;
}

__device__ static void survive(const ds_admit_args &a, const ds_seat *q, float *ret)
{
    float p = 1.0f;
    for (int k = 0; k < a.block; k++) {
        float c = q->eager ? 1.0f : a.odds ? a.odds[k] : 1.0f / (1.0f + expf(-q->conf[k] * a.inv_temp[k]));
        ret[k] = p *= c;
    }
    if (q->state != DS_SEAT_LIVE || q->n_draft == 0)
        ret[0] = -1.0f;
}

/* Survivals are in [0, 1] and never rise along a seat: as unsigned numbers they keep their order, and those
 * at least `low` are a prefix. */
__device__ static int reach(const float *s, int cap, unsigned low)
{
    int n = 0;
    while (n < cap && __float_as_uint(s[n]) >= low)
        n++;
    return n;
}

/* How many drafts of this thread's seat are among the K best of all: by survival, then position, then place
 * in the list. Every thread of the block takes part. */
__device__ static int winners(const float *s, int cap, int K, int block, admit_shared *sh)
{
    cap = reach(s, cap, 1); /* a survival of zero is never let in */
    if (block_scan(cap, NULL, sh) <= K)
        return cap;
    if (K <= 0)
        return 0;
    unsigned low = 1, high = 0x3f800001u; /* count(>= low) >= K > count(>= high) */
    while (high - low > 1) {
        unsigned mid = (low + high) / 2;
        if (block_scan(reach(s, cap, mid), NULL, sh) >= K)
            low = mid;
        else
            high = mid;
    }
    int mine = reach(s, cap, low + 1), left = K - block_scan(mine, NULL, sh);
    for (int k = 0; k < block;
         k++) { /* drafts exactly at `low` share what is left, earlier positions first */
        int before, tied = k < cap && __float_as_uint(s[k]) == low;
        int n = block_scan(tied, &before, sh);
        mine += tied && before < left;
        left -= n;
        if (left <= 0)
            break;
    }
    return mine;
}

__device__ static void write_row(const ds_admit_args &a, int t, int token, int pos, int slot, int seat)
{
    a.token[t] = token;
    a.pos[t] = pos;
    a.slot[t] = slot;
    a.row_seat[t] = seat;
}

__global__ static void __launch_bounds__(ADMIT) admit_kernel(ds_admit_args a)
{
    __shared__ admit_shared sh;
    ds_pdl_next();
    ds_pdl_wait();
    int i = threadIdx.x, n = a.control[DS_CONTROL_N], patches = a.control[DS_CONTROL_PATCHES];
    const int32_t *list = a.control + DS_CONTROL_SEATS, *patch = list + n;
    for (int p = i; p < patches; p += blockDim.x)
        a.page_table[patch[2 * p]] = patch[2 * p + 1];
    int s = i < n ? list[i] : -1;
    ds_seat *q = s < 0 ? NULL : &a.seat[s];
    float *survival = a.survival + (size_t)i * a.block;
    int live = q && q->state == DS_SEAT_LIVE, cap = q ? cap_of(q) : 0;
    if (q)
        survive(a, q, survival);
    int room = a.T - block_scan(live, NULL, &sh);
    int verify = winners(survival, cap, min(a.control[DS_CONTROL_BUDGET], room), a.block, &sh);
    int first, rows = block_scan(live ? 1 + verify : 0, &first, &sh);
    if (i < n) {
        q->n_verify = verify;
        a.first[i] = first;
    }
    if (i == 0)
        a.first[n] = rows;
    for (int j = 0; live && j <= verify; j++)
        write_row(a, first + j, j ? q->draft[j - 1] : q->anchor, q->start + j, s, s);
    for (int t = rows + i; t < a.T; t += blockDim.x)
        write_row(a, t, 0, 0, a.S, -1);
}

static int block_ok(int block)
{
    return block >= 1 && block <= DS_STEP_BLOCK;
}

ds_code ds_cuda_admit(ds_backend *b, const ds_admit_args *a)
{
    ds_cuda *c = ds_cuda_of(b);
    int most = a->max_n < a->T ? a->max_n : a->T;
    if (!block_ok(a->block) || a->T < 0 || most > ADMIT)
        return DS_EINVAL;
    DS_TRY(ds_cuda_flush(c));
    unsigned threads = ((unsigned)(most < WARP ? WARP : most) + WARP - 1) / WARP * WARP;
    return ds_launch(c, admit_kernel, dim3(1), dim3(threads), 0, *a);
}

/* --- accept -------------------------------------------------------------------------------------------- */

/* ds_rng_unit(ds_rng_u32(seed, DS_RNG_ACCEPT, pos, 1)) of base/rng.h. */
__device__ static float accept_uniform(uint64_t key, uint32_t pos)
{
    return unit(philox(key, 0, pos, 0, ACCEPT_PURPOSE).y);
}

/* Row j of a seat: its token, and whether and how the seat's run of tokens ends with it. */
struct verdict {
    int token, stands, state; /* state after this row: LIVE, STOPPED, FULL, BAD */
};

__device__ static verdict judge(const ds_accept_args &a, const ds_seat *q, const int32_t *drawn, int j)
{
    int y = drawn[j], pos = q->start + j + 1;
    verdict v = {y, j < q->n_verify && y == q->draft[j], DS_SEAT_LIVE};
    if (a.odds && j < q->n_verify) {
        v.stands = accept_uniform(q->seed, (uint32_t)pos) < a.odds[j];
        v.token = v.stands ? q->draft[j] : y;
    }
    if (v.token < 0) {
        v.state = DS_SEAT_BAD;
        return v;
    }
    if (pos + 1 >= q->end)
        v.state = DS_SEAT_FULL;
    for (int i = 0; pos >= q->min_pos && i < q->n_stop; i++)
        if (q->stop[i] == v.token)
            v.state = DS_SEAT_STOPPED;
    return v;
}

__global__ static void accept_kernel(ds_accept_args a)
{
    ds_pdl_next();
    ds_pdl_wait();
    int i = blockIdx.x * (blockDim.x / WARP) + threadIdx.x / WARP, lane = threadIdx.x % WARP;
    if (i >= a.control[DS_CONTROL_N] || i >= a.max_n)
        return;
    int s = a.control[DS_CONTROL_SEATS + i], first = a.first[i], rows = a.first[i + 1] - first;
    ds_seat *q = &a.seat[s];
    ds_round_out *o = &a.out[i];
    int state = q->state, n = 0, accepted = 0, going = 1, verified = q->n_verify;
    for (int base = 0; base < rows && going; base += WARP) { /* one turn, two for the longest block */
        int j = base + lane, in = j < rows;
        verdict v = {};
        if (in)
            v = judge(a, q, a.drawn + first, j);
        unsigned ends = __ballot_sync(0xffffffffu, in && (!v.stands || v.state != DS_SEAT_LIVE));
        int end = ends ? __ffs(ends) - 1 : WARP, last = min(end, rows - base - 1);
        int emits = in && lane <= last && v.state != DS_SEAT_BAD;
        if (emits)
            o->token[j] = v.token;
        n += __popc(__ballot_sync(0xffffffffu, emits));
        accepted += __popc(__ballot_sync(0xffffffffu, emits && v.stands));
        state = __shfl_sync(0xffffffffu, v.state, last);
        going = !ends;
    }
    __syncwarp();
    for (int k = lane; k < a.block; k += WARP)
        o->survival[k] = a.survival[(size_t)i * a.block + k];
    if (lane)
        return;
    o->seat = s;
    o->state = state;
    o->n_verify = verified;
    o->n_accepted = accepted;
    o->n = n;
    if (n)
        q->anchor = o->token[n - 1];
    q->start += n;
    q->state = state;
    q->n_draft = q->n_verify = 0;
}

ds_code ds_cuda_accept(ds_backend *b, const ds_accept_args *a)
{
    ds_cuda *c = ds_cuda_of(b);
    if (!block_ok(a->block) || a->max_n < 0)
        return DS_EINVAL;
    DS_TRY(ds_cuda_flush(c));
    return ds_launch(c, accept_kernel, dim3((unsigned)(a->max_n + 3) / 4 + !a->max_n), dim3(4 * WARP), 0, *a);
}

/* --- the draft pass ------------------------------------------------------------------------------------ */

__global__ static void block_kernel(ds_block_args a)
{
    ds_pdl_next();
    ds_pdl_wait();
    int n = a.control[DS_CONTROL_N], step = gridDim.x * blockDim.x,
        at = blockIdx.x * blockDim.x + threadIdx.x;
    for (int i = at; i < a.n_state; i += step)
        a.state[i] = 0;
    for (int t = at; t < a.R * a.block; t += step) {
        int r = t / a.block, k = t % a.block, s = r < n ? a.control[DS_CONTROL_SEATS + r] : -1;
        const ds_seat *q = s < 0 ? NULL : &a.seat[s];
        int there = q && q->state == DS_SEAT_LIVE && q->max_draft > 0 && q->start + a.block <= a.max_len &&
                    q->end - q->start > 2;
        int start = there ? q->start : 0, anchor = there ? q->anchor : 0;
        a.token[t] = k ? a.mask_token : anchor;
        a.pos[t] = start + k;
        a.limit[t] = start + a.block - 1;
        a.slot[t] = there ? s : a.S;
        a.order[k * a.R + r] = t;
        if (k == 0) {
            a.anchor[r] = anchor;
            a.start[r] = start;
            a.row_seat[r] = there ? s : -1;
        }
    }
}

ds_code ds_cuda_block(ds_backend *b, const ds_block_args *a)
{
    ds_cuda *c = ds_cuda_of(b);
    if (!block_ok(a->block) || a->R < 0 || a->n_state < 0)
        return DS_EINVAL;
    DS_TRY(ds_cuda_flush(c));
    ds_cuda_wrote(c, a->state, sizeof(float) * (size_t)a->n_state);
    int most = a->R * a->block > a->n_state ? a->R * a->block : a->n_state;
    unsigned grid = (unsigned)(most + 255) / 256;
    return ds_launch(c, block_kernel, dim3(grid < 1 ? 1 : grid > 128 ? 128 : grid), dim3(256), 0, *a);
}

__global__ static void offer_kernel(ds_offer_args a)
{
    ds_pdl_next();
    ds_pdl_wait();
    int t = blockIdx.x * blockDim.x + threadIdx.x; /* slot-major */
    if (t >= a.R * a.block)
        return;
    int s = a.row_seat[t % a.R], k = t / a.R;
    if (s < 0)
        return;
    float z = a.conf ? a.conf[t] : 30.0f;
    a.seat[s].draft[k] = a.token[t];
    a.seat[s].conf[k] = z == z ? z : -30.0f;
    if (k == 0)
        a.seat[s].n_draft = a.block;
}

ds_code ds_cuda_offer(ds_backend *b, const ds_offer_args *a)
{
    ds_cuda *c = ds_cuda_of(b);
    if (!block_ok(a->block) || a->R < 0)
        return DS_EINVAL;
    DS_TRY(ds_cuda_flush(c));
    return a->R ? ds_launch(c, offer_kernel, dim3((unsigned)(a->R * a->block + 255) / 256), dim3(256), 0, *a)
                : DS_OK;
}
