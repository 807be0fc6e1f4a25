/* choice.c - one choice: what its worker says becomes text, stop strings, log-probabilities and one end. */
#include "daemon/daemon.h"
#include "daemon/json_out.h"

#include "base/log.h"

#include <stdlib.h>
#include <string.h>

enum {
    MAX_BARREN =
        2, /* workers in a row that may die with a request without a token of it: then it is the suspect */
    MAX_DEATHS = 16 /* workers that may die with it in all */
};

/* The one place that changes a choice's state. Ending the last choice ends the request: c may be gone then.
 */
void ds_choice_enter(ds_choice *c, ds_choice_state to)
{
    ds_request *r = c->req;
    if (c->state == CHOICE_ENDED)
        return;
    ds_admit_remove(c);
    if (c->wire && to != CHOICE_FLYING) {
        ds_links_cancel(r->d->links, c->wire); /* nothing happens when the worker has ended it already */
        c->wire = 0;
    }
    c->state = to;
    if (to == CHOICE_ENDED && --r->live == 0 && r->state == REQ_RUNNING) {
        r->sink->finish(r);
        ds_request_end(r);
    }
}

static void put_call(ds_choice *c, const char *text, size_t len)
{
    json_t *call = json_loadb(text, len, 0, NULL);
    const char *name = json_string_value(json_object_get(call, "name"));
    json_t *args = json_object_get(call, "arguments");
    char *dump = args ? json_dumps(args, JSON_COMPACT | JSON_ENCODE_ANY) : NULL;
    if (!name || (args && !dump)) { /* not a call after all: the client gets what the model wrote */
        ds_buf_puts(&c->text, "<tool_call>");
        ds_buf_append(&c->text, text, len);
        ds_buf_puts(&c->text, "</tool_call>");
    } else {
        ds_buf *out = &c->calls;
        ds_buf_puts(out, out->len ? ",{" : "{");
        if (c->req->params.stream)
            ds_buf_printf(out, "\"index\":%d,", c->n_calls);
        ds_buf_printf(out, "\"id\":\"call_%.24s_%d_%d\",\"type\":\"function\",\"function\":{\"name\":",
                      c->req->id + strcspn(c->req->id, "-") + 1, c->index, c->n_calls);
        ds_json_str(out, name, strlen(name));
        ds_buf_puts(out, ",\"arguments\":");
        ds_json_str(out, dump ? dump : "{}", dump ? strlen(dump) : 2);
        ds_buf_puts(out, "}}");
        c->n_calls++;
    }
    free(dump);
    json_decref(call);
}

static void on_part(void *ctx, ds_chat_ev kind, const char *text, size_t len)
{
    ds_choice *c = ctx;
    if (kind == DS_CHAT_EV_TOOL_CALL)
        put_call(c, text, len);
    else
        ds_buf_append(kind == DS_CHAT_EV_CONTENT ? &c->text : &c->reasoning, text, len);
}

ds_code ds_choice_open(ds_choice *c, ds_err *err)
{
    ds_request *r = c->req;
    const ds_params *p = &r->params;
    if (!r->d->tok && p->n_stop)
        return ds_err_field(err, DS_EUNSUPPORTED, "stop", "this model has no tokenizer, so no stop strings");
    if (!r->d->tok || (r->sink->tokens && !p->n_stop && !r->want_text)) /* ids only */
        return DS_OK;
    DS_TRY(ds_detok_open(r->d->tok, 1, (const char *const *)p->stop, p->n_stop, &c->detok, err));
    if (p->api != DS_API_CHAT)
        return DS_OK;
    ds_code code = ds_chat_parser_open(r->d->chat, r->in_reasoning, p->tools != NULL, on_part, c, &c->parser);
    return code ? ds_err_set(err, code, "no memory for a chat parser") : DS_OK;
}

void ds_choice_close(ds_choice *c)
{
    if (c->detok)
        ds_detok_close(c->detok);
    if (c->parser)
        ds_chat_parser_close(c->parser);
    free(c->out);
    free(c->origin);
    ds_buf_free(&c->text);
    ds_buf_free(&c->reasoning);
    ds_buf_free(&c->calls);
    ds_lp_free(&c->lp);
}

