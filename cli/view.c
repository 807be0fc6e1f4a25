#include "cli/view.h"

#include <math.h>
#include <stddef.h>
#include <stdio.h>
#include <string.h>

/* One row per number of a worker: its metric (label `worker`), its field, its name in --json. */
static const struct {
    const char *metric, *json;
    size_t offset;
} FIELDS[] = {
#define FIELD(metric, member)                                              \
    {                                                                      \
        "dspark_worker_" metric, #member, offsetof(ds_view_worker, member) \
    }
    FIELD("up", up),
    FIELD("running", running),
    FIELD("waiting", waiting),
    FIELD("kv_tokens_used", kv_used),
    FIELD("kv_tokens", kv_total),
    FIELD("steps_total", steps),
    FIELD("rows_total", rows),
    FIELD("prompt_tokens_total", prompt_tokens),
    FIELD("output_tokens_total", output_tokens),
    FIELD("prefix_hit_tokens_total", prefix_hit_tokens),
    FIELD("preemptions_total", preemptions),
    FIELD("finished_total", finished),
    FIELD("cancelled_total", cancelled),
    FIELD("failed_total", failed),
    FIELD("draft_tokens_total", draft_tokens),
    FIELD("accepted_tokens_total", accepted_tokens),
    FIELD("draft_rounds_total", draft_rounds),
    FIELD("draft_proposed_tokens_total", proposed_tokens),
    FIELD("busy_seconds_total", busy_s),
    FIELD("last_step_seconds", last_step_s),
    FIELD("rss_bytes", rss_bytes),
#undef FIELD
};
enum { N_FIELDS = sizeof FIELDS / sizeof *FIELDS };

static double *field(ds_view_worker *w, int i)
{
    return (double *)((char *)w + FIELDS[i].offset);
}

static ds_view_worker *worker_named(ds_view *v, const char *name)
{
    for (int i = 0; i < v->n_workers; i++)
        if (strcmp(v->worker[i].name, name) == 0)
            return &v->worker[i];
    if (v->n_workers == DS_VIEW_MAX_WORKERS)
        return NULL;
    ds_view_worker *w = &v->worker[v->n_workers++];
    memset(w, 0, sizeof *w);
    w->output_rate = w->prompt_rate = w->step_rate = w->busy_share = NAN;
    w->accepted_length = w->acceptance = NAN;
    snprintf(w->name, sizeof w->name, "%s", name);
    return w;
}

static void clear_total(ds_view *v)
{
    v->total = (ds_view_worker){.name = "total",
                                .output_rate = NAN,
                                .prompt_rate = NAN,
                                .step_rate = NAN,
                                .busy_share = NAN,
                                .accepted_length = NAN,
                                .acceptance = NAN};
}

void ds_view_from_metrics(const ds_prom *p, uint64_t at_ns, ds_view *ret)
{
    ret->at_ns = at_ns;
    ret->n_workers = 0;
    clear_total(ret);
    for (int i = 0; i < p->n; i++)
        for (int f = 0; f < N_FIELDS; f++) {
            if (strcmp(p->sample[i].name, FIELDS[f].metric) != 0)
                continue;
            char name[DS_PROM_MAX_LABEL];
            ds_prom_label(&p->sample[i], "worker", name);
            ds_view_worker *w = worker_named(ret, name);
            if (w)
                *field(w, f) = p->sample[i].value;
            *field(&ret->total, f) += p->sample[i].value;
        }
}

void ds_view_sum(ds_view *v)
{
    clear_total(v);
    for (int i = 0; i < v->n_workers; i++)
        for (int f = 0; f < N_FIELDS; f++)
            *field(&v->total, f) += *field(&v->worker[i], f);
}

static double rate(double before, double now, double seconds)
{
    return now < before || seconds <= 0 ? NAN : (now - before) / seconds;
}

/* rounds: steps of a request that verified drafts; each emits the accepted ones and one from the target. */
static void worker_drafts(ds_view_worker *w, double rounds, double drafts, double accepted)
{
    w->accepted_length = rounds > 0 ? 1 + accepted / rounds : NAN;
    w->acceptance = drafts > 0 ? accepted / drafts : NAN;
}

static void worker_rates(const ds_view_worker *before, ds_view_worker *now, double seconds)
{
    now->output_rate = rate(before->output_tokens, now->output_tokens, seconds);
    now->prompt_rate = rate(before->prompt_tokens, now->prompt_tokens, seconds);
    now->step_rate = rate(before->steps, now->steps, seconds);
    now->busy_share = rate(before->busy_s, now->busy_s, seconds);
    double rounds = now->draft_rounds - before->draft_rounds;
    if (rounds > 0)
        worker_drafts(now, rounds, now->draft_tokens - before->draft_tokens,
                      now->accepted_tokens - before->accepted_tokens);
    else
        worker_drafts(now, now->draft_rounds, now->draft_tokens, now->accepted_tokens);
}

