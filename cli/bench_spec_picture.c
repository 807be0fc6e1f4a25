/* bench_spec_picture.c - results of dspark-bench spec as one SVG: a column a domain, a row a question. Pure.
 */
#include "cli/bench_spec.h"

#include <errno.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>

enum { PANEL_W = 460, PANEL_H = 340, LEFT = 64, RIGHT = 16, TOP = 40, BOTTOM = 52, LEGEND = 44 };

/* What the rows show: y over x, a line a mode. NAN: no point. */
typedef struct question {
    const char *x, *y;
    int (*points)(const ds_spec_bench *b);
    void (*point)(const ds_spec_bench *b, int d, int m, int i, double *x, double *y);
} question;

static double median(ds_dist *d)
{
    return d->n ? ds_dist_percentile(d, 50) : NAN;
}

static int loads(const ds_spec_bench *b)
{
    return b->concurrency.n;
}

static int positions(const ds_spec_bench *b)
{
    (void)b;
    return DS_MAX_BLOCK;
}

static void speed(const ds_spec_bench *b, int d, int m, int i, double *x, double *y)
{
    ds_spec_cell *cell = ds_spec_bench_cell(b, d, i, m);
    *x = median(&cell->user);
    *y = median(&cell->total);
}

static void rows(const ds_spec_bench *b, int d, int m, int i, double *x, double *y)
{
    const ds_spec_cell *cell = ds_spec_bench_cell(b, d, i, m);
    *x = b->concurrency.v[i];
    *y = ds_spec_rows_per_request(cell);
}

/* At the lowest load, where the most is verified. */
static void acceptance(const ds_spec_bench *b, int d, int m, int i, double *x, double *y)
{
    const ds_spec_stats *s = &ds_spec_bench_cell(b, d, 0, m)->stats;
    *x = i + 1;
    *y = s->reached_at[i] ? (double)s->accepted_at[i] / (double)s->reached_at[i] : NAN;
}

static const question QUESTIONS[] = {
    {"tokens/s of one user", "tokens/s of all", loads, speed},
    {"requests at once", "target rows of a request in a step", loads, rows},
    {"position in the block", "conditional acceptance (lowest load)", positions, acceptance},
};
enum { N_QUESTIONS = sizeof QUESTIONS / sizeof *QUESTIONS };

typedef struct panel {
    double x0, y0, most_x, most_y; /* upper left corner; ends of the axes */
} panel;

static double at_x(const panel *p, double v)
{
    return p->x0 + LEFT + v / p->most_x * (PANEL_W - LEFT - RIGHT);
}

static double at_y(const panel *p, double v)
{
    return p->y0 + PANEL_H - BOTTOM - v / p->most_y * (PANEL_H - TOP - BOTTOM);
}

/* 1, 2 or 5 times a power of ten: about five steps to `most`. */
static double tick(double most)
{
    double base = pow(10, floor(log10(most / 5))), n = most / 5 / base;
    return base * (n < 1.5 ? 1 : n < 3.5 ? 2 : n < 7.5 ? 5 : 10);
}

static int is_scheduled(const ds_spec_bench_mode *m)
{
    return m->drafts && m->kind != DS_SCHED_FIXED && m->kind != DS_SCHED_THRESHOLD;
}

static void colour_of(const ds_spec_bench *b, int m, char out[32])
{
    static const char *const SCHEDULED[] = {"#d62728", "#ff7f0e", "#9467bd"};
    const ds_spec_bench_mode *mode = &b->mode[m];
    if (!mode->drafts)
        snprintf(out, 32, "#444444");
    else if (is_scheduled(mode))
        snprintf(out, 32, "%s",
                 SCHEDULED[strcmp(mode->name, "auto") == 0 ? 0 : 1 + (mode->kind == DS_SCHED_STALE)]);
    else if (mode->kind == DS_SCHED_THRESHOLD)
        snprintf(out, 32, "#8c8c00");
    else
        snprintf(out, 32, "hsl(%d,60%%,45%%)", 170 + 100 * m / b->n_modes);
}

static void put_axes(FILE *f, const panel *p, const char *title, const question *q)
{
    double sx = tick(p->most_x), sy = tick(p->most_y), bottom = at_y(p, 0);
    fprintf(f, "<text x=\"%.1f\" y=\"%.1f\" font-size=\"14\" font-weight=\"bold\">", p->x0 + LEFT,
            p->y0 + 22);
    for (const char *c = title; *c; c++)
        if (*c == '<' || *c == '>' || *c == '&' || (unsigned char)*c < 32)
            fputc('_', f);
        else
            fputc(*c, f);
    fprintf(f, "</text>\n");
    for (double v = 0; v <= p->most_x; v += sx)
        fprintf(f,
                "<path d=\"M%.1f %.1fV%.1f\" stroke=\"#ddd\"/><text x=\"%.1f\" y=\"%.1f\" "
                "text-anchor=\"middle\">%g</text>\n",
                at_x(p, v), bottom, p->y0 + TOP, at_x(p, v), bottom + 16, v);
    for (double v = 0; v <= p->most_y; v += sy)
        fprintf(f,
                "<path d=\"M%.1f %.1fH%.1f\" stroke=\"#ddd\"/><text x=\"%.1f\" y=\"%.1f\" "
                "text-anchor=\"end\">%g</text>\n",
                at_x(p, 0), at_y(p, v), at_x(p, p->most_x), at_x(p, 0) - 6, at_y(p, v) + 4, v);
    fprintf(f, "<text x=\"%.1f\" y=\"%.1f\" text-anchor=\"middle\">%s</text>\n", at_x(p, p->most_x / 2),
            bottom + 36, q->x);
    fprintf(f, "<text transform=\"translate(%.1f %.1f) rotate(-90)\" text-anchor=\"middle\">%s</text>\n",
            p->x0 + 14, at_y(p, p->most_y / 2), q->y);
}

