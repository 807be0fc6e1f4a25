/* test_cuda.c - what is particular to the CUDA back end: ops that the CPU tests reach otherwise (gather,
 * cell), sizes at which other kernels serve, products held back and grouped, the rounded copy of an input,
 * memory that runs out. */
#include "tests/kernel/ref.h"

static ds_backend *open_level(const char *level)
{
    ds_backend *b;
    ds_err err;
    ds_code c = ds_backend_open("cuda", 0, level, &b, &err);
    if (c == DS_EUNSUPPORTED)
        ds_test_skip(err.msg);
    CHECK_OK(c, err);
    return b;
}

static void *to_device(ds_backend *b, const void *host, size_t bytes)
{
    void *p;
    ds_err err;
    CHECK_OK(b->alloc(b, bytes, &p, &err), err);
    CHECK_EQ(b->upload(b, p, host, bytes), DS_OK);
    return p;
}

static float *floats_on(ds_backend *b, size_t n, uint64_t seed)
{
    float *host = ref_floats(n, seed), *p = to_device(b, host, n * sizeof *host);
    free(host);
    return p;
}

static float *from_device(ds_backend *b, const float *p, size_t n)
{
    float *host = malloc(n * sizeof *host);
    CHECK_EQ(b->download(b, host, p, n * sizeof *host), DS_OK);
    return host;
}

DS_TEST(cuda_opens)
{
    ds_backend *b = open_level(NULL);
    ds_err err;
    void *p;
    printf("  %s\n", b->detail);
    CHECK(strcmp(b->name, "cuda") == 0 && b->mem_total > 0 && b->mem_free <= b->mem_total);
    CHECK_EQ(b->alloc(b, (size_t)1 << 50, &p, &err), DS_ENOMEM);
    CHECK_MSG(strstr(err.msg, "GiB are free") != NULL, "%s", err.msg);
    CHECK_OK(b->alloc(b, 1000, &p, &err), err); /* it goes on after that */
    char *host = malloc(1000);
    CHECK_EQ(b->download(b, host, p, 1000), DS_OK);
    for (int i = 0; i < 1000; i++)
        CHECK_EQ(host[i], 0);
    free(host);
    b->free(b, p);
    b->destroy(b);
    CHECK_EQ(ds_backend_open("cuda", 0, "avx2", &b, &err), DS_EINVAL);
    CHECK_STR(err.field, "isa");
}

DS_TEST(cuda_gather_and_cell)
{
    enum { T = 4, C = 300, STRIDE = 310, N = 70, R = 3 };
    ds_backend *b = open_level(NULL), *cpu;
    ds_err err;
    CHECK_OK(ds_backend_open("cpu", 1, NULL, &cpu, &err), err);
    int32_t row[R] = {3, 0, 3}, *drow = to_device(b, row, sizeof row);
    float *x = ref_floats(T * C, 1), *dx = to_device(b, x, T * C * sizeof *x),
          *dy = floats_on(b, R * STRIDE, 2);
    ds_gather_args g = {dx, drow, dy, R, C, STRIDE};
    CHECK_EQ(b->gather(b, &g), DS_OK);
    float *y = from_device(b, dy, R * STRIDE);
    for (int r = 0; r < R; r++)
        for (int i = 0; i < STRIDE; i++)
            CHECK(y[r * STRIDE + i] ==
                  (i < C ? x[row[r] * C + i] : ref_random(2, (uint32_t)(r * STRIDE + i))));
    for (int kind = 0; kind < 2; kind++) {
        float *t = ref_floats(R * N * 3, 3), *e = ref_floats(R * N, 4), *s = ref_floats(R * N, 5),
              want[R * N];
        float *ds = to_device(b, s, R * N * sizeof *s);
        ds_cell_args on = {(ds_cell_kind)kind,
                           to_device(b, t, R * N * 3 * sizeof *t),
                           to_device(b, e, R * N * sizeof *e),
                           ds,
                           dy,
                           R,
                           N};
        ds_cell_args off = {(ds_cell_kind)kind, t, e, s, want, R, N};
        CHECK_EQ(b->cell(b, &on), DS_OK);
        CHECK_EQ(cpu->cell(cpu, &off), DS_OK);
        float *got = from_device(b, dy, R * N), *state = from_device(b, ds, R * N);
        for (int i = 0; i < R * N; i++)
            CHECK(fabsf(got[i] - want[i]) < 1e-6f && fabsf(state[i] - s[i]) < 1e-6f);
        free(t), free(e), free(s), free(got), free(state);
    }
    free(x), free(y);
    cpu->destroy(cpu);
    b->destroy(b);
}

