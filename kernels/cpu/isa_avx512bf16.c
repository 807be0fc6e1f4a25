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
enum {
    LIN_NR1 = 8,
    LIN_NR2 = 8,
    LIN_NR3 = 6,
    LIN_NR4 = 6,
    LIN_NR5 = 4,
    LIN_NR6 = 4
}; /* weight rows of a tile */

#include "kernels/cpu/vec_avx512.h"

#include "kernels/cpu/linear_tile.h"

enum { BF_UNIT = 32, I8_UNIT = 64 };

static size_t bf_pack_bytes(ds_dtype w, int k)
{
    size_t units32 = ((size_t)k + BF_UNIT - 1) / BF_UNIT, units64 = ((size_t)k + I8_UNIT - 1) / I8_UNIT;
    if (w == DS_BF16)
        return (units32 * BF_UNIT * 2 + 63) & ~(size_t)63;
    if (w == DS_I8) /* bytes, then scales */
        return (units64 * (I8_UNIT + sizeof(float)) + 63) & ~(size_t)63;
    return lin_pack_bytes(w, k);
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

/* One unit of 32 inputs; whole = 0: the mask says which exist. */
DS_INLINE void bf16_unit(const char *const *w, const char *const *x, size_t at, __mmask32 m,
                         vf acc[TILE_N][TILE_T], const int NR, const int TR, const int whole)
{
    __m512i v[TILE_N];
    DS_UNROLL
    for (int i = 0; i < NR; i++)
        v[i] = whole ? _mm512_loadu_si512(w[i] + at) : _mm512_maskz_loadu_epi16(m, w[i] + at);
    DS_UNROLL
    for (int r = 0; r < TR; r++) {
        __m512i a = _mm512_loadu_si512(x[r] + at);
        DS_UNROLL
        for (int i = 0; i < NR; i++)
            acc[i][r] = _mm512_dpbf16_ps(acc[i][r], (__m512bh)v[i], (__m512bh)a);
    }
}

/* As lin_tile; NR and TR are constants where this is inlined. */
DS_INLINE void bf16_tile(const ds_lin *j, const int NR, const int TR, int n0, int t0, const lin_pass *pass)
{
    vf acc[TILE_N][TILE_T];
    const char *w[TILE_N], *x[TILE_T];
    int units = j->k / BF_UNIT, rest = j->k % BF_UNIT;
    DS_UNROLL
    for (int r = 0; r < TR; r++)
        x[r] = j->x + (size_t)(t0 + r) * j->x_row;
    DS_UNROLL
    for (int i = 0; i < NR; i++) {
        w[i] = j->w + (size_t)(n0 + i) * j->w_row;
        DS_UNROLL
        for (int r = 0; r < TR; r++)
            acc[i][r] = vf_set1(0);
    }
    const unsigned from = (unsigned)(units * pass->part / pass->parts);
    const unsigned count =
        n0 < pass->ahead_end ? (unsigned)(units * (pass->part + 1) / pass->parts) - from : 0;
    for (int u = 0; u < units; u++) {
        size_t at = (size_t)u * BF_UNIT * 2;
        if ((unsigned)u - from < count) {
            DS_UNROLL
            for (int i = 0; i < NR; i++)
                __builtin_prefetch(w[i] + at + pass->ahead, 0, 2);
        }
        bf16_unit(w, x, at, 0, acc, NR, TR, 1);
    }
    if (rest)
        bf16_unit(w, x, (size_t)units * BF_UNIT * 2, (1u << rest) - 1, acc, NR, TR, 0);
    lin_store(j, acc, NR, TR, n0, t0);
}

/* One unit of 64 inputs; whole = 0: only its first block of 32 exists. */
DS_INLINE void i8_unit(const ds_lin *j, int n0, int t0, int u, vf acc[TILE_N][TILE_T], const int NR,
                       const int TR, const int whole)
{
    const size_t blocks = (size_t)j->k / DS_I8_BLOCK, units = (blocks + 1) / 2;
    DS_UNROLL
    for (int i = 0; i < NR; i++) {
        const char *w = j->w + (size_t)(n0 + i) * j->w_row + (size_t)u * I8_UNIT;
        const float *s = j->scale + (size_t)(n0 + i) * blocks + (size_t)u * 2;
        __m512i v = whole ? _mm512_loadu_si512(w) : _mm512_maskz_loadu_epi8(0xffffffffu, w);
        __m512i sum = _mm512_dpbusd_epi32(_mm512_setzero_si512(), _mm512_set1_epi8((char)128), v);
        __m512i start = _mm512_sub_epi32(_mm512_setzero_si512(), sum);
        vf ws = _mm512_insertf32x8(_mm512_set1_ps(s[0]), _mm256_set1_ps(whole ? s[1] : 0), 1);
        DS_UNROLL
        for (int r = 0; r < TR; r++) {
            const char *x = j->x + (size_t)(t0 + r) * j->x_row;
            float xs;
            memcpy(&xs, x + units * I8_UNIT + (size_t)u * sizeof xs, sizeof xs);
            __m512i d = _mm512_dpbusd_epi32(start, _mm512_loadu_si512(x + (size_t)u * I8_UNIT), v);
            acc[i][r] = vf_fma(_mm512_cvtepi32_ps(d), vf_mul(ws, vf_set1(xs)), acc[i][r]);
        }
    }
}

DS_INLINE void i8_tile(const ds_lin *j, const int NR, const int TR, int n0, int t0, const lin_pass *pass)
{
    vf acc[TILE_N][TILE_T];
    int units = j->k / I8_UNIT;
    DS_UNROLL
    for (int i = 0; i < NR; i++) {
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
                __builtin_prefetch(j->w + (size_t)(n0 + i) * j->w_row + (size_t)u * I8_UNIT + pass->ahead, 0,
                                   2);
        }
        i8_unit(j, n0, t0, u, acc, NR, TR, 1);
    }
    if (j->k % I8_UNIT)
        i8_unit(j, n0, t0, units, acc, NR, TR, 0);
    lin_store(j, acc, NR, TR, n0, t0);
}

