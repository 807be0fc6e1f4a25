/* The parts of the command-line tools that compute: percentiles, event streams, metrics pages, views,
 * prompts. */
#include "base/rng.h"
#include "cli/bench.h"
#include "cli/bench_forward.h"
#include "cli/bench_prompts.h"
#include "cli/dist.h"
#include "cli/http.h"
#include "cli/prom.h"
#include "cli/sse.h"
#include "cli/view.h"
#include "tests/lib/test.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

static int near(double a, double b)
{
    return fabs(a - b) <= 1e-12 * fmax(1, fabs(b));
}

/* numpy.percentile([15, 20, 35, 40, 50], [0, 5, 30, 40, 50, 90, 100]) */
DS_TEST(percentiles_of_five)
{
    static const double v[] = {40, 15, 50, 20, 35}, p[] = {0, 5, 30, 40, 50, 90, 100},
                        want[] = {15, 16, 23, 29, 35, 46, 50};
    ds_dist d = {0};
    for (int i = 0; i < 5; i++)
        CHECK_EQ(ds_dist_add(&d, v[i]), DS_OK);
    for (int i = 0; i < 7; i++)
        CHECK_MSG(near(ds_dist_percentile(&d, p[i]), want[i]), "p%g is %.17g, want %g", p[i],
                  ds_dist_percentile(&d, p[i]), want[i]);
    CHECK(ds_dist_mean(&d) == 32 && d.min == 15 && d.max == 50);
    CHECK_EQ(ds_dist_add(&d, 1), DS_OK); /* adding after reading sorts anew */
    CHECK(ds_dist_percentile(&d, 0) == 1);
    ds_dist_fini(&d);
}

DS_TEST(percentiles_of_none_and_one)
{
    ds_dist d = {0};
    CHECK(isnan(ds_dist_percentile(&d, 50)) && isnan(ds_dist_mean(&d)));
    ds_dist_add(&d, 7);
    CHECK(ds_dist_percentile(&d, 0) == 7 && ds_dist_percentile(&d, 99) == 7);
    ds_dist_clear(&d);
    CHECK(isnan(ds_dist_percentile(&d, 50)));
    ds_dist_fini(&d);
}

/* Past the bound a uniform sample is kept: the median of 0..3M is near 1.5M (standard error about 0.03 %). */
DS_TEST(distribution_is_bounded)
{
    ds_dist d = {0};
    const int n = 3000000;
    for (int i = 0; i < n; i++)
        CHECK_EQ(ds_dist_add(&d, i), DS_OK);
    CHECK_EQ(d.n_kept, DS_DIST_MAX_KEPT);
    CHECK_EQ(d.n, n);
    CHECK(d.max == n - 1);
    CHECK_MSG(fabs(ds_dist_percentile(&d, 50) - n / 2) < 0.005 * n, "median %g", ds_dist_percentile(&d, 50));
    ds_dist_fini(&d);
}

static int collect(void *ctx, char *data, size_t n)
{
    ds_buf *out = ctx;
    return ds_buf_append(out, data, n) || ds_buf_puts(out, "|");
}

static const char STREAM[] =
    "data: a\n\n: comment\nevent: x\ndata:b\r\ndata:  c\r\n\r\ndata\n\ndata: d\r\rid: 1\n\n"
    "data:\n\ndata: [DONE]\n\ndata: unfinished";

DS_TEST(events_do_not_depend_on_the_split)
{
    for (size_t step = 1; step < sizeof STREAM; step++) {
        ds_buf out = {0};
        ds_sse s;
        ds_sse_init(&s, collect, &out);
        for (size_t i = 0; i < sizeof STREAM - 1; i += step) {
            size_t n = sizeof STREAM - 1 - i < step ? sizeof STREAM - 1 - i : step;
            CHECK_EQ(ds_sse_feed(&s, STREAM + i, n), DS_OK);
        }
        CHECK_STR(out.data, "a|b\n c|d||[DONE]|");
        ds_sse_fini(&s);
        ds_buf_free(&out);
    }
}

static int stop(void *ctx, char *data, size_t n)
{
    (void)data, (void)n;
    return ++*(int *)ctx == 2;
}

DS_TEST(event_stream_limits)
{
    int n = 0;
    ds_sse s;
    ds_sse_init(&s, stop, &n);
    CHECK_EQ(ds_sse_feed(&s, "data: 1\n\ndata: 2\n\ndata: 3\n\n", 27), DS_ECANCELLED);
    CHECK_EQ(n, 2);
    ds_sse_reset(&s);
    char *line = malloc(DS_SSE_MAX_EVENT);
    memset(line, 'x', DS_SSE_MAX_EVENT);
    CHECK_EQ(ds_sse_feed(&s, line, DS_SSE_MAX_EVENT), DS_OK);
    CHECK_EQ(ds_sse_feed(&s, "x", 1), DS_ELIMIT);
    free(line);
    ds_sse_fini(&s);
}

