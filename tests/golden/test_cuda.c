/* The Qwen3 forward pass on the CUDA back end: against the golden vectors, and all logits against the CPU's.
 *
 * Bounds. Level "portable" computes in f32 as the CPU does, so the golden vectors' bound for summation order
 * holds (EXACT of test_qwen3.c). The other levels round the inputs of products with bf16 weights to bf16,
 * which transformers' bf16 run does too, among others: its error, stored as bf16_err, bounds ours. */
#include "tests/golden/golden.h"

static const double EXACT = 2e-4;

static void open_on(golden *g, const char *device, const char *level, const char *name, const char *kv,
                    const char *weights)
{
    ds_model_opts opts = {.kv_dtype = kv, .weights = weights};
    g_device = device;
    g_isa = level;
    g_open(g, name, &opts);
}

static void check_golden(const char *level, const char *name, int exact)
{
    golden g;
    double mean;
    open_on(&g, "cuda", level, name, exact ? "f32" : "auto", "auto");
    float *logits = g_prefill(&g, 1, g.n, exact ? 173 : 250);
    double worst = g_compare(&g, logits, &mean), bound = EXACT;
    if (!exact)
        bound = json_number_value(json_object_get(json_object_get(g.json, "bf16_err"), "max"));
    printf("  %s %s: log-probabilities within %.2e (mean %.2e), bound %.2e\n", level, name, worst, mean,
           bound);
    CHECK_MSG(worst <= bound, "worst error %g", worst);
    free(logits);
    g_close(&g);
}

DS_TEST(cuda_portable_golden)
{
    static const char *const names[] = {"qwen3-f32",       "qwen3-bf16-tied",
                                        "qwen3-f32-yarn",  "qwen3-bf16-yarn-sharded",
                                        "qwen3-bf16-wide", "qwen3-f16-linear-bias"};
    for (int i = 0; i < 6; i++)
        check_golden("portable", names[i], 1);
}

DS_TEST(cuda_auto_golden)
{
    check_golden("auto", "qwen3-f32", 1); /* f32 weights: no rounding on any level */
    check_golden("auto", "qwen3-bf16-tied", 0);
    check_golden("auto", "qwen3-bf16-yarn-sharded", 0);
    check_golden("auto", "qwen3-bf16-wide", 0);
    check_golden("invariant", "qwen3-bf16-wide", 0);
}

/* All logits of the prompt on both back ends: the largest difference over the CPU's spread of logits. */
static double difference(const char *level, const char *name, const char *kv, const char *weights)
{
    golden a, b;
    open_on(&a, "cuda", level, name, kv, weights);
    open_on(&b, "cpu", "portable", name, kv, weights); /* no CPU level that rounds activations */
    float *x = g_prefill(&a, 1, a.n, 64), *y = g_prefill(&b, 1, b.n, 64);
    double worst = 0, most = 0;
    for (size_t i = 0; i < (size_t)a.n * (size_t)a.info->vocab; i++) {
        worst = fmax(worst, isfinite(x[i]) ? fabs((double)x[i] - (double)y[i]) : INFINITY);
        most = fmax(most, fabs((double)y[i]));
    }
    printf("  %s %s kv %s weights %s: logits within %.2e of %.1f\n", level, name, kv, weights, worst, most);
    free(x);
    free(y);
    g_close(&a);
    g_close(&b);
    return worst / most;
}

DS_TEST(cuda_logits_are_the_cpus)
{
    CHECK(difference("portable", "qwen3-f32", "f32", "auto") < 1e-4);
    CHECK(difference("portable", "qwen3-bf16-wide", "bf16", "auto") <
          2e-2); /* one rounding of K or V may flip */
    CHECK(difference("portable", "qwen3-bf16-wide", "f32", "int8") < 1e-3); /* the CPU's int16 activations */
    CHECK(difference("auto", "qwen3-bf16-wide", "bf16", "auto") < 5e-2);
    CHECK(difference("invariant", "qwen3-bf16-tied", "bf16", "auto") < 5e-2);
}

/* The same rows in other chunks give the same bits where the level promises it. */
static void check_chunks(const char *level, const char *name)
{
    static const int chunks[] = {1, 7, 64};
    golden g;
    open_on(&g, "cuda", level, name, "auto", "auto");
    int n = 200, v = g.info->vocab;
    float *whole = g_prefill(&g, 1, n, n);
    for (int c = 0; c < 3; c++) {
        float *part = g_prefill(&g, 0, n, chunks[c]);
        CHECK_MSG(memcmp(whole, part, (size_t)n * (size_t)v * sizeof *part) == 0, "%s %s: chunks of %d",
                  level, name, chunks[c]);
        free(part);
    }
    free(whole);
    g_close(&g);
}

DS_TEST(cuda_chunking_changes_no_bit)
{
    check_chunks("invariant", "qwen3-bf16-wide");
    check_chunks("invariant", "qwen3-bf16-tied");
    check_chunks("portable", "qwen3-f32");
    check_chunks("portable", "qwen3-bf16-wide");
}
