/* test_tokenizer_hostile.c - texts made to be slow, files made to break the loader, threads at once. Work is
 * bounded by counting, not by the clock: a quadratic path would run into the test's time limit by orders of
 * magnitude. */
#include "base/limits.h"
#include "tests/lib/test.h"
#include "text/file.h"
#include "text/tokenizer.h"
#include "text/utf8.h"

#include <jansson.h>
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#define GOLDEN DS_SOURCE_DIR "/tests/golden/tokenizer"

static ds_tokenizer *must_open(const char *name)
{
    char dir[512];
    ds_tokenizer *t;
    ds_err err = {0};
    snprintf(dir, sizeof dir, "%s/%s", GOLDEN, name);
    CHECK_OK(ds_tokenizer_open(dir, &t, &err), err);
    return t;
}

/* Encodes unit repeated to len bytes between head and tail; the ids must give the text back when `decodes`.
 */
static int check_long(const ds_tokenizer *t, const char *head, const char *unit, const char *tail, size_t len,
                      int decodes)
{
    ds_buf text = {0}, back = {0};
    ds_ids ids = {0};
    ds_err err = {0};
    CHECK_EQ(ds_buf_puts(&text, head), DS_OK);
    while (text.len < len)
        CHECK_EQ(ds_buf_puts(&text, unit), DS_OK);
    CHECK_EQ(ds_buf_puts(&text, tail), DS_OK);
    CHECK_OK(ds_tokenizer_encode(t, text.data, text.len, 1, 0, 0, &ids, &err), err);
    for (int i = 0; i < ids.n; i++) {
        size_t n;
        const char *p = ds_tokenizer_token(t, ids.v[i], &n);
        CHECK_EQ(ds_buf_append(&back, p, n), DS_OK);
    }
    if (decodes)
        CHECK(back.len == text.len && memcmp(back.data, text.data, text.len) == 0);
    int n = ids.n;
    ds_ids_free(&ids);
    ds_buf_free(&text);
    ds_buf_free(&back);
    return n;
}

DS_TEST(a_megabyte_without_a_break)
{
    enum { MB = 1 << 20 };
    static const char *const kind[] = {"qwen", "deepseek", "bytefallback"};
    for (int k = 0; k < 3; k++) {
        ds_tokenizer *t = must_open(kind[k]);
        check_long(t, "", "a", "", MB, 1);
        check_long(t, "", " ", "x", MB, 1);   /* \s+(?!\S) over one run */
        check_long(t, "\n", " ", "x", MB, 1); /* \s*[\r\n]+ backs up over all of it */
        check_long(t, "", " \n", "x", MB, 1);
        check_long(t, "", "\xE4\xBD\xA0", "", MB, 1);
        check_long(t, "", "<|im_star", "", MB, 1); /* nearly an added token, again and again */
        check_long(t, "", "1", "", MB, 1);
        check_long(t, "", "!", "", MB, 1);
        check_long(t, "", "\xF0\x9F\x98\x80", "", MB, 1);
        int n = check_long(t, "", "<think>", "", MB, 1);
        CHECK(k == 2 || n == (MB + 6) / 7);
        ds_tokenizer_close(t);
    }
}

/* Marks of falling classes: ordering them by swapping neighbours would take 10^11 steps. */
DS_TEST(combining_marks_out_of_order)
{
    enum { HALF = 1 << 19 };
    ds_tokenizer *t = must_open("qwen");
    ds_buf text = {0};
    ds_ids ids = {0};
    ds_err err = {0};
    CHECK_EQ(ds_buf_puts(&text, "a"), DS_OK);
    for (int i = 0; i < HALF; i++)
        CHECK_EQ(ds_buf_puts(&text, "\xCC\x81"), DS_OK); /* U+0301, class 230 */
    for (int i = 0; i < HALF; i++)
        CHECK_EQ(ds_buf_puts(&text, "\xCC\xA3"), DS_OK); /* U+0323, class 220 */
    CHECK_OK(ds_tokenizer_encode(t, text.data, text.len, 1, 0, 0, &ids, &err), err);
    CHECK(ids.n > HALF);
    ds_ids_free(&ids);
    ds_buf_free(&text);
    ds_tokenizer_close(t);
}

