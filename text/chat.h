/* chat.h - chat messages to a prompt. Templates are chosen by the checkpoint's tokenizer_config.json: its
 * chat_template is recognised by content (not run: a template is a program, and a hostile one at that) and
 * rendered by our code, equal to the published template's output (tests/golden). Pure; any thread. */
#ifndef DS_TEXT_CHAT_H
#define DS_TEXT_CHAT_H

#include "base/buf.h"
#include "base/err.h"

#include <jansson.h>

typedef enum { DS_CHAT_NONE, DS_CHAT_QWEN3 } ds_chat_kind;

typedef struct ds_chat_opts {
    int add_generation_prompt; /* 1 */
    int enable_thinking;       /* -1: not given, 0, 1 */
} ds_chat_opts;

/* ds_chat_detect: kind of dir/tokenizer_config.json's template; DS_CHAT_NONE with DS_EUNSUPPORTED when
 * unknown. */
ds_code ds_chat_detect(const char *dir, ds_chat_kind *ret, ds_err *err);
/* ds_chat_render: messages is the OpenAI array, tools the OpenAI array or NULL. Validates roles, content
 * types (strings or arrays of {type:text}) and tool calls; err.field is e.g. "messages[2].content". */
ds_code ds_chat_render(ds_chat_kind kind, const json_t *messages, const json_t *tools,
                       const ds_chat_opts *opts, ds_buf *out, ds_err *err);

/* ds_chat_parser: splits a finished or growing answer into reasoning, content and tool calls (Qwen3: <think>,
 * <tool_call>). Incremental: push pieces of text, fn is called with what became certain; how the text was cut
 * makes no difference. Nothing is lost except the tags and up to 8 newlines beside each: a tag in the wrong
 * place or a tool call that is no {"name": string, "arguments": object} comes as content. in_reasoning: the
 * prompt already opened <think>. One stream, one thread. */
typedef struct ds_chat_parser ds_chat_parser;
typedef enum { DS_CHAT_EV_CONTENT, DS_CHAT_EV_REASONING, DS_CHAT_EV_TOOL_CALL } ds_chat_ev;
typedef void (*ds_chat_fn)(void *ctx, ds_chat_ev kind, const char *text,
                           size_t len); /* TOOL_CALL: its JSON text */
ds_code ds_chat_parser_open(ds_chat_kind kind, int in_reasoning, int parse_tools, ds_chat_fn fn, void *ctx,
                            ds_chat_parser **ret);
ds_code ds_chat_parser_push(ds_chat_parser *p, const char *text, size_t len);
/* ds_chat_parser_finish: the end of the answer; what was held back comes now. */
ds_code ds_chat_parser_finish(ds_chat_parser *p);
void ds_chat_parser_close(ds_chat_parser *p);

#endif
