/* metric.c - the registry: families in order of creation, each with its series; a hash table finds a series.
 *
 * Bounded: beyond DS_MAX_METRIC_SERIES (or without memory) callers get one sink that swallows everything, and
 * dspark_metric_series_refused_total counts how often. Values that are not finite never enter a sum: one NaN
 * would spoil a counter for the life of the process. Single-threaded owner. */
#include "base/metric.h"

#include <math.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum { HASH_SLOTS = 1 << 15 }; /* a power of two, over three times DS_MAX_METRIC_SERIES */

typedef enum { KIND_SINK, KIND_COUNTER, KIND_GAUGE, KIND_HISTOGRAM } metric_kind;

typedef struct family {
    char *name, *help;
    metric_kind kind;
    ds_metric *first, *last;
    struct family *next;
} family;

struct ds_metric {
    family *family;
    char *labels;
    metric_kind kind;
    double value; /* counter, gauge; of a histogram the sum */
    int n_bounds;
    double *bounds;   /* [n_bounds] ascending */
    uint64_t *counts; /* [n_bounds + 1] not cumulative; the last is above all bounds */
    ds_metric *next;
};

struct ds_metrics {
    family *first, *last;
    ds_metric *slots[HASH_SLOTS];
    int n_series;
    uint64_t refused;
    ds_metric sink;
};

ds_code ds_metrics_create(ds_metrics **ret)
{
    *ret = calloc(1, sizeof **ret);
    return *ret ? DS_OK : DS_ENOMEM;
}

static void series_free(ds_metric *s)
{
    if (!s)
        return;
    free(s->labels);
    free(s->bounds);
    free(s->counts);
    free(s);
}

void ds_metrics_destroy(ds_metrics *m)
{
    if (!m)
        return;
    for (family *f = m->first, *next_family; f; f = next_family) {
        next_family = f->next;
        for (ds_metric *s = f->first, *next; s; s = next) {
            next = s->next;
            series_free(s);
        }
        free(f->name);
        free(f->help);
        free(f);
    }
    free(m);
}

static int name_is_valid(const char *name)
{
    for (const char *p = name; *p; p++) {
        int letter = (*p >= 'a' && *p <= 'z') || (*p >= 'A' && *p <= 'Z') || *p == '_' || *p == ':';
        if (!letter && !(p > name && *p >= '0' && *p <= '9'))
            return 0;
    }
    return *name != 0;
}

/* The slot that holds this series, or the free one where it belongs (FNV-1a, linear probing). */
static ds_metric **slot_of(ds_metrics *m, const char *name, const char *labels)
{
    uint32_t hash = 2166136261u;
    for (const char *p = name; *p; p++)
        hash = (hash ^ (uint8_t)*p) * 16777619u;
    for (const char *p = labels; *p; p++)
        hash = (hash ^ (uint8_t)*p) * 16777619u;
    for (uint32_t i = hash;; i++) {
        ds_metric **slot = &m->slots[i % HASH_SLOTS];
        if (!*slot || (strcmp((*slot)->family->name, name) == 0 && strcmp((*slot)->labels, labels) == 0))
            return slot;
    }
}

static family *family_of(ds_metrics *m, const char *name, metric_kind kind, const char *help)
{
    for (family *f = m->first; f; f = f->next)
        if (strcmp(f->name, name) == 0) {
            DS_ASSERT(f->kind == kind);
            return f;
        }
    DS_ASSERT(name_is_valid(name));
    family *f = calloc(1, sizeof *f);
    if (!f)
        return NULL;
    f->name = strdup(name);
    f->help = strdup(help ? help : "");
    f->kind = kind;
    if (!f->name || !f->help) {
        free(f->name);
        free(f->help);
        free(f);
        return NULL;
    }
    if (m->last)
        m->last->next = f;
    else
        m->first = f;
    m->last = f;
    return f;
}

