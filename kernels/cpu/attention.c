/* attention.c - split attention into (rows of one sequence) x (KV head) tiles and run them in parallel. */
#include "kernels/cpu/cpu.h"

#include <string.h>

enum { UNIT_MAX = 32, BLOCK = 16 }; /* widest padding unit and key block of any level (linear_tile.h) */

size_t ds_attn_scratch(int group, int d)
{
    size_t nq = (size_t)group * DS_ATTN_ROWS, dp = ((size_t)d + UNIT_MAX - 1) / UNIT_MAX * UNIT_MAX;
    return (nq * (2 * dp + BLOCK + 2) + 15) & ~(size_t)15;
}

typedef struct attn_job {
    ds_cpu *c;
    const ds_attn_args *a;
    float *scratch;
    size_t per_thread;
} attn_job;

/* Rows from t on that belong to one tile: the same sequence, rising positions, at most DS_ATTN_ROWS, and not
 * over a tile boundary of the position, so that tiles of a long prefill start at multiples. */
static int tile_rows(const ds_rows *r, int t)
{
    int n = 1;
    while (n < DS_ATTN_ROWS && t + n < r->T && r->slot[t + n] == r->slot[t] &&
           r->pos[t + n] == r->pos[t] + n && r->pos[t + n] % DS_ATTN_ROWS != 0)
        n++;
    return n;
}

/* Item = row * G + head. The tile that starts at a row is run by the item of that row, the others do nothing.
 */
static void attn_part(void *ctx, int thread, int begin, int end)
{
    attn_job *j = ctx;
    const ds_attn_args *a = j->a;
    for (int i = begin; i < end; i++) {
        int row = i / a->G, first = row;
        const ds_rows *r = &a->rows;
        while (first > 0 && r->pos[first] % DS_ATTN_ROWS != 0 && r->slot[first - 1] == r->slot[row] &&
               r->pos[first - 1] + 1 == r->pos[first])
            first--;
        if (first != row)
            continue;
        ds_attn_tile t = {a, row, tile_rows(r, row), i % a->G, j->scratch + (size_t)thread * j->per_thread};
        j->c->isa->attention(&t);
    }
}

ds_code ds_cpu_attention(ds_backend *b, const ds_attn_args *a)
{
    ds_cpu *c = (ds_cpu *)b;
    if (!ds_rows_valid(&a->rows) || a->H <= 0 || a->G <= 0 || a->H % a->G != 0 || a->D <= 0 ||
        a->q_stride < a->H * a->D || (a->kv.dtype != DS_F32 && a->kv.dtype != DS_BF16))
        return DS_EINVAL;
    if (a->rows.T == 0)
        return DS_OK;
    attn_job j = {.c = c, .a = a, .per_thread = ds_attn_scratch(a->H / a->G, a->D)};
    j.scratch = ds_scratch_need(&c->thread, j.per_thread * sizeof(float) * (size_t)ds_pool_threads(c->pool));
    if (!j.scratch)
        return DS_ENOMEM;
    size_t keys = 0;
    for (int t = 0; t < a->rows.T; t++)
        keys += (size_t)a->rows.pos[t] + 1;
    int items = a->rows.T * a->G, small = keys * (size_t)a->H * (size_t)a->D < (48 << 10);
    ds_pool_for(c->pool, items, small ? items : 1, attn_part, &j);
    return DS_OK;
}