/* Every code point that is text, plane by plane, comes back. */
DS_TEST(round_trip_of_every_plane)
{
    ds_tokenizer *t = must_open("deepseek");
    ds_err err = {0};
    for (uint32_t plane = 0; plane < 17; plane++) {
        ds_buf text = {0}, back = {0};
        ds_ids ids = {0};
        for (uint32_t cp = plane << 16; cp < (plane + 1) << 16; cp++) {
            char s[4];
            if (cp < 0xD800 || cp > 0xDFFF)
                CHECK_EQ(ds_buf_append(&text, s, (size_t)ds_utf8_put(cp, s)), DS_OK);
        }
        CHECK_OK(ds_tokenizer_encode(t, text.data, text.len, 1, 0, 0, &ids, &err), err);
        for (int i = 0; i < ids.n; i++) {
            size_t n;
            const char *p = ds_tokenizer_token(t, ids.v[i], &n);
            CHECK_EQ(ds_buf_append(&back, p, n), DS_OK);
        }
        CHECK_MSG(back.len == text.len && memcmp(back.data, text.data, text.len) == 0, "plane %u", plane);
        ds_ids_free(&ids);
        ds_buf_free(&text);
        ds_buf_free(&back);
    }
    ds_tokenizer_close(t);
}

DS_TEST(encode_errors)
{
    ds_tokenizer *t = must_open("qwen");
    ds_ids ids = {0};
    ds_err err = {0};
    CHECK_EQ(ds_tokenizer_encode(t, "ab\xFF", 3, 1, 0, 0, &ids, &err), DS_EINVAL);
    CHECK_MSG(strstr(err.msg, "byte 2") != NULL, "%s", err.msg);
    CHECK_OK(ds_tokenizer_encode(t, "zqzq", 4, 1, 0, 4, &ids, &err), err);
    int n = ids.n;
    CHECK(n > 1);
    CHECK_EQ(ds_tokenizer_encode(t, "zqzq", 4, 1, 0, n - 1, &ids, &err), DS_ELIMIT);
    CHECK_EQ(ids.n, n); /* as it was */
    CHECK_OK(ds_tokenizer_encode(t, "<think>", 7, 1, 0, 1, &ids, &err), err);
    CHECK_EQ(ids.n, n + 1);
    CHECK_EQ(ids.v[n], ds_tokenizer_find(t, "<think>", 7));
    CHECK_EQ(ds_tokenizer_find(t, "<thing>", 7), -1);
    CHECK(!ds_tokenizer_is_special(t, ids.v[n]));
    CHECK(ds_tokenizer_is_special(t, ds_tokenizer_find(t, "<|im_end|>", 10)));
    ds_ids_free(&ids);
    CHECK_OK(ds_tokenizer_encode(t, "<think>", 7, 0, 0, 0, &ids, &err), err);
    CHECK(ids.n > 1); /* plain text where added tokens are not looked for */
    ds_ids_free(&ids);
    CHECK_OK(ds_tokenizer_encode(t, NULL, 0, 1, 0, 0, &ids, &err), err);
    CHECK_EQ(ids.n, 0);
    char *big = calloc(1, DS_MAX_TEXT_BYTES + 1);
    CHECK(big != NULL);
    CHECK_EQ(ds_tokenizer_encode(t, big, DS_MAX_TEXT_BYTES + 1, 1, 0, 0, &ids, &err), DS_ELIMIT);
    memset(big, 'a', DS_MAX_TEXT_BYTES); /* far more tokens than asked for: refused before any merging */
    CHECK_EQ(ds_tokenizer_encode(t, big, DS_MAX_TEXT_BYTES, 1, 0, 8, &ids, &err), DS_ELIMIT);
    CHECK_MSG(strstr(err.msg, "more than 8 tokens") != NULL, "%s", err.msg);
    free(big);
    size_t len;
    CHECK(ds_tokenizer_token(t, -1, &len) == NULL && len == 0);
    CHECK(ds_tokenizer_token(t, ds_tokenizer_size(t), &len) == NULL);
    ds_tokenizer_close(t);
}

