/* sse.c - lines end with CR, LF or CRLF; an empty line ends an event; only "data" fields matter here. */
#include "cli/sse.h"

#include <string.h>

void ds_sse_init(ds_sse *s, ds_sse_fn fn, void *ctx)
{
    *s = (ds_sse){.line.max = DS_SSE_MAX_EVENT, .data.max = DS_SSE_MAX_EVENT, .fn = fn, .ctx = ctx};
}

void ds_sse_reset(ds_sse *s)
{
    ds_buf_clear(&s->line);
    ds_buf_clear(&s->data);
    s->has_data = s->after_cr = 0;
}

void ds_sse_fini(ds_sse *s)
{
    ds_buf_free(&s->line);
    ds_buf_free(&s->data);
}

static ds_code end_event(ds_sse *s)
{
    if (!s->has_data)
        return DS_OK;
    s->has_data = 0;
    int stop = s->fn(s->ctx, s->data.data, s->data.len);
    ds_buf_clear(&s->data);
    return stop ? DS_ECANCELLED : DS_OK;
}

static ds_code end_line(ds_sse *s)
{
    const char *line = s->line.data;
    size_t n = s->line.len;
    if (n == 0)
        return end_event(s);
    ds_code code = DS_OK;
    if (n >= 5 && memcmp(line, "data:", 5) == 0) {
        size_t skip = n > 5 && line[5] == ' ' ? 6 : 5;
        if (s->has_data)
            code = ds_buf_puts(&s->data, "\n");
        s->has_data = 1;
        if (!code)
            code = ds_buf_append(&s->data, line + skip, n - skip);
    }
    ds_buf_clear(&s->line);
    return code;
}

ds_code ds_sse_feed(ds_sse *s, const char *p, size_t n)
{
    const char *end = p + n;
    while (p < end) {
        if (s->after_cr && *p == '\n') {
            s->after_cr = 0;
            p++;
            continue;
        }
        s->after_cr = 0;
        const char *stop = p;
        while (stop < end && *stop != '\n' && *stop != '\r')
            stop++;
        DS_TRY(ds_buf_append(&s->line, p, (size_t)(stop - p)));
        if (stop == end)
            break;
        s->after_cr = *stop == '\r';
        p = stop + 1;
        DS_TRY(end_line(s));
    }
    return DS_OK;
}
