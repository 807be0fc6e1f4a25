/* The HTTP reader: what it takes, what it refuses and with which status, fed whole and byte by byte. */
#include "daemon/http.h"
#include "tests/lib/test.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum { MAX_BODY = 1000 };

/* Feeds text in pieces of `step` bytes; returns what was left unused. */
static size_t feed(ds_http_reader *r, const char *text, size_t n, size_t step)
{
    size_t at = 0;
    while (at < n && r->state != DS_HTTP_DONE && r->state != DS_HTTP_BAD) {
        size_t take = n - at < step ? n - at : step;
        at += ds_http_reader_feed(r, text + at, take);
    }
    return n - at;
}

/* The same bytes in one piece, in sevens and in single bytes must come to the same end. */
static void expect(const char *text, ds_http_state state, int status)
{
    static const size_t STEPS[] = {1, 7, 1 << 20};
    for (int i = 0; i < 3; i++) {
        ds_http_reader r;
        ds_http_reader_init(&r, MAX_BODY);
        feed(&r, text, strlen(text), STEPS[i]);
        CHECK_MSG(r.state == state && (state != DS_HTTP_BAD || r.status == status),
                  "state %d status %d (%s), want %d %d, step %zu: %.60s", r.state, r.status,
                  r.why ? r.why : "", state, status, STEPS[i], text);
        ds_http_reader_free(&r);
    }
}

static void bad(const char *text, int status)
{
    expect(text, DS_HTTP_BAD, status);
}

#define HEAD "POST /x HTTP/1.1\r\nHost: a\r\n"

DS_TEST(takes_whole_messages)
{
    expect("GET / HTTP/1.1\r\nHost: a\r\n\r\n", DS_HTTP_DONE, 0);
    expect("\r\nGET / HTTP/1.1\r\nHost: a\r\n\r\n", DS_HTTP_DONE, 0);
    expect("GET / HTTP/1.0\r\n\r\n", DS_HTTP_DONE, 0);
    expect(HEAD "Content-Length: 3\r\n\r\nabc", DS_HTTP_DONE, 0);
    expect(HEAD "Content-Length: 0\r\n\r\n", DS_HTTP_DONE, 0);
    expect(HEAD "Content-Length: 3\r\n\r\nab", DS_HTTP_BODY, 0);
    expect(HEAD "Transfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n0\r\n\r\n", DS_HTTP_DONE, 0);
    expect(HEAD "transfer-encoding: Chunked\r\n\r\n3;x=y\r\nabc\r\nA\r\n0123456789\r\n0\r\n\r\n",
           DS_HTTP_DONE, 0);
    expect("GET /a?b=c HTTP/1.1\r\nHost:\ta \r\nX: \xc3\xa4\r\n\r\n", DS_HTTP_DONE, 0);
}

DS_TEST(reads_fields)
{
    static const char text[] =
        "POST /v1/x?q=1 HTTP/1.1\r\nHost: a\r\nExpect: 100-continue\r\nConnection: close\r\n"
        "Transfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n2\r\nde\r\n0\r\n\r\nGET /next";
    for (size_t step = 1; step < sizeof text; step++) {
        ds_http_reader r;
        ds_http_reader_init(&r, MAX_BODY);
        size_t left = feed(&r, text, sizeof text - 1, step);
        CHECK_EQ(r.state, DS_HTTP_DONE);
        CHECK_STR(r.method, "POST");
        CHECK_STR(r.path, "/v1/x");
        CHECK_EQ(r.body.len, 5);
        CHECK(!memcmp(r.body.data, "abcde", 5));
        CHECK_EQ(r.keep_alive, 0);
        CHECK_EQ(r.expect_continue, 1);
        CHECK_EQ(left, strlen("GET /next")); /* pipelined bytes are not touched */
        ds_http_reader_reset(&r);
        CHECK_EQ(r.state, DS_HTTP_HEAD);
        CHECK_EQ(feed(&r, "GET / HTTP/1.1\r\nHost: b\r\n\r\n", 27, 1), 0);
        CHECK_EQ(r.keep_alive, 1);
        ds_http_reader_free(&r);
    }
}

