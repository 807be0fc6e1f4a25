/* http.c - see http.h. The guard is a byte automaton over the head and over the lines between chunks; data
 * bytes are skipped in bulk. Nothing reaches http-parser that the guard has not passed. */
#include "daemon/http.h"

#include <stdlib.h>
#include <string.h>
#include <strings.h>

enum guard {
    G_START, /* before the request line; one empty line is tolerated (RFC 9112, 2.2) */
    G_START_LF,
    G_LINE,       /* request line */
    G_LINE_LF,    /* its LF */
    G_NAME_FIRST, /* first byte of a field line, or CR of the empty line */
    G_NAME,       /* field name up to the colon */
    G_VALUE,      /* up to CR */
    G_VALUE_LF,
    G_HEAD_LF,    /* LF of the empty line: the head ends */
    G_LENGTH,     /* body of known length: chunk_left bytes remain */
    G_SIZE_FIRST, /* first digit of a chunk size */
    G_SIZE,
    G_EXT,
    G_SIZE_LF,
    G_DATA, /* chunk_left bytes remain */
    G_DATA_CR,
    G_DATA_LF,
    G_LAST_CR, /* after the last chunk: trailers are refused */
    G_LAST_LF,
    G_END
};

static int refuse(ds_http_reader *r, int status, const char *why)
{
    r->state = DS_HTTP_BAD;
    r->status = status;
    r->why = why;
    r->keep_alive = 0;
    return -1;
}

static int is_token(unsigned char c)
{
    return (c >= 'a' && c <= 'z') || (c >= 'A' && c <= 'Z') || (c >= '0' && c <= '9') ||
           (c && strchr("!#$%&'*+-.^_`|~", c));
}

void ds_http_reader_init(ds_http_reader *r, size_t max_body)
{
    memset(r, 0, sizeof *r);
    r->max_body = max_body;
    r->head.max = DS_MAX_HTTP_HEADER_BYTES;
    r->body.max = max_body;
}

void ds_http_reader_reset(ds_http_reader *r)
{
    ds_http_reader_free(r);
    ds_http_reader_init(r, r->max_body);
}

void ds_http_reader_free(ds_http_reader *r)
{
    ds_buf_free(&r->head);
    ds_buf_free(&r->body);
    free(r->path);
    r->path = NULL;
}

/* One byte of the head. Returns 1 at its end, 0 to go on, -1 refused. */
static int guard_head(ds_http_reader *r, unsigned char c)
{
    switch (r->guard) {
    case G_LINE:
        if (c == '\r') {
            r->guard = G_LINE_LF;
            return 0;
        }
        if (c < 0x20 || c >= 0x7F)
            return refuse(r, 400, "request line holds a control or non-ASCII byte");
        if (c == ' ' && (r->after_blank || ++r->n_blanks > 2))
            return refuse(r, 400, "request line has more than two blanks");
        r->after_blank = c == ' ';
        if (++r->line_bytes > DS_HTTP_MAX_LINE)
            return refuse(r, 414, "request line is longer than 8192 bytes");
        return 0;
    case G_LINE_LF:
    case G_VALUE_LF:
        if (c != '\n')
            return refuse(r, 400, "CR without LF");
        r->guard = G_NAME_FIRST;
        return 0;
    case G_NAME_FIRST:
        if (c == '\r') {
            r->guard = G_HEAD_LF;
            return 0;
        }
        if (c == ' ' || c == '\t')
            return refuse(r, 400, "folded header lines are refused");
        if (++r->n_fields > DS_HTTP_MAX_FIELDS)
            return refuse(r, 431, "more than 100 header fields");
        r->guard = G_NAME;
        return is_token(c) ? 0 : refuse(r, 400, "header name holds an illegal byte");
    case G_NAME:
        if (c == ':') {
            r->guard = G_VALUE;
            return 0;
        }
        return is_token(c) ? 0 : refuse(r, 400, "header name holds an illegal byte");
    case G_VALUE:
        if (c == '\r') {
            r->guard = G_VALUE_LF;
            return 0;
        }
        return (c >= 0x20 && c != 0x7F) || c == '\t' ? 0
                                                     : refuse(r, 400, "header value holds a control byte");
    default: /* G_HEAD_LF */
        return c == '\n' ? 1 : refuse(r, 400, "CR without LF");
    }
}

