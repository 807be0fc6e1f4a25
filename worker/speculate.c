#include "worker/speculate.h"

#include "worker/calib.h"

#include <stdlib.h>
#include <string.h>

enum { PROFILE_CONTEXT = 256, PROFILE_REPEATS = 3 };

typedef struct cost {
    int rows[DS_COST_POINTS];
    double seconds[DS_COST_POINTS];
    int n;
} cost;

struct ds_speculate {
    ds_speculate_conf conf;
    ds_drafter d;
    ds_kv_pool kv;
    cost verify, draft;            /* n 0: not profiled */
    double survival[DS_MAX_BLOCK]; /* moving average of acceptance of drafts 1..k, for requests without drafts
                                      yet */
    int since_probe;
    ds_spec_stats stats;
    /* scratch */
    ds_spec_req *req;                   /* [max_seqs] */
    ds_seq **who;                       /* [max_seqs] */
    ds_spec_cand *cand;                 /* [max_seqs * block] */
    int *len;                           /* [max_seqs] */
    float *ones;                        /* [block] survival of requests that want every draft verified */
    int32_t *token, *pos, *slot, *pick; /* [max_step_rows] context rows */
    int32_t *anchor, *start, *seat;     /* [max_seqs] */
    ds_sample_row *row;                 /* [max_seqs] */
    int32_t *x;                         /* [max_seqs * block] */
    float *z;                           /* [max_seqs * block] */
};

static ds_cost_table table(const cost *c)
{
    return (ds_cost_table){c->rows, c->seconds, c->n};
}

ds_code ds_speculate_create(const ds_speculate_conf *conf, const ds_drafter *d, ds_speculate **ret,
                            ds_err *err)
{
    ds_speculate *s = *ret = calloc(1, sizeof *s);
    if (!s)
        return ds_err_set(err, DS_ENOMEM, "no memory for speculation");
    s->conf = *conf;
    s->d = *d;
    if (s->conf.max_draft < 1 || s->conf.max_draft > d->block)
        s->conf.max_draft = d->block;
    size_t n = (size_t)conf->max_seqs, T = (size_t)conf->max_step_rows, b = (size_t)d->block;
    s->req = calloc(n, sizeof *s->req);
    s->who = calloc(n, sizeof(ds_seq *));
    s->cand = calloc(n * b, sizeof *s->cand);
    s->len = calloc(n, sizeof *s->len);
    s->ones = calloc(b, sizeof *s->ones);
    s->token = calloc(4 * T, sizeof *s->token);
    s->anchor = calloc(3 * n, sizeof *s->anchor);
    s->row = calloc(n, sizeof *s->row);
    s->x = calloc(n * b, sizeof *s->x);
    s->z = calloc(n * b, sizeof *s->z);
    ds_code code = DS_OK;
    if (!s->req || !s->who || !s->cand || !s->len || !s->ones || !s->token || !s->anchor || !s->row ||
        !s->x || !s->z)
        code = ds_err_set(err, DS_ENOMEM, "no memory for speculation of %d requests", conf->max_seqs);
    else
        code = d->kv_alloc(d->draft, conf->kv_pages, conf->page_tokens, &s->kv, err);
    if (code != DS_OK) {
        ds_speculate_destroy(s);
        *ret = NULL;
        return code;
    }
    s->pos = s->token + T;
    s->slot = s->pos + T;
    s->pick = s->slot + T;
    s->start = s->anchor + n;
    s->seat = s->start + n;
    for (size_t k = 0; k < b; k++) {
        s->ones[k] = 1.0f;
        s->survival[k] = 1.0; /* optimistic until measured */
    }
    return DS_OK;
}

void ds_speculate_destroy(ds_speculate *s)
{
    if (!s)
        return;
    if (s->kv.layer)
        s->d.kv_free(s->d.draft, &s->kv);
    free(s->req);
    free(s->who);
    free(s->cand);
    free(s->len);
    free(s->ones);
    free(s->token);
    free(s->anchor);
    free(s->row);
    free(s->x);
    free(s->z);
    free(s);
}

/* ---- cost ---- */

static int by_size(const void *a, const void *b)
{
    double x = *(const double *)a, y = *(const double *)b;
    return x < y ? -1 : x > y;
}

typedef struct bench { /* dummy but valid work on an idle pool */
    ds_speculate *s;
    const ds_target *t;
    const ds_kv_pool *kv;
    int32_t *table;
    int stride;
} bench;