DS_TEST(refuses_ambiguous_framing)
{
    bad(HEAD "Content-Length: 3\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n0\r\n\r\n", 400);
    bad(HEAD "Transfer-Encoding: chunked\r\nContent-Length: 3\r\n\r\n3\r\nabc\r\n0\r\n\r\n", 400);
    bad(HEAD "Content-Length: 3\r\nContent-Length: 3\r\n\r\nabc", 400);
    bad(HEAD "Content-Length: 3\r\nContent-Length: 4\r\n\r\nabc", 400);
    static const char *const lengths[] = {
        "5, 5", "+5", "0x5", "-1", "5 5", "", "5;", "9223372036854775808", "18446744073709551617",
        "five", "5.0"};
    for (size_t i = 0; i < sizeof lengths / sizeof *lengths; i++) {
        char text[200];
        snprintf(text, sizeof text, HEAD "Content-Length: %s\r\n\r\nabcde", lengths[i]);
        bad(text, 400);
    }
    bad(HEAD "Transfer-Encoding: chunked, chunked\r\n\r\n0\r\n\r\n", 501);
    bad(HEAD "Transfer-Encoding: xchunked\r\n\r\n0\r\n\r\n", 501);
    bad(HEAD "Transfer-Encoding: gzip, chunked\r\n\r\n0\r\n\r\n", 501);
    bad(HEAD "Transfer-Encoding: chunked\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n", 400);
    bad(HEAD "Transfer-Encoding: identity\r\n\r\nabc", 501);
    bad("POST / HTTP/1.0\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n", 400);
}

DS_TEST(refuses_bad_bytes)
{
    bad("GET / HTTP/1.1\nHost: a\n\n", 400);
    bad("GET / HTTP/1.1\r\nHost: a\nX: y\r\n\r\n", 400);
    bad("GET / HTTP/1.1\r\nHost: a\rX: y\r\n\r\n", 400);
    bad("GET / HTTP/1.1\r\nHost: a\r\n folded\r\n\r\n", 400);
    bad("GET / HTTP/1.1\r\nHost : a\r\n\r\n", 400);
    bad("GET / HTTP/1.1\r\n: a\r\n\r\n", 400);
    bad("GET / HTTP/1.1\r\nHo\x01st: a\r\n\r\n", 400);
    bad("GET / HTTP/1.1\r\nHost: a\x02\r\n\r\n", 400);
    bad("GET /\x80 HTTP/1.1\r\nHost: a\r\n\r\n", 400);
    bad("GET /\r\n\r\n", 505); /* HTTP/0.9 */
    bad("GET  / HTTP/1.1\r\nHost: a\r\n\r\n", 400);
    bad("PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", 501);
    bad("GET / HTTP/2.0\r\nHost: a\r\n\r\n", 505);
    bad("GET http://a/ HTTP/1.1\r\nHost: a\r\n\r\n", 400);
    bad("OPTIONS * HTTP/1.1\r\nHost: a\r\n\r\n", 400);
    bad("CONNECT a:1 HTTP/1.1\r\nHost: a\r\n\r\n", 400);
    bad("GET / HTTP/1.1\r\n\r\n", 400);
    bad("GET / HTTP/1.1\r\nHost: a\r\nHost: a\r\n\r\n", 400);
    bad("\r\n\r\nGET / HTTP/1.1\r\nHost: a\r\n\r\n", 400);
    bad(HEAD "Expect: tea\r\nContent-Length: 1\r\n\r\na", 417);
    ds_http_reader r;
    ds_http_reader_init(&r, MAX_BODY);
    feed(&r, "GET / HTTP/1.1\r\nHost: a\0b\r\n\r\n", 29, 100);
    CHECK_EQ(r.state, DS_HTTP_BAD);
    ds_http_reader_free(&r);
}

