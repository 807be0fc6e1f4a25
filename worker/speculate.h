/* speculate.h - the speculative half of the step: which drafts the next pass verifies, which of them were
 * accepted, the draft's context, and the next block. Under both rules a draft stands when the target's row
 * chose the same token: under `coupled` because both draw with the same noise of (seed, position), under
 * `rejection` because the sampler couples them (kernels.h, draft_logits). It joins the pure parts: spec.h
 * (policy), profile.h (costs), guard.h (does it pay), live.h (calibration). Owner: the engine thread. */
#ifndef DS_WORKER_SPECULATE_H
#define DS_WORKER_SPECULATE_H

#include "worker/model/draft.h"
#include "worker/profile.h"
#include "worker/sched.h"
#include "worker/target.h"

typedef struct ds_speculate ds_speculate;

typedef struct ds_speculate_conf {
    int max_seqs, max_step_rows, max_logit_rows, kv_pages, page_tokens, max_len;
    int max_draft;     /* operator's cap of verified drafts per request; 0: the block */
    ds_spec_mode mode; /* of requests that say AUTO; OFF: of all */
    ds_acceptance acceptance;
    ds_sched_kind kind;
    double threshold;
    const double *T;         /* [block] STS temperatures, or NULL */
    const double *synthetic; /* [block], or NULL: engine.h */
    ds_clock clock;
} ds_speculate_conf;

enum { DS_PROBE_STEPS = 64, DS_PROBE_MAX_STEPS = 1024 };

/* ds_speculate_create: copies *d; allocates the draft's KV beside the target's pages. */
ds_code ds_speculate_create(const ds_speculate_conf *conf, const ds_drafter *d, ds_speculate **ret,
                            ds_err *err);
void ds_speculate_destroy(ds_speculate *s);
/* ds_speculate_profile: takes known step costs, or measures them (NULL; the KV pool must be idle). Without it
 * every draft on offer is verified and nothing is skipped. */
ds_code ds_speculate_profile(ds_speculate *s, const ds_profile *known, const ds_target *t,
                             const ds_kv_pool *kv, ds_err *err);
/* ds_speculate_get_profile: the costs as refined, with the temperatures in use. */
void ds_speculate_get_profile(const ds_speculate *s, ds_profile *ret);
void ds_speculate_set_schedule(ds_speculate *s, ds_sched_kind kind, double threshold);

/* ds_speculate_schedule: sets n_verify of every running sequence. */
void ds_speculate_schedule(ds_speculate *s, const ds_sched *sched);
/* ds_speculate_accept: drafts of an item that stand; out: its sampled rows. */
int ds_speculate_accept(ds_speculate *s, const ds_plan_item *it, ds_sample_out *out);
/* ds_speculate_count: a round of the device loop: n of l verified drafts stand; offered 1: a block was made.
 */
void ds_speculate_count(ds_speculate *s, int offered, int l, int n);
/* ds_speculate_seat: what the device loop may draft for q: ret_all 1: its client wants every draft verified.
 * Returns how many at once, 0: none. */
int ds_speculate_seat(const ds_speculate *s, const ds_seq *q, int *ret_all);
/* ds_speculate_kv: the draft's pages. ds_speculate_temps: its calibration [block]. */
const ds_kv_pool *ds_speculate_kv(const ds_speculate *s);
const double *ds_speculate_temps(const ds_speculate *s);
/* ds_speculate_resume: drafts that the device loop left for q become its drafts on offer. */
void ds_speculate_resume(ds_speculate *s, ds_seq *q, const int32_t *draft, const float *conf);
/* ds_speculate_context: context K/V of the step's rows that stand, drafted or not, so that a block can be
 * drafted after any step; accepted [plan->n]. */
ds_code ds_speculate_context(ds_speculate *s, const ds_plan *p, const int *accepted, const ds_step_args *a,
                             ds_err *err);
/* ds_speculate_propose: drafts for the running sequences that decode. row: how a sequence samples. A failed
 * pass leaves them without drafts: decoding goes on plainly. */
ds_code ds_speculate_propose(ds_speculate *s, const ds_sched *sched, ds_sample_row (*row)(const ds_seq *q),
                             ds_err *err);
/* ds_speculate_learn: after a good step: its times, of the target pass (with choosing and context) and of all
 * of it; accepted [plan->n]. */
void ds_speculate_learn(ds_speculate *s, const ds_plan *p, const int *accepted, double verify_s,
                        double step_s);
void ds_speculate_get_stats(const ds_speculate *s, ds_spec_stats *ret);

#endif
