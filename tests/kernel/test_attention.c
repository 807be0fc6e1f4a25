/* test_attention.c - qkv (norm, rope, cache write) and attention of each level against float64; a row's bits
 * do not depend on chunking, on other sequences or on threads; garbage in unused slots of a page never leaks.
 *
 * Bound: |scores| carry an error of c u sum|q k| scale, so weights are off by that factor relatively; the
 * output, a convex combination of values, by (error of the scores + blocks + keys u) max|v|. */
#include "tests/kernel/ref.h"

typedef struct world { /* a cache with a few sequences in shuffled pages */
    ds_backend *b;
    int S, stride, H, G, D;
    int len[8];
    int32_t *table;
    ds_kv_layer kv;
    double *k, *v; /* exact values [S, stride * 16, G, D] */
} world;

enum { PAGE = 16 };

static size_t kv_at(const world *w, int slot, int pos, int g, int j)
{
    size_t page = (size_t)w->table[slot * w->stride + pos / PAGE];
    return ((page * (size_t)w->G + (size_t)g) * PAGE + (size_t)(pos % PAGE)) * (size_t)w->D + (size_t)j;
}

static size_t exact_at(const world *w, int slot, int pos, int g, int j)
{
    return (((size_t)slot * (size_t)w->stride * PAGE + (size_t)pos) * (size_t)w->G + (size_t)g) *
               (size_t)w->D +
           (size_t)j;
}

static double put(void *base, ds_dtype t, size_t at, float x)
{
    if (t == DS_BF16) {
        ((uint16_t *)base)[at] = ref_to_bf16(x);
        return ref_from_bf16(ref_to_bf16(x));
    }
    ((float *)base)[at] = x;
    return (double)x;
}

/* Pages in shuffled order, every slot not written filled with NaN. */
static world world_make(ds_backend *b, ds_dtype t, int H, int G, int D, int S, const int *len)
{
    world w = {.b = b, .S = S, .H = H, .G = G, .D = D, .kv.dtype = t};
    for (int s = 0; s < S; s++) {
        w.len[s] = len[s];
        w.stride = len[s] / PAGE + 1 > w.stride ? len[s] / PAGE + 1 : w.stride;
    }
    int pages = S * w.stride;
    w.table = malloc((size_t)pages * sizeof *w.table);
    for (int p = 0; p < pages; p++)
        w.table[p] = (p * 11 + 3) % pages; /* 11 is prime to the page counts used here */
    size_t n = (size_t)pages * PAGE * (size_t)G * (size_t)D;
    ds_err err;
    CHECK_OK(b->alloc(b, n * ds_dtype_size(t), &w.kv.k, &err), err);
    CHECK_OK(b->alloc(b, n * ds_dtype_size(t), &w.kv.v, &err), err);
    memset(w.kv.k, 0xff, n * ds_dtype_size(t));
    memset(w.kv.v, 0xff, n * ds_dtype_size(t));
    w.k = malloc(n * sizeof *w.k);
    w.v = malloc(n * sizeof *w.v);
    for (int s = 0; s < S; s++)
        for (int p = 0; p < len[s]; p++)
            for (int i = 0; i < G * D; i++) {
                uint32_t id = (uint32_t)(((s * 4096 + p) * G * D) + i);
                w.k[exact_at(&w, s, p, i / D, i % D)] =
                    put(w.kv.k, t, kv_at(&w, s, p, i / D, i % D), 2 * ref_random(31, id));
                w.v[exact_at(&w, s, p, i / D, i % D)] =
                    put(w.kv.v, t, kv_at(&w, s, p, i / D, i % D), ref_random(32, id));
            }
    return w;
}

static void world_free(world *w)
{
    w->b->free(w->b, w->kv.k);
    w->b->free(w->b, w->kv.v);
    free(w->table);
    free(w->k);
    free(w->v);
}

/* One query in float64. */
static void ref_attention(const world *w, const float *q, int slot, int pos, int g, double scale, double *out)
{
    double *score = malloc((size_t)(pos + 1) * sizeof *score), most = -INFINITY, sum = 0;
    for (int p = 0; p <= pos; p++) {
        score[p] = 0;
        for (int j = 0; j < w->D; j++)
            score[p] += (double)q[j] * w->k[exact_at(w, slot, p, g, j)];
        score[p] *= scale;
        most = fmax(most, score[p]);
    }
    for (int j = 0; j < w->D; j++)
        out[j] = 0;
    for (int p = 0; p <= pos; p++) {
        double e = exp(score[p] - most);
        sum += e;
        for (int j = 0; j < w->D; j++)
            out[j] += e * w->v[exact_at(w, slot, p, g, j)];
    }
    for (int j = 0; j < w->D; j++)
        out[j] /= sum;
    free(score);
}

