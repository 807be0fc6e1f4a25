/* metrics.c - what /metrics shows. Gauges are set when the page is asked for; the label values that come from
 * outside (worker names) are bounded by the registry's series limit, and paths are ours. */
#include "daemon/daemon.h"

#include <stddef.h>

static const double SECONDS[] = {0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25,
                                 0.5,   1,      2.5,   5,    10,    30,   60};
enum { N_SECONDS = sizeof SECONDS / sizeof *SECONDS };

ds_code ds_metrics_open(ds_daemon *d, ds_err *err)
{
    if (ds_metrics_create(&d->metrics))
        return ds_err_set(err, DS_ENOMEM, "no memory for the metrics");
    ds_metrics *m = d->metrics;
    ds_counters *c = &d->m;
    c->prompt_tokens =
        ds_metric_counter(m, "dspark_prompt_tokens_total", "", "Prompt tokens of accepted requests");
    c->output_tokens = ds_metric_counter(m, "dspark_output_tokens_total", "", "Tokens generated");
    c->cached_tokens =
        ds_metric_counter(m, "dspark_cached_tokens_total", "", "Prompt tokens found in a prefix cache");
    c->events = ds_metric_counter(m, "dspark_sse_events_total", "", "Server-sent events written");
    c->moved = ds_metric_counter(m, "dspark_moved_total", "", "Requests moved to another worker");
    c->cancelled = ds_metric_counter(m, "dspark_cancelled_total", "", "Requests whose client left");
    c->failed = ds_metric_counter(m, "dspark_failed_total", "", "Requests answered with an error");
    c->dropped =
        ds_metric_counter(m, "dspark_http_dropped_total", "", "Clients cut: malformed, slow or too many");
    c->running = ds_metric_gauge(m, "dspark_running", "", "Choices held by workers");
    c->waiting = ds_metric_gauge(m, "dspark_waiting", "", "Choices waiting for a worker");
    c->connections = ds_metric_gauge(m, "dspark_http_connections", "", "Open HTTP connections");
    c->workers = ds_metric_gauge(m, "dspark_workers", "", "Workers that serve");
    c->ready = ds_metric_gauge(m, "dspark_ready", "", "1 when /ready says so");
    c->ttft = ds_metric_histogram(m, "dspark_first_token_seconds", "", "Arrival to first token", SECONDS,
                                  N_SECONDS);
    c->itl = ds_metric_histogram(m, "dspark_token_seconds", "", "Time per token after the first", SECONDS,
                                 N_SECONDS);
    c->duration = ds_metric_histogram(m, "dspark_request_seconds", "", "Arrival to the last byte written",
                                      SECONDS, N_SECONDS);
    return DS_OK;
}

void ds_metrics_http(ds_daemon *d, const char *path, int status)
{
    ds_buf labels = {0};
    char code[16];
    snprintf(code, sizeof code, "%d", status);
    if (ds_metric_label(&labels, "path", path) == DS_OK && ds_metric_label(&labels, "code", code) == DS_OK)
        ds_metric_add(
            ds_metric_counter(d->metrics, "dspark_http_requests_total", labels.data, "HTTP answers"), 1);
    ds_buf_free(&labels);
}

/* One number of a worker's Stats, mirrored. */
typedef struct column {
    const char *name, *help;
    enum { U32, U64, F64, NS } type;
    size_t offset;
    int gauge;
} column;

