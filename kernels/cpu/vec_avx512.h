/* vec_avx512.h - the vector layer for AVX-512 F/BW/VL/DQ: 16 lanes. Same functions as vec_portable.h. */
#ifndef DS_CPU_VEC_AVX512_H
#define DS_CPU_VEC_AVX512_H

#include <immintrin.h>
#include <stdint.h>
#include <string.h>

#define VW 16
typedef __m512 vf;

static inline __mmask16 ds_mask_n(int n)
{
    return (__mmask16)((1u << n) - 1);
}
static inline vf vf_set1(float x)
{
    return _mm512_set1_ps(x);
}
static inline vf vf_load(const float *p)
{
    return _mm512_loadu_ps(p);
}
static inline void vf_store(float *p, vf v)
{
    _mm512_storeu_ps(p, v);
}
static inline vf vf_load_n(const float *p, int n)
{
    return _mm512_maskz_loadu_ps(ds_mask_n(n), p);
}
static inline void vf_store_n(float *p, vf v, int n)
{
    _mm512_mask_storeu_ps(p, ds_mask_n(n), v);
}
/* vf_keep: v in a register from here on; a compiler may otherwise read memory again for each use. */
static inline vf vf_keep(vf v)
{
    __asm__ volatile("" : "+v"(v));
    return v;
}
static inline vf vf_add(vf a, vf b)
{
    return _mm512_add_ps(a, b);
}
static inline vf vf_sub(vf a, vf b)
{
    return _mm512_sub_ps(a, b);
}
static inline vf vf_mul(vf a, vf b)
{
    return _mm512_mul_ps(a, b);
}
static inline vf vf_div(vf a, vf b)
{
    return _mm512_div_ps(a, b);
}
static inline vf vf_fma(vf a, vf b, vf c)
{
    return _mm512_fmadd_ps(a, b, c);
}
static inline vf vf_max(vf a, vf b)
{
    return _mm512_max_ps(a, b);
}
static inline vf vf_min(vf a, vf b)
{
    return _mm512_min_ps(a, b);
}
static inline vf vf_zero_below(vf v, vf x, vf lo)
{
    return _mm512_maskz_mov_ps(_mm512_cmp_ps_mask(x, lo, _CMP_NLT_UQ), v);
}
static inline vf vf_round(vf x)
{
    return _mm512_roundscale_ps(x, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC);
}
static inline vf vf_scale2(vf v, vf n)
{
    return _mm512_scalef_ps(v, n);
}
/* The tree is spelled out: the compiler's reduce intrinsics do not promise an order. */
static inline float vf_hsum(vf v)
{
    __m256 h = _mm256_add_ps(_mm512_castps512_ps256(v), _mm512_extractf32x8_ps(v, 1));
    __m128 a = _mm_add_ps(_mm256_castps256_ps128(h), _mm256_extractf128_ps(h, 1));
    a = _mm_add_ps(a, _mm_movehl_ps(a, a));
    return _mm_cvtss_f32(_mm_add_ss(a, _mm_movehdup_ps(a)));
}
/* vf_hsum of eight vectors at once: the same additions, so the same bits. */
static inline void vf_hsum8(const vf *v, float *ret)
{
    __m256 e[8], h[4], q[2]; /* halves added, quarters of a pair, eighths of four */
    for (int i = 0; i < 8; i++)
        e[i] = _mm256_add_ps(_mm512_castps512_ps256(v[i]), _mm512_extractf32x8_ps(v[i], 1));
    for (int i = 0; i < 4; i++) {
        int at = i / 2 * 4 + i % 2; /* vectors at and at + 2 */
        h[i] = _mm256_add_ps(_mm256_permute2f128_ps(e[at], e[at + 2], 0x20),
                             _mm256_permute2f128_ps(e[at], e[at + 2], 0x31));
    }
    for (int i = 0; i < 2; i++) {
        __m256d a = _mm256_castps_pd(h[2 * i]), b = _mm256_castps_pd(h[2 * i + 1]);
        q[i] = _mm256_add_ps(_mm256_castpd_ps(_mm256_unpacklo_pd(a, b)),
                             _mm256_castpd_ps(_mm256_unpackhi_pd(a, b)));
    }
    __m256 s = _mm256_add_ps(_mm256_shuffle_ps(q[0], q[1], 0x88), _mm256_shuffle_ps(q[0], q[1], 0xdd));
    s = _mm256_castpd_ps(_mm256_permute4x64_pd(_mm256_castps_pd(s), 0xd8));
    _mm256_storeu_ps(ret, s);
}
static inline float vf_hmax(vf v)
{
    return _mm512_reduce_max_ps(v);
}
static inline int vf_any_ge(vf a, vf b)
{
    return _mm512_cmp_ps_mask(a, b, _CMP_GE_OQ) != 0;
}
static inline vf vf_load_bf16(const void *p)
{
    __m512i w = _mm512_cvtepu16_epi32(_mm256_loadu_si256((const __m256i *)p));
    return _mm512_castsi512_ps(_mm512_slli_epi32(w, 16));
}
static inline vf vf_load_f16(const void *p)
{
    return _mm512_cvtph_ps(_mm256_loadu_si256((const __m256i *)p));
}
static inline vf vf_load_i8(const void *p)
{
    return _mm512_cvtepi32_ps(_mm512_cvtepi8_epi32(_mm_loadu_si128((const __m128i *)p)));
}
static inline vf vf_bf16_even(const void *p)
{
    return _mm512_castsi512_ps(_mm512_slli_epi32(_mm512_loadu_si512(p), 16));
}
static inline vf vf_bf16_odd(const void *p)
{
    __m512i mask = _mm512_set1_epi32((int)0xffff0000);
    return _mm512_castsi512_ps(_mm512_and_si512(_mm512_loadu_si512(p), mask));
}
static inline void vf_load_unzip(const float *p, vf *even, vf *odd)
{
    const __m512i pick = _mm512_set_epi32(30, 28, 26, 24, 22, 20, 18, 16, 14, 12, 10, 8, 6, 4, 2, 0);
    vf a = _mm512_loadu_ps(p), b = _mm512_loadu_ps(p + 16);
    *even = _mm512_permutex2var_ps(a, pick, b);
    *odd = _mm512_permutex2var_ps(a, _mm512_or_si512(pick, _mm512_set1_epi32(1)), b);
}
static inline void vf_store_zip(float *p, vf even, vf odd)
{
    const __m512i lo = _mm512_set_epi32(23, 7, 22, 6, 21, 5, 20, 4, 19, 3, 18, 2, 17, 1, 16, 0);
    const __m512i hi = _mm512_set_epi32(31, 15, 30, 14, 29, 13, 28, 12, 27, 11, 26, 10, 25, 9, 24, 8);
    _mm512_storeu_ps(p, _mm512_permutex2var_ps(even, lo, odd));
    _mm512_storeu_ps(p + 16, _mm512_permutex2var_ps(even, hi, odd));
}
#endif