#define MODEL "\"model\":{\"type\":\"BPE\",\"vocab\":{\"a\":0,\"b\":1,\"ab\":2},\"merges\":[[\"a\",\"b\"]]}"
#define PRE "\"pre_tokenizer\":{\"type\":\"ByteLevel\",\"add_prefix_space\":false,\"use_regex\":false}"
#define DEC "\"decoder\":{\"type\":\"ByteLevel\"}"
#define FILE_WITH(x) "{" MODEL "," PRE "," DEC "," x "}"
#define FILE_PRE(x) "{" MODEL "," DEC ",\"pre_tokenizer\":" x "}"
#define FILE_MODEL(x) "{" PRE "," DEC ",\"model\":{" x "}}"

static void check_file(const char *json, ds_code code, const char *field)
{
    ds_tokenizer *t;
    ds_err err = {0};
    ds_code got = ds_tokenizer_parse(json, strlen(json), &t, &err);
    CHECK_MSG(got == code, "%s: %s (%s), want %s", json, ds_err_name(got), err.msg, ds_err_name(code));
    CHECK_STR(err.field, field);
    CHECK(code == DS_OK || (t == NULL && err.msg[0]));
    ds_tokenizer_close(t);
}

DS_TEST(files_refused_by_name)
{
    check_file("{" MODEL "," PRE "," DEC "}", DS_OK, "");
    check_file("", DS_ECORRUPT, "");
    check_file("[]", DS_ECORRUPT, "");
    check_file("{", DS_ECORRUPT, "");
    check_file("\xFF", DS_ECORRUPT, "");
    check_file("{}", DS_EUNSUPPORTED, "model");
    check_file("{" MODEL "," MODEL "," PRE "," DEC "}", DS_ECORRUPT, "");
    check_file("{" MODEL "," PRE "," DEC ",}", DS_ECORRUPT, "");
    check_file(FILE_MODEL("\"type\":\"Unigram\",\"vocab\":[],\"merges\":[]"), DS_EUNSUPPORTED, "model.type");
    check_file(FILE_MODEL("\"vocab\":{\"a\":0},\"merges\":[[\"a\",\"x\"]]"), DS_ECORRUPT, "model.merges");
    check_file(FILE_MODEL("\"vocab\":{\"a\":0},\"merges\":[\"a\"]"), DS_ECORRUPT, "model.merges");
    check_file(FILE_MODEL("\"vocab\":{\"a\":0},\"merges\":[[\"a\",\"a\",\"a\"]]"), DS_ECORRUPT,
               "model.merges");
    check_file(FILE_MODEL("\"vocab\":{\"a\":0},\"merges\":{}"), DS_ECORRUPT, "model.merges");
    check_file(FILE_MODEL("\"vocab\":{\"a\":\"0\"},\"merges\":[]"), DS_ECORRUPT, "model.vocab");
    check_file(FILE_MODEL("\"vocab\":{\"a\":0.5},\"merges\":[]"), DS_ECORRUPT, "model.vocab");
    check_file(FILE_MODEL("\"vocab\":{\"a\":0,},\"merges\":[]"), DS_ECORRUPT, "model.vocab");
    check_file(FILE_MODEL("\"vocab\":[],\"merges\":[]"), DS_ECORRUPT, "model.vocab");
    check_file(FILE_MODEL("\"vocab\":{\"a\":-1},\"merges\":[]"), DS_ELIMIT, "model.vocab");
    check_file(FILE_MODEL("\"vocab\":{\"a\":1048576},\"merges\":[]"), DS_ELIMIT, "model.vocab");
    check_file(FILE_MODEL("\"vocab\":{\"a\":1048575},\"merges\":[]"), DS_OK, "");
    check_file(FILE_MODEL("\"vocab\":{\"a\":0,\"b\":0},\"merges\":[]"), DS_ECORRUPT, "model.vocab");
    check_file(FILE_MODEL("\"vocab\":{\"a\":0,\"a\":1},\"merges\":[]"), DS_ECORRUPT, "model.vocab");
    check_file(FILE_MODEL("\"vocab\":{\"\\ud800\":0},\"merges\":[]"), DS_ECORRUPT, "model.vocab");
    check_file(FILE_MODEL("\"vocab\":{},\"merges\":[],\"dropout\":0.1"), DS_EUNSUPPORTED, "model.dropout");
    check_file(FILE_MODEL("\"vocab\":{},\"merges\":[],\"end_of_word_suffix\":\"</w>\""), DS_EUNSUPPORTED,
               "model.end_of_word_suffix");
    check_file(FILE_MODEL("\"vocab\":{},\"merges\":[],\"unk_token\":\"<unk>\""), DS_ECORRUPT,
               "model.unk_token");
    check_file(FILE_WITH("\"normalizer\":{\"type\":\"Lowercase\"}"), DS_EUNSUPPORTED, "normalizer.type");
    check_file(FILE_WITH("\"normalizer\":{\"type\":\"Sequence\"}"), DS_ECORRUPT, "normalizers");
    check_file(FILE_WITH("\"post_processor\":{\"type\":\"BertProcessing\"}"), DS_EUNSUPPORTED,
               "post_processor.type");
    check_file(FILE_WITH("\"added_tokens\":[{\"id\":9}]"), DS_ECORRUPT, "added_tokens");
    check_file(FILE_WITH("\"added_tokens\":[{\"id\":9,\"content\":\"a\"}]"), DS_ECORRUPT, "added_tokens");
    check_file(FILE_WITH("\"added_tokens\":[{\"id\":1,\"content\":\"x\"}]"), DS_ECORRUPT, "added_tokens");
    check_file("{" MODEL "," PRE "}", DS_EUNSUPPORTED, "decoder");
    check_file("{" MODEL "," DEC "}", DS_EUNSUPPORTED, "decoder");
    check_file(FILE_PRE("{\"type\":\"Whitespace\"}"), DS_EUNSUPPORTED, "pre_tokenizer.type");
    check_file(FILE_PRE("{\"type\":\"Split\",\"behavior\":\"Isolated\"}"), DS_ECORRUPT,
               "pre_tokenizer.pattern");
    check_file(FILE_PRE("{\"type\":\"Split\",\"behavior\":\"x\",\"pattern\":{\"Regex\":\"a\"}}"),
               DS_EUNSUPPORTED, "pre_tokenizer.behavior");
}

