/* params.c - see params.h. */
#include "daemon/params.h"

#include <math.h>
#include <stddef.h>
#include <stdlib.h>
#include <string.h>

typedef struct field field;
struct field {
    const char *name;
    int doors; /* ds_api bits */
    ds_code (*set)(ds_params *p, const field *f, json_t *v, ds_err *err);
    size_t offset;
    int64_t min, max;
};

#define AT(p, f, type) ((type *)((char *)(p) + (f)->offset))

static ds_code wrong_type(const char *name, const char *want, ds_err *err)
{
    return ds_err_field(err, DS_EINVAL, name, "%s must be %s", name, want);
}

static ds_code get_int(const char *name, json_t *v, int64_t min, int64_t max, int64_t *ret, ds_err *err)
{
    if (!json_is_integer(v))
        return wrong_type(name, "an integer", err);
    *ret = json_integer_value(v);
    if (*ret < min || *ret > max)
        return ds_err_field(err, DS_EINVAL, name, "%s is %lld, must be in [%lld, %lld]", name,
                            (long long)*ret, (long long)min, (long long)max);
    return DS_OK;
}

static ds_code set_bool(ds_params *p, const field *f, json_t *v, ds_err *err)
{
    if (!json_is_boolean(v))
        return wrong_type(f->name, "true or false", err);
    *AT(p, f, int) = json_is_true(v);
    return DS_OK;
}

static ds_code set_pb_bool(ds_params *p, const field *f, json_t *v, ds_err *err)
{
    if (!json_is_boolean(v))
        return wrong_type(f->name, "true or false", err);
    *AT(p, f, protobuf_c_boolean) = json_is_true(v);
    return DS_OK;
}

static ds_code set_float(ds_params *p, const field *f, json_t *v, ds_err *err)
{
    if (!json_is_number(v))
        return wrong_type(f->name, "a number", err);
    *AT(p, f, float) = (float)json_number_value(v);
    return DS_OK;
}

static ds_code set_int32(ds_params *p, const field *f, json_t *v, ds_err *err)
{
    int64_t x = 0;
    DS_TRY(get_int(f->name, v, f->min, f->max, &x, err));
    *AT(p, f, int32_t) = (int32_t)x;
    return DS_OK;
}

static ds_code set_int64(ds_params *p, const field *f, json_t *v, ds_err *err)
{
    return get_int(f->name, v, f->min, f->max, AT(p, f, int64_t), err);
}

static ds_code set_seed(ds_params *p, const field *f, json_t *v, ds_err *err)
{
    int64_t x = 0;
    DS_TRY(get_int(f->name, v, INT64_MIN, INT64_MAX, &x, err));
    p->sampling.seed = (uint64_t)x;
    p->has_seed = 1;
    return DS_OK;
}

/* U+0000 is text in a prompt, but not in what is compared as a C string. */
static int is_plain(const json_t *v)
{
    return json_is_string(v) && strlen(json_string_value(v)) == json_string_length(v);
}

static ds_code set_string(ds_params *p, const field *f, json_t *v, ds_err *err)
{
    if (!is_plain(v))
        return wrong_type(f->name, "a string without U+0000", err);
    if (json_string_length(v) > (size_t)f->max)
        return ds_err_field(err, DS_EINVAL, f->name, "%s is longer than %lld bytes", f->name,
                            (long long)f->max);
    char *s = strdup(json_string_value(v));
    if (!s)
        return ds_err_set(err, DS_ENOMEM, "no memory for the request");
    *AT(p, f, char *) = s;
    return DS_OK;
}

static ds_code set_ignored(ds_params *p, const field *f, json_t *v, ds_err *err)
{
    (void)p, (void)f, (void)v, (void)err;
    return DS_OK;
}

static ds_code set_refused(ds_params *p, const field *f, json_t *v, ds_err *err)
{
    (void)p, (void)v;
    return ds_err_field(err, DS_EUNSUPPORTED, f->name, "%s is not offered by this server", f->name);
}

