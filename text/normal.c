/* normal.c - see normal.h. NFC works on stretches between characters that cannot interact: nearly all text is
 * copied, only stretches with other characters are decomposed, ordered and composed. */
#include "text/normal.h"

#include "text/utf8.h"

#include <stdlib.h>
#include <string.h>
#include <utf8proc.h>

/* A character that is its own NFC, has class 0 and never joins the character before it. Ranges only: a miss
 * costs time, not correctness (tests/unit/test_normal.c checks each against utf8proc). */
static int is_inert(uint32_t c)
{
    return c < 0x300 || (c >= 0x400 && c < 0x483) || (c >= 0x2010 && c < 0x205F) ||
           (c >= 0x3001 && c < 0x302A) || (c >= 0x3041 && c < 0x3097) || (c >= 0x30A0 && c < 0x3100) ||
           (c >= 0x3400 && c < 0x4DC0) || (c >= 0x4E00 && c < 0xA000) || (c >= 0xAC00 && c < 0xD7A4) ||
           (c >= 0xFF00 && c < 0xFFF0) || (c >= 0x1F300 && c < 0x1FB00);
}

typedef struct {
    int32_t *cp, *spare;
    size_t n, cap;
} points;

static ds_code points_reserve(points *p, size_t n)
{
    if (n <= p->cap)
        return DS_OK;
    size_t cap = n + n / 2 + 64;
    int32_t *a = realloc(p->cp, cap * sizeof *a), *b = NULL;
    if (a) {
        p->cp = a;
        b = realloc(p->spare, cap * sizeof *b);
    }
    if (!b)
        return DS_ENOMEM;
    p->spare = b;
    p->cap = cap;
    return DS_OK;
}

static unsigned combining_class(int32_t cp)
{
    return (unsigned)utf8proc_get_property(cp)->combining_class;
}

/* Stable counting sort of cp[from, to), all of non-zero class, by class. */
static void order_run(points *p, size_t from, size_t to)
{
    size_t count[257] = {0};
    int sorted = 1;
    for (size_t i = from; i < to; i++) {
        count[combining_class(p->cp[i]) + 1]++;
        sorted &= i == from || combining_class(p->cp[i - 1]) <= combining_class(p->cp[i]);
    }
    if (sorted)
        return;
    for (int i = 1; i < 257; i++)
        count[i] += count[i - 1];
    for (size_t i = from; i < to; i++)
        p->spare[count[combining_class(p->cp[i])]++] = p->cp[i];
    memcpy(p->cp + from, p->spare, (to - from) * sizeof *p->cp);
}

static void order_marks(points *p)
{
    for (size_t i = 0; i < p->n;) {
        size_t from = i;
        while (i < p->n && combining_class(p->cp[i]))
            i++;
        if (i - from > 1)
            order_run(p, from, i);
        i += i == from;
    }
}

static ds_code nfc_stretch(points *p, const char *s, size_t len, ds_buf *out)
{
    enum { MAX_DECOMPOSED = 32 };
    p->n = 0;
    for (const char *at = s, *end = s + len; at < end;) {
        uint32_t cp;
        int is_short, n = ds_utf8_next(at, end, &cp, &is_short), boundary = 0;
        if (n < 0)
            return DS_EINVAL;
        DS_TRY(points_reserve(p, p->n + MAX_DECOMPOSED));
        utf8proc_ssize_t got = utf8proc_decompose_char((utf8proc_int32_t)cp, p->cp + p->n, MAX_DECOMPOSED,
                                                       UTF8PROC_STABLE | UTF8PROC_DECOMPOSE, &boundary);
        if (got < 0 || got > MAX_DECOMPOSED)
            return DS_EBUG;
        p->n += (size_t)got;
        at += n;
    }
    order_marks(p);
    utf8proc_ssize_t n =
        utf8proc_normalize_utf32(p->cp, (utf8proc_ssize_t)p->n, UTF8PROC_STABLE | UTF8PROC_COMPOSE);
    DS_TRY(ds_buf_reserve(out, (size_t)n * 4));
    for (utf8proc_ssize_t i = 0; i < n; i++)
        out->len += (size_t)ds_utf8_put((uint32_t)p->cp[i], out->data + out->len);
    return DS_OK;
}

ds_code ds_nfc(const char *text, size_t len, ds_buf *out)
{
    points p = {0};
    const char *end = text + len, *copied = text, *inert = text, *at = text;
    ds_code code = DS_OK;
    /* copied: all before it is in out; inert: start of the last inert character seen, a place to cut */
    while (at < end && code == DS_OK) {
        uint32_t cp;
        int is_short, n = ds_utf8_next(at, end, &cp, &is_short);
        if (n > 0 && is_inert(cp)) {
            inert = at;
            at += n;
            continue;
        }
        code = ds_buf_append(out, copied, (size_t)(inert - copied));
        const char *from = inert;
        while (at < end && (n = ds_utf8_next(at, end, &cp, &is_short)) > 0 && !is_inert(cp))
            at += n;
        if (code == DS_OK)
            code = n > 0 ? nfc_stretch(&p, from, (size_t)(at - from), out) : DS_EINVAL;
        copied = inert = at;
    }
    free(p.cp);
    free(p.spare);
    return code == DS_OK ? ds_buf_append(out, copied, (size_t)(end - copied)) : code;
}

static ds_code replace(const char *from, const char *to, const char *text, size_t len, ds_buf *out)
{
    size_t n_from = strlen(from), n_to = strlen(to);
    const char *end = text + len, *hit;
    while (n_from && (hit = memmem(text, (size_t)(end - text), from, n_from))) {
        DS_TRY(ds_buf_append(out, text, (size_t)(hit - text)));
        DS_TRY(ds_buf_append(out, to, n_to));
        text = hit + n_from;
    }
    return ds_buf_append(out, text, (size_t)(end - text));
}

ds_code ds_normal_apply(const ds_normal *n, const char *text, size_t len, ds_buf buf[2],
                        const char **ret_text, size_t *ret_len)
{
    for (int i = 0; i < n->n; i++) {
        ds_buf *out = &buf[text == buf[0].data];
        ds_buf_clear(out);
        if (n->step[i].kind == DS_NORMAL_NFC) {
            if (ds_utf8_ascii(text, len) == len)
                continue;
            DS_TRY(ds_nfc(text, len, out));
        } else if (n->step[i].kind == DS_NORMAL_REPLACE) {
            DS_TRY(replace(n->step[i].from, n->step[i].to, text, len, out));
        } else {
            if (!len)
                continue;
            DS_TRY(ds_buf_puts(out, n->step[i].to));
            DS_TRY(ds_buf_append(out, text, len));
        }
        text = out->data;
        len = out->len;
    }
    *ret_text = text;
    *ret_len = len;
    return DS_OK;
}

void ds_normal_free(ds_normal *n)
{
    for (int i = 0; i < n->n; i++) {
        free(n->step[i].from);
        free(n->step[i].to);
    }
    *n = (ds_normal){0};
}