static ds_metric *series_create(family *f, const char *labels, const double *bounds, int n_bounds)
{
    ds_metric *s = calloc(1, sizeof *s);
    if (!s)
        return NULL;
    s->family = f;
    s->kind = f->kind;
    s->labels = strdup(labels);
    s->n_bounds = n_bounds;
    s->bounds = calloc((size_t)n_bounds + 1, sizeof *s->bounds);
    s->counts = calloc((size_t)n_bounds + 1, sizeof *s->counts);
    if (!s->labels || !s->bounds || !s->counts) {
        series_free(s);
        return NULL;
    }
    for (int i = 0; i < n_bounds; i++) {
        DS_ASSERT(isfinite(bounds[i]) && (i == 0 || bounds[i] > bounds[i - 1]));
        s->bounds[i] = bounds[i];
    }
    return s;
}

static ds_metric *series(ds_metrics *m, metric_kind kind, const char *name, const char *labels,
                         const char *help, const double *bounds, int n_bounds)
{
    ds_metric **slot = slot_of(m, name, labels);
    if (*slot) {
        DS_ASSERT((*slot)->kind == kind);
        return *slot;
    }
    family *f = m->n_series < DS_MAX_METRIC_SERIES ? family_of(m, name, kind, help) : NULL;
    ds_metric *s = f ? series_create(f, labels, bounds, n_bounds) : NULL;
    if (!s) {
        m->refused++;
        return &m->sink;
    }
    if (f->last)
        f->last->next = s;
    else
        f->first = s;
    f->last = s;
    *slot = s;
    m->n_series++;
    return s;
}

ds_metric *ds_metric_counter(ds_metrics *m, const char *name, const char *labels, const char *help)
{
    return series(m, KIND_COUNTER, name, labels, help, NULL, 0);
}

ds_metric *ds_metric_gauge(ds_metrics *m, const char *name, const char *labels, const char *help)
{
    return series(m, KIND_GAUGE, name, labels, help, NULL, 0);
}

ds_metric *ds_metric_histogram(ds_metrics *m, const char *name, const char *labels, const char *help,
                               const double *bounds, int n_bounds)
{
    return series(m, KIND_HISTOGRAM, name, labels, help, bounds, n_bounds);
}

void ds_metric_add(ds_metric *s, double v)
{
    DS_ASSERT(s->kind != KIND_HISTOGRAM);
    DS_ASSERT(s->kind != KIND_COUNTER || !(v < 0));
    if (isfinite(v))
        s->value += v;
}

void ds_metric_set(ds_metric *s, double v)
{
    DS_ASSERT(s->kind != KIND_HISTOGRAM);
    s->value = v;
}

void ds_metric_observe(ds_metric *s, double v)
{
    if (s->kind == KIND_SINK || !isfinite(v))
        return;
    DS_ASSERT(s->kind == KIND_HISTOGRAM);
    int i = 0;
    while (i < s->n_bounds && v > s->bounds[i])
        i++;
    s->counts[i]++;
    s->value += v;
}

static ds_code put_number(ds_buf *out, double v)
{
    if (isnan(v))
        return ds_buf_puts(out, "NaN");
    if (isinf(v))
        return ds_buf_puts(out, v > 0 ? "+Inf" : "-Inf");
    if (v == floor(v) && fabs(v) < 0x1p53)
        return ds_buf_printf(out, "%.0f", v);
    char text[32];
    for (int digits = 6; digits <= 17; digits++) { /* the shortest text that reads back equal */
        snprintf(text, sizeof text, "%.*g", digits, v);
        if (strtod(text, NULL) == v)
            break;
    }
    return ds_buf_puts(out, text);
}

