/* bench_spec.c - dspark-bench spec: the engine with a draft under closed loops, without a daemon.
 *
 * Each round goes through every mode of every cell, odd rounds in the other direction, so that a slow spell
 * of the machine touches all of them; medians over rounds are reported, and ratios to `off` within a round.
 * Every mode gets the same requests with the same seeds, so all must give the same tokens: that is checked.
 */
#include "cli/bench_spec.h"

#include "base/clock.h"
#include "cli/bench_prompts.h"
#include "text/chat.h"
#include "text/tokenizer.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

enum { PAGE_TOKENS = 16, PROMPT_ROWS = 512, MAX_CONCURRENCY = 256 };

typedef struct user { /* a request of the running cell */
    uint64_t first_ns, last_ns;
    int n_first, n, done;
} user;

typedef struct run {
    const ds_bench_conf *conf;
    const volatile int *stop;
    ds_spec_bench b;
    ds_prompts prompts[DS_SPEC_MAX_DOMAINS];
    ds_backend *backend;
    ds_model *model;
    ds_draft *draft;
    ds_draft_info dinfo;
    ds_engine *engine[2]; /* without the draft, and with it */
    user *users;          /* [requests] of the cell */
    int finished, block;
    uint64_t hash;
    ds_err failed; /* first request that failed */
} run;

ds_spec_cell *ds_spec_bench_cell(const ds_spec_bench *b, int domain, int concurrency, int mode)
{
    return &b->cell[(domain * b->concurrency.n + concurrency) * b->n_modes + mode];
}

static void on_event(void *ctx, const ds_event *ev)
{
    run *r = ctx;
    user *u = &r->users[ev->id];
    if (ev->kind == DS_EV_TOKENS) {
        uint64_t now = ds_now_ns(), h = 0;
        if (!u->n)
            u->first_ns = now, u->n_first = ev->n;
        u->last_ns = now;
        u->n += ev->n;
        for (int i = 0; i < ev->n; i++) { /* order within a request counts, order of requests does not */
            h = (uint64_t)ev->token[i].token * 0x9E3779B97F4A7C15u + ev->id * 0xBF58476D1CE4E5B9u;
            h += (uint64_t)(ev->first + i) * 0x94D049BB133111EBu;
            h = (h ^ h >> 29) * 0xD6E8FEB86659FD93u;
            r->hash += h ^ h >> 32;
        }
    } else if (ev->kind == DS_EV_DONE || ev->kind == DS_EV_ERROR) {
        u->done = 1;
        r->finished++;
        if (ev->kind == DS_EV_ERROR && !r->failed.code)
            ds_err_set(&r->failed, ev->code, "a request failed: %.300s", ev->msg);
    }
}

/* ---- what is asked ---- */

static ds_code parse_mode(const run *r, const char *word, ds_spec_bench_mode *ret, ds_err *err)
{
    char *end;
    long k = strtol(word, &end, 10);
    *ret = (ds_spec_bench_mode){.drafts = 1, .kind = DS_SCHED_FIXED};
    snprintf(ret->name, sizeof ret->name, "%.15s", word);
    if (end != word && !*end && k >= 1 && k <= r->block) {
        ret->max_draft = (int)k;
        return DS_OK;
    }
    int rejection = r->conf->acceptance[0] == 'r';
    if (strcmp(word, "off") == 0)
        ret->drafts = 0;
    else if (strcmp(word, "auto") == 0)
        ret->kind = rejection ? DS_SCHED_EARLY_STOP : DS_SCHED_GLOBAL;
    else if (strcmp(word, "early-stop") == 0)
        ret->kind = DS_SCHED_EARLY_STOP;
    else if (strcmp(word, "stale") == 0)
        ret->kind = DS_SCHED_STALE;
    else if (word[0] == 't' && (ret->threshold = strtod(word + 1, &end)) >= 0 && ret->threshold <= 1 &&
             end != word + 1 && !*end)
        ret->kind = DS_SCHED_THRESHOLD;
    else
        return ds_err_field(
            err, DS_EINVAL, "modes",
            "modes has \"%.20s\", must be off, 1 to %d, t0 to t1 (a threshold), early-stop, stale "
            "or auto",
            word, r->block);
    return DS_OK;
}

