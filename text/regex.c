/* regex.c - see regex.h. One pass over the pattern, copying or rewriting each construct. */
#include "text/regex.h"

#include "text/unicode.h"

#include <string.h>

/* Unicode White_Space and its complement, as members of a class. */
#define SPACE                                                                                                \
    "\\x{9}-\\x{d}\\x{20}\\x{85}\\x{a0}\\x{1680}\\x{2000}-\\x{200a}\\x{2028}\\x{2029}\\x{202f}\\x{205f}\\x{" \
    "3000}"
#define NOT_SPACE                                                                                   \
    "\\x{0}-\\x{8}\\x{e}-\\x{1f}\\x{21}-\\x{84}\\x{86}-\\x{9f}\\x{a1}-\\x{167f}\\x{1681}-\\x{1fff}" \
    "\\x{200b}-\\x{2027}\\x{202a}-\\x{202e}\\x{2030}-\\x{205e}\\x{2060}-\\x{2fff}\\x{3001}-\\x{10ffff}"

typedef struct {
    const char *start, *p, *end;
    ds_buf *out;
    ds_err *err;
} rx;

static ds_code refuse(const rx *r, const char *what)
{
    return ds_err_set(r->err, DS_EUNSUPPORTED, "pattern has %s at byte %zu, which is not supported", what,
                      (size_t)(r->p - r->start));
}

static ds_code put(rx *r, const char *s)
{
    return ds_buf_puts(r->out, s);
}

/* Members of a class: \p{name}, and its code points that are newer than PCRE2's tables. */
static ds_code put_category(rx *r, const char *name)
{
    size_t n = strlen(name);
    DS_TRY(ds_buf_printf(r->out, "\\p{%s}", name));
    for (int i = 0; i < DS_UNICODE_N_NEW; i++) {
        const ds_unicode_range *u = &DS_UNICODE_NEW[i];
        if (memcmp(u->category, name, n) != 0)
            continue;
        uint32_t to = u->to;
        for (; i + 1 < DS_UNICODE_N_NEW; i++, to = DS_UNICODE_NEW[i].to)
            if (DS_UNICODE_NEW[i + 1].from != to + 1 || memcmp(DS_UNICODE_NEW[i + 1].category, name, n) != 0)
                break;
        DS_TRY(ds_buf_printf(r->out, "\\x{%x}-\\x{%x}", u->from, to));
    }
    return DS_OK;
}

static ds_code put_property(rx *r, const char *name, int negated, int in_class)
{
    int is_script = strlen(name) > 2;
    if (is_script || (negated && in_class)) /* a class cannot take members out: the newest ones stay in */
        return ds_buf_printf(r->out, "\\%c{%s%s}", negated ? 'P' : 'p', is_script ? "sc:" : "", name);
    if (in_class)
        return put_category(r, name);
    DS_TRY(put(r, negated ? "[^" : "["));
    DS_TRY(put_category(r, name));
    return put(r, "]");
}

/* \p{Name}, \P{Name}, \p{^Name} after "\p"; general categories pass, longer names are scripts. */
static ds_code property(rx *r, int negated, int in_class)
{
    char name[32];
    size_t n = 0;
    if (r->p >= r->end || *r->p != '{')
        return refuse(r, "\\p without braces");
    r->p++;
    if (r->p < r->end && *r->p == '^') {
        negated = !negated;
        r->p++;
    }
    while (r->p < r->end && *r->p != '}' && n + 1 < sizeof name) {
        char c = *r->p++;
        if (!((c >= 'A' && c <= 'Z') || (c >= 'a' && c <= 'z') || c == '_'))
            return refuse(r, "an unknown property name");
        name[n++] = c;
    }
    name[n] = 0;
    if (r->p >= r->end || *r->p != '}' || !n)
        return refuse(r, "an unknown property name");
    r->p++;
    return put_property(r, name, negated, in_class);
}

static ds_code hex(rx *r, int digits_min, int digits_max)
{
    int braced = digits_max == 2 && r->p < r->end && *r->p == '{', n = 0;
    unsigned long v = 0;
    r->p += braced;
    for (; r->p < r->end && n < (braced ? 8 : digits_max); n++, r->p++) {
        char c = *r->p;
        int d = c >= '0' && c <= '9'                 ? c - '0'
                : (c | 32) >= 'a' && (c | 32) <= 'f' ? (c | 32) - 'a' + 10
                                                     : -1;
        if (d < 0)
            break;
        v = v << 4 | (unsigned)d;
    }
    if (braced && (r->p >= r->end || *r->p++ != '}'))
        return refuse(r, "a broken \\x{...}");
    /* \x80..\xff are raw bytes there, not code points */
    if (n < digits_min || v > 0x10FFFF || (v >= 0xD800 && v < 0xE000) ||
        (!braced && digits_max == 2 && v > 0x7F))
        return refuse(r, "a broken hexadecimal escape");
    return ds_buf_printf(r->out, "\\x{%lx}", v);
}

