/* isa_avx512bf16.c - AVX-512 with BF16 dot products (VDPBF16PS) for bf16 weights and VNNI (VPDPBUSD) for int8
 * weights; f32 and f16 weights, attention and row functions as in isa_avx512.c.
 *
 * bf16: activations are rounded to bf16 once (relative error <= 2^-8 each); products exact, sums f32 in
 * pairs. int8: activations are quantised to 8 bits in blocks of 64 with their own scale, |error| <= max|x| /
 * 254 each. They are stored as unsigned q + 128 for VPDPBUSD, which adds 128 sum(w): each weight vector
 * starts from minus that. Order, as in linear_tile.h: one accumulator per output over ascending units, one
 * tree; the same in every tile. */
#define ISA_TABLE ds_isa_avx512bf16
#define ISA_NAME "avx512bf16"
#define ISA_PACK_BYTES bf_pack_bytes
#define ISA_PACK bf_pack
#define ISA_LINEAR bf_linear
#define LIN_DOT
#define LIN_I8_INTEGER 0
#define LIN_UNIT bf_unit
#define LIN_UNIT_K bf_unit_k
#define LIN_X_SCALE bf_x_scale
/* Weight rows of a tile of 1..6 activation rows: divisors of DS_LIN_BLOCK and, for floats, if they can be, of
 * attention's blocks of 16 keys. */
enum { LIN_F1 = 2, LIN_F2 = 4, LIN_F3 = 4, LIN_F4 = 4, LIN_F5 = 4, LIN_F6 = 4 };
enum { LIN_B1 = 2, LIN_B2 = 4, LIN_B3 = 4, LIN_B4 = 4, LIN_B5 = 4, LIN_B6 = 4 };
enum { LIN_Q1 = 4, LIN_Q2 = 4, LIN_Q3 = 4, LIN_Q4 = 4, LIN_Q5 = 3, LIN_Q6 = 3 };
#define LIN_NR(t, TR) ((t) == LIN_BF16_DOT ? LIN_B##TR : (t) == LIN_I8_DOT ? LIN_Q##TR : LIN_F##TR)

#include "kernels/cpu/vec_avx512.h"

#include "kernels/cpu/linear_unit.h"

enum { BF_UNIT = 32, I8_UNIT = 64 };

static inline int bf_unit_k(int t)
{
    return t == LIN_BF16_DOT ? BF_UNIT : t == LIN_I8_DOT ? I8_UNIT : lin_unit_k(t);
}

static size_t bf_pack_bytes(ds_dtype w, int k)
{
    size_t units32 = ((size_t)k + BF_UNIT - 1) / BF_UNIT, units64 = ((size_t)k + I8_UNIT - 1) / I8_UNIT;
    if (w == DS_BF16)
        return (units32 * BF_UNIT * 2 + 63) & ~(size_t)63;
    if (w == DS_I8) /* bytes, then scales */
        return (units64 * (I8_UNIT + sizeof(float)) + 63) & ~(size_t)63;
    return lin_pack_bytes(w, k);
}

static inline size_t bf_x_scale(int t, int k)
{
    return t == LIN_I8_DOT ? ((size_t)k + I8_UNIT - 1) / I8_UNIT * I8_UNIT : lin_x_scale(t, k);
}

static __mmask16 lanes(int left)
{
    return left >= 16 ? 0xffff : left <= 0 ? 0 : (__mmask16)((1u << left) - 1);
}

static void pack_bf16(const float *x, int k, char *ret)
{
    for (int i = 0; i < k; i += BF_UNIT) {
        vf a = _mm512_maskz_loadu_ps(lanes(k - i), x + i),
           b = _mm512_maskz_loadu_ps(lanes(k - i - 16), x + i + 16);
        _mm512_storeu_si512(ret + (size_t)i * 2, (__m512i)_mm512_cvtne2ps_pbh(b, a));
    }
}

static void pack_i8(const float *x, int k, char *ret)
{
    int units = (k + I8_UNIT - 1) / I8_UNIT;
    float *scale = (float *)(void *)(ret + (size_t)units * I8_UNIT);
    for (int u = 0; u < units; u++) {
        vf v[4], most = vf_set1(0), poison = vf_set1(0);
        for (int h = 0; h < 4; h++) {
            int at = u * I8_UNIT + h * 16;
            v[h] = _mm512_maskz_loadu_ps(lanes(k - at), x + at);
            most = vf_max(most, _mm512_abs_ps(v[h]));
            poison = vf_fma(v[h], vf_set1(0), poison); /* NaN where x is no number: the scale passes it on */
        }
        float m = vf_hmax(most);
        vf inv = vf_set1(m > 0x1p-100f ? 127.0f / m : 0.0f);
        scale[u] = (m > 0x1p-100f ? m / 127.0f : 0.0f) + vf_hsum(poison);
        for (int h = 0; h < 4; h++) {
            __m512i q = _mm512_add_epi32(_mm512_cvtps_epi32(vf_mul(v[h], inv)), _mm512_set1_epi32(128));
            _mm_storeu_si128((__m128i *)(void *)(ret + (size_t)u * I8_UNIT + h * 16),
                             _mm512_cvtepi32_epi8(q));
        }
    }
}

