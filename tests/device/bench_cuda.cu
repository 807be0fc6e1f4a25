/* bench_cuda.cu - times the CUDA back end on random weights of a named shape made on the device; prints
 * tables.
 *
 *   bench_cuda [ceilings] [linear] [attention] [step] [prefill] [8b|4b|0.6b]   (all parts and 8b, 4b when
 * none is named)
 *
 * Times are of CUDA graph replays between events, the median of several; bytes are what a step must read
 * once. The two ceilings come first and every share refers to them: a device-to-device copy (bytes read +
 * written) and a bf16 matrix product of 8192^3 with f32 results. */
#include "kernels/cuda/internal.h"

#include <algorithm>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <vector>

extern "C" {
#include "worker/model/qwen3.h"
}

#define CUDA(expr)                                                                                 \
    do {                                                                                           \
        cudaError_t e_ = (expr);                                                                   \
        if (e_ != cudaSuccess) {                                                                   \
            fprintf(stderr, "%s:%d: %s: %s\n", __FILE__, __LINE__, #expr, cudaGetErrorString(e_)); \
            exit(1);                                                                               \
        }                                                                                          \
    } while (0)
#define OK(expr)                                                                            \
    do {                                                                                    \
        ds_code c_ = (expr);                                                                \
        if (c_ != DS_OK) {                                                                  \
            fprintf(stderr, "%s:%d: %s: %s\n", __FILE__, __LINE__, #expr, ds_err_name(c_)); \
            exit(1);                                                                        \
        }                                                                                   \
    } while (0)

typedef struct shape {
    const char *name;
    int layers, hidden, heads, kv_heads, head_dim, mlp, vocab;
} shape;

static const shape SHAPES[] = {{"8b", 36, 4096, 32, 8, 128, 12288, 151936},
                               {"4b", 36, 2560, 32, 8, 128, 9728, 151936},
                               {"0.6b", 28, 1024, 16, 8, 128, 3072, 151936}};

static ds_backend *g_b;
static ds_cuda *g_c;
static double g_copy, g_matmul; /* bytes/s, flop/s */
static std::vector<uint16_t> g_random;
enum { RANDOM = 32 << 20, WARM_MS = 250 };

static void *device(size_t bytes)
{
    void *p;
    ds_err err;
    if (g_b->alloc(g_b, bytes, &p, &err) != DS_OK) {
        fprintf(stderr, "%s\n", err.msg);
        exit(1);
    }
    return p;
}

/* bf16 values of about N(0, 0.02)-like spread; each matrix starts elsewhere in the pattern. */
static void *random_bf16(size_t n)
{
    static size_t from;
    char *p = (char *)device(2 * n);
    if (g_random.empty()) {
        g_random.resize(RANDOM);
        uint32_t s = 12345;
        for (size_t i = 0; i < RANDOM; i++) {
            s = s * 1664525u + 1013904223u;
            float f = ((float)(s >> 8) * 0x1p-24f - 0.5f) * 0.07f;
            uint32_t u;
            memcpy(&u, &f, 4);
            g_random[i] = (uint16_t)(u >> 16);
        }
    }
    for (size_t at = 0; at < n;) {
        size_t start = from % RANDOM, len = std::min(n - at, (size_t)RANDOM - start);
        OK(g_b->upload(g_b, p + 2 * at, g_random.data() + start, 2 * len));
        at += len;
        from = from + len + 7777;
    }
    return p;
}

static ds_mat random_mat(int n, int k)
{
    return {random_bf16((size_t)n * (size_t)k), NULL, n, k, DS_BF16};
}

static ds_vec ones(int n)
{
    std::vector<uint16_t> h((size_t)n, 0x3f80);
    void *p = device(2 * (size_t)n);
    OK(g_b->upload(g_b, p, h.data(), 2 * (size_t)n));
    return {p, n, DS_BF16};
}

/* Median milliseconds of one replay of what `body` enqueues. */
template <typename F> static double time_graph(F body, int reps = 9, int inner = 1)
{
    cudaGraph_t graph;
    cudaGraphExec_t exec;
    cudaEvent_t a, z;
    body(); /* warm: scratch, maps, algorithms */
    OK(g_b->sync(g_b));
    CUDA(cudaStreamBeginCapture(g_c->stream, cudaStreamCaptureModeRelaxed));
    for (int i = 0; i < inner; i++)
        body();
    OK(ds_cuda_flush(g_c));
    CUDA(cudaStreamEndCapture(g_c->stream, &graph));
    CUDA(cudaGraphInstantiate(&exec, graph, 0));
    CUDA(cudaEventCreate(&a));
    CUDA(cudaEventCreate(&z));
    std::vector<double> ms;
    double spent = 0; /* clocks rise with load: a quarter of a second of it before anything counts */
    for (int i = 0; i < reps;) {
        float t;
        CUDA(cudaEventRecord(a, g_c->stream));
        CUDA(cudaGraphLaunch(exec, g_c->stream));
        CUDA(cudaEventRecord(z, g_c->stream));
        CUDA(cudaEventSynchronize(z));
        CUDA(cudaEventElapsedTime(&t, a, z));
        spent += (double)t;
        if (spent < WARM_MS)
            continue;
        ms.push_back((double)t / inner);
        i++;
    }
    CUDA(cudaGraphExecDestroy(exec));
    CUDA(cudaGraphDestroy(graph));
    CUDA(cudaEventDestroy(a));
    CUDA(cudaEventDestroy(z));
    std::sort(ms.begin(), ms.end());
    return ms[ms.size() / 2];
}

/* --- ceilings --------------------------------------------------------------------------------------------
 */

__global__ static void copy_kernel(const uint4 *a, uint4 *b, size_t n)
{
    const size_t at = (size_t)blockIdx.x * (4 * blockDim.x) + threadIdx.x;
    uint4 v[4];
#pragma unroll
    for (int i = 0; i < 4; i++)
        if (at + i * blockDim.x < n)
            v[i] = __ldcs(a + at + i * blockDim.x);
#pragma unroll
    for (int i = 0; i < 4; i++)
        if (at + i * blockDim.x < n)
            __stcs(b + at + i * blockDim.x, v[i]);
}

/* The better of the driver's copy and a plain kernel's. */
static void ceilings(void)
{
    const size_t bytes = (size_t)2 << 30, pieces = bytes / sizeof(uint4);
    void *a = random_bf16(bytes / 2), *b = device(bytes);
    double driver = 1e30, ms;
    cudaEvent_t from, to;
    CUDA(cudaEventCreate(&from));
    CUDA(cudaEventCreate(&to));
    for (int i = 0; i < 6; i++) {
        float t;
        CUDA(cudaEventRecord(from, g_c->stream));
        CUDA(cudaMemcpyAsync(b, a, bytes, cudaMemcpyDeviceToDevice, g_c->stream));
        CUDA(cudaEventRecord(to, g_c->stream));
        CUDA(cudaEventSynchronize(to));
        CUDA(cudaEventElapsedTime(&t, from, to));
        driver = i ? std::min(driver, (double)t) : driver;
    }
    ms = time_graph([&] {
        copy_kernel<<<(unsigned)((pieces + 1023) / 1024), 256, 0, g_c->stream>>>((uint4 *)a, (uint4 *)b,
                                                                                 pieces);
    });
    printf("\ncopy: driver %.3f, kernel %.3f TB/s", 2e-9 * (double)bytes / driver, 2e-9 * (double)bytes / ms);
    g_copy = 2 * (double)bytes / (std::min(ms, driver) * 1e-3);
    g_b->free(g_b, a);
    g_b->free(g_b, b);
    const int n = 8192;
    ds_mat w = random_mat(n, n);
    void *x16 = random_bf16((size_t)n * n);
    float *x = (float *)device((size_t)n * n * 4), *y = (float *)device((size_t)n * n * 4);
    OK(ds_cuda_room(g_c, &g_c->xb, (size_t)n * n * 2));
    CUDA(cudaMemcpyAsync(g_c->xb.p, x16, (size_t)n * n * 2, cudaMemcpyDeviceToDevice, g_c->stream));
    g_matmul = 0;
    if (g_c->blas) {
        ds_linear_args p = {x, w, y, n, n, n, 0};
        ms = time_graph([&] { OK(ds_cuda_blas_linear(g_c, &p)); });
        g_matmul = 2.0 * n * n * n / (ms * 1e-3);
    }
    g_b->free(g_b, (void *)(uintptr_t)w.data);
    g_b->free(g_b, x16);
    g_b->free(g_b, x);
    g_b->free(g_b, y);
    printf("\n%s\ncopy %.3f TB/s (read + written), bf16 product 8192^3 %.0f TFLOP/s%s\n", g_b->detail,
           g_copy / 1e12, g_matmul / 1e12, g_c->blas ? "" : " (no cuBLASLt)");
}

/* --- single products --------------------------------------------------------------------------------------
 */

static void linears(const shape *s)
{
    const struct {
        const char *name;
        int n, k;
    } all[] = {{"qkv", (s->heads + 2 * s->kv_heads) * s->head_dim, s->hidden},
               {"o", s->hidden, s->heads * s->head_dim},
               {"gate+up", 2 * s->mlp, s->hidden},
               {"down", s->hidden, s->mlp},
               {"head", s->vocab, s->hidden}};
    static const int rows[] = {1, 8, 16, 32, 64, 128};
    printf(
        "\n%s: one product in a chain of them, microseconds (share of copy); 128 and 256 rows: cuBLASLt\n%9s",
        s->name, "rows");
    for (auto &one : all)
        printf(" %17s", one.name);
    printf("\n");
    std::vector<std::vector<ds_mat>> w;
    for (auto &one : all) { /* enough copies to pass the L2 several times */
        size_t bytes = 2 * (size_t)one.n * (size_t)one.k,
               copies = std::max((size_t)1, ((size_t)400 << 20) / bytes);
        w.emplace_back();
        for (size_t i = 0; i < copies; i++)
            w.back().push_back(random_mat(one.n, one.k));
    }
    int max_n = s->vocab, max_k = std::max(s->mlp, std::max(s->hidden, s->heads * s->head_dim));
    float *x = (float *)device((size_t)256 * max_k * 4), *y = (float *)device((size_t)256 * max_n * 4);
    for (int T : rows) {
        printf("%9d", T);
        for (size_t i = 0; i < w.size(); i++) {
            const int n = all[i].n, k = all[i].k, copies = (int)w[i].size();
            double ms = time_graph([&] {
                            for (const ds_mat &m : w[i]) {
                                ds_linear_args a = {x, m, y, T, k, n, 0};
                                OK(ds_cuda_linear(g_b, &a));
                                OK(ds_cuda_flush(g_c)); /* not grouped */
                            }
                        }) /
                        copies;
            printf(" %8.2f (%5.1f%%)", ms * 1e3, 100 * (2.0 * n * k / (ms * 1e-3)) / g_copy);
        }
        printf("\n");
    }
    for (auto &list : w)
        for (const ds_mat &m : list)
            g_b->free(g_b, (void *)(uintptr_t)m.data);
    g_b->free(g_b, x);
    g_b->free(g_b, y);
}

/* --- whole steps ------------------------------------------------------------------------------------------
 */

typedef struct model {
    ds_qwen3 q;
    ds_kv_pool kv;
    const shape *s;
    int stride, slots, max_rows;
    int32_t *row, *table; /* device: token, pos, slot, logit_row, each max_rows */
    size_t step_bytes;
} model;

static void open_model(model *m, const shape *s, int max_rows, int max_logits, int slots, int positions)
{
    ds_err err;
    ds_config c = {};
    *m = {};
    m->s = s;
    c.layers = s->layers;
    c.hidden = s->hidden;
    c.heads = s->heads;
    c.kv_heads = s->kv_heads;
    c.head_dim = s->head_dim;
    c.mlp = s->mlp;
    c.vocab = s->vocab;
    c.max_positions = 40960;
    c.eps = 1e-6f;
    c.rope.theta = 1e6;
    ds_model_opts o = {};
    o.max_rows = max_rows;
    o.max_logit_rows = max_logits;
    o.max_positions = positions;
    OK(ds_qwen3_init(&m->q, &c, &o, "model.", &err));
    const int hd = s->heads * s->head_dim, gd = s->kv_heads * s->head_dim, d = s->hidden;
    for (int i = 0; i < s->layers; i++) {
        ds_qwen3_layer *l = &m->q.layer[i];
        l->attn_norm = ones(d);
        l->mlp_norm = ones(d);
        l->q_norm = ones(s->head_dim);
        l->k_norm = ones(s->head_dim);
        l->q = random_mat(hd, d);
        l->k = random_mat(gd, d);
        l->v = random_mat(gd, d);
        l->o = random_mat(d, hd);
        l->gate = random_mat(s->mlp, d);
        l->up = random_mat(s->mlp, d);
        l->down = random_mat(d, s->mlp);
    }
    m->q.embed = m->q.head = random_mat(s->vocab, d);
    m->q.norm = ones(d);
    OK(ds_qwen3_alloc(&m->q, g_b, &err));
    m->step_bytes = 2 * ((size_t)s->layers * ((size_t)(2 * hd + 2 * gd) * d + 3 * (size_t)d * s->mlp) +
                         (size_t)s->vocab * d);
    m->stride = (positions + 15) / 16;
    m->slots = slots;
    m->max_rows = max_rows;
    OK(ds_kv_pool_alloc(g_b, s->layers, s->kv_heads, s->head_dim, DS_BF16, slots * m->stride, 16, &m->kv,
                        &err));
    m->row = (int32_t *)device(4 * (size_t)max_rows * 4);
    std::vector<int32_t> t((size_t)slots * (size_t)m->stride);
    for (size_t i = 0; i < t.size(); i++)
        t[i] = (int32_t)((i * 17 + 3) % t.size());
    m->table = (int32_t *)device(t.size() * 4);
    OK(g_b->upload(g_b, m->table, t.data(), t.size() * 4));
}

/* rows of `per` consecutive positions from context on, in `seqs` sequences; logits of all of them, or of the
 * last. */
static double time_step(model *m, int seqs, int per, int context, int last_only, int reps)
{
    const int T = seqs * per, n = m->max_rows;
    std::vector<int32_t> h(4 * (size_t)n);
    int R = 0;
    for (int t = 0; t < T; t++) {
        h[(size_t)t] = t * 7919 % m->s->vocab;
        h[(size_t)(n + t)] = context + t % per;
        h[(size_t)(2 * n + t)] = t / per;
        if (!last_only || t == T - 1)
            h[(size_t)(3 * n + R++)] = t;
    }
    OK(g_b->upload(g_b, m->row, h.data(), h.size() * 4));
    return time_graph(
        [&] {
            ds_err err;
            ds_step_args a = {};
            a.rows = {T, m->row, m->row + n, m->row + 2 * n, m->table, m->stride, 16};
            a.logit_row = m->row + 3 * n;
            a.R = R;
            OK(ds_qwen3_forward(&m->q, g_b, &m->kv, &a, &err));
            OK(ds_cuda_flush(g_c));
        },
        reps);
}

static double eager_step(model *m)
{
    cudaEvent_t a, z;
    float t;
    CUDA(cudaEventCreate(&a));
    CUDA(cudaEventCreate(&z));
    CUDA(cudaEventRecord(a, g_c->stream));
    for (int i = 0; i < 5; i++) {
        ds_err err;
        ds_step_args s = {};
        s.rows = {1, m->row, m->row + m->max_rows, m->row + 2 * m->max_rows, m->table, m->stride, 16};
        s.logit_row = m->row + 3 * m->max_rows;
        s.R = 1;
        OK(ds_qwen3_forward(&m->q, g_b, &m->kv, &s, &err));
    }
    OK(ds_cuda_flush(g_c));
    CUDA(cudaEventRecord(z, g_c->stream));
    CUDA(cudaEventSynchronize(z));
    CUDA(cudaEventElapsedTime(&t, a, z));
    return (double)t / 5;
}

static void steps(const shape *s, int do_step, int do_prefill)
{
    static const struct {
        int seqs, per, context;
    } all[] = {{1, 1, 128},   {1, 1, 1024},  {1, 8, 1024},  {1, 64, 1024}, {2, 1, 1024},  {8, 1, 1024},
               {16, 1, 1024}, {32, 1, 1024}, {64, 1, 1024}, {16, 4, 1024}, {32, 4, 1024}, {64, 4, 1024}};
    model m;
    const int prefill = 4096;
    open_model(&m, s, do_prefill ? prefill : 256, 256, 64, do_prefill ? prefill + 64 : 1152);
    if (do_step) {
        printf("\n%s shape, whole steps (graph), logits of all rows; weights %.2f GB, KV %.0f KB a token\n",
               s->name, (double)m.step_bytes / 1e9, 4.0 * s->layers * s->kv_heads * s->head_dim / 1024);
        printf("%5s %5s %8s %9s %9s %9s %8s\n", "users", "rows", "context", "ms", "of 1 row", "GB/s",
               "of copy");
        double first = 0;
        for (auto &one : all) {
            double ms = time_step(&m, one.seqs, one.per, one.context, 0, 9);
            double kv = 4.0 * s->layers * s->kv_heads * s->head_dim * one.seqs * (one.context + one.per);
            double speed = ((double)m.step_bytes + kv) / (ms * 1e-3);
            if (one.seqs == 1 && one.per == 1)
                first = ms;
            printf("%5d %5d %8d %9.3f %9.3f %9.0f %7.1f%%\n", one.seqs, one.seqs * one.per, one.context, ms,
                   ms / first, speed / 1e9, 100 * speed / g_copy);
        }
        time_step(&m, 1, 1, 1024, 0, 3);
        printf("eager, 1 row, context 1024: %.3f ms\n", eager_step(&m));
    }
    if (do_prefill) {
        double ms = time_step(&m, 1, prefill, 0, 1, 3), T = prefill;
        double flop = 2 * T * ((double)m.step_bytes / 2 - (double)s->vocab * s->hidden) +
                      2.0 * T * T * s->heads * s->head_dim * s->layers;
        printf("%s prefill of %d tokens: %.1f ms, %.0f TFLOP/s, %.1f%% of the product\n", s->name, prefill,
               ms, flop / ms / 1e9, 100 * flop / (ms * 1e-3) / g_matmul);
    }
    exit(0); /* the next shape has a process of its own: weights of 16 GB are not worth freeing one by one */
}

/* --- attention alone --------------------------------------------------------------------------------------
 */

static void attention(void)
{
    enum { H = 32, G = 8, D = 128, S = 64, MAX = 4096 + 64, STRIDE = (MAX + 15) / 16, LAYERS = 4 };
    static const struct {
        int seqs, per, context;
    } all[] = {{1, 1, 1024},  {1, 8, 1024},  {1, 64, 1024}, {1, 1, 4000},
               {64, 1, 1024}, {64, 1, 4000}, {32, 4, 1024}};
    const size_t n = (size_t)S * STRIDE * 16 * G * D;
    ds_kv_layer kv[LAYERS];
    for (auto &l : kv)
        l = {random_bf16(n), random_bf16(n), DS_BF16};
    std::vector<int32_t> table((size_t)S * STRIDE), ids(3 * 256);
    for (size_t i = 0; i < table.size(); i++)
        table[i] = (int32_t)((i * 17 + 3) % table.size());
    int32_t *dt = (int32_t *)device(table.size() * 4), *di = (int32_t *)device(ids.size() * 4);
    OK(g_b->upload(g_b, dt, table.data(), table.size() * 4));
    float *q = (float *)device((size_t)256 * H * D * 4), *out = (float *)device((size_t)256 * H * D * 4);
    printf("\nattention of one layer, H 32 G 8 D 128\n%5s %5s %8s %9s %8s\n", "users", "rows", "context",
           "us", "of copy");
    for (auto &one : all) {
        int T = one.seqs * one.per;
        for (int t = 0; t < T; t++) {
            ids[(size_t)t] = one.context + t % one.per;
            ids[(size_t)(256 + t)] = t / one.per;
        }
        OK(g_b->upload(g_b, di, ids.data(), ids.size() * 4));
        double ms =
            time_graph([&] {
                for (auto &l : kv) {
                    ds_attn_args a = {
                        {T, di + 512, di, di + 256, dt, STRIDE, 16}, q, H * D, l, out, 0.088f, H, G, D};
                    OK(ds_cuda_attention(g_b, &a));
                }
            }) /
            LAYERS;
        double bytes = 4.0 * G * D * one.seqs * (one.context + one.per);
        printf("%5d %5d %8d %9.2f %7.1f%%\n", one.seqs, T, one.context, ms * 1e3,
               100 * bytes / (ms * 1e-3) / g_copy);
    }
}

int main(int argc, char **argv)
{
    ds_err err;
    ds_code code = ds_backend_open("cuda", 0, NULL, &g_b, &err);
    if (code != DS_OK) {
        printf("skipped: %s\n", err.msg);
        return code == DS_EUNSUPPORTED ? 77 : 1;
    }
    setvbuf(stdout, NULL, _IOLBF, 0);
    g_c = ds_cuda_of(g_b);
    auto wants = [&](const char *what) {
        for (int i = 1; i < argc; i++)
            if (strcmp(argv[i], what) == 0)
                return 1;
        return argc < 2 ? 1 : 0;
    };
    ceilings();
    if (wants("attention"))
        attention();
    for (const shape &s : SHAPES)
        if (wants(s.name)) {
            if (wants("linear"))
                linears(&s);
            if (wants("step") || wants("prefill"))
                steps(&s, wants("step"), wants("prefill"));
        }
    return 0;
}
