/* vec_avx2.h - the vector layer for AVX2 + FMA + F16C: 8 lanes. Same functions as vec_portable.h. */
#ifndef DS_CPU_VEC_AVX2_H
#define DS_CPU_VEC_AVX2_H

#include <immintrin.h>
#include <stdint.h>
#include <string.h>

#define VW 8
typedef __m256 vf;

static inline __m256i ds_mask_n(int n)
{
    static const int32_t window[16] = {-1, -1, -1, -1, -1, -1, -1, -1};
    return _mm256_loadu_si256((const __m256i *)(window + 8 - n));
}
static inline vf vf_set1(float x)
{
    return _mm256_set1_ps(x);
}
static inline vf vf_load(const float *p)
{
    return _mm256_loadu_ps(p);
}
static inline void vf_store(float *p, vf v)
{
    _mm256_storeu_ps(p, v);
}
static inline vf vf_load_n(const float *p, int n)
{
    return _mm256_maskload_ps(p, ds_mask_n(n));
}
static inline void vf_store_n(float *p, vf v, int n)
{
    _mm256_maskstore_ps(p, ds_mask_n(n), v);
}
/* vf_keep: v in a register from here on; a compiler may otherwise read memory again for each use. */
static inline vf vf_keep(vf v)
{
    __asm__ volatile("" : "+x"(v));
    return v;
}
static inline vf vf_add(vf a, vf b)
{
    return _mm256_add_ps(a, b);
}
static inline vf vf_sub(vf a, vf b)
{
    return _mm256_sub_ps(a, b);
}
static inline vf vf_mul(vf a, vf b)
{
    return _mm256_mul_ps(a, b);
}
static inline vf vf_div(vf a, vf b)
{
    return _mm256_div_ps(a, b);
}
static inline vf vf_fma(vf a, vf b, vf c)
{
    return _mm256_fmadd_ps(a, b, c);
}
static inline vf vf_max(vf a, vf b)
{
    return _mm256_max_ps(a, b);
}
static inline vf vf_min(vf a, vf b)
{
    return _mm256_min_ps(a, b);
}
static inline vf vf_zero_below(vf v, vf x, vf lo)
{
    return _mm256_and_ps(v, _mm256_cmp_ps(x, lo, _CMP_NLT_UQ));
}
static inline vf vf_round(vf x)
{
    return _mm256_round_ps(x, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC);
}
static inline vf vf_scale2(vf v, vf n)
{
    __m256i e = _mm256_add_epi32(_mm256_cvtps_epi32(n), _mm256_set1_epi32(127));
    return _mm256_mul_ps(v, _mm256_castsi256_ps(_mm256_slli_epi32(e, 23)));
}
static inline float vf_hsum(vf v)
{
    __m128 a = _mm_add_ps(_mm256_castps256_ps128(v), _mm256_extractf128_ps(v, 1));
    a = _mm_add_ps(a, _mm_movehl_ps(a, a));
    return _mm_cvtss_f32(_mm_add_ss(a, _mm_movehdup_ps(a)));
}
/* vf_hsum of eight vectors at once: the same additions, so the same bits. */
static inline void vf_hsum8(const vf *v, float *ret)
{
    __m256 h[4], q[2]; /* halves of a pair added, quarters of four */
    for (int i = 0; i < 4; i++) {
        int at = i / 2 * 4 + i % 2; /* vectors at and at + 2 */
        h[i] = _mm256_add_ps(_mm256_permute2f128_ps(v[at], v[at + 2], 0x20),
                             _mm256_permute2f128_ps(v[at], v[at + 2], 0x31));
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
    __m128 a = _mm_max_ps(_mm256_castps256_ps128(v), _mm256_extractf128_ps(v, 1));
    a = _mm_max_ps(a, _mm_movehl_ps(a, a));
    return _mm_cvtss_f32(_mm_max_ss(a, _mm_movehdup_ps(a)));
}
static inline int vf_any_ge(vf a, vf b)
{
    return _mm256_movemask_ps(_mm256_cmp_ps(a, b, _CMP_GE_OQ)) != 0;
}
static inline vf vf_load_bf16(const void *p)
{
    __m256i w = _mm256_cvtepu16_epi32(_mm_loadu_si128((const __m128i *)p));
    return _mm256_castsi256_ps(_mm256_slli_epi32(w, 16));
}
static inline vf vf_load_f16(const void *p)
{
    return _mm256_cvtph_ps(_mm_loadu_si128((const __m128i *)p));
}
static inline vf vf_load_i8(const void *p)
{
    return _mm256_cvtepi32_ps(_mm256_cvtepi8_epi32(_mm_loadl_epi64((const __m128i *)p)));
}
static inline vf vf_bf16_even(const void *p)
{
    return _mm256_castsi256_ps(_mm256_slli_epi32(_mm256_loadu_si256((const __m256i *)p), 16));
}
static inline vf vf_bf16_odd(const void *p)
{
    /* read anew each time: held, the mask would push an accumulator out of the 16 registers */
    static const uint32_t odd[8] __attribute__((aligned(32))) = {
        0xffff0000, 0xffff0000, 0xffff0000, 0xffff0000, 0xffff0000, 0xffff0000, 0xffff0000, 0xffff0000};
    __m256i mask;
    __asm__ volatile("vmovdqa %1, %0" : "=x"(mask) : "m"(odd));
    return _mm256_castsi256_ps(_mm256_and_si256(_mm256_loadu_si256((const __m256i *)p), mask));
}
static inline void vf_load_unzip(const float *p, vf *even, vf *odd)
{
    vf a = _mm256_loadu_ps(p), b = _mm256_loadu_ps(p + 8);
    vf lo = _mm256_permute2f128_ps(a, b, 0x20), hi = _mm256_permute2f128_ps(a, b, 0x31);
    *even = _mm256_shuffle_ps(lo, hi, 0x88); /* a0 a2 a4 a6 | b0 b2 b4 b6: lo = a0-3 b0-3, hi = a4-7 b4-7 */
    *odd = _mm256_shuffle_ps(lo, hi, 0xdd);
}
static inline void vf_store_zip(float *p, vf even, vf odd)
{
    __m256 lo = _mm256_unpacklo_ps(even, odd), hi = _mm256_unpackhi_ps(even, odd);
    _mm256_storeu_ps(p, _mm256_permute2f128_ps(lo, hi, 0x20));
    _mm256_storeu_ps(p + 8, _mm256_permute2f128_ps(lo, hi, 0x31));
}
/* 32 int8 widened; vq_dot: lane sums of their products with 32 int16, below 2^24 and so exact in f32. */
typedef struct vq {
    __m256i a, b;
} vq;
static inline vq vq_load(const void *p)
{
    const __m128i *q = (const __m128i *)p;
    return (vq){_mm256_cvtepi8_epi16(_mm_loadu_si128(q)), _mm256_cvtepi8_epi16(_mm_loadu_si128(q + 1))};
}
static inline vf vq_dot(vq w, const int16_t *x)
{
    __m256i a = _mm256_madd_epi16(w.a, _mm256_loadu_si256((const __m256i *)x));
    __m256i b = _mm256_madd_epi16(w.b, _mm256_loadu_si256((const __m256i *)(x + 16)));
    return _mm256_cvtepi32_ps(_mm256_add_epi32(a, b));
}

#endif