static ds_code add_stop(ds_params *p, json_t *v, ds_err *err)
{
    if (!is_plain(v))
        return wrong_type("stop", "a string or an array of strings, without U+0000", err);
    if (json_string_length(v) == 0 || json_string_length(v) > DS_MAX_STOP_BYTES)
        return ds_err_field(err, DS_EINVAL, "stop", "stop[%d] has %zu bytes, must be in [1, %d]", p->n_stop,
                            json_string_length(v), DS_MAX_STOP_BYTES);
    if (!(p->stop[p->n_stop] = strdup(json_string_value(v))))
        return ds_err_set(err, DS_ENOMEM, "no memory for the request");
    p->n_stop++;
    return DS_OK;
}

static ds_code set_stop(ds_params *p, const field *f, json_t *v, ds_err *err)
{
    (void)f;
    if (!json_is_array(v))
        return add_stop(p, v, err);
    if (json_array_size(v) > DS_MAX_STOP_STRINGS)
        return ds_err_field(err, DS_EINVAL, "stop", "stop has %zu strings, at most %d", json_array_size(v),
                            DS_MAX_STOP_STRINGS);
    for (size_t i = 0; i < json_array_size(v); i++)
        DS_TRY(add_stop(p, json_array_get(v, i), err));
    return DS_OK;
}

ds_code ds_params_ids(const json_t *a, const char *name, int32_t **ret, int *ret_n, ds_err *err)
{
    size_t n = json_array_size(a);
    *ret = NULL;
    *ret_n = 0;
    if (n > DS_MAX_PROMPT_TOKENS)
        return ds_err_field(err, DS_EINVAL, name, "%s has %zu token ids, at most %d", name, n,
                            DS_MAX_PROMPT_TOKENS);
    if (n == 0)
        return DS_OK;
    int32_t *ids = malloc(n * sizeof *ids);
    if (!ids)
        return ds_err_set(err, DS_ENOMEM, "no memory for the request");
    for (size_t i = 0; i < n; i++) {
        json_t *v = json_array_get(a, i);
        if (!json_is_integer(v) || json_integer_value(v) < 0 || json_integer_value(v) > INT32_MAX) {
            free(ids);
            return ds_err_field(err, DS_EINVAL, name, "%s[%zu] must be a token id", name, i);
        }
        ids[i] = (int32_t)json_integer_value(v);
    }
    *ret = ids;
    *ret_n = (int)n;
    return DS_OK;
}

static ds_code set_stop_ids(ds_params *p, const field *f, json_t *v, ds_err *err)
{
    if (!json_is_array(v))
        return wrong_type(f->name, "an array of token ids", err);
    if (json_array_size(v) > DS_MAX_STOP_TOKENS)
        return ds_err_field(err, DS_EINVAL, f->name, "%s has %zu entries, at most %d", f->name,
                            json_array_size(v), DS_MAX_STOP_TOKENS);
    int n;
    DS_TRY(ds_params_ids(v, f->name, &p->sampling.stop_token_ids, &n, err));
    p->sampling.n_stop_token_ids = (size_t)n;
    return DS_OK;
}

