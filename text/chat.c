/* chat.c - the Qwen3 chat format, rendered as its published template does (golden: tests/golden/chat).
 * Messages come from a request body and are hostile: every field is checked and an error names it by path.
 * Pure. */
#include "text/chat.h"

#include "base/limits.h"
#include "text/pyjson.h"

#include <stdio.h>
#include <string.h>

typedef struct {
    const char *p;
    size_t len;
} view;

typedef enum { ROLE_SYSTEM, ROLE_USER, ROLE_ASSISTANT, ROLE_TOOL } chat_role;

typedef struct {
    const json_t *messages;
    ds_buf *out;
    ds_err *err;
    ds_buf flat; /* content given as an array of text parts, joined */
} render;

static int starts_with(view v, const char *s)
{
    size_t n = strlen(s);
    return v.len >= n && memcmp(v.p, s, n) == 0;
}

static int ends_with(view v, const char *s)
{
    size_t n = strlen(s);
    return v.len >= n && memcmp(v.p + v.len - n, s, n) == 0;
}

static view lstrip(view v)
{
    while (v.len && *v.p == '\n') {
        v.p++;
        v.len--;
    }
    return v;
}

static view rstrip(view v)
{
    while (v.len && v.p[v.len - 1] == '\n')
        v.len--;
    return v;
}

static const char *find_last(view v, const char *s)
{
    const char *last = NULL, *at = v.p, *end = v.p + v.len;
    size_t n = strlen(s);
    while (at < end && (at = memmem(at, (size_t)(end - at), s, n))) {
        last = at;
        at += n;
    }
    return last;
}

static ds_code put(render *r, const char *s)
{
    return ds_buf_puts(r->out, s);
}

static ds_code put_view(render *r, view v)
{
    return ds_buf_append(r->out, v.p, v.len);
}

static ds_code bad(const render *r, ds_code code, size_t i, const char *rest, const char *what)
{
    char field[64];
    snprintf(field, sizeof field, "messages[%u]%.43s", (unsigned)i, rest);
    return ds_err_field(r->err, code, field, "%s %s", field, what);
}

static ds_code read_role(const render *r, size_t i, chat_role *ret)
{
    static const struct {
        const char *name;
        chat_role role;
    } known[] = {{"system", ROLE_SYSTEM},
                 {"developer", ROLE_SYSTEM}, /* OpenAI's newer name for it */
                 {"user", ROLE_USER},
                 {"assistant", ROLE_ASSISTANT},
                 {"tool", ROLE_TOOL}};
    const json_t *m = json_array_get(r->messages, i);
    if (!json_is_object(m))
        return bad(r, DS_EINVAL, i, "", "must be an object");
    const json_t *said = json_object_get(m, "role");
    const char *name = json_string_value(said);
    for (size_t k = 0; name && k < sizeof known / sizeof *known; k++)
        if (strlen(known[k].name) == json_string_length(said) && strcmp(name, known[k].name) == 0) {
            *ret = known[k].role;
            return DS_OK;
        }
    return bad(r, DS_EINVAL, i, ".role", "must be one of system, developer, user, assistant, tool");
}

/* Text parts are joined by a newline; anything but text is refused by its place. */
static ds_code flatten(render *r, size_t i, const json_t *parts, view *ret)
{
    ds_buf_clear(&r->flat);
    for (size_t k = 0; k < json_array_size(parts); k++) {
        const json_t *part = json_array_get(parts, k), *text = json_object_get(part, "text");
        const char *type = json_string_value(json_object_get(part, "type"));
        char rest[44];
        snprintf(rest, sizeof rest, ".content[%u].type", (unsigned)k);
        if (!type)
            return bad(r, DS_EINVAL, i, rest, "must be a string");
        if (strcmp(type, "text") != 0)
            return bad(r, DS_EUNSUPPORTED, i, rest, "must be \"text\"; this model takes no other input");
        snprintf(rest, sizeof rest, ".content[%u].text", (unsigned)k);
        if (!json_is_string(text))
            return bad(r, DS_EINVAL, i, rest, "must be a string");
        if (k)
            DS_TRY(ds_buf_puts(&r->flat, "\n"));
        DS_TRY(ds_buf_append(&r->flat, json_string_value(text), json_string_length(text)));
    }
    *ret = (view){r->flat.data ? r->flat.data : "", r->flat.len};
    return DS_OK;
}