/* rows of one sequence behind a context, logits and a draw for each: a verification pass. */
static ds_code one_verify(bench *b, int rows, int start, ds_err *err)
{
    ds_speculate *s = b->s;
    ds_sample_row *row = calloc((size_t)rows, sizeof *row);
    ds_sample_out *out = calloc((size_t)rows, sizeof *out);
    ds_code code = row && out ? DS_OK : DS_ENOMEM;
    for (int i = 0; i < rows && code == DS_OK; i++) {
        s->token[i] = i % b->t->info->vocab;
        s->pos[i] = start + i;
        s->slot[i] = 0;
        s->pick[i] = i;
        row[i] = (ds_sample_row){
            .temperature = 1, .top_p = 1, .repetition = 1, .pos = start, .n_logprobs = -1, .given = -1};
    }
    ds_step_args a = {.rows = {rows, s->token, s->pos, s->slot, b->table, b->stride, s->conf.page_tokens},
                      .logit_row = s->pick,
                      .R = rows};
    if (code == DS_OK)
        code = b->t->forward(b->t->model, b->kv, &a, err);
    ds_sample_args sa = {a.logits, rows, b->t->info->vocab, row, out};
    if (code == DS_OK)
        code = b->t->sample(b->t->device, &sa);
    if (code == DS_OK)
        code = s->d.context(s->d.draft, &s->kv, &a.rows, a.taps, s->pick, err);
    free(row);
    free(out);
    return code;
}

static ds_code one_draft(bench *b, int R, int start, ds_err *err)
{
    ds_speculate *s = b->s;
    for (int i = 0; i < R; i++) {
        s->anchor[i] = 0;
        s->start[i] = start;
        s->seat[i] = 0;
        s->row[i] = (ds_sample_row){.temperature = 1, .top_p = 1, .repetition = 1};
    }
    ds_draft_batch db = {.R = R,
                         .anchor = s->anchor,
                         .start = s->start,
                         .slot = s->seat,
                         .page_table = b->table,
                         .page_stride = b->stride,
                         .page_tokens = s->conf.page_tokens,
                         .row = s->row,
                         .token = s->x,
                         .conf = s->z};
    return s->d.propose(s->d.draft, &s->kv, &db, err);
}

static ds_code measure(bench *b, cost *c, int max, int start, ds_code (*one)(bench *, int, int, ds_err *),
                       ds_err *err)
{
    for (int n = 1; c->n < DS_COST_POINTS; n = n * 2 < max ? n * 2 : max) {
        double t[PROFILE_REPEATS];
        DS_TRY(one(b, n, start, err));
        for (int i = 0; i < PROFILE_REPEATS; i++) {
            uint64_t began = ds_clock_ns(b->s->conf.clock);
            DS_TRY(one(b, n, start, err));
            t[i] = (double)(ds_clock_ns(b->s->conf.clock) - began) * 1e-9;
        }
        qsort(t, PROFILE_REPEATS, sizeof *t, by_size);
        double before = c->n ? c->seconds[c->n - 1] : 1e-9, now = t[PROFILE_REPEATS / 2];
        c->rows[c->n] = n;
        c->seconds[c->n++] = now > before ? now : before; /* noise must not make more rows look cheaper */
        if (n == max)
            break;
    }
    return DS_OK;
}

ds_code ds_speculate_profile(ds_speculate *s, const ds_target *t, const ds_kv_pool *kv, ds_err *err)
{
    const ds_speculate_conf *c = &s->conf;
    int rows = c->max_seqs * (1 + c->max_draft);
    rows = rows < c->max_step_rows ? rows : c->max_step_rows;
    rows = rows < c->max_logit_rows ? rows : c->max_logit_rows;
    rows = rows < c->max_len ? rows : c->max_len;
    int start = c->max_len - (rows > s->d.block ? rows : s->d.block);
    start = start < 0 ? 0 : start < PROFILE_CONTEXT ? start : PROFILE_CONTEXT;
    bench b = {s, t, kv, NULL, (c->max_len + c->page_tokens - 1) / c->page_tokens};
    b.table = calloc((size_t)b.stride, sizeof *b.table);
    if (!b.table)
        return ds_err_set(err, DS_ENOMEM, "no memory for the profile");
    for (int i = 0; i < b.stride; i++)
        b.table[i] = i; /* max_len fits the pool */
    ds_code code = measure(&b, &s->verify, rows, start, one_verify, err);
    if (code == DS_OK && c->max_len > s->d.block)
        code = measure(&b, &s->draft, c->max_seqs, start, one_draft, err);
    free(b.table);
    return code;
}

