/* engine.c - THE STEP. Everything a step needs is allocated when the engine is made; a request's own memory
 * is made at submit, and given back at a submit or an idle step, never inside a step that computes. Owner:
 * the engine thread; callbacks run on it and may submit and cancel, but not step or destroy. */
#include "worker/engine.h"

#include "worker/resident.h"
#include "worker/sched.h"
#include "worker/speculate.h"
#include "worker/target.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum { MAX_SEQS = 4096, MAX_STEP_ROWS = 1 << 16, MAX_QUEUE = 1 << 16 };

struct ds_engine {
    ds_engine_conf conf;
    ds_target target;
    ds_kv_pool kv;
    ds_sched *sched;
    ds_speculate *spec;    /* NULL: no draft */
    ds_resident *resident; /* NULL: no device loop */
    int block;             /* drafts of one pass; 0 without */
    int *accepted;         /* [max_seqs] per item of the step */
    ds_event_fn fn;
    void *ctx;
    int max_len, lost;
    int32_t *token, *pos, *slot; /* [max_step_rows] the packed rows */
    int32_t *logit_row;          /* [max_logit_rows] */
    ds_sample_row *row;          /* [max_logit_rows] */
    ds_sample_out *out;          /* [max_logit_rows] */
    ds_seq *dead;                /* ended, memory not yet given back */
    ds_engine_stats stats;       /* the counters; levels are filled in when asked for */
};

static ds_code check_conf(const char *field, int v, int min, int max, ds_err *err)
{
    if (v < min || v > max)
        return ds_err_field(err, DS_EINVAL, field, "%s is %d, must be %d..%d", field, v, min, max);
    return DS_OK;
}

/* The device loop's padding rows have a page of their own behind the scheduler's. */
static int pool_pages(const ds_engine_conf *c)
{
    return c->kv_pages + (c->device_loop != 0);
}

static ds_code allocate(ds_engine *e, ds_err *err)
{
    const ds_engine_conf *c = &e->conf;
    ds_sched_conf sc = {c->max_seqs,       c->max_step_rows,
                        c->max_logit_rows, c->max_queue,
                        e->max_len,        {c->kv_pages, c->page_tokens, c->prefix_cache, UINT64_MAX},
                        e->block};
    DS_TRY(ds_sched_create(&sc, &e->sched, err));
    size_t rows = (size_t)c->max_step_rows, logits = (size_t)c->max_logit_rows;
    e->token = calloc(rows, sizeof *e->token);
    e->pos = calloc(rows, sizeof *e->pos);
    e->slot = calloc(rows, sizeof *e->slot);
    e->logit_row = calloc(logits, sizeof *e->logit_row);
    e->row = calloc(logits, sizeof *e->row);
    e->out = calloc(logits, sizeof *e->out);
    e->accepted = calloc((size_t)c->max_seqs, sizeof *e->accepted);
    if (!e->token || !e->pos || !e->slot || !e->logit_row || !e->row || !e->out || !e->accepted)
        return ds_err_set(err, DS_ENOMEM, "no memory for steps of %zu rows", rows);
    return e->target.kv_alloc(e->target.model, pool_pages(c), c->page_tokens, &e->kv, err);
}

static ds_code check_schedule(const ds_engine *e, ds_sched_kind kind, double threshold, ds_err *err)
{
    DS_TRY(check_conf("scheduler", (int)kind, 0, DS_SCHED_KINDS - 1, err));
    if (!(threshold >= 0 && threshold <= 1))
        return ds_err_field(err, DS_EINVAL, "draft_threshold", "draft_threshold is %g, must be 0..1",
                            threshold);
    if (kind == DS_SCHED_GLOBAL && e->conf.acceptance == DS_ACCEPT_REJECTION)
        return ds_err_field(
            err, DS_EINVAL, "scheduler",
            "scheduler global looks at what depends on the drafts it judges: under acceptance "
            "rejection the text would be biased");
    return DS_OK;
}