/* |q k| <= 2 each: sum|q k| <= 2 D, times scale = 2 sqrt(D), chain D/4 + 8, doubled for portable, both signs
 * of the softmax quotient; exp 2 ulp; sums over keys in blocks. max|v| = 1. */
static double attention_bound(int d, int keys)
{
    return (2 * 2 * (d / 4.0 + 8) * 2 * sqrt(d) + 2 * (keys / 16.0 + 16) + 32) * REF_U32;
}

/* Rows (slot, first..first+n) one after the other into out [n, H*D]. */
static void attend(world *w, ds_backend *b, const float *q, const int32_t *slot, const int32_t *pos, int T,
                   float *out)
{
    int32_t token[256] = {0};
    ds_attn_args a = {{T, token, pos, slot, w->table, w->stride, PAGE},
                      q,
                      w->H * w->D + 5,
                      w->kv,
                      out,
                      (float)(1 / sqrt((double)w->D)),
                      w->H,
                      w->G,
                      w->D};
    CHECK_EQ(b->attention(b, &a), DS_OK);
}

static int fill_rows(const world *w, int32_t *slot, int32_t *pos, int max)
{
    int T = 0;
    for (int s = 0; s < w->S; s++)
        for (int p = s % 2 ? 0 : w->len[s] > 21 ? w->len[s] - 21 : 0; p < w->len[s] && T < max; p++, T++) {
            slot[T] = s;
            pos[T] = p;
        }
    return T;
}

static int count_bad(const world *w, const float *q, const int32_t *slot, const int32_t *pos, int T,
                     const float *out)
{
    int bad = 0, group = w->H / w->G;
    double want[512];
    for (int t = 0; t < T; t++)
        for (int h = 0; h < w->H; h++) {
            const float *row = q + (size_t)t * (size_t)(w->H * w->D + 5) + h * w->D;
            ref_attention(w, row, slot[t], pos[t], h / group, (double)(float)(1 / sqrt((double)w->D)), want);
            for (int j = 0; j < w->D; j++)
                bad += !(fabs((double)out[((size_t)t * w->H + h) * w->D + j] - want[j]) <=
                         attention_bound(w->D, pos[t] + 1));
        }
    return bad;
}

static const int lens[] = {37, 70, 1, 16, 100};

static void check_shape(const char *isa, ds_dtype t, int H, int G, int D)
{
    ds_backend *b = ref_open(isa, 1), *two = ref_open(isa, 2);
    world w = world_make(b, t, H, G, D, 5, lens);
    int32_t slot[256], pos[256];
    int T = fill_rows(&w, slot, pos, 256), width = H * D;
    float *q = ref_floats((size_t)T * (size_t)(width + 5), 41);
    float *out = calloc((size_t)T * width, sizeof *out), *again = calloc((size_t)T * width, sizeof *out);
    attend(&w, b, q, slot, pos, T, out);
    CHECK_MSG(count_bad(&w, q, slot, pos, T, out) == 0, "%s H %d G %d D %d", isa, H, G, D);
    for (int trial = 0; trial < 12; trial++) { /* any split, any threads: same bits */
        int len;
        memset(again, 0, (size_t)T * width * sizeof *again);
        for (int at = 0; at < T; at += len) {
            len = trial == 0 ? 1 : 1 + (int)(ds_rng_u32(trial, DS_RNG_INIT, 2, (uint32_t)at) % 25);
            len = len < T - at ? len : T - at;
            attend(&w, trial & 1 ? two : b, q + (size_t)at * (size_t)(width + 5), slot + at, pos + at, len,
                   again + (size_t)at * width);
        }
        CHECK_MSG(memcmp(out, again, (size_t)T * width * sizeof *out) == 0, "%s H %d G %d D %d trial %d", isa,
                  H, G, D, trial);
    }
    /* Planted: one key of the reference changed. */
    w.k[exact_at(&w, slot[0], 0, 0, 0)] += 0.25;
    CHECK(count_bad(&w, q, slot, pos, T, out) > 0);
    free(q);
    free(out);
    free(again);
    world_free(&w);
    b->destroy(b);
    two->destroy(two);
}

