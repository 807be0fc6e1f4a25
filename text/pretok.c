/* pretok.c - see pretok.h. A piece runs through stage 0, each result through stage 1, and so on: recursion of
 * at most DS_PRETOK_MAX_STAGES. Each stage sees its piece alone, so look-ahead stops at the piece's end, as
 * in huggingface/tokenizers. */
#include "text/pretok.h"

#include "base/buf.h"
#include "text/regex.h"

#define PCRE2_CODE_UNIT_WIDTH 8
#include <pcre2.h>
#include <stdlib.h>
#include <string.h>

/* Steps of one match. The known patterns need at most two a byte of the longest run; 64 M bounds a hostile
 * one to about a second before it is refused. Heap: for the interpreter where the JIT may not map code. */
enum { MATCH_LIMIT = 64 << 20, HEAP_LIMIT_KIB = 128 << 10 };

typedef struct {
    pcre2_code *re; /* NULL: prefix stage */
    ds_pretok_behavior behavior;
    int invert;
} stage;

struct ds_pretok {
    stage stage[DS_PRETOK_MAX_STAGES];
    int n;
    pcre2_match_context *limits;
};

struct ds_pretok_run {
    const ds_pretok *p;
    pcre2_match_data *match[DS_PRETOK_MAX_STAGES];
    ds_buf prefixed[DS_PRETOK_MAX_STAGES];
    ds_pretok_fn fn;
    void *ctx;
};

ds_code ds_pretok_create(ds_pretok **ret)
{
    ds_pretok *p = calloc(1, sizeof *p);
    *ret = p;
    if (!p)
        return DS_ENOMEM;
    p->limits = pcre2_match_context_create(NULL);
    if (!p->limits)
        return DS_ENOMEM;
    pcre2_set_match_limit(p->limits, MATCH_LIMIT);
    pcre2_set_heap_limit(p->limits, HEAP_LIMIT_KIB);
    return DS_OK;
}

void ds_pretok_destroy(ds_pretok *p)
{
    if (!p)
        return;
    for (int i = 0; i < p->n; i++)
        pcre2_code_free(p->stage[i].re);
    pcre2_match_context_free(p->limits);
    free(p);
}

static ds_code stage_room(const ds_pretok *p, ds_err *err)
{
    return p->n < DS_PRETOK_MAX_STAGES
               ? DS_OK
               : ds_err_set(err, DS_ELIMIT, "more than %d pre-tokenizers", DS_PRETOK_MAX_STAGES);
}

ds_code ds_pretok_add_prefix(ds_pretok *p, ds_err *err)
{
    DS_TRY(stage_room(p, err));
    p->stage[p->n++] = (stage){0};
    return DS_OK;
}

static pcre2_code *compile(const char *pattern, size_t len, uint32_t options, ds_err *err)
{
    int error;
    PCRE2_SIZE at;
    pcre2_compile_context *ctx = pcre2_compile_context_create(NULL);
    if (!ctx)
        return NULL;
    pcre2_set_newline(ctx, PCRE2_NEWLINE_LF);
    pcre2_code *re = pcre2_compile((PCRE2_SPTR)pattern, len, options, &error, &at, ctx);
    pcre2_compile_context_free(ctx);
    if (!re) {
        char why[128] = "";
        pcre2_get_error_message(error, (PCRE2_UCHAR *)why, sizeof why);
        ds_err_set(err, DS_EUNSUPPORTED, "pattern does not compile: %s", why);
    }
    return re;
}

ds_code ds_pretok_add_split(ds_pretok *p, const char *pattern, size_t len, int literal,
                            ds_pretok_behavior behavior, int invert, ds_err *err)
{
    enum { MAX_PATTERN = 65536 };
    DS_TRY(stage_room(p, err));
    if (len > MAX_PATTERN)
        return ds_err_set(err, DS_ELIMIT, "pattern of %zu bytes; the limit is %d", len, MAX_PATTERN);
    pcre2_code *re;
    if (literal) {
        re = compile(pattern, len, PCRE2_UTF | PCRE2_LITERAL, err);
    } else {
        ds_buf out = {.max = 16 * MAX_PATTERN};
        ds_code code = ds_regex_translate(pattern, len, &out, err);
        re = code == DS_OK ? compile(out.data ? out.data : "", out.len, PCRE2_UTF | PCRE2_UCP, err) : NULL;
        ds_buf_free(&out);
        if (code != DS_OK)
            return code == DS_EUNSUPPORTED ? code : ds_err_set(err, code, "pattern is too large");
    }
    uint32_t empty = 1;
    if (re && pcre2_pattern_info(re, PCRE2_INFO_MATCHEMPTY, &empty) == 0 && empty)
        ds_err_set(err, DS_EUNSUPPORTED, "pattern can match nothing at all");
    if (!re || empty) {
        pcre2_code_free(re);
        return DS_EUNSUPPORTED;
    }
    /* No JIT (W^X hardening, other CPU) is slower, not wrong: pcre2_match then interprets. */
    (void)pcre2_jit_compile(re, PCRE2_JIT_COMPLETE);
    p->stage[p->n++] = (stage){re, behavior, invert};
    return DS_OK;
}

