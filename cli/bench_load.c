/* bench_load.c - dspark-bench load: prepares prompts, opens the door, runs the sweep, reports. */
#include "cli/bench.h"
#include "cli/bench_report.h"
#include "cli/door_http.h"
#include "cli/door_rpc.h"
#include "cli/http.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/resource.h>
#include <unistd.h>

enum { SYNTHETIC_PROMPTS = 1024, DEFAULT_PER_SLOT = 4, MIN_REQUESTS = 16 };

typedef struct job { /* everything of one `load` command */
    const ds_bench_conf *conf;
    const volatile int *stop;
    char model[256];
    ds_client *client; /* RPC */
    ds_prompts prompts;
    ds_bench_list steps; /* concurrency or rates */
    int open_loop;
    int64_t asked; /* requests of the runs before */
} job;

static ds_code http_json(const ds_bench_conf *conf, const volatile int *stop, const char *path,
                         const char *post, json_t **ret, ds_err *err)
{
    ds_http *http;
    ds_buf body = {0};
    DS_TRY(ds_http_open(conf->url, (int)conf->timeout_ms, stop, &http, err));
    ds_code code =
        post ? ds_http_post(http, path, post, &body, err) : ds_http_get(http, path, &body, NULL, err);
    if (!code) {
        *ret = json_loadb(body.data ? body.data : "", body.len, 0, NULL);
        if (!*ret)
            code = ds_err_set(err, DS_EPROTO, "the answer of %s is not JSON", path);
    }
    ds_buf_free(&body);
    ds_http_close(http);
    return code;
}

static ds_code find_model(job *j, ds_err *err)
{
    if (j->client || j->conf->model_id) {
        snprintf(j->model, sizeof j->model, "%s",
                 j->client ? ds_client_caps(j->client)->model : j->conf->model_id);
        return DS_OK;
    }
    json_t *root = NULL;
    DS_TRY(http_json(j->conf, j->stop, "/v1/models", NULL, &root, err));
    const char *id =
        json_string_value(json_object_get(json_array_get(json_object_get(root, "data"), 0), "id"));
    snprintf(j->model, sizeof j->model, "%s", id ? id : "");
    json_decref(root);
    return j->model[0] ? DS_OK : ds_err_set(err, DS_ENOTFOUND, "the daemon lists no model");
}

/* The ids of ds_prompts_pool_text in the model's own vocabulary, so that synthetic prompts are real words. */
static ds_code synthetic_prompts(job *j, int n, ds_err *err)
{
    int tokens = (int)j->conf->prompt_tokens;
    if (j->client) {
        const int32_t *ids;
        size_t n_ids;
        DS_TRY(ds_client_tokenize(j->client, ds_prompts_pool_text, &ids, &n_ids, err));
        if (n_ids == 0)
            return ds_err_set(err, DS_EPROTO, "the router made no tokens of a text");
        return ds_prompts_synthetic(ids, (int)n_ids, tokens, n, (uint64_t)j->conf->seed, &j->prompts, err);
    }
    json_t *root = NULL, *req = json_pack("{s:s, s:s}", "model", j->model, "prompt", ds_prompts_pool_text);
    char *post = json_dumps(req, JSON_COMPACT);
    json_decref(req);
    ds_code code = post ? http_json(j->conf, j->stop, "/tokenize", post, &root, err) : DS_ENOMEM;
    free(post);
    if (code)
        return code;
    json_t *list = json_object_get(root, "tokens");
    size_t n_ids = json_array_size(list);
    int32_t *ids = calloc(n_ids + 1, sizeof *ids);
    for (size_t i = 0; ids && i < n_ids; i++)
        ids[i] = (int32_t)json_integer_value(json_array_get(list, i));
    if (!ids || n_ids == 0)
        code = ds_err_set(err, DS_EPROTO, "the answer of /tokenize has no tokens");
    else
        code = ds_prompts_synthetic(ids, (int)n_ids, tokens, n, (uint64_t)j->conf->seed, &j->prompts, err);
    free(ids);
    json_decref(root);
    return code;
}

static int64_t requests_of(const job *j, double step)
{
    if (j->conf->requests || j->conf->duration_s > 0)
        return j->conf->requests;
    int64_t n = DEFAULT_PER_SLOT * (int64_t)step;
    return n > MIN_REQUESTS ? n : MIN_REQUESTS;
}

