/* bench_forward.c - dspark-bench forward: times forward passes in process, without a daemon.
 *
 * Rounds go over all row counts in turn, so that a slow spell of the machine touches each of them; a sample
 * is as many passes as take SAMPLE_NS. Bytes are what one pass must read once (weights, cached KV), FLOPs
 * those of the matrix products and of attention, so both are lower bounds on the work done. */
#include "cli/bench_forward.h"
#include "base/clock.h"
#include "cli/bench.h"
#include "cli/dist.h"
#include "cli/make_model.h"
#include "cli/memory_speed.h"
#include "worker/model/model.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

enum { MAX_ROWS = 4096, PAGE_TOKENS = 16, MAX_PASSES = 200, SAMPLE_NS = 5000000 };

typedef struct bench {
    const ds_bench_conf *conf;
    const volatile int *stop;
    ds_bench_list rows;
    int max_rows, max_sequences, page_stride;
    ds_backend *backend;
    ds_model *model;
    const ds_model_info *info;
    ds_kv_pool kv;
    int32_t *token, *pos, *slot, *page_table, *logit_row;
    ds_dist ms[DS_BENCH_MAX_LIST];
    int passes[DS_BENCH_MAX_LIST]; /* of one sample */
    double read_speed;             /* bytes per second */
} bench;

static int min_int(int a, int b)
{
    return a < b ? a : b;
}

static int sequences_of(const bench *b, int rows)
{
    return min_int((int)b->conf->sequences, rows);
}

/* Rows of sequence s when `rows` are spread over `n`. */
static int rows_of(int rows, int n, int s)
{
    return rows / n + (s < rows % n);
}

/* Fills the row arrays: sequence after sequence, positions from the end of the context on. */
static int fill_rows(bench *b, int rows)
{
    int n = sequences_of(b, rows), at = 0, logits = 0, last_only = strcmp(b->conf->logits, "last") == 0;
    for (int s = 0; s < n; s++) {
        int mine = rows_of(rows, n, s);
        for (int i = 0; i < mine; i++, at++) {
            b->token[at] = (int32_t)((at * 7919 + 13) % b->info->vocab);
            b->pos[at] = (int32_t)b->conf->context + i;
            b->slot[at] = s;
            if (!last_only || i + 1 == mine)
                b->logit_row[logits++] = at;
        }
    }
    return logits;
}

static ds_code one_pass(bench *b, int rows, int logits, ds_err *err)
{
    ds_step_args a = {
        .rows = {rows, b->token, b->pos, b->slot, b->page_table, b->page_stride, PAGE_TOKENS},
        .logit_row = b->logit_row,
        .R = logits,
    };
    DS_TRY(ds_model_forward(b->model, &b->kv, &a, err));
    ds_code code = b->backend->sync(b->backend);
    return code ? ds_err_set(err, code, "the device failed in a forward pass of %d rows", rows) : DS_OK;
}

static ds_code sample(bench *b, int i, int warm_up, ds_err *err)
{
    int rows = (int)b->rows.v[i], logits = fill_rows(b, rows), passes = warm_up ? 1 : b->passes[i];
    uint64_t start = ds_now_ns();
    for (int p = 0; p < passes; p++)
        DS_TRY(one_pass(b, rows, logits, err));
    uint64_t ns = ds_now_ns() - start;
    if (warm_up)
        b->passes[i] = min_int((int)(SAMPLE_NS / (ns + 1)) + 1, MAX_PASSES);
    else
        ds_dist_add(&b->ms[i], (double)ns / 1e6 / passes);
    return DS_OK;
}

static ds_code measure(bench *b, ds_err *err)
{
    int shown = b->conf->progress && isatty(STDERR_FILENO), rounds = (int)b->conf->reps, n = b->rows.n;
    for (int i = 0; i < 2 * n; i++) /* twice: the first touch of the weights reads them from disk */
        DS_TRY(sample(b, i % n, 1, err));
    for (int round = 0; round < rounds; round++)
        for (int i = 0; i < n; i++) {
            if (*b->stop)
                return ds_err_set(err, DS_ECANCELLED, "stopped");
            if (shown)
                ds_bench_draw_bar("forward", (double)(round * n + i) / (rounds * n), b->backend->detail);
            DS_TRY(sample(b, i, 0, err));
        }
    if (shown)
        ds_bench_draw_bar("", 1, "");
    return DS_OK;
}

