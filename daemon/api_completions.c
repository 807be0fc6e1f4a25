/* api_completions.c - POST /v1/completions, whole and streamed, with echo and prompt log-probabilities. */
#include "daemon/answer.h"
#include "daemon/api.h"
#include "daemon/json_out.h"

#include <string.h>

static const char PATH[] = "/v1/completions";
static const char OBJECT[] = "text_completion";

static ds_code prepare(ds_request *r, ds_err *err)
{
    DS_TRY(
        ds_params_parse(DS_API_COMPLETIONS, r->body.data ? r->body.data : "", r->body.len, &r->params, err));
    ds_code code = ds_request_encode_prompts(r, err);
    if (code && !strcmp(err->field, "prompt_ids"))
        snprintf(err->field, sizeof err->field, "prompt");
    return code;
}

/* "text": with the prompt before the first piece when echo is asked for. */
static ds_code put_text(ds_choice *c, ds_buf *out, int first)
{
    const ds_buf *echo = &c->req->prompt[c->prompt].echo;
    DS_TRY(ds_buf_puts(out, "\"text\":\""));
    if (first)
        DS_TRY(ds_json_chars(out, echo->data, echo->len));
    DS_TRY(ds_json_chars(out, c->text.data, c->text.len));
    return ds_buf_append(out, "\"", 1);
}

static ds_code put_choice(ds_choice *c, ds_buf *out, int first, int from)
{
    DS_TRY(put_text(c, out, first));
    DS_TRY(ds_buf_append(out, ",", 1));
    DS_TRY(ds_lp_write(c, out));
    return ds_answer_ids(c, out, from, first);
}

/* ---- streamed ---- */

static void send_event(ds_choice *c, int ended)
{
    ds_request *r = c->req;
    ds_buf *out = &r->d->scratch;
    ds_code code = ds_sse_head(r, OBJECT);
    if (code == DS_OK)
        code = ds_sse_begin(c, out);
    if (code == DS_OK)
        code = put_choice(c, out, !c->started, c->sent_ids);
    if (code == DS_OK)
        code = ds_sse_finish(c, out, ended);
    ds_sse_send(r, out, code);
    c->started = 1;
    c->sent_ids = c->n_out;
    ds_buf_clear(&c->text);
    ds_lp_clear(&c->lp);
}

static void stream_piece(ds_choice *c)
{
    const ds_params *p = &c->req->params;
    if (c->text.len || p->logprobs >= 0 || p->return_token_ids || p->return_speculation)
        send_event(c, 0);
}

static void stream_end(ds_choice *c)
{
    send_event(c, 1);
}

static void stream_finish(ds_request *r)
{
    ds_sse_end(r, OBJECT, PATH);
}

static void fail(ds_request *r, const ds_err *err)
{
    ds_answer_fail(r, PATH, err);
}

static const ds_sink STREAM = {
    .piece = stream_piece, .end = stream_end, .finish = stream_finish, .fail = fail};

/* ---- whole ---- */

static void keep(ds_choice *c)
{
    (void)c;
}

static ds_code put_whole(ds_request *r, ds_buf *out)
{
    ds_buf_clear(out);
    DS_TRY(ds_answer_head(r, OBJECT, out));
    DS_TRY(ds_buf_puts(out, "\"choices\":["));
    for (int i = 0; i < r->n_choices; i++) {
        ds_choice *c = &r->choices[i];
        DS_TRY(ds_buf_printf(out, "%s{\"index\":%d,", i ? "," : "", i));
        DS_TRY(put_choice(c, out, 1, 0));
        DS_TRY(ds_buf_printf(out, ",\"finish_reason\":\"%s\"}", ds_answer_finish(c)));
    }
    DS_TRY(ds_buf_puts(out, "],"));
    DS_TRY(ds_answer_usage(r, out));
    return ds_buf_append(out, "}", 1);
}

static void whole_finish(ds_request *r)
{
    ds_buf *out = &r->d->scratch;
    ds_err err = {0};
    ds_code code = put_whole(r, out);
    if (code) {
        ds_err_set(&err, code, "the answer could not be assembled");
        ds_answer_fail(r, PATH, &err);
    } else {
        ds_answer_json(r, PATH, out);
    }
}

static const ds_sink WHOLE = {.piece = keep, .end = keep, .finish = whole_finish, .fail = fail};

static void prepared(ds_request *r)
{
    r->sink = r->params.stream ? &STREAM : &WHOLE;
    ds_request_start(r);
}

void ds_api_completions(ds_daemon *d, ds_hconn *c, ds_http_reader *msg)
{
    ds_api_start(d, c, msg, "cmpl", &WHOLE, prepare, prepared);
}