static int hex_digit(unsigned char c)
{
    if (c >= '0' && c <= '9')
        return c - '0';
    c |= 0x20;
    return c >= 'a' && c <= 'f' ? c - 'a' + 10 : -1;
}

/* One byte between chunk data. Returns 1 at the end of the message, 0 to go on, -1 refused. */
static int guard_chunk(ds_http_reader *r, unsigned char c)
{
    int digit;
    if (++r->chunk_overhead > 65536 + 16 * (uint64_t)r->body.len)
        return refuse(r, 400, "chunk framing outweighs the body");
    switch (r->guard) {
    case G_SIZE_FIRST:
        if ((digit = hex_digit(c)) < 0)
            return refuse(r, 400, "chunk size is not hexadecimal");
        r->chunk_left = (uint64_t)digit;
        r->line_bytes = 1;
        r->guard = G_SIZE;
        return 0;
    case G_SIZE:
        if ((digit = hex_digit(c)) >= 0) {
            r->chunk_left = r->chunk_left * 16 + (uint64_t)digit;
            return ++r->line_bytes <= 8 ? 0 : refuse(r, 413, "chunk size has more than 8 digits");
        }
        if (c != '\r' && c != ';')
            return refuse(r, 400, "chunk size is not hexadecimal");
        r->line_bytes = 0;
        r->guard = c == ';' ? G_EXT : G_SIZE_LF;
        return 0;
    case G_EXT:
        if (c == '\r')
            r->guard = G_SIZE_LF;
        else if ((c < 0x20 && c != '\t') || c == 0x7F || ++r->line_bytes > DS_HTTP_MAX_CHUNK_EXT)
            return refuse(r, 400, "chunk extension is malformed or longer than 256 bytes");
        return 0;
    case G_SIZE_LF:
        if (c != '\n')
            return refuse(r, 400, "chunk size line does not end in CRLF");
        if (r->chunk_left > r->max_body - r->body.len)
            return refuse(r, 413, "body is larger than the limit");
        r->guard = r->chunk_left ? G_DATA : G_LAST_CR;
        return 0;
    case G_DATA_CR:
        r->guard = G_DATA_LF;
        return c == '\r' ? 0 : refuse(r, 400, "chunk data does not end in CRLF");
    case G_DATA_LF:
        r->guard = G_SIZE_FIRST;
        return c == '\n' ? 0 : refuse(r, 400, "chunk data does not end in CRLF");
    case G_LAST_CR:
        r->guard = G_LAST_LF;
        return c == '\r' ? 0 : refuse(r, 400, "trailers are refused");
    default: /* G_LAST_LF */
        r->guard = G_END;
        return c == '\n' ? 1 : refuse(r, 400, "CR without LF");
    }
}

static int on_url(http_parser *p, const char *at, size_t n)
{
    ds_http_reader *r = p->data;
    const char *query = memchr(at, '?', n);
    free(r->path);
    r->path = strndup(at, query ? (size_t)(query - at) : n);
    return r->path ? 0 : -1;
}

static int on_field(http_parser *p, const char *at, size_t n)
{
    ds_http_reader *r = p->data;
    r->field = at;
    r->field_len = n;
    return 0;
}

static int field_is(const ds_http_reader *r, const char *name)
{
    return strlen(name) == r->field_len && !strncasecmp(name, r->field, r->field_len);
}

static int value_is(const char *at, size_t n, const char *want)
{
    return strlen(want) == n && !strncasecmp(at, want, n);
}