static ds_code make_arrays(bench *b, ds_err *err)
{
    size_t rows = (size_t)b->max_rows, pages = (size_t)b->max_sequences * (size_t)b->page_stride;
    b->token = calloc(rows, sizeof *b->token);
    b->pos = calloc(rows, sizeof *b->pos);
    b->slot = calloc(rows, sizeof *b->slot);
    b->logit_row = calloc(rows, sizeof *b->logit_row);
    b->page_table = calloc(pages, sizeof *b->page_table);
    if (!b->token || !b->pos || !b->slot || !b->logit_row || !b->page_table)
        return ds_err_set(err, DS_ENOMEM, "no memory for %zu rows", rows);
    for (size_t i = 0; i < pages; i++)
        b->page_table[i] = (int32_t)i;
    return ds_model_kv_alloc(b->model, (int)pages, PAGE_TOKENS, &b->kv, err);
}

static ds_code open_model(bench *b, const char *dir, ds_err *err)
{
    int longest = 0;
    for (int i = 0; i < b->rows.n; i++) {
        int rows = (int)b->rows.v[i], n = sequences_of(b, rows);
        longest = rows_of(rows, n, 0) > longest ? rows_of(rows, n, 0) : longest;
        b->max_rows = rows > b->max_rows ? rows : b->max_rows;
        b->max_sequences = n > b->max_sequences ? n : b->max_sequences;
    }
    b->page_stride = ((int)b->conf->context + longest + PAGE_TOKENS - 1) / PAGE_TOKENS;
    if ((int64_t)b->page_stride * b->max_sequences > INT32_MAX / PAGE_TOKENS)
        return ds_err_field(err, DS_EINVAL, "context", "context times sequences is more than %d tokens",
                            INT32_MAX);
    ds_model_opts opts = {.max_rows = b->max_rows,
                          .max_logit_rows = b->max_rows,
                          .max_positions = (int)b->conf->context + longest,
                          .weights = b->conf->weights,
                          .kv_dtype = "auto"};
    const char *isa = strcmp(b->conf->isa, "auto") == 0 ? NULL : b->conf->isa;
    DS_TRY(ds_backend_open("cpu", (int)b->conf->threads, isa, &b->backend, err));
    DS_TRY(ds_model_open(dir, &opts, b->backend, &b->model, err));
    b->info = ds_model_get_info(b->model);
    return make_arrays(b, err);
}

static void close_model(bench *b)
{
    if (b->model) {
        ds_model_kv_free(b->model, &b->kv);
        ds_model_close(b->model);
    }
    if (b->backend)
        b->backend->destroy(b->backend);
    free(b->token);
    free(b->pos);
    free(b->slot);
    free(b->logit_row);
    free(b->page_table);
    for (int i = 0; i < DS_BENCH_MAX_LIST; i++)
        ds_dist_fini(&b->ms[i]);
}

double ds_forward_flops(const ds_model_info *m, int rows, int logits, double keys)
{
    double qkv = (double)m->hidden * (m->heads + 2 * m->kv_heads) * m->head_dim,
           out = (double)m->heads * m->head_dim * m->hidden, mlp = 3.0 * m->hidden * m->mlp;
    return 2 * (qkv + out + mlp) * m->layers * rows + 2.0 * m->hidden * m->vocab * logits +
           4.0 * m->heads * m->head_dim * m->layers * keys;
}

typedef struct figures {
    int rows, logits, sequences;
    double median_ms, min_ms, p10_ms, p90_ms, ratio, bytes_per_s, flops_per_s;
} figures;

static figures figures_of(bench *b, int i)
{
    figures f = {.rows = (int)b->rows.v[i]};
    f.sequences = sequences_of(b, f.rows);
    f.logits = fill_rows(b, f.rows);
    f.median_ms = ds_dist_percentile(&b->ms[i], 50);
    f.min_ms = b->ms[i].min;
    f.p10_ms = ds_dist_percentile(&b->ms[i], 10);
    f.p90_ms = ds_dist_percentile(&b->ms[i], 90);
    f.ratio = b->rows.v[0] == 1 ? f.median_ms / ds_dist_percentile(&b->ms[0], 50) : NAN;
    double keys = 0, cached = (double)f.sequences * (double)b->conf->context + f.rows;
    for (int t = 0; t < f.rows; t++)
        keys += b->pos[t] + 1;
    double bytes = (double)b->info->weight_bytes + cached * (double)b->info->kv_bytes_per_token;
    f.bytes_per_s = bytes / (f.median_ms / 1e3);
    f.flops_per_s = ds_forward_flops(b->info, f.rows, f.logits, keys) / (f.median_ms / 1e3);
    return f;
}