/* qkv: float64 norm and rope; K and V land in their slots and nowhere else. */
static void check_qkv(const char *isa, ds_dtype t, ds_dtype norm, int H, int G, int D)
{
    ds_backend *b = ref_open(isa, 2);
    world w = world_make(b, t, H, G, D, 5, lens);
    int32_t slot[256], pos[256], token[256] = {0};
    int T = fill_rows(&w, slot, pos, 256), heads = H + 2 * G, half = D / 2;
    float *x = ref_floats((size_t)T * heads * D, 51), *x0 = ref_floats((size_t)T * heads * D, 51);
    float *cosines = ref_floats((size_t)100 * half, 52), *sines = ref_floats((size_t)100 * half, 53);
    ref_mat qw = ref_mat_make(1, D, norm, 54), kw = ref_mat_make(1, D, norm, 55);
    ds_vec none = {NULL, 0, DS_F32}, qn = {qw.m.data, D, norm}, kn = {kw.m.data, D, norm};
    int normed = D % 4 == 0;
    ds_qkv_args a = {{T, token, pos, slot, w.table, w.stride, PAGE},
                     x,
                     normed ? qn : none,
                     normed ? kn : none,
                     {cosines, sines, 100},
                     w.kv,
                     1e-6f,
                     H,
                     G,
                     D};
    CHECK_EQ(b->qkv(b, &a), DS_OK);
    for (int row = 0; row < T; row++)
        for (int h = 0; h < heads; h++) {
            const float *in = x0 + ((size_t)row * heads + h) * D, *c = cosines + pos[row] * half,
                        *s = sines + pos[row] * half;
            double ss = 0, y[512];
            for (int j = 0; j < D; j++)
                ss += (double)in[j] * (double)in[j];
            for (int j = 0; j < D; j++)
                y[j] = (double)in[j] *
                       (normed && h < H + G ? (h < H ? qw : kw).exact[j] / sqrt(ss / D + 1e-6) : 1);
            for (int j = 0; j < D; j++) {
                int o = j < half ? j + half : j - half;
                double want = h >= H + G ? y[j]
                                         : y[j] * (double)c[j % half] +
                                               (j < half ? -1 : 1) * y[o] * (double)s[j % half];
                double tol = (D / 8.0 + 16) * REF_U32 * (fabs(y[j]) + fabs(y[o])) + 1e-30, got;
                if (h < H) {
                    got = (double)x[((size_t)row * heads + h) * D + j];
                } else {
                    const void *base = h < H + G ? w.kv.k : w.kv.v;
                    size_t at = kv_at(&w, slot[row], pos[row], (h - H) % G, j);
                    got = t == DS_BF16 ? ref_from_bf16(((const uint16_t *)base)[at])
                                       : (double)((const float *)base)[at];
                    tol += t == DS_BF16 ? fabs(want) * REF_UBF16 * 1.001 : 0;
                }
                CHECK_MSG(fabs(got - want) <= tol, "row %d head %d j %d: %g want %g", row, h, j, got, want);
            }
        }
    free(x);
    free(x0);
    free(cosines);
    free(sines);
    ref_mat_free(&qw);
    ref_mat_free(&kw);
    world_free(&w);
    b->destroy(b);
}

static void check_level(const char *isa, ds_dtype t)
{
    check_shape(isa, t, 4, 2, 64);
    check_shape(isa, t, 16, 8, 128);
    check_shape(isa, t, 3, 1, 80);
    check_shape(isa, t, 5, 5, 6);
    check_shape(isa, t, 8, 1, 256);
    check_shape(isa, t, 14, 2, 34);
}

#define LEVEL(isa)                                     \
    DS_TEST(attention_##isa##_f32)                     \
    {                                                  \
        check_level(#isa, DS_F32);                     \
    }                                                  \
    DS_TEST(attention_##isa##_bf16)                    \
    {                                                  \
        check_level(#isa, DS_BF16);                    \
    }                                                  \
    DS_TEST(qkv_##isa)                                 \
    {                                                  \
        check_qkv(#isa, DS_F32, DS_F32, 4, 2, 64);     \
        check_qkv(#isa, DS_BF16, DS_BF16, 16, 8, 128); \
        check_qkv(#isa, DS_F32, DS_F16, 3, 1, 20);     \
        check_qkv(#isa, DS_BF16, DS_F32, 2, 2, 6);     \
    }
LEVEL(portable)
LEVEL(avx2)
LEVEL(avx512)
LEVEL(avx512bf16)
LEVEL(cuda_auto)
LEVEL(cuda_invariant)
LEVEL(cuda_portable)