static ds_code open_spec(ds_engine *e, const ds_drafter *d, ds_err *err)
{
    const ds_engine_conf *c = &e->conf;
    ds_speculate_conf sc = {.max_seqs = c->max_seqs,
                            .max_step_rows = c->max_step_rows,
                            .max_logit_rows = c->max_logit_rows,
                            .kv_pages = pool_pages(c),
                            .page_tokens = c->page_tokens,
                            .max_len = e->max_len,
                            .max_draft = c->max_draft,
                            .mode = c->spec,
                            .acceptance = c->acceptance,
                            .kind = c->schedule,
                            .threshold = c->threshold,
                            .T = c->spec_temps,
                            .synthetic = c->synthetic,
                            .clock = c->clock};
    DS_TRY(check_schedule(e, c->schedule, c->threshold, err));
    DS_TRY(ds_speculate_create(&sc, d, &e->spec, err));
    if (c->spec == DS_SPEC_OFF)
        return DS_OK;
    return ds_speculate_profile(e->spec, c->profile, &e->target, &e->kv, err);
}

static void take_round(void *ctx, ds_seq *q, const ds_round_out *o);

static ds_code open_loop(ds_engine *e, const ds_drafter *d, ds_err *err)
{
    const ds_engine_conf *c = &e->conf;
    float odds[DS_MAX_BLOCK];
    int stride;
    if (!e->target.has_loop || c->acceptance != DS_ACCEPT_COUPLED)
        return ds_err_field(err, DS_EINVAL, "device_loop",
                            "device_loop needs a real model and acceptance coupled");
    ds_sched_page_table(e->sched, &stride);
    int rows = c->max_logit_rows < c->max_step_rows ? c->max_logit_rows : c->max_step_rows;
    int most = c->max_seqs * (1 + e->block);
    rows = rows < most ? rows : most;
    for (int k = 0; c->synthetic && k < e->block; k++)
        odds[k] = (float)c->synthetic[k];
    ds_resident_conf rc = {.loop = {.b = e->target.device,
                                    .model = e->target.model,
                                    .draft = d ? d->draft : NULL,
                                    .kv = &e->kv,
                                    .draft_kv = d ? ds_speculate_kv(e->spec) : NULL,
                                    .max_seats = c->max_seqs,
                                    .max_rows = rows < DS_LOOP_MAX_ROWS ? rows : DS_LOOP_MAX_ROWS,
                                    .max_len = e->max_len,
                                    .page_stride = stride,
                                    .null_page = c->kv_pages,
                                    .T = d ? ds_speculate_temps(e->spec) : NULL,
                                    .odds = c->synthetic && d ? odds : NULL,
                                    .progress = c->progress,
                                    .ctx = e->ctx},
                           .sched = e->sched,
                           .spec = e->spec,
                           .take = take_round,
                           .ctx = e};
    return ds_resident_create(&rc, &e->resident, err);
}

