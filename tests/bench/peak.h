/* peak.h - what the machine itself can do, measured the same moment as the products: bytes read per second
 * and multiply-adds per second of the instruction that a level's product is made of. */
#ifndef DS_TESTS_BENCH_PEAK_H
#define DS_TESTS_BENCH_PEAK_H

#include "kernels/cpu/pool.h"
#include "kernels/kernels.h"

#include <string.h>
#include <time.h>

#define PEAK_FN __attribute__((unused)) static

PEAK_FN double peak_now_ms(clockid_t clock)
{
    struct timespec t;
    clock_gettime(clock, &t);
    return (double)t.tv_sec * 1e3 + (double)t.tv_nsec * 1e-6;
}

typedef struct peak_reader {
    const char *p;
    long long sum[64 * 8]; /* one line per thread */
} peak_reader;

enum { PEAK_CHUNK = 65536 };

PEAK_FN void peak_read_part(void *ctx, int thread, int begin, int end)
{
    typedef long long v4 __attribute__((vector_size(16)));
    peak_reader *r = ctx;
    const v4 *p = (const v4 *)(const void *)(r->p + (size_t)begin * PEAK_CHUNK),
             *stop = p + (size_t)(end - begin) * (PEAK_CHUNK / sizeof *p);
    v4 a = {0}, b = {0}, c = {0}, d = {0};
    for (; p < stop; p += 8) {
        __builtin_prefetch((const char *)p + 2048);
        __builtin_prefetch((const char *)p + 2048 + 64);
        a += p[0] + p[4];
        b += p[1] + p[5];
        c += p[2] + p[6];
        d += p[3] + p[7];
    }
    a += b + c + d;
    r->sum[thread % 64 * 8] += a[0] + a[1];
}

/* GB/s of reading `bytes` (16-byte aligned) once. */
PEAK_FN double peak_read(ds_pool *pool, const void *p, size_t bytes)
{
    static peak_reader r;
    r.p = p;
    int chunks = (int)(bytes / PEAK_CHUNK), grain = chunks / (ds_pool_threads(pool) * 8);
    double t = peak_now_ms(CLOCK_MONOTONIC);
    ds_pool_for(pool, chunks, grain, peak_read_part, &r);
    t = peak_now_ms(CLOCK_MONOTONIC) - t;
    return (double)chunks * PEAK_CHUNK / t * 1e-6;
}

enum { PEAK_LOOPS = 200000, PEAK_CHAINS = 12 };

typedef struct peak_fma { /* run: PEAK_LOOPS times PEAK_CHAINS instructions of `macs` multiply-adds */
    void (*run)(void);
    int macs;
} peak_fma;

PEAK_FN void peak_portable(void)
{
    typedef float v4 __attribute__((vector_size(16)));
    v4 a[PEAK_CHAINS], m = {0.5f, 0.5f, 0.5f, 0.5f};
#pragma GCC unroll 12
    for (int k = 0; k < PEAK_CHAINS; k++)
        a[k] = m;
    for (int i = 0; i < PEAK_LOOPS; i++) {
#pragma GCC unroll 12
        for (int k = 0; k < PEAK_CHAINS; k++) {
            a[k] = a[k] * m + m;
            __asm__ volatile("" : "+x"(a[k]));
        }
    }
}

#if defined(__x86_64__)
#include <immintrin.h>

#define PEAK_KERNEL(name, isa, type, zero, next)                           \
    __attribute__((target(isa), unused)) static void name(void)            \
    {                                                                      \
        type a[PEAK_CHAINS], m = zero;                                     \
        _Pragma("GCC unroll 12") for (int k = 0; k < PEAK_CHAINS; k++)     \
        {                                                                  \
            a[k] = m;                                                      \
        }                                                                  \
        for (int i = 0; i < PEAK_LOOPS; i++) {                             \
            _Pragma("GCC unroll 12") for (int k = 0; k < PEAK_CHAINS; k++) \
            {                                                              \
                a[k] = next;                                               \
                __asm__ volatile("" : "+v"(a[k]));                         \
            }                                                              \
        }                                                                  \
    }
PEAK_KERNEL(peak_avx2, "avx2,fma", __m256, _mm256_setzero_ps(), _mm256_fmadd_ps(m, m, a[k]))
PEAK_KERNEL(peak_avx512, "avx512f", __m512, _mm512_setzero_ps(), _mm512_fmadd_ps(m, m, a[k]))
PEAK_KERNEL(peak_bf16, "avx512f,avx512bf16", __m512, _mm512_setzero_ps(),
            _mm512_dpbf16_ps(a[k], (__m512bh)m, (__m512bh)m))
PEAK_KERNEL(peak_vnni, "avx512f,avx512vnni", __m512i, _mm512_setzero_si512(), _mm512_dpbusd_epi32(a[k], m, m))
#endif

/* The multiply-add of a level's product of this dtype: f32, or what replaces it. */
PEAK_FN peak_fma peak_of(const char *detail, ds_dtype t)
{
#if defined(__x86_64__)
    if (strncmp(detail, "avx512bf16", 10) == 0 && t == DS_BF16)
        return (peak_fma){peak_bf16, 32};
    if (strncmp(detail, "avx512bf16", 10) == 0 && t == DS_I8)
        return (peak_fma){peak_vnni, 64};
    if (strncmp(detail, "avx512", 6) == 0)
        return (peak_fma){peak_avx512, 16};
    if (strncmp(detail, "avx2", 4) == 0)
        return (peak_fma){peak_avx2, 8};
#endif
    (void)detail;
    (void)t;
    return (peak_fma){peak_portable, 4};
}

PEAK_FN void peak_flop_part(void *ctx, int thread, int begin, int end)
{
    (void)thread;
    for (int i = begin; i < end; i++)
        ((const peak_fma *)ctx)->run();
}

/* GFLOP/s of the pool's threads together (a multiply-add is 2), over a few milliseconds. */
PEAK_FN double peak_flops(ds_pool *pool, peak_fma f)
{
    int n = 4 * ds_pool_threads(pool);
    double t = peak_now_ms(CLOCK_MONOTONIC);
    ds_pool_for(pool, n, 1, peak_flop_part, &f);
    t = peak_now_ms(CLOCK_MONOTONIC) - t;
    return 2e-6 * n * PEAK_LOOPS * PEAK_CHAINS * f.macs / t;
}

#endif