static ds_code parse_modes(run *r, ds_err *err)
{
    char text[256];
    snprintf(text, sizeof text, "%s", r->conf->modes);
    if (strcmp(text, "all") == 0) {
        int at = snprintf(text, sizeof text, "off");
        for (int k = 1; k <= r->block; k++)
            at += snprintf(text + at, sizeof text - (size_t)at, ",%d", k);
        snprintf(text + at, sizeof text - (size_t)at, ",t0.5,early-stop,stale,auto");
    }
    char *save, *word = strtok_r(text, ",", &save);
    for (; word; word = strtok_r(NULL, ",", &save)) {
        if (r->b.n_modes == DS_SPEC_MAX_MODES)
            return ds_err_field(err, DS_EINVAL, "modes", "modes has more than %d", DS_SPEC_MAX_MODES);
        DS_TRY(parse_mode(r, word, &r->b.mode[r->b.n_modes++], err));
    }
    if (!r->b.n_modes || r->b.mode[0].drafts)
        return ds_err_field(err, DS_EINVAL, "modes",
                            "modes must begin with off: the others are compared to it");
    return DS_OK;
}

/* Odds of acceptance by position, the last one for the rest of the block. */
static ds_code parse_synthetic(run *r, ds_err *err)
{
    ds_bench_list list;
    if (!r->conf->synthetic)
        return DS_OK;
    DS_TRY(ds_bench_parse_list("synthetic", r->conf->synthetic, 0, 1, &list, err));
    r->b.n_synthetic = r->block;
    for (int k = 0; k < r->block; k++)
        r->b.synthetic[k] = list.v[k < list.n ? k : list.n - 1];
    return DS_OK;
}

static ds_code encode(const ds_tokenizer *tok, ds_chat_kind chat, ds_prompt *p, ds_err *err)
{
    ds_buf text = {0};
    ds_ids ids = {0};
    ds_code code = DS_OK;
    if (p->ids)
        return DS_OK;
    if (p->is_chat && chat != DS_CHAT_NONE) {
        json_t *messages = json_pack("[{s:s, s:s}]", "role", "user", "content", p->turn[0]);
        ds_chat_opts opts = {.add_generation_prompt = 1, .enable_thinking = 0};
        code = messages ? ds_chat_render(chat, messages, NULL, &opts, &text, err)
                        : ds_err_set(err, DS_EINVAL, "a prompt is not valid UTF-8");
        json_decref(messages);
    } else {
        code = ds_buf_puts(&text, p->turn[0]);
    }
    if (!code)
        code = ds_tokenizer_encode(tok, text.data ? text.data : "", text.len, p->is_chat, !p->is_chat,
                                   DS_MAX_PROMPT_TOKENS, &ids, err);
    ds_buf_free(&text);
    if (!code && !ids.n)
        code = ds_err_set(err, DS_EINVAL, "a prompt has no tokens");
    if (code) {
        ds_ids_free(&ids);
        return code;
    }
    p->ids = ids.v;
    p->n_ids = ids.n;
    return DS_OK;
}

/* Each file of --prompts is a domain, named after it. */
static ds_code read_domains(run *r, ds_err *err)
{
    char text[4096];
    ds_tokenizer *tok = NULL;
    ds_chat_kind chat = DS_CHAT_NONE;
    if (!r->conf->prompts)
        return ds_err_field(err, DS_EINVAL, "prompts", "--prompts FILE[,FILE...] is required");
    snprintf(text, sizeof text, "%s", r->conf->prompts);
    ds_err none = {0};
    if (ds_chat_detect(r->conf->model, &chat, &none))
        chat = DS_CHAT_NONE; /* without a template, turns are continued as they are */
    ds_code code = DS_OK;
    char *save, *path = strtok_r(text, ",", &save);
    for (; path && !code; path = strtok_r(NULL, ",", &save)) {
        int d = r->b.n_domains;
        if (d == DS_SPEC_MAX_DOMAINS) {
            code = ds_err_field(err, DS_EINVAL, "prompts", "prompts has more than %d files", d);
            break;
        }
        const char *slash = strrchr(path, '/');
        snprintf(r->b.domain[d], sizeof r->b.domain[d], "%.63s", slash ? slash + 1 : path);
        r->b.domain[d][strcspn(r->b.domain[d], ".")] = 0;
        code = ds_prompts_read(path, &r->prompts[d], err);
        r->b.n_domains += !code;
        for (int i = 0; !code && i < r->prompts[d].n; i++) {
            if (!tok && !r->prompts[d].item[i].ids) /* prompts of ids need none */
                code = ds_tokenizer_open(r->conf->model, &tok, err);
            if (!code)
                code = encode(tok, chat, &r->prompts[d].item[i], err);
        }
    }
    if (tok)
        ds_tokenizer_close(tok);
    return code;
}

