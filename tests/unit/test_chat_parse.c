/* test_chat_parse.c - answers taken apart: the same events whole, byte by byte and cut at random. */
#include "base/limits.h"
#include "base/rng.h"
#include "tests/lib/test.h"
#include "text/chat.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

/* Events as text: "r(...)", "c(...)", "t(...)"; neighbours of one kind are joined, calls are not. */
typedef struct {
    ds_buf log;
    int last;
} seen;

static void on_event(void *ctx, ds_chat_ev kind, const char *text, size_t len)
{
    seen *s = ctx;
    CHECK(len > 0);
    if (s->last == (int)kind && kind != DS_CHAT_EV_TOOL_CALL)
        s->log.len--;
    else
        CHECK_EQ(ds_buf_printf(&s->log, "%c(", "crt"[kind]), DS_OK);
    s->last = (int)kind;
    CHECK_EQ(ds_buf_append(&s->log, text, len), DS_OK);
    CHECK_EQ(ds_buf_puts(&s->log, ")"), DS_OK);
}

/* Pieces of 1..max_piece bytes chosen by seed; 0: all at once. */
static char *parse(const char *text, size_t len, int in_reasoning, int tools, uint64_t seed,
                   uint32_t max_piece)
{
    ds_chat_parser *p;
    seen s = {.last = -1};
    CHECK_EQ(ds_chat_parser_open(DS_CHAT_QWEN3, in_reasoning, tools, on_event, &s, &p), DS_OK);
    for (size_t i = 0; i < len;) {
        size_t n = max_piece ? 1 + ds_rng_u32(seed, DS_RNG_INIT, i, 0) % max_piece : len;
        n = n < len - i ? n : len - i;
        CHECK_EQ(ds_chat_parser_push(p, text + i, n), DS_OK);
        i += n;
    }
    CHECK_EQ(ds_chat_parser_finish(p), DS_OK);
    ds_chat_parser_close(p);
    CHECK_EQ(ds_buf_append(&s.log, "", 0), DS_OK);
    return s.log.data;
}

static void check(const char *text, int in_reasoning, int tools, const char *want)
{
    static const uint32_t pieces[] = {0, 1, 2, 3, 7, 20};
    for (size_t i = 0; i < sizeof pieces / sizeof *pieces; i++) {
        char *got = parse(text, strlen(text), in_reasoning, tools, i, pieces[i]);
        CHECK_STR(got, want);
        free(got);
    }
}

#define A "{\"name\": \"f\", \"arguments\": {\"x\": 1}}"
#define B "{\"name\": \"g\", \"arguments\": {}}"

DS_TEST(reasoning)
{
    check("Hello", 0, 0, "c(Hello)");
    check("<think>\nhmm\n</think>\n\nHello", 0, 0, "r(hmm)c(Hello)");
    check("<think>\n\n</think>\n\nHello", 0, 0, "c(Hello)");
    check("\n <think>a</think>b", 0, 0, "r(a)c(b)");
    check("hmm\n</think>\n\nHello", 1, 0, "r(hmm)c(Hello)");
    check("\n\nhmm, a\n\nb", 1, 0, "r(hmm, a\n\nb)"); /* cut off while thinking */
    check("<think>a < b </thin c</think>d", 0, 0, "r(a < b </thin c)c(d)");
    check("<think>tail\n</thi", 0, 0, "r(tail\n</thi)");
    check("<thin", 0, 0, "c(<thin)");
    check("  indented", 0, 0, "c(  indented)");
    check("say <think> aloud </think>", 0, 0, "c(say <think> aloud </think>)");
    check("<think>a</think>b</think>c<think>d", 0, 0, "r(a)c(b</think>c<think>d)");
    check("<think>\n\n\n\n\n\n\n\n\n\nx\n\n\n\n\n\n\n\n\n\n</think>y", 0, 0, "r(x\n\n)c(y)");
    check("", 0, 1, "");
}

DS_TEST(tool_calls)
{
    check("<tool_call>\n" A "\n</tool_call>", 0, 1, "t(" A ")");
    check("Let me see.\n<tool_call>\n" A "\n</tool_call>\n<tool_call>\n" B "\n</tool_call>", 0, 1,
          "c(Let me see.)t(" A ")t(" B ")");
    check("<think>\nr\n</think>\n\n<tool_call>" A "</tool_call>\nafter\n", 0, 1, "r(r)t(" A ")c(after\n)");
    check("<tool_call>" A, 0, 1, "t(" A ")"); /* whole JSON, the end tag missing */
    check("<tool_call>" A "</tool_call>", 0, 0, "c(<tool_call>" A "</tool_call>)");
    check("a\n\nb\n", 0, 1, "c(a\n\nb\n)");
}