static ds_code open_door(const job *j, int slots, ds_load *load, ds_door *ret, ds_err *err)
{
    const ds_bench_conf *c = j->conf;
    if (j->client) {
        ds_door_rpc_conf conf = {slots, c->max_tokens, c->temperature, c->ignore_eos};
        return ds_door_rpc_open(&conf, j->client, load, ret, err);
    }
    ds_door_api api = strcmp(c->api, "chat") == 0          ? DS_DOOR_CHAT
                      : strcmp(c->api, "completions") == 0 ? DS_DOOR_COMPLETIONS
                                                           : DS_DOOR_AUTO;
    ds_door_http_conf conf = {c->url,        j->model,       api,          slots, c->max_tokens,
                              c->timeout_ms, c->temperature, c->ignore_eos};
    return ds_door_http_open(&conf, load, ret, err);
}

static ds_code run_step(job *j, int slots, double rate, int64_t requests, double duration_s, int shown,
                        ds_load_result *ret, ds_err *err)
{
    ds_load *load = NULL;
    ds_door door;
    DS_TRY(ds_load_create(&load, err));
    ds_code code = open_door(j, slots, load, &door, err);
    if (!code) {
        ds_load_conf conf = {.concurrency = slots,
                             .rate = rate,
                             .poisson = strcmp(j->conf->arrival, "poisson") == 0,
                             .requests = requests,
                             .duration_s = duration_s,
                             .seed = (uint64_t)j->conf->seed,
                             .prompts = &j->prompts,
                             .first_prompt = j->asked,
                             .stop = j->stop};
        if (shown && j->conf->progress && isatty(STDERR_FILENO))
            conf.progress = ds_bench_show_progress;
        code = ds_load_run(load, &conf, &door, ret, err);
        j->asked += ret->started;
        door.close(door.self);
    }
    ds_load_destroy(load);
    return code;
}

static ds_code sweep(job *j, json_t *runs, ds_err *err)
{
    ds_load_result r = {0};
    ds_code code = DS_OK;
    FILE *table = ds_bench_table(j->conf);
    if (j->conf->warmup > 0) {
        code = run_step(j, 1, 0, j->conf->warmup, 0, 0, &r, err);
        ds_load_result_fini(&r);
    }
    if (!code)
        ds_bench_report_head(table, j->open_loop);
    for (int i = 0; i < j->steps.n && !code; i++) {
        double step = j->steps.v[i];
        int slots = j->open_loop ? (int)j->conf->max_outstanding : (int)step;
        code = run_step(j, slots, j->open_loop ? step : 0, requests_of(j, step), j->conf->duration_s, 1, &r,
                        err);
        if (r.started) {
            ds_bench_report_row(table, &r, j->open_loop);
            json_array_append_new(runs, ds_bench_report_json(&r));
        }
        ds_load_result_fini(&r);
    }
    return code;
}

static void raise_descriptors(void)
{
    struct rlimit files;
    if (getrlimit(RLIMIT_NOFILE, &files) == 0 && files.rlim_cur < files.rlim_max) {
        files.rlim_cur = files.rlim_max;
        setrlimit(RLIMIT_NOFILE, &files); /* best effort: a smaller limit shows as a failed request */
    }
}

static ds_code prepare(job *j, ds_err *err)
{
    const ds_bench_conf *c = j->conf;
    j->open_loop = c->rates != NULL;
    if (j->open_loop)
        DS_TRY(ds_bench_parse_list("rate", c->rates, 0, 1e6, &j->steps, err));
    else
        DS_TRY(ds_bench_parse_list("concurrency", c->concurrency, 1, DS_LOAD_MAX_SLOTS, &j->steps, err));
    raise_descriptors();
    if (c->rpc)
        DS_TRY(ds_client_open(c->rpc, NULL, &j->client, err));
    DS_TRY(find_model(j, err));
    if (c->prompts)
        return ds_prompts_read(c->prompts, &j->prompts, err);
    return synthetic_prompts(j, SYNTHETIC_PROMPTS, err);
}

ds_code ds_bench_load(const ds_bench_conf *conf, const volatile int *stop, ds_err *err)
{
    job j = {.conf = conf, .stop = stop};
    json_t *runs = json_array();
    ds_code code = prepare(&j, err);
    if (!code)
        code = sweep(&j, runs, err);
    if (conf->json && json_array_size(runs) > 0) {
        json_t *o = json_pack("{s:s, s:s, s:I, s:f, s:I, s:O}", "model", j.model, "door",
                              j.client ? "rpc" : "http", "max_tokens", (json_int_t)conf->max_tokens,
                              "temperature", conf->temperature, "seed", (json_int_t)conf->seed, "runs", runs);
        ds_err write_err;
        ds_code wrote = ds_bench_write_json(conf->json, o, code ? &write_err : err);
        code = code ? code : wrote;
        json_decref(o);
    }
    json_decref(runs);
    ds_prompts_free(&j.prompts);
    ds_client_close(j.client);
    return code;
}
