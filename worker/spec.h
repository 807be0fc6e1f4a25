/* spec.h - the policy of speculation: how many drafted tokens to verify, and whom to draft for. Pure: no
 * device, socket or clock. Source: DSpark paper 3.2 and 5.2, Algorithm 1; notation a = survival, l =
 * scheduled drafts (docs/speculation.md). */
#ifndef DS_WORKER_SPEC_H
#define DS_WORKER_SPEC_H

#include "base/err.h"

#include <stdint.h>

enum { DS_MAX_BLOCK = 32 }; /* drafted tokens per request and round */

/* How lengths are chosen. Under the acceptance rule `rejection` a scheduler may not look at anything that
 * depends on the draft it judges, or the text is biased (paper, appendix A): GLOBAL is refused there. */
typedef enum {
    DS_SCHED_GLOBAL,     /* best prefix of all ranked candidates, by current confidences */
    DS_SCHED_EARLY_STOP, /* Algorithm 1: the first candidate that does not pay ends the search */
    DS_SCHED_STALE, /* production variant: how many, by confidences two rounds old; which, by current ones */
    DS_SCHED_THRESHOLD, /* each request alone: up to the first confidence below the threshold */
    DS_SCHED_FIXED,     /* every draft on offer */
    DS_SCHED_KINDS
} ds_sched_kind;

/* Seconds of a step with that many target rows when `drafted` requests get new drafts for it. */
typedef double (*ds_cost_fn)(void *ctx, int rows, int drafted);

/* Step cost of B rows: seconds of the whole engine step. */
typedef struct ds_cost_table {
    const int *rows;       /* [n] ascending, >= 1 */
    const double *seconds; /* [n] > 0, never falling */
    int n;
} ds_cost_table;

/* ds_cost_seconds: cost of B >= 1 rows: linear between points, held below the first, last slope beyond the
 * last. staircase: the cost of the next measured size up (captured graphs). */
double ds_cost_seconds(const ds_cost_table *t, int rows, int staircase);

typedef struct ds_spec_req {
    const float *survival; /* [n] a_1..a_n, never rising, in [0, 1] */
    int n;              /* drafts on offer, caps (max_tokens, positions, client) applied, <= DS_MAX_BLOCK */
    const float *stale; /* [n] STALE: a of two rounds ago, or what is expected of the request */
    int all;            /* 1: its client wants every draft verified */
} ds_spec_req;

typedef struct ds_spec_cand { /* scratch of the ranking */
    float a;
    int32_t req, pos; /* pos 1..n */
} ds_spec_cand;

/* ds_spec_rank: candidates (r, j) with a > 0 by a descending, position ascending, request ascending, so that
 * every prefix of the list is a prefix of each row. cand, tmp: room for the sum of n. Returns their number.
 */
int ds_spec_rank(const ds_spec_req *req, int R, ds_spec_cand *cand, ds_spec_cand *tmp);

/* ds_spec_early_stop: Algorithm 1. plain: rows of requests without drafts, which emit one token each. Legal
 * under both acceptance rules: whether (r, j) is admitted depends on a_(r,<=j) and other requests only.
 * Returns the number K of admitted drafts; *ret_theta the expected tokens per second. */
int ds_spec_early_stop(const ds_spec_cand *cand, int n_cand, int R, int plain, ds_cost_fn cost, void *ctx,
                       double *ret_theta);
/* ds_spec_best_budget: unconstrained argmax over all prefixes of the ranked list (first maximum). Under
 * `rejection` it may only be fed stale confidences, under `coupled` any. Returns the budget K. */
int ds_spec_best_budget(const ds_spec_cand *cand, int n_cand, int R, int plain, ds_cost_fn cost, void *ctx,
                        double *ret_theta);
/* ds_spec_top_k: the K best candidates become lengths. ret_len [R]. Returns the number admitted, min(K,
 * n_cand). */
int ds_spec_top_k(const ds_spec_cand *cand, int n_cand, int R, int K, int *ret_len);

typedef struct ds_spec_choice {
    ds_sched_kind kind;
    double threshold;       /* THRESHOLD */
    const ds_spec_req *req; /* [R] requests with drafts on offer */
    int R, plain;           /* plain: other requests that decode in this step */
    int room;               /* drafts that the step has rows for */
    ds_cost_fn cost;        /* NULL: unknown; then everything on offer pays */
    void *ctx;
    ds_spec_cand *cand, *tmp; /* scratch: room for all drafts on offer */
} ds_spec_choice;

/* ds_spec_choose: lengths of one step, ret_len [R]; returns their sum, at most room. Drafts of `all` requests
 * come first. */
int ds_spec_choose(const ds_spec_choice *c, int *ret_len);

/* ds_spec_worth: before drafting: which requests' drafts are expected to pay for their part of the draft
 * pass? req: expected survivals, as the history says, and what may be offered. ret_want [R] 0 or 1 (`all`
 * requests always 1). Returns the number of requests that want drafts. */
int ds_spec_worth(const ds_spec_choice *c, int *ret_want);

#endif
