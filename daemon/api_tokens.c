/* api_tokens.c - POST /tokenize {"prompt": TEXT} or {"messages": [..]} and POST /detokenize {"tokens": [..]}.
 */
#include "daemon/answer.h"
#include "daemon/api.h"
#include "daemon/json_out.h"

#include <string.h>

typedef struct args {
    json_t *root, *prompt, *messages, *tokens;
    int add_special;
} args;

/* Fields both paths know; model is checked on the loop, like everywhere. */
static ds_code parse(ds_request *r, int detokenize, args *a, ds_err *err)
{
    *a = (args){.add_special = 1};
    DS_TRY(ds_json_load(r->body.data ? r->body.data : "", r->body.len, &a->root, err));
    r->params.root = a->root; /* freed with the request */
    const char *key;
    json_t *v;
    json_object_foreach(a->root, key, v)
    {
        if (!strcmp(key, "model") && json_is_string(v)) {
            if (strlen(r->d->model) != json_string_length(v) || strcmp(json_string_value(v), r->d->model))
                return ds_err_field(err, DS_ENOTFOUND, "model", "model '%.128s' is not served here",
                                    json_string_value(v));
        } else if (!detokenize && !strcmp(key, "prompt") && json_is_string(v)) {
            a->prompt = v;
        } else if (!detokenize && !strcmp(key, "messages") && json_is_array(v)) {
            a->messages = v;
        } else if (!detokenize && !strcmp(key, "add_special_tokens") && json_is_boolean(v)) {
            a->add_special = json_is_true(v);
        } else if (detokenize && !strcmp(key, "tokens") && json_is_array(v)) {
            a->tokens = v;
        } else {
            char name[64];
            snprintf(name, sizeof name, "%.63s", key);
            return ds_err_field(err, DS_EINVAL, name, "field %s is unknown here or has the wrong type", name);
        }
    }
    if (detokenize && !a->tokens)
        return ds_err_field(err, DS_EINVAL, "tokens", "tokens is missing");
    if (!detokenize && !a->prompt == !a->messages)
        return ds_err_field(err, DS_EINVAL, "prompt", "exactly one of prompt and messages is needed");
    return DS_OK;
}

static ds_code tokenize(ds_request *r, ds_err *err)
{
    args a;
    DS_TRY(parse(r, 0, &a, err));
    r->n_prompts = 1;
    ds_code code;
    if (a.prompt) {
        code = ds_request_encode(r, 0, json_string_value(a.prompt), json_string_length(a.prompt),
                                 a.add_special, err);
        if (code && !strcmp(err->field, "prompt_ids"))
            snprintf(err->field, sizeof err->field, "prompt");
    } else {
        if (r->d->chat == DS_CHAT_NONE)
            return ds_err_field(err, DS_EUNSUPPORTED, "messages", "%s", r->d->chat_error);
        ds_chat_opts opts = {.add_generation_prompt = 1, .enable_thinking = -1};
        ds_buf text = {.max = DS_MAX_HTTP_BODY_BYTES * 2};
        code = ds_chat_render(r->d->chat, a.messages, NULL, &opts, &text, err);
        if (code == DS_OK)
            code = ds_request_encode(r, 0, text.data ? text.data : "", text.len, 0, err);
        ds_buf_free(&text);
    }
    DS_TRY(code);
    ds_buf *out = &r->reply;
    code = ds_buf_printf(out, "{\"count\":%d,\"tokens\":", r->prompt[0].n);
    if (code == DS_OK)
        code = ds_json_ids(out, r->prompt[0].ids, r->prompt[0].n);
    if (code == DS_OK)
        code = ds_buf_puts(out, "}");
    return code ? ds_err_set(err, code, "no memory for the answer") : DS_OK;
}

static ds_code detokenize(ds_request *r, ds_err *err)
{
    args a;
    DS_TRY(parse(r, 1, &a, err));
    r->n_prompts = 1;
    DS_TRY(ds_params_ids(a.tokens, "tokens", &r->prompt[0].ids, &r->prompt[0].n, err));
    if (!r->d->tok)
        return ds_err_field(err, DS_EUNSUPPORTED, "tokens", "this model has no tokenizer");
    ds_buf *text = &r->prompt[0].echo, *out = &r->reply;
    DS_TRY(ds_text_decode(r->d->tok, r->prompt[0].ids, r->prompt[0].n, text, err));
    ds_code code = ds_buf_puts(out, "{\"prompt\":");
    if (code == DS_OK)
        code = ds_json_str(out, text->data, text->len);
    if (code == DS_OK)
        code = ds_buf_puts(out, "}");
    return code ? ds_err_set(err, code, "no memory for the answer") : DS_OK;
}

static void tokenize_fail(ds_request *r, const ds_err *err)
{
    ds_answer_fail(r, "/tokenize", err);
}

static void detokenize_fail(ds_request *r, const ds_err *err)
{
    ds_answer_fail(r, "/detokenize", err);
}

static const ds_sink TOKENIZE = {.fail = tokenize_fail};
static const ds_sink DETOKENIZE = {.fail = detokenize_fail};

/* On the loop, which owns the capabilities: a padded vocabulary has ids without text, beyond it are none. */
static ds_code check_ids(const ds_request *r, ds_err *err)
{
    const ds_pb_caps *caps = ds_links_caps(r->d->links);
    int size = ds_tokenizer_size(r->d->tok);
    if (caps && caps->vocab > (uint32_t)size)
        size = (int)caps->vocab;
    for (int i = 0; i < r->prompt[0].n; i++)
        if (r->prompt[0].ids[i] >= size)
            return ds_err_field(err, DS_EINVAL, "tokens", "tokens[%d] is %d, must be in [0, %d]", i,
                                r->prompt[0].ids[i], size - 1);
    return DS_OK;
}

static void answer(ds_request *r)
{
    ds_err err = {0};
    if (r->sink == &DETOKENIZE && check_ids(r, &err)) {
        ds_request_fail(r, &err);
        return;
    }
    ds_answer_json(r, r->sink == &TOKENIZE ? "/tokenize" : "/detokenize", &r->reply);
    ds_request_end(r);
}

void ds_api_tokenize(ds_daemon *d, ds_hconn *c, ds_http_reader *msg)
{
    ds_api_start(d, c, msg, "tok", &TOKENIZE, tokenize, answer);
}

void ds_api_detokenize(ds_daemon *d, ds_hconn *c, ds_http_reader *msg)
{
    ds_api_start(d, c, msg, "tok", &DETOKENIZE, detokenize, answer);
}