/* A missing or null content is empty, which only an assistant that calls tools may leave so. */
static ds_code read_content(render *r, size_t i, chat_role role, view *ret)
{
    const json_t *m = json_array_get(r->messages, i), *c = json_object_get(m, "content");
    *ret = (view){"", 0};
    if (json_is_string(c)) {
        *ret = (view){json_string_value(c), json_string_length(c)};
        return DS_OK;
    }
    if (json_is_array(c))
        return flatten(r, i, c, ret);
    if ((!c || json_is_null(c)) && role == ROLE_ASSISTANT)
        return DS_OK;
    return bad(r, DS_EINVAL, i, ".content", "must be a string or an array of text parts");
}

/* The last user message that is not a wrapped tool response; without one, the last message. */
static ds_code find_last_query(render *r, size_t n, size_t *ret)
{
    *ret = n - 1;
    for (size_t i = n; i-- > 0;) {
        chat_role role;
        view content;
        DS_TRY(read_role(r, i, &role));
        if (role != ROLE_USER)
            continue;
        DS_TRY(read_content(r, i, role, &content));
        if (starts_with(content, "<tool_response>") && ends_with(content, "</tool_response>"))
            continue;
        *ret = i;
        return DS_OK;
    }
    return DS_OK;
}

static ds_code put_message(render *r, const char *role, view content)
{
    DS_TRY(put(r, "<|im_start|>"));
    DS_TRY(put(r, role));
    DS_TRY(put(r, "\n"));
    DS_TRY(put_view(r, content));
    return put(r, "<|im_end|>\n");
}

static ds_code put_tools(render *r, const json_t *tools, view system)
{
    DS_TRY(put(r, "<|im_start|>system\n"));
    if (system.p) {
        DS_TRY(put_view(r, system));
        DS_TRY(put(r, "\n\n"));
    }
    DS_TRY(put(r, "# Tools\n\nYou may call one or more functions to assist with the user query.\n\n"
                  "You are provided with function signatures within <tools></tools> XML tags:\n<tools>"));
    for (size_t i = 0; i < json_array_size(tools); i++) {
        DS_TRY(put(r, "\n"));
        ds_code code = json_is_object(json_array_get(tools, i))
                           ? ds_pyjson_dump(json_array_get(tools, i), r->out)
                           : DS_EINVAL;
        if (code == DS_EINVAL) {
            char field[64];
            snprintf(field, sizeof field, "tools[%zu]", i);
            return ds_err_field(r->err, code, field, "%s must be an object of at most %d levels", field,
                                DS_MAX_JSON_DEPTH);
        }
        DS_TRY(code);
    }
    return put(r,
               "\n</tools>\n\nFor each function call, return a json object with function name and arguments "
               "within <tool_call></tool_call> XML tags:\n<tool_call>\n{\"name\": <function-name>, "
               "\"arguments\": <args-json-object>}\n</tool_call><|im_end|>\n");
}

static ds_code put_tool_call(render *r, size_t i, size_t k, const json_t *call)
{
    char rest[44];
    const json_t *fn = json_object_get(call, "function");
    if (!json_is_object(fn) || !json_object_size(fn))
        fn = call;
    const json_t *name = json_object_get(fn, "name"), *args = json_object_get(fn, "arguments");
    snprintf(rest, sizeof rest, ".tool_calls[%u].function.name", (unsigned)k);
    if (!json_is_string(name))
        return bad(r, DS_EINVAL, i, rest, "must be a string");
    DS_TRY(put(r, "<tool_call>\n{\"name\": \""));
    DS_TRY(put_view(r, (view){json_string_value(name), json_string_length(name)}));
    DS_TRY(put(r, "\", \"arguments\": "));
    snprintf(rest, sizeof rest, ".tool_calls[%u].function.arguments", (unsigned)k);
    ds_code code = json_is_object(args) ? ds_pyjson_dump(args, r->out) : DS_EINVAL;
    if (json_is_string(args))
        code = put_view(r, (view){json_string_value(args), json_string_length(args)});
    if (code == DS_EINVAL)
        return bad(r, code, i, rest, "must be a string, or an object of bounded depth");
    DS_TRY(code);
    return put(r, "}\n</tool_call>");
}

static ds_code put_tool_calls(render *r, size_t i, int has_content)
{
    const json_t *calls = json_object_get(json_array_get(r->messages, i), "tool_calls");
    if (!calls || json_is_null(calls))
        return DS_OK;
    if (!json_is_array(calls))
        return bad(r, DS_EINVAL, i, ".tool_calls", "must be an array");
    for (size_t k = 0; k < json_array_size(calls); k++) {
        if (k || has_content)
            DS_TRY(put(r, "\n"));
        DS_TRY(put_tool_call(r, i, k, json_array_get(calls, k)));
    }
    return DS_OK;
}

