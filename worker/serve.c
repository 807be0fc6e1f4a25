/* serve.c - see serve.h. A step's tokens of one request go out as one Tokens frame (more only when a chunk of
 * prompt log-probabilities is long), and the socket thread is woken once a step. */
#include "worker/serve.h"

#include "base/clock.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

enum { CHUNK = 64, SLOT_STRIDE = DS_LINK_MAX_SLOTS + 1 };

struct ds_serve {
    ds_engine *engine;
    ds_link *link;
    int page_tokens;
    struct {
        uint64_t id;     /* 0: not live */
        int logprobs;    /* as asked for; -1 none */
    } live[SLOT_STRIDE]; /* by id % SLOT_STRIDE, the link's slot */
    int draining, stopping;
    uint64_t deadline_ns; /* 0: none */
    /* scratch of one Tokens frame */
    int32_t ids[CHUNK];
    uint32_t accepted[CHUNK], slot[CHUNK];
    Dspark__V1__Tokens__Source source[CHUNK];
    float confidence[CHUNK];
    ds_pb_logprob logprob[CHUNK], *logprobs[CHUNK];
    ds_pb_top top[CHUNK][DS_MAX_TOP_LOGPROBS], *tops[CHUNK][DS_MAX_TOP_LOGPROBS];
};

ds_code ds_serve_create(ds_serve **ret, ds_err *err)
{
    ds_serve *s = calloc(1, sizeof *s);
    if (!s)
        return ds_err_set(err, DS_ENOMEM, "no memory to serve");
    for (int i = 0; i < CHUNK; i++) {
        s->logprobs[i] = &s->logprob[i];
        for (int k = 0; k < DS_MAX_TOP_LOGPROBS; k++)
            s->tops[i][k] = &s->top[i][k];
    }
    *ret = s;
    return DS_OK;
}

void ds_serve_destroy(ds_serve *s)
{
    free(s);
}

/* ---- events of the engine ---- */

static void fill_logprob(ds_serve *s, int i, const ds_sample_out *o)
{
    s->logprob[i] = (ds_pb_logprob)DSPARK__V1__TOKEN_LOGPROB__INIT;
    s->logprob[i].logprob = o->logprob;
    s->logprob[i].rank = o->rank;
    s->logprob[i].top = s->tops[i];
    s->logprob[i].n_top = (size_t)o->n_top;
    for (int k = 0; k < o->n_top; k++) {
        s->top[i][k] = (ds_pb_top)DSPARK__V1__TOP_LOGPROB__INIT;
        s->top[i][k].id = o->top_id[k];
        s->top[i][k].logprob = o->top_logprob[k];
    }
}

/* Where token i of the event came from: its place in the block, and the confidence in the draft there. */
static void fill_origin(ds_serve *s, int at, const ds_event *ev, int i)
{
    int l = ev->n_accepted + ev->n_rejected; /* drafts verified */
    s->accepted[at] = i < ev->n_accepted;
    s->source[at] = i < ev->n_accepted ? DSPARK__V1__TOKENS__SOURCE__ACCEPTED
                    : i < l            ? DSPARK__V1__TOKENS__SOURCE__CORRECTED
                                       : DSPARK__V1__TOKENS__SOURCE__BONUS;
    s->slot[at] = (uint32_t)i + 1;
    float before = i > 0 && i < l ? ev->survival[i - 1] : 1.0f;
    s->confidence[at] = i < l && before > 0 ? fminf(ev->survival[i] / before, 1.0f) : 0.0f;
}

static void post_tokens(ds_serve *s, const ds_event *ev)
{
    int prompt = ev->kind == DS_EV_PROMPT;
    int with_logprobs = prompt || s->live[ev->id % SLOT_STRIDE].logprobs >= 0;
    for (int at = 0; at < ev->n; at += CHUNK) {
        int n = ev->n - at < CHUNK ? ev->n - at : CHUNK;
        ds_pb_tokens t = DSPARK__V1__TOKENS__INIT;
        t.index = (uint32_t)(ev->first + at);
        t.prompt = prompt;
        t.ids = s->ids;
        t.n_ids = (size_t)n;
        for (int i = 0; i < n; i++) {
            s->ids[i] = ev->token[at + i].token;
            if (with_logprobs)
                fill_logprob(s, i, &ev->token[at + i]);
        }
        if (with_logprobs) {
            t.logprobs = s->logprobs;
            t.n_logprobs = (size_t)n;
        }
        if (ev->n_accepted + ev->n_rejected > 0) {
            for (int i = 0; i < n; i++)
                fill_origin(s, i, ev, at + i);
            t.accepted_draft = s->accepted;
            t.source = s->source;
            t.draft_slot = s->slot;
            t.draft_confidence = s->confidence;
            t.n_accepted_draft = t.n_source = t.n_draft_slot = t.n_draft_confidence = (size_t)n;
        }
        t.rejected_draft = at ? 0 : (uint32_t)ev->n_rejected;
        ds_link_tokens(s->link, ev->id, &t);
    }
}

