/* pyjson.c - see pyjson.h. */
#include "text/pyjson.h"

#include "base/limits.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

/* Shortest digits of |x| > 0 that read back as x, and the decimal exponent of the first. Rounding to p digits
 * is the nearest p-digit number; beside a power of two, where the gap below is half as wide, only the next
 * one up may read back. */
static int shortest(double x, char digits[20], int *exponent)
{
    char s[40], up[40];
    for (int p = 1; p <= 17; p++) {
        snprintf(s, sizeof s, "%.*e", p - 1, x);
        if (strtod(s, NULL) != x) {
            memcpy(up, s, sizeof s);
            char *last = strchr(up, 'e') - 1;
            if (*last == '9' || p == 17)
                continue;
            ++*last;
            if (strtod(up, NULL) != x)
                continue;
            memcpy(s, up, sizeof s);
        }
        char *e = strchr(s, 'e');
        *exponent = (int)strtol(e + 1, NULL, 10);
        int n = 0;
        for (char *q = s; q < e; q++)
            if (*q != '.')
                digits[n++] = *q;
        while (n > 1 && digits[n - 1] == '0')
            n--;
        return n;
    }
    return 0;
}

ds_code ds_pyjson_float(double x, ds_buf *out)
{
    enum { MIN_FIXED = -4, MAX_FIXED = 16 };
    if (!isfinite(x))
        return DS_EINVAL;
    if (signbit(x))
        DS_TRY(ds_buf_puts(out, "-"));
    if (x == 0)
        return ds_buf_puts(out, "0.0");
    char d[20];
    int e = 0, n = shortest(fabs(x), d, &e);
    if (e < MIN_FIXED || e >= MAX_FIXED)
        return ds_buf_printf(out, n > 1 ? "%.1s.%.*se%+03d" : "%.1s%.*se%+03d", d, n - 1, d + 1, e);
    if (e < 0)
        return ds_buf_printf(out, "0.%.*s%.*s", -e - 1, "0000", n, d);
    if (n <= e + 1)
        return ds_buf_printf(out, "%.*s%.*s.0", n, d, e + 1 - n, "0000000000000000");
    return ds_buf_printf(out, "%.*s.%.*s", e + 1, d, n - e - 1, d + e + 1);
}

static ds_code dump_string(const char *s, size_t len, ds_buf *out)
{
    static const char from[] = "\"\\\n\r\t\f\b", to[] = "\"\\nrtfb";
    DS_TRY(ds_buf_puts(out, "\""));
    size_t start = 0;
    for (size_t i = 0; i < len; i++) {
        const char *at = s[i] ? strchr(from, s[i]) : NULL;
        if (!at && (unsigned char)s[i] >= 0x20)
            continue;
        DS_TRY(ds_buf_append(out, s + start, i - start));
        if (at)
            DS_TRY(ds_buf_printf(out, "\\%c", to[at - from]));
        else
            DS_TRY(ds_buf_printf(out, "\\u%04x", (unsigned)s[i]));
        start = i + 1;
    }
    DS_TRY(ds_buf_append(out, s + start, len - start));
    return ds_buf_puts(out, "\"");
}

static ds_code dump(const json_t *v, int depth, ds_buf *out);

static ds_code dump_object(const json_t *v, int depth, ds_buf *out)
{
    int first = 1;
    DS_TRY(ds_buf_puts(out, "{"));
    for (void *it = json_object_iter((json_t *)v); it;
         it = json_object_iter_next((json_t *)v, it), first = 0) {
        const char *key = json_object_iter_key(it);
        if (!first)
            DS_TRY(ds_buf_puts(out, ", "));
        DS_TRY(dump_string(key, json_object_iter_key_len(it), out));
        DS_TRY(ds_buf_puts(out, ": "));
        DS_TRY(dump(json_object_iter_value(it), depth + 1, out));
    }
    return ds_buf_puts(out, "}");
}

static ds_code dump_array(const json_t *v, int depth, ds_buf *out)
{
    DS_TRY(ds_buf_puts(out, "["));
    for (size_t i = 0; i < json_array_size(v); i++) {
        if (i)
            DS_TRY(ds_buf_puts(out, ", "));
        DS_TRY(dump(json_array_get(v, i), depth + 1, out));
    }
    return ds_buf_puts(out, "]");
}

static ds_code dump(const json_t *v, int depth, ds_buf *out)
{
    if (depth > DS_MAX_JSON_DEPTH)
        return DS_EINVAL;
    switch (json_typeof(v)) {
    case JSON_OBJECT:
        return dump_object(v, depth, out);
    case JSON_ARRAY:
        return dump_array(v, depth, out);
    case JSON_STRING:
        return dump_string(json_string_value(v), json_string_length(v), out);
    case JSON_INTEGER:
        return ds_buf_printf(out, "%lld", (long long)json_integer_value(v));
    case JSON_REAL:
        return ds_pyjson_float(json_real_value(v), out);
    case JSON_TRUE:
        return ds_buf_puts(out, "true");
    case JSON_FALSE:
        return ds_buf_puts(out, "false");
    default:
        return ds_buf_puts(out, "null");
    }
}

ds_code ds_pyjson_dump(const json_t *v, ds_buf *out)
{
    return dump(v, 0, out);
}
