/* chat_parse.c - an answer in the Qwen3 format, taken apart while it grows. `buf` holds what is not yet
 * certain; `at` is its first byte not given to the caller. A step looks at buf in the present state and
 * either moves on or waits for more. Model output is untrusted: every wait is bounded, and each byte is
 * looked at a bounded number of times. */
#include "base/limits.h"
#include "text/chat.h"

#include <stdlib.h>
#include <string.h>

typedef enum {
    START,     /* nothing but white space so far: <think> may come */
    REASONING, /* until </think> */
    CONTENT,   /* until <tool_call> */
    TOOL       /* buf[at..]: newlines, <tool_call>, and its body so far, until </tool_call> */
} state;

enum { MAX_NEWLINES = 8 };
static const char THINK[] = "<think>", END_THINK[] = "</think>", CALL[] = "<tool_call>",
                  END_CALL[] = "</tool_call>";

struct ds_chat_parser {
    ds_chat_fn fn;
    void *ctx;
    state state;
    int plain;         /* no tags at all */
    int parse_tools;   /* else <tool_call> is content */
    int skip_newlines; /* just behind a tag */
    ds_buf buf;
    size_t at, body, scanned; /* body: start of the call's JSON; scanned: no tag begins before it */
};

ds_code ds_chat_parser_open(ds_chat_kind kind, int in_reasoning, int parse_tools, ds_chat_fn fn, void *ctx,
                            ds_chat_parser **ret)
{
    ds_chat_parser *p = calloc(1, sizeof *p);
    *ret = p;
    if (!p)
        return DS_ENOMEM;
    p->fn = fn;
    p->ctx = ctx;
    p->plain = kind != DS_CHAT_QWEN3;
    p->parse_tools = parse_tools;
    p->state = p->plain ? CONTENT : in_reasoning ? REASONING : START;
    p->skip_newlines = p->state == REASONING;
    return DS_OK;
}

void ds_chat_parser_close(ds_chat_parser *p)
{
    if (!p)
        return;
    ds_buf_free(&p->buf);
    free(p);
}

static void give(ds_chat_parser *p, ds_chat_ev kind, size_t to)
{
    if (to > p->at)
        p->fn(p->ctx, kind, p->buf.data + p->at, to - p->at);
    p->at = to;
}

static void enter(ds_chat_parser *p, state s, size_t at, int skip_newlines)
{
    p->state = s;
    p->at = p->scanned = at;
    p->skip_newlines = skip_newlines;
}

/* Start of up to MAX_NEWLINES newlines that end at `to`. */
static size_t before_newlines(const ds_chat_parser *p, size_t to)
{
    size_t from = to;
    while (from > p->at && to - from < MAX_NEWLINES && p->buf.data[from - 1] == '\n')
        from--;
    return from;
}

/* Position of tag in the unread text, or -1; then *ret_partial is how much of its beginning ends the text. */
static ptrdiff_t find_tag(ds_chat_parser *p, const char *tag, size_t *ret_partial)
{
    size_t n = strlen(tag), from = p->scanned > p->at ? p->scanned : p->at;
    const char *end = p->buf.data + p->buf.len;
    const char *hit = memmem(p->buf.data + from, p->buf.len - from, tag, n);
    if (hit)
        return hit - p->buf.data;
    size_t k = n - 1 < p->buf.len - p->at ? n - 1 : p->buf.len - p->at;
    while (k && memcmp(end - k, tag, k) != 0)
        k--;
    *ret_partial = k;
    p->scanned = p->buf.len - k;
    return -1;
}

/* Gives text up to a tag (then 1) or up to where one may begin (then 0). */
static int give_until(ds_chat_parser *p, const char *tag, ds_chat_ev kind, int at_end, ptrdiff_t *ret_tag)
{
    while (p->skip_newlines && p->at < p->buf.len && p->buf.data[p->at] == '\n')
        p->at++;
    if (p->at == p->buf.len)
        return 0;
    p->skip_newlines = 0;
    size_t partial = 0;
    *ret_tag = find_tag(p, tag, &partial);
    if (*ret_tag >= 0)
        give(p, kind, before_newlines(p, (size_t)*ret_tag));
    else
        give(p, kind, at_end ? p->buf.len : before_newlines(p, p->buf.len - partial));
    return *ret_tag >= 0;
}

