/* bench_spec_report.c - results of dspark-bench spec as a table, as JSON, and as a picture. Pure. */
#include "cli/bench_spec.h"

#include <errno.h>
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

static void put_number(FILE *out, const char *format, double v)
{
    if (isfinite(v))
        fprintf(out, format, v);
    else
        fprintf(out, "%8s", "-");
}

void ds_spec_bench_table(const ds_spec_bench *b, FILE *out)
{
    for (int d = 0; d < b->n_domains; d++) {
        fprintf(out, "\n%s\n%6s %5s %10s %8s %8s %8s %8s %8s %8s  %s\n", b->domain[d], "conc", "mode",
                "tok/s", "spread", "x off", "user/s", "x off", "tau", "skips",
                "conditional acceptance by position");
        for (int c = 0; c < b->concurrency.n; c++)
            for (int m = 0; m < b->n_modes; m++) {
                ds_spec_cell *cell = ds_spec_bench_cell(b, d, c, m);
                fprintf(out, "%6.0f %5s %10.1f %7.1f%% %8.2f %8.1f %8.2f ", b->concurrency.v[c],
                        b->mode[m].name, median(&cell->total),
                        100 * (cell->total.max - cell->total.min) / median(&cell->total),
                        median(&cell->ratio_total), median(&cell->user), median(&cell->ratio_user));
                put_number(out, "%8.2f", accepted_length(&cell->stats));
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
    json_t *o =
        json_pack("{s:i, s:s, s:o, s:o, s:o, s:o, s:o, s:o, s:b}", "concurrency", (int)b->concurrency.v[c],
                  "mode", b->mode[m].name, "tokens_per_s", dist_json(&cell->total), "tokens_per_s_per_user",
                  dist_json(&cell->user), "total_over_off", dist_json(&cell->ratio_total), "user_over_off",
                  dist_json(&cell->ratio_user), "accepted_length", real(accepted_length(s)), "positions",
                  positions, "same_tokens_as_off", !cell->differs);
    json_t *counts = json_pack("{s:I, s:I, s:I, s:I, s:I, s:I, s:I, s:I, s:f, s:f}", "tokens",
                               (json_int_t)cell->tokens, "steps", (json_int_t)cell->steps, "rounds",
                               (json_int_t)s->rounds, "drafted", (json_int_t)s->drafted, "verified",
                               (json_int_t)s->verified, "accepted", (json_int_t)s->accepted, "draft_passes",
                               (json_int_t)s->passes, "draft_skips", (json_int_t)s->skips, "draft_s",
                               (double)s->draft_ns * 1e-9, "busy_s", (double)cell->busy_ns * 1e-9);
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
    return json_pack("{s:i, s:o}", "rounds", b->rounds, "domains", domains);
}

/* ---- picture ---- */

enum { PANEL_W = 460, PANEL_H = 360, LEFT = 64, RIGHT = 16, TOP = 40, BOTTOM = 48, LEGEND = 40 };

typedef struct panel {
    double x0, most_x, most_y; /* left edge; ends of the axes */
} panel;

static double at_x(const panel *p, double v)
{
    return p->x0 + LEFT + v / p->most_x * (PANEL_W - LEFT - RIGHT);
}

static double at_y(const panel *p, double v)
{
    return PANEL_H - BOTTOM - v / p->most_y * (PANEL_H - TOP - BOTTOM);
}

/* 1, 2 or 5 times a power of ten: about five steps to `most`. */
static double tick(double most)
{
    double base = pow(10, floor(log10(most / 5))), n = most / 5 / base;
    return base * (n < 1.5 ? 1 : n < 3.5 ? 2 : n < 7.5 ? 5 : 10);
}

static void colour_of(const ds_spec_bench *b, int m, char out[32])
{
    if (b->mode[m].mode == DS_SPEC_OFF)
        snprintf(out, 32, "#444444");
    else if (b->mode[m].mode == DS_SPEC_AUTO)
        snprintf(out, 32, "#d62728");
    else
        snprintf(out, 32, "hsl(%d,60%%,45%%)", 180 + 100 * m / b->n_modes);
}

static void put_axes(FILE *f, const panel *p, const char *title)
{
    double sx = tick(p->most_x), sy = tick(p->most_y), bottom = at_y(p, 0);
    fprintf(f, "<text x=\"%.1f\" y=\"22\" font-size=\"14\" font-weight=\"bold\">", p->x0 + LEFT);
    for (const char *c = title; *c; c++)
        if (*c == '<' || *c == '>' || *c == '&' || (unsigned char)*c < 32)
            fputc('_', f);
        else
            fputc(*c, f);
    fprintf(f, "</text>\n");
    for (double v = 0; v <= p->most_x; v += sx)
        fprintf(f,
                "<path d=\"M%.1f %.1fV%d\" stroke=\"#ddd\"/><text x=\"%.1f\" y=\"%.1f\" "
                "text-anchor=\"middle\">%g</text>\n",
                at_x(p, v), bottom, TOP, at_x(p, v), bottom + 16, v);
    for (double v = 0; v <= p->most_y; v += sy)
        fprintf(f,
                "<path d=\"M%.1f %.1fH%.1f\" stroke=\"#ddd\"/><text x=\"%.1f\" y=\"%.1f\" "
                "text-anchor=\"end\">%g</text>\n",
                at_x(p, 0), at_y(p, v), at_x(p, p->most_x), at_x(p, 0) - 6, at_y(p, v) + 4, v);
    fprintf(f, "<text x=\"%.1f\" y=\"%.1f\" text-anchor=\"middle\">tokens/s of one user</text>\n",
            at_x(p, p->most_x / 2), bottom + 36);
    fprintf(f,
            "<text transform=\"translate(%.1f %.1f) rotate(-90)\" text-anchor=\"middle\">tokens/s of "
            "all</text>\n",
            p->x0 + 14, at_y(p, p->most_y / 2));
}

static void put_line(FILE *f, const ds_spec_bench *b, const panel *p, int d, int m)
{
    char colour[32];
    colour_of(b, m, colour);
    int bold = b->mode[m].mode != DS_SPEC_MAX;
    fprintf(f, "<polyline fill=\"none\" stroke=\"%s\" stroke-width=\"%s\" points=\"", colour,
            bold ? "2.5" : "1");
    for (int c = 0; c < b->concurrency.n; c++) {
        ds_spec_cell *cell = ds_spec_bench_cell(b, d, c, m);
        if (cell->user.n && isfinite(median(&cell->user)))
            fprintf(f, "%.1f,%.1f ", at_x(p, median(&cell->user)), at_y(p, median(&cell->total)));
    }
    fprintf(f, "\"/>\n");
    for (int c = 0; c < b->concurrency.n; c++) {
        ds_spec_cell *cell = ds_spec_bench_cell(b, d, c, m);
        double x = median(&cell->user), y = median(&cell->total);
        if (!isfinite(x))
            continue;
        fprintf(
            f,
            "<circle cx=\"%.1f\" cy=\"%.1f\" r=\"%s\" fill=\"%s\"><title>%s, %.0f at once</title></circle>\n",
            at_x(p, x), at_y(p, y), bold ? "4" : "2.5", colour, b->mode[m].name, b->concurrency.v[c]);
        if (bold)
            fprintf(f, "<text x=\"%.1f\" y=\"%.1f\" fill=\"%s\">%.0f</text>\n", at_x(p, x) + 6,
                    at_y(p, y) - 6, colour, b->concurrency.v[c]);
    }
}

ds_code ds_spec_bench_svg(const ds_spec_bench *b, const char *file, ds_err *err)
{
    FILE *f = fopen(file, "w");
    if (!f)
        return ds_err_field(err, DS_EIO, "svg", "%s: %s", file, strerror(errno));
    int width = PANEL_W * b->n_domains;
    fprintf(f,
            "<svg xmlns=\"http://www.w3.org/2000/svg\" width=\"%d\" height=\"%d\" font-family=\"sans-serif\" "
            "font-size=\"11\">\n<rect width=\"100%%\" height=\"100%%\" fill=\"white\"/>\n",
            width, PANEL_H + LEGEND);
    for (int d = 0; d < b->n_domains; d++) {
        panel p = {d * PANEL_W, 1e-9, 1e-9};
        for (int c = 0; c < b->concurrency.n; c++)
            for (int m = 0; m < b->n_modes; m++) {
                ds_spec_cell *cell = ds_spec_bench_cell(b, d, c, m);
                p.most_x = fmax(p.most_x, 1.08 * median(&cell->user));
                p.most_y = fmax(p.most_y, 1.08 * median(&cell->total));
            }
        put_axes(f, &p, b->domain[d]);
        for (int m = 0; m < b->n_modes; m++)
            put_line(f, b, &p, d, m);
    }
    for (int m = 0; m < b->n_modes; m++) {
        char colour[32];
        colour_of(b, m, colour);
        fprintf(f,
                "<rect x=\"%d\" y=\"%d\" width=\"10\" height=\"10\" fill=\"%s\"/><text x=\"%d\" "
                "y=\"%d\">%s</text>\n",
                LEFT + 42 * m, PANEL_H + 8, colour, LEFT + 42 * m + 13, PANEL_H + 17, b->mode[m].name);
    }
    fprintf(f,
            "<text x=\"%d\" y=\"%d\">numbers at points: requests at once; a number as mode: fixed "
            "length</text>\n</svg>\n",
            LEFT, PANEL_H + 34);
    int bad = ferror(f);
    if (fclose(f) || bad)
        return ds_err_field(err, DS_EIO, "svg", "%s: could not be written", file);
    return DS_OK;
}
