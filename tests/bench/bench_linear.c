/* bench_linear.c - what one forward pass costs in matrix products alone, for the shapes of Qwen3-0.6B, of a
 * small model of 32 M parameters (demo) or of a tiny one (8 M), beside the machine's read bandwidth and peak
 * of multiply- adds of the same moment. Not a test: nothing here can fail.
 *
 *   bench_linear [--dtype bf16|f16|f32|i8] [--threads N] [--isa NAME] [--shape qwen3-0.6b|demo|tiny]
 * [--layers N]
 *                [--reps N] [rows ...]
 *
 * A round measures the bandwidth, the peak and each row count once; so a slow spell of the machine touches
 * all of them, and shares and ratios are medians over rounds. Each line: rows, median and best ms, spread
 * (p90 / p10), weight GB/s (median) and its share of the bandwidth, GFLOP/s (median) and its share of the
 * peak, time relative to the first line's, CPU ms of all threads (mean: the system
 * counts it in ticks) and GFLOP per CPU second. */
#include "kernels/cpu/pool.h"
#include "kernels/kernels.h"
#include "tests/bench/peak.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum { MAX_REPS = 200, MAX_ROWS = 32, WIDE = 8192 };

typedef struct product {
    int n, k, per_layer; /* per_layer 0: once (the head) */
} product;

typedef struct shape {
    const char *name;
    int layers;
    product p[5];
} shape;

static const shape shapes[] = {
    {"qwen3-0.6b",
     28,
     {{4096, 1024, 1}, {1024, 2048, 1}, {6144, 1024, 1}, {1024, 3072, 1}, {151936, 1024, 0}}},
    {"demo", 10, {{1024, 512, 1}, {512, 512, 1}, {2816, 512, 1}, {512, 1408, 1}, {4096, 512, 0}}},
    {"tiny", 8, {{512, 256, 1}, {256, 256, 1}, {1536, 256, 1}, {256, 768, 1}, {8192, 256, 0}}},
};

static int by_value(const void *a, const void *b)
{
    const double *p = a, *q = b;
    return *p < *q ? -1 : *p > *q;
}

static double quantile(const double *v, int n, double q)
{
    double s[MAX_REPS];
    memcpy(s, v, (size_t)n * sizeof *s);
    qsort(s, (size_t)n, sizeof *s, by_value);
    return s[(int)(q * (n - 1) + 0.5)];
}

