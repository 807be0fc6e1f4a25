/* bench_report.h - results as a table, as JSON, and a progress bar on stderr. */
#ifndef DS_CLI_BENCH_REPORT_H
#define DS_CLI_BENCH_REPORT_H

#include "cli/load.h"

#include <stdio.h>

void ds_bench_report_head(FILE *out, int open_loop);
void ds_bench_report_row(FILE *out, ds_load_result *r, int open_loop);
json_t *ds_bench_report_json(ds_load_result *r);
/* ds_bench_show_progress: for ds_load_conf.progress; ctx is not used. */
void ds_bench_show_progress(void *ctx, const ds_load_result *so_far, double share);

#endif
