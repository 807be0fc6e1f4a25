/* answer.c - see answer.h. */
#include "daemon/answer.h"
#include "daemon/json_out.h"

#include "proto/status.h"

#include <string.h>

static ds_code error_body(ds_buf *out, const char *message, const char *type, const char *param,
                          const char *code)
{
    DS_TRY(ds_buf_puts(out, "{\"error\":{\"message\":"));
    DS_TRY(ds_json_str(out, message, strlen(message)));
    DS_TRY(ds_buf_printf(out, ",\"type\":\"%s\",\"param\":", type));
    if (param[0])
        DS_TRY(ds_json_str(out, param, strlen(param)));
    else
        DS_TRY(ds_buf_puts(out, "null"));
    return ds_buf_printf(out, ",\"code\":\"%s\"}}", code);
}

static ds_code error_of(ds_buf *out, const ds_err *err)
{
    const ds_status *s = ds_status_of(err->code);
    const char *code = s->reason;
    if (err->code == DS_ENOTFOUND && !strcmp(err->field, "model"))
        code = "model_not_found";
    else if (err->code == DS_EINVAL && strstr(err->msg, " positions"))
        code = "context_length_exceeded";
    else if (err->code == DS_EINVAL && !strncmp(err->msg, "unknown field", 13))
        code = "unknown_parameter";
    return error_body(out, err->msg, s->type, err->field, code);
}

void ds_answer_error(ds_daemon *d, ds_hconn *c, const char *path, const ds_err *err)
{
    const ds_status *s = ds_status_of(err->code);
    char extra[64] = "";
    if (s->retry_after_ms)
        snprintf(extra, sizeof extra, "Retry-After: %d\r\n", (s->retry_after_ms + 999) / 1000);
    ds_buf *out = &d->scratch;
    ds_buf_clear(out);
    ds_code code = error_of(out, err);
    ds_metrics_http(d, path, s->http);
    ds_hconn_reply(c, s->http, "application/json", extra, code ? "" : out->data, code ? 0 : out->len);
}

void ds_answer_status(ds_daemon *d, ds_hconn *c, const char *path, int status, const char *code,
                      const char *extra, const char *message)
{
    ds_buf *out = &d->scratch;
    ds_buf_clear(out);
    ds_code failed =
        error_body(out, message, status < 500 ? "invalid_request_error" : "server_error", "", code);
    ds_metrics_http(d, path, status);
    ds_hconn_reply(c, status, "application/json", extra, failed ? "" : out->data, failed ? 0 : out->len);
}

void ds_answer_json(ds_request *r, const char *path, const ds_buf *body)
{
    char extra[80];
    snprintf(extra, sizeof extra, "X-Request-Id: %s\r\n", r->id);
    ds_metrics_http(r->d, path, 200);
    if (r->peer)
        ds_hconn_reply(r->peer, 200, "application/json", extra, body->data, body->len);
}

void ds_answer_fail(ds_request *r, const char *path, const ds_err *err)
{
    if (!r->peer)
        return;
    if (!r->streaming) {
        ds_answer_error(r->d, r->peer, path, err);
        return;
    }
    ds_buf *out = &r->d->scratch;
    ds_buf_clear(out);
    ds_code code = ds_buf_puts(out, "data: ");
    if (code == DS_OK)
        code = error_of(out, err);
    if (code == DS_OK)
        code = ds_buf_puts(out, "\n\n");
    ds_sse_send(r, out, code);
    ds_hconn_finish(r->peer);
}

ds_code ds_answer_usage(const ds_request *r, ds_buf *out)
{
    int64_t prompt = 0, output = 0, cached = 0, accepted = 0, rejected = 0;
    for (int i = 0; i < r->n_prompts; i++)
        prompt += r->prompt[i].n;
    for (int i = 0; i < r->n_choices; i++) {
        const ds_choice *c = &r->choices[i];
        output += r->params.score_only ? 0 : c->n_out;
        cached += i % r->params.n ? 0 : c->cached; /* of the prompt, counted once like the prompt itself */
        accepted += c->accepted;
        rejected += c->rejected;
    }
    return ds_buf_printf(out,
                         "\"usage\":{\"prompt_tokens\":%lld,\"completion_tokens\":%lld,\"total_tokens\":%lld,"
                         "\"prompt_tokens_details\":{\"cached_tokens\":%lld},\"completion_tokens_details\":"
                         "{\"accepted_prediction_tokens\":%lld,\"rejected_prediction_tokens\":%lld}}",
                         (long long)prompt, (long long)output, (long long)(prompt + output),
                         (long long)cached, (long long)accepted, (long long)rejected);
}

const char *ds_answer_finish(const ds_choice *c)
{
    if (c->n_calls && c->finish == FINISH_STOP)
        return "tool_calls";
    return c->finish == FINISH_STOP ? "stop" : "length";
}

