/* resident.h - the engine's use of the device loop (docs/loop.md): while every running sequence only decodes
 * and samples simply, steps are rounds of the loop. Nothing here decides what is emitted: records go through
 * the engine, which ends sequences by its own rules. Owner: the engine thread. */
#ifndef DS_WORKER_RESIDENT_H
#define DS_WORKER_RESIDENT_H

#include "worker/loop.h"
#include "worker/sched.h"
#include "worker/speculate.h"

typedef struct ds_resident ds_resident;

/* Tokens of q by a round; state as the device sees it after them. n_verify drafts were judged, n_accepted of
 * them emitted. */
typedef void (*ds_resident_fn)(void *ctx, ds_seq *q, const ds_round_out *o);

typedef struct ds_resident_conf {
    ds_loop_conf loop;
    ds_sched *sched;
    ds_speculate *spec; /* NULL: no draft */
    ds_resident_fn take;
    void *ctx;
} ds_resident_conf;

ds_code ds_resident_create(const ds_resident_conf *conf, ds_resident **ret, ds_err *err);
void ds_resident_destroy(ds_resident *r);
/* ds_resident_step: launches a round and takes in the one before it. *ret_did 0: nothing was done, an
 * ordinary step is due; the sequences are then as the last round left them. An error leaves no round in
 * flight; the running sequences are lost. */
ds_code ds_resident_step(ds_resident *r, int *ret_did, ds_err *err);
void ds_resident_get_costs(const ds_resident *r, ds_loop_costs *ret);
/* ds_resident_rounds: since the start; *ret_drafted: those with a draft pass. */
uint64_t ds_resident_rounds(const ds_resident *r, uint64_t *ret_drafted);

#endif