/* ---- the engine ---- */

static ds_code open_engine(run *r, ds_err *err)
{
    const ds_bench_conf *c = r->conf;
    int seqs = 1, longest = 0;
    for (int i = 0; i < r->b.concurrency.n; i++)
        seqs = r->b.concurrency.v[i] > seqs ? (int)r->b.concurrency.v[i] : seqs;
    for (int d = 0; d < r->b.n_domains; d++)
        for (int i = 0; i < r->prompts[d].n; i++)
            longest = r->prompts[d].item[i].n_ids > longest ? r->prompts[d].item[i].n_ids : longest;
    int verify = seqs * (1 + r->block), rows = verify > PROMPT_ROWS ? verify : PROMPT_ROWS;
    ds_model_opts mo = {.max_rows = rows,
                        .max_logit_rows = verify,
                        .weights = c->weights,
                        .kv_dtype = "auto",
                        .taps = r->dinfo.taps,
                        .n_taps = r->dinfo.n_taps};
    DS_TRY(ds_backend_open("cpu", (int)c->threads, strcmp(c->isa, "auto") ? c->isa : NULL, &r->backend, err));
    DS_TRY(ds_model_open(c->model, &mo, r->backend, &r->model, err));
    DS_TRY(ds_draft_open(c->draft, r->model, rows, seqs, r->backend, &r->draft, err));
    int pages = (longest + (int)c->max_tokens + r->block) / PAGE_TOKENS + 2;
    ds_engine_conf ec = {.max_seqs = seqs,
                         .max_step_rows = rows,
                         .max_logit_rows = verify,
                         .max_queue = 1,
                         .kv_pages = pages * seqs,
                         .page_tokens = PAGE_TOKENS,
                         .acceptance = c->acceptance[0] == 'r' ? DS_ACCEPT_REJECTION : DS_ACCEPT_COUPLED,
                         .schedule = DS_SCHED_FIXED,
                         .spec = DS_SPEC_AUTO,
                         .spec_temps = ds_draft_get_info(r->draft)->T,
                         .synthetic = r->b.n_synthetic ? r->b.synthetic : NULL,
                         .clock = ds_clock_system()};
    DS_TRY(ds_engine_create(&ec, r->model, r->backend, on_event, r, &r->engine[0], err));
    return ds_engine_create_drafted(&ec, r->model, r->draft, r->backend, on_event, r, &r->engine[1], err);
}

static void close_all(run *r)
{
    ds_engine_destroy(r->engine[0]);
    ds_engine_destroy(r->engine[1]);
    if (r->draft)
        ds_draft_close(r->draft);
    if (r->model)
        ds_model_close(r->model);
    if (r->backend)
        r->backend->destroy(r->backend);
    for (int d = 0; d < r->b.n_domains; d++)
        ds_prompts_free(&r->prompts[d]);
    int cells = r->b.cell ? r->b.n_domains * r->b.concurrency.n * r->b.n_modes : 0;
    for (int i = 0; i < cells; i++) {
        ds_dist_fini(&r->b.cell[i].total);
        ds_dist_fini(&r->b.cell[i].user);
        ds_dist_fini(&r->b.cell[i].ratio_total);
        ds_dist_fini(&r->b.cell[i].ratio_user);
    }
    free(r->b.cell);
    free(r->users);
}

/* ---- one cell ---- */

static ds_code submit(run *r, int domain, const ds_spec_bench_mode *m, int id, ds_err *err)
{
    const ds_bench_conf *c = r->conf;
    const ds_prompt *p = &r->prompts[domain].item[id % r->prompts[domain].n];
    ds_req q = {.id = (uint64_t)id,
                .prompt = p->ids,
                .n_prompt = p->n_ids,
                .max_tokens = (int)c->max_tokens,
                .temperature = (float)c->temperature,
                .top_p = 1,
                .repetition = 1,
                .seed = (uint64_t)c->seed + (uint64_t)id,
                .ignore_eos = c->ignore_eos,
                .n_logprobs = -1,
                .prompt_logprobs = -1,
                .max_draft = m->max_draft};
    return ds_engine_submit(r->engine[m->drafts], &q, err);
}

