/* bench_linear.c - what one forward pass costs in matrix products alone, for the shapes of Qwen3-0.6B (or a
 * small model that fits in cache), against the read bandwidth of the same moment. Not a test: nothing here
 * can fail.
 *
 *   bench_linear [--dtype bf16|f16|f32|i8] [--threads N] [--isa NAME] [--layers N] [--small] [--reps N] [rows
 * ...]
 *
 * Each line: rows, median and best ms, spread (p90 / p10), weight GB/s of the best and its share of the
 * bandwidth, GFLOP/s of the best, best time relative to the first line's. */
#include "kernels/cpu/pool.h"
#include "kernels/kernels.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

enum { MAX_REPS = 200, MAX_ROWS = 32, WIDE = 8192 };

typedef struct product {
    int n, k, per_layer; /* per_layer 0: once (the head) */
} product;

static const product qwen[] = {
    {4096, 1024, 1}, {1024, 2048, 1}, {6144, 1024, 1}, {1024, 3072, 1}, {151936, 1024, 0}};
static const product small_model[] = {
    {512, 256, 1}, {256, 256, 1}, {1536, 256, 1}, {256, 768, 1}, {8192, 256, 0}};

static double now_ms(clockid_t clock)
{
    struct timespec t;
    clock_gettime(clock, &t);
    return (double)t.tv_sec * 1e3 + (double)t.tv_nsec * 1e-6;
}

typedef struct reader {
    const char *p;
    size_t bytes;
    long long sum[64 * 8]; /* one line per thread */
} reader;