static ds_code set_bias(ds_params *p, const field *f, json_t *v, ds_err *err)
{
    if (!json_is_object(v))
        return wrong_type(f->name, "an object of token id to bias", err);
    size_t n = json_object_size(v), i = 0;
    if (n > DS_MAX_LOGIT_BIAS)
        return ds_err_field(err, DS_EINVAL, f->name, "%s has %zu entries, at most %d", f->name, n,
                            DS_MAX_LOGIT_BIAS);
    if (n == 0)
        return DS_OK;
    p->sampling.logit_bias_id = malloc(n * sizeof(int32_t));
    p->sampling.logit_bias = malloc(n * sizeof(float));
    if (!p->sampling.logit_bias_id || !p->sampling.logit_bias)
        return ds_err_set(err, DS_ENOMEM, "no memory for the request");
    const char *key;
    json_t *bias;
    json_object_foreach(v, key, bias)
    {
        size_t len = strlen(key);
        if (len < 1 || len > 9 || strspn(key, "0123456789") != len)
            return ds_err_field(err, DS_EINVAL, f->name, "%s has the key '%.32s', must be a token id",
                                f->name, key);
        if (!json_is_number(bias))
            return ds_err_field(err, DS_EINVAL, f->name, "%s['%s'] must be a number", f->name, key);
        if (!(fabs(json_number_value(bias)) <= DS_MAX_BIAS_ABS))
            return ds_err_field(err, DS_EINVAL, f->name, "%s['%s'] is %g, must be in [%d, %d]", f->name, key,
                                json_number_value(bias), -DS_MAX_BIAS_ABS, DS_MAX_BIAS_ABS);
        p->sampling.logit_bias_id[i] = (int32_t)strtol(key, NULL, 10);
        p->sampling.logit_bias[i++] = (float)json_number_value(bias);
    }
    p->sampling.n_logit_bias = p->sampling.n_logit_bias_id = n;
    return DS_OK;
}

/* Chat: logprobs is a switch. Completions: it is the number of alternatives. */
static ds_code set_logprobs(ds_params *p, const field *f, json_t *v, ds_err *err)
{
    if (p->api == DS_API_CHAT) {
        if (!json_is_boolean(v))
            return wrong_type(f->name, "true or false", err);
        p->chat_logprobs = json_is_true(v);
        return DS_OK;
    }
    int64_t x = 0;
    DS_TRY(get_int(f->name, v, 0, DS_MAX_TOP_LOGPROBS, &x, err));
    p->logprobs = (int)x;
    return DS_OK;
}

static ds_code set_top_logprobs(ds_params *p, const field *f, json_t *v, ds_err *err)
{
    int64_t x = 0;
    DS_TRY(get_int(f->name, v, 0, DS_MAX_TOP_LOGPROBS, &x, err));
    p->has_top_logprobs = 1;
    p->logprobs = (int)x;
    return DS_OK;
}

static ds_code set_stream_options(ds_params *p, const field *f, json_t *v, ds_err *err)
{
    if (!json_is_object(v))
        return wrong_type(f->name, "an object", err);
    p->has_stream_options = 1;
    const char *key;
    json_t *x;
    json_object_foreach(v, key, x)
    {
        if (strcmp(key, "include_usage"))
            return ds_err_field(err, DS_EINVAL, "stream_options", "unknown field stream_options.%.64s", key);
        if (!json_is_boolean(x))
            return wrong_type("stream_options.include_usage", "true or false", err);
        p->include_usage = json_is_true(x);
    }
    return DS_OK;
}

static ds_code set_template(ds_params *p, const field *f, json_t *v, ds_err *err)
{
    if (!json_is_object(v))
        return wrong_type(f->name, "an object", err);
    const char *key;
    json_t *x;
    json_object_foreach(v, key, x)
    {
        if (strcmp(key, "enable_thinking"))
            return ds_err_field(err, DS_EINVAL, f->name, "unknown field %s.%.64s", f->name, key);
        if (!json_is_boolean(x))
            return wrong_type("chat_template_kwargs.enable_thinking", "true or false", err);
        p->enable_thinking = json_is_true(x);
    }
    return DS_OK;
}

