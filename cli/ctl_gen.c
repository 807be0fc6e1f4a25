/* ctl_gen.c - dsparkctl chat and complete: requests that write text as it comes. */
#include "base/clock.h"
#include "cli/ctl.h"
#include "cli/ctl_rpc.h"
#include "cli/marks.h"

#include <jansson.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

enum { MAX_INPUT_BYTES = 4 << 20 };

typedef struct gen { /* one running answer */
    const ds_ctl *ctl;
    int is_chat, print;
    ds_buf text;
    ds_marks marks;
    ds_ctl_answer answer;
    ds_err err;
    ds_code code;
} gen;

static void gen_init(gen *g, const ds_ctl *c, int is_chat)
{
    *g = (gen){.ctl = c, .is_chat = is_chat, .print = !c->conf->json};
    ds_marks_init(&g->marks, c->rpc ? "off" : c->conf->marks, isatty(STDOUT_FILENO),
                  ds_conf_has_colors(environ), ds_now_ns());
}

/* Text that all comes from drafts, or all from the target; thought: reasoning before the answer. */
static int show(gen *g, const char *text, int drafted, int thought)
{
    if (!thought)
        g->code = ds_buf_puts(&g->text, text);
    if (g->print) {
        ds_marks_text(&g->marks, stdout, text, drafted, thought);
        fflush(stdout);
    }
    return g->code || ferror(stdout);
}

static int flag_of(const void *accepted, int64_t i)
{
    return accepted && ((const uint32_t *)accepted)[i] != 0;
}

/* Over RPC an event mixes both kinds: its tokens are counted, its text is not marked. */
static int on_text(void *ctx, const char *text, size_t n, const uint32_t *accepted)
{
    gen *g = ctx;
    ds_marks_event(&g->marks, ds_now_ns(), (int64_t)n, flag_of, accepted);
    return show(g, text, 0, 0);
}

static int flag_of_json(const void *flags, int64_t i)
{
    return json_integer_value(json_array_get(flags, (size_t)i)) == 1;
}

static void take_usage(gen *g, json_t *usage)
{
    if (!json_is_object(usage))
        return;
    g->answer.prompt_tokens = json_integer_value(json_object_get(usage, "prompt_tokens"));
    g->answer.output_tokens = json_integer_value(json_object_get(usage, "completion_tokens"));
    g->answer.cached_tokens =
        json_integer_value(json_object_get(json_object_get(usage, "prompt_tokens_details"), "cached_tokens"));
    const json_t *details = json_object_get(usage, "completion_tokens_details");
    g->answer.accepted = json_integer_value(json_object_get(details, "accepted_prediction_tokens"));
    g->answer.rejected = json_integer_value(json_object_get(details, "rejected_prediction_tokens"));
}

static int on_event(void *ctx, char *data, size_t n)
{
    gen *g = ctx;
    if (strcmp(data, "[DONE]") == 0)
        return 0;
    json_t *root = json_loadb(data, n, 0, NULL);
    if (!root) {
        g->code = ds_err_set(&g->err, DS_EPROTO, "the stream holds an event that is not JSON");
        return 1;
    }
    if (json_object_get(root, "error")) {
        g->code = ds_http_error(500, data, n, &g->err);
        json_decref(root);
        return 1;
    }
    json_t *choice = json_array_get(json_object_get(root, "choices"), 0);
    json_t *delta = g->is_chat ? json_object_get(choice, "delta") : choice;
    const char *text = json_string_value(json_object_get(delta, g->is_chat ? "content" : "text"));
    const char *thought = g->is_chat ? json_string_value(json_object_get(delta, "reasoning_content")) : NULL;
    const char *finish = json_string_value(json_object_get(choice, "finish_reason"));
    const json_t *flags = json_object_get(choice, "accepted_draft");
    ds_marks_event(&g->marks, ds_now_ns(), (int64_t)json_array_size(flags), flag_of_json, flags);
    int drafted = flag_of_json(flags, 0), stop = 0;
    if (finish)
        snprintf(g->answer.finish, sizeof g->answer.finish, "%s", finish);
    take_usage(g, json_object_get(root, "usage"));
    if (thought)
        stop = show(g, thought, drafted, 1);
    if (text && !stop)
        stop = show(g, text, drafted, 0);
    json_decref(root);
    return stop;
}