/* Framing fields, read strictly: a length is 1..16 digits and nothing else. */
static int on_value(http_parser *p, const char *at, size_t n)
{
    ds_http_reader *r = p->data;
    while (n && (at[n - 1] == ' ' || at[n - 1] == '\t'))
        n--;
    if (field_is(r, "host")) {
        r->n_host++;
    } else if (field_is(r, "content-length")) {
        r->n_length++;
        if (n < 1 || n > 16 || strspn(at, "0123456789") < n)
            return refuse(r, 400, "Content-Length is not a plain number");
        r->length = strtoull(at, NULL, 10);
    } else if (field_is(r, "transfer-encoding")) {
        r->n_coding++;
        r->chunked = value_is(at, n, "chunked");
        r->other_coding |= !r->chunked;
    } else if (field_is(r, "expect")) {
        r->expect_continue = 1;
        if (!value_is(at, n, "100-continue"))
            return refuse(r, 417, "the only expectation served is 100-continue");
    }
    return 0;
}

static int on_headers_complete(http_parser *p)
{
    ds_http_reader *r = p->data;
    r->keep_alive = http_should_keep_alive(p);
    r->minor = p->http_minor;
    strncpy(r->method, http_method_str((enum http_method)p->method), sizeof r->method - 1);
    return 0;
}

static int on_body(http_parser *p, const char *at, size_t n)
{
    ds_http_reader *r = p->data;
    return ds_buf_append(&r->body, at, n) ? refuse(r, 413, "body is larger than the limit") : 0;
}

static int on_complete(http_parser *p)
{
    ds_http_reader *r = p->data;
    r->state = DS_HTTP_DONE;
    return 0;
}

static const http_parser_settings SETTINGS = {
    .on_url = on_url,
    .on_header_field = on_field,
    .on_header_value = on_value,
    .on_headers_complete = on_headers_complete,
    .on_body = on_body,
    .on_message_complete = on_complete,
};

/* What the parser says about bytes the guard has passed; an early stop is a refusal. */
static int parse(ds_http_reader *r, const char *data, size_t n)
{
    size_t used = http_parser_execute(&r->parser, &SETTINGS, data, n);
    if (r->state == DS_HTTP_BAD)
        return -1;
    enum http_errno e = HTTP_PARSER_ERRNO(&r->parser);
    if (e == HPE_OK && used == n)
        return 0;
    if (e == HPE_INVALID_VERSION)
        return refuse(r, 505, "only HTTP/1.0 and HTTP/1.1 are served");
    if (e == HPE_INVALID_TRANSFER_ENCODING)
        return refuse(r, 501, "the only transfer coding served is chunked");
    if (e == HPE_INVALID_METHOD)
        return refuse(r, 501, "unknown method");
    return refuse(r, 400, e == HPE_OK ? "bytes behind the end of the message" : http_errno_description(e));
}

static int check_head(ds_http_reader *r)
{
    if (!r->path || r->path[0] != '/')
        return refuse(r, 400, "the request target must be a path");
    if (r->parser.http_major != 1 || r->parser.http_minor > 1)
        return refuse(r, 505, "only HTTP/1.0 and HTTP/1.1 are served");
    if (r->n_host > 1 || (r->minor == 1 && r->n_host == 0))
        return refuse(r, 400, "exactly one Host header is required");
    if (r->n_length > 1 || r->n_coding > 1 || (r->n_length && r->n_coding))
        return refuse(r, 400, "Content-Length and Transfer-Encoding are ambiguous");
    if (r->n_coding && r->minor == 0)
        return refuse(r, 400, "Transfer-Encoding in HTTP/1.0");
    if (r->other_coding)
        return refuse(r, 501, "the only transfer coding served is chunked");
    if (r->n_length && r->length > r->max_body)
        return refuse(r, 413, "body is larger than the limit");
    return 0;
}