/* --- large products --------------------------------------------------------------------------------------
 */

static ds_mat bf16_on(ds_backend *b, int n, int k, uint64_t seed, uint16_t **ret_host)
{
    size_t count = (size_t)n * (size_t)k;
    uint16_t *host = malloc(count * sizeof *host);
    for (size_t i = 0; i < count; i++)
        host[i] = ref_to_bf16(ref_random(seed, (uint32_t)i));
    *ret_host = host;
    return (ds_mat){to_device(b, host, count * sizeof *host), NULL, n, k, DS_BF16};
}

/* Outputs at a spread of places against float64 sums over the rounded inputs: f32 sums of K products remain.
 */
static void check_places(const uint16_t *w, const ds_linear_args *a, const float *x, const float *y,
                         const float *y0, int rounded)
{
    for (int i = 0; i < 4000; i++) {
        uint32_t r = ds_rng_u32(5, DS_RNG_INIT, 9, (uint32_t)i);
        int t = (int)(r % (uint32_t)a->T), n = (int)(r / 4096 % (uint32_t)a->w.n), k = a->w.k;
        double want = y0 ? (double)y0[(size_t)t * a->y_stride + n] : 0, mag = fabs(want);
        for (int j = 0; j < k; j++) {
            float v = x[(size_t)t * a->x_stride + j];
            double p =
                ref_from_bf16(w[(size_t)n * k + j]) * (rounded ? ref_from_bf16(ref_to_bf16(v)) : (double)v);
            want += p;
            mag += fabs(p);
        }
        double got = (double)y[(size_t)t * a->y_stride + n];
        CHECK_MSG(fabs(got - want) <= (k / 8.0 + 16) * REF_U32 * mag,
                  "T %d [%d, %d]: y[%d, %d] is %g, want %g", a->T, a->w.n, k, t, n, got, want);
    }
}

static void check_products(const char *level, int T, int n, int k)
{
    ds_backend *b = open_level(level);
    uint16_t *w;
    int x_stride = k + 8, y_stride = n + 24, fast = strstr(b->detail, "portable") == NULL;
    ds_mat m = bf16_on(b, n, k, 3, &w);
    size_t nx = (size_t)T * (size_t)x_stride, ny = (size_t)T * (size_t)y_stride;
    float *x = ref_floats(nx, 4), *y0 = ref_floats(ny, 5);
    float *dx = to_device(b, x, nx * sizeof *x), *dy = to_device(b, y0, ny * sizeof *y0);
    for (int add = 0; add < 2; add++) {
        ds_linear_args a = {dx, m, dy, T, x_stride, y_stride, add};
        CHECK_EQ(b->linear(b, &a), DS_OK);
        float *y = from_device(b, dy, ny);
        check_places(w, &a, x, y, add ? y0 : NULL, fast);
        for (int t = 0; t < T; t++) /* nothing beyond the columns */
            for (int i = n; i < y_stride; i++)
                CHECK(y[(size_t)t * y_stride + i] == y0[(size_t)t * y_stride + i]);
        memcpy(y0, y, ny * sizeof *y);
        free(y);
    }
    free(w), free(x), free(y0);
    b->destroy(b);
}