void ds_choice_submit(ds_choice *c, ds_pb_submit *s, ds_pb_sampling *sampling)
{
    const ds_request *r = c->req;
    const ds_prompt *p = &r->prompt[c->prompt];
    const ds_pb_caps *caps = ds_links_caps(r->d->links);
    dspark__v1__submit__init(s);
    *sampling = r->params.sampling;
    s->id = 1;
    s->prompt_ids = p->ids;
    s->n_prompt_ids = (size_t)p->n;
    s->output_ids = c->out;
    s->n_output_ids = (size_t)c->n_out;
    s->sampling = sampling;
    s->speculation = (ds_pb_speculation *)&r->params.spec;
    s->priority = r->params.priority;
    if (r->params.user)
        s->user = r->params.user;
    sampling->seed = c->seed;
    if (c->n_prompt_lp >= p->n)
        sampling->prompt_logprobs = -1; /* an earlier attempt has delivered them */
    int64_t max = r->params.score_only ? 1 : r->params.max_tokens;
    if (max < 0 && caps) { /* chat's default: what the context leaves */
        int64_t room = (int64_t)caps->max_positions + 1 - p->n;
        int64_t kv = caps->kv_tokens ? (int64_t)caps->kv_tokens - p->n : room;
        max = room < kv ? room : kv;
        max = max < 1 ? 1 : max > DS_MAX_PROMPT_TOKENS ? DS_MAX_PROMPT_TOKENS : max;
    }
    sampling->max_tokens = (uint32_t)(max < 1 ? 1 : max);
}

static int is_stop_token(const ds_choice *c, int32_t id)
{
    const ds_pb_sampling *s = &c->req->params.sampling;
    const ds_pb_caps *caps = ds_links_caps(c->req->d->links);
    for (size_t i = 0; i < s->n_stop_token_ids; i++)
        if (s->stop_token_ids[i] == id)
            return 1;
    for (size_t i = 0; caps && !s->ignore_eos && i < caps->n_eos; i++)
        if (caps->eos[i] == id)
            return 1;
    return 0;
}

static ds_code give_text(ds_choice *c, const char *text, size_t len)
{
    if (!len)
        return DS_OK;
    return c->parser ? ds_chat_parser_push(c->parser, text, len) : ds_buf_append(&c->text, text, len);
}

static ds_origin origin_of(const ds_pb_tokens *t, size_t i)
{
    ds_origin o = {.drafted = t->n_accepted_draft && t->accepted_draft[i]};
    if (t->n_source) {
        o.source = (unsigned char)t->source[i];
        o.slot = (unsigned char)t->draft_slot[i];
        o.confidence = t->draft_confidence[i];
    }
    return o;
}

/* One generated token. Its text is hidden when it is what ends the answer. */
static ds_code take_token(ds_choice *c, int32_t id, ds_origin origin, const ds_pb_logprob *lp)
{
    if (c->n_out == c->cap_out) {
        int cap = c->cap_out ? c->cap_out * 2 : 64;
        int32_t *out = realloc(c->out, (size_t)cap * sizeof *out);
        c->out = out ? out : c->out;
        ds_origin *origins = realloc(c->origin, (size_t)cap * sizeof *origins);
        c->origin = origins ? origins : c->origin;
        if (!out || !origins)
            return DS_ENOMEM;
        c->cap_out = cap;
    }
    c->origin[c->n_out] = origin;
    c->out[c->n_out++] = id;
    c->accepted += origin.drafted;
    if (c->req->params.score_only)
        return DS_OK;
    if (lp && !c->req->sink->tokens)
        DS_TRY(ds_lp_add(c, id, lp));
    if (!c->detok || is_stop_token(c, id))
        return DS_OK;
    const char *text;
    size_t len;
    int stop = -1;
    DS_TRY(ds_detok_push(c->detok, id, &text, &len, &stop));
    DS_TRY(give_text(c, text, len));
    if (stop >= 0) {
        c->stop_string = c->req->params.stop[stop];
        c->finish = FINISH_STOP;
    }
    return DS_OK;
}