static const char PAGE[] = "# HELP a b\n"
                           "dspark_worker_running{worker=\"w0\"} 3\n"
                           "dspark_worker_running{worker=\"w\\\"1\\\\\",x=\"}\"} 4 1700000000\n"
                           "dspark_worker_output_tokens_total{x=\"worker\",worker=\"w0\"} 1e3\n"
                           "plain +Inf\n\n";

DS_TEST(metrics_page)
{
    ds_prom p;
    ds_err err;
    char label[DS_PROM_MAX_LABEL];
    CHECK_OK(ds_prom_parse(PAGE, sizeof PAGE - 1, &p, &err), err);
    CHECK_EQ(p.n, 4);
    CHECK(ds_prom_sum(&p, "dspark_worker_running", -1) == 7);
    CHECK(ds_prom_sum(&p, "none", -1) == -1);
    CHECK(isinf(ds_prom_sum(&p, "plain", 0)));
    ds_prom_label(&p.sample[1], "worker", label);
    CHECK_STR(label, "w\"1\\");
    ds_prom_label(&p.sample[1], "x", label);
    CHECK_STR(label, "}");
    ds_prom_label(&p.sample[1], "wor", label);
    CHECK_STR(label, "");
    ds_prom_label(&p.sample[2], "worker", label);
    CHECK_STR(label, "w0");
    ds_prom_free(&p);
    static const char *const bad[] = {"a{b=\"c} 1\n", "a\n", "a b\n", "{} 1\n", "a{} 1x\n"};
    for (int i = 0; i < 5; i++) {
        CHECK_MSG(ds_prom_parse(bad[i], strlen(bad[i]), &p, &err) == DS_EPROTO, "accepted: %s", bad[i]);
        CHECK(strstr(err.msg, "line 1"));
    }
}

DS_TEST(views_and_rates)
{
    static ds_view a, b;
    ds_prom p;
    ds_err err;
    CHECK_OK(ds_prom_parse(PAGE, sizeof PAGE - 1, &p, &err), err);
    ds_view_from_metrics(&p, 1000000000, &a);
    ds_prom_free(&p);
    CHECK_EQ(a.n_workers, 2);
    CHECK_STR(a.worker[0].name, "w0");
    CHECK(a.worker[0].running == 3 && a.total.running == 7 && a.worker[0].output_tokens == 1000);
    CHECK(isnan(a.worker[0].output_rate));
    b = a;
    b.at_ns += 500000000;
    b.worker[0].output_tokens += 100;
    b.worker[1].output_tokens = -1; /* went back: restarted */
    ds_view_sum(&b);
    ds_view_rates(&a, &b);
    CHECK(b.worker[0].output_rate == 200 && isnan(b.worker[1].output_rate));
    ds_buf table = {0};
    CHECK_EQ(ds_view_table(&b, &table), DS_OK);
    CHECK(strstr(table.data, "w0 ") && strstr(table.data, "total") && strstr(table.data, " 200 "));
    ds_buf_free(&table);
    json_t *o = ds_view_json(&b);
    CHECK(json_array_size(json_object_get(o, "workers")) == 2);
    CHECK(json_is_null(
        json_object_get(json_array_get(json_object_get(o, "workers"), 1), "output_tokens_per_s")));
    json_decref(o);
}

DS_TEST(figures_for_people)
{
    static const struct {
        double v;
        const char *count, *bytes;
    } cases[] = {{0, "0", "0B"},         {1.25, "1.2", "1B"},     {812, "812", "812B"},
                 {9999, "9999", "9.8K"}, {12345, "12.3k", "12K"}, {4.5e6, "4.5M", "4.3M"},
                 {4.5e9, "4.5G", "4.2G"}};
    char text[32];
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        ds_view_count(cases[i].v, text, sizeof text);
        CHECK_STR(text, cases[i].count);
        ds_view_bytes(cases[i].v, text, sizeof text);
        CHECK_STR(text, cases[i].bytes);
    }
    ds_view_count(NAN, text, sizeof text);
    CHECK_STR(text, "-");
}

DS_TEST(http_errors_keep_the_words_of_the_daemon)
{
    static const char body[] = "{\"error\":{\"message\":\"max_tokens is -1\",\"param\":\"max_tokens\"}}";
    ds_err err;
    CHECK_EQ(ds_http_error(400, body, sizeof body - 1, &err), DS_EINVAL);
    CHECK_STR(err.msg, "max_tokens is -1 (HTTP 400)");
    CHECK_STR(err.field, "max_tokens");
    CHECK_EQ(ds_http_error(429, "no", 2, &err), DS_ELIMIT);
    CHECK_EQ(ds_http_error(404, NULL, 0, &err), DS_ENOTFOUND);
    CHECK_EQ(ds_http_error(503, "[]", 2, &err), DS_EDRAINING);
    CHECK_EQ(ds_http_error(500, "{", 1, &err), DS_EIO);
    CHECK_STR(err.msg, "the daemon answered with HTTP status 500");
}