static ds_code set_speculation(ds_params *p, const field *f, json_t *v, ds_err *err)
{
    static const char *const mode[] = {"auto", "off", "max"};
    if (!json_is_object(v))
        return wrong_type(f->name, "an object", err);
    const char *key;
    json_t *x;
    json_object_foreach(v, key, x)
    {
        int64_t n = 0;
        if (!strcmp(key, "max_draft")) {
            DS_TRY(get_int("speculation.max_draft", x, 0, DS_MAX_DRAFT_TOKENS, &n, err));
            p->spec.max_draft = (uint32_t)n;
            continue;
        }
        if (strcmp(key, "mode"))
            return ds_err_field(err, DS_EINVAL, f->name, "unknown field speculation.%.64s", key);
        int m = -1;
        for (int i = 0; i < 3 && is_plain(x); i++)
            if (!strcmp(json_string_value(x), mode[i]))
                m = i;
        if (m < 0)
            return wrong_type("speculation.mode", "\"auto\", \"off\" or \"max\"", err);
        p->spec.mode = (Dspark__V1__Speculation__Mode)m;
    }
    return DS_OK;
}

static ds_code set_messages(ds_params *p, const field *f, json_t *v, ds_err *err)
{
    if (!json_is_array(v) || json_array_size(v) == 0)
        return wrong_type(f->name, "a non-empty array", err);
    if (json_array_size(v) > DS_MAX_MESSAGES)
        return ds_err_field(err, DS_EINVAL, f->name, "messages has %zu entries, at most %d",
                            json_array_size(v), DS_MAX_MESSAGES);
    p->messages = v;
    return DS_OK;
}

static ds_code set_tools(ds_params *p, const field *f, json_t *v, ds_err *err)
{
    if (!json_is_array(v))
        return wrong_type(f->name, "an array", err);
    if (json_array_size(v) > DS_MAX_TOOLS)
        return ds_err_field(err, DS_EINVAL, f->name, "tools has %zu entries, at most %d", json_array_size(v),
                            DS_MAX_TOOLS);
    p->tools = json_array_size(v) ? v : NULL;
    return DS_OK;
}

static ds_code set_tool_choice(ds_params *p, const field *f, json_t *v, ds_err *err)
{
    const char *s = is_plain(v) ? json_string_value(v) : "";
    if (strcmp(s, "none") && strcmp(s, "auto"))
        return ds_err_field(err, DS_EUNSUPPORTED, f->name,
                            "tool_choice must be \"none\" or \"auto\": forced calls need "
                            "constrained decoding, which is not offered");
    p->tool_choice_none = !strcmp(s, "none");
    return DS_OK;
}

/* Only {"type": "text"}: anything else would need constrained decoding. */
static ds_code set_response_format(ds_params *p, const field *f, json_t *v, ds_err *err)
{
    (void)p;
    const json_t *type = json_object_get(v, "type");
    if (is_plain(type) && !strcmp(json_string_value(type), "text"))
        return DS_OK;
    return ds_err_field(err, DS_EUNSUPPORTED, f->name, "response_format must be {\"type\": \"text\"}");
}

static ds_code set_modalities(ds_params *p, const field *f, json_t *v, ds_err *err)
{
    (void)p;
    const json_t *only = json_array_size(v) == 1 ? json_array_get(v, 0) : NULL;
    if (is_plain(only) && !strcmp(json_string_value(only), "text"))
        return DS_OK;
    return ds_err_field(err, DS_EUNSUPPORTED, f->name, "modalities must be [\"text\"]");
}

static ds_code set_prompt(ds_params *p, const field *f, json_t *v, ds_err *err)
{
    static const char want[] = "a string, an array of strings, of token ids, or of arrays of token ids";
    json_t *first = json_array_get(v, 0);
    if (json_is_string(v) || json_is_integer(first)) {
        p->prompt[0] = v;
        p->n_prompts = 1;
        return DS_OK;
    }
    if (!first || (!json_is_string(first) && !json_is_array(first)))
        return wrong_type(f->name, want, err);
    if (json_array_size(v) > DS_MAX_PROMPTS)
        return ds_err_field(err, DS_EINVAL, f->name, "prompt has %zu entries, at most %d", json_array_size(v),
                            DS_MAX_PROMPTS);
    for (size_t i = 0; i < json_array_size(v); i++) {
        json_t *x = json_array_get(v, i);
        if (json_typeof(x) != json_typeof(first))
            return wrong_type(f->name, want, err);
        p->prompt[p->n_prompts++] = x;
    }
    return DS_OK;
}

