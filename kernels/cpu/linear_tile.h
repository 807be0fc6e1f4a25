/* linear_tile.h - the matrix product of one instruction-set level; included after a vec_*.h.
 *
 * One output = one vector accumulator over k in ascending units of 2 * VW inputs, then one reduction tree.
 * Every tile shape keeps that order, so a row's result does not depend on T, on its place, or on the split.
 * bf16 weights expand as even and odd elements (a shift, a mask); the packed activations have the same order.
 */
#ifndef DS_CPU_LINEAR_TILE_H
#define DS_CPU_LINEAR_TILE_H

#include "kernels/cpu/cpu.h"

/* Tiles are inlined and unrolled into registers, one copy per shape. Sanitizers would take minutes over those
 * copies: there one checked copy serves every shape, with the same arithmetic. */
#if defined(__has_feature)
#define DS_SANITIZED (__has_feature(address_sanitizer) || __has_feature(thread_sanitizer))
#elif defined(__SANITIZE_ADDRESS__) || defined(__SANITIZE_THREAD__)
#define DS_SANITIZED 1
#else
#define DS_SANITIZED 0
#endif
#if DS_SANITIZED
#define DS_INLINE static __attribute__((noinline))
#define DS_UNROLL
#else
#define DS_INLINE static inline __attribute__((always_inline))
#if defined(__clang__)
#define DS_UNROLL _Pragma("clang loop unroll(full)")
#else
#define DS_UNROLL _Pragma("GCC unroll 8")
#endif
#endif

enum { UNIT = 2 * VW, TILE_N = 8, TILE_T = 6 };

static size_t lin_pack_bytes(ds_dtype w, int k)
{
    (void)w;
    return (((size_t)k + UNIT - 1) / UNIT * UNIT * sizeof(float) + 63) & ~(size_t)63;
}

static void lin_pack(ds_dtype w, const float *x, int k, void *ret)
{
    float *y = ret;
    for (int i = 0; i < k; i += UNIT) {
        float tail[UNIT] = {0};
        const float *src = x + i;
        if (k - i < UNIT)
            src = memcpy(tail, src, (size_t)(k - i) * sizeof *src);
        vf a = vf_load(src), b = vf_load(src + VW);
        if (w == DS_BF16)
            vf_load_unzip(src, &a, &b);
        vf_store(y + i, a);
        vf_store(y + i + VW, b);
    }
}

static size_t lin_elem(ds_dtype t)
{
    return t == DS_I8 ? 1 : t == DS_F32 ? 4 : 2;
}

/* Half h of the unit at p, as f32. */
DS_INLINE vf lin_load(const char *p, ds_dtype t, int h, vf scale)
{
    switch (t) {
    case DS_BF16:
        return h ? vf_bf16_odd(p) : vf_bf16_even(p);
    case DS_F16:
        return vf_load_f16(p + h * VW * 2);
    case DS_I8:
        return vf_mul(vf_load_i8(p + h * VW), scale);
    default:
        return vf_load((const float *)(const void *)(p + h * VW * 4));
    }
}

DS_INLINE void lin_store(const ds_lin *j, vf acc[TILE_N][TILE_T], const int NR, const int TR, int n0, int t0)
{
    DS_UNROLL
    for (int r = 0; r < TR; r++) {
        float *y = j->y + (size_t)(t0 + r) * j->y_stride + n0;
        DS_UNROLL
        for (int i = 0; i < NR; i++) {
            float s = vf_hsum(acc[i][r]);
            y[i] = j->accumulate ? y[i] + s : s;
        }
    }
}

typedef struct lin_pass { /* one pass of a tile of activation rows over a block of weight rows */
    size_t ahead;         /* bytes from a weight row to the one to prefetch: the next block */
    int ahead_end;        /* weight rows from here on have none */
    int part, parts;      /* this pass fetches part of parts */
} lin_pass;

/* Half h of unit u. The side with fewer rows is held in registers, so that NR * TR sums and it fit 16 of
 * them. */
DS_INLINE void lin_half(const ds_dtype t, const char *const *w, const float *const *scale,
                        const float *const *x, vf acc[TILE_N][TILE_T], int u, const int h, const int NR,
                        const int TR)
{
    vf held[TILE_N], s = vf_set1(0);
    const size_t at = (size_t)u * UNIT + h * VW;
    if (TR < NR) {
        DS_UNROLL
        for (int r = 0; r < TR; r++)
            held[r] = vf_load(x[r] + at);
    }
    DS_UNROLL
    for (int i = 0; i < NR; i++) {
        if (t == DS_I8)
            s = vf_set1(scale[i][u * UNIT / DS_I8_BLOCK]);
        vf v = lin_load(w[i], t, h, s);
        if (TR >= NR) {
            held[i] = v;
            continue;
        }
        DS_UNROLL
        for (int r = 0; r < TR; r++)
            acc[i][r] = vf_fma(v, held[r], acc[i][r]);
    }
    if (TR < NR)
        return;
    DS_UNROLL
    for (int r = 0; r < TR; r++) {
        vf v = vf_load(x[r] + at);
        DS_UNROLL
        for (int i = 0; i < NR; i++)
            acc[i][r] = vf_fma(held[i], v, acc[i][r]);
    }
}

/* Outputs [t0, t0 + TR) x [n0, n0 + NR); t, NR and TR are constants where this is inlined. Rows `ahead` bytes
 * further are prefetched, of each the units that this pass over the block is to fetch. */
