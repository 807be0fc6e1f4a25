/* test_linear.c - the matrix product of each level against float64, by level and dtype; bit-equality of a row
 * alone, in any batch and with any number of threads; planted defects that the bound must catch.
 *
 * Bound: a dot product summed as chains of FMAs and a tree errs by at most (longest chain + tree + 1) u sum|w
 * x| (Higham 2002, 3.1), u = 2^-24; the narrowest level has 4 lanes, so the chain is at most k/4 + 8, and
 * twice that where a product and a sum round apart. int8 adds one rounding of scale * scale and, with 4
 * lanes, one of a block's integer sum; and what rounding the activations costs (quant_bound). */
#include "tests/kernel/ref.h"

typedef struct shape {
    int T, n, k;
} shape;

static const shape shapes[] = {{1, 1, 1},      {1, 3, 7},     {2, 5, 33},   {3, 9, 64},    {4, 17, 100},
                               {5, 8, 129},    {6, 31, 96},   {7, 2, 1000}, {8, 64, 256},  {9, 13, 320},
                               {13, 40, 257},  {17, 100, 31}, {1, 257, 96}, {40, 21, 160}, {64, 7, 224},
                               {2, 130, 1536}, {70, 300, 192}};

static double bound(const ds_backend *b, ds_dtype t, int k, double abs_sum);

static double tolerance(int k, double abs_sum)
{
    return (2 * (k / 4.0 + 8) + 2) * REF_U32 * abs_sum;
}

/* bf16 activations of avx512bf16 and of CUDA's tensor cores: one rounding of x, relative 2^-8 at most
 * (nearest: 2^-9 of the binade's top). */
static double bound(const ds_backend *b, ds_dtype t, int k, double abs_sum)
{
    double rel = ref_rounds_bf16(b) && t == DS_BF16 ? REF_UBF16 : 0;
    return tolerance(k, abs_sum) + rel * abs_sum;
}

/* Whether activations are rounded to 8 bits (VNNI), or to 16; on avx512 they stay f32. */
static int i8_activations(const ds_backend *b, ds_dtype t)
{
    return t == DS_I8 && strncmp(b->detail, "avx512bf16", 10) == 0;
}

static int i16_activations(const ds_backend *b, ds_dtype t)
{
    return t == DS_I8 && strncmp(b->detail, "avx512", 6) != 0;
}

/* sum |w| max|x| / (2 steps) over blocks of inputs: what rounding the activations to integers may cost. */
static double quant_bound(const ds_backend *b, const double *w, const float *x, int k)
{
    if (!i8_activations(b, DS_I8) && !i16_activations(b, DS_I8))
        return 0;
    int block = i8_activations(b, DS_I8) ? 64 : 32;
    double steps = i8_activations(b, DS_I8) ? 127 : 32767, total = 0;
    for (int at = 0; at < k; at += block) {
        double most = 0, sum = 0;
        for (int i = at; i < k && i < at + block; i++) {
            most = fmax(most, fabs((double)x[i]));
            sum += fabs(w[i]);
        }
        total += sum * most / (2 * steps) * 1.001;
    }
    return total;
}

/* Outputs outside the bound. */
static int count_bad(ds_backend *b, const ref_mat *w, const float *x, const float *y, const float *y0, int T)
{
    int bad = 0, k = w->m.k, n = w->m.n;
    for (int t = 0; t < T; t++)
        for (int i = 0; i < n; i++) {
            double want, mag, got = (double)y[(size_t)t * n + i] - (y0 ? (double)y0[(size_t)t * n + i] : 0);
            const double *row = w->exact + (size_t)i * k;
            ref_dot(row, x + (size_t)t * k, k, &want, &mag);
            double limit = bound(b, w->m.dtype, k, mag) + (y0 ? 4 * REF_U32 * (1 + mag) : 0);
            if (w->m.dtype == DS_I8)
                limit += quant_bound(b, row, x + (size_t)t * k, k);
            bad += !(fabs(got - want) <= limit);
        }
    return bad;
}

static void run(ds_backend *b, const ds_mat *w, const float *x, float *y, int T, int accumulate)
{
    ds_linear_args a = {x, *w, y, T, w->k, w->n, accumulate};
    CHECK_EQ(b->linear(b, &a), DS_OK);
}