enum { CHAT = DS_API_CHAT, COMP = DS_API_COMPLETIONS, BOTH = CHAT | COMP };
#define SAMPLING(member) offsetof(ds_params, sampling.member)

static const field FIELDS[] = {
    {"model", BOTH, set_string, offsetof(ds_params, model), 0, DS_MAX_MODEL_BYTES},
    {"messages", CHAT, set_messages, 0, 0, 0},
    {"prompt", COMP, set_prompt, 0, 0, 0},
    {"stream", BOTH, set_bool, offsetof(ds_params, stream), 0, 0},
    {"stream_options", BOTH, set_stream_options, 0, 0, 0},
    {"max_tokens", BOTH, set_int64, offsetof(ds_params, max_tokens), 0, DS_MAX_PROMPT_TOKENS},
    {"max_completion_tokens", CHAT, set_int64, offsetof(ds_params, max_completion_tokens), 1,
     DS_MAX_PROMPT_TOKENS},
    {"min_tokens", BOTH, set_int32, SAMPLING(min_tokens), 0, DS_MAX_PROMPT_TOKENS},
    {"n", BOTH, set_int32, offsetof(ds_params, n), 1, DS_MAX_N},
    {"temperature", BOTH, set_float, SAMPLING(temperature), 0, 0},
    {"top_p", BOTH, set_float, SAMPLING(top_p), 0, 0},
    {"top_k", BOTH, set_int32, SAMPLING(top_k), -1, INT32_MAX},
    {"min_p", BOTH, set_float, SAMPLING(min_p), 0, 0},
    {"presence_penalty", BOTH, set_float, SAMPLING(presence_penalty), 0, 0},
    {"frequency_penalty", BOTH, set_float, SAMPLING(frequency_penalty), 0, 0},
    {"repetition_penalty", BOTH, set_float, SAMPLING(repetition_penalty), 0, 0},
    {"logit_bias", BOTH, set_bias, 0, 0, 0},
    {"seed", BOTH, set_seed, 0, 0, 0},
    {"stop", BOTH, set_stop, 0, 0, 0},
    {"stop_token_ids", BOTH, set_stop_ids, 0, 0, 0},
    {"ignore_eos", BOTH, set_pb_bool, SAMPLING(ignore_eos), 0, 0},
    {"logprobs", BOTH, set_logprobs, 0, 0, 0},
    {"top_logprobs", CHAT, set_top_logprobs, 0, 0, 0},
    {"echo", COMP, set_bool, offsetof(ds_params, echo), 0, 0},
    {"return_token_ids", BOTH, set_bool, offsetof(ds_params, return_token_ids), 0, 0},
    {"return_speculation", BOTH, set_bool, offsetof(ds_params, return_speculation), 0, 0},
    {"user", BOTH, set_string, offsetof(ds_params, user), 0, DS_MAX_USER_BYTES},
    {"priority", BOTH, set_int32, offsetof(ds_params, priority), INT32_MIN, INT32_MAX},
    {"speculation", BOTH, set_speculation, 0, 0, 0},
    {"chat_template_kwargs", CHAT, set_template, 0, 0, 0},
    {"tools", CHAT, set_tools, 0, 0, 0},
    {"tool_choice", CHAT, set_tool_choice, 0, 0, 0},
    {"response_format", CHAT, set_response_format, 0, 0, 0},
    {"modalities", CHAT, set_modalities, 0, 0, 0},
    /* OpenAI fields that change nothing here */
    {"store", CHAT, set_ignored, 0, 0, 0},
    {"metadata", CHAT, set_ignored, 0, 0, 0},
    {"service_tier", BOTH, set_ignored, 0, 0, 0},
    {"parallel_tool_calls", CHAT, set_ignored, 0, 0, 0},
    {"prompt_cache_key", BOTH, set_ignored, 0, 0, 0},
    {"prompt_cache_retention", BOTH, set_ignored, 0, 0, 0},
    {"safety_identifier", BOTH, set_ignored, 0, 0, 0},
    /* OpenAI fields whose absence would be noticed */
    {"best_of", COMP, set_refused, 0, 0, 0},
    {"suffix", COMP, set_refused, 0, 0, 0},
    {"functions", CHAT, set_refused, 0, 0, 0},
    {"function_call", CHAT, set_refused, 0, 0, 0},
    {"audio", CHAT, set_refused, 0, 0, 0},
    {"prediction", CHAT, set_refused, 0, 0, 0},
    {"reasoning_effort", CHAT, set_refused, 0, 0, 0},
    {"verbosity", CHAT, set_refused, 0, 0, 0},
    {"web_search_options", CHAT, set_refused, 0, 0, 0},
};