DS_INLINE void lin_tile(const ds_lin *j, const ds_dtype t, const int NR, const int TR, int n0, int t0,
                        const lin_pass *pass)
{
    vf acc[TILE_N][TILE_T];
    const char *w[TILE_N];
    const float *x[TILE_T], *scale[TILE_N] = {0};
    const int step = UNIT * (t == DS_I8 ? 1 : t == DS_F32 ? 4 : 2), units = j->k / UNIT, rest = j->k % UNIT;
    DS_UNROLL
    for (int r = 0; r < TR; r++)
        x[r] = (const float *)(const void *)(j->x + (size_t)(t0 + r) * j->x_row);
    DS_UNROLL
    for (int i = 0; i < NR; i++) {
        w[i] = j->w + (size_t)(n0 + i) * j->w_row;
        if (t == DS_I8)
            scale[i] = j->scale + (size_t)(n0 + i) * (size_t)(j->k / DS_I8_BLOCK);
        DS_UNROLL
        for (int r = 0; r < TR; r++)
            acc[i][r] = vf_set1(0);
    }
    const unsigned from = (unsigned)(units * pass->part / pass->parts);
    const unsigned count =
        n0 < pass->ahead_end ? (unsigned)(units * (pass->part + 1) / pass->parts) - from : 0;
    for (int u = 0; u < units; u++) {
        if ((unsigned)u - from < count) {
            DS_UNROLL
            for (int i = 0; i < NR; i++)
                __builtin_prefetch(w[i] + pass->ahead, 0, 2);
        }
        lin_half(t, w, scale, x, acc, u, 0, NR, TR);
        lin_half(t, w, scale, x, acc, u, 1, NR, TR);
        DS_UNROLL
        for (int i = 0; i < NR; i++)
            w[i] += step;
    }
    if (t != DS_I8 && rest) {
        _Alignas(64) char tail[TILE_N][UNIT * 4]; /* a mapped file may end here: no read beyond the row */
        memset(tail, 0, sizeof tail);
        DS_UNROLL
        for (int i = 0; i < NR; i++) {
            memcpy(tail[i], w[i], (size_t)rest * lin_elem(t));
            w[i] = tail[i];
        }
        lin_half(t, w, scale, x, acc, units, 0, NR, TR);
        lin_half(t, w, scale, x, acc, units, 1, NR, TR);
    }
    lin_store(j, acc, NR, TR, n0, t0);
}

/* Weight rows [n0, n1) against activation rows [t0, t0 + TR), NR rows at a time. */
DS_INLINE void lin_strip(const ds_lin *j, const ds_dtype t, const int NR, const int TR, int n0, int n1,
                         int t0, const lin_pass *pass)
{
    for (; n0 + NR <= n1; n0 += NR)
        lin_tile(j, t, NR, TR, n0, t0, pass);
    for (; n0 < n1; n0++)
        lin_tile(j, t, 1, TR, n0, t0, pass);
}

DS_INLINE void lin_rows(const ds_lin *j, const ds_dtype t, int n0, int n1, int t0, int tr,
                        const lin_pass *pass)
{
    switch (tr) {
    case 1:
        lin_strip(j, t, LIN_NR1, 1, n0, n1, t0, pass);
        break;
    case 2:
        lin_strip(j, t, LIN_NR2, 2, n0, n1, t0, pass);
        break;
    case 3:
        lin_strip(j, t, LIN_NR3, 3, n0, n1, t0, pass);
        break;
    case 4:
        lin_strip(j, t, LIN_NR4, 4, n0, n1, t0, pass);
        break;
    case 5:
        lin_strip(j, t, LIN_NR5, 5, n0, n1, t0, pass);
        break;
    default:
        lin_strip(j, t, LIN_NR6, 6, n0, n1, t0, pass);
        break;
    }
}

static void lin_rows_f32(const ds_lin *j, int n0, int n1, int t0, int tr, const lin_pass *pass)
{
    lin_rows(j, DS_F32, n0, n1, t0, tr, pass);
}
static void lin_rows_bf16(const ds_lin *j, int n0, int n1, int t0, int tr, const lin_pass *pass)
{
    lin_rows(j, DS_BF16, n0, n1, t0, tr, pass);
}
static void lin_rows_f16(const ds_lin *j, int n0, int n1, int t0, int tr, const lin_pass *pass)
{
    lin_rows(j, DS_F16, n0, n1, t0, tr, pass);
}
static void lin_rows_i8(const ds_lin *j, int n0, int n1, int t0, int tr, const lin_pass *pass)
{
    lin_rows(j, DS_I8, n0, n1, t0, tr, pass);
}

typedef void (*lin_rows_fn)(const ds_lin *j, int n0, int n1, int t0, int tr, const lin_pass *pass);

/* A block of weight rows stays in the first caches while all activation rows pass, and the next block is
 * fetched meanwhile: memory gives each weight once, and works while the products do. */
static void lin_blocks(const ds_lin *j, int n0, int n1, lin_rows_fn rows)
{
    const int block = j->T <= 32 ? DS_LIN_BLOCK : 2 * DS_LIN_BLOCK;
    lin_pass pass = {(size_t)block * j->w_row, n1 - block, 0, (j->T + TILE_T - 1) / TILE_T};
    for (int n = n0; n < n1; n += block) {
        int end = n + block < n1 ? n + block : n1, t = 0;
        for (pass.part = 0; pass.part < pass.parts; pass.part++) { /* tiles of nearly equal size */
            int left = pass.parts - pass.part, tr = (j->T - t + left - 1) / left;
            rows(j, n, end, t, tr, &pass);
            t += tr;
        }
    }
}

static void lin_run(const ds_lin *j, int n0, int n1)
{
    static const lin_rows_fn by_dtype[] = {lin_rows_f32, lin_rows_bf16, lin_rows_f16, lin_rows_i8};
    lin_blocks(j, n0, n1, by_dtype[j->dtype]);
}

#endif