typedef struct sps {
    ds_cost_table verify;
    double draft; /* seconds of the draft pass, whatever is verified */
} sps;

static double steps_per_second(void *ctx, int rows)
{
    const sps *p = ctx;
    return 1.0 / (ds_cost_seconds(&p->verify, rows, 0) + p->draft);
}

static sps speeds(const ds_speculate *s, int R, int drafting)
{
    ds_cost_table d = table(&s->draft);
    return (sps){table(&s->verify), drafting && d.n && R ? ds_cost_seconds(&d, R, 0) : 0.0};
}

/* ---- before the target pass ---- */

/* What q may verify at once: a token from the target always comes on top. */
static int cap_of(const ds_speculate *s, const ds_seq *q)
{
    int cap = s->conf.max_draft;
    if (q->req.max_draft > 0 && q->req.max_draft < cap)
        cap = q->req.max_draft;
    int left = q->req.max_tokens - ds_seq_n_output(q) - 1, room = s->conf.max_len - q->n;
    cap = left < cap ? left : cap;
    cap = room < cap ? room : cap;
    return cap < 0 ? 0 : cap < q->n_draft ? cap : q->n_draft;
}

void ds_speculate_schedule(ds_speculate *s, const ds_sched *sched)
{
    int n, R = 0, decoding = 0;
    ds_seq *const *run = ds_sched_running(sched, &n);
    for (int i = 0; i < n; i++) {
        ds_seq *q = run[i];
        q->n_verify = 0;
        decoding += ds_seq_pending(q) == 1;
        if (ds_seq_pending(q) != 1 || q->n_draft == 0)
            continue;
        int all = q->req.spec == DS_SPEC_MAX || (q->req.spec == DS_SPEC_AUTO && s->conf.mode == DS_SPEC_MAX);
        s->who[R] = q;
        s->req[R++] = (ds_spec_req){all || !s->verify.n ? s->ones : q->survival, cap_of(s, q)};
    }
    if (R == 0)
        return;
    int n_cand = ds_spec_rank(s->req, R, s->cand), room = s->conf.max_step_rows, K = n_cand;
    room = (room < s->conf.max_logit_rows ? room : s->conf.max_logit_rows) - decoding;
    if (s->verify.n) {
        double theta;
        sps speed = speeds(s, R, 1);
        if (s->conf.acceptance ==
            DS_ACCEPT_REJECTION) /* may not look at what depends on the draft it judges */
            K = ds_spec_early_stop(s->cand, n_cand, decoding, 0, steps_per_second, &speed, s->len, &theta);
        else
            K = ds_spec_best_budget(s->cand, n_cand, decoding, 0, steps_per_second, &speed, &theta);
        int sure = 0; /* drafts of requests that want all verified rank first */
        while (sure < n_cand && s->cand[sure].a >= 1.0f)
            sure++;
        K = K > sure ? K : sure;
    }
    ds_spec_top_k(s->cand, n_cand, R, K < room ? K : room, s->len);
    for (int i = 0; i < R; i++)
        s->who[i]->n_verify = s->len[i];
}

/* ---- after it ---- */

int ds_speculate_accept(ds_speculate *s, const ds_plan_item *it, const ds_sample_out *out)
{
    ds_seq *q = it->seq;
    int n = 0, l = it->n_verify;
    while (n < l && !out[n].bad && out[n].token == q->draft[n])
        n++;
    if (l > 0) {
        s->stats.rounds++;
        s->stats.verified += (uint64_t)l;
        s->stats.accepted += (uint64_t)n;
        for (int k = 0; k < l; k++) {
            s->stats.verified_at[k]++;
            s->stats.reached_at[k] += k <= n;
            s->stats.accepted_at[k] += k < n;
            s->survival[k] += 0.02 * ((k < n) - s->survival[k]);
        }
    }
    q->n_draft = 0;
    return n;
}