DS_TEST(refuses_bad_chunks)
{
#define CH HEAD "Transfer-Encoding: chunked\r\n\r\n"
    bad(CH "3\r\nabcXX0\r\n\r\n", 400); /* http-parser as Debian builds it takes this one */
    bad(CH "3\nabc\r\n0\r\n\r\n", 400);
    bad(CH "3\r\nabc\n0\r\n\r\n", 400);
    bad(CH "3;a\nb\r\nabc\r\n0\r\n\r\n", 400);
    bad(CH "g\r\n\r\n", 400);
    bad(CH "\r\n", 400);
    bad(CH "-3\r\nabc\r\n", 400);
    bad(CH " 3\r\nabc\r\n", 400);
    bad(CH "3 \r\nabc\r\n", 400);
    bad(CH "0x3\r\nabc\r\n", 400);
    bad(CH "0\r\nX: y\r\n\r\n", 400);
    bad(CH "0\r\nContent-Length: 9\r\n\r\n", 400);
    bad(CH "ffffffffffffffff\r\n", 413);
    bad(CH "3e9\r\n", 413); /* 1001, one above the limit */
    bad(CH "0000000003\r\n", 413);
    char text[1000];
    int n = snprintf(text, sizeof text, CH "3;");
    memset(text + n, 'e', 300);
    strcpy(text + n + 300, "\r\nabc\r\n0\r\n\r\n");
    bad(text, 400);
#undef CH
}

DS_TEST(body_limit)
{
    char text[2000];
    int n = snprintf(text, sizeof text, HEAD "Content-Length: %d\r\n\r\n", MAX_BODY);
    memset(text + n, 'x', MAX_BODY);
    text[n + MAX_BODY] = 0;
    expect(text, DS_HTTP_DONE, 0);
    snprintf(text, sizeof text, HEAD "Content-Length: %d\r\n\r\n", MAX_BODY + 1);
    bad(text, 413);
}

DS_TEST(chunk_overhead_is_bounded)
{
    ds_http_reader r;
    ds_http_reader_init(&r, 8 << 20);
    static const char head[] = HEAD "Transfer-Encoding: chunked\r\n\r\n";
    feed(&r, head, sizeof head - 1, 100);
    char chunk[280] = "1;";
    memset(chunk + 2, 'e', 200);
    strcpy(chunk + 202, "\r\nx\r\n");
    int i = 0;
    for (; i < 100000 && r.state == DS_HTTP_BODY; i++)
        feed(&r, chunk, strlen(chunk), sizeof chunk);
    CHECK_EQ(r.state, DS_HTTP_BAD);
    CHECK(i < 500);
    ds_http_reader_free(&r);
}

DS_TEST(head_limits)
{
    char *text = calloc(1, 64 << 10);
    CHECK(text != NULL);
    int n = sprintf(text, "GET /");
    memset(text + n, 'a', DS_HTTP_MAX_LINE);
    strcpy(text + n + DS_HTTP_MAX_LINE, " HTTP/1.1\r\nHost: a\r\n\r\n");
    bad(text, 414);
    n = sprintf(text, "GET / HTTP/1.1\r\nHost: a\r\nX: ");
    memset(text + n, 'a', DS_MAX_HTTP_HEADER_BYTES);
    text[n + DS_MAX_HTTP_HEADER_BYTES] = 0;
    bad(text, 431);
    n = sprintf(text, "GET / HTTP/1.1\r\nHost: a\r\n");
    for (int i = 0; i < DS_HTTP_MAX_FIELDS; i++)
        n += sprintf(text + n, "X-%d: y\r\n", i);
    strcpy(text + n, "\r\n");
    bad(text, 431);
    n = sprintf(text, "GET / HTTP/1.1\r\nHost: a\r\n");
    for (int i = 0; i < DS_HTTP_MAX_FIELDS - 1; i++)
        n += sprintf(text + n, "X-%d: y\r\n", i);
    strcpy(text + n, "\r\n");
    expect(text, DS_HTTP_DONE, 0);
    free(text);
}

DS_TEST(writes_heads)
{
    ds_buf b = {0};
    CHECK_EQ(ds_http_write_head(&b, 429, "text/plain", 5, 1, 1, "Retry-After: 1\r\n"), DS_OK);
    CHECK_STR(b.data, "HTTP/1.1 429 Too Many Requests\r\nContent-Type: text/plain\r\nContent-Length: 5\r\n"
                      "Retry-After: 1\r\nConnection: keep-alive\r\n\r\n");
    ds_buf_clear(&b);
    CHECK_EQ(ds_http_write_head(&b, 200, "text/event-stream", -1, 0, 0, ""), DS_OK);
    CHECK(!strstr(b.data, "chunked"));
    ds_buf_free(&b);
}
