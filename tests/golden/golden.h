/* golden.h - a golden folder (tests/golden/data, made by tools/golden/make_qwen3.py) opened as a model on a
 * back end, with one sequence in slot 1 whose pages are scattered. Included by tests only. */
#ifndef DS_TESTS_GOLDEN_H
#define DS_TESTS_GOLDEN_H

#include "tests/lib/test.h"
#include "worker/model/model.h"

#include <jansson.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum { G_ROWS = 512, G_LOGIT_ROWS = 256, G_PAGE = 16, G_SLOTS = 2 };

typedef struct golden {
    char dir[1024];
    json_t *json;
    int n; /* prompt */
    int32_t *prompt;
    ds_backend *b;
    ds_model *m;
    const ds_model_info *info;
    ds_kv_pool kv;
    int stride;     /* pages per slot */
    int32_t *table; /* [G_SLOTS, stride] */
    float *taps;    /* [n, n_taps * C] of the last run, when taps were asked for */
    int n_taps;
} golden;

static const char *g_device = "cpu";
static const char *g_isa; /* NULL: the best of this machine */

static inline double g_number(const json_t *list, size_t i)
{
    return json_number_value(json_array_get(list, i));
}

static inline void g_open(golden *g, const char *name, const ds_model_opts *more)
{
    json_error_t je;
    ds_err err = {0};
    char path[1100];
    memset(g, 0, sizeof *g);
    ds_code code = ds_backend_open(g_device, 2, g_isa, &g->b, &err);
    if (code == DS_EUNSUPPORTED) /* before anything is allocated: skipping does not return */
        ds_test_skip(err.msg);
    CHECK_OK(code, err);
    snprintf(g->dir, sizeof g->dir, "%s/tests/golden/data/%s", DS_SOURCE_DIR, name);
    snprintf(path, sizeof path, "%s/golden.json", g->dir);
    g->json = json_load_file(path, 0, &je);
    CHECK_MSG(g->json, "%s: %s", path, je.text);
    const json_t *ids = json_object_get(g->json, "prompt");
    g->n = (int)json_array_size(ids);
    g->prompt = calloc((size_t)g->n, sizeof *g->prompt);
    for (int i = 0; i < g->n; i++)
        g->prompt[i] = (int32_t)g_number(ids, (size_t)i);
    ds_model_opts opts = more ? *more : (ds_model_opts){0};
    opts.max_rows = G_ROWS;
    opts.max_logit_rows = G_LOGIT_ROWS;
    g->n_taps = opts.n_taps;
    CHECK_OK(ds_model_open(g->dir, &opts, g->b, &g->m, &err), err);
    g->info = ds_model_get_info(g->m);
    g->stride = (g->info->max_positions + G_PAGE - 1) / G_PAGE;
    int pages = G_SLOTS * g->stride + 1;
    CHECK_OK(ds_model_kv_alloc(g->m, pages, G_PAGE, &g->kv, &err), err);
    g->table = calloc((size_t)pages, sizeof *g->table);
    g->taps = calloc((size_t)g->n * (size_t)g->n_taps * (size_t)g->info->hidden + 1, sizeof *g->taps);
    for (int i = 0; i < G_SLOTS * g->stride; i++)
        g->table[i] = i % 2 ? i / 2 : pages - 1 - i / 2; /* far apart, each page once */
}

static inline void g_close(golden *g)
{
    ds_model_kv_free(g->m, &g->kv);
    ds_model_close(g->m);
    g->b->destroy(g->b);
    json_decref(g->json);
    free(g->prompt);
    free(g->table);
    free(g->taps);
}

/* Rows at positions first..first+n-1 of slot; logits of the last R of them to out [R, V]. */
static inline void g_step(golden *g, int slot, const int32_t *ids, int first, int n, int R, float *out)
{
    int32_t pos[G_ROWS], slots[G_ROWS], rows[G_ROWS];
    ds_err err = {0};
    CHECK(n <= G_ROWS && R <= n);
    for (int i = 0; i < n; i++) {
        pos[i] = first + i;
        slots[i] = slot;
        rows[i] = n - R + i;
    }
    ds_step_args a = {.rows = {.T = n,
                               .token = ids,
                               .pos = pos,
                               .slot = slots,
                               .page_table = g->table,
                               .page_stride = g->stride,
                               .page_tokens = G_PAGE},
                      .logit_row = rows,
                      .R = R};
    CHECK_OK(ds_model_forward(g->m, &g->kv, &a, &err), err);
    size_t v = (size_t)g->info->vocab, c = (size_t)g->n_taps * (size_t)g->info->hidden;
    if (R)
        CHECK_EQ(g->b->download(g->b, out, a.logits, (size_t)R * v * sizeof *out), DS_OK);
    if (c && first + n <= g->n)
        CHECK_EQ(g->b->download(g->b, g->taps + (size_t)first * c, a.taps, (size_t)n * c * sizeof *out),
                 DS_OK);
}

/* All logits [n, V] of the prompt, prefilled in chunks; malloc'ed. */
static inline float *g_prefill(golden *g, int slot, int n, int chunk)
{
    size_t v = (size_t)g->info->vocab;
    float *out = malloc((size_t)n * v * sizeof *out);
    CHECK(out != NULL && chunk <= G_LOGIT_ROWS);
    for (int i = 0; i < n; i += chunk) {
        int rows = n - i < chunk ? n - i : chunk;
        g_step(g, slot, g->prompt + i, i, rows, rows, out + (size_t)i * v);
    }
    return out;
}

static inline double g_logsumexp(const float *row, int v)
{
    double top = -INFINITY, sum = 0;
    for (int i = 0; i < v; i++)
        top = row[i] > top ? row[i] : top;
    for (int i = 0; i < v; i++)
        sum += exp(row[i] - top);
    return top + log(sum);
}

static inline int g_argmax(const float *row, int v)
{
    int best = 0;
    for (int i = 1; i < v; i++)
        best = row[i] > row[best] ? i : best;
    return best;
}

/* Largest and mean difference of the prompt's log-probabilities from the reference. */
static inline double g_compare(golden *g, const float *logits, double *ret_mean)
{
    const json_t *want = json_object_get(g->json, "logprobs");
    double worst = 0, sum = 0;
    int v = g->info->vocab;
    for (int i = 0; i + 1 < g->n; i++) {
        const float *row = logits + (size_t)i * (size_t)v;
        double e = fabs(row[g->prompt[i + 1]] - g_logsumexp(row, v) - g_number(want, (size_t)i));
        CHECK_MSG(isfinite(e), "position %d is not a number", i);
        worst = e > worst ? e : worst;
        sum += e;
    }
    *ret_mean = sum / (g->n - 1);
    return worst;
}

#endif