ds_code ds_engine_create_on(const ds_engine_conf *conf, const ds_target *target, const ds_drafter *drafter,
                            ds_event_fn fn, void *ctx, ds_engine **ret, ds_err *err)
{
    *ret = NULL;
    DS_ASSERT(fn && conf->clock.now_ns);
    ds_engine_conf c = *conf;
    if (c.max_logit_rows == 0)
        c.max_logit_rows = c.max_seqs;
    DS_TRY(check_conf("max_seqs", c.max_seqs, 1, MAX_SEQS, err));
    DS_TRY(check_conf("max_step_rows", c.max_step_rows, c.max_seqs, MAX_STEP_ROWS, err));
    DS_TRY(check_conf("max_logit_rows", c.max_logit_rows, c.max_seqs, MAX_STEP_ROWS, err));
    DS_TRY(check_conf("max_queue", c.max_queue, 1, MAX_QUEUE, err));
    DS_TRY(check_conf("page_tokens", c.page_tokens, 1, DS_MAX_PAGE_TOKENS, err));
    DS_TRY(check_conf("kv_pages", c.kv_pages, 1, INT32_MAX / DS_MAX_PAGE_TOKENS, err));
    ds_engine *e = calloc(1, sizeof *e);
    if (!e)
        return ds_err_set(err, DS_ENOMEM, "no memory for the engine");
    e->conf = c;
    e->target = *target;
    e->fn = fn;
    e->ctx = ctx;
    int pool = c.kv_pages * c.page_tokens, positions = target->info->max_positions;
    e->max_len = pool < positions ? pool : positions;
    e->block = drafter ? drafter->block : 0;
    ds_code code = allocate(e, err);
    if (code == DS_OK && drafter)
        code = open_spec(e, drafter, err);
    if (code == DS_OK && c.device_loop)
        code = open_loop(e, drafter, err);
    if (code != DS_OK) {
        ds_engine_destroy(e);
        return code;
    }
    *ret = e;
    return DS_OK;
}

static void reap(ds_engine *e)
{
    while (e->dead) {
        ds_seq *q = e->dead;
        e->dead = q->next;
        ds_seq_destroy(q);
    }
}

void ds_engine_destroy(ds_engine *e)
{
    if (!e)
        return;
    for (ds_seq *q; e->sched && (q = ds_sched_any(e->sched));) {
        ds_sched_remove(e->sched, q, 0);
        ds_seq_destroy(q);
    }
    reap(e);
    ds_resident_destroy(e->resident);
    ds_speculate_destroy(e->spec);
    ds_sched_destroy(e->sched);
    if (e->kv.layer)
        e->target.kv_free(e->target.model, &e->kv);
    free(e->token);
    free(e->pos);
    free(e->slot);
    free(e->logit_row);
    free(e->row);
    free(e->out);
    free(e->accepted);
    free(e);
}

int ds_engine_max_len(const ds_engine *e)
{
    return e->max_len;
}

ds_code ds_engine_submit(ds_engine *e, const ds_req *req, ds_err *err)
{
    const ds_model_info *info = e->target.info;
    reap(e);
    if (req->n_prompt > e->max_len && req->n_prompt <= info->max_positions)
        return ds_err_field(
            err, DS_EINVAL, "prompt_ids",
            "the prompt has %d tokens and can never fit: the KV pool holds %d (%d pages of %d)",
            req->n_prompt, e->max_len, e->conf.kv_pages, e->conf.page_tokens);
    DS_TRY(ds_req_validate(req, info->vocab, e->max_len, err));
    if (ds_sched_find(e->sched, req->id))
        return ds_err_field(err, DS_EINVAL, "id", "a request with id %llu is live",
                            (unsigned long long)req->id);
    ds_seq_limits limits = {info->vocab, e->max_len, info->eos, info->n_eos};
    ds_seq *q;
    DS_TRY(ds_seq_create(req, &limits, &q, err));
    ds_code code = ds_sched_add(e->sched, q, err);
    if (code != DS_OK) {
        ds_seq_destroy(q);
        return code;
    }
    if (ds_seq_finished(q) != DS_FINISH_NONE) /* a resumed request whose last token was its last */
        ds_sched_end(e->sched, q, ds_seq_finished(q));
    return DS_OK;
}

ds_code ds_engine_cancel(ds_engine *e, uint64_t id)
{
    ds_seq *q = ds_sched_find(e->sched, id);
    if (!q)
        return DS_ENOTFOUND;
    ds_sched_end(e->sched, q, DS_FINISH_CANCELLED);
    return DS_OK;
}

/* ---- the one outcome of a request ---- */

static void bury(ds_engine *e, ds_seq *q)
{
    q->next = e->dead;
    e->dead = q;
}

