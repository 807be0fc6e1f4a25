/* sched.h - which sequences run, how many rows each has in the next step, and who gives way when pages run
 * out.
 *
 * Owner: the engine thread; pure: no tensor, device or clock, so thousands of schedules are simulated.
 * Order everywhere: smaller priority first, then arrival. Rules (docs/engine.md):
 *  - decode rows first, then prefill chunks of running sequences, then admissions, within max_step_rows;
 *  - admission is first come first served and takes the pages of every known token, plus some headroom;
 *  - when a decode row finds no page, the last running sequence gives up all of its own and waits again: the
 *    first one is never the last unless it is alone, and alone it fits, so it always goes on. */
#ifndef DS_WORKER_SCHED_H
#define DS_WORKER_SCHED_H

#include "worker/kv.h"
#include "worker/seq.h"

typedef struct ds_sched ds_sched;

typedef struct ds_sched_conf {
    int max_seqs, max_step_rows, max_logit_rows, max_queue; /* max_seqs <= both row budgets */
    int max_len;                                            /* positions of one sequence; they fit the pool */
    ds_kv_conf kv;
    int lookahead; /* positions a draft block may write beyond the rows of a step; 0: no speculation */
} ds_sched_conf;

/* Rows of one sequence in the step: positions n_computed .. n_computed + rows - 1. Logits are wanted of
 * n_score rows from the row `score_at` on, whose tokens are given (prompt log-probabilities), then of the
 * last n_sample rows, of which the last n_verify hold drafts (tokens of positions seq->n on). */
typedef struct ds_plan_item {
    ds_seq *seq;
    int rows, score_at, n_score, n_sample, n_verify;
} ds_plan_item;

typedef struct ds_plan {
    ds_plan_item *item; /* [n], n <= max_seqs */
    int n, rows, logits, decode_rows;
} ds_plan;

typedef struct ds_sched_counts {
    int running, waiting, free_pages, cached_pages;         /* free: idle cached ones included */
    uint64_t preemptions, prompt_tokens, prefix_hit_tokens; /* tokens counted when first admitted */
} ds_sched_counts;

ds_code ds_sched_create(const ds_sched_conf *conf, ds_sched **ret, ds_err *err);
void ds_sched_destroy(ds_sched *s); /* sequences still inside are not destroyed */

/* ds_sched_add: DS_ELIMIT when max_seqs + max_queue sequences are inside. */
ds_code ds_sched_add(ds_sched *s, ds_seq *q, ds_err *err);
ds_seq *ds_sched_find(const ds_sched *s, uint64_t id); /* O(live); NULL: not live */
/* ds_sched_end: mark for ending; ds_sched_ending hands out marked sequences, which the caller then removes.
 */
void ds_sched_end(ds_sched *s, ds_seq *q, ds_finish how);
ds_seq *ds_sched_ending(const ds_sched *s);
/* ds_sched_remove: q leaves, its slot and references are returned. suspect: its content may be damaged, so
 * none of its pages is found again. */
void ds_sched_remove(ds_sched *s, ds_seq *q, int suspect);
ds_seq *ds_sched_any(const ds_sched *s); /* a live sequence, or NULL */

/* ds_sched_plan: the next step, pages reserved. Valid until the next call; n = 0: nothing can run. */
const ds_plan *ds_sched_plan(ds_sched *s);
/* ds_sched_admissible: the first waiting sequence could start running now. */
int ds_sched_admissible(ds_sched *s);
/* ds_sched_reserve: pages for the first `tokens` tokens of a running sequence, at most max_len, from free
 * ones only; 0: there are too few (it keeps those it got). */
int ds_sched_reserve(ds_sched *s, ds_seq *q, int tokens);
/* ds_sched_publish: offer q's computed full pages for sharing. Only after a good logit row at n_computed - 1:
 * a NaN anywhere before it would have shown there. */
void ds_sched_publish(ds_sched *s, ds_seq *q);

/* ds_sched_running: the running sequences in order. Valid until the next call. */
ds_seq *const *ds_sched_running(const ds_sched *s, int *ret_n);
/* ds_sched_room: positions whose pages q holds. */
int ds_sched_room(const ds_sched *s, const ds_seq *q);
const int32_t *ds_sched_page_table(const ds_sched *s, int *ret_stride); /* [max_seqs, stride] */
void ds_sched_get_counts(const ds_sched *s, ds_sched_counts *ret);
/* ds_sched_audit: references equal page table entries, lists and counts agree; DS_EBUG. For tests. */
ds_code ds_sched_audit(const ds_sched *s, ds_err *err);

#endif
