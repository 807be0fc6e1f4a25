/* http.h - HTTP/1.1 requests from bytes. Reads one message at a time and stops at its last byte, so that what
 * a pipelining client sent behind it stays with the caller. Pure: no socket, no clock. Owner: the loop
 * thread.
 *
 * Two readers must agree: http-parser (Debian's libhttp-parser, built non-strict) decodes, and a byte guard
 * in front of it refuses what that build lets pass: bare CR or LF, folded lines, blanks around a field name,
 * a chunk that does not end in CRLF, trailers, and every doubtful framing (RFC 9112, 2.2, 5.1, 6.1-6.3, 7.1).
 */
#ifndef DS_DAEMON_HTTP_H
#define DS_DAEMON_HTTP_H

#include "base/buf.h"
#include "base/limits.h"

#include <http_parser.h>
#include <stdint.h>

enum {
    DS_HTTP_MAX_LINE = 8 << 10, /* bytes of the request line; beyond: 414 */
    DS_HTTP_MAX_FIELDS = 100,   /* header fields; beyond: 431 */
    DS_HTTP_MAX_CHUNK_EXT = 256 /* bytes of one chunk's extension */
};

typedef enum {
    DS_HTTP_HEAD, /* reading the request line and fields */
    DS_HTTP_BODY, /* head is complete, body is not */
    DS_HTTP_DONE, /* the message is complete */
    DS_HTTP_BAD   /* refused: status and why are set; the connection must close */
} ds_http_state;

typedef struct ds_http_reader {
    ds_http_state state;
    size_t max_body;
    ds_buf head; /* raw bytes of the head */
    ds_buf body;
    char method[12];
    char *path; /* without the query; NUL-terminated */
    int minor;  /* of HTTP/1.x */
    int keep_alive;
    int expect_continue;
    int status; /* BAD: what to answer */
    const char *why;

    /* the guard's own state */
    int guard;
    int n_blanks, after_blank; /* of the request line */
    int n_fields;
    size_t line_bytes;
    uint64_t chunk_left, chunk_overhead;
    /* framing as the guard saw it */
    int n_host, n_length, n_coding, chunked, other_coding;
    uint64_t length;
    http_parser parser;
    const char *field; /* last name, inside head */
    size_t field_len;
} ds_http_reader;

void ds_http_reader_init(ds_http_reader *r, size_t max_body);
/* ds_http_reader_reset: ready for the next message; body and head memory are released. */
void ds_http_reader_reset(ds_http_reader *r);
void ds_http_reader_free(ds_http_reader *r);
/* ds_http_reader_feed: consume up to the end of this message. Returns the bytes used; state says how far it
 * got. */
size_t ds_http_reader_feed(ds_http_reader *r, const char *data, size_t n);

/* ds_http_write_head: status line and fields. length < 0: chunked (HTTP/1.1) or until close (1.0).
 * extra: further "Name: value\r\n" lines or "". */
ds_code ds_http_write_head(ds_buf *out, int status, const char *type, int64_t length, int minor,
                           int keep_alive, const char *extra);
const char *ds_http_reason(int status);

#endif