static void read_part(void *ctx, int thread, int begin, int end)
{
    typedef long long v4 __attribute__((vector_size(16)));
    reader *r = ctx;
    const v4 *p = (const v4 *)(const void *)(r->p + (size_t)begin * 65536),
             *stop = p + (size_t)(end - begin) * 4096;
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

/* GB/s of reading `bytes` once with `threads` threads, best of 7. */
static double read_bandwidth(const void *p, size_t bytes, int threads)
{
    ds_pool *pool;
    ds_err err;
    reader *r = calloc(1, sizeof *r);
    double best = 1e30;
    if (!r || ds_pool_create(threads, &pool, &err) != DS_OK)
        exit(1);
    *r = (reader){.p = p, .bytes = bytes / 65536 * 65536};
    int chunks = (int)(r->bytes / 65536);
    for (int i = 0; i < 7; i++) {
        double t = now_ms(CLOCK_MONOTONIC);
        ds_pool_for(pool, chunks, 16, read_part, r);
        t = now_ms(CLOCK_MONOTONIC) - t;
        best = t < best ? t : best;
    }
    ds_pool_destroy(pool);
    double gbs = (double)r->bytes / best * 1e-6;
    free(r);
    return gbs;
}

static int by_value(const void *a, const void *b)
{
    const double *p = a, *q = b;
    return *p < *q ? -1 : *p > *q;
}

typedef struct bench {
    ds_backend *b;
    ds_dtype dtype;
    const product *products;
    int layers;
    char *weights; /* all matrices one after the other, then the head */
    float *scale, *x, *y;
    size_t bytes, macs; /* of one pass of one row */
} bench;

static void pass(bench *h, int T)
{
    char *w = h->weights;
    float *s = h->scale;
    for (int l = 0; l <= h->layers; l++)
        for (int i = 0; i < 5; i++) {
            const product *p = &h->products[i];
            if (p->per_layer != (l < h->layers))
                continue;
            ds_linear_args a = {h->x, {w, s, p->n, p->k, h->dtype}, h->y, T, WIDE, p->n, 0};
            if (h->b->linear(h->b, &a) != DS_OK)
                abort();
            w += (size_t)p->n * p->k * ds_dtype_size(h->dtype);
            s += h->dtype == DS_I8 ? (size_t)p->n * p->k / DS_I8_BLOCK : 0;
        }
}

static void setup(bench *h, int max_rows)
{
    size_t count = 0, widest = 0;
    for (int i = 0; i < 5; i++) {
        const product *p = &h->products[i];
        count += (size_t)p->n * p->k * (size_t)(p->per_layer ? h->layers : 1);
        widest = (size_t)p->n > widest ? (size_t)p->n : widest;
    }
    h->macs = count;
    h->bytes = count * ds_dtype_size(h->dtype) + (h->dtype == DS_I8 ? count / DS_I8_BLOCK * 4 : 0);
    ds_err err;
    if (h->b->alloc(h->b, count * ds_dtype_size(h->dtype) + 64, (void **)&h->weights, &err) != DS_OK ||
        h->b->alloc(h->b, count / DS_I8_BLOCK * 4 + 64, (void **)&h->scale, &err) != DS_OK ||
        h->b->alloc(h->b, (size_t)max_rows * WIDE * 4, (void **)&h->x, &err) != DS_OK ||
        h->b->alloc(h->b, (size_t)max_rows * widest * 4, (void **)&h->y, &err) != DS_OK) {
        fprintf(stderr, "%s\n", err.msg);
        exit(1);
    }
    uint32_t r = 1;
    for (size_t i = 0; i < count * ds_dtype_size(h->dtype);
         i += 2) { /* values near 1 in bf16, f16 and f32 alike */
        r = r * 1664525u + 1013904223u;
        uint16_t v = h->dtype == DS_I8 ? (uint16_t)(r >> 16) : (uint16_t)(0x3c00 | (r >> 16 & 0x81ff));
        memcpy(h->weights + i, &v, 2);
    }
    for (size_t i = 0; i < count / DS_I8_BLOCK; i++)
        h->scale[i] = 0.01f;
    for (size_t i = 0; i < (size_t)max_rows * WIDE; i++) {
        r = r * 1664525u + 1013904223u;
        h->x[i] = (float)(r >> 8) * 0x1p-24f - 0.5f;
    }
}

static void measure(bench *h, int T, int reps, double bandwidth, double *base)
{
    double ms[MAX_REPS], cpu = 1e30;
    pass(h, T);
    for (int i = 0; i < reps; i++) {
        double t = now_ms(CLOCK_MONOTONIC), c = now_ms(CLOCK_PROCESS_CPUTIME_ID);
        pass(h, T);
        ms[i] = now_ms(CLOCK_MONOTONIC) - t;
        c = now_ms(CLOCK_PROCESS_CPUTIME_ID) - c;
        cpu = c < cpu ? c : cpu;
    }
    qsort(ms, (size_t)reps, sizeof *ms, by_value);
    if (*base == 0)
        *base = ms[0];
    double gbs = (double)h->bytes / ms[0] * 1e-6;
    double flop = 2e-6 * (double)h->macs * T;
    printf("%5d  %9.3f  %9.3f  %6.2f  %7.2f  %5.1f%%  %8.1f  %6.2f  %9.3f  %8.1f\n", T, ms[reps / 2], ms[0],
           ms[reps * 9 / 10] / ms[reps / 10], gbs, 100 * gbs / bandwidth, flop / ms[0], ms[0] / *base, cpu,
           flop / cpu);
}

int main(int argc, char **argv)
{
    static const char *const names[] = {"f32", "bf16", "f16", "i8"};
    bench h = {.dtype = DS_BF16, .products = qwen, .layers = 28};
    int threads = 0, reps = 7, rows[MAX_ROWS], n_rows = 0, max_rows = 1;
    const char *isa = NULL;
    for (int i = 1; i < argc; i++) {
        const char *v = i + 1 < argc ? argv[i + 1] : "";
        if (strcmp(argv[i], "--small") == 0) {
            h.products = small_model;
            h.layers = 8;
        } else if (strcmp(argv[i], "--dtype") == 0) {
            for (int t = 0; t < 4; t++)
                h.dtype = strcmp(v, names[t]) == 0 ? (ds_dtype)t : h.dtype;
            i++;
        } else if (strcmp(argv[i], "--threads") == 0) {
            threads = atoi(v), i++;
        } else if (strcmp(argv[i], "--isa") == 0) {
            isa = v, i++;
        } else if (strcmp(argv[i], "--layers") == 0) {
            h.layers = atoi(v), i++;
        } else if (strcmp(argv[i], "--reps") == 0) {
            reps = atoi(v), i++;
        } else if (n_rows < MAX_ROWS && atoi(argv[i]) > 0) {
            rows[n_rows++] = atoi(argv[i]);
        } else {
            fprintf(stderr, "unknown argument %s (see the head of tests/bench/bench_linear.c)\n", argv[i]);
            return 2;
        }
    }
    reps = reps < 1 ? 1 : reps > MAX_REPS ? MAX_REPS : reps;
    for (int t = 1; n_rows == 0 && t <= 64; t *= 2)
        rows[n_rows++] = t;
    for (int i = 0; i < n_rows; i++)
        max_rows = rows[i] > max_rows ? rows[i] : max_rows;
    ds_err err;
    if (ds_backend_open("cpu", threads, isa, &h.b, &err) != DS_OK) {
        fprintf(stderr, "%s\n", err.msg);
        return 1;
    }
    setup(&h, max_rows);
    double bandwidth =
        read_bandwidth(h.weights, h.macs * ds_dtype_size(h.dtype), threads ? threads : ds_pool_cpus());
    printf("%s, %s weights, %.1f MB; read bandwidth %.2f GB/s\n", h.b->detail, ds_dtype_name(h.dtype),
           (double)h.bytes * 1e-6, bandwidth);
    printf(" rows  median ms    best ms  spread     GB/s  share   GFLOP/s   ratio     cpu ms  GF/cpu s\n");
    double base = 0;
    for (int i = 0; i < n_rows; i++)
        measure(&h, rows[i], reps, bandwidth, &base);
    h.b->free(h.b, h.weights);
    h.b->free(h.b, h.scale);
    h.b->free(h.b, h.x);
    h.b->free(h.b, h.y);
    h.b->destroy(h.b);
    return 0;
}