/* Depth and number of values, before a tree is built. Strings are skipped; the loader judges the rest. */
static ds_code prescan(const char *s, size_t len, ds_err *err)
{
    int depth = 0;
    size_t values = 0;
    for (size_t i = 0; i < len; i++) {
        switch (s[i]) {
        case '"':
            for (i++; i < len && s[i] != '"'; i++)
                i += s[i] == '\\';
            break;
        case '[':
        case '{':
            if (++depth > DS_MAX_JSON_DEPTH)
                return ds_err_set(err, DS_EINVAL, "the JSON body is nested deeper than %d",
                                  DS_MAX_JSON_DEPTH);
            values++;
            break;
        case ']':
        case '}':
            depth--;
            break;
        case ',':
            values++;
            break;
        }
    }
    if (values > DS_MAX_JSON_VALUES)
        return ds_err_set(err, DS_EINVAL, "the JSON body holds more than %d values", DS_MAX_JSON_VALUES);
    return DS_OK;
}

/* The member a number at byte `at` belongs to: the last string before it that a colon follows. */
static void member_before(const char *s, size_t at, char ret_name[64])
{
    size_t colon = at;
    while (colon && s[colon] != ':')
        colon--;
    size_t end = colon;
    while (end && s[end] != '"')
        end--;
    size_t start = end;
    while (start && s[start - 1] != '"')
        start--;
    size_t n = 0;
    for (; start < end && n < 63; start++)
        if (s[start] == '_' || (s[start] >= 'a' && s[start] <= 'z'))
            ret_name[n++] = s[start];
        else
            break;
    ret_name[start == end ? n : 0] = 0;
}

ds_code ds_json_load(const char *body, size_t len, json_t **ret, ds_err *err)
{
    DS_TRY(prescan(body, len, err));
    json_error_t e;
    *ret = json_loadb(body, len, JSON_REJECT_DUPLICATES | JSON_ALLOW_NUL, &e);
    if (!*ret && json_error_code(&e) == json_error_numeric_overflow && (size_t)e.position <= len) {
        char name[64];
        member_before(body, (size_t)e.position ? (size_t)e.position - 1 : 0, name);
        return ds_err_field(err, DS_EINVAL, name,
                            "%s%sa number in the JSON body is out of the range of 64 bits", name,
                            name[0] ? ": " : "");
    }
    if (!*ret)
        return ds_err_set(err, DS_EINVAL, "the body is not valid JSON: %.160s (byte %d)", e.text, e.position);
    if (!json_is_object(*ret)) {
        json_decref(*ret);
        return ds_err_set(err, DS_EINVAL, "the JSON body must be an object");
    }
    return DS_OK;
}

