/* test_rows.c - embed, rmsnorm, silu_mul and gather of each level against float64, with planted defects; the
 * thread pool; opening the back end. */
#include "kernels/cpu/pool.h"
#include "tests/kernel/ref.h"

#include <stdatomic.h>
#include <time.h>
#include <unistd.h>

static const int widths[] = {1, 2, 7, 8, 15, 33, 64, 100, 257, 1024};

/* Worst error over an allowance per element; above 1 is outside the bound. */
static double worst(const float *got, const double *want, const double *allow, int n)
{
    double w = 0;
    for (int i = 0; i < n; i++)
        w = fmax(w, isnan(got[i]) ? INFINITY : fabs((double)got[i] - want[i]) / allow[i]);
    return w;
}

/* The sum of squares is all positive: relative error (n/4 + 10) u, halved by the root; three more roundings.
 */
static void check_rmsnorm(const char *isa)
{
    enum { T = 5 };
    ds_backend *b = ref_open(isa, 2);
    for (size_t s = 0; s < sizeof widths / sizeof widths[0]; s++) {
        int n = widths[s];
        ref_mat w = ref_mat_make(1, n, (ds_dtype)(s % 3), 5);
        float *x = ref_floats((size_t)T * n, 6), *y = ref_floats((size_t)T * n, 7);
        double *want = malloc(sizeof *want * n), *allow = malloc(sizeof *allow * n);
        ds_rmsnorm_args a = {x, {w.m.data, n, w.m.dtype}, y, 1e-5f, T};
        CHECK_EQ(b->rmsnorm(b, &a), DS_OK);
        for (int t = 0; t < T; t++) {
            double ss = 0;
            for (int i = 0; i < n; i++)
                ss += (double)x[t * n + i] * (double)x[t * n + i];
            for (int i = 0; i < n; i++) {
                want[i] = (double)x[t * n + i] / sqrt(ss / n + (double)1e-5f) * w.exact[i];
                allow[i] = (n / 4.0 + 16) * REF_U32 * fabs(want[i]) + 1e-37;
            }
            CHECK_MSG(worst(y + t * n, want, allow, n) <= 1, "%s rmsnorm width %d row %d", isa, n, t);
            for (int i = 0; i < n; i++) /* planted: eps forgotten */
                want[i] = (double)x[t * n + i] / sqrt(ss / n + 3e-5) * w.exact[i];
            CHECK(n > 257 || worst(y + t * n, want, allow, n) > 1);
        }
        memcpy(y, x, sizeof *x * T * n); /* in place gives the same bits */
        float *again = ref_floats((size_t)T * n, 7);
        a.y = again;
        b->rmsnorm(b, &a);
        a.x = a.y = y;
        b->rmsnorm(b, &a);
        CHECK(memcmp(y, again, sizeof *y * T * n) == 0);
        free(x), free(y), free(again), free(want), free(allow);
        ref_mat_free(&w);
    }
    b->destroy(b);
}

/* exp within 2 ulp, an addition, a quotient and a product: 8 u relative; at large |gate| exp saturates. */
static void check_silu(const char *isa)
{
    enum { I = 4001, T = 2 };
    ds_backend *b = ref_open(isa, 2);
    float *gu = malloc(sizeof(float) * 2 * I * T), *y = malloc(sizeof(float) * I * T);
    double want[I], allow[I];
    for (int t = 0; t < T; t++)
        for (int i = 0; i < I; i++) {
            gu[t * 2 * I + i] = (float)(i - I / 2) * (t ? 0.05f : 0.005f);
            gu[t * 2 * I + I + i] = ref_random(3, (uint32_t)i);
        }
    ds_silu_mul_args a = {gu, y, T, I};
    CHECK_EQ(b->silu_mul(b, &a), DS_OK);
    for (int t = 0; t < T; t++)
        for (int bent = 0; bent < 2; bent++) {
            for (int i = 0; i < I; i++) {
                double g = (double)gu[t * 2 * I + i] * (bent ? 1.00001 : 1);
                want[i] = g / (1 + exp(-g)) * (double)gu[t * 2 * I + I + i];
                allow[i] = 12 * REF_U32 * fabs(want[i]) + 1e-36;
            }
            double w = worst(y + t * I, want, allow, I);
            CHECK_MSG(bent ? w > 1 : w <= 1, "%s silu row %d: %g of the bound", isa, t, w);
        }
    gu[0] = NAN;
    b->silu_mul(b, &a);
    CHECK(isnan(y[0]));
    free(gu), free(y);
    b->destroy(b);
}

static void check_embed(const char *isa)
{
    enum { V = 9, T = 6 };
    ds_backend *b = ref_open(isa, 2);
    static const int32_t token[T] = {8, 0, 3, 3, 8, 1};
    for (int t = 0; t < 4; t++)
        for (size_t s = 0; s < sizeof widths / sizeof widths[0]; s++) {
            int c = t == DS_I8 ? widths[s] * 32 : widths[s];
            ref_mat w = ref_mat_make(V, c, (ds_dtype)t, 8);
            float *y = ref_floats((size_t)T * c, 9);
            ds_embed_args a = {w.m, token, y, T};
            CHECK_EQ(b->embed(b, &a), DS_OK);
            for (int i = 0; i < T * c; i++) /* exact; int8 rounds one product */
                CHECK(y[i] == (float)w.exact[(size_t)token[i / c] * c + i % c]);
            int32_t high = V;
            a.token = &high;
            a.T = 1;
            if (strcmp(b->name, "cpu") == 0)
                CHECK_EQ(b->embed(b, &a), DS_EINVAL);
            else /* tokens are in device memory: the row says it */
                CHECK(b->embed(b, &a) == DS_OK && isnan(y[0]) && isnan(y[c - 1]));
            free(y);
            ref_mat_free(&w);
        }
    b->destroy(b);
}

