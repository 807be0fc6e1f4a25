/* bench_spec.h - dspark-bench spec: what a draft gains, measured in process. Results of all cells as plain
 * data, for the table, the JSON and the picture. */
#ifndef DS_CLI_BENCH_SPEC_H
#define DS_CLI_BENCH_SPEC_H

#include "cli/bench.h"
#include "cli/dist.h"
#include "worker/engine.h"

enum { DS_SPEC_MAX_MODES = DS_MAX_BLOCK + 2, DS_SPEC_MAX_DOMAINS = 16 };

typedef struct ds_spec_bench_mode {
    char name[16]; /* "off", "auto", "3" */
    ds_spec_mode mode;
    int max_draft; /* of MAX */
} ds_spec_bench_mode;

/* One domain, mode and concurrency over all rounds. */
typedef struct ds_spec_cell {
    ds_dist total, user; /* tokens a second of all requests, and of the median request after its first; one
                            value a round */
    ds_dist ratio_total, ratio_user; /* to `off` of the same round */
    ds_spec_stats stats;             /* sums */
    uint64_t tokens, steps, busy_ns,
        hash; /* hash: of all tokens; equal in all modes or speculation is wrong */
    int differs;
} ds_spec_cell;

typedef struct ds_spec_bench {
    int n_modes, n_domains, rounds;
    ds_spec_bench_mode mode[DS_SPEC_MAX_MODES];
    char domain[DS_SPEC_MAX_DOMAINS][64];
    ds_bench_list concurrency;
    ds_spec_cell *cell; /* [n_domains, concurrency.n, n_modes] */
} ds_spec_bench;

ds_spec_cell *ds_spec_bench_cell(const ds_spec_bench *b, int domain, int concurrency, int mode);
void ds_spec_bench_table(const ds_spec_bench *b, FILE *out);
json_t *ds_spec_bench_json(const ds_spec_bench *b); /* {"domains": [...]}; NULL without memory */
/* ds_spec_bench_svg: a panel a domain: total throughput over the speed of one user, a line a mode, a point a
 * concurrency. */
ds_code ds_spec_bench_svg(const ds_spec_bench *b, const char *file, ds_err *err);

#endif