static ds_code set_field(ds_params *p, const char *key, json_t *v, ds_err *err)
{
    for (size_t i = 0; i < sizeof FIELDS / sizeof *FIELDS; i++)
        if ((FIELDS[i].doors & p->api) && !strcmp(key, FIELDS[i].name))
            return json_is_null(v) ? DS_OK : FIELDS[i].set(p, &FIELDS[i], v, err);
    char name[64];
    snprintf(name, sizeof name, "%.63s", key);
    return ds_err_field(err, DS_EINVAL, name, "unknown field %s", name);
}

/* What only shows when all fields are known. */
static ds_code settle(ds_params *p, ds_err *err)
{
    if (p->api == DS_API_CHAT && !p->messages)
        return ds_err_field(err, DS_EINVAL, "messages", "messages is missing");
    if (p->api == DS_API_COMPLETIONS && !p->n_prompts)
        return ds_err_field(err, DS_EINVAL, "prompt", "prompt is missing");
    if (p->n * (p->n_prompts ? p->n_prompts : 1) > DS_MAX_CHOICES)
        return ds_err_field(err, DS_EINVAL, "n", "n times the number of prompts is %d, at most %d",
                            p->n * p->n_prompts, DS_MAX_CHOICES);
    if (p->has_stream_options && !p->stream)
        return ds_err_field(err, DS_EINVAL, "stream_options", "stream_options needs stream: true");
    if (p->max_completion_tokens >= 0) {
        if (p->max_tokens >= 0 && p->max_tokens != p->max_completion_tokens)
            return ds_err_field(err, DS_EINVAL, "max_completion_tokens",
                                "max_tokens and max_completion_tokens differ");
        p->max_tokens = p->max_completion_tokens;
    }
    if (p->max_tokens == 0 && !p->echo)
        return ds_err_field(err, DS_EINVAL, "max_tokens",
                            "max_tokens is 0, must be at least 1 unless echo is true");
    p->score_only = p->max_tokens == 0;
    if (p->max_tokens < 0 && p->api == DS_API_COMPLETIONS)
        p->max_tokens = 16; /* OpenAI's default */
    if (p->api == DS_API_CHAT) {
        if (p->has_top_logprobs && !p->chat_logprobs)
            return ds_err_field(err, DS_EINVAL, "top_logprobs", "top_logprobs needs logprobs: true");
        if (p->chat_logprobs && !p->has_top_logprobs)
            p->logprobs = 0;
    }
    if (p->sampling.top_k < 0)
        p->sampling.top_k = 0;
    if (p->tool_choice_none)
        p->tools = NULL;
    p->sampling.logprobs = p->logprobs;
    p->sampling.prompt_logprobs = p->echo ? p->logprobs : -1;
    return DS_OK;
}

ds_code ds_params_parse(ds_api api, const char *body, size_t len, ds_params *p, ds_err *err)
{
    memset(p, 0, sizeof *p);
    p->api = api;
    p->n = 1;
    p->max_tokens = p->max_completion_tokens = p->logprobs = p->enable_thinking = -1;
    dspark__v1__sampling__init(&p->sampling);
    dspark__v1__speculation__init(&p->spec);
    p->sampling.temperature = p->sampling.top_p = p->sampling.repetition_penalty = 1;
    ds_code code = ds_json_load(body, len, &p->root, err);
    if (code) {
        p->root = NULL;
        return code;
    }
    const char *key;
    json_t *v;
    json_object_foreach(p->root, key, v)
    {
        code = set_field(p, key, v, err);
        if (code)
            break;
    }
    if (code == DS_OK)
        code = settle(p, err);
    if (code)
        ds_params_free(p);
    return code;
}

void ds_params_free(ds_params *p)
{
    json_decref(p->root);
    free(p->model);
    free(p->user);
    for (int i = 0; i < p->n_stop; i++)
        free(p->stop[i]);
    free(p->sampling.stop_token_ids);
    free(p->sampling.logit_bias_id);
    free(p->sampling.logit_bias);
    memset(p, 0, sizeof *p);
}
