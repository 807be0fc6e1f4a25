/* Metrics: the text format, identity of series, escaping, and the limit. */
#include "base/metric.h"
#include "tests/lib/test.h"

#include <math.h>
#include <stdio.h>
#include <string.h>

static const char TAIL[] =
    "# HELP dspark_metric_series_refused_total Series beyond the registry's limit of 10000.\n"
    "# TYPE dspark_metric_series_refused_total counter\n"
    "dspark_metric_series_refused_total ";

DS_TEST(render)
{
    ds_metrics *m;
    CHECK_EQ(ds_metrics_create(&m), DS_OK);
    const double bounds[] = {0.1, 1};
    ds_metric *a = ds_metric_counter(m, "req_total", "code=\"200\"", "Requests.\nTwo \\ lines.");
    ds_metric *g = ds_metric_gauge(m, "kv", "", "Use.");
    ds_metric *b = ds_metric_counter(m, "req_total", "code=\"500\"", "ignored");
    ds_metric *h = ds_metric_histogram(m, "ttft", "m=\"x\"", "Time.", bounds, 2);
    CHECK(ds_metric_counter(m, "req_total", "code=\"200\"", "") == a);
    ds_metric_add(a, 2);
    ds_metric_add(a, 9007199254740989.0);
    ds_metric_add(b, 0.1);
    ds_metric_add(a, NAN);
    ds_metric_set(g, -1.5);
    for (int i = 0; i < 3; i++)
        ds_metric_observe(h, 0.1); /* a bound belongs to its bucket */
    ds_metric_observe(h, 0.5);
    ds_metric_observe(h, 7);
    ds_metric_observe(h, NAN);
    ds_buf out = {0};
    CHECK_EQ(ds_metrics_render(m, &out), DS_OK);
    const char *want = "# HELP req_total Requests.\\nTwo \\\\ lines.\n# TYPE req_total counter\n"
                       "req_total{code=\"200\"} 9007199254740991\nreq_total{code=\"500\"} 0.1\n"
                       "# HELP kv Use.\n# TYPE kv gauge\nkv -1.5\n"
                       "# HELP ttft Time.\n# TYPE ttft histogram\n"
                       "ttft_bucket{m=\"x\",le=\"0.1\"} 3\nttft_bucket{m=\"x\",le=\"1\"} 4\n"
                       "ttft_bucket{m=\"x\",le=\"+Inf\"} 5\nttft_sum{m=\"x\"} 7.8\nttft_count{m=\"x\"} 5\n";
    CHECK(strncmp(out.data, want, strlen(want)) == 0);
    CHECK(strncmp(out.data + strlen(want), TAIL, strlen(TAIL)) == 0);
    CHECK_STR(out.data + strlen(want) + strlen(TAIL), "0\n");
    ds_buf_free(&out);
    ds_metrics_destroy(m);
}

DS_TEST(labels_are_escaped)
{
    ds_buf out = {0};
    CHECK_EQ(ds_metric_label(&out, "a", "x\"y\\z\n"), DS_OK);
    CHECK_EQ(ds_metric_label(&out, "b", "\xc3\xa9\xff\xe2\x82\xed\xa0\x80"), DS_OK);
    CHECK_STR(out.data, "a=\"x\\\"y\\\\z\\n\",b=\"\xc3\xa9??????\"");
    ds_buf_free(&out);
}

DS_TEST(series_are_bounded)
{
    ds_metrics *m;
    CHECK_EQ(ds_metrics_create(&m), DS_OK);
    char labels[32];
    ds_metric *last = NULL;
    for (int i = 0; i < DS_MAX_METRIC_SERIES; i++) {
        snprintf(labels, sizeof labels, "i=\"%d\"", i);
        last = ds_metric_gauge(m, "g", labels, "");
    }
    ds_metric *sink = ds_metric_counter(m, "over", "", "");
    CHECK(sink && sink != last);
    CHECK(ds_metric_histogram(m, "over2", "", "", NULL, 0) == sink);
    CHECK(ds_metric_gauge(m, "g", "i=\"0\"", "") != sink);
    ds_metric_add(sink, 1);
    ds_metric_set(sink, 1);
    ds_metric_observe(sink, 1);
    ds_buf out = {0};
    CHECK_EQ(ds_metrics_render(m, &out), DS_OK);
    CHECK(!strstr(out.data, "over"));
    CHECK(strstr(out.data, "dspark_metric_series_refused_total 2\n"));
    ds_buf_free(&out);
    ds_metrics_destroy(m);
}
