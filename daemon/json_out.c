/* json_out.c - see json_out.h. */
#include "daemon/json_out.h"

#include <math.h>
#include <stdio.h>
#include <string.h>

int ds_utf8_next(const char *str, size_t len)
{
    const unsigned char *s = (const unsigned char *)str;
    if (s[0] < 0x80)
        return 1;
    int n = s[0] >= 0xC2 && s[0] < 0xE0 ? 2 : (s[0] & 0xF0) == 0xE0 ? 3 : s[0] >= 0xF0 && s[0] < 0xF5 ? 4 : 0;
    if (!n || len < (size_t)n)
        return 0;
    for (int i = 1; i < n; i++)
        if ((s[i] & 0xC0) != 0x80)
            return 0;
    if ((s[0] == 0xE0 && s[1] < 0xA0) || (s[0] == 0xED && s[1] > 0x9F) || (s[0] == 0xF0 && s[1] < 0x90) ||
        (s[0] == 0xF4 && s[1] > 0x8F))
        return 0; /* overlong, surrogate, beyond U+10FFFF */
    return n;
}

size_t ds_utf8_count(const char *s, size_t len)
{
    size_t count = 0;
    for (size_t i = 0; i < len; count++) {
        int n = ds_utf8_next(s + i, len - i);
        i += n ? (size_t)n : 1;
    }
    return count;
}

static ds_code put_escape(ds_buf *out, unsigned char c)
{
    static const char hex[] = "0123456789abcdef";
    switch (c) {
    case '"':
        return ds_buf_append(out, "\\\"", 2);
    case '\\':
        return ds_buf_append(out, "\\\\", 2);
    case '\n':
        return ds_buf_append(out, "\\n", 2);
    case '\r':
        return ds_buf_append(out, "\\r", 2);
    case '\t':
        return ds_buf_append(out, "\\t", 2);
    default: {
        char u[6] = {'\\', 'u', '0', '0', hex[c >> 4], hex[c & 15]};
        return ds_buf_append(out, u, 6);
    }
    }
}

ds_code ds_json_chars(ds_buf *out, const char *s, size_t len)
{
    size_t start = 0, i = 0;
    if (!len)
        return DS_OK; /* s may be NULL */
    while (i < len) {
        unsigned char c = (unsigned char)s[i];
        if (c >= 0x20 && c < 0x7F && c != '"' && c != '\\') {
            i++;
            continue;
        }
        int n = c < 0x80 ? 0 : ds_utf8_next(s + i, len - i);
        int line_sep = n == 3 && !memcmp(s + i, "\xE2\x80", 2) && ((unsigned char)s[i + 2] | 1) == 0xA9;
        if (n && !line_sep) {
            i += (size_t)n;
            continue;
        }
        DS_TRY(ds_buf_append(out, s + start, i - start));
        if (line_sep)
            DS_TRY(ds_buf_append(out, (unsigned char)s[i + 2] == 0xA8 ? "\\u2028" : "\\u2029", 6));
        else if (c < 0x80)
            DS_TRY(put_escape(out, c));
        else
            DS_TRY(ds_buf_append(out, "\xEF\xBF\xBD", 3));
        i += line_sep ? 3 : 1;
        start = i;
    }
    return ds_buf_append(out, s + start, len - start);
}

ds_code ds_json_str(ds_buf *out, const char *s, size_t len)
{
    DS_TRY(ds_buf_append(out, "\"", 1));
    DS_TRY(ds_json_chars(out, s, len));
    return ds_buf_append(out, "\"", 1);
}

ds_code ds_json_int(ds_buf *out, int64_t v)
{
    char t[24];
    char *p = t + sizeof t;
    uint64_t u = v < 0 ? 0 - (uint64_t)v : (uint64_t)v;
    do {
        *--p = (char)('0' + u % 10);
    } while (u /= 10);
    if (v < 0)
        *--p = '-';
    return ds_buf_append(out, p, (size_t)(t + sizeof t - p));
}

ds_code ds_json_logprob(ds_buf *out, float v)
{
    if (!isfinite(v))
        return ds_buf_puts(out, "-9999.0");
    char t[32];
    int n = snprintf(t, sizeof t, "%.9g", (double)v);
    if (!memchr(t, '.', (size_t)n) && !memchr(t, 'e', (size_t)n))
        n += snprintf(t + n, sizeof t - (size_t)n, ".0");
    return ds_buf_append(out, t, (size_t)n);
}

ds_code ds_json_ids(ds_buf *out, const int32_t *ids, int n)
{
    DS_TRY(ds_buf_append(out, "[", 1));
    for (int i = 0; i < n; i++) {
        if (i)
            DS_TRY(ds_buf_append(out, ",", 1));
        DS_TRY(ds_json_int(out, ids[i]));
    }
    return ds_buf_append(out, "]", 1);
}

ds_code ds_json_bytes(ds_buf *out, const char *s, size_t len)
{
    DS_TRY(ds_buf_append(out, "[", 1));
    for (size_t i = 0; i < len; i++) {
        if (i)
            DS_TRY(ds_buf_append(out, ",", 1));
        DS_TRY(ds_json_int(out, (unsigned char)s[i]));
    }
    return ds_buf_append(out, "]", 1);
}
