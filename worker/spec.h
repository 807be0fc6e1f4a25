/* spec.h - the policy of speculation: how many drafted tokens to verify, and which are accepted. Pure: no
 * device, socket or clock. Source: DSpark paper 3.2 and 5.2, Algorithm 1; notation a = survival, l =
 * scheduled drafts. */
#ifndef DS_WORKER_SPEC_H
#define DS_WORKER_SPEC_H

#include "base/err.h"

#include <stdint.h>

enum { DS_MAX_BLOCK = 32 }; /* drafted tokens per request and round */

typedef struct ds_spec_stats {
    uint64_t rounds, drafted, verified,
        accepted;           /* rounds: steps of a request with at least one verified draft */
    uint64_t passes, skips; /* draft passes; steps in which drafting was left out as a loss */
    uint64_t verified_at[DS_MAX_BLOCK], accepted_at[DS_MAX_BLOCK];
    uint64_t reached_at[DS_MAX_BLOCK]; /* verified, and all before it in the block accepted */
    uint64_t draft_ns;
} ds_spec_stats;

/* Step cost of B rows, made at start: seconds of the whole engine step (draft, verify, overhead). */
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
    int n; /* drafts on offer, caps (max_tokens, positions, client) applied, <= DS_MAX_BLOCK */
} ds_spec_req;

typedef struct ds_spec_cand { /* scratch of the ranking */
    float a;
    int32_t req, pos; /* pos 1..n */
} ds_spec_cand;

/* ds_spec_rank: candidates (r, j) with a > 0 by a descending, position ascending, request ascending, so that
 * every prefix of the list is a prefix of each row. cand: room for the sum of n. Returns their number. */
int ds_spec_rank(const ds_spec_req *req, int R, ds_spec_cand *cand);

typedef double (*ds_sps_fn)(void *ctx, int rows); /* steps per second of a step with that many rows */

/* ds_spec_early_stop: Algorithm 1. base_rows are rows of the step besides the R anchors (prefill). Legal
 * under both acceptance rules: whether (r, j) is admitted depends on a_(r,<=j) and other requests only.
 * ret_len [R]. Returns the number of admitted drafts; *ret_theta the expected tokens per second. */
int ds_spec_early_stop(const ds_spec_cand *cand, int n_cand, int R, int base_rows, ds_sps_fn sps, void *ctx,
                       int *ret_len, double *ret_theta);
/* ds_spec_best_budget: unconstrained argmax over all prefixes of the ranked list (first maximum). Under
 * `rejection` it may only be fed stale confidences (two steps old), under `coupled` any. Returns the budget
 * K. */
int ds_spec_best_budget(const ds_spec_cand *cand, int n_cand, int R, int base_rows, ds_sps_fn sps, void *ctx,
                        double *ret_theta);
/* ds_spec_top_k: the K best candidates become lengths. ret_len [R]. Returns the number admitted, min(K,
 * n_cand). */
int ds_spec_top_k(const ds_spec_cand *cand, int n_cand, int R, int K, int *ret_len);

/* ds_spec_reject: the maximal-coupling rule over one block. p [l+1, V] target and q [l, V] draft
 * probabilities (each row sums to 1), x [l] drafted ids. accept_u [l] and final_u are uniforms in (0,1),
 * independent of the draft's noise. Returns n accepted, *ret_token the residual draw (n < l) or the bonus (n
 * = l). Never accepts a token with p = 0. */
int ds_spec_reject(const float *p, const float *q, const int32_t *x, int l, int V, const float *accept_u,
                   float final_u, int32_t *ret_token);
/* ds_spec_couple: the shared-noise rule: y [l+1] are the target's own draws at the block's positions; accepts
 * the longest prefix with x[k] == y[k]. Returns n; the emitted tokens are y[0..n]. */
int ds_spec_couple(const int32_t *x, const int32_t *y, int l);

#endif