static void add_stats(ds_spec_cell *cell, const ds_engine_stats *a, const ds_engine_stats *b)
{
    ds_spec_stats *s = &cell->stats;
#define ADD(f) s->f += b->spec.f - a->spec.f
    ADD(rounds);
    ADD(drafted);
    ADD(verified);
    ADD(accepted);
    ADD(passes);
    ADD(skips);
    ADD(draft_ns);
    ADD(sched_ns);
    for (int k = 0; k < DS_MAX_BLOCK; k++) {
        ADD(verified_at[k]);
        ADD(reached_at[k]);
        ADD(accepted_at[k]);
    }
#undef ADD
    cell->steps += b->steps - a->steps;
    cell->busy_ns += b->busy_ns - a->busy_ns;
    cell->tokens += b->output_tokens - a->output_tokens;
}

static int by_value(const void *a, const void *b)
{
    double x = *(const double *)a, y = *(const double *)b;
    return x < y ? -1 : x > y;
}

/* Median speed of the requests, each from its first tokens to its last. */
static double user_speed(const run *r, int n)
{
    double *v = calloc((size_t)n, sizeof *v), median = NAN;
    int m = 0;
    for (int i = 0; v && i < n; i++) {
        const user *u = &r->users[i];
        if (u->n > u->n_first && u->last_ns > u->first_ns)
            v[m++] = (double)(u->n - u->n_first) / ((double)(u->last_ns - u->first_ns) * 1e-9);
    }
    if (m) {
        qsort(v, (size_t)m, sizeof *v, by_value);
        median = m % 2 ? v[m / 2] : (v[m / 2 - 1] + v[m / 2]) / 2;
    }
    free(v);
    return median;
}

static ds_code run_cell(run *r, int d, int c, int m, int round, ds_err *err)
{
    ds_spec_cell *cell = ds_spec_bench_cell(&r->b, d, c, m), *off = ds_spec_bench_cell(&r->b, d, c, 0);
    int at_once = (int)r->b.concurrency.v[c], sent = 0, work;
    int n = r->conf->requests ? (int)r->conf->requests : at_once > 4 ? 2 * at_once : 8;
    ds_engine_stats before, after;
    const ds_spec_bench_mode *mode = &r->b.mode[m];
    ds_engine *e = r->engine[mode->drafts];
    DS_TRY(ds_engine_set_schedule(e, mode->kind, mode->threshold, err));
    ds_engine_get_stats(e, &before);
    memset(r->users, 0, (size_t)n * sizeof *r->users);
    r->finished = 0;
    r->hash = 0;
    uint64_t began = ds_now_ns();
    while (r->finished < n) {
        if (*r->stop)
            return ds_err_set(err, DS_ECANCELLED, "stopped");
        for (; sent < n && sent - r->finished < at_once; sent++)
            DS_TRY(submit(r, d, mode, sent, err));
        DS_TRY(ds_engine_step(e, &work, err));
    }
    double seconds = (double)(ds_now_ns() - began) * 1e-9, total = 0;
    ds_engine_get_stats(e, &after);
    if (r->failed.code)
        return *err = r->failed, r->failed.code;
    if (round < 0)
        return DS_OK; /* warm-up */
    add_stats(cell, &before, &after);
    total = (double)(after.output_tokens - before.output_tokens) / seconds;
    DS_TRY(ds_dist_add(&cell->total, total));
    DS_TRY(ds_dist_add(&cell->user, user_speed(r, n)));
    if (!cell->hash)
        cell->hash = r->hash;
    cell->differs |= cell->hash != r->hash || (off->hash && off->hash != r->hash);
    return DS_OK;
}

/* Ratios to `off` of the same round: the newest value of each. */
static ds_code compare(ds_spec_bench *b, int d, int c, const double *total, const double *one)
{
    for (int m = 0; m < b->n_modes; m++) {
        ds_spec_cell *cell = ds_spec_bench_cell(b, d, c, m);
        DS_TRY(ds_dist_add(&cell->ratio_total, total[m] / total[0]));
        DS_TRY(ds_dist_add(&cell->ratio_user, one[m] / one[0]));
    }
    return DS_OK;
}