static void finish(ds_engine *e, ds_seq *q, ds_finish how)
{
    ds_sched_remove(e->sched, q, 0);
    if (how == DS_FINISH_CANCELLED)
        e->stats.cancelled++;
    else
        e->stats.finished++;
    e->fn(e->ctx, &(ds_event){.kind = DS_EV_DONE,
                              .id = q->req.id,
                              .finish = how,
                              .stop_id = how == DS_FINISH_STOP ? q->tokens[q->n - 1] : -1,
                              .n_prompt = q->req.n_prompt,
                              .n_output = ds_seq_n_output(q),
                              .n_cached = q->n_cached > 0 ? q->n_cached : 0,
                              .accepted = q->n_accepted,
                              .rejected = q->n_rejected});
    bury(e, q);
}

static void fail(ds_engine *e, ds_seq *q, ds_code code, const char *msg)
{
    ds_sched_remove(e->sched, q, 1);
    e->stats.failed++;
    e->fn(e->ctx, &(ds_event){.kind = DS_EV_ERROR,
                              .id = q->req.id,
                              .finish = DS_FINISH_ERROR,
                              .stop_id = -1,
                              .code = code,
                              .msg = msg});
    bury(e, q);
}

/* ---- the parts of the step ---- */

static int end_marked(ds_engine *e)
{
    int n = 0;
    for (ds_seq *q; (q = ds_sched_ending(e->sched)); n++)
        finish(e, q, q->ending);
    return n;
}

/* How to choose (given < 0) or score the token of position pos. The noise is keyed by that position alone;
 * rows of drafts stand as far into the output as if their drafts were accepted. */
static ds_sample_row sample_row(const ds_seq *q, int pos, int32_t given)
{
    const ds_req *r = &q->req;
    if (given >= 0)
        return (ds_sample_row){
            .top_p = 1.0f, .repetition = 1.0f, .pos = pos, .n_logprobs = r->prompt_logprobs, .given = given};
    return (ds_sample_row){.temperature = r->temperature,
                           .top_p = r->top_p,
                           .min_p = r->min_p,
                           .top_k = r->top_k,
                           .repetition = r->repetition,
                           .presence = r->presence,
                           .frequency = r->frequency,
                           .seed = r->seed,
                           .pos = pos,
                           .seen = q->seen.id,
                           .seen_count = q->seen.count,
                           .n_seen = q->seen.n,
                           .bias_id = r->bias_id,
                           .bias = r->bias,
                           .n_bias = r->n_bias,
                           .banned = q->stop,
                           .n_banned = q->n_stop,
                           .banned_until = (int64_t)r->n_prompt + r->min_tokens,
                           .n_logprobs = r->n_logprobs,
                           .given = -1,
                           .extra = q->draft,
                           .n_extra = q->penalized ? pos - q->n : 0};
}

static ds_sample_row draft_row(const ds_seq *q)
{
    return sample_row(q, q->n, -1);
}

static void pack(ds_engine *e, const ds_plan *p, ds_step_args *a)
{
    int t = 0, r = 0, stride;
    const int32_t *table = ds_sched_page_table(e->sched, &stride);
    for (int i = 0; i < p->n; i++) {
        const ds_plan_item *it = &p->item[i];
        const ds_seq *q = it->seq;
        int first = t;
        for (int pos = q->n_computed; t < first + it->rows; t++, pos++) {
            e->token[t] = pos < q->n ? q->tokens[pos] : q->draft[pos - q->n];
            e->pos[t] = pos;
            e->slot[t] = q->slot;
        }
        for (int k = 0, at = first + it->score_at; k < it->n_score; k++, r++, at++) {
            e->logit_row[r] = at;
            e->row[r] = sample_row(q, e->pos[at] + 1, q->tokens[e->pos[at] + 1]);
        }
        for (int at = t - it->n_sample; at < t; at++, r++) {
            e->logit_row[r] = at;
            e->row[r] = sample_row(q, e->pos[at] + 1, -1);
            int k = e->pos[at] + 1 - q->n; /* the draft that this row judges */
            if (k < it->n_verify && e->conf.acceptance == DS_ACCEPT_REJECTION) {
                e->row[r].draft = q->draft[k];
                e->row[r].draft_logits = q->draft_logits[k];
            }
        }
    }
    DS_ASSERT(t == p->rows && r == p->logits);
    *a = (ds_step_args){.rows = {t, e->token, e->pos, e->slot, table, stride, e->conf.page_tokens},
                        .logit_row = e->logit_row,
                        .R = r};
}