void ds_view_rates(const ds_view *before, ds_view *now)
{
    double seconds = (double)(now->at_ns - before->at_ns) / 1e9;
    for (int i = 0; i < now->n_workers; i++)
        for (int j = 0; j < before->n_workers; j++)
            if (strcmp(now->worker[i].name, before->worker[j].name) == 0)
                worker_rates(&before->worker[j], &now->worker[i], seconds);
    worker_rates(&before->total, &now->total, seconds);
}

static json_t *number(double v)
{
    if (!isfinite(v))
        return json_null();
    return v == floor(v) && fabs(v) < 0x1p53 ? json_integer((json_int_t)v) : json_real(v);
}

static json_t *worker_json(const ds_view_worker *w)
{
    json_t *o = json_pack("{s:s}", "name", w->name);
    for (int f = 0; o && f < N_FIELDS; f++)
        json_object_set_new(o, FIELDS[f].json, number(*(const double *)((const char *)w + FIELDS[f].offset)));
    json_object_set_new(o, "output_tokens_per_s", number(w->output_rate));
    json_object_set_new(o, "prompt_tokens_per_s", number(w->prompt_rate));
    json_object_set_new(o, "steps_per_s", number(w->step_rate));
    json_object_set_new(o, "busy_share", number(w->busy_share));
    json_object_set_new(o, "accepted_length", number(w->accepted_length));
    json_object_set_new(o, "acceptance", number(w->acceptance));
    return o;
}

json_t *ds_view_json(const ds_view *v)
{
    json_t *workers = json_array();
    for (int i = 0; i < v->n_workers; i++)
        json_array_append_new(workers, worker_json(&v->worker[i]));
    return json_pack("{s:o, s:o}", "workers", workers, "total", worker_json(&v->total));
}

void ds_view_count(double v, char *out, size_t n)
{
    static const char units[] = " kMGT";
    if (!isfinite(v)) {
        snprintf(out, n, "-");
        return;
    }
    int unit = 0;
    double shown = v;
    while (fabs(shown) >= (unit ? 999.5 : 9999.5) && unit < 4) {
        shown /= 1000;
        unit++;
    }
    if (unit)
        snprintf(out, n, "%.*f%c", fabs(shown) < 100 ? 1 : 0, shown, units[unit]);
    else
        snprintf(out, n, "%.*f", fabs(v) < 100 && v != floor(v) ? 1 : 0, v);
}

void ds_view_bytes(double v, char *out, size_t n)
{
    static const char units[] = "BKMGT";
    int unit = 0;
    while (fabs(v) >= 1024 && unit < 4) {
        v /= 1024;
        unit++;
    }
    snprintf(out, n, "%.*f%c", unit && fabs(v) < 10 ? 1 : 0, v, units[unit]);
}

static ds_code put_row(const ds_view_worker *w, const char *state, int drafts, ds_buf *out)
{
    char kv[48], used[16], all[16], output[16], prompt[16], steps[16], total[16], rss[16], busy[16];
    ds_view_count(w->kv_used, used, sizeof used);
    ds_view_count(w->kv_total, all, sizeof all);
    snprintf(kv, sizeof kv, "%s/%s %3.0f%%", used, all, w->kv_total > 0 ? 100 * w->kv_used / w->kv_total : 0);
    ds_view_count(w->output_rate, output, sizeof output);
    ds_view_count(w->prompt_rate, prompt, sizeof prompt);
    ds_view_count(w->step_rate, steps, sizeof steps);
    ds_view_count(w->output_tokens, total, sizeof total);
    ds_view_bytes(w->rss_bytes, rss, sizeof rss);
    if (isfinite(w->busy_share))
        snprintf(busy, sizeof busy, "%.0f%%", 100 * w->busy_share);
    else
        snprintf(busy, sizeof busy, "-");
    DS_TRY(ds_buf_printf(out, "%-24.24s %-6s %5.0f %5.0f %18s %8s %8s %8s %6s %9s %6.0f %7s", w->name, state,
                         w->running, w->waiting, kv, output, prompt, steps, busy, total, w->failed, rss));
    if (drafts && isfinite(w->accepted_length))
        DS_TRY(ds_buf_printf(out, " %6.2f %5.0f%%", w->accepted_length, 100 * w->acceptance));
    else if (drafts)
        DS_TRY(ds_buf_printf(out, " %6s %6s", "-", "-"));
    return ds_buf_puts(out, "\n");
}

ds_code ds_view_table(const ds_view *v, ds_buf *out)
{
    int drafts = v->total.proposed_tokens > 0; /* a draft is loaded and was used */
    DS_TRY(ds_buf_printf(out, "%-24s %-6s %5s %5s %18s %8s %8s %8s %6s %9s %6s %7s%s\n", "WORKER", "STATE",
                         "RUN", "WAIT", "KV TOKENS", "OUT/S", "PROMPT/S", "STEPS/S", "BUSY", "OUTPUT",
                         "FAILED", "RSS", drafts ? "    TAU ACCEPT" : ""));
    for (int i = 0; i < v->n_workers; i++)
        DS_TRY(put_row(&v->worker[i], v->worker[i].up > 0 ? "up" : "down", drafts, out));
    if (v->n_workers != 1)
        DS_TRY(put_row(&v->total, "", drafts, out));
    return DS_OK;
}