static void check_level(const char *isa, ds_dtype t)
{
    ds_backend *b = ref_open(isa, 2);
    for (size_t s = 0; s < sizeof shapes / sizeof shapes[0]; s++) {
        int T = shapes[s].T, n = shapes[s].n, k = shapes[s].k;
        if (t == DS_I8)
            k = (k + 31) / 32 * 32;
        ref_mat w = ref_mat_make(n, k, t, 100 + s);
        float *x = ref_floats((size_t)T * k, 7 + s), *y = ref_floats((size_t)T * n, 9),
              *y0 = ref_floats((size_t)T * n, 9);
        run(b, &w.m, x, y, T, 1);
        CHECK_MSG(count_bad(b, &w, x, y, y0, T) == 0, "%s %s y += x W: [%d, %d] x [%d, %d]", isa,
                  ds_dtype_name(t), T, k, n, k);
        run(b, &w.m, x, y, T, 0);
        CHECK_MSG(count_bad(b, &w, x, y, NULL, T) == 0, "%s %s y = x W: [%d, %d] x [%d, %d]", isa,
                  ds_dtype_name(t), T, k, n, k);
        free(x);
        free(y);
        free(y0);
        ref_mat_free(&w);
    }
    b->destroy(b);
}

/* The same product, with rows in random places of random batches, one or two threads: all bits equal. */
static void check_invariance(const char *isa, ds_dtype t, int T, int N, int K, int trials)
{
    ds_backend *one = ref_open(isa, 1), *two = ref_open(isa, 2);
    ref_mat w = ref_mat_make(N, K, t, 3);
    float *x = ref_floats((size_t)T * K, 4), *alone = ref_floats((size_t)T * N, 5),
          *y = ref_floats((size_t)T * N, 6);
    for (int i = 0; i < T; i++)
        run(one, &w.m, x + (size_t)i * K, alone + (size_t)i * N, 1, 0);
    CHECK(count_bad(one, &w, x, alone, NULL, T) == 0);
    for (int trial = 0; trial < trials; trial++) {
        ds_backend *b = trial & 1 ? two : one;
        int len, at = 0;
        memset(y, 0x7f, (size_t)T * N * sizeof *y);
        for (uint32_t part = 0; at < T; at += len, part++) {
            len = trial < T ? trial + 1 : 1 + (int)(ds_rng_u32(trial, DS_RNG_INIT, 1, part) % 17);
            len = len < T - at ? len : T - at;
            run(b, &w.m, x + (size_t)at * K, y + (size_t)at * N, len, 0);
        }
        CHECK_MSG(memcmp(y, alone, (size_t)T * N * sizeof *y) == 0, "%s %s [%d, %d] trial %d", isa,
                  ds_dtype_name(t), N, K, trial);
    }
    free(x);
    free(y);
    free(alone);
    ref_mat_free(&w);
    one->destroy(one);
    two->destroy(two);
}

/* Defects a kernel could have, planted in its input: the bound must reject each. */
static void check_planted(const char *isa, ds_dtype t)
{
    enum { T = 3, N = 24, K = 160 };
    ds_backend *b = ref_open(isa, 1);
    ref_mat w = ref_mat_make(N, K, t, 11);
    float *x = ref_floats((size_t)T * K, 12), *bent = ref_floats((size_t)T * K, 12),
          *y = ref_floats((size_t)T * N, 13);
    for (int i = 0; i < T; i++)
        bent[(size_t)i * K + K - 1] = 0; /* the last input dropped */
    run(b, &w.m, bent, y, T, 0);
    if (!i8_activations(b, t))
        CHECK(count_bad(b, &w, x, y, NULL, T) > T * N / 2);
    memcpy(bent, x, (size_t)T * K * sizeof *x);
    for (int i = 0; i < T; i++) { /* two inputs swapped, as a wrong even/odd order would */
        bent[(size_t)i * K + 32] = x[(size_t)i * K + 33];
        bent[(size_t)i * K + 33] = x[(size_t)i * K + 32];
    }
    run(b, &w.m, bent, y, T, 0);
    CHECK(count_bad(b, &w, x, y, NULL, T) > 0);
    if (i16_activations(b, t)) {
        for (int i = 0; i < T * K; i++) /* activations rounded to 8 bits where 16 are promised */
            bent[i] = rintf(x[i] * 127) / 127;
        run(b, &w.m, bent, y, T, 0);
        CHECK(count_bad(b, &w, x, y, NULL, T) > 0);
    }
    run(b, &w.m, x, y, T, 0);
    int far = 1; /* one output in the wrong place: the one of the row that differs most */
    for (int i = 0; i < N; i++)
        far = fabsf(y[N + i] - y[N + 1]) > fabsf(y[N + far] - y[N + 1]) ? i : far;
    y[N + 1] = y[N + far];
    CHECK_EQ(count_bad(b, &w, x, y, NULL, T), 1);
    free(x);
    free(bent);
    free(y);
    ref_mat_free(&w);
    b->destroy(b);
}