static ds_code compute(ds_engine *e, ds_step_args *a, ds_err *err)
{
    ds_code code = e->target.forward(e->target.model, &e->kv, a, err);
    if (code != DS_OK)
        return err->msg[0] ? code : ds_err_set(err, code, "the forward pass failed: %s", ds_err_name(code));
    ds_sample_args s = {a->logits, a->R, e->target.info->vocab, e->row, e->out};
    if (a->R)
        code = e->target.sample(e->target.device, &s);
    return code == DS_OK ? code : ds_err_set(err, code, "sampling failed: %s", ds_err_name(code));
}

/* Which drafts stand, and the draft's context for the rows that do. */
static ds_code accept(ds_engine *e, const ds_plan *p, const ds_step_args *a, ds_err *err)
{
    ds_sample_out *out = e->out;
    for (int i = 0; i < p->n; out += p->item[i].n_score + p->item[i].n_sample, i++)
        e->accepted[i] = e->spec ? ds_speculate_accept(e->spec, &p->item[i], out + p->item[i].n_score) : 0;
    return e->spec ? ds_speculate_context(e->spec, p, e->accepted, a, err) : DS_OK;
}

static int usable(const ds_engine *e, const ds_sample_out *o)
{
    return !o->bad && o->token >= 0 && o->token < e->target.info->vocab;
}

static void fail_bad(ds_engine *e, ds_seq *q, int pos)
{
    char msg[96];
    snprintf(msg, sizeof msg, "the model gave no usable numbers after position %d", pos);
    fail(e, q, DS_ENUMERIC, msg);
}

/* One sequence takes the results of its rows; out: its logit rows; accepted: drafts that stand. */
static void commit(ds_engine *e, const ds_plan_item *it, const ds_sample_out *out, int accepted)
{
    ds_seq *q = it->seq;
    int stand = it->n_sample - it->n_verify + accepted,
        good = 0; /* sampled rows; refused drafts' may be bad */
    while (good < it->n_score + stand && usable(e, &out[good]))
        good++;
    if (good < it->n_score + (stand > 0)) {
        fail_bad(e, q, good < it->n_score ? q->n_computed + it->score_at + good : q->n - 1);
        return;
    }
    q->n_computed += it->rows - it->n_verify;
    if (it->n_sample || it->score_at + it->n_score == it->rows) /* the last row proved all before it good */
        ds_sched_publish(e->sched, q);
    if (it->n_score) {
        int first = q->n_scored;
        q->n_scored += it->n_score;
        e->fn(e->ctx, &(ds_event){.kind = DS_EV_PROMPT,
                                  .id = q->req.id,
                                  .token = out,
                                  .n = it->n_score,
                                  .first = first,
                                  .stop_id = -1});
        out += it->n_score;
    }
    int n = 0, first = ds_seq_n_output(q);
    ds_finish how = DS_FINISH_NONE;
    while (n < good - it->n_score && how == DS_FINISH_NONE)
        how = ds_seq_append(q, out[n++].token);
    if (n > 1) { /* the rows of accepted drafts are computed, the newest token's is not */
        q->n_computed = q->n - 1;
        ds_sched_publish(e->sched, q);
    }
    if (n) {
        int emitted = n < accepted ? n : accepted; /* a stop may stand inside the block */
        q->n_accepted += emitted;
        q->n_rejected += it->n_verify - emitted;
        e->stats.output_tokens += (uint64_t)n;
        e->fn(e->ctx, &(ds_event){.kind = DS_EV_TOKENS,
                                  .id = q->req.id,
                                  .token = out,
                                  .n = n,
                                  .first = first,
                                  .stop_id = -1,
                                  .n_accepted = emitted,
                                  .n_rejected = it->n_verify - emitted,
                                  .survival = q->survival});
    }
    if (how != DS_FINISH_NONE)
        finish(e, q, how);
    else if (good < it->n_score + stand) /* plain decoding would have come as far */
        fail_bad(e, q, q->n - 1);
}

