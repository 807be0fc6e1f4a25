#include "worker/speculate.h"

#include "base/rng.h"
#include "worker/calib.h"
#include "worker/guard.h"
#include "worker/live.h"
#include "worker/measure.h"

#include <stdlib.h>
#include <string.h>

static const double EXPECT_RATE = 0.05; /* of one round in what is expected of the next */
static const float FIRST_GUESS =
    0.8f; /* acceptance at each position before any round (paper, fig. 2: .64 to .9) */

struct ds_speculate {
    ds_speculate_conf conf;
    ds_drafter d;
    ds_kv_pool kv;
    ds_profile profile; /* n_rows 0: costs are not known */
    ds_profile_curve curve;
    ds_guard guard[DS_SCHED_KINDS]; /* what pays depends on how lengths are chosen */
    ds_live live;
    float expect[DS_MAX_BLOCK];   /* survival of drafts 1..k over all requests: of those without a history */
    int since_probe, probe_every; /* steps */
    double pass_s, next_pass_s;   /* of the draft pass whose block this step, and the next one, verifies */
    int decoding, load;           /* requests of the scheduled step that decode; of the last one with any */
    double ctx;                   /* tokens each of them has behind it, on average */
    ds_spec_stats stats;
    /* scratch */
    ds_spec_req *req;                   /* [max_seqs] */
    ds_seq **who;                       /* [max_seqs] */
    ds_spec_cand *cand;                 /* [2 * max_seqs * block] */
    int *len;                           /* [max_seqs] */
    int32_t *token, *pos, *slot, *pick; /* [max_step_rows] context rows */
    int32_t *anchor, *start, *seat;     /* [max_seqs] */
    ds_sample_row *row;                 /* [max_seqs] */
    int32_t *x;                         /* [max_seqs * block] */
    float *z;                           /* [max_seqs * block] */
};

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
    s->cand = calloc(2 * n * b, sizeof *s->cand);
    s->len = calloc(n, sizeof *s->len);
    s->token = calloc(4 * T, sizeof *s->token);
    s->anchor = calloc(3 * n, sizeof *s->anchor);
    s->row = calloc(n, sizeof *s->row);
    s->x = calloc(n * b, sizeof *s->x);
    s->z = calloc(n * b, sizeof *s->z);
    ds_code code = DS_OK;
    if (!s->req || !s->who || !s->cand || !s->len || !s->token || !s->anchor || !s->row || !s->x || !s->z)
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
    for (int k = 0; k < d->block; k++)
        s->expect[k] = FIRST_GUESS * (k ? s->expect[k - 1] : 1.0f);
    s->probe_every = DS_PROBE_STEPS;
    ds_live_init(&s->live, d->block, conf->T);
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
    free(s->token);
    free(s->anchor);
    free(s->row);
    free(s->x);
    free(s->z);
    free(s);
}

/* ---- what steps cost ---- */

ds_code ds_speculate_profile(ds_speculate *s, const ds_profile *known, const ds_target *t,
                             const ds_kv_pool *kv, ds_err *err)
{
    const ds_speculate_conf *c = &s->conf;
    int rows = c->max_seqs * (1 + c->max_draft);
    rows = rows < c->max_step_rows ? rows : c->max_step_rows;
    rows = rows < c->max_logit_rows ? rows : c->max_logit_rows;
    ds_measure m = {.target = t,
                    .drafter = &s->d,
                    .kv = kv,
                    .draft_kv = &s->kv,
                    .max_rows = rows,
                    .max_seqs = c->max_seqs,
                    .max_len = c->max_len,
                    .page_tokens = c->page_tokens,
                    .clock = c->clock};
    if (!known)
        DS_TRY(ds_measure_profile(&m, &s->profile, err));
    else
        s->profile = *known;
    if (s->profile.n_T == s->d.block) /* serving has learned better ones than the draft came with */
        ds_live_init(&s->live, s->d.block, s->profile.T);
    return DS_OK;
}

void ds_speculate_get_profile(const ds_speculate *s, ds_profile *ret)
{
    *ret = s->profile;
    ret->n_T = s->live.refits > s->live.rollbacks || s->profile.n_T ? s->d.block : 0;
    memcpy(ret->T, s->live.T, sizeof ret->T);
}

void ds_speculate_set_schedule(ds_speculate *s, ds_sched_kind kind, double threshold)
{
    s->conf.kind = kind;
    s->conf.threshold = threshold;
}

/* The whole step, with the draft pass that made its drafts. */
static double step_cost(void *ctx, int rows, int drafted)
{
    const ds_speculate *s = ctx;
    return ds_profile_verify(&s->curve, rows) + ds_profile_draft(&s->profile, drafted) + s->profile.host;
}