/* The fields that chat and complete share. */
static json_t *request(const ds_ctl *c, const char *model)
{
    json_t *r =
        json_pack("{s:s, s:b, s:{s:b}, s:b, s:I, s:f, s:f}", "model", model, "stream", 1, "stream_options",
                  "include_usage", 1, "return_speculation", 1, "max_tokens", (json_int_t)c->conf->max_tokens,
                  "temperature", c->conf->temperature, "top_p", c->conf->top_p);
    if (c->conf->top_k > 0)
        json_object_set_new(r, "top_k", json_integer(c->conf->top_k));
    if (c->conf->seed >= 0)
        json_object_set_new(r, "seed", json_integer(c->conf->seed));
    if (c->conf->stop)
        json_object_set_new(r, "stop", json_string(c->conf->stop));
    return r;
}

static ds_code stream(gen *g, const char *path, json_t *req, ds_err *err)
{
    char *text = json_dumps(req, JSON_COMPACT);
    if (!text)
        return ds_err_set(err, DS_EINVAL, "the prompt is not valid UTF-8 (or memory ran out)");
    ds_code code = ds_http_stream(g->ctl->http, path, text, on_event, g, err);
    free(text);
    if (g->code && g->err.msg[0]) {
        *err = g->err;
        return g->code;
    }
    return code;
}

static ds_code print_answer_json(const gen *g)
{
    const ds_ctl_answer *a = &g->answer;
    double speed = ds_marks_speed(&g->marks);
    json_t *o = json_pack("{s:s%, s:s, s:{s:I, s:I, s:I, s:I, s:I}, s:I, s:o}", "text",
                          g->text.data ? g->text.data : "", g->text.len, "finish_reason", a->finish, "usage",
                          "prompt_tokens", (json_int_t)a->prompt_tokens, "completion_tokens",
                          (json_int_t)a->output_tokens, "cached_tokens", (json_int_t)a->cached_tokens,
                          "accepted_prediction_tokens", (json_int_t)a->accepted, "rejected_prediction_tokens",
                          (json_int_t)a->rejected, "target_steps", (json_int_t)ds_marks_steps(&g->marks),
                          "tokens_per_s", isfinite(speed) ? json_real(speed) : json_null());
    char *text = o ? json_dumps(o, JSON_COMPACT | JSON_PRESERVE_ORDER) : NULL;
    if (text)
        puts(text);
    free(text);
    json_decref(o);
    return text ? DS_OK : DS_ENOMEM;
}

/* Words joined by blanks, or all of stdin when the only word is "-" or there is none. */
static ds_code input_text(int argc, char **argv, ds_buf *out, ds_err *err)
{
    out->max = MAX_INPUT_BYTES;
    ds_code code = DS_OK;
    if (argc == 0 || (argc == 1 && strcmp(argv[0], "-") == 0)) {
        char block[4096];
        for (size_t n; !code && (n = fread(block, 1, sizeof block, stdin)) > 0;)
            code = ds_buf_append(out, block, n);
    } else
        for (int i = 0; i < argc && !code; i++)
            code = ds_buf_printf(out, "%s%s", i ? " " : "", argv[i]);
    if (!code)
        code = ds_buf_puts(out, "");
    if (code)
        return ds_err_set(err, code, "the text is larger than %d bytes", MAX_INPUT_BYTES);
    return DS_OK;
}

/* What follows an answer: the end of its line, and on stderr what the drafts saved. */
static void close_answer(gen *g, ds_code code)
{
    const char *when = g->ctl->conf->summary;
    ds_buf line = {0};
    if (g->print)
        ds_marks_end(&g->marks, stdout);
    if (g->print && (g->is_chat || g->text.len))
        putchar('\n');
    fflush(stdout);
    int shown = !strcmp(when, "on") || (!strcmp(when, "auto") && g->print && isatty(STDERR_FILENO));
    if (!code && shown && g->marks.tokens && ds_marks_summary(&g->marks, &line) == DS_OK)
        fputs(line.data, stderr);
    ds_buf_free(&line);
}