/* ---- rounds of the device loop ---- */

/* Tokens that the device chose go the way of all tokens; host and device must see the same end. */
static void take_round(void *ctx, ds_seq *q, const ds_round_out *o)
{
    ds_engine *e = ctx;
    int n = 0, first = ds_seq_n_output(q);
    ds_finish how = DS_FINISH_NONE;
    for (; n < o->n && how == DS_FINISH_NONE; n++) {
        e->out[n] = (ds_sample_out){.token = o->token[n]};
        how = ds_seq_append(q, o->token[n]);
    }
    DS_ASSERT(n == o->n && (how == DS_FINISH_STOP) == (o->state == DS_SEAT_STOPPED) &&
              (how == DS_FINISH_LENGTH) == (o->state == DS_SEAT_FULL));
    if (e->spec)
        ds_speculate_count(e->spec, o->survival[0] >= 0, o->n_verify, o->n_accepted);
    e->stats.rows += 1 + (uint64_t)o->n_verify;
    e->stats.decode_rows += 1 + (uint64_t)o->n_verify;
    if (n) {
        q->n_computed = q->n - 1;
        ds_sched_publish(e->sched, q);
        q->n_accepted += o->n_accepted;
        q->n_rejected += o->n_verify - o->n_accepted;
        e->stats.output_tokens += (uint64_t)n;
        e->fn(e->ctx, &(ds_event){.kind = DS_EV_TOKENS,
                                  .id = q->req.id,
                                  .token = e->out,
                                  .n = n,
                                  .first = first,
                                  .stop_id = -1,
                                  .n_accepted = o->n_accepted,
                                  .n_rejected = o->n_verify - o->n_accepted,
                                  .survival = o->survival});
    }
    if (how != DS_FINISH_NONE)
        finish(e, q, how);
    else if (o->state == DS_SEAT_BAD)
        fail_bad(e, q, q->n - 1);
}

static ds_code resident_step(ds_engine *e, int *ret_did, ds_err *err)
{
    uint64_t start = ds_clock_ns(e->conf.clock);
    ds_err why = {0};
    ds_code code = ds_resident_step(e->resident, ret_did, &why);
    if (ds_err_class(code) == DS_CLASS_LOST) {
        e->lost = 1;
        return ds_err_set(err, code, "%s", why.msg);
    }
    int n;
    ds_seq *const *run = ds_sched_running(e->sched, &n);
    while (code != DS_OK && n) {
        fail(e, run[n - 1], code, why.msg);
        run = ds_sched_running(e->sched, &n);
    }
    if (*ret_did) {
        e->stats.steps++;
        e->stats.last_step_ns = ds_clock_ns(e->conf.clock) - start;
        e->stats.busy_ns += e->stats.last_step_ns;
    }
    return DS_OK;
}

static void account(ds_engine *e, const ds_plan *p, uint64_t start)
{
    e->stats.steps++;
    e->stats.rows += (uint64_t)p->rows;
    e->stats.decode_rows += (uint64_t)p->decode_rows;
    e->stats.prefill_rows += (uint64_t)(p->rows - p->decode_rows);
    e->stats.last_step_ns = ds_clock_ns(e->conf.clock) - start;
    e->stats.busy_ns += e->stats.last_step_ns;
}

