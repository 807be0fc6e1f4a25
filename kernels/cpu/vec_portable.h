/* vec_portable.h - the vector layer in plain C (gcc/clang vector extension, 4 lanes): SSE2, NEON or scalar
 * code, whatever the compiler's base level offers. Multiply and add round separately here (no FMA). */
#ifndef DS_CPU_VEC_PORTABLE_H
#define DS_CPU_VEC_PORTABLE_H

#include <math.h>
#include <stdint.h>
#include <string.h>

#define VW 4
enum { DS_VQ = 32 / VW };
typedef float vf __attribute__((vector_size(16)));
typedef int32_t vi __attribute__((vector_size(16)));
typedef uint32_t vu __attribute__((vector_size(16)));

static inline vf vf_set1(float x)
{
    return (vf){x, x, x, x};
}
static inline vf vf_load(const float *p)
{
    vf v;
    memcpy(&v, p, sizeof v);
    return v;
}
static inline void vf_store(float *p, vf v)
{
    memcpy(p, &v, sizeof v);
}
static inline vf vf_load_n(const float *p, int n)
{
    vf v = {0};
    memcpy(&v, p, (size_t)n * sizeof *p);
    return v;
}
static inline void vf_store_n(float *p, vf v, int n)
{
    memcpy(p, &v, (size_t)n * sizeof *p);
}
static inline vf vf_keep(vf v)
{
    return v;
}
static inline vf vf_add(vf a, vf b)
{
    return a + b;
}
static inline vf vf_sub(vf a, vf b)
{
    return a - b;
}
static inline vf vf_mul(vf a, vf b)
{
    return a * b;
}
static inline vf vf_div(vf a, vf b)
{
    return a / b;
}
static inline vf vf_fma(vf a, vf b, vf c)
{
    return a * b + c;
}
static inline vf vf_select(vi mask, vf a, vf b)
{
    return (vf)((mask & (vi)a) | (~mask & (vi)b));
}
/* vf_max: b where either is NaN, like MAXPS. */
static inline vf vf_max(vf a, vf b)
{
    return vf_select(a > b, a, b);
}
static inline vf vf_min(vf a, vf b)
{
    return vf_select(a < b, a, b);
}
/* vf_zero_below: 0 where x < lo, else v; NaN keeps v. */
static inline vf vf_zero_below(vf v, vf x, vf lo)
{
    return (vf)(~(x < lo) & (vi)v);
}
/* vf_round: nearest integer, for |x| < 2^22. */
static inline vf vf_round(vf x)
{
    vf magic = vf_set1(12582912.0f);
    return (x + magic) - magic;
}
/* vf_scale2: v * 2^n for integral n in [-126, 127]. */
static inline vf vf_scale2(vf v, vf n)
{
    vi e = (vi)(n + vf_set1(12582912.0f));
    return v * (vf)((e << 23) + 0x3f800000);
}
static inline float vf_hsum(vf v)
{
    return (v[0] + v[2]) + (v[1] + v[3]);
}
static inline void vf_hsum8(const vf *v, float *ret)
{
    for (int i = 0; i < 8; i++)
        ret[i] = vf_hsum(v[i]);
}
static inline float vf_hmax(vf v)
{
    float a = v[0] > v[1] ? v[0] : v[1], b = v[2] > v[3] ? v[2] : v[3];
    return a > b ? a : b;
}
/* vf_any_ge: whether some lane of a is >= that of b. */
static inline int vf_any_ge(vf a, vf b)
{
    vi m = a >= b;
    return (m[0] | m[1] | m[2] | m[3]) != 0;
}
static inline vf vf_load_bf16(const void *p)
{
    uint16_t h[VW];
    memcpy(h, p, sizeof h);
    return (vf)(vu){(uint32_t)h[0] << 16, (uint32_t)h[1] << 16, (uint32_t)h[2] << 16, (uint32_t)h[3] << 16};
}
static inline float ds_half_to_f32(uint16_t h)
{
    uint32_t sign = (uint32_t)(h & 0x8000) << 16, mag = h & 0x7fff, bits;
    float f;
    if (mag >= 0x7c00) {
        bits = 0x7f800000 | (mag & 0x3ff) << 13;
    } else if (mag >= 0x400) {
        bits = (mag << 13) + 0x38000000;
    } else {
        f = (float)mag * 0x1p-24f;
        memcpy(&bits, &f, 4);
    }
    bits |= sign;
    memcpy(&f, &bits, 4);
    return f;
}
static inline vf vf_load_f16(const void *p)
{
    uint16_t h[VW];
    memcpy(h, p, sizeof h);
    return (vf){ds_half_to_f32(h[0]), ds_half_to_f32(h[1]), ds_half_to_f32(h[2]), ds_half_to_f32(h[3])};
}
static inline vf vf_load_i8(const void *p)
{
    int8_t q[VW];
    memcpy(q, p, sizeof q);
    return (vf){q[0], q[1], q[2], q[3]};
}
/* The even / odd elements of 2 * VW bf16 in memory. */
static inline vf vf_bf16_even(const void *p)
{
    vu raw;
    memcpy(&raw, p, sizeof raw);
    return (vf)(raw << 16);
}
static inline vf vf_bf16_odd(const void *p)
{
    vu raw;
    memcpy(&raw, p, sizeof raw);
    return (vf)(raw & 0xffff0000u);
}
/* Deinterleave 2 * VW floats into their even and odd elements. */
static inline void vf_load_unzip(const float *p, vf *even, vf *odd)
{
    *even = (vf){p[0], p[2], p[4], p[6]};
    *odd = (vf){p[1], p[3], p[5], p[7]};
}
/* The inverse: e0 o0 e1 o1 ... */
static inline void vf_store_zip(float *p, vf even, vf odd)
{
    for (int i = 0; i < VW; i++) {
        p[2 * i] = even[i];
        p[2 * i + 1] = odd[i];
    }
}
/* 32 int8 widened; vq_dot: lane sums of their products with 32 int16, exact before one rounding to f32. */
typedef struct vq {
    vi a[DS_VQ];
} vq;
static inline vq vq_load(const void *p)
{
    vq w;
    for (int i = 0; i < DS_VQ; i++) {
        int8_t q[VW];
        memcpy(q, (const int8_t *)p + i * VW, sizeof q);
        w.a[i] = (vi){q[0], q[1], q[2], q[3]};
    }
    return w;
}
static inline vf vq_dot(vq w, const int16_t *x)
{
    vi s = {0};
    for (int i = 0; i < DS_VQ; i++)
        s += w.a[i] * (vi){x[i * VW], x[i * VW + 1], x[i * VW + 2], x[i * VW + 3]};
    return (vf){(float)s[0], (float)s[1], (float)s[2], (float)s[3]};
}

#endif