DS_TEST(patterns_refused_by_name)
{
    static const char *const bad[] = {
        "a*",     "(",     "[a",      "[a&&b]",      "[[a]]",         "\\\\w",   "\\\\h",    "^a",
        "a$",     "a{2}+", "a{2}?",   "a{x}",        "(?m:a)",        "(?<n>a)", "\\\\k<n>", "\\\\p{Zzz}",
        "\\\\pL", "\\\\1", "\\\\xff", "\\\\x{d800}", "\\\\x{110000}", "[]a]",    "a\\\\"};
    for (size_t i = 0; i < sizeof bad / sizeof *bad; i++) {
        char json[1024];
        snprintf(json, sizeof json,
                 FILE_PRE("{\"type\":\"Split\",\"behavior\":\"Isolated\",\"pattern\":{\"Regex\":\"%s\"}}"),
                 bad[i]);
        check_file(json, DS_EUNSUPPORTED, "pre_tokenizer.pattern");
    }
}

/* A pattern of exponential cost ends in an error, not in an hour. */
DS_TEST(pattern_with_a_budget)
{
    ds_tokenizer *t;
    ds_ids ids = {0};
    ds_err err = {0};
    const char *json =
        "{" MODEL "," DEC
        ",\"pre_tokenizer\":{\"type\":\"Sequence\",\"pretokenizers\":[{\"type\":\"Split\",\"behavior\":"
        "\"Isolated\",\"pattern\":{\"Regex\":\"(a|aa)+(a|aa)+(a|aa)+[bc]\"}},"
        "{\"type\":\"ByteLevel\","
        "\"add_prefix_space\":false,\"use_regex\":false}]}}";
    char text[200];
    memset(text, 'a', sizeof text);
    CHECK_OK(ds_tokenizer_parse(json, strlen(json), &t, &err), err);
    CHECK_EQ(ds_tokenizer_encode(t, text, sizeof text, 1, 0, 0, &ids, &err), DS_ELIMIT);
    CHECK_EQ(ids.n, 0);
    ds_ids_free(&ids);
    ds_tokenizer_close(t);
}