DS_TEST(malformed_calls_are_content)
{
    check("<tool_call>\n{\"name\": \"f\"\n</tool_call>", 0, 1,
          "c(<tool_call>\n{\"name\": \"f\"\n</tool_call>)");
    check("x\n<tool_call>[1]</tool_call>\ny", 0, 1, "c(x\n<tool_call>[1]</tool_call>\ny)");
    check("<tool_call>{\"name\": 3, \"arguments\": {}}</tool_call>", 0, 1,
          "c(<tool_call>{\"name\": 3, \"arguments\": {}}</tool_call>)");
    check("<tool_call>{\"name\": \"f\", \"arguments\": \"s\"}</tool_call>"
          "<tool_call>" B "</tool_call>",
          0, 1, "c(<tool_call>{\"name\": \"f\", \"arguments\": \"s\"}</tool_call>)t(" B ")");
    check("x\n<tool_call>\n{\"name\": ", 0, 1, "c(x\n<tool_call>\n{\"name\": )");
    check("x <tool_cal", 0, 1, "c(x <tool_cal)");
    check("</tool_call>", 0, 1, "c(</tool_call>)");
    check("<tool_call>", 0, 1, "c(<tool_call>)");
}

/* Random pieces of the grammar: cutting makes no difference and no letter is lost. */
DS_TEST(random_cuts)
{
    static const char *const word[] = {"<think>", "</think>", "<tool_call>", "</tool_call>", "\n", "\n", A, B,
                                       "x",       "yz",       "<",           "</t",          "{",  " "};
    for (uint64_t seed = 0; seed < 3000; seed++) {
        ds_buf text = {0};
        uint32_t n = ds_rng_u32(seed, DS_RNG_INIT, 0, 0) % 12;
        CHECK_EQ(ds_buf_append(&text, "", 0), DS_OK);
        for (uint32_t i = 0; i < n; i++)
            CHECK_EQ(ds_buf_puts(&text, word[ds_rng_u32(seed, DS_RNG_INIT, 1, i) % 14]), DS_OK);
        int in_reasoning = seed & 1, tools = seed >> 1 & 1;
        char *whole = parse(text.data, text.len, in_reasoning, tools, 0, 0);
        char *bytes = parse(text.data, text.len, in_reasoning, tools, 0, 1);
        char *cut = parse(text.data, text.len, in_reasoning, tools, seed, 9);
        CHECK_STR(bytes, whole);
        CHECK_STR(cut, whole);
        int letters = 0;
        for (const char *s = text.data; *s; s++)
            letters += *s == 'y';
        for (const char *s = whole; *s; s++)
            letters -= *s == 'y';
        CHECK_EQ(letters, 0);
        free(whole);
        free(bytes);
        free(cut);
        ds_buf_free(&text);
    }
}

static void count_bytes(void *ctx, ds_chat_ev kind, const char *text, size_t len)
{
    (void)text;
    CHECK_EQ(kind, DS_CHAT_EV_CONTENT);
    *(size_t *)ctx += len;
}

/* A call longer than the limit is content, and so are a million unfinished ones; neither takes quadratic
 * time. */
DS_TEST(hostile_lengths)
{
    enum { LEN = 2 * DS_MAX_TOOL_CALL_BYTES };
    ds_chat_parser *p;
    size_t got = 0, sent = 0;
    CHECK_EQ(ds_chat_parser_open(DS_CHAT_QWEN3, 0, 1, count_bytes, &got, &p), DS_OK);
    CHECK_EQ(ds_chat_parser_push(p, "<tool_call>", 11), DS_OK);
    for (sent = 11; sent < LEN; sent += 4)
        CHECK_EQ(ds_chat_parser_push(p, "aaa<", 4), DS_OK);
    for (; sent < LEN + 2000000; sent += 11)
        CHECK_EQ(ds_chat_parser_push(p, "<tool_call>", 11), DS_OK);
    CHECK_EQ(ds_chat_parser_finish(p), DS_OK);
    CHECK_EQ(got, sent);
    ds_chat_parser_close(p);
    char *many = malloc(LEN);
    CHECK(many != NULL);
    for (size_t i = 0; i < LEN; i++)
        many[i] = "<tool_call></tool_call>\n"[i % 24];
    got = 0;
    CHECK_EQ(ds_chat_parser_open(DS_CHAT_QWEN3, 0, 1, count_bytes, &got, &p), DS_OK);
    CHECK_EQ(ds_chat_parser_push(p, many, LEN), DS_OK);
    CHECK_EQ(ds_chat_parser_finish(p), DS_OK);
    CHECK_EQ(got, LEN);
    ds_chat_parser_close(p);
    free(many);
}