static const column COLUMNS[] = {
#define COL(name, member, type, gauge, help)                                    \
    {                                                                           \
        "dspark_worker_" name, help, type, offsetof(ds_pb_stats, member), gauge \
    }
    COL("running", running, U32, 1, "Sequences in the batch"),
    COL("waiting", waiting, U32, 1, "Sequences waiting"),
    COL("kv_tokens_used", kv_tokens_used, U64, 1, "KV tokens in use"),
    COL("kv_tokens", kv_tokens, U64, 1, "KV tokens of the pool"),
    COL("steps_total", steps, U64, 0, "Engine steps"),
    COL("rows_total", rows, U64, 0, "Rows of all steps"),
    COL("prompt_tokens_total", prompt_tokens, U64, 0, "Prompt tokens"),
    COL("output_tokens_total", output_tokens, U64, 0, "Tokens generated"),
    COL("prefix_hit_tokens_total", prefix_hit_tokens, U64, 0, "Prompt tokens found in the prefix cache"),
    COL("preemptions_total", preemptions, U64, 0, "Sequences preempted"),
    COL("finished_total", finished, U64, 0, "Requests finished"),
    COL("cancelled_total", cancelled, U64, 0, "Requests cancelled"),
    COL("failed_total", failed, U64, 0, "Requests failed"),
    COL("draft_tokens_total", draft_tokens, U64, 0, "Drafted tokens verified"),
    COL("accepted_tokens_total", accepted_tokens, U64, 0, "Drafted tokens accepted"),
    COL("draft_rounds_total", draft_rounds, U64, 0, "Steps of a request that verified drafts"),
    COL("draft_proposed_tokens_total", proposed_tokens, U64, 0, "Tokens drafted, verified or not"),
    COL("draft_passes_total", draft_passes, U64, 0, "Draft passes"),
    COL("draft_skips_total", draft_skips, U64, 0, "Steps in which drafting was left out as a loss"),
    COL("draft_seconds_total", draft_ns, NS, 0, "Time spent in draft passes"),
    COL("draft_request_skips_total", draft_request_skips, U64, 0,
        "Requests not drafted for in a step, likewise"),
    COL("schedule_seconds_total", sched_ns, NS, 0, "Time spent deciding what to draft and what to verify"),
    COL("verify_budget", verify_budget, U32, 1, "Drafts that the last step verified"),
    COL("drafted_step_seconds_total", drafted_step_ns, NS, 0, "Time of steps that drafted"),
    COL("plain_step_seconds_total", plain_step_ns, NS, 0,
        "Time that plain decoding of their tokens would have taken"),
    COL("speculation_regret", regret, F64, 1, "Share of its time that drafting loses now; negative: it wins"),
    COL("guard_offs_total", guard_offs, U64, 0, "Times drafting was turned off because it lost"),
    COL("guard_bands_off", guard_bands_off, U32, 1,
        "Numbers of requests (powers of two) at which drafting is off because it lost"),
    COL("calibration_error", calibration_error, F64, 1, "Expected calibration error of live confidences"),
    COL("calibration_drift", calibration_drift, U32, 1, "1 when confidences are off by more than fitted"),
    COL("calibration_refits_total", calibration_refits, U64, 0, "New confidence temperatures taken into use"),
    COL("calibration_rollbacks_total", calibration_rollbacks, U64, 0, "Of them, taken back"),
    COL("busy_seconds_total", busy_ns, NS, 0, "Time spent in steps"),
    COL("last_step_seconds", last_step_ns, NS, 1, "Duration of the last step"),
    COL("rss_bytes", rss_bytes, U64, 1, "Resident memory"),
#undef COL
};

