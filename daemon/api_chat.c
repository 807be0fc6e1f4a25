/* api_chat.c - POST /v1/chat/completions, whole and streamed. */
#include "daemon/answer.h"
#include "daemon/api.h"
#include "daemon/json_out.h"

#include <string.h>

static const char PATH[] = "/v1/chat/completions";
static const char CHUNK[] = "chat.completion.chunk";

/* ---- on the pool ---- */

static ds_code prepare(ds_request *r, ds_err *err)
{
    static const char OPEN[] = "<think>\n";
    DS_TRY(ds_params_parse(DS_API_CHAT, r->body.data ? r->body.data : "", r->body.len, &r->params, err));
    if (r->d->chat == DS_CHAT_NONE)
        return ds_err_field(err, DS_EUNSUPPORTED, "messages", "%s", r->d->chat_error);
    ds_chat_opts opts = {.add_generation_prompt = 1, .enable_thinking = r->params.enable_thinking};
    ds_buf text = {.max = DS_MAX_HTTP_BODY_BYTES * 2};
    ds_code code = ds_chat_render(r->d->chat, r->params.messages, r->params.tools, &opts, &text, err);
    r->n_prompts = 1;
    if (code == DS_OK)
        code = ds_request_encode(r, 0, text.data ? text.data : "", text.len, 0, err);
    if (code == DS_OK && r->prompt[0].n == 0)
        code = ds_err_field(err, DS_EINVAL, "messages", "messages render to an empty prompt");
    size_t n = sizeof OPEN - 1;
    r->in_reasoning = text.len >= n && !memcmp(text.data + text.len - n, OPEN, n);
    ds_buf_free(&text);
    return code;
}

/* ---- streamed ---- */

static ds_code comma(ds_buf *out, int *n)
{
    return (*n)++ ? ds_buf_append(out, ",", 1) : DS_OK;
}

static ds_code put_text(ds_buf *out, int *n, const char *key, const ds_buf *text)
{
    DS_TRY(comma(out, n));
    DS_TRY(ds_buf_puts(out, key));
    return ds_json_str(out, text->data ? text->data : "", text->len);
}

static ds_code put_delta(ds_choice *c, ds_buf *out, int ended)
{
    int n = 0, first = !c->started;
    DS_TRY(ds_buf_puts(out, "\"delta\":{"));
    if (first && n++ == 0)
        DS_TRY(ds_buf_puts(out, "\"role\":\"assistant\""));
    if (c->reasoning.len)
        DS_TRY(put_text(out, &n, "\"reasoning_content\":", &c->reasoning));
    if (c->text.len || (first && !c->reasoning.len && !c->calls.len))
        DS_TRY(put_text(out, &n, "\"content\":", &c->text));
    if (c->calls.len) {
        DS_TRY(comma(out, &n));
        DS_TRY(ds_buf_puts(out, "\"tool_calls\":["));
        DS_TRY(ds_buf_append(out, c->calls.data, c->calls.len));
        DS_TRY(ds_buf_append(out, "]", 1));
    }
    DS_TRY(ds_buf_puts(out, "},"));
    if (c->req->params.logprobs >= 0 && c->lp.entry.len)
        DS_TRY(ds_lp_write(c, out));
    else
        DS_TRY(ds_buf_puts(out, "\"logprobs\":null"));
    DS_TRY(ds_answer_ids(c, out, c->sent_ids, first));
    return ds_sse_finish(c, out, ended);
}

static void send_event(ds_choice *c, int ended)
{
    ds_request *r = c->req;
    ds_buf *out = &r->d->scratch;
    ds_code code = ds_sse_head(r, CHUNK);
    if (code == DS_OK)
        code = ds_sse_begin(c, out);
    if (code == DS_OK)
        code = put_delta(c, out, ended);
    ds_sse_send(r, out, code);
    c->started = 1;
    c->sent_ids = c->n_out;
    ds_buf_clear(&c->text);
    ds_buf_clear(&c->reasoning);
    ds_buf_clear(&c->calls);
    ds_lp_clear(&c->lp);
}

static void stream_piece(ds_choice *c)
{
    int tokens =
        c->req->params.logprobs >= 0 || c->req->params.return_token_ids || c->req->params.return_speculation;
    if (c->text.len || c->reasoning.len || c->calls.len || tokens || !c->started)
        send_event(c, 0);
}

static void stream_end(ds_choice *c)
{
    send_event(c, 1);
}

static void stream_finish(ds_request *r)
{
    ds_sse_end(r, CHUNK, PATH);
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

static ds_code put_choice(ds_choice *c, ds_buf *out)
{
    DS_TRY(ds_buf_printf(out, "{\"index\":%d,\"message\":{\"role\":\"assistant\",\"content\":", c->index));
    if (c->n_calls && !c->text.len)
        DS_TRY(ds_buf_puts(out, "null"));
    else
        DS_TRY(ds_json_str(out, c->text.data ? c->text.data : "", c->text.len));
    if (c->reasoning.len) {
        DS_TRY(ds_buf_puts(out, ",\"reasoning_content\":"));
        DS_TRY(ds_json_str(out, c->reasoning.data, c->reasoning.len));
    }
    if (c->n_calls) {
        DS_TRY(ds_buf_puts(out, ",\"tool_calls\":["));
        DS_TRY(ds_buf_append(out, c->calls.data, c->calls.len));
        DS_TRY(ds_buf_append(out, "]", 1));
    }
    DS_TRY(ds_buf_puts(out, ",\"refusal\":null},"));
    DS_TRY(ds_lp_write(c, out));
    DS_TRY(ds_answer_ids(c, out, 0, 1));
    return ds_buf_printf(out, ",\"finish_reason\":\"%s\"}", ds_answer_finish(c));
}

static ds_code put_whole(ds_request *r, ds_buf *out)
{
    ds_buf_clear(out);
    DS_TRY(ds_answer_head(r, "chat.completion", out));
    DS_TRY(ds_buf_puts(out, "\"choices\":["));
    for (int i = 0; i < r->n_choices; i++) {
        if (i)
            DS_TRY(ds_buf_append(out, ",", 1));
        DS_TRY(put_choice(&r->choices[i], out));
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

void ds_api_chat(ds_daemon *d, ds_hconn *c, ds_http_reader *msg)
{
    ds_api_start(d, c, msg, "chatcmpl", &WHOLE, prepare, prepared);
}