static void bf_pack(ds_dtype w, const float *x, int k, void *ret)
{
    if (w == DS_BF16)
        pack_bf16(x, k, ret);
    else if (w == DS_I8)
        pack_i8(x, k, ret);
    else
        lin_pack(w, x, k, ret);
}

/* 32 inputs: each lane adds two exact products. The side with fewer rows is held in registers. */
DS_INLINE void bf16_unit(const lin_at *a, vf acc[TILE_N][TILE_T], int u, const int NR, const int TR)
{
    __m512 held[TILE_N];
    const size_t at = (size_t)u * BF_UNIT * 2;
    if (TR < NR) {
        DS_UNROLL
        for (int r = 0; r < TR; r++)
            held[r] = vf_keep(_mm512_loadu_ps(a->x[r] + at));
        DS_UNROLL
        for (int i = 0; i < NR; i++) {
            __m512bh w = (__m512bh)vf_keep(_mm512_loadu_ps(a->w[i]));
            DS_UNROLL
            for (int r = 0; r < TR; r++)
                acc[i][r] = _mm512_dpbf16_ps(acc[i][r], w, (__m512bh)held[r]);
        }
        return;
    }
    DS_UNROLL
    for (int i = 0; i < NR; i++)
        held[i] = vf_keep(_mm512_loadu_ps(a->w[i]));
    DS_UNROLL
    for (int r = 0; r < TR; r++) {
        __m512bh x = (__m512bh)vf_keep(_mm512_loadu_ps(a->x[r] + at));
        DS_UNROLL
        for (int i = 0; i < NR; i++)
            acc[i][r] = _mm512_dpbf16_ps(acc[i][r], (__m512bh)held[i], x);
    }
}

/* 64 inputs, two blocks of weights; whole = 0: only the first exists. */
DS_INLINE void i8_unit(const lin_at *a, vf acc[TILE_N][TILE_T], int u, const int NR, const int TR,
                       const int whole)
{
    __m512i v[TILE_N], start[TILE_N];
    vf scale[TILE_N];
    DS_UNROLL
    for (int i = 0; i < NR; i++) {
        const float *s = a->scale[i] + (size_t)u * 2;
        v[i] = _mm512_loadu_si512(a->w[i]);
        __m512i sum = _mm512_dpbusd_epi32(_mm512_setzero_si512(), _mm512_set1_epi8((char)128), v[i]);
        start[i] = _mm512_sub_epi32(_mm512_setzero_si512(), sum);
        scale[i] = _mm512_insertf32x8(_mm512_set1_ps(s[0]), _mm256_set1_ps(whole ? s[1] : 0), 1);
    }
    DS_UNROLL
    for (int r = 0; r < TR; r++) {
        __m512i x = _mm512_loadu_si512(a->x[r] + (size_t)u * I8_UNIT);
        vf xs = vf_set1(*(const float *)(const void *)(a->x[r] + a->x_scale + (size_t)u * sizeof(float)));
        DS_UNROLL
        for (int i = 0; i < NR; i++) {
            __m512i d = _mm512_dpbusd_epi32(start[i], x, v[i]);
            acc[i][r] = vf_fma(_mm512_cvtepi32_ps(d), vf_mul(scale[i], xs), acc[i][r]);
        }
    }
}

DS_INLINE void bf_unit(const int t, const lin_at *a, vf acc[TILE_N][TILE_T], int u, const int NR,
                       const int TR, const int whole)
{
    if (t == LIN_BF16_DOT)
        bf16_unit(a, acc, u, NR, TR);
    else if (t == LIN_I8_DOT)
        i8_unit(a, acc, u, NR, TR, whole);
    else
        lin_unit(t, a, acc, u, NR, TR, whole);
}

#include "kernels/cpu/linear_tile.h"

static void bf_linear(const ds_lin *j, int n0, int n1)
{
    int t = (int)j->dtype;
    lin_run_kind(j, t == DS_BF16 ? LIN_BF16_DOT : t == DS_I8 ? LIN_I8_DOT : t, n0, n1);
}

#include "kernels/cpu/isa_table.h"