static ds_code measure(run *r, ds_err *err)
{
    ds_spec_bench *b = &r->b;
    int shown = r->conf->progress && isatty(STDERR_FILENO), cells = b->n_domains * b->concurrency.n;
    for (int m = 0; m < b->n_modes; m++)
        DS_TRY(run_cell(r, 0, 0, m, -1, err));
    for (int round = 0; round < b->rounds; round++)
        for (int i = 0; i < cells; i++) {
            int d = i / b->concurrency.n, c = i % b->concurrency.n;
            double total[DS_SPEC_MAX_MODES], one[DS_SPEC_MAX_MODES];
            if (shown)
                ds_bench_draw_bar("spec", (double)(round * cells + i) / (b->rounds * cells), b->domain[d]);
            for (int k = 0; k < b->n_modes; k++) {
                int m = round % 2 ? b->n_modes - 1 - k : k;
                ds_spec_cell *cell = ds_spec_bench_cell(b, d, c, m);
                double t = cell->total.sum, u = cell->user.sum;
                DS_TRY(run_cell(r, d, c, m, round, err));
                total[m] = cell->total.sum - t;
                one[m] = cell->user.sum - u;
            }
            if (compare(b, d, c, total, one))
                return ds_err_set(err, DS_ENOMEM, "no memory for the results");
        }
    if (shown)
        ds_bench_draw_bar("", 1, "");
    return DS_OK;
}

/* A wrong token in any mode is an error, not a figure. */
static ds_code check_same(const ds_spec_bench *b, ds_err *err)
{
    if (!b->exact)
        return DS_OK;
    for (int d = 0; d < b->n_domains; d++)
        for (int c = 0; c < b->concurrency.n; c++)
            for (int m = 0; m < b->n_modes; m++) {
                const ds_spec_cell *cell = ds_spec_bench_cell(b, d, c, m);
                if (cell->differs || cell->hash != ds_spec_bench_cell(b, d, c, 0)->hash)
                    return ds_err_set(err, DS_EBUG,
                                      "%s at concurrency %.0f: mode %s gave other tokens than off",
                                      b->domain[d], b->concurrency.v[c], b->mode[m].name);
            }
    return DS_OK;
}

static ds_code report(run *r, ds_err *err)
{
    ds_spec_bench_table(&r->b, ds_bench_table(r->conf));
    if (r->conf->svg)
        DS_TRY(ds_spec_bench_svg(&r->b, r->conf->svg, err));
    if (r->conf->json) {
        const ds_draft_info *d = ds_draft_get_info(r->draft);
        json_t *o = ds_spec_bench_json(&r->b);
        json_object_set_new(o, "model", json_string(r->conf->model));
        json_object_set_new(o, "draft", json_string(r->conf->draft));
        json_object_set_new(o, "block", json_integer(d->block));
        json_object_set_new(o, "device", json_string(r->backend->detail));
        json_object_set_new(o, "temperature", json_real(r->conf->temperature));
        json_object_set_new(o, "acceptance", json_string(r->conf->acceptance));
        json_object_set_new(o, "max_tokens", json_integer(r->conf->max_tokens));
        ds_code code = ds_bench_write_json(r->conf->json, o, err);
        json_decref(o);
        DS_TRY(code);
    }
    return check_same(&r->b, err);
}

ds_code ds_bench_spec(const ds_bench_conf *conf, const volatile int *stop, ds_err *err)
{
    run r = {.conf = conf, .stop = stop};
    r.b.rounds = (int)conf->reps;
    if (!conf->model || !conf->draft)
        return ds_err_field(err, DS_EINVAL, conf->model ? "draft" : "model",
                            "--model DIR and --draft DIR are required");
    DS_TRY(ds_bench_parse_list("concurrency", conf->concurrency, 1, MAX_CONCURRENCY, &r.b.concurrency, err));
    DS_TRY(ds_draft_plan(conf->draft, conf->model, &r.dinfo, err));
    r.block = r.dinfo.block;
    DS_TRY(parse_modes(&r, err));
    DS_TRY(parse_synthetic(&r, err));
    r.b.exact = !r.b.n_synthetic && (conf->acceptance[0] == 'c' || conf->temperature == 0);
    ds_code code = read_domains(&r, err);
    size_t most = (size_t)(conf->requests > 2 * MAX_CONCURRENCY ? conf->requests : 2 * MAX_CONCURRENCY);
    if (!code) {
        r.b.cell = calloc((size_t)(r.b.n_domains * r.b.concurrency.n * r.b.n_modes), sizeof *r.b.cell);
        r.users = calloc(most, sizeof *r.users);
        if (!r.b.cell || !r.users)
            code = ds_err_set(err, DS_ENOMEM, "no memory for the results");
    }
    if (!code)
        code = open_engine(&r, err);
    if (!code)
        code = measure(&r, err);
    if (!code)
        code = report(&r, err);
    close_all(&r);
    return code;
}