/* The counters under vLLM's names, so that its dashboards and scrapers work; position counts from 0. */
static ds_code show_drafts(ds_daemon *d, const ds_worker *w)
{
    const ds_pb_stats *s = &w->stats;
    ds_metrics *m = d->metrics;
    ds_buf labels = {0};
    ds_code code = ds_metric_label(&labels, "model_name", d->model);
    if (code == DS_OK)
        code = ds_metric_label(&labels, "worker", w->name);
    if (code == DS_OK) {
        ds_metric_set(ds_metric_counter(m, "vllm:spec_decode_num_drafts_total", labels.data,
                                        "Steps of a request that verified drafts"),
                      (double)s->draft_rounds);
        ds_metric_set(ds_metric_counter(m, "vllm:spec_decode_num_draft_tokens_total", labels.data,
                                        "Drafted tokens verified"),
                      (double)s->draft_tokens);
        ds_metric_set(ds_metric_counter(m, "vllm:spec_decode_num_accepted_tokens_total", labels.data,
                                        "Drafted tokens accepted"),
                      (double)s->accepted_tokens);
    }
    size_t len = labels.len;
    for (size_t i = 0; code == DS_OK && i < s->n_draft_tokens_at; i++) {
        char position[24];
        snprintf(position, sizeof position, "%zu", i);
        labels.len = len;
        code = ds_metric_label(&labels, "position", position);
        if (code)
            break;
        ds_metric_set(ds_metric_counter(m, "vllm:spec_decode_num_accepted_tokens_per_pos_total", labels.data,
                                        "Drafted tokens accepted, by position in the block"),
                      i < s->n_accepted_tokens_at ? (double)s->accepted_tokens_at[i] : 0);
        ds_metric_set(ds_metric_counter(m, "dspark_spec_decode_num_draft_tokens_per_pos_total", labels.data,
                                        "Drafted tokens verified, by position in the block"),
                      (double)s->draft_tokens_at[i]);
        ds_metric_set(ds_metric_gauge(m, "dspark_spec_decode_calibration_error_per_pos", labels.data,
                                      "Calibration error of live confidences, by position in the block"),
                      i < s->n_calibration_error_at ? s->calibration_error_at[i] : 0);
    }
    ds_buf_free(&labels);
    return code;
}

static ds_code show_worker(ds_daemon *d, const ds_worker *w)
{
    ds_buf labels = {0};
    ds_code code = ds_metric_label(&labels, "worker", w->name);
    if (code == DS_OK) {
        ds_metric_set(ds_metric_gauge(d->metrics, "dspark_worker_up", labels.data, "1 while it serves"),
                      w->state == LINK_READY);
        ds_metric_set(ds_metric_gauge(d->metrics, "dspark_worker_outstanding_tokens", labels.data,
                                      "Prompt and possible output tokens of the requests it holds"),
                      (double)w->outstanding);
    }
    for (size_t i = 0; i < sizeof COLUMNS / sizeof *COLUMNS && code == DS_OK; i++) {
        const column *c = &COLUMNS[i];
        const void *at = (const char *)&w->stats + c->offset;
        double v = c->type == U32   ? (double)*(const uint32_t *)at
                   : c->type == F64 ? *(const double *)at
                   : c->type == NS  ? (double)*(const uint64_t *)at * 1e-9
                                    : (double)*(const uint64_t *)at;
        ds_metric_set(c->gauge ? ds_metric_gauge(d->metrics, c->name, labels.data, c->help)
                               : ds_metric_counter(d->metrics, c->name, labels.data, c->help),
                      v);
    }
    ds_buf_free(&labels);
    return code;
}

ds_code ds_metrics_page(ds_daemon *d, ds_buf *out)
{
    ds_metric_set(d->m.running, ds_links_flights(d->links));
    ds_metric_set(d->m.waiting, d->n_waiting);
    ds_metric_set(d->m.connections, ds_httpd_connections(d->http));
    ds_metric_set(d->m.dropped, (double)ds_httpd_dropped(d->http));
    ds_metric_set(d->m.workers, ds_links_ready(d->links));
    ds_metric_set(d->m.ready, ds_links_ready(d->links) > 0 && !d->draining);
    for (int i = 0; i < DS_MAX_WORKERS; i++) {
        const ds_worker *w = ds_links_worker(d->links, i);
        if (w->name[0]) /* a lost worker stays, with up 0, until another takes its place */
            DS_TRY(show_worker(d, w));
        if (w->name[0] && w->draft[0])
            DS_TRY(show_drafts(d, w));
    }
    return ds_metrics_render(d->metrics, out);
}