static ds_code read_prompts(const char *text, ds_prompts *ret, ds_err *err)
{
    int fd = memfd_create("prompts", 0);
    char path[64];
    CHECK(write(fd, text, strlen(text)) == (ssize_t)strlen(text));
    snprintf(path, sizeof path, "/proc/self/fd/%d", fd);
    ds_code code = ds_prompts_read(path, ret, err);
    close(fd);
    return code;
}

DS_TEST(prompt_files)
{
    ds_prompts p;
    ds_err err;
    CHECK_OK(
        read_prompts("{\"prompt\": \"a b\", \"id\": 3}\n\n{\"turns\": [\"x\", \"y\"]}\n{\"prompt\": [5, 6]}",
                     &p, &err),
        err);
    CHECK_EQ(p.n, 3);
    CHECK_STR(p.item[0].turn[0], "a b");
    CHECK(!p.item[0].is_chat && p.item[1].is_chat);
    CHECK_EQ(p.item[1].n_turns, 2);
    CHECK_STR(p.item[1].turn[1], "y");
    CHECK_EQ(p.item[2].n_ids, 2);
    CHECK_EQ(p.item[2].ids[1], 6);
    ds_prompts_free(&p);
    static const char *const bad[][2] = {{"{\"prompt\": \"a\"}\n{", ":2: not a JSON object"},
                                         {"{\"x\": 1}", ":1: neither"},
                                         {"{\"turns\": []}", "\"turns\" must be"},
                                         {"{\"turns\": [1]}", "\"turns\" must be"},
                                         {"{\"prompt\": []}", "\"prompt\" must be"},
                                         {"{\"prompt\": [-1]}", "not a token id"},
                                         {"{\"prompt\": [1.5]}", "not a token id"},
                                         {"\n", "holds no prompt"}};
    for (size_t i = 0; i < sizeof bad / sizeof *bad; i++) {
        CHECK_MSG(read_prompts(bad[i][0], &p, &err) == DS_EINVAL, "accepted: %s", bad[i][0]);
        CHECK_MSG(strstr(err.msg, bad[i][1]), "\"%s\" does not say \"%s\"", err.msg, bad[i][1]);
    }
    CHECK_EQ(ds_prompts_read("does/not/exist", &p, &err), DS_ENOTFOUND);
}

DS_TEST(synthetic_prompts_repeat_by_seed)
{
    static const int32_t pool[] = {3, 5, 7, 11};
    ds_prompts a, b, c;
    ds_err err;
    CHECK_OK(ds_prompts_synthetic(pool, 4, 50, 9, 1, &a, &err), err);
    CHECK_OK(ds_prompts_synthetic(pool, 4, 50, 9, 1, &b, &err), err);
    CHECK_OK(ds_prompts_synthetic(pool, 4, 50, 9, 2, &c, &err), err);
    CHECK_EQ(a.n, 9);
    CHECK_EQ(a.item[8].n_ids, 50);
    CHECK(memcmp(a.item[8].ids, b.item[8].ids, 50 * sizeof(int32_t)) == 0);
    CHECK(memcmp(a.item[8].ids, c.item[8].ids, 50 * sizeof(int32_t)) != 0);
    CHECK(memcmp(a.item[8].ids, a.item[7].ids, 50 * sizeof(int32_t)) != 0);
    ds_prompts_free(&a);
    ds_prompts_free(&b);
    ds_prompts_free(&c);
}

DS_TEST(lists_of_numbers)
{
    ds_bench_list l;
    ds_err err;
    CHECK_OK(ds_bench_parse_list("rows", "1,2,64", 1, 100, &l, &err), err);
    CHECK(l.n == 3 && l.v[2] == 64);
    CHECK_OK(ds_bench_parse_list("rate", "0.5", 0, 100, &l, &err), err);
    static const char *const bad[] = {"", "1,", ",1", "0", "-1", "101", "1.5", "a", "1;2", "nan"};
    for (size_t i = 0; i < sizeof bad / sizeof *bad; i++) {
        CHECK_MSG(ds_bench_parse_list("rows", bad[i], 1, 100, &l, &err) == DS_EINVAL, "accepted \"%s\"",
                  bad[i]);
        CHECK_STR(err.field, "rows");
    }
}

/* C = 8, H = 2, G = 1, D = 4, I = 16, V = 10, one layer: by hand, 2 * (8*16 + 8*8 + 3*8*16) = 1152 a row. */
DS_TEST(flops_of_a_pass)
{
    ds_model_info m = {
        .vocab = 10, .hidden = 8, .layers = 1, .heads = 2, .kv_heads = 1, .head_dim = 4, .mlp = 16};
    CHECK(ds_forward_flops(&m, 1, 0, 0) == 1152);
    CHECK(ds_forward_flops(&m, 3, 2, 6) == 3 * 1152 + 2 * 160 + 6 * 32);
}