ds_code ds_ctl_complete(ds_ctl *c, int argc, char **argv, ds_err *err)
{
    ds_buf prompt = {0};
    gen g;
    gen_init(&g, c, 0);
    char model[256] = "";
    ds_code code = input_text(argc, argv, &prompt, err);
    if (!code && c->rpc) {
        code = ds_ctl_rpc_complete(c, prompt.data, on_text, &g, &g.answer, err);
    } else if (!code && !(code = ds_ctl_model(c, model, err))) {
        json_t *req = request(c, model);
        json_object_set_new(req, "prompt", json_stringn(prompt.data, prompt.len));
        code = stream(&g, "/v1/completions", req, err);
        json_decref(req);
    }
    close_answer(&g, code);
    if (!code && c->conf->json)
        code = print_answer_json(&g);
    ds_buf_free(&prompt);
    ds_buf_free(&g.text);
    return code;
}

/* One turn: the user's words in, the answer appended to the conversation. A stopped answer is kept as far as
 * it came; a failed turn is taken back. */
static ds_code chat_turn(ds_ctl *c, const char *model, json_t *messages, const char *words, ds_err *err)
{
    gen g;
    gen_init(&g, c, 1);
    json_t *said = json_pack("{s:s, s:s}", "role", "user", "content", words);
    if (!said)
        return ds_err_set(err, DS_EINVAL, "the text is not valid UTF-8");
    json_array_append_new(messages, said);
    json_t *req = request(c, model);
    json_object_set(req, "messages", messages);
    if (!c->conf->thinking)
        json_object_set_new(req, "chat_template_kwargs", json_pack("{s:b}", "enable_thinking", 0));
    ds_code code = stream(&g, "/v1/chat/completions", req, err);
    json_decref(req);
    close_answer(&g, code);
    if (code && code != DS_ECANCELLED)
        json_array_remove(messages, json_array_size(messages) - 1);
    else
        json_array_append_new(messages, json_pack("{s:s, s:s%}", "role", "assistant", "content",
                                                  g.text.data ? g.text.data : "", g.text.len));
    if (!code && c->conf->json)
        code = print_answer_json(&g);
    ds_buf_free(&g.text);
    return code;
}

static void first_messages(const ds_ctl *c, json_t *messages)
{
    json_array_clear(messages);
    if (c->conf->system)
        json_array_append_new(messages,
                              json_pack("{s:s, s:s}", "role", "system", "content", c->conf->system));
}

/* Reads lines until the end of input. At a terminal a failed turn is told and the talk goes on. */
static ds_code converse(ds_ctl *c, const char *model, json_t *messages, ds_err *err)
{
    int tty = isatty(STDIN_FILENO);
    char *line = NULL;
    size_t cap = 0;
    ds_code code = DS_OK;
    if (tty)
        fprintf(stderr, "Talking to %s. Ctrl-C stops an answer; /reset starts anew; /quit or Ctrl-D ends.\n",
                model);
    while (!code) {
        if (tty)
            fputs("> ", stderr);
        ssize_t n = getline(&line, &cap, stdin);
        if (n < 0 || *c->stop)
            break;
        if (n > MAX_INPUT_BYTES) {
            code = ds_err_set(err, DS_EINVAL, "a line is longer than %d bytes", MAX_INPUT_BYTES);
            break;
        }
        line[strcspn(line, "\n")] = 0;
        if (strcmp(line, "/quit") == 0)
            break;
        if (strcmp(line, "/reset") == 0) {
            first_messages(c, messages);
        } else if (*line) {
            code = chat_turn(c, model, messages, line, err);
            if (tty && code) {
                if (code != DS_ECANCELLED)
                    fprintf(stderr, "%s\n", err->msg);
                *c->stop = 0;
                code = DS_OK;
            }
        }
    }
    free(line);
    return code;
}

ds_code ds_ctl_chat(ds_ctl *c, int argc, char **argv, ds_err *err)
{
    if (c->rpc)
        return ds_err_set(err, DS_EUNSUPPORTED,
                          "chat needs the HTTP door (chat templates); use complete over RPC");
    char model[256];
    DS_TRY(ds_ctl_model(c, model, err));
    json_t *messages = json_array();
    first_messages(c, messages);
    ds_code code;
    if (argc > 0) {
        ds_buf words = {0};
        code = input_text(argc, argv, &words, err);
        if (!code)
            code = chat_turn(c, model, messages, words.data, err);
        ds_buf_free(&words);
    } else {
        code = converse(c, model, messages, err);
    }
    json_decref(messages);
    return code;
}