/* Reasoning from its own field, else from a <think> span in the content, which is then taken out of it. */
static view split_reasoning(const json_t *message, view *content)
{
    const json_t *given = json_object_get(message, "reasoning_content");
    if (json_is_string(given))
        return (view){json_string_value(given), json_string_length(given)};
    const char *close = content->len ? memmem(content->p, content->len, "</think>", 8) : NULL;
    if (!close)
        return (view){"", 0};
    view reasoning = rstrip((view){content->p, (size_t)(close - content->p)});
    const char *open = find_last(reasoning, "<think>");
    if (open)
        reasoning = (view){open + 7, (size_t)(reasoning.p + reasoning.len - open) - 7};
    const char *last = find_last(*content, "</think>") + 8;
    *content = lstrip((view){last, (size_t)(content->p + content->len - last)});
    return lstrip(reasoning);
}

static ds_code put_assistant(render *r, size_t i, int after_query, int is_last, view content)
{
    view reasoning = split_reasoning(json_array_get(r->messages, i), &content);
    DS_TRY(put(r, "<|im_start|>assistant\n"));
    if (after_query && (is_last || reasoning.len)) {
        DS_TRY(put(r, "<think>\n"));
        DS_TRY(put_view(r, rstrip(lstrip(reasoning))));
        DS_TRY(put(r, "\n</think>\n\n"));
        DS_TRY(put_view(r, lstrip(content)));
    } else {
        DS_TRY(put_view(r, content));
    }
    DS_TRY(put_tool_calls(r, i, content.len > 0));
    return put(r, "<|im_end|>\n");
}

static int is_tool(const render *r, size_t i)
{
    const char *name = json_string_value(json_object_get(json_array_get(r->messages, i), "role"));
    return name && strcmp(name, "tool") == 0;
}

static ds_code put_one(render *r, size_t i, size_t n, size_t last_query)
{
    chat_role role;
    view content;
    DS_TRY(read_role(r, i, &role));
    DS_TRY(read_content(r, i, role, &content));
    switch (role) {
    case ROLE_SYSTEM: /* the first one stands in the head */
        return i ? put_message(r, "system", content) : DS_OK;
    case ROLE_USER:
        return put_message(r, "user", content);
    case ROLE_ASSISTANT:
        return put_assistant(r, i, i > last_query, i + 1 == n, content);
    default:
        break;
    }
    if (i == 0 || !is_tool(r, i - 1))
        DS_TRY(put(r, "<|im_start|>user"));
    DS_TRY(put(r, "\n<tool_response>\n"));
    DS_TRY(put_view(r, content));
    DS_TRY(put(r, "\n</tool_response>"));
    return i + 1 == n || !is_tool(r, i + 1) ? put(r, "<|im_end|>\n") : DS_OK;
}

static ds_code put_all(render *r, const json_t *tools, const ds_chat_opts *opts)
{
    size_t n = json_array_size(r->messages), last_query;
    view system = {0};
    chat_role first;
    DS_TRY(read_role(r, 0, &first));
    if (first == ROLE_SYSTEM)
        DS_TRY(read_content(r, 0, first, &system));
    if (json_array_size(tools))
        DS_TRY(put_tools(r, tools, system));
    else if (system.p)
        DS_TRY(put_message(r, "system", system));
    DS_TRY(find_last_query(r, n, &last_query));
    for (size_t i = 0; i < n; i++)
        DS_TRY(put_one(r, i, n, last_query));
    if (opts->add_generation_prompt)
        DS_TRY(put(r, "<|im_start|>assistant\n"));
    return opts->add_generation_prompt && opts->enable_thinking == 0 ? put(r, "<think>\n\n</think>\n\n")
                                                                     : DS_OK;
}

ds_code ds_chat_render(ds_chat_kind kind, const json_t *messages, const json_t *tools,
                       const ds_chat_opts *opts, ds_buf *out, ds_err *err)
{
    if (kind != DS_CHAT_QWEN3)
        return ds_err_field(err, DS_EUNSUPPORTED, "messages",
                            "this model has no chat template that is supported");
    if (!json_is_array(messages) || !json_array_size(messages))
        return ds_err_field(err, DS_EINVAL, "messages", "messages must be a non-empty array");
    if (tools && !json_is_null(tools) && !json_is_array(tools))
        return ds_err_field(err, DS_EINVAL, "tools", "tools must be an array");
    render r = {.messages = messages, .out = out, .err = err};
    size_t before = out->len;
    if (err)
        err->code = DS_OK;
    ds_code code = put_all(&r, tools, opts);
    ds_buf_free(&r.flat);
    if (code == DS_OK)
        return DS_OK;
    out->len = before;
    if (!err || err->code != DS_OK)
        return code;
    return ds_err_field(err, code, "messages", "the rendered prompt exceeds the limit of %zu bytes",
                        out->max);
}
