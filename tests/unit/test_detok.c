/* test_detok.c - the incremental detokeniser: any cut into tokens gives the same text, valid at every step.
 */
#include "base/buf.h"
#include "base/limits.h"
#include "base/rng.h"
#include "tests/lib/test.h"
#include "text/tokenizer.h"
#include "text/utf8.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

/* A tokenizer of the 256 single bytes, id = byte, and one special token, 256. */
static ds_tokenizer *byte_tokenizer(void)
{
    ds_buf b = {0};
    CHECK_EQ(ds_buf_puts(&b, "{\"model\":{\"type\":\"BPE\",\"merges\":[],\"vocab\":{"), DS_OK);
    for (uint32_t i = 0, next = 0x100; i < 256; i++) {
        int itself = (i >= 0x21 && i <= 0x7E) || (i >= 0xA1 && i <= 0xAC) || i >= 0xAE;
        CHECK_EQ(ds_buf_printf(&b, "%s\"\\u%04x\":%u", i ? "," : "", itself ? i : next, i), DS_OK);
        next += !itself;
    }
    CHECK_EQ(ds_buf_puts(&b, "}},\"added_tokens\":[{\"id\":256,\"content\":\"<s>\",\"special\":true}],"
                             "\"pre_tokenizer\":{\"type\":\"ByteLevel\",\"add_prefix_space\":false},"
                             "\"decoder\":{\"type\":\"ByteLevel\"}}"),
             DS_OK);
    ds_tokenizer *t;
    ds_err err = {0};
    CHECK_OK(ds_tokenizer_parse(b.data, b.len, &t, &err), err);
    ds_buf_free(&b);
    return t;
}

/* Streams bytes one token each; the whole output goes to out. Returns the stop that ended it. */
static int stream(const ds_tokenizer *t, const char *bytes, size_t len, const char *const *stop, int n_stop,
                  ds_buf *out)
{
    ds_detok *d;
    ds_err err = {0};
    int hit = -1;
    const char *p;
    size_t n;
    CHECK_OK(ds_detok_open(t, 1, stop, n_stop, &d, &err), err);
    ds_buf_clear(out);
    for (size_t i = 0; i < len && hit < 0; i++) {
        CHECK_EQ(ds_detok_push(d, (unsigned char)bytes[i], &p, &n, &hit), DS_OK);
        CHECK_EQ(ds_utf8_prefix(p, n), n);
        CHECK_EQ(ds_buf_append(out, p, n), DS_OK);
    }
    CHECK_EQ(ds_detok_flush(d, &p, &n), DS_OK);
    CHECK_EQ(ds_utf8_prefix(p, n), n);
    CHECK_EQ(ds_buf_append(out, p, n), DS_OK);
    ds_detok_close(d);
    return hit;
}

static void check_text(const ds_tokenizer *t, const char *bytes, const char *want)
{
    ds_buf out = {0};
    CHECK_EQ(stream(t, bytes, strlen(bytes), NULL, 0, &out), -1);
    CHECK_STR(out.data, want);
    ds_buf_free(&out);
}

#define R "\xEF\xBF\xBD"

DS_TEST(invalid_bytes_as_from_utf8_lossy)
{
    ds_tokenizer *t = byte_tokenizer();
    check_text(t, "plain", "plain");
    check_text(t, "\xC3\xA9\xE2\x82\xAC\xF0\x9F\x98\x80", "\xC3\xA9\xE2\x82\xAC\xF0\x9F\x98\x80");
    check_text(t, "a\x80z", "a" R "z");
    check_text(t, "\xC0\xAF", R R);             /* overlong */
    check_text(t, "\xE0\x80\x80", R R R);       /* overlong: E0 needs A0..BF */
    check_text(t, "\xED\xA0\x80", R R R);       /* a surrogate */
    check_text(t, "\xF4\x90\x80\x80", R R R R); /* above U+10FFFF */
    check_text(t, "\xF0\x9F\x98x", R "x");      /* a maximal subpart of three bytes is one mark */
    check_text(t, "\xF0\x9F\x98", R);           /* the same at the end of the stream */
    check_text(t, "\xE2\x82\xE2\x82\xAC", R "\xE2\x82\xAC");
    check_text(t, "\xFF\xFE", R R);
    ds_tokenizer_close(t);
}

DS_TEST(holds_incomplete_characters)
{
    ds_tokenizer *t = byte_tokenizer();
    ds_detok *d;
    ds_err err = {0};
    const char *p;
    size_t n;
    int hit;
    CHECK_OK(ds_detok_open(t, 1, NULL, 0, &d, &err), err);
    const unsigned char euro[] = {0xE2, 0x82, 0xAC};
    for (int i = 0; i < 3; i++) {
        CHECK_EQ(ds_detok_push(d, euro[i], &p, &n, &hit), DS_OK);
        CHECK_EQ(n, i == 2 ? 3 : 0);
    }
    CHECK_EQ(ds_detok_push(d, 256, &p, &n, &hit), DS_OK); /* special: hidden */
    CHECK_EQ(n, 0);
    CHECK_EQ(ds_detok_push(d, 999, &p, &n, &hit), DS_OK); /* no such token */
    CHECK_EQ(n, 0);
    ds_detok_close(d);
    CHECK_OK(ds_detok_open(t, 0, NULL, 0, &d, &err), err);
    CHECK_EQ(ds_detok_push(d, 256, &p, &n, &hit), DS_OK);
    CHECK(n == 3 && memcmp(p, "<s>", 3) == 0);
    ds_detok_close(d);
    ds_tokenizer_close(t);
}