#define LEVEL(isa)           \
    DS_TEST(rmsnorm_##isa)   \
    {                        \
        check_rmsnorm(#isa); \
    }                        \
    DS_TEST(silu_mul_##isa)  \
    {                        \
        check_silu(#isa);    \
    }                        \
    DS_TEST(embed_##isa)     \
    {                        \
        check_embed(#isa);   \
    }
LEVEL(portable)
LEVEL(avx2)
LEVEL(avx512)
LEVEL(avx512bf16)
LEVEL(cuda_auto)
LEVEL(cuda_invariant)
LEVEL(cuda_portable)

DS_TEST(gather_rows)
{
    ds_backend *b = ref_open(NULL, 1);
    float x[4 * 3], y[3 * 5] = {0};
    for (int i = 0; i < 12; i++)
        x[i] = (float)i;
    int32_t row[] = {3, 0, 3}, low = -1;
    ds_gather_args a = {x, row, y, 3, 3, 5};
    CHECK_EQ(b->gather(b, &a), DS_OK);
    CHECK(y[0] == 9 && y[2] == 11 && y[3] == 0 && y[5] == 0 && y[7] == 2 && y[10] == 9);
    a.row = &low;
    a.R = 1;
    CHECK_EQ(b->gather(b, &a), DS_EINVAL);
    b->destroy(b);
}

typedef struct tally {
    _Atomic int hits[1000];
    _Atomic int threads_seen;
} tally;

static void count_part(void *ctx, int thread, int begin, int end)
{
    tally *t = ctx;
    atomic_fetch_or(&t->threads_seen, 1 << thread);
    for (int i = begin; i < end; i++)
        atomic_fetch_add_explicit(&t->hits[i], 1, memory_order_relaxed);
}

/* Every item once, for any size and grain, in thousands of regions, some after the workers fell asleep. */
DS_TEST(pool_runs_each_item_once)
{
    for (int threads = 1; threads <= 4; threads++) {
        ds_pool *p;
        ds_err err;
        static tally t;
        CHECK_OK(ds_pool_create(threads, &p, &err), err);
        CHECK_EQ(ds_pool_threads(p), threads);
        memset(&t, 0, sizeof t);
        int want[1000] = {0};
        for (int i = 0; i < 3000; i++) {
            int n = (i * 37) % 1001, grain = 1 + i % 23;
            ds_pool_for(p, n, grain, count_part, &t);
            for (int k = 0; k < n; k++)
                want[k]++;
            if (i % 1000 == 0)
                usleep(2000);
        }
        for (int k = 0; k < 1000; k++)
            CHECK_EQ(t.hits[k], want[k]);
        CHECK(t.threads_seen >> threads == 0);
        ds_pool_destroy(p);
    }
    ds_pool *p;
    CHECK_EQ(ds_pool_create(0, &p, NULL), DS_EINVAL);
}

/* CPU time of the whole process while the pool is idle. */
DS_TEST(pool_sleeps_when_idle)
{
    ds_pool *p;
    ds_err err;
    static tally t;
    CHECK_OK(ds_pool_create(2, &p, &err), err);
    ds_pool_for(p, 1000, 1, count_part, &t);
    usleep(2000);
    clock_t before = clock();
    usleep(100000);
    double used = (double)(clock() - before) / CLOCKS_PER_SEC;
    CHECK_MSG(used < 0.02, "%.3f s of CPU in 0.1 s of idling", used);
    ds_pool_destroy(p);
}

DS_TEST(backend_open)
{
    ds_backend *b;
    ds_err err;
    CHECK_EQ(ds_backend_open("tpu", 1, NULL, &b, &err), DS_EINVAL);
    CHECK_EQ(ds_backend_open("cpu", 1, "sse9", &b, &err), DS_EINVAL);
    CHECK_EQ(ds_backend_open("cpu", -1, NULL, &b, &err), DS_EINVAL);
    CHECK_OK(ds_backend_open("cpu", 0, "", &b, &err), err);
    CHECK(b->mem_total > 0 && b->mem_free <= b->mem_total);
    for (size_t bytes = 1; bytes < (8u << 20); bytes = bytes * 3 + 1) {
        char *p;
        CHECK_OK(b->alloc(b, bytes, (void **)&p, &err), err);
        CHECK((uintptr_t)p % 64 == 0 && p[0] == 0 && p[bytes - 1] == 0 && p[bytes / 2] == 0);
        memset(p, 1, bytes);
        b->free(b, p);
    }
    void *p;
    CHECK_EQ(b->alloc(b, SIZE_MAX, &p, &err), DS_ENOMEM);
    b->free(b, NULL);
    b->destroy(b);
}