DS_TEST(deep_json_is_refused)
{
    enum { DEPTH = 1 << 20 };
    char *json = malloc(2 * DEPTH + 64);
    CHECK(json != NULL);
    int n = sprintf(json, "{\"x\":");
    memset(json + n, '[', DEPTH);
    json[n + DEPTH] = 0;
    check_file(json, DS_ECORRUPT, "");
    free(json);
}

DS_TEST(missing_file)
{
    ds_tokenizer *t;
    ds_err err = {0};
    CHECK_EQ(ds_tokenizer_open(DS_SOURCE_DIR "/tests/golden", &t, &err), DS_ENOTFOUND);
    CHECK_MSG(strstr(err.msg, "tokenizer.json") != NULL, "%s", err.msg);
}

typedef struct {
    const ds_tokenizer *t;
    const ds_buf *text;
    ds_ids ids;
    ds_code code;
} job;

static void *encode_job(void *arg)
{
    job *j = arg;
    for (int i = 0; i < 20 && j->code == DS_OK; i++) {
        j->ids.n = 0;
        j->code = ds_tokenizer_encode(j->t, j->text->data, j->text->len, 1, 1, 0, &j->ids, NULL);
    }
    return NULL;
}

DS_TEST(threads_share_one_tokenizer)
{
    enum { THREADS = 4 };
    ds_tokenizer *t = must_open("deepseek");
    ds_buf text = {0};
    ds_err err = {0};
    CHECK_OK(ds_text_read_file(GOLDEN, "deepseek.jsonl", &text, &err), err);
    job jobs[THREADS + 1] = {0};
    pthread_t id[THREADS];
    for (int i = 0; i <= THREADS; i++)
        jobs[i] = (job){.t = t, .text = &text};
    encode_job(&jobs[THREADS]);
    for (int i = 0; i < THREADS; i++)
        CHECK_EQ(pthread_create(&id[i], NULL, encode_job, &jobs[i]), 0);
    for (int i = 0; i < THREADS; i++)
        CHECK_EQ(pthread_join(id[i], NULL), 0);
    for (int i = 0; i < THREADS; i++) {
        CHECK_EQ(jobs[i].code, DS_OK);
        CHECK_EQ(jobs[i].ids.n, jobs[THREADS].ids.n);
        CHECK(memcmp(jobs[i].ids.v, jobs[THREADS].ids.v, (size_t)jobs[i].ids.n * sizeof(int32_t)) == 0);
    }
    for (int i = 0; i <= THREADS; i++)
        ds_ids_free(&jobs[i].ids);
    ds_buf_free(&text);
    ds_tokenizer_close(t);
}
