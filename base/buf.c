#include "base/buf.h"

#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

ds_code ds_buf_reserve(ds_buf *b, size_t extra)
{
    if (extra > (size_t)-1 / 4 - b->len || (b->max && b->len + extra > b->max))
        return DS_ELIMIT;
    size_t want = b->len + extra + 1;
    if (want <= b->cap)
        return DS_OK;
    size_t cap = b->cap ? b->cap : 64;
    while (cap < want)
        cap *= 2;
    char *p = realloc(b->data, cap);
    if (!p)
        return DS_ENOMEM;
    b->data = p;
    b->cap = cap;
    return DS_OK;
}

ds_code ds_buf_append(ds_buf *b, const void *p, size_t n)
{
    DS_TRY(ds_buf_reserve(b, n));
    if (n)
        memcpy(b->data + b->len, p, n);
    b->len += n;
    b->data[b->len] = 0;
    return DS_OK;
}

ds_code ds_buf_puts(ds_buf *b, const char *s)
{
    return ds_buf_append(b, s, strlen(s));
}

ds_code ds_buf_printf(ds_buf *b, const char *fmt, ...)
{
    va_list ap;
    va_start(ap, fmt);
    int n = vsnprintf(NULL, 0, fmt, ap);
    va_end(ap);
    if (n < 0)
        return DS_EINVAL;
    DS_TRY(ds_buf_reserve(b, (size_t)n));
    va_start(ap, fmt);
    vsnprintf(b->data + b->len, (size_t)n + 1, fmt, ap);
    va_end(ap);
    b->len += (size_t)n;
    return DS_OK;
}

void ds_buf_consume(ds_buf *b, size_t n)
{
    DS_ASSERT(n <= b->len);
    if (!n)
        return;
    memmove(b->data, b->data + n, b->len - n);
    b->len -= n;
    b->data[b->len] = 0;
}

void ds_buf_clear(ds_buf *b)
{
    b->len = 0;
    if (b->data)
        b->data[0] = 0;
}

void ds_buf_free(ds_buf *b)
{
    free(b->data);
    b->data = NULL;
    b->len = b->cap = 0;
}