DS_INLINE void bf_strip(const ds_lin *j, const int i8, const int NR, const int TR, int n0, int n1, int t0,
                        const lin_pass *pass)
{
    for (; n0 + NR <= n1; n0 += NR) {
        if (i8)
            i8_tile(j, NR, TR, n0, t0, pass);
        else
            bf16_tile(j, NR, TR, n0, t0, pass);
    }
    for (; n0 < n1; n0++) {
        if (i8)
            i8_tile(j, 1, TR, n0, t0, pass);
        else
            bf16_tile(j, 1, TR, n0, t0, pass);
    }
}

DS_INLINE void bf_rows(const ds_lin *j, const int i8, int n0, int n1, int t0, int tr, const lin_pass *pass)
{
    switch (tr) {
    case 1:
        bf_strip(j, i8, LIN_NR1, 1, n0, n1, t0, pass);
        break;
    case 2:
        bf_strip(j, i8, LIN_NR2, 2, n0, n1, t0, pass);
        break;
    case 3:
        bf_strip(j, i8, LIN_NR3, 3, n0, n1, t0, pass);
        break;
    case 4:
        bf_strip(j, i8, LIN_NR4, 4, n0, n1, t0, pass);
        break;
    case 5:
        bf_strip(j, i8, LIN_NR5, 5, n0, n1, t0, pass);
        break;
    default:
        bf_strip(j, i8, LIN_NR6, 6, n0, n1, t0, pass);
        break;
    }
}

static void bf_rows_bf16(const ds_lin *j, int n0, int n1, int t0, int tr, const lin_pass *pass)
{
    bf_rows(j, 0, n0, n1, t0, tr, pass);
}

static void bf_rows_i8(const ds_lin *j, int n0, int n1, int t0, int tr, const lin_pass *pass)
{
    bf_rows(j, 1, n0, n1, t0, tr, pass);
}

static void bf_linear(const ds_lin *j, int n0, int n1)
{
    if (j->dtype == DS_BF16)
        lin_blocks(j, n0, n1, bf_rows_bf16);
    else if (j->dtype == DS_I8)
        lin_blocks(j, n0, n1, bf_rows_i8);
    else
        lin_run(j, n0, n1);
}

#include "kernels/cpu/isa_table.h"