static ds_code take_prompt(ds_choice *c, const ds_pb_tokens *t)
{
    const ds_prompt *p = &c->req->prompt[c->prompt];
    if (c->req->sink->tokens) {
        c->n_prompt_lp = (int)t->index + (int)t->n_ids;
        c->req->sink->tokens(c, t, (int)t->n_ids);
        return DS_OK;
    }
    for (size_t i = 0; i < t->n_ids; i++) {
        int pos = (int)t->index + (int)i;
        if (pos == 1 && c->n_prompt_lp == 0) { /* position 0 has none, and need not be sent */
            DS_TRY(ds_lp_add(c, p->ids[0], NULL));
            c->n_prompt_lp = 1;
        }
        if (pos != c->n_prompt_lp || pos >= p->n || t->ids[i] != p->ids[pos])
            return DS_EPROTO;
        DS_TRY(ds_lp_add(c, p->ids[pos], pos && t->n_logprobs ? t->logprobs[i] : NULL));
        c->n_prompt_lp++;
    }
    return DS_OK;
}

/* Before the first token generated. The worker has nothing to say of a prompt's first position, so that a
 * prompt of one token comes without a frame. */
static ds_code prompt_taken(ds_choice *c)
{
    const ds_prompt *p = &c->req->prompt[c->prompt];
    if (c->req->params.sampling.prompt_logprobs < 0 || c->req->sink->tokens)
        return DS_OK;
    if (c->n_prompt_lp == 0 && p->n == 1) {
        DS_TRY(ds_lp_add(c, p->ids[0], NULL));
        c->n_prompt_lp = 1;
    }
    return c->n_prompt_lp == p->n ? DS_OK : DS_EPROTO;
}

static void observe(ds_choice *c, size_t n)
{
    ds_daemon *d = c->req->d;
    uint64_t now = ds_clock_ns(d->clock);
    if (!c->first_ns) {
        c->first_ns = now;
        ds_metric_observe(d->m.ttft, (double)(now - c->req->start_ns) * 1e-9);
    } else {
        ds_metric_observe(d->m.itl, (double)(now - c->last_ns) * 1e-9 / (double)n);
    }
    c->last_ns = now;
    ds_metric_add(d->m.output_tokens, (double)n);
}

/* The text that was held back; c->finish is known. */
static ds_code flush_text(ds_choice *c)
{
    if (c->detok && !c->stop_string) {
        const char *text;
        size_t len;
        DS_TRY(ds_detok_flush(c->detok, &text, &len));
        DS_TRY(give_text(c, text, len));
    }
    return c->parser ? ds_chat_parser_finish(c->parser) : DS_OK;
}

static void fail(ds_choice *c, ds_code code, const char *what)
{
    ds_err err = {0};
    ds_err_set(&err, code, "%s", what);
    ds_request_fail(c->req, &err);
}

static void end(ds_choice *c)
{
    ds_code code = flush_text(c);
    if (code) {
        fail(c, code, "the answer could not be assembled");
        return;
    }
    c->req->sink->end(c);
    ds_choice_enter(c, CHOICE_ENDED);
}

/* A stream that tells who wrote which token has an event for each run of them, so that text and writer
 * match. */
static void end_run(ds_choice *c, int drafted, int next_drafted)
{
    const ds_request *r = c->req;
    if (r->params.return_speculation && r->params.stream && !r->sink->tokens && drafted != next_drafted)
        r->sink->piece(c);
}

