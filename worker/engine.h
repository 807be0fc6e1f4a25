/* engine.h - THE STEP: plan -> reserve kv -> pack -> target forward -> sample -> commit kv -> emit.
 *
 * One engine per device, driven by one thread that calls ds_engine_step until it returns no work. Requests
 * speak token ids only. Same seed, same tokens: alone, in any batch, with any chunking, after a prefix hit or
 * preemption. Exactly one DONE or ERROR event ends each accepted request. */
#ifndef DS_WORKER_ENGINE_H
#define DS_WORKER_ENGINE_H

#include "base/clock.h"
#include "base/err.h"
#include "base/limits.h"
#include "worker/model/draft.h"
#include "worker/model/model.h"
#include "worker/request.h"
#include "worker/spec.h"

typedef struct ds_engine ds_engine;

/* How drafts are accepted; both lossless (docs/speculation.md). COUPLED: the text equals plain decoding with
 * the same seed, token for token, whatever is drafted and scheduled. REJECTION: more drafts stand, each
 * token is drawn from the target's distribution, but which one depends on what was scheduled. */
typedef enum { DS_ACCEPT_COUPLED, DS_ACCEPT_REJECTION } ds_acceptance;

typedef struct ds_spec_stats {
    uint64_t rounds, drafted, verified,
        accepted;           /* rounds: steps of a request with at least one verified draft */
    uint64_t passes, skips; /* draft passes; steps in which drafting was left out as a loss */
    uint64_t request_skips; /* the same of single requests */
    uint64_t verified_at[DS_MAX_BLOCK], accepted_at[DS_MAX_BLOCK];
    uint64_t reached_at[DS_MAX_BLOCK]; /* verified, and all before it in the block accepted */
    uint64_t draft_ns, sched_ns;       /* in draft passes; in deciding what to draft and to verify */
    int budget;                        /* drafts that the last step verified */
    double measured_s, plain_s;        /* of steps that drafted: their time, and what plain decoding of the
                                        * same tokens would have taken */
    double regret;                     /* share of its time that drafting loses now (guard.h) */
    uint64_t guard_offs;               /* times the guard turned drafting off */
    int bands_off;                     /* numbers of requests (powers of two) at which it is off now */
    double ece, ece_at[DS_MAX_BLOCK], T[DS_MAX_BLOCK]; /* live calibration (live.h) */
    int drift;
    uint64_t refits, rollbacks;
} ds_spec_stats;

struct ds_profile;

typedef struct ds_engine_conf {
    int max_seqs;                     /* sequences running at once (slots) */
    int max_step_rows;                /* T budget of a step; prefill chunks take what decode leaves */
    int max_logit_rows;               /* R budget of a step (the model's); >= max_seqs, 0: max_seqs. Prompt
                                       * log-probabilities are computed in chunks of it */
    int max_queue;                    /* requests beyond max_seqs; one more is refused with DS_ELIMIT */
    int kv_pages;                     /* pages of the pool */
    int page_tokens;                  /* 16 */
    int prefix_cache;                 /* 1: keep and share full pages by content */
    ds_acceptance acceptance;         /* with a draft */
    ds_sched_kind schedule;           /* with a draft; GLOBAL is refused under REJECTION */
    double threshold;                 /* of DS_SCHED_THRESHOLD, 0..1 */
    const struct ds_profile *profile; /* known step costs, or NULL: measured at creation */
    const double *synthetic; /* [block], or NULL. For measuring speed only, the text is worthless: draft k
                              * stands with probability synthetic[k - 1], whatever the target says */
    ds_spec_mode spec;       /* with a draft: of requests that say AUTO */
    int max_draft;           /* with a draft: verified drafts per request and step; 0: the block */
    int device_loop; /* 1: steps in which all only decode are rounds of the device loop (docs/loop.md).
                      * Needs acceptance COUPLED; the KV pools get one page more */
    void (*progress)(void *ctx, int done, int total); /* of its captured graphs, or NULL */
    const double *spec_temps; /* [block] calibration temperatures, or NULL; read at creation and in steps */
    ds_clock clock;
} ds_engine_conf;

typedef enum { DS_EV_PROMPT, DS_EV_TOKENS, DS_EV_DONE, DS_EV_ERROR } ds_event_kind;