ds_code ds_engine_step(ds_engine *e, int *ret_work, ds_err *err)
{
    ds_step_args a;
    ds_err why = {0};
    *ret_work = 0;
    if (e->lost)
        return ds_err_set(err, DS_ELOST, "the device is lost");

    uint64_t start = ds_clock_ns(e->conf.clock);
    int ended = end_marked(e);
    if (e->resident) {
        DS_TRY(resident_step(e, ret_work, err));
        if (*ret_work)
            return DS_OK;
    }
    if (e->spec)
        ds_speculate_schedule(e->spec, e->sched);
    const ds_plan *p = ds_sched_plan(e->sched); /* plan and reserve kv */
    *ret_work = ended || p->n;
    if (!p->n) {
        reap(e);
        return DS_OK;
    }
    pack(e, p, &a);
    uint64_t packed = e->spec ? ds_clock_ns(e->conf.clock) : 0;
    ds_code code = compute(e, &a, &why); /* target forward and sample */
    if (code == DS_OK)
        code = accept(e, p, &a, &why);
    double verify_s = e->spec ? (double)(ds_clock_ns(e->conf.clock) - packed) * 1e-9 : 0;
    if (ds_err_class(code) == DS_CLASS_LOST) {
        e->lost = 1;
        return ds_err_set(err, code, "%s", why.msg);
    }
    const ds_sample_out *out = e->out;
    for (int i = 0; i < p->n; i++) { /* commit and emit */
        int logits = p->item[i].n_score + p->item[i].n_sample;
        if (code != DS_OK)
            fail(e, p->item[i].seq, code, why.msg);
        else
            commit(e, &p->item[i], out, e->accepted[i]);
        out += logits;
    }
    if (e->spec && code == DS_OK)
        code = ds_speculate_propose(e->spec, e->sched, draft_row, &why);
    account(e, p, start);
    if (e->spec && code == DS_OK)
        ds_speculate_learn(e->spec, p, e->accepted, verify_s, (double)e->stats.last_step_ns * 1e-9);
    if (ds_err_class(code) == DS_CLASS_LOST) {
        e->lost = 1;
        return ds_err_set(err, code, "%s", why.msg);
    }
    return DS_OK;
}

ds_code ds_engine_audit(const ds_engine *e, ds_err *err)
{
    return ds_sched_audit(e->sched, err);
}

void ds_engine_get_stats(const ds_engine *e, ds_engine_stats *ret)
{
    ds_sched_counts c;
    ds_sched_get_counts(e->sched, &c);
    *ret = e->stats;
    ret->running = c.running;
    ret->waiting = c.waiting;
    if (e->spec)
        ds_speculate_get_stats(e->spec, &ret->spec);
    if (e->resident) {
        uint64_t drafted;
        ret->loop_rounds = ds_resident_rounds(e->resident, &drafted);
        ret->spec.passes += drafted;
    }
    ret->free_pages = c.free_pages;
    ret->total_pages = e->conf.kv_pages;
    ret->cached_pages = c.cached_pages;
    ret->preemptions = c.preemptions;
    ret->prompt_tokens = c.prompt_tokens;
    ret->prefix_hit_tokens = c.prefix_hit_tokens;
}

int ds_engine_get_loop_costs(const ds_engine *e, ds_loop_costs *ret)
{
    if (e->resident)
        ds_resident_get_costs(e->resident, ret);
    return e->resident != NULL;
}

int ds_engine_get_profile(const ds_engine *e, ds_profile *ret)
{
    if (e->spec)
        ds_speculate_get_profile(e->spec, ret);
    return e->spec != NULL;
}

ds_code ds_engine_set_schedule(ds_engine *e, ds_sched_kind schedule, double threshold, ds_err *err)
{
    DS_TRY(check_schedule(e, schedule, threshold, err));
    if (e->spec)
        ds_speculate_set_schedule(e->spec, schedule, threshold);
    return DS_OK;
}