static ds_code escape(rx *r, int in_class)
{
    static const char control[] = "tnrfvae", code[] = "\t\n\r\f\v\a\x1b";
    if (++r->p >= r->end)
        return refuse(r, "a backslash at its end");
    char c = *r->p++;
    const char *at = c ? strchr(control, c) : NULL;
    if (at)
        return ds_buf_printf(r->out, "\\x{%x}", (unsigned)code[at - control]);
    switch (c) {
    case 's':
        return put(r, in_class ? SPACE : "[" SPACE "]");
    case 'S':
        return put(r, in_class ? NOT_SPACE : "[^" SPACE "]");
    case 'd':
        return put_property(r, "Nd", 0, in_class);
    case 'D':
        return put_property(r, "Nd", 1, in_class);
    case 'p':
    case 'P':
        return property(r, c == 'P', in_class);
    case 'x':
        return hex(r, 1, 2);
    case 'u':
        return hex(r, 4, 4);
    default:
        break;
    }
    if ((c >= 'A' && c <= 'Z') || (c >= 'a' && c <= 'z') || (c >= '0' && c <= '9') ||
        (unsigned char)c >= 0x80) {
        r->p -= 2;
        return refuse(r, "an escape other than \\s \\S \\d \\D \\p \\P \\x \\u and controls");
    }
    char both[2] = {'\\', c};
    return ds_buf_append(r->out, both, 2);
}

static ds_code char_class(rx *r)
{
    DS_TRY(put(r, "["));
    r->p++;
    if (r->p < r->end && *r->p == '^') {
        DS_TRY(put(r, "^"));
        r->p++;
    }
    if (r->p < r->end && *r->p == ']')
        return refuse(r, "an empty class");
    while (r->p < r->end && *r->p != ']') {
        if (*r->p == '[')
            return refuse(r, "a class inside a class");
        if (*r->p == '&' && r->p + 1 < r->end && r->p[1] == '&')
            return refuse(r, "a class intersection");
        if (*r->p == '\\') {
            DS_TRY(escape(r, 1));
        } else {
            DS_TRY(ds_buf_append(r->out, r->p++, 1));
        }
    }
    if (r->p >= r->end)
        return refuse(r, "an open class");
    r->p++;
    return put(r, "]");
}

static ds_code group(rx *r)
{
    static const char *const opens[] = {"(?:", "(?i:", "(?=", "(?!", "(?<=", "(?<!", "(?>", "(?i)"};
    size_t left = (size_t)(r->end - r->p);
    for (size_t i = 0; i < sizeof opens / sizeof *opens; i++) {
        size_t n = strlen(opens[i]);
        if (left >= n && memcmp(r->p, opens[i], n) == 0) {
            r->p += n;
            return put(r, opens[i]);
        }
    }
    if (left > 1 && r->p[1] == '?')
        return refuse(r, "a group other than (?: (?i: (?= (?! (?<= (?<! (?>");
    r->p++;
    return put(r, "(?:");
}

/* {n}, {n,}, {n,m}, {,m}. A following + or ? means something else in each engine. */
static ds_code interval(rx *r)
{
    const char *q = r->p + 1, *first = q;
    while (q < r->end && *q >= '0' && *q <= '9')
        q++;
    int has_min = q > first, has_comma = q < r->end && *q == ',';
    const char *max = q += has_comma;
    while (q < r->end && *q >= '0' && *q <= '9')
        q++;
    if (q >= r->end || *q != '}' || (!has_min && (!has_comma || q == max)))
        return refuse(r, "a brace that is no interval");
    q++;
    if (q < r->end && (*q == '+' || *q == '?' || *q == '*'))
        return refuse(r, "a quantified interval");
    DS_TRY(put(r, has_min ? "{" : "{0"));
    DS_TRY(ds_buf_append(r->out, r->p + 1, (size_t)(q - r->p - 1)));
    r->p = q;
    return DS_OK;
}

ds_code ds_regex_translate(const char *pattern, size_t len, ds_buf *out, ds_err *err)
{
    rx r = {pattern, pattern, pattern + len, out, err};
    while (r.p < r.end) {
        switch (*r.p) {
        case '\\':
            DS_TRY(escape(&r, 0));
            break;
        case '[':
            DS_TRY(char_class(&r));
            break;
        case '(':
            DS_TRY(group(&r));
            break;
        case '{':
            DS_TRY(interval(&r));
            break;
        case '.':
            r.p++;
            DS_TRY(put(&r, "[^\\x{a}]"));
            break;
        case '^':
        case '$':
            return refuse(&r, "an anchor");
        default:
            DS_TRY(ds_buf_append(out, r.p++, 1));
        }
    }
    return DS_OK;
}
