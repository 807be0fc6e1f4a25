/* live.h - calibration while serving. Verified prefixes alone teach: slot k is a trial when the drafts before
 * it stood, and its outcome is whether it stood too; drafts behind a refused one say nothing. Trials are kept
 * as fading counts in bins of the confidence logit, from which come the reliability of each position, its
 * calibration error, a drift alarm, and new temperatures, which are tried beside the old ones before they
 * are used and taken back when they turn out worse. Pure and bounded: a tick fits one position at most.
 * Owner: the engine thread. */
#ifndef DS_WORKER_LIVE_H
#define DS_WORKER_LIVE_H

#include "worker/spec.h"

enum {
    DS_LIVE_BINS = 16,        /* over logits -8..8 */
    DS_LIVE_FIT_EVERY = 4096, /* trials between fits */
    DS_LIVE_MIN = 256,        /* trials of a position that is fitted */
    DS_LIVE_CANARY = 4096,    /* trials that judge new temperatures, before and after they are used */
};

typedef enum {
    DS_LIVE_WATCHING,  /* collecting trials */
    DS_LIVE_FITTING,   /* one position a tick */
    DS_LIVE_CANARYING, /* new temperatures predict beside those in use */
    DS_LIVE_PROVING    /* new ones in use, the old ones predict beside them */
} ds_live_state;

typedef struct ds_live_bin {
    double n, stood, z; /* trials, outcomes, sum of logits */
} ds_live_bin;

typedef struct ds_live {
    int block;
    double T[DS_MAX_BLOCK];     /* in use */
    double other[DS_MAX_BLOCK]; /* CANARYING: the new ones; PROVING: the old ones */
    ds_live_state state;
    int slot;                /* FITTING */
    uint64_t trials, judged; /* since the last fit; of the canary */
    double ahead, ahead2;    /* by how much T predicts the canary's trials better: sum, and sum of squares */
    ds_live_bin bin[DS_MAX_BLOCK][DS_LIVE_BINS];
    double ece; /* of all positions together, at the last look */
    double ece_at[DS_MAX_BLOCK];
    int drift;                  /* 1: the alarm: confidences are off by more than they were fitted to be */
    uint64_t refits, rollbacks; /* new temperatures taken into use; taken back */
} ds_live;

/* ds_live_init: T [block], or NULL: all 1. */
void ds_live_init(ds_live *l, int block, const double *T);
/* ds_live_tell: a round whose first `verified` drafts had confidence logits z [verified]; `stood` of them
 * were accepted. */
void ds_live_tell(ds_live *l, const float *z, int verified, int stood);
/* ds_live_tick: after each step: at most one position is fitted (97 temperatures, 16 bins: tens of
 * microseconds), else one comparison. */
void ds_live_tick(ds_live *l);
/* ds_live_ece: calibration error of position k (0-based), or of all together (-1), under T: sum over bins of
 * |predicted - stood| / trials, bins of equal logits. 0 without trials. */
double ds_live_ece(const ds_live *l, const double *T, int k);

#endif