ds_code ds_speculate_context(ds_speculate *s, const ds_plan *p, const int *accepted, const ds_step_args *a,
                             ds_err *err)
{
    int n = 0, t = 0;
    for (int i = 0; i < p->n; i++) {
        const ds_plan_item *it = &p->item[i];
        for (int k = 0; k < it->rows - it->n_verify + accepted[i]; k++, n++) {
            s->token[n] = a->rows.token[t + k];
            s->pos[n] = a->rows.pos[t + k];
            s->slot[n] = a->rows.slot[t + k];
            s->pick[n] = t + k;
        }
        t += it->rows;
    }
    ds_rows rows = a->rows;
    rows.T = n;
    rows.token = s->token;
    rows.pos = s->pos;
    rows.slot = s->slot;
    return s->d.context(s->d.draft, &s->kv, &rows, a->taps, s->pick, err);
}

/* Is a block expected to pay for its own pass? A probe now and then keeps the expectation honest. */
static int worth_it(ds_speculate *s, int R, int others)
{
    if (!s->verify.n || s->conf.mode == DS_SPEC_MAX)
        return 1;
    sps with = speeds(s, R, 1), without = speeds(s, R, 0);
    double tau = R + others, best = 0, plain = tau * steps_per_second(&without, R + others);
    for (int k = 1; k <= s->conf.max_draft; k++) { /* the same length for all: close enough to decide */
        tau += R * s->survival[k - 1];
        double theta = tau * steps_per_second(&with, R * (1 + k) + others);
        best = theta > best ? theta : best;
    }
    if (best > plain)
        return 1;
    s->stats.skips++;
    if (++s->since_probe < DS_PROBE_STEPS)
        return 0;
    s->since_probe = 0;
    return 1;
}

static int wants_drafts(const ds_speculate *s, const ds_sched *sched, const ds_seq *q)
{
    int mode = q->req.spec == DS_SPEC_AUTO ? (int)s->conf.mode : (int)q->req.spec;
    return mode != DS_SPEC_OFF && q->ending == DS_FINISH_NONE && q->n_draft == 0 && ds_seq_pending(q) == 1 &&
           q->n_computed > 0 && q->n - 1 + s->d.block <= ds_sched_room(sched, q) &&
           q->req.max_tokens - ds_seq_n_output(q) > 1;
}

ds_code ds_speculate_propose(ds_speculate *s, const ds_sched *sched, ds_sample_row (*row)(const ds_seq *q),
                             ds_err *err)
{
    int n, R = 0, others = 0, forced = 0, g = s->d.block, stride;
    ds_seq *const *run = ds_sched_running(sched, &n);
    for (int i = 0; i < n; i++) {
        ds_seq *q = run[i];
        if (!wants_drafts(s, sched, q)) {
            others += ds_seq_pending(q) == 1;
            continue;
        }
        forced |= q->req.spec == DS_SPEC_MAX;
        s->who[R] = q;
        s->anchor[R] = q->tokens[q->n - 1];
        s->start[R] = q->n - 1;
        s->seat[R] = q->slot;
        s->row[R++] = row(q);
    }
    if (R == 0 || !(forced || worth_it(s, R, others)))
        return DS_OK;
    const int32_t *pages = ds_sched_page_table(sched, &stride);
    ds_draft_logits logits = {0};
    ds_draft_batch b = {.R = R,
                        .anchor = s->anchor,
                        .start = s->start,
                        .slot = s->seat,
                        .page_table = pages,
                        .page_stride = stride,
                        .page_tokens = s->conf.page_tokens,
                        .row = s->row,
                        .token = s->x,
                        .conf = s->z,
                        .independent = s->conf.acceptance == DS_ACCEPT_REJECTION,
                        .logits = &logits};
    uint64_t began = ds_clock_ns(s->conf.clock);
    ds_code code = s->d.propose(s->d.draft, &s->kv, &b, err);
    if (code != DS_OK)
        return code;
    s->stats.draft_ns += ds_clock_ns(s->conf.clock) - began;
    s->stats.passes++;
    s->stats.drafted += (uint64_t)R * (uint64_t)g;
    for (int i = 0; i < R; i++) {
        ds_seq *q = s->who[i];
        memcpy(q->draft, s->x + (size_t)i * (size_t)g, (size_t)g * sizeof *q->draft);
        ds_calib_survival(s->z + (size_t)i * (size_t)g, s->conf.T, g, q->survival);
        for (int k = 0; b.independent && k < g; k++)
            q->draft_logits[k] = logits.data + (size_t)k * logits.slot_stride + (size_t)i * logits.req_stride;
        q->n_draft = g;
    }
    return DS_OK;
}

void ds_speculate_get_stats(const ds_speculate *s, ds_spec_stats *ret)
{
    *ret = s->stats;
}
