/* jscan.c - see jscan.h. */
#include "text/jscan.h"

#include "base/limits.h"
#include "text/utf8.h"

#include <string.h>

static void skip_space(ds_jscan *s)
{
    while (s->p < s->end && (*s->p == ' ' || *s->p == '\n' || *s->p == '\t' || *s->p == '\r'))
        s->p++;
}

int ds_jscan_peek(ds_jscan *s)
{
    skip_space(s);
    return s->p < s->end ? (unsigned char)*s->p : -1;
}

int ds_jscan_char(ds_jscan *s, char c)
{
    if (ds_jscan_peek(s) != (unsigned char)c)
        return 0;
    s->p++;
    return 1;
}

static int hex4(ds_jscan *s, uint32_t *ret)
{
    uint32_t v = 0;
    if (s->end - s->p < 4)
        return 0;
    for (int i = 0; i < 4; i++) {
        char c = *s->p++;
        int d = c >= '0' && c <= '9'                 ? c - '0'
                : (c | 32) >= 'a' && (c | 32) <= 'f' ? (c | 32) - 'a' + 10
                                                     : -1;
        if (d < 0)
            return 0;
        v = v << 4 | (uint32_t)d;
    }
    *ret = v;
    return 1;
}

/* One escape after its backslash, appended to scratch. Lone surrogates are refused: they are not text. */
static int escape(ds_jscan *s)
{
    static const char from[] = "\"\\/bfnrt", to[] = "\"\\/\b\f\n\r\t";
    if (s->p >= s->end)
        return 0;
    char c = *s->p++, utf8[4];
    const char *at = c ? strchr(from, c) : NULL;
    if (at)
        return ds_buf_append(&s->scratch, &to[at - from], 1) == DS_OK;
    uint32_t cp, low;
    if (c != 'u' || !hex4(s, &cp))
        return 0;
    if (cp >= 0xD800 && cp < 0xDC00) {
        if (s->end - s->p < 2 || s->p[0] != '\\' || s->p[1] != 'u')
            return 0;
        s->p += 2;
        if (!hex4(s, &low) || low < 0xDC00 || low > 0xDFFF)
            return 0;
        cp = 0x10000 + ((cp - 0xD800) << 10) + (low - 0xDC00);
    } else if (cp >= 0xDC00 && cp < 0xE000) {
        return 0;
    }
    return ds_buf_append(&s->scratch, utf8, (size_t)ds_utf8_put(cp, utf8)) == DS_OK;
}

int ds_jscan_string(ds_jscan *s, const char **ret, size_t *ret_len)
{
    if (!ds_jscan_char(s, '"'))
        return 0;
    const char *start = s->p;
    while (s->p < s->end && *s->p != '"' && *s->p != '\\' && (unsigned char)*s->p >= 0x20)
        s->p++;
    if (s->p < s->end && *s->p == '"') {
        *ret = start;
        *ret_len = (size_t)(s->p++ - start);
        return 1;
    }
    ds_buf_clear(&s->scratch);
    for (;;) {
        if (ds_buf_append(&s->scratch, start, (size_t)(s->p - start)) != DS_OK)
            return 0;
        if (s->p >= s->end || (unsigned char)*s->p < 0x20)
            return 0;
        if (*s->p++ == '"')
            break;
        if (!escape(s))
            return 0;
        start = s->p;
        while (s->p < s->end && *s->p != '"' && *s->p != '\\' && (unsigned char)*s->p >= 0x20)
            s->p++;
    }
    *ret = s->scratch.data;
    *ret_len = s->scratch.len;
    return 1;
}

int ds_jscan_int(ds_jscan *s, int64_t *ret)
{
    int neg = ds_jscan_peek(s) == '-';
    s->p += neg;
    const char *start = s->p;
    int64_t v = 0;
    while (s->p < s->end && *s->p >= '0' && *s->p <= '9' && s->p - start < 18)
        v = v * 10 + (*s->p++ - '0');
    if (s->p == start || (s->p < s->end && ((*s->p >= '0' && *s->p <= '9') || strchr(".eE+-", *s->p))))
        return 0;
    *ret = neg ? -v : v;
    return 1;
}

static int skip_string(ds_jscan *s)
{
    for (s->p++; s->p < s->end && *s->p != '"'; s->p++)
        if (*s->p == '\\')
            s->p++;
    return s->p < s->end && s->p++ != NULL;
}

int ds_jscan_skip(ds_jscan *s)
{
    int depth = 0;
    do {
        int c = ds_jscan_peek(s);
        if (c < 0)
            return 0;
        if (c == '"') {
            if (!skip_string(s))
                return 0;
        } else if (c == '{' || c == '[') {
            if (++depth > DS_MAX_JSON_DEPTH)
                return 0;
            s->p++;
        } else if (c == '}' || c == ']') {
            if (--depth < 0)
                return 0;
            s->p++;
        } else if (c == ',' || c == ':') {
            if (depth == 0)
                return 0;
            s->p++;
        } else {
            while (s->p < s->end && *s->p && !strchr(",:]}[{\" \n\r\t", *s->p))
                s->p++;
            if (s->p < s->end && !*s->p)
                return 0;
        }
    } while (depth > 0);
    return 1;
}

void ds_jscan_fini(ds_jscan *s)
{
    ds_buf_free(&s->scratch);
}
