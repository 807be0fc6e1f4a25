/* chat_detect.c - which known chat format a checkpoint's template is. Templates are programs: they are not
 * run, but recognised by what they emit. All fragments of a format must be there and no fragment of its
 * relatives (Qwen2.5's default system prompt, Qwen3-Coder's XML calls, templates that open <think>
 * themselves). */
#include "base/limits.h"
#include "text/chat.h"
#include "text/file.h"

#include <string.h>

static const char *const QWEN3_HAS[] = {
    "<|im_start|>",
    "<|im_end|>",
    "# Tools\\n\\nYou may call one or more functions to assist with the user query.",
    "{\\\"name\\\": <function-name>, \\\"arguments\\\": <args-json-object>}",
    "<tool_response>",
    "reasoning_content",
    "last_query_index",
    "enable_thinking is defined and enable_thinking is false",
    "'<think>\\n\\n</think>\\n\\n'",
};
static const char *const QWEN3_LACKS[] = {"You are Qwen", "You are a helpful assistant",
                                          "<function=",   "<|vision_start|>",
                                          "strftime_now", "'<|im_start|>assistant\\n<think>"};

static int is_qwen3(const char *t, size_t len)
{
    for (size_t i = 0; i < sizeof QWEN3_HAS / sizeof *QWEN3_HAS; i++)
        if (!memmem(t, len, QWEN3_HAS[i], strlen(QWEN3_HAS[i])))
            return 0;
    for (size_t i = 0; i < sizeof QWEN3_LACKS / sizeof *QWEN3_LACKS; i++)
        if (memmem(t, len, QWEN3_LACKS[i], strlen(QWEN3_LACKS[i])))
            return 0;
    return 1;
}

/* chat_template is a string, or a list of {name, template} of which "default" counts. */
static const json_t *default_template(const json_t *config)
{
    const json_t *t = json_object_get(config, "chat_template");
    for (size_t i = 0; i < json_array_size(t); i++) {
        const json_t *item = json_array_get(t, i);
        const char *name = json_string_value(json_object_get(item, "name"));
        if (name && strcmp(name, "default") == 0)
            return json_object_get(item, "template");
    }
    return t;
}

static ds_code detect(const char *template, size_t len, ds_chat_kind *ret, ds_err *err)
{
    *ret = is_qwen3(template, len) ? DS_CHAT_QWEN3 : DS_CHAT_NONE;
    return *ret != DS_CHAT_NONE
               ? DS_OK
               : ds_err_field(err, DS_EUNSUPPORTED, "chat_template", "the chat template is none of: Qwen3");
}

ds_code ds_chat_detect(const char *dir, ds_chat_kind *ret, ds_err *err)
{
    ds_buf file = {0};
    *ret = DS_CHAT_NONE;
    ds_err none = {0}; /* that this file is missing is no error: err stays as it was */
    ds_code code = ds_text_read_file(dir, "chat_template.jinja", &file, &none);
    if (code == DS_OK) {
        code = detect(file.data, file.len, ret, err);
        ds_buf_free(&file);
        return code;
    }
    if (code != DS_ENOTFOUND)
        return ds_err_set(err, code, "%s", none.msg);
    code = ds_text_read_file(dir, "tokenizer_config.json", &file, err);
    if (code != DS_OK)
        return code == DS_ENOTFOUND
                   ? ds_err_field(err, DS_EUNSUPPORTED, "chat_template",
                                  "the model has neither chat_template.jinja nor tokenizer_config.json")
                   : code;
    json_error_t je;
    json_t *config = json_loadb(file.data, file.len, 0, &je);
    ds_buf_free(&file);
    if (!config)
        return ds_err_set(err, DS_ECORRUPT, "tokenizer_config.json is not JSON: %.200s", je.text);
    const json_t *t = default_template(config);
    code = json_is_string(t) ? detect(json_string_value(t), json_string_length(t), ret, err)
                             : ds_err_field(err, DS_EUNSUPPORTED, "chat_template",
                                            "tokenizer_config.json has no chat_template string");
    json_decref(config);
    return code;
}