#define LEVEL_DTYPE(isa, t, T)                                                                \
    DS_TEST(linear_##isa##_##t)                                                               \
    {                                                                                         \
        check_level(#isa, T);                                                                 \
        check_invariance(#isa, T, 40, 150, 352, 60);                                          \
        check_invariance(#isa, T, 13, 61, 5472 + (T == DS_I8 ? 0 : 7), 20); /* k in chunks */ \
        check_planted(#isa, T);                                                               \
    }
#define LEVEL(isa)                  \
    LEVEL_DTYPE(isa, f32, DS_F32)   \
    LEVEL_DTYPE(isa, bf16, DS_BF16) \
    LEVEL_DTYPE(isa, f16, DS_F16)   \
    LEVEL_DTYPE(isa, i8, DS_I8)
LEVEL(portable)
LEVEL(avx2)
LEVEL(avx512)
LEVEL(avx512bf16)
LEVEL(cuda_auto)
LEVEL(cuda_invariant)
LEVEL(cuda_portable)

DS_TEST(linear_unaligned)
{
    enum { N = 10, K = 70 };
    ds_backend *b = ref_open(NULL, 1);
    ref_mat w = ref_mat_make(N, K, DS_BF16, 1);
    float *x = ref_floats(K, 2), y[2][N];
    run(b, &w.m, x, y[0], 1, 0);
    ref_guarded g = ref_guard((size_t)N * K * 2 + 2);
    memcpy(g.p, w.m.data, (size_t)N * K * 2); /* two bytes lower than before */
    ds_mat m = w.m;
    m.data = g.p;
    run(b, &m, x, y[1], 1, 0);
    CHECK(memcmp(y[0], y[1], sizeof y[0]) == 0);
    ref_unguard(g);
    free(x);
    ref_mat_free(&w);
    b->destroy(b);
}

DS_TEST(linear_refuses)
{
    ds_backend *b = ref_open(NULL, 1);
    float x[64] = {0}, y[64];
    ds_linear_args ok = {x, {x, NULL, 2, 32, DS_F32}, y, 1, 32, 2, 0};
    CHECK_EQ(b->linear(b, &ok), DS_OK);
    ds_linear_args a = ok;
    a.x_stride = 31;
    CHECK_EQ(b->linear(b, &a), DS_EINVAL);
    a = ok;
    a.y_stride = 1;
    CHECK_EQ(b->linear(b, &a), DS_EINVAL);
    a = ok;
    a.w.data = NULL;
    CHECK_EQ(b->linear(b, &a), DS_EINVAL);
    a = ok;
    a.w.dtype = DS_I8; /* no scales */
    CHECK_EQ(b->linear(b, &a), DS_EINVAL);
    a = ok;
    a.T = 0;
    CHECK_EQ(b->linear(b, &a), DS_OK);
    b->destroy(b);
}

DS_TEST(quantize_error_bound)
{
    enum { N = 6, K = 96 };
    ref_mat w = ref_mat_make(N, K, DS_BF16, 21);
    int8_t q[N * K];
    float scale[N * K / 32];
    ds_err err;
    CHECK_OK(ds_quantize_i8(w.m, q, scale, &err), err);
    for (int i = 0; i < N * K; i++) {
        double s = (double)scale[i / 32];
        CHECK(fabs(w.exact[i] - q[i] * s) <= s / 2 * 1.0001);
    }
    uint16_t nan = 0x7fc0;
    memcpy(w.mem.p + 10, &nan, 2);
    CHECK_EQ(ds_quantize_i8(w.m, q, scale, &err), DS_ENUMERIC);
    w.m.k = 95;
    CHECK_EQ(ds_quantize_i8(w.m, q, scale, &err), DS_EINVAL);
    ref_mat_free(&w);
}
