/* dspark-bench spec over the tiny pair: all modes, figures that agree with each other, a picture that is XML,
 * refusals that name the option. */
#include "cli/bench_spec.h"
#include "tests/lib/test.h"
#include "tests/lib/tiny_pair.h"

#include <math.h>
#include <unistd.h>

enum { MODES = TINY_BLOCK + 5 }; /* off, each length, t0.5, early-stop, stale, auto */

static volatile int g_stop;

typedef struct house {
    char dir[64], target[96], draft[96], prompts[220], json[96], svg[96];
} house;

static ds_bench_conf open_house(house *h)
{
    *h = (house){.dir = "/tmp/dspark-spec-XXXXXX"};
    CHECK(mkdtemp(h->dir) != NULL);
    snprintf(h->target, sizeof h->target, "%s/target", h->dir);
    snprintf(h->draft, sizeof h->draft, "%s/draft", h->dir);
    snprintf(h->json, sizeof h->json, "%s/out.json", h->dir);
    snprintf(h->svg, sizeof h->svg, "%s/out.svg", h->dir);
    snprintf(h->prompts, sizeof h->prompts, "%s/a.jsonl,%s/b.jsonl", h->dir, h->dir);
    tiny_write_target(h->target);
    tiny_write_draft(h->draft, "vanilla", "");
    for (int d = 0; d < 2; d++) {
        char path[96];
        snprintf(path, sizeof path, "%s/%c.jsonl", h->dir, 'a' + d);
        FILE *f = fopen(path, "w");
        CHECK(f != NULL);
        for (int i = 0; i < 5; i++)
            fprintf(f, "{\"prompt\": [%d, %d, 3]}\n", 1 + i, 7 + d);
        CHECK_EQ(fclose(f), 0);
    }
    return (ds_bench_conf){.model = h->target,
                           .draft = h->draft,
                           .prompts = h->prompts,
                           .json = h->json,
                           .svg = h->svg,
                           .concurrency = (char *)"1,3",
                           .modes = (char *)"all",
                           .acceptance = (char *)"coupled",
                           .weights = (char *)"auto",
                           .isa = (char *)"auto",
                           .threads = 1,
                           .requests = 4,
                           .max_tokens = 20,
                           .temperature = 0.8,
                           .seed = 5,
                           .reps = 3,
                           .ignore_eos = 1};
}

static void close_house(house *h)
{
    char cmd[96];
    snprintf(cmd, sizeof cmd, "rm -rf '%s'", h->dir);
    CHECK_EQ(system(cmd), 0);
}

static double get(json_t *o, const char *a, const char *b)
{
    return json_number_value(json_object_get(json_object_get(o, a), b));
}

static void check_cell(json_t *cell)
{
    const char *mode = json_string_value(json_object_get(cell, "mode"));
    json_t *positions = json_object_get(cell, "positions"), *p;
    double verified = 0, accepted = 0, reached = 1e9;
    size_t i;
    json_array_foreach(positions, i, p)
    {
        verified += json_number_value(json_object_get(p, "verified"));
        accepted += json_number_value(json_object_get(p, "accepted"));
        CHECK(json_number_value(json_object_get(p, "reached")) <= reached);
        reached = json_number_value(json_object_get(p, "accepted"));
    }
    CHECK(json_is_true(json_object_get(cell, "same_tokens_as_off")));
    CHECK_EQ((int)get(cell, "counts", "tokens"), 3 * 4 * 20);
    CHECK_EQ((int)verified, (int)get(cell, "counts", "verified"));
    CHECK_EQ((int)accepted, (int)get(cell, "counts", "accepted"));
    CHECK(get(cell, "tokens_per_s", "median") > 0 && get(cell, "tokens_per_s_per_user", "median") > 0);
    CHECK_EQ((int)get(cell, "tokens_per_s", "rounds"), 3);
    if (strcmp(mode, "off") == 0) {
        CHECK_EQ((int)verified, 0);
        CHECK(json_is_null(json_object_get(cell, "accepted_length")));
        CHECK(get(cell, "total_over_off", "median") == 1);
    } else if (atoi(mode) > 0) {
        CHECK_EQ((int)json_array_size(positions), atoi(mode)); /* a fixed length is that length */
        double tau = 1 + accepted / get(cell, "counts", "rounds");
        CHECK(fabs(json_number_value(json_object_get(cell, "accepted_length")) - tau) < 1e-9 && tau > 1);
    }
}