static void put_line(FILE *f, const ds_spec_bench *b, const panel *p, const question *q, int d, int m)
{
    char colour[32];
    colour_of(b, m, colour);
    int bold = !b->mode[m].drafts || is_scheduled(&b->mode[m]), n = q->points(b);
    double x, y;
    fprintf(f, "<polyline fill=\"none\" stroke=\"%s\" stroke-width=\"%s\" points=\"", colour,
            bold ? "2.5" : "1");
    for (int i = 0; i < n; i++) {
        q->point(b, d, m, i, &x, &y);
        if (isfinite(x) && isfinite(y))
            fprintf(f, "%.1f,%.1f ", at_x(p, x), at_y(p, y));
    }
    fprintf(f, "\"/>\n");
    for (int i = 0; i < n; i++) {
        q->point(b, d, m, i, &x, &y);
        if (!isfinite(x) || !isfinite(y))
            continue;
        fprintf(f,
                "<circle cx=\"%.1f\" cy=\"%.1f\" r=\"%s\" fill=\"%s\"><title>%s: %g, %g</title></circle>\n",
                at_x(p, x), at_y(p, y), bold ? "4" : "2.5", colour, b->mode[m].name, x, y);
        if (bold && q->point == speed)
            fprintf(f, "<text x=\"%.1f\" y=\"%.1f\" fill=\"%s\">%.0f</text>\n", at_x(p, x) + 6,
                    at_y(p, y) - 6, colour, b->concurrency.v[i]);
    }
}

static void put_panel(FILE *f, const ds_spec_bench *b, int d, int row)
{
    const question *q = &QUESTIONS[row];
    panel p = {d * PANEL_W, row * PANEL_H, 1e-9, 1e-9};
    double x, y;
    for (int m = 0; m < b->n_modes; m++)
        for (int i = 0; i < q->points(b); i++) {
            q->point(b, d, m, i, &x, &y);
            if (isfinite(x) && isfinite(y)) {
                p.most_x = fmax(p.most_x, 1.08 * x);
                p.most_y = fmax(p.most_y, 1.08 * y);
            }
        }
    put_axes(f, &p, b->domain[d], q);
    for (int m = 0; m < b->n_modes; m++)
        put_line(f, b, &p, q, d, m);
}

ds_code ds_spec_bench_svg(const ds_spec_bench *b, const char *file, ds_err *err)
{
    FILE *f = fopen(file, "w");
    if (!f)
        return ds_err_field(err, DS_EIO, "svg", "%s: %s", file, strerror(errno));
    int bottom = PANEL_H * N_QUESTIONS;
    fprintf(f,
            "<svg xmlns=\"http://www.w3.org/2000/svg\" width=\"%d\" height=\"%d\" font-family=\"sans-serif\" "
            "font-size=\"11\">\n<rect width=\"100%%\" height=\"100%%\" fill=\"white\"/>\n",
            PANEL_W * b->n_domains, bottom + LEGEND);
    for (int d = 0; d < b->n_domains; d++)
        for (int row = 0; row < N_QUESTIONS; row++)
            put_panel(f, b, d, row);
    for (int m = 0, x = LEFT; m < b->n_modes; m++) {
        char colour[32];
        colour_of(b, m, colour);
        fprintf(f,
                "<rect x=\"%d\" y=\"%d\" width=\"10\" height=\"10\" fill=\"%s\"/><text x=\"%d\" "
                "y=\"%d\">%s</text>\n",
                x, bottom + 8, colour, x + 13, bottom + 17, b->mode[m].name);
        x += 24 + 7 * (int)strlen(b->mode[m].name);
    }
    fprintf(f,
            "<text x=\"%d\" y=\"%d\">numbers at points: requests at once; a number as mode: fixed length, t: "
            "confidence threshold%s</text>\n</svg>\n",
            LEFT, bottom + 36, b->n_synthetic ? "; SYNTHETIC acceptance: speeds only" : "");
    int bad = ferror(f);
    if (fclose(f) || bad)
        return ds_err_field(err, DS_EIO, "svg", "%s: could not be written", file);
    return DS_OK;
}