ds_code ds_answer_head(const ds_request *r, const char *object, ds_buf *out)
{
    DS_TRY(ds_buf_printf(out, "{\"id\":\"%s\",\"object\":\"%s\",\"created\":%lld,\"model\":", r->id, object,
                         (long long)r->created));
    DS_TRY(ds_json_str(out, r->d->model, strlen(r->d->model)));
    return ds_buf_printf(out, ",\"system_fingerprint\":\"%s\",", r->d->fingerprint);
}

ds_code ds_sse_head(ds_request *r, const char *object)
{
    if (r->streaming)
        return DS_OK;
    r->streaming = 1;
    ds_hconn_stream(r->peer, 200, "text/event-stream; charset=utf-8");
    DS_TRY(ds_buf_puts(&r->prefix, "data: "));
    return ds_answer_head(r, object, &r->prefix);
}

ds_code ds_sse_begin(ds_choice *c, ds_buf *out)
{
    const ds_buf *prefix = &c->req->prefix;
    ds_buf_clear(out);
    DS_TRY(ds_buf_append(out, prefix->data, prefix->len));
    DS_TRY(ds_buf_append(out, "\"choices\":[{\"index\":", 20));
    DS_TRY(ds_json_int(out, c->index));
    return ds_buf_append(out, ",", 1);
}

ds_code ds_sse_finish(ds_choice *c, ds_buf *out, int ended)
{
    if (ended)
        DS_TRY(ds_buf_printf(out, ",\"finish_reason\":\"%s\"}]", ds_answer_finish(c)));
    else
        DS_TRY(ds_buf_puts(out, ",\"finish_reason\":null}]"));
    return ds_buf_puts(out, c->req->params.include_usage ? ",\"usage\":null}\n\n" : "}\n\n");
}

void ds_sse_send(ds_request *r, ds_buf *out, ds_code code)
{
    if (!r->peer)
        return;
    ds_metric_add(r->d->m.events, 1);
    if (code)
        ds_hconn_fail(r->peer);
    else
        ds_hconn_send(r->peer, out->data, out->len);
}

void ds_sse_end(ds_request *r, const char *object, const char *path)
{
    ds_buf *out = &r->d->scratch;
    ds_buf_clear(out);
    ds_code code = ds_sse_head(r, object);
    if (r->params.include_usage && code == DS_OK) {
        code = ds_buf_append(out, r->prefix.data, r->prefix.len);
        if (code == DS_OK)
            code = ds_buf_puts(out, "\"choices\":[],");
        if (code == DS_OK)
            code = ds_answer_usage(r, out);
        if (code == DS_OK)
            code = ds_buf_puts(out, "}\n\n");
    }
    if (code == DS_OK)
        code = ds_buf_puts(out, "data: [DONE]\n\n");
    ds_metrics_http(r->d, path, 200);
    ds_sse_send(r, out, code);
    if (r->peer)
        ds_hconn_finish(r->peer);
}

/* Where each token came from, as three lists. */
static ds_code put_origins(ds_buf *out, const ds_origin *o, int n)
{
    static const char *const SOURCES[] = {"plain", "accepted", "corrected", "bonus"};
    DS_TRY(ds_buf_puts(out, ",\"provenance\":{\"source\":["));
    for (int i = 0; i < n; i++)
        DS_TRY(ds_buf_printf(out, "%s\"%s\"", i ? "," : "", SOURCES[o[i].source & 3]));
    DS_TRY(ds_buf_puts(out, "],\"slot\":["));
    for (int i = 0; i < n; i++)
        DS_TRY(ds_buf_printf(out, "%s%d", i ? "," : "", o[i].slot));
    DS_TRY(ds_buf_puts(out, "],\"confidence\":["));
    for (int i = 0; i < n; i++)
        DS_TRY(ds_buf_printf(out, "%s%.4f", i ? "," : "", (double)o[i].confidence));
    return ds_buf_puts(out, "]}");
}

ds_code ds_answer_ids(ds_choice *c, ds_buf *out, int from, int with_prompt)
{
    const ds_prompt *p = &c->req->prompt[c->prompt];
    int n = c->req->params.score_only ? 0 : c->n_out - from;
    if (c->req->params.return_speculation) {
        DS_TRY(ds_buf_puts(out, ",\"accepted_draft\":["));
        for (int i = 0; i < n; i++)
            DS_TRY(ds_buf_puts(out, &(c->origin[from + i].drafted ? ",1" : ",0")[i == 0]));
        DS_TRY(ds_buf_append(out, "]", 1));
        DS_TRY(put_origins(out, c->origin + from, n));
    }
    if (!c->req->params.return_token_ids)
        return DS_OK;
    if (with_prompt) {
        DS_TRY(ds_buf_puts(out, ",\"prompt_token_ids\":"));
        DS_TRY(ds_json_ids(out, p->ids, p->n));
    }
    DS_TRY(ds_buf_puts(out, ",\"token_ids\":"));
    return ds_json_ids(out, c->out + from, n);
}
