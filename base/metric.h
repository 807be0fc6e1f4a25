/* metric.h - Prometheus metrics: counters, gauges, histograms in a bounded registry. Single-threaded owner.
 */
#ifndef DS_BASE_METRIC_H
#define DS_BASE_METRIC_H

#include "base/buf.h"
#include "base/err.h"

typedef struct ds_metrics ds_metrics;
typedef struct ds_metric ds_metric;
enum { DS_MAX_METRIC_SERIES = 10000 };

ds_code ds_metrics_create(ds_metrics **ret);
void ds_metrics_destroy(ds_metrics *m);
/* labels: "model=\"x\",worker=\"0\"" already escaped (ds_metric_label), or "". The same name and labels
 * return the same series. Beyond DS_MAX_METRIC_SERIES a shared overflow series is returned, never NULL. */
ds_metric *ds_metric_counter(ds_metrics *m, const char *name, const char *labels, const char *help);
ds_metric *ds_metric_gauge(ds_metrics *m, const char *name, const char *labels, const char *help);
ds_metric *ds_metric_histogram(ds_metrics *m, const char *name, const char *labels, const char *help,
                               const double *bounds, int n_bounds);
void ds_metric_add(ds_metric *s, double v);     /* counter, gauge */
void ds_metric_set(ds_metric *s, double v);     /* gauge; counter mirrored from a peer */
void ds_metric_observe(ds_metric *s, double v); /* histogram */
ds_code ds_metrics_render(const ds_metrics *m,
                          ds_buf *out); /* text format 0.0.4, HELP and TYPE once per name */
ds_code ds_metric_label(ds_buf *out, const char *key,
                        const char *value); /* appends key="escaped" with comma as needed */

#endif
