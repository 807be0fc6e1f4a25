/* bench.h - dspark-bench's options and what its parts share. One thread, except below `forward`. */
#ifndef DS_CLI_BENCH_H
#define DS_CLI_BENCH_H

#include "base/conf.h"

#include <jansson.h>
#include <stdio.h>

enum { DS_BENCH_MAX_LIST = 64 };

typedef struct ds_bench_conf {
    char *url, *rpc, *model_id, *api, *prompts, *arrival, *json; /* load */
    char *concurrency, *rates;
    int64_t requests, warmup, prompt_tokens, max_tokens, seed, max_outstanding, timeout_ms;
    double temperature, duration_s;
    int ignore_eos, progress;
    char *model, *random, *dir, *shape, *rows, *isa, *weights, *logits; /* forward, make-model */
    char *draft, *modes, *acceptance, *synthetic, *svg;                 /* spec */
    int64_t threads, context, sequences, reps;
} ds_bench_conf;

typedef struct ds_bench_list { /* "1,2,4,8" */
    double v[DS_BENCH_MAX_LIST];
    int n;
} ds_bench_list;

/* ds_bench_parse_list: positive numbers, whole ones when `whole`; the error names the key. */
ds_code ds_bench_parse_list(const char *key, const char *text, int whole, double max, ds_bench_list *ret,
                            ds_err *err);
/* ds_bench_table: where tables go: stdout, or stderr when the JSON takes stdout. */
FILE *ds_bench_table(const ds_bench_conf *conf);
/* ds_bench_write_json: to FILE, or to stdout for "-". */
ds_code ds_bench_write_json(const char *file, json_t *o, ds_err *err);

/* ds_bench_draw_bar: one line on stderr, redrawn in place; share 1 clears it. */
void ds_bench_draw_bar(const char *label, double share, const char *text);

/* Commands; `stop` becomes nonzero on SIGINT and SIGTERM. */
ds_code ds_bench_load(const ds_bench_conf *conf, const volatile int *stop, ds_err *err);
ds_code ds_bench_forward(const ds_bench_conf *conf, const volatile int *stop, ds_err *err);
ds_code ds_bench_spec(const ds_bench_conf *conf, const volatile int *stop, ds_err *err);

#endif