/* Fixed lengths and thresholds are for comparison: they draft always. */
static int weighs_costs(const ds_speculate *s)
{
    return s->profile.n_rows && s->conf.kind != DS_SCHED_FIXED && s->conf.kind != DS_SCHED_THRESHOLD;
}

/* ---- before the target pass ---- */

static int mode_of(const ds_speculate *s, const ds_seq *q)
{
    int asks = q->req.spec == DS_SPEC_AUTO ? (int)s->conf.mode : (int)q->req.spec;
    return s->conf.mode == DS_SPEC_OFF ? DS_SPEC_OFF : asks; /* the operator's off is for all */
}

/* What q may verify at once of n drafts: a token from the target always comes on top. */
static int cap_of(const ds_speculate *s, const ds_seq *q, int n)
{
    int cap = s->conf.max_draft < n ? s->conf.max_draft : n;
    if (q->req.max_draft > 0 && q->req.max_draft < cap)
        cap = q->req.max_draft;
    int left = q->req.max_tokens - ds_seq_n_output(q) - 1, room = s->conf.max_len - q->n;
    cap = left < cap ? left : cap;
    cap = room < cap ? room : cap;
    return cap < 0 ? 0 : cap;
}

static ds_spec_choice choice(ds_speculate *s, int R, int decoding)
{
    int room =
        s->conf.max_step_rows < s->conf.max_logit_rows ? s->conf.max_step_rows : s->conf.max_logit_rows;
    size_t half = (size_t)s->conf.max_seqs * (size_t)s->d.block;
    return (ds_spec_choice){.kind = s->conf.kind,
                            .threshold = s->conf.threshold,
                            .req = s->req,
                            .R = R,
                            .plain = decoding - R,
                            .room = room - decoding,
                            .cost = s->profile.n_rows ? step_cost : NULL,
                            .ctx = s,
                            .cand = s->cand,
                            .tmp = s->cand + half};
}

void ds_speculate_schedule(ds_speculate *s, const ds_sched *sched)
{
    uint64_t began = ds_clock_ns(s->conf.clock);
    int n, R = 0, decoding = 0;
    double ctx = 0;
    ds_seq *const *run = ds_sched_running(sched, &n);
    for (int i = 0; i < n; i++) {
        ds_seq *q = run[i];
        q->n_verify = 0;
        if (ds_seq_pending(q) != 1)
            continue;
        decoding++;
        ctx += q->n_computed;
        if (q->n_draft == 0)
            continue;
        s->who[R] = q;
        s->req[R++] = (ds_spec_req){.survival = q->survival,
                                    .stale = q->n_past > 1 ? q->past[1] : q->expect,
                                    .n = cap_of(s, q, q->n_draft),
                                    .all = mode_of(s, q) == DS_SPEC_MAX};
    }
    s->decoding = decoding;
    s->load = decoding ? decoding : s->load;
    s->ctx = decoding ? ctx / decoding : 0;
    s->pass_s = s->next_pass_s;
    s->next_pass_s = 0;
    s->stats.budget = 0;
    if (s->profile.n_rows)
        ds_profile_at(&s->profile, s->ctx, &s->curve);
    if (R) {
        ds_spec_choice c = choice(s, R, decoding);
        s->stats.budget = ds_spec_choose(&c, s->len);
        for (int i = 0; i < R; i++)
            s->who[i]->n_verify = s->len[i];
    }
    s->stats.sched_ns += ds_clock_ns(s->conf.clock) - began;
}

/* ---- after it ---- */

/* A round teaches what to expect: outcomes where they are known, else what the confidences say of the drafts
 * behind the verified ones. */
static void expect(float *e, const float *a, int block, int l, int n)
{
    for (int k = 0; k < block; k++) {
        float given = l > 0 ? a[l - 1] : 1.0f, y;
        if (k < n || n < l)
            y = k < n;
        else
            y = given > 0 ? a[k] / given : 0;
        e[k] += (float)EXPECT_RATE * (y - e[k]);
    }
}

/* Synthetic acceptance, for measuring speed: drafts stand by the given odds, and are emitted as they are. */
static int accept_by_odds(const ds_speculate *s, const ds_seq *q, int l, ds_sample_out *out)
{
    int n = 0;
    while (n < l) {
        uint32_t u = ds_rng_u32(q->req.seed, DS_RNG_ACCEPT, (uint64_t)q->n + (uint64_t)n, 1);
        if (out[n].bad || (double)ds_rng_unit(u) >= s->conf.synthetic[n])
            break;
        out[n].token = q->draft[n];
        n++;
    }
    return n;
}