static int step_start(ds_chat_parser *p, int at_end)
{
    size_t i = p->at, n = strlen(THINK);
    while (i < p->buf.len && i - p->at < MAX_NEWLINES && (p->buf.data[i] == '\n' || p->buf.data[i] == ' '))
        i++;
    size_t have = p->buf.len - i < n ? p->buf.len - i : n;
    int may_be = memcmp(p->buf.data + i, THINK, have) == 0;
    if (may_be && have < n && !at_end)
        return 0;
    if (may_be && have == n)
        enter(p, REASONING, i + n, 1);
    else
        enter(p, CONTENT, p->at, 0);
    return 1;
}

static int step_reasoning(ds_chat_parser *p, int at_end)
{
    ptrdiff_t tag;
    if (!give_until(p, END_THINK, DS_CHAT_EV_REASONING, at_end, &tag))
        return 0;
    enter(p, CONTENT, (size_t)tag + strlen(END_THINK), 1);
    return 1;
}

static int step_content(ds_chat_parser *p, int at_end)
{
    ptrdiff_t tag;
    if (p->plain || !p->parse_tools) {
        while (p->skip_newlines && p->at < p->buf.len && p->buf.data[p->at] == '\n')
            p->at++;
        p->skip_newlines &= p->at == p->buf.len;
        give(p, DS_CHAT_EV_CONTENT, p->buf.len);
        return 0;
    }
    if (!give_until(p, CALL, DS_CHAT_EV_CONTENT, at_end, &tag))
        return 0;
    p->body = (size_t)tag + strlen(CALL);
    p->state = TOOL;
    p->scanned = p->body;
    return 1;
}

static int is_call(const char *json, size_t len)
{
    json_error_t je;
    json_t *v = json_loadb(json, len, 0, &je);
    int ok =
        json_string_length(json_object_get(v, "name")) > 0 && json_is_object(json_object_get(v, "arguments"));
    json_decref(v);
    return ok;
}

static int is_space(char c)
{
    return c == ' ' || c == '\n' || c == '\t' || c == '\r';
}

/* The call's body ends at `to`, the text behind it begins at `next`. */
static void end_call(ds_chat_parser *p, size_t to, size_t next)
{
    size_t from = p->body;
    while (from < to && is_space(p->buf.data[from]))
        from++;
    while (to > from && is_space(p->buf.data[to - 1]))
        to--;
    int ok = is_call(p->buf.data + from, to - from);
    if (ok)
        p->fn(p->ctx, DS_CHAT_EV_TOOL_CALL, p->buf.data + from, to - from);
    else
        give(p, DS_CHAT_EV_CONTENT, next);
    enter(p, CONTENT, next, ok);
}

static int step_tool(ds_chat_parser *p, int at_end)
{
    size_t partial = 0;
    ptrdiff_t tag = find_tag(p, END_CALL, &partial);
    size_t end = tag >= 0 ? (size_t)tag : p->buf.len;
    if (end - p->body > DS_MAX_TOOL_CALL_BYTES) {
        size_t cut = p->body + DS_MAX_TOOL_CALL_BYTES;
        give(p, DS_CHAT_EV_CONTENT, cut);
        enter(p, CONTENT, cut, 0);
        return 1;
    }
    if (tag < 0 && !at_end)
        return 0;
    end_call(p, end, tag >= 0 ? end + strlen(END_CALL) : end);
    return 1;
}

static void run(ds_chat_parser *p, int at_end)
{
    int more = 1;
    while (more && p->at < p->buf.len) {
        switch (p->state) {
        case START:
            more = step_start(p, at_end);
            break;
        case REASONING:
            more = step_reasoning(p, at_end);
            break;
        case CONTENT:
            more = step_content(p, at_end);
            break;
        default:
            more = step_tool(p, at_end);
        }
    }
}

ds_code ds_chat_parser_push(ds_chat_parser *p, const char *text, size_t len)
{
    DS_TRY(ds_buf_append(&p->buf, text, len));
    run(p, 0);
    size_t used = p->at;
    ds_buf_consume(&p->buf, used);
    p->at = 0;
    p->body -= p->body > used ? used : p->body;
    p->scanned -= p->scanned > used ? used : p->scanned;
    return DS_OK;
}

ds_code ds_chat_parser_finish(ds_chat_parser *p)
{
    run(p, 1);
    ds_buf_clear(&p->buf);
    p->at = 0;
    return DS_OK;
}
