/* linear_tile.h - the matrix product of one instruction-set level; included after a vec_*.h, linear_unit.h
 * and the level's LIN_UNIT.
 *
 * One output = one vector accumulator over k in ascending units, then one reduction tree. Every tile shape
 * keeps that order, so a row's result does not depend on T, on its place, or on the split. Accumulators of a
 * block wait in memory, unreduced, while k is worked through in chunks whose activations fit the first cache.
 */
#ifndef DS_CPU_LINEAR_TILE_H
#define DS_CPU_LINEAR_TILE_H

#include "kernels/cpu/linear_unit.h"

/* One pass: a tile of activation rows over a block of weight rows and a chunk of k. */
typedef struct lin_pass {
    int n0, n1, t0;    /* weight rows, first activation row */
    int u0, u1, last;  /* units of k; last: and what remains after them */
    vf *sum;           /* [tile rows, DS_LIN_BLOCK] */
    const char *fetch; /* next line of the next block to prefetch, up to */
    const char *stop;
    int every, due; /* prefetch at every so many units, so that the passes share the work */
} lin_pass;

/* Outputs [t0, t0 + TR) x [n, n + NR); t, NR and TR are constants where this is inlined. */
DS_INLINE void lin_tile(const ds_lin *j, const int t, const int NR, const int TR, int n, lin_pass *p)
{
    vf acc[TILE_N][TILE_T];
    lin_at a;
    const int step = LIN_UNIT_K(t) * (int)lin_elem(t);
    const int lines = NR * (step > 64 ? step / 64 : 1), period = p->every * (step < 64 ? 64 / step : 1);
    vf *sum = p->sum + (n - p->n0);
    DS_UNROLL
    for (int i = 0; i < NR; i++) {
        a.w[i] = j->w + (size_t)(n + i) * j->w_row + (size_t)p->u0 * step;
        a.scale[i] = lin_elem(t) == 1 ? j->scale + (size_t)(n + i) * (size_t)(j->k / DS_I8_BLOCK) : NULL;
        DS_UNROLL
        for (int r = 0; r < TR; r++)
            acc[i][r] = p->u0 ? sum[r * DS_LIN_BLOCK + i] : vf_set1(0);
    }
    DS_UNROLL
    for (int r = 0; r < TR; r++)
        a.x[r] = j->x + (size_t)(p->t0 + r) * j->x_row;
    a.x_scale = LIN_X_SCALE(t, j->k);
    const char *fetch = p->fetch;
    int due = p->due;
    for (int u = p->u0; u < p->u1; u++) {
        if (--due <= 0) {
            due = period;
            if (fetch < p->stop) {
                DS_UNROLL
                for (int i = 0; i < lines; i++)
                    __builtin_prefetch(fetch + i * 64, 0, 2);
                fetch += lines * 64;
            }
        }
        LIN_UNIT(t, &a, acc, u, NR, TR, 1);
        DS_UNROLL
        for (int i = 0; i < NR; i++)
            a.w[i] += step;
    }
    p->fetch = fetch;
    p->due = due;
    const int rest = j->k % LIN_UNIT_K(t);
    if (p->last && rest) {
        _Alignas(64) char tail[TILE_N][UNIT * 4]; /* a mapped file may end here: no read beyond the row */
        memset(tail, 0, sizeof tail);
        DS_UNROLL
        for (int i = 0; i < NR; i++)
            a.w[i] = memcpy(tail[i], a.w[i], (size_t)rest * lin_elem(t));
        LIN_UNIT(t, &a, acc, p->u1, NR, TR, 0);
    }
    DS_UNROLL
    for (int r = 0; r < TR; r++) {
        DS_UNROLL
        for (int i = 0; i < NR; i++)
            sum[r * DS_LIN_BLOCK + i] = acc[i][r];
    }
}

DS_INLINE void lin_strip(const ds_lin *j, const int t, const int NR, const int TR, lin_pass *p)
{
    int n = p->n0;
    for (; n + NR <= p->n1; n += NR)
        lin_tile(j, t, NR, TR, n, p);
    for (; n < p->n1; n++)
        lin_tile(j, t, 1, TR, n, p);
}