void ds_choice_tokens(void *ctx, const ds_pb_tokens *t)
{
    ds_choice *c = ctx;
    if (t->prompt) {
        if (take_prompt(c, t))
            fail(c, DS_EPROTO, "the worker sent prompt log-probabilities out of order");
        return;
    }
    if ((int64_t)t->index != c->n_out || t->n_ids == 0) {
        fail(c, DS_EPROTO, "the worker sent tokens out of order");
        return;
    }
    if (prompt_taken(c)) {
        fail(c, DS_EPROTO, "the worker left out prompt log-probabilities");
        return;
    }
    int before = c->n_out;
    for (size_t i = 0; i < t->n_ids && c->finish == FINISH_NONE; i++) {
        int want = c->req->params.logprobs >= 0;
        if (want && !t->n_logprobs) {
            fail(c, DS_EPROTO, "the worker sent no log-probabilities");
            return;
        }
        ds_origin origin = origin_of(t, i);
        ds_code code = take_token(c, t->ids[i], origin, want ? t->logprobs[i] : NULL);
        if (code) {
            fail(c, code, "the answer could not be assembled");
            return;
        }
        if (i + 1 < t->n_ids && c->finish == FINISH_NONE)
            end_run(c, origin.drafted, origin_of(t, i + 1).drafted);
    }
    c->rejected += t->rejected_draft;
    for (size_t i = (size_t)(c->n_out - before); i < t->n_accepted_draft; i++)
        c->rejected += t->accepted_draft[i] != 0; /* behind a stop string */
    observe(c, (size_t)(c->n_out - before));
    if (c->req->sink->tokens)
        c->req->sink->tokens(c, t, c->n_out - before);
    if (c->finish != FINISH_NONE)
        end(c);
    else if (!c->req->params.score_only)
        c->req->sink->piece(c);
}

void ds_choice_done(void *ctx, const ds_pb_done *d)
{
    ds_choice *c = ctx;
    ds_daemon *dm = c->req->d;
    c->wire = 0;
    if (d->finish == DSPARK__V1__DONE__FINISH__CANCELLED) { /* not by us: the worker is going down */
        ds_choice_lost(c, "the worker gave the request back");
        return;
    }
    if (d->finish != DSPARK__V1__DONE__FINISH__STOP && d->finish != DSPARK__V1__DONE__FINISH__LENGTH) {
        fail(c, DS_EPROTO, "the worker ended the request for no known reason");
        return;
    }
    c->cached = d->cached_tokens;
    c->finish = d->finish == DSPARK__V1__DONE__FINISH__STOP ? FINISH_STOP : FINISH_LENGTH;
    if (c->req->params.score_only)
        c->finish = FINISH_LENGTH;
    ds_metric_add(dm->m.cached_tokens, d->cached_tokens);
    end(c);
}

void ds_choice_error(void *ctx, const ds_err *err)
{
    ds_choice *c = ctx;
    c->wire = 0;
    ds_class cls = ds_err_class(err->code);
    if (cls == DS_CLASS_LIMIT) { /* it had no room after all: back into the queue, where its time goes on */
        ds_choice_enter(c, CHOICE_WAITING);
        ds_admit_push(c, 1);
    } else if (cls == DS_CLASS_LOST || cls == DS_CLASS_IO)
        ds_choice_lost(c, err->msg);
    else
        ds_request_fail(c->req, err);
}

/* Its worker is gone. The next one gets the tokens so far, and the client's stream goes on. */
void ds_choice_lost(void *ctx, const char *why)
{
    ds_choice *c = ctx;
    const ds_request *r = c->req;
    c->wire = 0;
    c->deaths++;
    c->barren = c->n_out > c->n_start ? 1 : c->barren + 1;
    if (c->barren >= MAX_BARREN || c->deaths >= MAX_DEATHS) {
        ds_err err = {0};
        ds_err_set(&err, DS_ELOST, "%d workers were lost with this request: %.300s", c->deaths, why);
        ds_request_fail(c->req, &err);
        return;
    }
    ds_metric_add(r->d->m.moved, 1);
    int64_t max = r->params.score_only ? 1 : r->params.max_tokens;
    if (c->n_out && (is_stop_token(c, c->out[c->n_out - 1]) || c->n_out == max)) {
        c->finish = c->n_out == max && !is_stop_token(c, c->out[c->n_out - 1]) ? FINISH_LENGTH : FINISH_STOP;
        end(c); /* only its last word was lost */
        return;
    }
    if (c->n_out == 0 &&
        c->n_prompt_lp < r->prompt[c->prompt].n) { /* prompt positions come again from the start */
        c->n_prompt_lp = 0;
        ds_lp_clear(&c->lp);
        c->lp.chars = 0;
    }
    ds_choice_enter(c, CHOICE_WAITING);
    c->queued_ns = 0;
    ds_admit_push(c, 1);
}