void ds_speculate_count(ds_speculate *s, int offered, int l, int n)
{
    s->stats.drafted += offered ? (uint64_t)s->d.block : 0;
    s->stats.rounds += l > 0;
    s->stats.verified += (uint64_t)l;
    s->stats.accepted += (uint64_t)n;
    for (int k = 0; k < l; k++) {
        s->stats.verified_at[k]++;
        s->stats.reached_at[k] += k <= n;
        s->stats.accepted_at[k] += k < n;
    }
}

int ds_speculate_accept(ds_speculate *s, const ds_plan_item *it, ds_sample_out *out)
{
    ds_seq *q = it->seq;
    int n = 0, l = it->n_verify;
    if (s->conf.synthetic)
        n = accept_by_odds(s, q, l, out);
    else
        while (n < l && !out[n].bad && out[n].token == q->draft[n])
            n++;
    if (q->n_draft > 0) {
        expect(q->expect, q->survival, s->d.block, l, n);
        expect(s->expect, q->survival, s->d.block, l, n);
    }
    ds_speculate_count(s, 0, l, n); /* its draft pass counted the block */
    if (l > 0 && !s->conf.synthetic && !s->d.no_confidence)
        ds_live_tell(&s->live, q->confidence, l, n);
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

/* ---- the next block ---- */

static int may_draft(const ds_speculate *s, const ds_sched *sched, const ds_seq *q)
{
    return mode_of(s, q) != DS_SPEC_OFF && q->ending == DS_FINISH_NONE && q->n_draft == 0 &&
           q->n_computed > 0 && q->n - 1 + s->d.block <= ds_sched_room(sched, q) &&
           cap_of(s, q, s->d.block) > 0;
}

/* Whose block is expected to pay for its part of the pass? len says so of who [R]. Probes now and then keep
 * the expectation honest; what a client insists on is drafted. */
static int choose_drafts(ds_speculate *s, int R, int decoding)
{
    ds_spec_choice c = choice(s, R, decoding);
    int allowed = !weighs_costs(s) || ds_guard_allows(&s->guard[s->conf.kind], decoding);
    if (!weighs_costs(s))
        c.cost = NULL;
    int want = ds_spec_worth(&c, s->len), probe = want == 0 && ++s->since_probe >= s->probe_every;
    if (want || probe)
        s->since_probe = 0;
    if (want || decoding > 2 * s->load || 2 * decoding < s->load)
        s->probe_every = DS_PROBE_STEPS;
    else if (probe && s->probe_every < DS_PROBE_MAX_STEPS)
        s->probe_every *= 2; /* the longer it has not paid, the less is spent on asking */
    want = 0;
    for (int i = 0; i < R; i++) {
        ds_seq *q = s->who[i];
        int yes = s->req[i].all || (allowed && (s->len[i] || probe || q->n_skipped >= DS_PROBE_STEPS));
        q->n_skipped = yes ? 0 : q->n_skipped + 1;
        s->stats.request_skips += !yes;
        s->len[i] = yes;
        want += yes;
    }
    s->stats.skips += want == 0;
    return want;
}

/* Those that want drafts take the first places of the batch. */
static int fill_batch(ds_speculate *s, int R, ds_sample_row (*row)(const ds_seq *q))
{
    int n = 0;
    for (int i = 0; i < R; i++) {
        ds_seq *q = s->who[i];
        if (!s->len[i])
            continue;
        s->who[n] = q;
        s->anchor[n] = q->tokens[q->n - 1];
        s->start[n] = q->n - 1;
        s->seat[n] = q->slot;
        s->row[n++] = row(q);
    }
    return n;
}

/* A block is on offer; what its confidences were before is kept for the scheduler that may not see them. */
static void offer(ds_speculate *s, ds_seq *q, int i, const ds_draft_logits *logits)
{
    int g = s->d.block;
    size_t bytes = (size_t)g * sizeof(float);
    memcpy(q->past[1], q->past[0], bytes);
    memcpy(q->past[0], q->survival, bytes);
    q->n_past += q->n_rounds++ > 0 && q->n_past < 2;
    memcpy(q->draft, s->x + (size_t)i * (size_t)g, (size_t)g * sizeof *q->draft);
    memcpy(q->confidence, s->z + (size_t)i * (size_t)g, bytes);
    ds_calib_survival(q->confidence, s->live.T, g, q->survival);
    double a = 1;
    for (int k = 0; s->conf.synthetic && k < g; k++)
        q->survival[k] = (float)(a *= s->conf.synthetic[k]);
    for (int k = 0; s->conf.acceptance == DS_ACCEPT_REJECTION && k < g; k++)
        q->draft_logits[k] = logits->data + (size_t)k * logits->slot_stride + (size_t)i * logits->req_stride;
    q->n_draft = g;
}

static ds_code draft_pass(ds_speculate *s, const ds_sched *sched, int R, ds_err *err)
{
    int stride;
    ds_draft_logits logits = {0};
    const int32_t *pages = ds_sched_page_table(sched, &stride);
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
    DS_TRY(s->d.propose(s->d.draft, &s->kv, &b, err));
    uint64_t ns = ds_clock_ns(s->conf.clock) - began;
    s->next_pass_s = (double)ns * 1e-9;
    s->stats.draft_ns += ns;
    s->stats.passes++;
    s->stats.drafted += (uint64_t)R * (uint64_t)s->d.block;
    ds_profile_tell_draft(&s->profile, R, s->next_pass_s);
    for (int i = 0; i < R; i++)
        offer(s, s->who[i], i, &logits);
    return DS_OK;
}

ds_code ds_speculate_propose(ds_speculate *s, const ds_sched *sched, ds_sample_row (*row)(const ds_seq *q),
                             ds_err *err)
{
    uint64_t began = ds_clock_ns(s->conf.clock);
    int n, R = 0, decoding = 0;
    ds_seq *const *run = ds_sched_running(sched, &n);
    for (int i = 0; i < n; i++) {
        ds_seq *q = run[i];
        if (ds_seq_pending(q) != 1)
            continue;
        decoding++;
        if (!may_draft(s, sched, q))
            continue;
        if (q->n_rounds == 0)
            memcpy(q->expect, s->expect, sizeof q->expect);
        s->who[R] = q;
        s->req[R++] = (ds_spec_req){
            .survival = q->expect, .n = cap_of(s, q, s->d.block), .all = mode_of(s, q) == DS_SPEC_MAX};
    }
    int want = R ? choose_drafts(s, R, decoding) : 0;
    R = want ? fill_batch(s, R, row) : 0;
    s->stats.sched_ns += ds_clock_ns(s->conf.clock) - began;
    return R ? draft_pass(s, sched, R, err) : DS_OK;
}

void ds_speculate_learn(ds_speculate *s, const ds_plan *p, const int *accepted, double verify_s,
                        double step_s)
{
    int tokens = p->n;
    double mine = step_s - s->next_pass_s, rest = mine - verify_s;
    ds_live_tick(&s->live);
    if (!s->profile.n_rows || !p->n || p->rows != p->decode_rows || p->n != s->decoding)
        return; /* prompts are another mixture of costs */
    for (int i = 0; i < p->n; i++)
        tokens += accepted[i];
    double plain_s = ds_profile_verify(&s->curve, p->n) + s->profile.host;
    ds_guard_tell(&s->guard[s->conf.kind], p->n, p->rows > p->n || s->pass_s > 0, tokens, mine + s->pass_s,
                  plain_s);
    ds_profile_tell_verify(&s->profile, p->rows, s->ctx, verify_s);
    ds_profile_tell_host(&s->profile, rest > 0 ? rest : 0);
}

/* ---- the device loop ---- */

int ds_speculate_seat(const ds_speculate *s, const ds_seq *q, int *ret_all)
{
    int asked = q->req.max_draft, most = s->conf.max_draft;
    *ret_all = mode_of(s, q) == DS_SPEC_MAX;
    if (mode_of(s, q) == DS_SPEC_OFF)
        return 0;
    return asked > 0 && asked < most ? asked : most;
}

const ds_kv_pool *ds_speculate_kv(const ds_speculate *s)
{
    return &s->kv;
}

const double *ds_speculate_temps(const ds_speculate *s)
{
    return s->live.T;
}

void ds_speculate_resume(ds_speculate *s, ds_seq *q, const int32_t *draft, const float *conf)
{
    memcpy(s->x, draft, (size_t)s->d.block * sizeof *s->x);
    memcpy(s->z, conf, (size_t)s->d.block * sizeof *s->z);
    if (q->n_rounds == 0)
        memcpy(q->expect, s->expect, sizeof q->expect);
    offer(s, q, 0, NULL);
}

void ds_speculate_get_stats(const ds_speculate *s, ds_spec_stats *ret)
{
    const ds_guard *g = &s->guard[s->conf.kind];
    *ret = s->stats;
    ret->measured_s = g->measured_s;
    ret->plain_s = g->plain_s;
    ret->regret = s->load ? ds_guard_regret(g, s->load) : 0;
    ret->guard_offs = g->turned_off;
    for (int b = 0; b < DS_GUARD_BANDS; b++)
        ret->bands_off += g->band[b].state != DS_GUARD_ON;
    ret->ece = s->live.ece;
    memcpy(ret->ece_at, s->live.ece_at, sizeof ret->ece_at);
    memcpy(ret->T, s->live.T, sizeof ret->T);
    ret->drift = s->live.drift;
    ret->refits = s->live.refits;
    ret->rollbacks = s->live.rollbacks;
}
