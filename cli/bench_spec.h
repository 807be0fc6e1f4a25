/* bench_spec.h - dspark-bench spec: what a draft gains, measured in process. Results of all cells as plain
 * data, for the table, the JSON and the picture. */
#ifndef DS_CLI_BENCH_SPEC_H
#define DS_CLI_BENCH_SPEC_H

#include "cli/bench.h"
#include "cli/dist.h"
#include "worker/engine.h"

enum { DS_SPEC_MAX_MODES = DS_MAX_BLOCK + 16, DS_SPEC_MAX_DOMAINS = 16 };

typedef struct ds_spec_bench_mode {
    char name[16]; /* "off", "3", "t0.5", "early-stop", "stale", "auto" */
    int drafts;    /* 0: off, an engine without a draft */
    ds_sched_kind kind;
    double threshold; /* of THRESHOLD */
    int max_draft;    /* of FIXED; 0: the block */
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
    int exact;          /* 1: every mode must give the tokens of off */
    int n_synthetic;    /* > 0: drafts stood by these odds, not by the model: speeds only */
    double synthetic[DS_MAX_BLOCK];
} ds_spec_bench;

ds_spec_cell *ds_spec_bench_cell(const ds_spec_bench *b, int domain, int concurrency, int mode);
/* ds_spec_rows_per_request: target rows of a request in a step, its own included; NAN: no steps. */
double ds_spec_rows_per_request(const ds_spec_cell *cell);
void ds_spec_bench_table(const ds_spec_bench *b, FILE *out);
json_t *ds_spec_bench_json(const ds_spec_bench *b); /* {"domains": [...]}; NULL without memory */
/* ds_spec_bench_svg: a column a domain. Total throughput over the speed of one user, a line a mode, a point a
 * concurrency; target rows of a request in a step over concurrency; conditional acceptance by position. */
ds_code ds_spec_bench_svg(const ds_spec_bench *b, const char *file, ds_err *err);

#endif
