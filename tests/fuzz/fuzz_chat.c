/* fuzz_chat.c - {"messages", "tools"} from a request: rendered or refused with a field named. The bytes are
 * also taken as a model's answer: cut in two ways they give the same events. */
#include "text/chat.h"

#include <stdint.h>
#include <stdlib.h>
#include <string.h>

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

typedef struct {
    ds_buf log;
    int last;
} seen;

static void on_event(void *ctx, ds_chat_ev kind, const char *text, size_t len)
{
    seen *s = ctx;
    char head[2] = {0, "crt"[kind]};
    if (!len)
        abort();
    if ((s->last != (int)kind || kind == DS_CHAT_EV_TOOL_CALL) && ds_buf_append(&s->log, head, 2) != DS_OK)
        abort();
    s->last = (int)kind;
    if (ds_buf_append(&s->log, text, len) != DS_OK)
        abort();
}

static void parse(const uint8_t *data, size_t size, size_t piece, int flags, seen *s)
{
    ds_chat_parser *p;
    if (ds_chat_parser_open(DS_CHAT_QWEN3, flags & 1, flags >> 1 & 1, on_event, s, &p) != DS_OK)
        abort();
    for (size_t i = 0; i < size; i += piece)
        if (ds_chat_parser_push(p, (const char *)data + i, piece < size - i ? piece : size - i) != DS_OK)
            abort();
    if (ds_chat_parser_finish(p) != DS_OK)
        abort();
    ds_chat_parser_close(p);
}

static void parse_both_ways(const uint8_t *data, size_t size)
{
    seen a = {.last = -1}, b = {.last = -1};
    int flags = size ? data[size - 1] & 3 : 0;
    parse(data, size, size + 1, flags, &a);
    parse(data, size, 1 + (size ? data[0] % 5 : 0), flags, &b);
    if (a.log.len != b.log.len || (a.log.len && memcmp(a.log.data, b.log.data, a.log.len) != 0))
        abort();
    ds_buf_free(&a.log);
    ds_buf_free(&b.log);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    parse_both_ways(data, size);
    json_error_t je;
    json_t *v = json_loadb((const char *)data, size, JSON_ALLOW_NUL | JSON_DECODE_ANY, &je);
    if (!v)
        return 0;
    ds_buf out = {.max = 1 << 20};
    ds_err err = {0};
    ds_chat_opts opts = {1, (int)(size % 3) - 1};
    ds_code code = ds_chat_render(DS_CHAT_QWEN3, json_object_get(v, "messages"), json_object_get(v, "tools"),
                                  &opts, &out, &err);
    if (code == DS_OK ? !out.len : !err.msg[0] || !err.field[0] || out.len)
        abort();
    ds_buf_free(&out);
    json_decref(v);
    return 0;
}