typedef struct bench {
    ds_backend *b;
    ds_dtype dtype;
    const product *products;
    int layers;
    ds_pool *pool; /* of the machine's own figures */
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

typedef struct line {
    int rows;
    double ms[MAX_REPS], cpu_ms[MAX_REPS], share[MAX_REPS], flop_share[MAX_REPS], ratio[MAX_REPS];
} line;

static void measure(bench *h, line *l, const line *first, int rep, double bandwidth, double peak)
{
    double t = peak_now_ms(CLOCK_MONOTONIC), c = peak_now_ms(CLOCK_PROCESS_CPUTIME_ID);
    pass(h, l->rows);
    l->ms[rep] = peak_now_ms(CLOCK_MONOTONIC) - t;
    l->cpu_ms[rep] = peak_now_ms(CLOCK_PROCESS_CPUTIME_ID) - c;
    l->share[rep] = (double)h->bytes / l->ms[rep] * 1e-6 / bandwidth;
    l->flop_share[rep] = 2e-6 * (double)h->macs * l->rows / l->ms[rep] / peak;
    l->ratio[rep] = l->ms[rep] / first->ms[rep];
}

static void print_line(const bench *h, const line *l, int reps)
{
    double ms = quantile(l->ms, reps, 0.5), flop = 2e-6 * (double)h->macs * l->rows, cpu = 0;
    for (int i = 0; i < reps; i++)
        cpu += l->cpu_ms[i] / reps;
    printf("%5d %10.3f %10.3f %7.2f %8.2f %6.1f%% %9.1f %6.1f%% %7.2f %10.3f %8.1f\n", l->rows, ms,
           quantile(l->ms, reps, 0), quantile(l->ms, reps, 0.9) / quantile(l->ms, reps, 0.1),
           (double)h->bytes / ms * 1e-6, 100 * quantile(l->share, reps, 0.5), flop / ms,
           100 * quantile(l->flop_share, reps, 0.5), quantile(l->ratio, reps, 0.5), cpu, flop / cpu);
}

static void run(bench *h, line *lines, int n, int reps)
{
    double bandwidth[MAX_REPS], peak[MAX_REPS];
    peak_fma fma = peak_of(h->b->detail, h->dtype);
    size_t bytes = h->macs * ds_dtype_size(h->dtype);
    for (int i = 0; i < n; i++)
        pass(h, lines[i].rows);
    for (int rep = 0; rep < reps; rep++) {
        bandwidth[rep] = peak_read(h->pool, h->weights, bytes);
        peak[rep] = peak_flops(h->pool, fma);
        for (int i = 0; i < n; i++)
            measure(h, &lines[i], &lines[0], rep, bandwidth[rep], peak[rep]);
    }
    printf("%s, %s weights, %.1f MB; %d rounds; read bandwidth %.2f GB/s (best %.2f); peak %.1f GFLOP/s "
           "(best %.1f)\n",
           h->b->detail, ds_dtype_name(h->dtype), (double)h->bytes * 1e-6, reps,
           quantile(bandwidth, reps, 0.5), quantile(bandwidth, reps, 1), quantile(peak, reps, 0.5),
           quantile(peak, reps, 1));
    printf(" rows  median ms    best ms  spread     GB/s   share   GFLOP/s  share   ratio     cpu ms GF/cpu "
           "s\n");
    for (int i = 0; i < n; i++)
        print_line(h, &lines[i], reps);
}

typedef struct options {
    int threads, reps, n_rows;
    const char *isa;
    line *lines;
} options;

static int parse(int argc, char **argv, bench *h, options *o)
{
    static const char *const names[] = {"f32", "bf16", "f16", "i8"};
    const shape *s = &shapes[0];
    int layers = 0, ok = 1;
    for (int i = 1; i < argc && ok; i++) {
        const char *v = i + 1 < argc ? argv[i + 1] : "";
        if (strcmp(argv[i], "--shape") == 0) {
            ok = 0;
            for (int k = 0; k < 3; k++)
                if (strcmp(v, shapes[k].name) == 0)
                    s = &shapes[k], ok = 1;
            i++;
        } else if (strcmp(argv[i], "--dtype") == 0) {
            ok = 0;
            for (int t = 0; t < 4; t++)
                if (strcmp(v, names[t]) == 0)
                    h->dtype = (ds_dtype)t, ok = 1;
            i++;
        } else if (strcmp(argv[i], "--threads") == 0) {
            o->threads = atoi(v), i++;
        } else if (strcmp(argv[i], "--isa") == 0) {
            o->isa = v, i++;
        } else if (strcmp(argv[i], "--layers") == 0) {
            layers = atoi(v), i++;
        } else if (strcmp(argv[i], "--reps") == 0) {
            o->reps = atoi(v), i++;
        } else if (o->n_rows < MAX_ROWS && atoi(argv[i]) > 0) {
            o->lines[o->n_rows++].rows = atoi(argv[i]);
        } else {
            ok = 0;
        }
    }
    h->products = s->p;
    h->layers = layers ? layers : s->layers;
    o->reps = o->reps < 1 ? 1 : o->reps > MAX_REPS ? MAX_REPS : o->reps;
    if (o->n_rows == 0)
        for (int t = 1; t <= 64; t *= 2)
            o->lines[o->n_rows++].rows = t;
    return ok;
}

int main(int argc, char **argv)
{
    static line lines[MAX_ROWS];
    bench h = {.dtype = DS_BF16};
    options o = {.reps = 7, .lines = lines};
    if (!parse(argc, argv, &h, &o)) {
        fprintf(stderr, "unknown argument (see the head of tests/bench/bench_linear.c)\n");
        return 2;
    }
    int max_rows = 1;
    for (int i = 0; i < o.n_rows; i++)
        max_rows = lines[i].rows > max_rows ? lines[i].rows : max_rows;
    ds_err err;
    int threads = o.threads ? o.threads : ds_pool_cpus();
    if (ds_backend_open("cpu", threads, o.isa, &h.b, &err) != DS_OK ||
        ds_pool_create(threads, &h.pool, &err) != DS_OK) {
        fprintf(stderr, "%s\n", err.msg);
        return 1;
    }
    setup(&h, max_rows);
    run(&h, lines, o.n_rows, o.reps);
    h.b->free(h.b, h.weights);
    h.b->free(h.b, h.scale);
    h.b->free(h.b, h.x);
    h.b->free(h.b, h.y);
    ds_pool_destroy(h.pool);
    h.b->destroy(h.b);
    return 0;
}
