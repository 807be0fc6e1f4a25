/* params.h - the JSON body of a request to plain values: one table of fields, each with its type, range and
 * the doors that know it. A field outside the table is refused by name. Values that the worker also judges
 * (temperature, token ids, ...) are ranged by proto/validate.h, the same code as behind the RPC door.
 * Pure; runs on the thread pool. */
#ifndef DS_DAEMON_PARAMS_H
#define DS_DAEMON_PARAMS_H

#include "base/err.h"
#include "base/limits.h"
#include "proto/frame.h"

#include <jansson.h>

enum {
    DS_MAX_PROMPTS = 128, /* prompts of one completions request */
    DS_MAX_CHOICES = 256, /* prompts x n */
    DS_MAX_MESSAGES = 2048,
    DS_MAX_TOOLS = 128,
    DS_MAX_JSON_VALUES = DS_MAX_PROMPT_TOKENS + 65536 /* values of one body: bounds the tree's memory */
};

typedef enum { DS_API_CHAT = 1, DS_API_COMPLETIONS = 2 } ds_api;

typedef struct ds_params {
    ds_api api;
    json_t *root; /* owns what messages, tools and prompt borrow */
    char *model;  /* NULL: not given */
    int stream, include_usage, echo, return_token_ids, return_speculation;
    int n;
    int64_t max_tokens; /* -1: not given */
    int score_only;     /* max_tokens 0 with echo: nothing is generated for the client */
    int has_seed;
    int logprobs;            /* -1: none, else how many alternatives beside the token itself */
    ds_pb_sampling sampling; /* arrays owned; max_tokens and seed are set per choice */
    ds_pb_speculation spec;
    int priority;
    char *stop[DS_MAX_STOP_STRINGS];
    int n_stop;
    char *user;
    /* chat */
    json_t *messages, *tools; /* tools NULL: none, or tool_choice "none" */
    int enable_thinking;      /* -1: not given */
    /* completions: exactly one of text and ids per prompt */
    int n_prompts;
    json_t *prompt[DS_MAX_PROMPTS]; /* string, or array of integers */
    /* while parsing */
    int64_t max_completion_tokens;
    int chat_logprobs, has_top_logprobs, has_stream_options, tool_choice_none;
} ds_params;

/* ds_params_parse: errors DS_EINVAL (err->field names the field, "" when the body is no JSON object),
 * DS_EUNSUPPORTED. On error nothing is owned. */
ds_code ds_params_parse(ds_api api, const char *body, size_t len, ds_params *ret, ds_err *err);
void ds_params_free(ds_params *p);

/* ds_json_load: JSON within DS_MAX_JSON_DEPTH and DS_MAX_JSON_VALUES, no duplicate keys, no NUL in strings.
 */
ds_code ds_json_load(const char *body, size_t len, json_t **ret, ds_err *err);
/* ds_params_ids: a JSON array of token ids; name is used in errors. ret is malloc'ed, NULL when empty. */
ds_code ds_params_ids(const json_t *a, const char *name, int32_t **ret, int *ret_n, ds_err *err);

#endif
