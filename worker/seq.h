/* seq.h - one request inside the engine: its tokens, how far they are computed, when it ends, and what the
 * sampler must know about its history. One allocation, made at submit, holds all of it.
 *
 * Owner: the engine thread; pure. Positions: tokens[0..n) are known, the KV of tokens[0..n_computed) is in
 * pages; n_computed < n always, and the row of position n-1 chooses the token of position n. A preempted
 * sequence falls back to n_computed = 0 and keeps everything else. */
#ifndef DS_WORKER_SEQ_H
#define DS_WORKER_SEQ_H

#include "worker/request.h"
#include "worker/spec.h"

#include <stddef.h>

/* Distinct tokens of prompt and output with their count in the output: kept up token by token. */
typedef struct ds_seen {
    int32_t *id, *count; /* [n] */
    int32_t *index;      /* [mask + 1] open addressing: place in id plus one, 0 empty */
    int n;
    uint32_t mask;
} ds_seen;

typedef struct ds_seq {
    ds_req req; /* its arrays belong to this allocation; prompt and output are in tokens */
    int32_t *tokens;
    int n, cap, n_computed;
    int n_scored;  /* next prompt position to report with prompt_logprobs (its row is n_scored - 1) */
    int32_t *stop; /* [n_stop] every id that ends the output: stop_id, and eos unless ignored */
    int n_stop;
    int penalized; /* 1: seen is kept */
    ds_seen seen;

    /* Kept by speculate.c: drafts on offer for positions n.., and how many the next step verifies. */
    int n_draft, n_verify;
    int32_t draft[DS_MAX_BLOCK];
    float *draft_logits[DS_MAX_BLOCK]; /* under `rejection`: what draft k was drawn from */
    float confidence[DS_MAX_BLOCK];    /* logits of the draft's confidence head */
    float survival[DS_MAX_BLOCK];      /* probability that drafts 1..k are all accepted */
    float past[2][DS_MAX_BLOCK];       /* survival of the round before, and of the one before that */
    float expect[DS_MAX_BLOCK];        /* survival that its history makes expect, once there were rounds */
    int n_rounds, n_past, n_skipped;   /* blocks offered; rounds in past; steps without, in a row */
    int n_accepted, n_rejected;        /* verified drafts that were emitted, and the others, over its life */

    /* Kept by sched.c. */
    int slot, n_pages, n_published; /* slot -1: waiting */
    uint64_t chain;                 /* uid of the last published page */
    uint64_t arrival, blocked_at;
    int preempted,
        n_cached;     /* times; prompt tokens found in the prefix cache when first admitted, -1 before */
    ds_finish ending; /* not NONE: to be ended before the next step computes anything */
    struct ds_seq *prev, *next;
} ds_seq;

typedef struct ds_seq_limits {
    int vocab, max_len; /* positions a sequence may fill; its last token needs none */
    const int *eos;
    int n_eos;
} ds_seq_limits;

/* ds_seq_create: copies a validated request. DS_ENOMEM. */
ds_code ds_seq_create(const ds_req *req, const ds_seq_limits *limits, ds_seq **ret, ds_err *err);
void ds_seq_destroy(ds_seq *s);
/* ds_seq_append: a chosen token; returns how the sequence ends with it, NONE when it goes on. */
ds_finish ds_seq_append(ds_seq *s, int32_t token);
/* ds_seq_finished: the same question about the newest token: after a resume it may already be the last. */
ds_finish ds_seq_finished(const ds_seq *s);

static inline int ds_seq_n_output(const ds_seq *s)
{
    return s->n - s->req.n_prompt;
}
static inline int ds_seq_pending(const ds_seq *s) /* rows until the next token can be chosen */
{
    return s->n - s->n_computed;
}
static inline int ds_seq_scoring(const ds_seq *s) /* prompt positions are still to be reported */
{
    return s->req.prompt_logprobs >= 0 && s->n_scored < s->req.n_prompt;
}

#endif
