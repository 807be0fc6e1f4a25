#include "worker/resident.h"

#include <stdlib.h>
#include <string.h>

struct ds_resident {
    ds_resident_conf conf;
    ds_loop *loop;
    int in; /* the running sequences have their seats */
    uint64_t rounds;
    int *list;      /* [max_seats] */
    ds_seat *seat;  /* [max_seats] */
    ds_seq **at;    /* [max_seats] running sequence of each slot, or NULL */
    int32_t *sent;  /* [max_seats, page_stride] the loop's page table */
    int *published; /* [max_seats] pages of the slot whose place in `sent` is final */
};

ds_code ds_resident_create(const ds_resident_conf *conf, ds_resident **ret, ds_err *err)
{
    ds_resident *r = *ret = calloc(1, sizeof *r);
    size_t S = (size_t)conf->loop.max_seats;
    if (!r)
        return ds_err_set(err, DS_ENOMEM, "no memory for the device loop");
    r->conf = *conf;
    r->list = calloc(S, sizeof *r->list);
    r->seat = calloc(S, sizeof *r->seat);
    r->at = calloc(S, sizeof(ds_seq *));
    r->sent = calloc(S * (size_t)conf->loop.page_stride, sizeof *r->sent);
    r->published = calloc(S, sizeof *r->published);
    ds_code code = DS_OK;
    if (!r->list || !r->seat || !r->at || !r->sent || !r->published)
        code = ds_err_set(err, DS_ENOMEM, "no memory for %zu seats", S);
    for (size_t i = 0; r->sent && i < S * (size_t)conf->loop.page_stride; i++)
        r->sent[i] = -1; /* unknown: the loop's profile wrote there */
    if (code == DS_OK)
        code = ds_loop_create(&conf->loop, &r->loop, err);
    if (code != DS_OK) {
        ds_resident_destroy(r);
        *ret = NULL;
    }
    return code;
}

void ds_resident_destroy(ds_resident *r)
{
    if (!r)
        return;
    ds_loop_destroy(r->loop);
    free(r->list);
    free(r->seat);
    free(r->at);
    free(r->sent);
    free(r->published);
    free(r);
}

uint64_t ds_resident_rounds(const ds_resident *r, uint64_t *ret_drafted)
{
    *ret_drafted = ds_loop_drafted(r->loop);
    return r->rounds;
}

void ds_resident_get_costs(const ds_resident *r, ds_loop_costs *ret)
{
    ds_loop_get_costs(r->loop, ret);
}

/* ---- who may sit ---- */

/* The seat knows temperature, top-k, top-p, min-p, seed, stop ids and min_tokens; all else is the host's. */
static int is_simple(const ds_seq *q)
{
    return ds_seq_pending(q) == 1 && !ds_seq_scoring(q) && !q->penalized && q->req.n_bias == 0 &&
           q->req.n_logprobs < 0 && q->n_stop <= DS_SEAT_STOPS && q->ending == DS_FINISH_NONE;
}

/* All running sequences may sit, nobody else could start, and there are pages for the next round. */
static int may_go(const ds_resident *r)
{
    int n;
    ds_seq *const *run = ds_sched_running(r->conf.sched, &n);
    for (int i = 0; i < n; i++)
        if (!is_simple(run[i]))
            return 0;
    if (n == 0 || ds_sched_admissible(r->conf.sched))
        return 0;
    for (int i = 0; i < n; i++)
        if (!ds_sched_reserve(r->conf.sched, run[i], ds_loop_reach(r->loop, run[i]->n)))
            return 0;
    return 1;
}

/* ---- in and out ---- */

static void fill_seat(const ds_resident *r, const ds_seq *q, ds_seat *s)
{
    int all = 0, most = r->conf.spec ? ds_speculate_seat(r->conf.spec, q, &all) : 0;
    *s = (ds_seat){.seed = q->req.seed,
                   .state = DS_SEAT_LIVE,
                   .anchor = q->tokens[q->n - 1],
                   .start = q->n - 1,
                   .end = q->cap,
                   .min_pos = q->req.n_prompt + q->req.min_tokens,
                   .max_draft = most,
                   .eager = all,
                   .n_draft = q->n_draft,
                   .temperature = q->req.temperature,
                   .top_p = q->req.top_p,
                   .min_p = q->req.min_p,
                   .top_k = q->req.top_k,
                   .n_stop = q->n_stop};
    for (int i = 0; i < q->n_stop; i++)
        s->stop[i] = q->stop[i];
    memcpy(s->draft, q->draft, (size_t)q->n_draft * sizeof *s->draft);
    memcpy(s->conf, q->confidence, (size_t)q->n_draft * sizeof *s->conf);
}