ds_code ds_pretok_run_open(const ds_pretok *p, ds_pretok_run **ret)
{
    ds_pretok_run *r = calloc(1, sizeof *r);
    *ret = r;
    if (!r)
        return DS_ENOMEM;
    r->p = p;
    for (int i = 0; i < p->n; i++)
        if (p->stage[i].re && !(r->match[i] = pcre2_match_data_create(1, NULL)))
            return DS_ENOMEM;
    return DS_OK;
}

void ds_pretok_run_close(ds_pretok_run *r)
{
    if (!r)
        return;
    for (int i = 0; i < DS_PRETOK_MAX_STAGES; i++) {
        pcre2_match_data_free(r->match[i]);
        ds_buf_free(&r->prefixed[i]);
    }
    free(r);
}

static ds_code cut(ds_pretok_run *r, int at, const char *text, size_t len);

/* The piece that waits to see whether the next one joins it. */
typedef struct {
    ds_pretok_run *r;
    int at, waiting, was_match;
    const char *from, *to;
} joiner;

static ds_code joiner_flush(joiner *j)
{
    int go = j->waiting && j->to > j->from;
    j->waiting = 0;
    return go ? cut(j->r, j->at + 1, j->from, (size_t)(j->to - j->from)) : DS_OK;
}

static ds_code joiner_add(joiner *j, const char *from, const char *to, int is_match)
{
    const stage *s = &j->r->p->stage[j->at];
    is_match ^= s->invert;
    int join = 0;
    if (s->behavior == DS_PRETOK_CONTIGUOUS)
        join = is_match == j->was_match;
    else if (s->behavior == DS_PRETOK_MERGED_WITH_PREVIOUS)
        join = is_match && !j->was_match;
    else if (s->behavior == DS_PRETOK_MERGED_WITH_NEXT)
        join = !is_match && j->was_match;
    if (!join || !j->waiting) {
        DS_TRY(joiner_flush(j));
        j->from = from;
    }
    j->to = to;
    j->was_match = is_match;
    j->waiting = !(is_match && s->behavior == DS_PRETOK_REMOVED);
    return DS_OK;
}

/* One match from text + from on. The JIT's own stack is small: what overflows it is interpreted on the heap.
 */
static int match_next(ds_pretok_run *r, int at, const char *text, size_t len, size_t from)
{
    const pcre2_code *re = r->p->stage[at].re;
    int n = pcre2_match(re, (PCRE2_SPTR)text, len, from, PCRE2_NO_UTF_CHECK, r->match[at], r->p->limits);
    if (n == PCRE2_ERROR_JIT_STACKLIMIT)
        n = pcre2_match(re, (PCRE2_SPTR)text, len, from, PCRE2_NO_UTF_CHECK | PCRE2_NO_JIT, r->match[at],
                        r->p->limits);
    return n;
}

static ds_code cut_split(ds_pretok_run *r, int at, const char *text, size_t len)
{
    joiner j = {.r = r, .at = at};
    size_t done = 0;
    while (done < len) {
        int n = match_next(r, at, text, len, done);
        if (n == PCRE2_ERROR_NOMATCH)
            break;
        if (n < 0)
            return n == PCRE2_ERROR_NOMEMORY ? DS_ENOMEM : DS_ELIMIT;
        const PCRE2_SIZE *m = pcre2_get_ovector_pointer(r->match[at]);
        size_t from = m[0], to = m[1];
        if (from < done || to <= from)
            return DS_EBUG;
        if (from > done)
            DS_TRY(joiner_add(&j, text + done, text + from, 0));
        DS_TRY(joiner_add(&j, text + from, text + to, 1));
        done = to;
    }
    if (done < len)
        DS_TRY(joiner_add(&j, text + done, text + len, 0));
    return joiner_flush(&j);
}

static ds_code cut(ds_pretok_run *r, int at, const char *text, size_t len)
{
    if (at == r->p->n)
        return r->fn(r->ctx, text, len);
    if (r->p->stage[at].re)
        return cut_split(r, at, text, len);
    if (len && text[0] == ' ')
        return cut(r, at + 1, text, len);
    ds_buf *b = &r->prefixed[at];
    ds_buf_clear(b);
    DS_TRY(ds_buf_puts(b, " "));
    DS_TRY(ds_buf_append(b, text, len));
    return cut(r, at + 1, b->data, b->len);
}

ds_code ds_pretok_cut(ds_pretok_run *r, const char *text, size_t len, ds_pretok_fn fn, void *ctx)
{
    r->fn = fn;
    r->ctx = ctx;
    return len ? cut(r, 0, text, len) : DS_OK;
}
