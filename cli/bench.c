/* bench.c - what load and forward share: lists of numbers, the JSON file, the progress bar. */
#include "cli/bench.h"

#include <errno.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum { BAR = 30 };

void ds_bench_draw_bar(const char *label, double share, const char *text)
{
    char bar[BAR + 1];
    int full = (int)(share * BAR);
    memset(bar, '.', BAR);
    memset(bar, '#', (size_t)(full < BAR ? full : BAR));
    bar[BAR] = 0;
    if (share >= 1)
        fprintf(stderr, "\r\033[K");
    else
        fprintf(stderr, "\r%s [%s] %3.0f%%  %s\033[K", label, bar, 100 * share, text);
    fflush(stderr);
}

ds_code ds_bench_parse_list(const char *key, const char *text, int whole, double max, ds_bench_list *ret,
                            ds_err *err)
{
    ret->n = 0;
    for (const char *p = text;; p++) {
        char *end;
        double v = strtod(p, &end);
        if (end == p || (*end && *end != ',') || !(v > 0) || v > max || (whole && v != floor(v)))
            return ds_err_field(err, DS_EINVAL, key,
                                "%s is \"%.60s\", must be %s up to %.0f, parted by commas", key, text,
                                whole ? "whole numbers" : "positive numbers", max);
        if (ret->n == DS_BENCH_MAX_LIST)
            return ds_err_field(err, DS_EINVAL, key, "%s has more than %d numbers", key, DS_BENCH_MAX_LIST);
        ret->v[ret->n++] = v;
        p = end;
        if (!*p)
            return DS_OK;
    }
}

FILE *ds_bench_table(const ds_bench_conf *conf)
{
    return conf->json && strcmp(conf->json, "-") == 0 ? stderr : stdout;
}

ds_code ds_bench_write_json(const char *file, json_t *o, ds_err *err)
{
    FILE *f = strcmp(file, "-") == 0 ? stdout : fopen(file, "w");
    if (!f)
        return ds_err_field(err, DS_EIO, "json", "%s: %s", file, strerror(errno));
    int bad = !o || json_dumpf(o, f, JSON_INDENT(1) | JSON_PRESERVE_ORDER) || fputc('\n', f) == EOF;
    if ((f == stdout ? fflush(f) : fclose(f)) || bad)
        return ds_err_field(err, DS_EIO, "json", "%s: could not be written", file);
    return DS_OK;
}
