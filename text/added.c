/* added.c - a byte trie. A search starts only at bytes that begin a token, and walks at most the longest
 * token's length from there. Source: matching rules of huggingface/tokenizers AddedVocabulary. */
#include "text/added.h"

#include "text/utf8.h"

#include <stdlib.h>
#include <string.h>
#include <utf8proc.h>

enum { NONE = -1 };

static int32_t node_new(ds_added *a, unsigned char byte)
{
    if (a->n == a->cap) {
        int32_t cap = a->cap ? a->cap * 2 : 256;
        ds_added_node *p = cap > a->cap ? realloc(a->node, (size_t)cap * sizeof *p) : NULL;
        if (!p)
            return NONE;
        a->node = p;
        a->cap = cap;
    }
    a->node[a->n] = (ds_added_node){NONE, NONE, NONE, byte, 0};
    return a->n++;
}

static int32_t child(const ds_added *a, int32_t at, unsigned char byte)
{
    int32_t c = a->node[at].child;
    while (c != NONE && a->node[c].byte != byte)
        c = a->node[c].sibling;
    return c;
}

ds_code ds_added_add(ds_added *a, const char *s, size_t len, int32_t id, int flags)
{
    if (!a->n) {
        if (node_new(a, 0) == NONE)
            return DS_ENOMEM;
        for (int i = 0; i < 256; i++)
            a->first[i] = NONE;
    }
    int32_t at = 0;
    for (size_t i = 0; i < len; i++) {
        unsigned char byte = (unsigned char)s[i];
        int32_t c = at ? child(a, at, byte) : a->first[byte];
        if (c == NONE) {
            c = node_new(a, byte);
            if (c == NONE)
                return DS_ENOMEM;
            if (at) {
                a->node[c].sibling = a->node[at].child;
                a->node[at].child = c;
            } else {
                a->first[byte] = c;
            }
        }
        at = c;
    }
    a->node[at].id = id;
    a->node[at].flags = (unsigned char)flags;
    return DS_OK;
}

static int is_space(uint32_t c)
{
    return (c >= 9 && c <= 13) || c == 0x20 || c == 0x85 || c == 0xA0 || c == 0x1680 ||
           (c >= 0x2000 && c <= 0x200A) || c == 0x2028 || c == 0x2029 || c == 0x202F || c == 0x205F ||
           c == 0x3000;
}

static int is_word(uint32_t c)
{
    utf8proc_category_t k = utf8proc_category((utf8proc_int32_t)c);
    return (k >= UTF8PROC_CATEGORY_LU && k <= UTF8PROC_CATEGORY_NL) || k == UTF8PROC_CATEGORY_PC ||
           c == 0x200C || c == 0x200D;
}

static uint32_t char_at(const char *p, const char *end)
{
    uint32_t cp = 0;
    int is_short;
    return ds_utf8_next(p, end, &cp, &is_short) > 0 ? cp : 0;
}

static const char *char_before(const char *start, const char *p)
{
    do
        p--;
    while (p > start && ((unsigned char)*p & 0xC0) == 0x80);
    return p;
}

/* Applies the node's flags to the match [from, to); 0 when it is no match after all. */
static int apply_flags(const ds_added_node *node, const char *text, size_t len, size_t taken,
                       ds_added_match *m)
{
    const char *from = text + m->from, *to = text + m->to, *end = text + len;
    if (node->flags & DS_ADDED_SINGLE_WORD) {
        if (from > text && is_word(char_at(char_before(text, from), end)))
            return 0;
        if (to < end && is_word(char_at(to, end)))
            return 0;
    }
    for (const char *p; (node->flags & DS_ADDED_LSTRIP) && from > text + taken; from = p) {
        p = char_before(text, from);
        if (!is_space(char_at(p, end)))
            break;
    }
    while ((node->flags & DS_ADDED_RSTRIP) && to < end && is_space(char_at(to, end))) {
        do
            to++;
        while (to < end && ((unsigned char)*to & 0xC0) == 0x80);
    }
    m->from = (size_t)(from - text);
    m->to = (size_t)(to - text);
    return 1;
}

int ds_added_next(const ds_added *a, const char *text, size_t len, size_t from, ds_added_match *ret)
{
    if (!a->n)
        return 0;
    for (size_t i = from; i < len; i++) {
        int32_t at = a->first[(unsigned char)text[i]], best = NONE;
        size_t best_end = 0;
        for (size_t k = i + 1; at != NONE; k++) {
            if (a->node[at].id != NONE) {
                best = at;
                best_end = k;
            }
            if (k >= len)
                break;
            at = child(a, at, (unsigned char)text[k]);
        }
        if (best == NONE)
            continue;
        *ret = (ds_added_match){i, best_end, a->node[best].id};
        if (apply_flags(&a->node[best], text, len, from, ret))
            return 1;
        i = best_end - 1;
    }
    return 0;
}

void ds_added_free(ds_added *a)
{
    free(a->node);
    *a = (ds_added){0};
}