typedef struct ds_event {
    ds_event_kind kind;
    uint64_t id;
    const ds_sample_out *token; /* PROMPT: positions first..first+n-1 of the prompt; TOKENS: n new tokens */
    int n_accepted;             /* TOKENS: the first n_accepted of them were drafted */
    int n_rejected;             /* TOKENS: drafts verified beside them that were not emitted */
    const float *survival;      /* TOKENS: [n_accepted + n_rejected] of the verified drafts (spec.h) */
    int n, first;               /* first of TOKENS: index of token[0] in the output, resumed tokens counted */
    ds_finish finish;           /* DONE */
    int32_t stop_id; /* DONE with STOP: the id that ended it, else -1. It was emitted and counted as the last
                      * token (as vLLM does); the router hides its text */
    int n_prompt, n_output, n_cached; /* DONE: exact counts, resumed output tokens included; n_cached prompt
                                         tokens came from the prefix cache */
    int accepted, rejected;           /* DONE: verified drafts that were emitted, and the others */
    ds_code code;                     /* ERROR */
    const char *msg;                  /* ERROR: valid during the callback */
} ds_event;

typedef void (*ds_event_fn)(void *ctx, const ds_event *ev);

typedef struct ds_engine_stats {
    int running, waiting, free_pages, total_pages, cached_pages;
    uint64_t steps, rows, prefill_rows, decode_rows, preemptions, prefix_hit_tokens, prompt_tokens,
        output_tokens;
    uint64_t finished, cancelled, failed;
    uint64_t last_step_ns, busy_ns;
    uint64_t loop_rounds; /* of the device loop */
    ds_spec_stats spec;   /* zero without a draft */
} ds_engine_stats;

/* ds_engine_create: borrows model and kv-owning backend; allocates everything a step needs. */
ds_code ds_engine_create(const ds_engine_conf *conf, ds_model *model, ds_backend *b, ds_event_fn fn,
                         void *ctx, ds_engine **ret, ds_err *err);
/* ds_engine_create_drafted: the same with a draft of that model (NULL: none). The model keeps the draft's
 * taps. Step costs are measured here. */
ds_code ds_engine_create_drafted(const ds_engine_conf *conf, ds_model *model, ds_draft *draft, ds_backend *b,
                                 ds_event_fn fn, void *ctx, ds_engine **ret, ds_err *err);
void ds_engine_destroy(ds_engine *e);
/* ds_engine_max_len: positions one sequence may fill: the smaller of the model's and the KV pool's tokens. A
 * request that has filled them ends with LENGTH; its last token needs no position, so prompt + output <=
 * max_len + 1. */
int ds_engine_max_len(const ds_engine *e);
/* ds_engine_submit: DS_ELIMIT queue full; DS_EINVAL a field out of range (err.field names it), a prompt that
 * does not fit positions, or a request that could never fit the KV pool. */
ds_code ds_engine_submit(ds_engine *e, const ds_req *req, ds_err *err);
/* ds_engine_cancel: asks; the request still ends with exactly one DONE(CANCELLED). DS_ENOTFOUND when not
 * live. */
ds_code ds_engine_cancel(ds_engine *e, uint64_t id);
/* ds_engine_step: one step. Returns DS_OK and *ret_work = 0 when there was nothing to do. DS_ELOST: the
 * device is gone. */
ds_code ds_engine_step(ds_engine *e, int *ret_work, ds_err *err);
/* ds_engine_audit: recount pages, references and lists; DS_EBUG names what is wrong. For tests. */
ds_code ds_engine_audit(const ds_engine *e, ds_err *err);
void ds_engine_get_stats(const ds_engine *e, ds_engine_stats *ret);
/* ds_engine_get_loop_costs: of the device loop's graphs; 0: there is none. */
struct ds_loop_costs;
int ds_engine_get_loop_costs(const ds_engine *e, struct ds_loop_costs *ret);
/* ds_engine_get_profile: step costs as refined so far. 0 without a draft. */
int ds_engine_get_profile(const ds_engine *e, struct ds_profile *ret);
/* ds_engine_set_schedule: from the next step on. DS_EINVAL (scheduler) when it is not legal here. */
ds_code ds_engine_set_schedule(ds_engine *e, ds_sched_kind schedule, double threshold, ds_err *err);

#endif
