/* guard.h - does speculation pay, by the clock? The regret meter sets the measured time of steps against what
 * the same tokens would have taken without drafts; the guard turns drafting off where it loses and tries it
 * again later. Pure: times are told. Owner: the engine thread.
 *
 * Requests that decode together decide what pays, so there is a guard for each power of two of them. A step
 * is told with the time plain decoding of its requests is predicted to take; predictions share the faults of
 * the cost profile, so both ways are measured and only compared through them: every PLAIN_EVERY-th step is
 * plain while drafting is on, and every so often a few steps draft while it is off. */
#ifndef DS_WORKER_GUARD_H
#define DS_WORKER_GUARD_H

#include <stdint.h>

enum {
    DS_GUARD_BANDS = 13,
    DS_GUARD_PLAIN_EVERY = 128, /* on: one plain step in so many */
    DS_GUARD_PLAIN_FIRST = 4,   /* plain steps at the beginning; the least that is judged by */
    DS_GUARD_TRIAL = 12,        /* steps of a trial, and the least drafted steps that are judged by */
    DS_GUARD_REST_MIN = 256,    /* off: steps before the first trial; doubled after each that fails */
    DS_GUARD_REST_MAX = 8192,
};

typedef enum {
    DS_GUARD_ON,    /* drafting, plain steps now and then */
    DS_GUARD_OFF,   /* not drafting: it lost */
    DS_GUARD_TRYING /* drafting again for a few steps, to be judged by them */
} ds_guard_state;

typedef struct ds_guard_arm { /* fading sums; their ratio is the time per token against the prediction */
    double measured, predicted;
    uint64_t n;
} ds_guard_arm;

typedef struct ds_guard_band {
    ds_guard_state state;
    int in_state, rest; /* steps */
    ds_guard_arm plain, drafted;
} ds_guard_band;

typedef struct ds_guard {
    ds_guard_band band[DS_GUARD_BANDS];
    double measured_s,
        plain_s;         /* of steps that drafted, ever: measured, and what plain decoding would take */
    uint64_t turned_off; /* times */
} ds_guard;

/* ds_guard_allows: may the next step of R >= 1 decoding requests draft? */
int ds_guard_allows(const ds_guard *g, int R);
/* ds_guard_tell: a step of R requests, without prompts: it emitted `tokens` in `measured_s`, drafts included
 * when drafted; plain decoding of one token each is predicted to take plain_s. */
void ds_guard_tell(ds_guard *g, int R, int drafted, int tokens, double measured_s, double plain_s);
/* ds_guard_regret: share of its time that drafting loses with R requests, as measured lately: 0.1 is a tenth
 * lost, -1 is twice as fast. 0 until both ways are measured. */
double ds_guard_regret(const ds_guard *g, int R);

#endif