DS_INLINE void lin_rows(const ds_lin *j, const int t, int rows, lin_pass *p)
{
    switch (rows) {
    case 1:
        lin_strip(j, t, LIN_NR(t, 1), 1, p);
        break;
    case 2:
        lin_strip(j, t, LIN_NR(t, 2), 2, p);
        break;
    case 3:
        lin_strip(j, t, LIN_NR(t, 3), 3, p);
        break;
    case 4:
        lin_strip(j, t, LIN_NR(t, 4), 4, p);
        break;
    case 5:
        lin_strip(j, t, LIN_NR(t, 5), 5, p);
        break;
    default:
        lin_strip(j, t, LIN_NR(t, 6), 6, p);
        break;
    }
}

static void lin_rows_f32(const ds_lin *j, int rows, lin_pass *p)
{
    lin_rows(j, DS_F32, rows, p);
}
static void lin_rows_bf16(const ds_lin *j, int rows, lin_pass *p)
{
    lin_rows(j, DS_BF16, rows, p);
}
static void lin_rows_f16(const ds_lin *j, int rows, lin_pass *p)
{
    lin_rows(j, DS_F16, rows, p);
}
static void lin_rows_i8(const ds_lin *j, int rows, lin_pass *p)
{
    lin_rows(j, DS_I8, rows, p);
}
#ifdef LIN_DOT
static void lin_rows_bf16_dot(const ds_lin *j, int rows, lin_pass *p)
{
    lin_rows(j, LIN_BF16_DOT, rows, p);
}
static void lin_rows_i8_dot(const ds_lin *j, int rows, lin_pass *p)
{
    lin_rows(j, LIN_I8_DOT, rows, p);
}
#endif

/* Reduce the sums of a pass into y. */
static void lin_finish(const ds_lin *j, const lin_pass *p, int rows)
{
    for (int r = 0; r < rows; r++) {
        const vf *sum = p->sum + r * DS_LIN_BLOCK;
        float *y = j->y + (size_t)(p->t0 + r) * (size_t)j->y_stride + p->n0, s[8];
        for (int n = p->n1 - p->n0; n > 0; n -= 8, sum += 8, y += 8) {
            int some = n < 8 ? n : 8;
            if (some == 8)
                vf_hsum8(sum, s);
            else
                for (int i = 0; i < some; i++)
                    s[i] = vf_hsum(sum[i]);
            for (int i = 0; i < some; i++)
                y[i] = j->accumulate ? y[i] + s[i] : s[i];
        }
    }
}

/* A block of weight rows stays in the first caches while all activation rows pass, and the next block is
 * fetched meanwhile: memory gives each weight once, and works while the products do. With one pass there is
 * no block to keep, and a short distance ahead is best. */
static void lin_run_kind(const ds_lin *j, int kind, int n0, int n1)
{
    typedef void (*rows_fn)(const ds_lin *j, int rows, lin_pass *p);
    static const rows_fn by_kind[] = {
        lin_rows_f32,      lin_rows_bf16,   lin_rows_f16, lin_rows_i8,
#ifdef LIN_DOT
        lin_rows_bf16_dot, lin_rows_i8_dot,
#endif
    };
    vf sum[TILE_T * DS_LIN_BLOCK];
    const int units = j->k / LIN_UNIT_K(kind), passes = (j->T + TILE_T - 1) / TILE_T;
    const int x_unit = (int)(j->x_row / (size_t)(units + 1)) + 1; /* about the bytes of one */
    lin_pass p = {.sum = sum, .every = passes};
    for (p.n0 = n0; p.n0 < n1; p.n0 = p.n1) {
        p.n1 = n1 - p.n0 < DS_LIN_BLOCK ? n1 : p.n0 + DS_LIN_BLOCK;
        int ahead = passes == 1 ? FETCH_ROWS : p.n1 - p.n0;
        p.fetch = j->w + (size_t)(p.n0 + ahead) * j->w_row;
        p.stop = j->w + (size_t)(p.n1 + ahead < j->n ? p.n1 + ahead : j->n) * j->w_row;
        p.t0 = 0;
        for (int left = passes; left > 0; left--) { /* tiles of nearly equal size */
            int rows = (j->T - p.t0 + left - 1) / left, chunk = X_CHUNK / (x_unit * rows);
            p.last = 0;
            for (p.u0 = 0; !p.last; p.u0 = p.u1) {
                p.u1 = units - p.u0 > chunk + chunk / 4 ? p.u0 + chunk : units;
                p.last = p.u1 == units;
                by_kind[kind](j, rows, &p);
            }
            lin_finish(j, &p, rows);
            p.t0 += rows;
        }
    }
}

static void lin_run(const ds_lin *j, int n0, int n1)
{
    lin_run_kind(j, (int)j->dtype, n0, n1);
}

#endif
