/* linear_unit.h - one unit of k in a tile of products, and the packed activations it reads; included after a
 * vec_*.h.
 *
 * Float weights: a unit is 2 * VW inputs, activations are f32. bf16 weights expand as even and odd elements
 * (a shift, a mask); the packed activations have the same order. int8 weights: a unit is a block of 32 with
 * one scale; activations are rounded to 16 bits with one scale for each block, |error| <= max|x| / 65534, the
 * products of a block are summed as integers without error, and one FMA adds scale * scale * sum; else
 * weights become f32 and activations are f32. */
#ifndef DS_CPU_LINEAR_UNIT_H
#define DS_CPU_LINEAR_UNIT_H

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
#define DS_UNROLL _Pragma("GCC unroll 16")
#endif
#endif

enum {
    UNIT = 2 * VW,
    TILE_N = 8,
    TILE_T = 6,
    FETCH_ROWS = 4,    /* weight rows prefetched ahead of a single pass */
    X_CHUNK = 16 << 10 /* bytes of packed activations that a tile keeps in the first cache */
};

typedef struct lin_at { /* where a tile reads; rows at the current unit */
    const char *w[TILE_N];
    const float *scale[TILE_N]; /* int8: of the row's first block */
    const char *x[TILE_T];
    size_t x_scale; /* bytes from a packed row's start to its scales */
} lin_at;

/* Kinds of product: a ds_dtype, or one that a level adds (isa_avx512bf16.c). */
enum { LIN_BF16_DOT = DS_I8 + 1, LIN_I8_DOT };

static size_t lin_elem(int t)
{
    return t == DS_I8 || t == LIN_I8_DOT ? 1 : t == DS_F32 ? 4 : 2;
}

static inline int lin_unit_k(int t)
{
    return t == DS_I8 ? DS_I8_BLOCK : UNIT; /* as floats, UNIT must be the block, too */
}

static size_t lin_pack_bytes(ds_dtype w, int k)
{
    size_t unit = (size_t)lin_unit_k(w), units = ((size_t)k + unit - 1) / unit;
    size_t bytes = LIN_I8_INTEGER && w == DS_I8 ? units * (DS_I8_BLOCK * sizeof(int16_t) + sizeof(float))
                                                : units * UNIT * sizeof(float);
    return (bytes + 63) & ~(size_t)63;
}

static inline size_t lin_x_scale(int w, int k)
{
    return w == DS_I8 ? (size_t)k * sizeof(int16_t) : 0;
}

#if LIN_I8_INTEGER
/* A block of 32 as 16-bit integers; returns its scale, NaN when an input is no number. */
static float lin_pack_block(const float *x, int16_t *ret)
{
    float v[DS_I8_BLOCK];
    vf most = vf_set1(0), poison = vf_set1(0);
    for (int i = 0; i < DS_I8_BLOCK; i += VW) {
        vf a = vf_load(x + i);
        most = vf_max(most, vf_max(a, vf_sub(vf_set1(0), a)));
        poison = vf_fma(a, vf_set1(0), poison);
    }
    float m = vf_hmax(most), bad = vf_hsum(poison);
    int zero = !(m > 0x1p-100f) || bad != 0;
    vf inv = vf_set1(zero ? 0.0f : 32767.0f / m);
    for (int i = 0; i < DS_I8_BLOCK; i += VW)
        vf_store(v + i, vf_round(vf_mul(vf_load(x + i), inv)));
    for (int i = 0; i < DS_I8_BLOCK; i++)
        ret[i] = zero ? 0 : (int16_t)(int32_t)v[i];
    return zero ? bad : m / 32767.0f;
}

static void lin_pack_i8(const float *x, int k, char *ret)
{
    int units = k / DS_I8_BLOCK;
    float *scale = (float *)(void *)(ret + (size_t)units * DS_I8_BLOCK * sizeof(int16_t));
    for (int u = 0; u < units; u++)
        scale[u] =
            lin_pack_block(x + (size_t)u * DS_I8_BLOCK, (int16_t *)(void *)ret + (size_t)u * DS_I8_BLOCK);
}
#endif