static void post_done(ds_serve *s, const ds_event *ev)
{
    ds_pb_done d = DSPARK__V1__DONE__INIT;
    d.finish = ev->finish == DS_FINISH_STOP     ? DSPARK__V1__DONE__FINISH__STOP
               : ev->finish == DS_FINISH_LENGTH ? DSPARK__V1__DONE__FINISH__LENGTH
                                                : DSPARK__V1__DONE__FINISH__CANCELLED;
    d.stop_token = ev->stop_id;
    d.prompt_tokens = (uint32_t)ev->n_prompt;
    d.output_tokens = (uint32_t)ev->n_output;
    d.cached_tokens = (uint32_t)ev->n_cached;
    d.accepted_draft_tokens = (uint32_t)ev->accepted;
    d.rejected_draft_tokens = (uint32_t)ev->rejected;
    s->live[ev->id % SLOT_STRIDE].id = 0;
    ds_link_done(s->link, ev->id, &d);
}

void ds_serve_event(void *ctx, const ds_event *ev)
{
    ds_serve *s = ctx;
    switch (ev->kind) {
    case DS_EV_PROMPT:
    case DS_EV_TOKENS:
        post_tokens(s, ev);
        break;
    case DS_EV_DONE:
        post_done(s, ev);
        break;
    case DS_EV_ERROR:
        s->live[ev->id % SLOT_STRIDE].id = 0;
        ds_link_error(s->link, ev->id, ev->code, "", ev->msg);
        break;
    }
}

/* ---- commands of the link ---- */

static ds_req to_req(uint64_t id, const ds_pb_submit *m)
{
    const ds_pb_sampling *p = m->sampling;
    return (ds_req){
        .id = id,
        .prompt = m->prompt_ids,
        .n_prompt = (int)m->n_prompt_ids,
        .output = m->output_ids,
        .n_output = (int)m->n_output_ids,
        .max_tokens = (int)p->max_tokens,
        .min_tokens = (int)p->min_tokens,
        .temperature = p->temperature,
        .top_p = p->top_p,
        .min_p = p->min_p,
        .repetition = p->repetition_penalty,
        .presence = p->presence_penalty,
        .frequency = p->frequency_penalty,
        .top_k = p->top_k,
        .seed = p->seed,
        .bias_id = p->logit_bias_id,
        .bias = p->logit_bias,
        .n_bias = (int)p->n_logit_bias,
        .stop_id = p->stop_token_ids,
        .n_stop_id = (int)p->n_stop_token_ids,
        .ignore_eos = p->ignore_eos,
        .n_logprobs = p->logprobs,
        .prompt_logprobs = p->prompt_logprobs,
        .priority = m->priority,
        .spec = m->speculation && m->speculation->mode == DSPARK__V1__SPECULATION__MODE__OFF   ? DS_SPEC_OFF
                : m->speculation && m->speculation->mode == DSPARK__V1__SPECULATION__MODE__MAX ? DS_SPEC_MAX
                                                                                               : DS_SPEC_AUTO,
        .max_draft = m->speculation ? (int)m->speculation->max_draft : 0,
    };
}

static void on_submit(ds_serve *s, ds_link_cmd *cmd)
{
    ds_err err = {0};
    ds_req req = to_req(cmd->id, cmd->frame.env->submit);
    ds_code code = ds_engine_submit(s->engine, &req, &err);
    if (code == DS_OK) {
        s->live[cmd->id % SLOT_STRIDE].id = cmd->id;
        s->live[cmd->id % SLOT_STRIDE].logprobs = req.n_logprobs;
    } else {
        ds_link_error(s->link, cmd->id, code, err.field, err.msg);
    }
    ds_frame_clear(&cmd->frame);
}

static void cancel_all(ds_serve *s)
{
    for (int i = 0; i < SLOT_STRIDE; i++)
        if (s->live[i].id)
            (void)ds_engine_cancel(s->engine, s->live[i].id); /* not live: its outcome is posted */
}

