/* Bytes into the HTTP reader, whole and split: both must come to the same messages, and no body beyond its
 * limit. */
#include "daemon/http.h"

#include <stdint.h>
#include <stdlib.h>

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

enum { MAX_BODY = 512 };

typedef struct sum {
    int messages, status;
    size_t used, body;
} sum;

static sum run(const char *p, size_t n, size_t step)
{
    sum s = {0};
    ds_http_reader r;
    ds_http_reader_init(&r, MAX_BODY);
    size_t at = 0;
    while (at < n && r.state != DS_HTTP_BAD) {
        size_t take = n - at < step ? n - at : step;
        size_t used = ds_http_reader_feed(&r, p + at, take);
        if (used > take || (used == 0 && r.state != DS_HTTP_BAD) || r.body.len > MAX_BODY)
            abort();
        at += used;
        if (r.state == DS_HTTP_DONE) {
            s.messages++;
            s.body += r.body.len;
            s.used = at;
            ds_http_reader_reset(&r);
        }
    }
    s.status = r.state == DS_HTTP_BAD ? r.status : 0;
    if (r.state == DS_HTTP_BAD && !r.why)
        abort();
    ds_http_reader_free(&r);
    return s;
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    sum whole = run((const char *)data, size, size ? size : 1), bytes = run((const char *)data, size, 1);
    if (whole.messages != bytes.messages || whole.status != bytes.status || whole.body != bytes.body ||
        whole.used != bytes.used)
        abort();
    return 0;
}
