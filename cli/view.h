/* view.h - what one look at the cluster shows: its workers and totals, from /metrics or from RPC Stats.
 * Two looks give rates. Plain data; no owner thread. */
#ifndef DS_CLI_VIEW_H
#define DS_CLI_VIEW_H

#include "base/buf.h"
#include "cli/prom.h"

#include <jansson.h>
#include <stdint.h>

enum { DS_VIEW_MAX_WORKERS = 64 };

typedef struct ds_view_worker {
    char name[DS_PROM_MAX_LABEL];
    double up; /* 1: takes work */
    double running, waiting, kv_used, kv_total;
    double steps, rows, prompt_tokens, output_tokens, prefix_hit_tokens, preemptions;
    double finished, cancelled, failed;
    double draft_tokens, accepted_tokens, draft_rounds, proposed_tokens;
    double busy_s, last_step_s, rss_bytes;
    /* rates since the look before; NAN without one */
    double output_rate, prompt_rate, step_rate, busy_share;
    /* of drafts verified since the look before, else ever; NAN without any */
    double accepted_length, acceptance;
} ds_view_worker;

typedef struct ds_view {
    uint64_t at_ns;
    int n_workers;
    ds_view_worker worker[DS_VIEW_MAX_WORKERS];
    ds_view_worker total; /* sums; name "total" */
} ds_view;

/* ds_view_from_metrics: workers beyond DS_VIEW_MAX_WORKERS are counted in the total only. */
void ds_view_from_metrics(const ds_prom *p, uint64_t at_ns, ds_view *ret);
void ds_view_sum(ds_view *v); /* fills total from worker[0..n_workers-1] */
/* ds_view_rates: fills the rates of `now`; a counter that went back (a restarted worker) gives NAN. */
void ds_view_rates(const ds_view *before, ds_view *now);
json_t *ds_view_json(const ds_view *v);               /* new reference; NULL without memory */
ds_code ds_view_table(const ds_view *v, ds_buf *out); /* `dsparkctl status` */
void ds_view_count(double v, char *out, size_t n);    /* "812", "12.3k", "4.5M", "-" */
void ds_view_bytes(double v, char *out, size_t n);    /* "512M", "1.5G" */

#endif