DS_TEST(cuda_large_products)
{
    static const int rows[] = {1, 3, 8, 9, 16, 17, 32, 33, 64, 65, 128, 129, 300};
    for (int i = 0; i < 13; i++) {
        check_products("auto", rows[i], 1000 + 64 * (i % 3), 1024);
        check_products("invariant", rows[i], 4096, 512 + 8 * i);
    }
    check_products("auto", 5, 40, 12288);
    check_products("portable", 5, 700, 1536);
}

/* One row in every batch size has the same bits on "invariant", and up to 64 rows on "auto". */
DS_TEST(cuda_rows_do_not_depend_on_each_other)
{
    enum { T = 200, N = 1536, K = 2048 };
    static const int sizes[] = {1, 2, 8, 9, 16, 31, 33, 64, 65, 100, 128, 129, 200};
    for (int l = 0; l < 2; l++) {
        ds_backend *b = open_level(l ? "invariant" : "auto");
        uint16_t *w;
        ds_mat m = bf16_on(b, N, K, 3, &w);
        float *x = floats_on(b, T * K, 4), *y = floats_on(b, T * N, 5), *first = NULL;
        for (int i = 0; i < (l ? 13 : 8); i++) {
            ds_linear_args a = {x, m, y, sizes[i], K, N, 0};
            CHECK_EQ(b->linear(b, &a), DS_OK);
            float *got = from_device(b, y, (size_t)sizes[i] * N);
            if (i == 0)
                first = got;
            else
                CHECK_MSG(memcmp(got, first, N * sizeof *got) == 0, "%d rows", sizes[i]);
            if (i)
                free(got);
        }
        free(first);
        free(w);
        b->destroy(b);
    }
}

/* q, k, v in one launch, into columns of one row; then the input changes, by an op and by an upload, and is
 * read again. */
DS_TEST(cuda_groups_and_rounded_inputs)
{
    enum { T = 6, K = 512, N0 = 640, N1 = 130, N2 = 128, ROW = N0 + N1 + N2 };
    static const int ns[] = {N0, N1, N2};
    ds_backend *b = open_level(NULL);
    uint16_t *w[3], ones[K];
    ds_mat m[3];
    float *y = floats_on(b, T * ROW, 2), *x = floats_on(b, T * K, 3), *normed = floats_on(b, T * K, 4);
    for (int i = 0; i < K; i++)
        ones[i] = ref_to_bf16(1);
    ds_rmsnorm_args norm = {x, {to_device(b, ones, sizeof ones), K, DS_BF16}, normed, 1e-6f, T};
    for (int i = 0; i < 3; i++)
        m[i] = bf16_on(b, ns[i], K, 20 + (uint64_t)i, &w[i]);
    CHECK_EQ(b->rmsnorm(b, &norm), DS_OK);
    for (int round = 0; round < 3; round++) {
        if (round == 1) { /* an upload to the same buffer */
            float *other = ref_floats(T * K, 99);
            CHECK_EQ(b->upload(b, normed, other, T * K * sizeof *other), DS_OK);
            free(other);
        }
        if (round == 2) { /* a product into the same buffer */
            ds_linear_args a = {x, m[0], normed, 1, K, N0, 0};
            CHECK_EQ(b->linear(b, &a), DS_OK);
        }
        for (int i = 0, at = 0; i < 3; at += ns[i++]) {
            ds_linear_args a = {normed, m[i], y + at, T, K, ROW, 0};
            CHECK_EQ(b->linear(b, &a), DS_OK);
        }
        float *got = from_device(b, y, T * ROW), *in = from_device(b, normed, T * K);
        for (int i = 0, at = 0; i < 3; at += ns[i++]) {
            ds_linear_args a = {in, m[i], got + at, T, K, ROW, 0};
            check_places(w[i], &a, in, got + at, NULL, strstr(b->detail, "portable") == NULL);
        }
        free(got);
        free(in);
    }
    for (int i = 0; i < 3; i++)
        free(w[i]);
    b->destroy(b);
}

