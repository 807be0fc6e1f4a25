/* loop.h - the device loop (docs/loop.md): rounds of verification, acceptance and drafting that follow each
 * other on the device. The host launches a round while the one before it computes, and collects its records
 * one round behind. Owner: the engine thread.
 *
 * Seats have the numbers of the scheduler's slots. The ordinary step and the loop share model, draft and KV:
 * seats enter and are read back only while no round is in flight. */
#ifndef DS_WORKER_LOOP_H
#define DS_WORKER_LOOP_H

#include "worker/model/draft.h"
#include "worker/model/model.h"
#include "worker/spec.h"

enum { DS_LOOP_DEPTH = 2, DS_LOOP_MAX_SEATS = 1024, DS_LOOP_MAX_ROWS = 4096, DS_LOOP_BUCKETS = 32 };

typedef struct ds_loop ds_loop;

typedef struct ds_loop_costs { /* seconds of each captured graph, never falling */
    int n_rows, n_reqs;
    int rows[DS_LOOP_BUCKETS], reqs[DS_LOOP_BUCKETS];
    double verify[DS_LOOP_BUCKETS], draft[DS_LOOP_BUCKETS]; /* draft 0 without one */
} ds_loop_costs;

typedef struct ds_loop_conf {
    ds_backend *b;
    ds_model *model;
    ds_draft *draft; /* NULL: plain decoding */
    const ds_kv_pool *kv, *draft_kv;
    int max_seats; /* 1..DS_LOOP_MAX_SEATS: slots of the page table */
    int max_rows;  /* of a round, >= max_seats: within the model's logit rows and the draft's context rows */
    int max_len;   /* positions of a slot */
    int page_stride;           /* page table entries of a slot */
    int null_page;             /* of both pools; nobody else's: padding writes it */
    const ds_loop_costs *cost; /* of this same loop, measured before; NULL: measured now */
    const double *T;           /* [block] calibration temperatures, or NULL */
    const float
        *odds; /* [block] or NULL: drafts stand by these odds, whatever the target says (benchmarks) */
    void (*progress)(void *ctx, int done, int total); /* of the captured graphs; or NULL */
    void *ctx;
} ds_loop_conf;

/* ds_loop_create: memory, one graph per bucket, their costs on the idle pools. DS_EINVAL names a field (cost:
 * of other buckets);
 * DS_ENOMEM; what an op or the capture said. Warmed-up rounds write pages of the pools. */
ds_code ds_loop_create(const ds_loop_conf *conf, ds_loop **ret, ds_err *err);
void ds_loop_destroy(ds_loop *l);
void ds_loop_get_costs(const ds_loop *l, ds_loop_costs *ret);

/* ds_loop_enter: a request takes the seat of its slot; pages [n_pages] are its row of the page table. Until
 * it leaves the lists of ds_loop_launch, its pages belong to the rounds. */
ds_code ds_loop_enter(ds_loop *l, int slot, const ds_seat *seat, const int32_t *pages, int n_pages,
                      ds_err *err);
/* ds_loop_page: page `index` of a slot becomes `page` from the next round on. */
void ds_loop_page(ds_loop *l, int slot, int index, int32_t page);
/* ds_loop_reach: tokens whose pages must be there before the next launch, for a seat that had n tokens when
 * its newest record was collected: what the rounds in flight, that one and its draft pass may write. */
int ds_loop_reach(const ds_loop *l, int n);
/* ds_loop_launch: one round of these seats, at most DS_LOOP_DEPTH in flight. Only enqueues. Seats that ended
 * on the device get no rows. */
ds_code ds_loop_launch(ds_loop *l, const int *slot, int n, ds_err *err);
int ds_loop_in_flight(const ds_loop *l);
/* ds_loop_collect: waits for the oldest round in flight; its records stand until the next launch. */
ds_code ds_loop_collect(ds_loop *l, const ds_round_out **ret, int *ret_n, ds_err *err);
/* ds_loop_abandon: after an error: what is in flight is waited for and forgotten. */
void ds_loop_abandon(ds_loop *l);
/* ds_loop_read: all seats [max_seats] as the last round left them; nothing in flight. */
ds_code ds_loop_read(ds_loop *l, ds_seat *ret, ds_err *err);
/* ds_loop_drafted: rounds that had a draft pass, since the start. */
uint64_t ds_loop_drafted(const ds_loop *l);

#endif