static void on_command(ds_serve *s, ds_link_cmd *cmd)
{
    switch (cmd->kind) {
    case DS_LINK_SUBMIT:
        on_submit(s, cmd);
        break;
    case DS_LINK_CANCEL:
        (void)ds_engine_cancel(s->engine, cmd->id); /* not live: its outcome is posted */
        break;
    case DS_LINK_DRAIN:
        s->draining = 1;
        s->deadline_ns = cmd->deadline_ms ? ds_now_ns() + (uint64_t)cmd->deadline_ms * 1000000 : 0;
        break;
    case DS_LINK_STOP:
        s->stopping = 1;
        cancel_all(s);
        break;
    }
}

static void flush(ds_serve *s)
{
    ds_engine_stats e;
    ds_pb_stats p = DSPARK__V1__STATS__INIT;
    ds_engine_get_stats(s->engine, &e);
    p.running = (uint32_t)e.running;
    p.waiting = (uint32_t)e.waiting;
    p.kv_tokens_used = (uint64_t)(e.total_pages - e.free_pages) * (uint64_t)s->page_tokens;
    p.kv_tokens = (uint64_t)e.total_pages * (uint64_t)s->page_tokens;
    p.steps = e.steps;
    p.prompt_tokens = e.prompt_tokens;
    p.output_tokens = e.output_tokens;
    p.prefix_hit_tokens = e.prefix_hit_tokens;
    p.preemptions = e.preemptions;
    p.finished = e.finished;
    p.cancelled = e.cancelled;
    p.failed = e.failed;
    p.busy_ns = e.busy_ns;
    p.last_step_ns = e.last_step_ns;
    p.rows = e.rows;
    p.draft_tokens = e.spec.verified;
    p.accepted_tokens = e.spec.accepted;
    p.draft_rounds = e.spec.rounds;
    p.draft_passes = e.spec.passes;
    p.draft_skips = e.spec.skips;
    p.draft_ns = e.spec.draft_ns;
    p.proposed_tokens = e.spec.drafted;
    p.draft_tokens_at = e.spec.verified_at;
    p.accepted_tokens_at = e.spec.accepted_at;
    while (p.n_draft_tokens_at < DS_MAX_BLOCK && e.spec.verified_at[p.n_draft_tokens_at])
        p.n_draft_tokens_at++;
    p.n_accepted_tokens_at = p.n_draft_tokens_at;
    p.sched_ns = e.spec.sched_ns;
    p.verify_budget = (uint32_t)e.spec.budget;
    p.draft_request_skips = e.spec.request_skips;
    p.drafted_step_ns = (uint64_t)(e.spec.measured_s * 1e9);
    p.plain_step_ns = (uint64_t)(e.spec.plain_s * 1e9);
    p.regret = e.spec.regret;
    p.guard_offs = e.spec.guard_offs;
    p.guard_bands_off = (uint32_t)e.spec.bands_off;
    p.calibration_error = e.spec.ece;
    p.calibration_drift = (uint32_t)e.spec.drift;
    p.calibration_refits = e.spec.refits;
    p.calibration_rollbacks = e.spec.rollbacks;
    p.calibration_error_at = e.spec.ece_at;
    p.temperatures = e.spec.T;
    p.n_calibration_error_at = p.n_temperatures = p.n_draft_tokens_at;
    ds_link_flush(s->link, &p);
}

/* How long to wait for a command: not at all with work at hand. */
static int patience_ms(ds_serve *s, int work)
{
    if (work)
        return 0;
    if (!s->deadline_ns)
        return -1;
    uint64_t now = ds_now_ns();
    return now >= s->deadline_ns ? 0 : (int)((s->deadline_ns - now) / 1000000 + 1);
}

ds_code ds_serve_run(ds_serve *s, ds_engine *e, ds_link *l, int page_tokens, ds_err *err)
{
    int work = 1;
    s->engine = e;
    s->link = l;
    s->page_tokens = page_tokens;
    for (;;) {
        ds_link_cmd cmd;
        for (int wait = patience_ms(s, work); ds_link_take(l, wait, &cmd); wait = 0)
            on_command(s, &cmd);
        if (s->deadline_ns && ds_now_ns() >= s->deadline_ns) {
            cancel_all(s);
            s->deadline_ns = 0;
        }
        ds_code code = ds_engine_step(e, &work, err);
        if (code == DS_ELOST)
            ds_link_lost(l, err ? err->msg : "the device is lost");
        flush(s);
        if (code != DS_OK)
            return code;
        if (work)
            continue;
        if (s->stopping)
            return ds_err_set(err, DS_ECANCELLED, "stopped before the work was done");
        if (s->draining && ds_link_live(l) == 0)
            return DS_OK;
    }
}