static ds_code render_histogram(const ds_metric *s, ds_buf *out)
{
    const char *name = s->family->name, *comma = *s->labels ? "," : "";
    uint64_t total = 0;
    for (int i = 0; i <= s->n_bounds; i++) {
        total += s->counts[i];
        DS_TRY(ds_buf_printf(out, "%s_bucket{%s%sle=\"", name, s->labels, comma));
        DS_TRY(put_number(out, i < s->n_bounds ? s->bounds[i] : INFINITY));
        DS_TRY(ds_buf_printf(out, "\"} %llu\n", (unsigned long long)total));
    }
    const char *open = *s->labels ? "{" : "", *close = *s->labels ? "}" : "";
    DS_TRY(ds_buf_printf(out, "%s_sum%s%s%s ", name, open, s->labels, close));
    DS_TRY(put_number(out, s->value));
    return ds_buf_printf(out, "\n%s_count%s%s%s %llu\n", name, open, s->labels, close,
                         (unsigned long long)total);
}

static ds_code render_series(const ds_metric *s, ds_buf *out)
{
    if (s->kind == KIND_HISTOGRAM)
        return render_histogram(s, out);
    DS_TRY(ds_buf_printf(out, *s->labels ? "%s{%s} " : "%s%s ", s->family->name, s->labels));
    DS_TRY(put_number(out, s->value));
    return ds_buf_puts(out, "\n");
}

static ds_code put_help(ds_buf *out, const char *help)
{
    for (const char *p = help; *p; p++)
        DS_TRY(*p == '\n'   ? ds_buf_puts(out, "\\n")
               : *p == '\\' ? ds_buf_puts(out, "\\\\")
                            : ds_buf_append(out, p, 1));
    return ds_buf_puts(out, "\n");
}

ds_code ds_metrics_render(const ds_metrics *m, ds_buf *out)
{
    static const char *const kinds[] = {
        [KIND_COUNTER] = "counter", [KIND_GAUGE] = "gauge", [KIND_HISTOGRAM] = "histogram"};
    for (const family *f = m->first; f; f = f->next) {
        DS_TRY(ds_buf_printf(out, "# HELP %s ", f->name));
        DS_TRY(put_help(out, f->help));
        DS_TRY(ds_buf_printf(out, "# TYPE %s %s\n", f->name, kinds[f->kind]));
        for (const ds_metric *s = f->first; s; s = s->next)
            DS_TRY(render_series(s, out));
    }
    return ds_buf_printf(
        out,
        "# HELP dspark_metric_series_refused_total Series beyond the registry's limit of %d.\n"
        "# TYPE dspark_metric_series_refused_total counter\n"
        "dspark_metric_series_refused_total %llu\n",
        DS_MAX_METRIC_SERIES, (unsigned long long)m->refused);
}

/* Length of the well-formed UTF-8 sequence at p, 0 when there is none (RFC 3629, section 4). */
static int utf8_length(const unsigned char *p)
{
    int n = p[0] < 0x80 ? 1 : p[0] < 0xC2 ? 0 : p[0] < 0xE0 ? 2 : p[0] < 0xF0 ? 3 : p[0] < 0xF5 ? 4 : 0;
    for (int i = 1; i < n; i++)
        if ((p[i] & 0xC0) != 0x80)
            return 0;
    if ((p[0] == 0xE0 && p[1] < 0xA0) || (p[0] == 0xED && p[1] > 0x9F) || (p[0] == 0xF0 && p[1] < 0x90) ||
        (p[0] == 0xF4 && p[1] > 0x8F))
        return 0;
    return n;
}

ds_code ds_metric_label(ds_buf *out, const char *key, const char *value)
{
    DS_TRY(ds_buf_printf(out, "%s%s=\"", out->len ? "," : "", key));
    for (const unsigned char *p = (const unsigned char *)value; *p;) {
        int n = utf8_length(p);
        if (n == 0)
            DS_TRY(ds_buf_puts(out, "?"));
        else if (*p == '\n')
            DS_TRY(ds_buf_puts(out, "\\n"));
        else if (*p == '"' || *p == '\\')
            DS_TRY(ds_buf_printf(out, "\\%c", *p));
        else
            DS_TRY(ds_buf_append(out, p, (size_t)n));
        p += n ? n : 1;
    }
    return ds_buf_puts(out, "\"");
}