/* --- long contexts ----------------------------------------------------------------------------------------
 */

/* Decode and verify rows at the end of long sequences, against the CPU; pages out of order. */
static void check_long(const char *level, int D, int H, int G, int rows)
{
    enum { PAGE = 16, LONG = 5000, S = 2 };
    ds_backend *b = open_level(level), *cpu;
    ds_err err;
    CHECK_OK(ds_backend_open("cpu", 2, NULL, &cpu, &err), err);
    int stride = LONG / PAGE + 1, pages = S * stride, len[S] = {LONG, 1500};
    size_t n = (size_t)pages * PAGE * (size_t)G * (size_t)D;
    uint16_t *k = malloc(n * 2), *v = malloc(n * 2);
    int32_t *table = malloc(sizeof *table * (size_t)pages), token[256] = {0}, pos[256], slot[256];
    for (int i = 0; i < pages; i++)
        table[i] = (i * 7 + 5) % pages;
    for (size_t i = 0; i < n; i++) {
        k[i] = ref_to_bf16(3 * ref_random(1, (uint32_t)i));
        v[i] = ref_to_bf16(ref_random(2, (uint32_t)i));
    }
    for (int t = 0; t < S * rows; t++) {
        slot[t] = t / rows;
        pos[t] = len[t / rows] - rows + t % rows;
    }
    int T = S * rows;
    size_t width = (size_t)H * (size_t)D;
    float *q = ref_floats((size_t)T * width, 3), *want = malloc((size_t)T * width * sizeof *want);
    ds_attn_args a = {{T, token, pos, slot, table, stride, PAGE},
                      q,
                      (int)width,
                      {k, v, DS_BF16},
                      want,
                      (float)(1 / sqrt((double)D)),
                      H,
                      G,
                      D};
    CHECK_EQ(cpu->attention(cpu, &a), DS_OK);
    size_t ids = (size_t)T * sizeof *pos;
    a.rows = (ds_rows){T,
                       to_device(b, token, ids),
                       to_device(b, pos, ids),
                       to_device(b, slot, ids),
                       to_device(b, table, sizeof *table * (size_t)pages),
                       stride,
                       PAGE};
    a.q = to_device(b, q, (size_t)T * width * sizeof *q);
    a.kv = (ds_kv_layer){to_device(b, k, n * 2), to_device(b, v, n * 2), DS_BF16};
    a.out = floats_on(b, (size_t)T * width, 4);
    CHECK_EQ(b->attention(b, &a), DS_OK);
    float *got = from_device(b, a.out, (size_t)T * width);
    double worst = 0;
    for (size_t i = 0; i < (size_t)T * width; i++)
        worst = fmax(worst, isfinite(got[i]) ? fabs((double)got[i] - (double)want[i]) : INFINITY);
    printf("  %s H %d G %d D %d, %d rows: within %.2e\n", level, H, G, D, rows, worst);
    /* split in head and rest: 2^-17 of each factor; f32 sums of both back ends. Many rows (auto) round once:
     * 2^-9. */
    double bound = T > 64 && strcmp(level, "auto") == 0 ? 2e-2 : 2e-4;
    CHECK(worst < bound);
    free(k), free(v), free(table), free(q), free(want), free(got);
    cpu->destroy(cpu);
    b->destroy(b);
}

DS_TEST(cuda_long_contexts)
{
    static const char *const levels[] = {"auto", "invariant", "portable"};
    for (int i = 0; i < 3; i++) {
        check_long(levels[i], 128, 32, 8, 1);
        check_long(levels[i], 128, 8, 1, 7);
        check_long(levels[i], 64, 15, 3, 5);
        check_long(levels[i], 128, 16, 8, 60);
    }
}