static void print_table(bench *b, const char *dir)
{
    const ds_model_info *m = b->info;
    FILE *out = ds_bench_table(b->conf);
    fprintf(out, "%s: %s, %.1f M parameters, %s, %.1f MB read per step\n", dir, m->arch,
            (double)m->params / 1e6, ds_dtype_name(m->weight_dtype), (double)m->weight_bytes / 1e6);
    fprintf(out,
            "%s: %s; memory reads at most %.1f GB/s; context %lld, %lld sequence(s), logits of %s rows\n\n",
            b->backend->name, b->backend->detail, b->read_speed / 1e9, (long long)b->conf->context,
            (long long)b->conf->sequences, b->conf->logits);
    fprintf(out, "%5s %10s %10s %8s %8s %10s %8s %9s %10s\n", "rows", "median ms", "min ms", "spread",
            "ratio", "rows/s", "GB/s", "of limit", "GFLOP/s");
    for (int i = 0; i < b->rows.n; i++) {
        figures f = figures_of(b, i);
        fprintf(out, "%5d %10.3f %10.3f %7.1f%%", f.rows, f.median_ms, f.min_ms,
                100 * (f.p90_ms - f.p10_ms) / f.median_ms);
        if (isnan(f.ratio))
            fprintf(out, " %8s", "-");
        else
            fprintf(out, " %8.2f", f.ratio);
        fprintf(out, " %10.1f %8.2f %8.0f%% %10.1f\n", f.rows * 1e3 / f.median_ms, f.bytes_per_s / 1e9,
                100 * f.bytes_per_s / b->read_speed, f.flops_per_s / 1e9);
    }
}

static json_t *result_json(bench *b, const char *dir)
{
    json_t *rows = json_array();
    for (int i = 0; i < b->rows.n; i++) {
        figures f = figures_of(b, i);
        json_array_append_new(rows,
                              json_pack("{s:i, s:i, s:i, s:f, s:f, s:f, s:f, s:o, s:f, s:f}", "rows", f.rows,
                                        "logit_rows", f.logits, "sequences", f.sequences, "median_ms",
                                        f.median_ms, "min_ms", f.min_ms, "p10_ms", f.p10_ms, "p90_ms",
                                        f.p90_ms, "ratio", isnan(f.ratio) ? json_null() : json_real(f.ratio),
                                        "bytes_per_s", f.bytes_per_s, "flops_per_s", f.flops_per_s));
    }
    return json_pack("{s:s, s:s, s:s, s:s, s:I, s:I, s:f, s:I, s:o}", "model", dir, "arch", b->info->arch,
                     "weights", ds_dtype_name(b->info->weight_dtype), "device", b->backend->detail,
                     "weight_bytes", (json_int_t)b->info->weight_bytes, "kv_bytes_per_token",
                     (json_int_t)b->info->kv_bytes_per_token, "read_bytes_per_s", b->read_speed, "context",
                     (json_int_t)b->conf->context, "passes", rows);
}

/* The folder to time; a random model is made when it is not there yet. */
static ds_code find_model(const ds_bench_conf *conf, char *dir, size_t n, ds_err *err)
{
    char config[4200];
    if (!conf->model == !conf->random)
        return ds_err_field(err, DS_EINVAL, "model", "give either --model DIR or --random SHAPE");
    int len = conf->model ? snprintf(dir, n, "%s", conf->model)
                          : snprintf(dir, n, "%s/%s", conf->dir, conf->random);
    if (len < 0 || (size_t)len >= n)
        return ds_err_field(err, DS_EINVAL, "model", "the folder's name is longer than %zu bytes", n);
    snprintf(config, sizeof config, "%s/config.json", dir);
    if (conf->model || access(config, R_OK) == 0)
        return DS_OK;
    fprintf(stderr, "making a random %s in %s\n", conf->random, dir);
    return ds_make_model(conf->random, dir, (uint64_t)conf->seed, err);
}

ds_code ds_bench_forward(const ds_bench_conf *conf, const volatile int *stop, ds_err *err)
{
    char dir[4096];
    bench b = {.conf = conf, .stop = stop};
    DS_TRY(ds_bench_parse_list("rows", conf->rows, 1, MAX_ROWS, &b.rows, err));
    DS_TRY(find_model(conf, dir, sizeof dir, err));
    int threads = conf->threads ? (int)conf->threads : (int)sysconf(_SC_NPROCESSORS_ONLN);
    DS_TRY(ds_memory_read_speed(threads, &b.read_speed, err));
    ds_code code = open_model(&b, dir, err);
    if (!code)
        code = measure(&b, err);
    if (!code) {
        print_table(&b, dir);
        if (conf->json) {
            json_t *o = result_json(&b, dir);
            code = ds_bench_write_json(conf->json, o, err);
            json_decref(o);
        }
    }
    close_model(&b);
    return code;
}
