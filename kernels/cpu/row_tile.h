/* row_tile.h - row-wise functions of one instruction-set level; included after a vec_*.h and linear_tile.h.
 * Each output element depends on its own row only; sums run in an order that depends on n alone. */
#ifndef DS_CPU_ROW_TILE_H
#define DS_CPU_ROW_TILE_H

#include <math.h>

/* exp(x): 2^n times a degree-6 polynomial on [-ln2/2, ln2/2] (Cephes expf coefficients), <= 2 ulp measured
 * over the whole range (tests/kernel/test_rows.c). Below -87.33: 0 (no denormals); above 88.37: 2.4e38, not
 * infinity. */
DS_INLINE vf vf_exp(vf x)
{
    const vf lo = vf_set1(-87.33654f), hi = vf_set1(88.37f);
    vf c = vf_min(hi, vf_max(lo, x)); /* NaN stays: both return the second where one is NaN */
    vf n = vf_round(vf_mul(c, vf_set1(1.44269504088896341f)));
    vf r = vf_fma(n, vf_set1(-0.693359375f), c);
    r = vf_fma(n, vf_set1(2.12194440e-4f), r);
    vf p = vf_fma(vf_set1(1.9875691500e-4f), r, vf_set1(1.3981999507e-3f));
    p = vf_fma(p, r, vf_set1(8.3334519073e-3f));
    p = vf_fma(p, r, vf_set1(4.1665795894e-2f));
    p = vf_fma(p, r, vf_set1(1.6666665459e-1f));
    p = vf_fma(p, r, vf_set1(5.0000001201e-1f));
    p = vf_add(vf_fma(p, vf_mul(r, r), r), vf_set1(1));
    return vf_zero_below(vf_scale2(p, n), x, lo);
}

static void row_expand(ds_dtype t, const void *src, const float *scale, int n, float *ret)
{
    const char *p = src;
    const size_t elem = lin_elem(t);
    for (int i = 0; i < n; i += VW) {
        char tail[VW * 4] = {0};
        int left = n - i < VW ? n - i : VW;
        const char *q = p + (size_t)i * elem;
        if (left < VW)
            q = memcpy(tail, q, (size_t)left * elem);
        vf v = t == DS_BF16  ? vf_load_bf16(q)
               : t == DS_F16 ? vf_load_f16(q)
               : t == DS_I8  ? vf_mul(vf_load_i8(q), vf_set1(scale[i / DS_I8_BLOCK]))
                             : vf_load((const float *)(const void *)q);
        vf_store_n(ret + i, v, left);
    }
}

static void row_to_bf16(const float *src, int n, uint16_t *ret)
{
    for (int i = 0; i < n; i++) {
        uint32_t u;
        memcpy(&u, src + i, 4);
        uint32_t nan = (u & 0x7fffffff) > 0x7f800000;
        uint32_t r = (u + 0x7fff + (u >> 16 & 1)) >> 16;
        ret[i] = (uint16_t)(nan ? (u >> 16 | 0x40) : r);
    }
}

static void row_rmsnorm(const float *x, const float *w, int n, float eps, float *y)
{
    vf a = vf_set1(0), b = vf_set1(0);
    int i = 0;
    for (; i + 2 * VW <= n; i += 2 * VW) {
        vf u = vf_load(x + i), v = vf_load(x + i + VW);
        a = vf_fma(u, u, a);
        b = vf_fma(v, v, b);
    }
    for (; i < n; i += VW) {
        vf u = vf_load_n(x + i, n - i < VW ? n - i : VW);
        a = vf_fma(u, u, a);
    }
    vf s = vf_set1(1.0f / sqrtf(vf_hsum(vf_add(a, b)) / (float)n + eps));
    for (i = 0; i < n; i += VW) {
        int left = n - i < VW ? n - i : VW;
        vf v = vf_mul(vf_load_n(x + i, left), s);
        if (w)
            v = vf_mul(v, vf_load_n(w + i, left));
        vf_store_n(y + i, v, left);
    }
}

/* Half-split pairs (j, j + d/2). */
static void row_rope(float *x, const float *cos, const float *sin, int d)
{
    int half = d / 2;
    for (int i = 0; i < half; i += VW) {
        int left = half - i < VW ? half - i : VW;
        vf a = vf_load_n(x + i, left), b = vf_load_n(x + half + i, left);
        vf c = vf_load_n(cos + i, left), s = vf_load_n(sin + i, left);
        vf_store_n(x + i, vf_sub(vf_mul(a, c), vf_mul(b, s)), left);
        vf_store_n(x + half + i, vf_add(vf_mul(b, c), vf_mul(a, s)), left);
    }
}

static void row_silu_mul(const float *gate, const float *up, int n, float *y)
{
    const vf one = vf_set1(1), zero = vf_set1(0);
    for (int i = 0; i < n; i += VW) {
        int left = n - i < VW ? n - i : VW;
        vf g = vf_load_n(gate + i, left), u = vf_load_n(up + i, left);
        vf s = vf_div(g, vf_add(one, vf_exp(vf_sub(zero, g))));
        vf_store_n(y + i, vf_mul(s, u), left);
    }
}

static float row_max(const float *x, int n, int *ret_bad)
{
    const float lowest = -3.402823466e38f;
    const vf low = vf_set1(lowest), zero = vf_set1(0);
    vf m = vf_set1(-INFINITY), poison = zero; /* 0 times a NaN or infinity is NaN and stays */
    int i = 0;
    for (; i + VW <= n; i += VW) {
        vf v = vf_load(x + i);
        m = vf_max(v, m);
        poison = vf_fma(vf_max(low, v), zero, poison);
    }
    float best = vf_hmax(m), bad = vf_hsum(poison);
    for (; i < n; i++) {
        best = x[i] > best ? x[i] : best;
        bad += (x[i] < lowest ? lowest : x[i]) * 0.0f;
    }
    *ret_bad = bad != 0;
    return best;
}

static double row_sum_exp(const float *x, int n, float max, float scale)
{
    enum { BLOCK = 2048 }; /* f32 partial sums of at most this many terms, f64 across */
    const vf m = vf_set1(max), f = vf_set1(scale);
    double sum = 0;
    for (int b = 0; b < n; b += BLOCK) {
        int end = n - b < BLOCK ? n : b + BLOCK, i = b;
        vf s = vf_set1(0);
        for (; i + VW <= end; i += VW)
            s = vf_add(s, vf_exp(vf_mul(vf_sub(vf_load(x + i), m), f)));
        sum += (double)vf_hsum(s);
        if (i < end) {
            float tail[VW];
            vf_store(tail, vf_exp(vf_mul(vf_sub(vf_load_n(x + i, end - i), m), f)));
            for (int k = 0; k < end - i; k++)
                sum += (double)tail[k];
        }
    }
    return sum;
}

static void row_exp_all(const float *x, int n, float max, float scale, float *y)
{
    const vf m = vf_set1(max), k = vf_set1(scale);
    for (int i = 0; i < n; i += VW) {
        int left = n - i < VW ? n - i : VW;
        vf_store_n(y + i, vf_exp(vf_mul(vf_sub(vf_load_n(x + i, left), m), k)), left);
    }
}

#endif