static ds_code enter(ds_resident *r, ds_err *err)
{
    int n, stride;
    ds_seq *const *run = ds_sched_running(r->conf.sched, &n);
    const int32_t *table = ds_sched_page_table(r->conf.sched, &stride);
    for (int i = 0; i < n; i++) {
        ds_seq *q = run[i];
        size_t row = (size_t)q->slot * (size_t)stride;
        ds_seat seat;
        fill_seat(r, q, &seat);
        memcpy(r->sent + row, table + row, (size_t)q->n_pages * sizeof *table);
        r->published[q->slot] = q->n_published;
        DS_TRY(ds_loop_enter(r->loop, q->slot, &seat, table + row, q->n_pages, err));
        q->n_draft = q->n_verify = 0; /* on offer in the seat now */
    }
    r->in = 1;
    return DS_OK;
}

static ds_code collect(ds_resident *r, ds_err *err)
{
    const ds_round_out *o;
    int n, n_run;
    DS_TRY(ds_loop_collect(r->loop, &o, &n, err));
    ds_seq *const *run = ds_sched_running(r->conf.sched, &n_run);
    memset(r->at, 0, (size_t)r->conf.loop.max_seats * sizeof(ds_seq *));
    for (int i = 0; i < n_run; i++)
        r->at[run[i]->slot] = run[i];
    r->rounds++;
    for (int i = 0; i < n; i++) {
        ds_seq *q = r->at[o[i].seat];
        if (q) /* else it ended while this round was on its way */
            r->conf.take(r->conf.ctx, q, &o[i]);
    }
    return DS_OK;
}

/* Everybody back to the host, drafts on offer too. */
static ds_code leave(ds_resident *r, ds_err *err)
{
    while (ds_loop_in_flight(r->loop))
        DS_TRY(collect(r, err));
    r->in = 0;
    int n;
    ds_seq *const *run = ds_sched_running(r->conf.sched, &n);
    if (!n)
        return DS_OK;
    DS_TRY(ds_loop_read(r->loop, r->seat, err));
    for (int i = 0; i < n; i++) {
        ds_seq *q = run[i];
        const ds_seat *s = &r->seat[q->slot];
        DS_ASSERT(s->state == DS_SEAT_LIVE && s->start == q->n - 1 && s->anchor == q->tokens[q->n - 1]);
        if (s->n_draft)
            ds_speculate_resume(r->conf.spec, q, s->draft, s->conf);
    }
    return DS_OK;
}

/* ---- a round ---- */

/* The loop's page table is kept like the scheduler's: new pages, and published ones that moved. */
static void tell_pages(ds_resident *r, const ds_seq *q)
{
    int stride;
    const int32_t *page = ds_sched_page_table(r->conf.sched, &stride) + (size_t)q->slot * (size_t)stride;
    int32_t *sent = r->sent + (size_t)q->slot * (size_t)stride;
    for (int i = r->published[q->slot]; i < q->n_pages; i++)
        if (sent[i] != page[i]) {
            sent[i] = page[i];
            ds_loop_page(r->loop, q->slot, i, page[i]);
        }
    r->published[q->slot] = q->n_published;
}

static ds_code go(ds_resident *r, int *ret_did, ds_err *err)
{
    int n, may = may_go(r);
    *ret_did = may || (r->in && ds_loop_in_flight(r->loop));
    if (!may)
        return r->in ? leave(r, err) : DS_OK;
    if (!r->in)
        DS_TRY(enter(r, err));
    ds_seq *const *run = ds_sched_running(r->conf.sched, &n);
    for (int i = 0; i < n; i++) {
        r->list[i] = run[i]->slot;
        tell_pages(r, run[i]);
    }
    DS_TRY(ds_loop_launch(r->loop, r->list, n, err));
    return ds_loop_in_flight(r->loop) == DS_LOOP_DEPTH ? collect(r, err) : DS_OK;
}

ds_code ds_resident_step(ds_resident *r, int *ret_did, ds_err *err)
{
    ds_code code = go(r, ret_did, err);
    if (code != DS_OK) {
        ds_loop_abandon(r->loop);
        r->in = 0;
    }
    return code;
}