static void lin_pack(ds_dtype w, const float *x, int k, void *ret)
{
    float *y = ret;
#if LIN_I8_INTEGER
    if (w == DS_I8) {
        lin_pack_i8(x, k, ret);
        return;
    }
#endif
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

/* Half h of the unit at p, as f32. */
DS_INLINE vf lin_load(const char *p, int t, int h)
{
    switch (t) {
    case DS_BF16:
        return h ? vf_bf16_odd(p) : vf_bf16_even(p);
    case DS_F16:
        return vf_load_f16(p + h * VW * 2);
    case DS_I8:
        return vf_load_i8(p + h * VW);
    default:
        return vf_load((const float *)(const void *)(p + h * VW * 4));
    }
}

/* Half h of unit u of weight row i, as f32. */
DS_INLINE vf lin_weight(const int t, const lin_at *a, int i, int u, const int h)
{
    vf v = lin_load(a->w[i], t, h);
    return vf_keep(t == DS_I8 ? vf_mul(v, vf_set1(a->scale[i][u])) : v);
}

/* Half h of unit u. The side with fewer rows is held in registers. */
DS_INLINE void lin_half(const int t, const lin_at *a, vf acc[TILE_N][TILE_T], int u, const int h,
                        const int NR, const int TR)
{
    vf held[TILE_N];
    const size_t at = ((size_t)u * UNIT + h * VW) * sizeof(float);
    if (TR < NR) {
        DS_UNROLL
        for (int r = 0; r < TR; r++)
            held[r] = vf_keep(vf_load((const float *)(const void *)(a->x[r] + at)));
        DS_UNROLL
        for (int i = 0; i < NR; i++) {
            vf v = lin_weight(t, a, i, u, h);
            DS_UNROLL
            for (int r = 0; r < TR; r++)
                acc[i][r] = vf_fma(v, held[r], acc[i][r]);
        }
        return;
    }
    DS_UNROLL
    for (int i = 0; i < NR; i++)
        held[i] = lin_weight(t, a, i, u, h);
    DS_UNROLL
    for (int r = 0; r < TR; r++) {
        vf v = vf_keep(vf_load((const float *)(const void *)(a->x[r] + at)));
        DS_UNROLL
        for (int i = 0; i < NR; i++)
            acc[i][r] = vf_fma(held[i], v, acc[i][r]);
    }
}

#if LIN_I8_INTEGER
/* Block u of int8 weights. */
DS_INLINE void lin_block(const lin_at *a, vf acc[TILE_N][TILE_T], int u, const int NR, const int TR)
{
    vq w[TILE_N];
    vf scale[TILE_N];
    DS_UNROLL
    for (int i = 0; i < NR; i++) {
        w[i] = vq_load(a->w[i]);
        scale[i] = vf_set1(a->scale[i][u]);
    }
    DS_UNROLL
    for (int r = 0; r < TR; r++) {
        const int16_t *x = (const int16_t *)(const void *)a->x[r] + (size_t)u * DS_I8_BLOCK;
        vf xs = vf_set1(*(const float *)(const void *)(a->x[r] + a->x_scale + (size_t)u * sizeof(float)));
        DS_UNROLL
        for (int i = 0; i < NR; i++)
            acc[i][r] = vf_fma(vq_dot(w[i], x), vf_mul(scale[i], xs), acc[i][r]);
    }
}
#endif

/* Unit u, the weights' rows standing at it; whole = 0: a last one, padded with zeros. */
DS_INLINE void lin_unit(const int t, const lin_at *a, vf acc[TILE_N][TILE_T], int u, const int NR,
                        const int TR, const int whole)
{
    (void)whole;
#if LIN_I8_INTEGER
    if (t == DS_I8) {
        lin_block(a, acc, u, NR, TR);
        return;
    }
#endif
    lin_half(t, a, acc, u, 0, NR, TR);
    lin_half(t, a, acc, u, 1, NR, TR);
}

#endif