static void check_stop(const ds_tokenizer *t, const char *text, const char *const *stop, int n, int want,
                       const char *left)
{
    ds_buf out = {0};
    CHECK_EQ(stream(t, text, strlen(text), stop, n, &out), want);
    CHECK_STR(out.data, left);
    ds_buf_free(&out);
}

DS_TEST(stop_strings)
{
    ds_tokenizer *t = byte_tokenizer();
    check_stop(t, "one END two", (const char *[]){"END"}, 1, 0, "one ");
    check_stop(t, "one EN", (const char *[]){"END"}, 1, -1, "one EN"); /* a held prefix is not lost */
    check_stop(t, "EEND", (const char *[]){"END"}, 1, 0, "E");
    check_stop(t, "aabaabaac", (const char *[]){"aabaac"}, 1, 0, "aab"); /* falls back along borders */
    check_stop(t, "xabcdy", (const char *[]){"abcd", "bc"}, 2, 1, "xa"); /* complete first wins */
    check_stop(t, "xabcy", (const char *[]){"bc", "abc"}, 2, 1, "x");    /* same end: the longest */
    check_stop(t, "END", (const char *[]){"END"}, 1, 0, "");
    check_stop(t, "x\xE2\x82\xAC!", (const char *[]){"\xE2\x82\xAC"}, 1, 0, "x");
    check_stop(t, "x\xE2\x82\xA0", (const char *[]){"\xE2\x82\xAC"}, 1, -1, "x\xE2\x82\xA0");
    ds_tokenizer_close(t);
}

DS_TEST(stopped_stays_stopped)
{
    ds_tokenizer *t = byte_tokenizer();
    ds_detok *d;
    ds_err err = {0};
    const char *p;
    size_t n;
    int hit;
    CHECK_OK(ds_detok_open(t, 1, (const char *[]){"!"}, 1, &d, &err), err);
    CHECK_EQ(ds_detok_push(d, '!', &p, &n, &hit), DS_OK);
    CHECK_EQ(hit, 0);
    CHECK_EQ(ds_detok_push(d, 'x', &p, &n, &hit), DS_OK);
    CHECK(hit == 0 && n == 0);
    CHECK_EQ(ds_detok_flush(d, &p, &n), DS_OK);
    CHECK_EQ(n, 0);
    ds_detok_close(d);
    ds_tokenizer_close(t);
}

DS_TEST(limits)
{
    ds_tokenizer *t = byte_tokenizer();
    ds_detok *d;
    ds_err err = {0};
    const char *many[DS_MAX_STOP_STRINGS + 1];
    char longest[DS_MAX_STOP_BYTES + 2];
    for (int i = 0; i <= DS_MAX_STOP_STRINGS; i++)
        many[i] = "x";
    CHECK_EQ(ds_detok_open(t, 1, many, DS_MAX_STOP_STRINGS + 1, &d, &err), DS_EINVAL);
    CHECK_STR(err.field, "stop");
    CHECK_OK(ds_detok_open(t, 1, many, DS_MAX_STOP_STRINGS, &d, &err), err);
    ds_detok_close(d);
    memset(longest, 'a', sizeof longest);
    longest[DS_MAX_STOP_BYTES] = 0;
    CHECK_OK(ds_detok_open(t, 1, (const char *[]){longest}, 1, &d, &err), err);
    ds_detok_close(d);
    longest[DS_MAX_STOP_BYTES] = 'a';
    longest[DS_MAX_STOP_BYTES + 1] = 0;
    CHECK_EQ(ds_detok_open(t, 1, (const char *[]){longest}, 1, &d, &err), DS_EINVAL);
    CHECK_EQ(ds_detok_open(t, 1, (const char *[]){""}, 1, &d, &err), DS_EINVAL);
    CHECK_EQ(ds_detok_open(t, 1, (const char *[]){"\xFF"}, 1, &d, &err), DS_EINVAL);
    ds_tokenizer_close(t);
}

/* Random bytes over a small alphabet against a plain search of the finished text. */
DS_TEST(random_against_search)
{
    static const char letters[] = {'a', 'b', 'c', '\xC3', '\xA9', '\xE2', '\x82', '\xAC'};
    static const char *const stop[] = {"abca", "bb", "c\xC3\xA9", "\xC3\xA9\xC3\xA9"};
    ds_tokenizer *t = byte_tokenizer();
    ds_buf whole = {0}, out = {0};
    for (uint64_t seed = 0; seed < 2000; seed++) {
        char s[24];
        size_t len = ds_rng_u32(seed, DS_RNG_INIT, 0, 0) % sizeof s;
        for (size_t i = 0; i < len; i++)
            s[i] = letters[ds_rng_u32(seed, DS_RNG_INIT, 1, (uint32_t)i) % sizeof letters];
        stream(t, s, len, NULL, 0, &whole);
        int got = stream(t, s, len, stop, 4, &out), want = -1;
        size_t first_end = whole.len + 1, start = whole.len;
        for (int k = 0; k < 4; k++) {
            const char *at = strstr(whole.data ? whole.data : "", stop[k]);
            size_t end = at ? (size_t)(at - whole.data) + strlen(stop[k]) : whole.len + 1;
            if (at && (end < first_end || (end == first_end && (size_t)(at - whole.data) < start))) {
                first_end = end;
                start = (size_t)(at - whole.data);
                want = k;
            }
        }
        CHECK_MSG(got == want && out.len == start && (!start || memcmp(out.data, whole.data, start) == 0),
                  "seed %llu: stop %d after %zu bytes, want %d after %zu", (unsigned long long)seed, got,
                  out.len, want, start);
    }
    ds_buf_free(&whole);
    ds_buf_free(&out);
    ds_tokenizer_close(t);
}