/* The head is complete: decode it, settle the framing. */
static int head_complete(ds_http_reader *r)
{
    r->state = DS_HTTP_BODY;
    http_parser_init(&r->parser, HTTP_REQUEST);
    r->parser.data = r;
    /* http-parser calls on_message_complete at once when there is no body. */
    if (parse(r, r->head.data, r->head.len) < 0 || check_head(r) < 0)
        return -1;
    r->field = NULL;
    int bodiless = !r->chunked && r->length == 0;
    if (bodiless != (r->state == DS_HTTP_DONE))
        return refuse(r, 400, "framing is ambiguous");
    r->chunk_left = r->length;
    r->guard = bodiless ? G_END : r->chunked ? G_SIZE_FIRST : G_LENGTH;
    return 0;
}

/* Body bytes: how many of them belong to this message, -1 refused. */
static long guard_body(ds_http_reader *r, const char *data, size_t n)
{
    size_t i = 0;
    int end = 0;
    while (i < n && !end) {
        if (r->guard == G_LENGTH || r->guard == G_DATA) {
            size_t take = n - i < r->chunk_left ? n - i : (size_t)r->chunk_left;
            i += take;
            r->chunk_left -= take;
            if (r->chunk_left == 0 && r->guard == G_LENGTH)
                end = 1;
            else if (r->chunk_left == 0)
                r->guard = G_DATA_CR;
            if (r->guard == G_DATA || r->guard == G_DATA_CR)
                break; /* hand the data over before judging the next size line by the body's length */
        } else {
            end = guard_chunk(r, (unsigned char)data[i++]);
            if (end < 0)
                return -1;
        }
    }
    return (long)i;
}

/* Head bytes up to its end or to n. Returns the bytes used; r->head gets all of them but a leading empty
 * line. */
static size_t feed_head(ds_http_reader *r, const char *data, size_t n)
{
    size_t used = 0, keep = 0;
    int end = 0;
    while (used < n && end == 0) {
        unsigned char c = (unsigned char)data[used++];
        if (r->guard == G_START && c == '\r') {
            r->guard = G_START_LF;
            keep = used;
        } else if (r->guard == G_START_LF) {
            r->guard = G_LINE;
            keep = used;
            if (c != '\n')
                end = refuse(r, 400, "CR without LF");
        } else {
            if (r->guard == G_START)
                r->guard = G_LINE;
            end = guard_head(r, c);
        }
    }
    if (end >= 0 && ds_buf_append(&r->head, data + keep, used - keep))
        end = refuse(r, 431, "header fields are larger than 32768 bytes");
    if (end > 0)
        head_complete(r);
    return used;
}

size_t ds_http_reader_feed(ds_http_reader *r, const char *data, size_t n)
{
    size_t used = 0;
    if (r->state == DS_HTTP_HEAD)
        used = feed_head(r, data, n);
    while (r->state == DS_HTTP_BODY && used < n) {
        long take = guard_body(r, data + used, n - used);
        if (take < 0 || parse(r, data + used, (size_t)take) < 0)
            break;
        used += (size_t)take;
    }
    return used;
}

const char *ds_http_reason(int status)
{
    switch (status) {
#define REASON(num, name, text) \
    case num:                   \
        return #text;
        HTTP_STATUS_MAP(REASON)
#undef REASON
    default:
        return "Unknown";
    }
}

ds_code ds_http_write_head(ds_buf *out, int status, const char *type, int64_t length, int minor,
                           int keep_alive, const char *extra)
{
    DS_TRY(
        ds_buf_printf(out, "HTTP/1.1 %d %s\r\nContent-Type: %s\r\n", status, ds_http_reason(status), type));
    if (length >= 0)
        DS_TRY(ds_buf_printf(out, "Content-Length: %lld\r\n", (long long)length));
    else
        DS_TRY(ds_buf_puts(out, minor ? "Transfer-Encoding: chunked\r\nCache-Control: no-cache\r\n"
                                      : "Cache-Control: no-cache\r\n"));
    return ds_buf_printf(out, "%sConnection: %s\r\n\r\n", extra, keep_alive ? "keep-alive" : "close");
}