DS_TEST(spec_measures_every_mode)
{
    house h;
    ds_err err = {0};
    ds_bench_conf conf = open_house(&h);
    CHECK_OK(ds_bench_spec(&conf, &g_stop, &err), err);
    json_t *o = json_load_file(h.json, 0, NULL), *domain, *cell;
    CHECK(o != NULL);
    size_t i, k;
    CHECK_EQ((int)json_array_size(json_object_get(o, "domains")), 2);
    json_array_foreach(json_object_get(o, "domains"), i, domain)
    {
        CHECK_STR(json_string_value(json_object_get(domain, "domain")), i ? "b" : "a");
        CHECK_EQ((int)json_array_size(json_object_get(domain, "cells")), 2 * MODES);
        json_array_foreach(json_object_get(domain, "cells"), k, cell) check_cell(cell);
    }
    json_decref(o);
    FILE *f = fopen(h.svg, "r");
    static char text[1 << 18];
    CHECK(f != NULL);
    size_t n = fread(text, 1, sizeof text - 1, f);
    fclose(f);
    text[n] = 0;
    CHECK(strncmp(text, "<svg ", 5) == 0 && strstr(text, "</svg>") && !strstr(text, "nan") &&
          !strstr(text, "inf\""));
    int lines = 0;
    for (const char *p = text; (p = strstr(p, "<polyline")); p++)
        lines++;
    CHECK_EQ(lines, 2 * MODES * 3);
    close_house(&h);
}

/* Synthetic odds are what is measured, and the results say that they are synthetic. */
DS_TEST(synthetic_acceptance_is_marked)
{
    house h;
    ds_err err = {0};
    ds_bench_conf conf = open_house(&h);
    conf.modes = (char *)"off,3";
    conf.synthetic = (char *)"0.9,0.5";
    conf.max_tokens = 200;
    conf.requests = 8;
    CHECK_OK(ds_bench_spec(&conf, &g_stop, &err), err);
    json_t *o = json_load_file(h.json, 0, NULL);
    CHECK(json_array_size(json_object_get(o, "synthetic_acceptance")) == TINY_BLOCK);
    json_t *domain = json_array_get(json_object_get(o, "domains"), 0);
    json_t *cell = json_array_get(json_object_get(domain, "cells"), 1);
    CHECK(json_is_null(json_object_get(cell, "same_tokens_as_off")));
    for (size_t k = 0; k < TINY_BLOCK; k++) {
        json_t *p = json_array_get(json_object_get(cell, "positions"), k);
        double got = json_number_value(json_object_get(p, "conditional_acceptance"));
        CHECK_MSG(fabs(got - (k ? .5 : .9)) < .06, "position %zu: %g", k, got);
    }
    json_decref(o);
    close_house(&h);
}

/* Under rejection greedy text is still that of plain decoding; sampled text need not be. */
DS_TEST(rejection_is_measured_too)
{
    house h;
    ds_err err = {0};
    ds_bench_conf conf = open_house(&h);
    conf.acceptance = (char *)"rejection";
    conf.temperature = 0;
    CHECK_OK(ds_bench_spec(&conf, &g_stop, &err), err);
    json_t *o = json_load_file(h.json, 0, NULL);
    json_t *domain = json_array_get(json_object_get(o, "domains"), 0);
    CHECK(json_is_true(
        json_object_get(json_array_get(json_object_get(domain, "cells"), 2), "same_tokens_as_off")));
    json_decref(o);
    conf.temperature = 1;
    CHECK_OK(ds_bench_spec(&conf, &g_stop, &err), err);
    o = json_load_file(h.json, 0, NULL);
    domain = json_array_get(json_object_get(o, "domains"), 0);
    CHECK(json_is_null(
        json_object_get(json_array_get(json_object_get(domain, "cells"), 2), "same_tokens_as_off")));
    json_decref(o);
    close_house(&h);
}

DS_TEST(spec_refuses_by_name)
{
    house h;
    ds_bench_conf good = open_house(&h), conf;
#define REFUSED(name, change)                            \
    do {                                                 \
        ds_err err = {0};                                \
        conf = good;                                     \
        change;                                          \
        CHECK(ds_bench_spec(&conf, &g_stop, &err) != 0); \
        CHECK_STR(err.field, name);                      \
    } while (0)
    REFUSED("draft", conf.draft = NULL);
    REFUSED("model", conf.model = NULL);
    REFUSED("prompts", conf.prompts = NULL);
    REFUSED("prompts", conf.prompts = (char *)"/nowhere.jsonl");
    REFUSED("modes", conf.modes = (char *)"auto,off");
    REFUSED("modes", conf.modes = (char *)"off,9");
    REFUSED("modes", conf.modes = (char *)"off,fast");
    REFUSED("modes", conf.modes = (char *)"off,t1.5");
    REFUSED("synthetic", conf.synthetic = (char *)"0.9,1.5");
    REFUSED("concurrency", conf.concurrency = (char *)"0");
    close_house(&h);
}
