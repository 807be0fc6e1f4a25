/* bench_spec_report.c - results of dspark-bench spec as a table and as JSON. Pure. */
#include "cli/bench_spec.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

static double median(ds_dist *d)
{
    return ds_dist_percentile(d, 50);
}

/* Tokens a step of a request that verified drafts, the target's own included. */
static double accepted_length(const ds_spec_stats *s)
{
    return s->rounds ? 1 + (double)s->accepted / (double)s->rounds : NAN;
}

double ds_spec_rows_per_request(const ds_spec_cell *cell)
{
    double steps =
        (double)cell->tokens - (double)cell->stats.accepted; /* each gives one token of the target's */
    return steps > 0 ? 1 + (double)cell->stats.verified / steps : NAN;
}

static void put_number(FILE *out, const char *format, double v)
{
    if (isfinite(v))
        fprintf(out, format, v);
    else
        fprintf(out, "%8s", "-");
}

void ds_spec_bench_table(const ds_spec_bench *b, FILE *out)
{
    if (b->n_synthetic)
        fprintf(out,
                "SYNTHETIC acceptance: drafts stood by given odds; speeds only, the text is worthless\n");
    for (int d = 0; d < b->n_domains; d++) {
        fprintf(out, "\n%s\n%6s %10s %10s %8s %8s %8s %8s %8s %8s %8s  %s\n", b->domain[d], "conc", "mode",
                "tok/s", "spread", "x off", "user/s", "x off", "tau", "rows", "skips",
                "conditional acceptance by position");
        for (int c = 0; c < b->concurrency.n; c++)
            for (int m = 0; m < b->n_modes; m++) {
                ds_spec_cell *cell = ds_spec_bench_cell(b, d, c, m);
                fprintf(out, "%6.0f %10s %10.1f %7.1f%% %8.2f %8.1f %8.2f ", b->concurrency.v[c],
                        b->mode[m].name, median(&cell->total),
                        100 * (cell->total.max - cell->total.min) / median(&cell->total),
                        median(&cell->ratio_total), median(&cell->user), median(&cell->ratio_user));
                put_number(out, "%8.2f", accepted_length(&cell->stats));
                put_number(out, " %8.2f", ds_spec_rows_per_request(cell));
                fprintf(out, " %7.0f%% ",
                        cell->steps ? 100 * (double)cell->stats.skips / (double)cell->steps : 0);
                for (int k = 0; k < DS_MAX_BLOCK && cell->stats.reached_at[k]; k++)
                    fprintf(out, " %.2f",
                            (double)cell->stats.accepted_at[k] / (double)cell->stats.reached_at[k]);
                fprintf(out, "\n");
            }
    }
}

static json_t *real(double v)
{
    return isfinite(v) ? json_real(v) : json_null();
}

static json_t *dist_json(ds_dist *d)
{
    return json_pack("{s:o, s:o, s:o, s:i}", "median", real(median(d)), "min", real(d->min), "max",
                     real(d->max), "rounds", (int)d->n);
}

static json_t *cell_json(const ds_spec_bench *b, int c, int m, ds_spec_cell *cell)
{
    const ds_spec_stats *s = &cell->stats;
    json_t *positions = json_array();
    for (int k = 0; k < DS_MAX_BLOCK && s->verified_at[k]; k++)
        json_array_append_new(positions,
                              json_pack("{s:I, s:I, s:I, s:o}", "verified", (json_int_t)s->verified_at[k],
                                        "reached", (json_int_t)s->reached_at[k], "accepted",
                                        (json_int_t)s->accepted_at[k], "conditional_acceptance",
                                        real((double)s->accepted_at[k] / (double)s->reached_at[k])));
    json_t *o = json_pack("{s:i, s:s, s:o, s:o, s:o, s:o, s:o, s:o, s:o, s:o}", "concurrency",
                          (int)b->concurrency.v[c], "mode", b->mode[m].name, "tokens_per_s",
                          dist_json(&cell->total), "tokens_per_s_per_user", dist_json(&cell->user),
                          "total_over_off", dist_json(&cell->ratio_total), "user_over_off",
                          dist_json(&cell->ratio_user), "accepted_length", real(accepted_length(s)),
                          "rows_per_request", real(ds_spec_rows_per_request(cell)), "positions", positions,
                          "same_tokens_as_off", !b->exact ? json_null() : json_boolean(!cell->differs));
    json_t *counts = json_pack(
        "{s:I, s:I, s:I, s:I, s:I, s:I, s:I, s:I, s:f, s:f, s:f}", "tokens", (json_int_t)cell->tokens,
        "steps", (json_int_t)cell->steps, "rounds", (json_int_t)s->rounds, "drafted", (json_int_t)s->drafted,
        "verified", (json_int_t)s->verified, "accepted", (json_int_t)s->accepted, "draft_passes",
        (json_int_t)s->passes, "draft_skips", (json_int_t)s->skips, "draft_s", (double)s->draft_ns * 1e-9,
        "schedule_s", (double)s->sched_ns * 1e-9, "busy_s", (double)cell->busy_ns * 1e-9);
    json_object_set_new(o, "counts", counts);
    return o;
}

json_t *ds_spec_bench_json(const ds_spec_bench *b)
{
    json_t *domains = json_array();
    for (int d = 0; d < b->n_domains; d++) {
        json_t *cells = json_array();
        for (int c = 0; c < b->concurrency.n; c++)
            for (int m = 0; m < b->n_modes; m++)
                json_array_append_new(cells, cell_json(b, c, m, ds_spec_bench_cell(b, d, c, m)));
        json_array_append_new(domains, json_pack("{s:s, s:o}", "domain", b->domain[d], "cells", cells));
    }
    json_t *synthetic = b->n_synthetic ? json_array() : json_null();
    for (int k = 0; k < b->n_synthetic; k++)
        json_array_append_new(synthetic, json_real(b->synthetic[k]));
    return json_pack("{s:i, s:o, s:o}", "rounds", b->rounds, "synthetic_acceptance", synthetic, "domains",
                     domains);
}
