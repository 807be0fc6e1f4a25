#include "cli/bench_report.h"

#include "cli/bench.h"

#include <math.h>
#include <stdio.h>

void ds_bench_show_progress(void *ctx, const ds_load_result *r, double share)
{
    (void)ctx;
    char label[64], text[160];
    if (r->rate > 0)
        snprintf(label, sizeof label, "%g requests/s", r->rate);
    else
        snprintf(label, sizeof label, "concurrency %d", r->concurrency);
    double left = share > 0 ? r->seconds / share - r->seconds : NAN;
    snprintf(text, sizeof text, "%lld done, %lld failed, %.0f tok/s, %.0f s left", (long long)r->ok,
             (long long)r->failed, r->seconds > 0 ? (double)r->output_tokens / r->seconds : 0, left);
    ds_bench_draw_bar(label, share, text);
}

void ds_bench_report_head(FILE *out, int open_loop)
{
    fprintf(out, "%6s %7s %6s %8s %9s %9s | %8s %8s %8s | %7s %7s %7s | %7s %7s | %9s %9s %9s | %4s\n",
            open_loop ? "rate" : "conc", "ok", "failed", "req/s", "out tok/s", "in tok/s", "TTFT p50", "p90",
            "p99", "ITL p50", "p90", "p99", "TPOTp50", "p99", "E2E p50", "p90", "p99", "CPU");
}

static void put(FILE *out, ds_dist *d, int width, double p)
{
    double v = ds_dist_percentile(d, p);
    if (isnan(v))
        fprintf(out, " %*s", width, "-");
    else
        fprintf(out, " %*.*f", width, v < 10 ? 2 : v < 1000 ? 1 : 0, v);
}

void ds_bench_report_row(FILE *out, ds_load_result *r, int open_loop)
{
    double s = r->seconds > 0 ? r->seconds : NAN;
    if (open_loop)
        fprintf(out, "%6g", r->rate);
    else
        fprintf(out, "%6d", r->concurrency);
    fprintf(out, " %7lld %6lld %8.2f %9.1f %9.1f |", (long long)r->ok, (long long)r->failed,
            (double)r->ok / s, (double)r->output_tokens / s, (double)r->prompt_tokens / s);
    static const double percentiles[] = {50, 90, 99};
    for (int i = 0; i < 3; i++)
        put(out, &r->ttft_ms, 8, percentiles[i]);
    fprintf(out, " |");
    for (int i = 0; i < 3; i++)
        put(out, &r->itl_ms, 7, percentiles[i]);
    fprintf(out, " |");
    for (int i = 0; i < 3; i += 2)
        put(out, &r->tpot_ms, 7, percentiles[i]);
    fprintf(out, " |");
    for (int i = 0; i < 3; i++)
        put(out, &r->e2e_ms, 9, percentiles[i]);
    fprintf(out, " | %3.0f%%\n", 100 * r->cpu_seconds / s);
    if (r->failed)
        fprintf(out, "       first failure: %s\n", r->first_error);
    if (r->late)
        fprintf(out, "       %lld arrivals waited for a free slot (--max-outstanding)\n", (long long)r->late);
    fflush(out);
}

static json_t *number(double v)
{
    return isfinite(v) ? json_real(v) : json_null();
}

static json_t *dist_json(ds_dist *d)
{
    return json_pack("{s:I, s:o, s:o, s:o, s:o, s:o, s:o}", "n", (json_int_t)d->n, "mean",
                     number(ds_dist_mean(d)), "min", number(d->n ? d->min : NAN), "p50",
                     number(ds_dist_percentile(d, 50)), "p90", number(ds_dist_percentile(d, 90)), "p99",
                     number(ds_dist_percentile(d, 99)), "max", number(d->n ? d->max : NAN));
}

json_t *ds_bench_report_json(ds_load_result *r)
{
    double s = r->seconds > 0 ? r->seconds : NAN;
    json_t *o = json_pack(
        "{s:i, s:o, s:o, s:o, s:I, s:I, s:I, s:I, s:I, s:I, s:I}", "concurrency", r->concurrency, "rate",
        number(r->rate > 0 ? r->rate : NAN), "seconds", number(r->seconds), "client_cpu_seconds",
        number(r->cpu_seconds), "started", (json_int_t)r->started, "ok", (json_int_t)r->ok, "failed",
        (json_int_t)r->failed, "late", (json_int_t)r->late, "prompt_tokens", (json_int_t)r->prompt_tokens,
        "output_tokens", (json_int_t)r->output_tokens, "cached_tokens", (json_int_t)r->cached_tokens);
    json_t *error = json_string(r->first_error); /* NULL when it was cut within a character */
    json_object_set_new(o, "first_error", error ? error : json_string("(not UTF-8)"));
    json_object_set_new(o, "requests_per_s", number((double)r->ok / s));
    json_object_set_new(o, "output_tokens_per_s", number((double)r->output_tokens / s));
    json_object_set_new(o, "prompt_tokens_per_s", number((double)r->prompt_tokens / s));
    json_object_set_new(o, "events_per_s", number((double)(r->itl_ms.n + r->ttft_ms.n) / s));
    json_object_set_new(o, "ttft_ms", dist_json(&r->ttft_ms));
    json_object_set_new(o, "itl_ms", dist_json(&r->itl_ms));
    json_object_set_new(o, "tpot_ms", dist_json(&r->tpot_ms));
    json_object_set_new(o, "e2e_ms", dist_json(&r->e2e_ms));
    return o;
}
