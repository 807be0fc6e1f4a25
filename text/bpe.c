/* bpe.c - byte-pair encoding with a heap over a linked list of symbols: always the lowest rank first, among
 * equals the leftmost. Heap entries go stale when a neighbour merges; a popped entry counts only while the
 * pair at its position still has that rank. Source: Sennrich et al. 2016; order as in huggingface/tokenizers.
 */
#include "text/bpe.h"

#include "text/utf8.h"

#include <stdlib.h>
#include <string.h>

enum { NONE = -1 };
static const uint32_t END = UINT32_MAX;

ds_code ds_ids_push(ds_ids *ids, int32_t id)
{
    if (ids->n == ids->cap) {
        int cap = ids->cap ? ids->cap * 2 : 64;
        int32_t *v = cap > ids->cap ? realloc(ids->v, (size_t)cap * sizeof *v) : NULL;
        if (!v)
            return DS_ENOMEM;
        ids->v = v;
        ids->cap = cap;
    }
    ids->v[ids->n++] = id;
    return DS_OK;
}

static uint32_t pair_hash(int32_t left, int32_t right)
{
    uint64_t h = ((uint64_t)(uint32_t)left << 32 | (uint32_t)right) * 0x9E3779B97F4A7C15u;
    h ^= h >> 32;
    return (uint32_t)((h * 0xD6E8FEB86659FD93u) >> 32);
}

/* Slot of the pair, or the free slot where it belongs. */
static uint32_t slot_of(const ds_bpe *b, int32_t left, int32_t right)
{
    uint32_t mask = b->n_slots - 1, i = pair_hash(left, right) & mask;
    while (b->merge[i].left != NONE && (b->merge[i].left != left || b->merge[i].right != right))
        i = (i + 1) & mask;
    return i;
}

/* Keeps the table at most half full. */
static ds_code grow(ds_bpe *b)
{
    if ((b->n_merges + 1) * 2 <= b->n_slots)
        return DS_OK;
    ds_merge *old = b->merge;
    uint32_t n_old = b->n_slots, n = n_old ? n_old * 2 : 1024;
    b->merge = malloc(n * sizeof *b->merge);
    if (!b->merge) {
        b->merge = old;
        return DS_ENOMEM;
    }
    b->n_slots = n;
    for (uint32_t i = 0; i < n; i++)
        b->merge[i].left = NONE;
    for (uint32_t i = 0; i < n_old; i++)
        if (old[i].left != NONE)
            b->merge[slot_of(b, old[i].left, old[i].right)] = old[i];
    free(old);
    return DS_OK;
}

ds_code ds_bpe_add(ds_bpe *b, int32_t left, int32_t right, int32_t id, uint32_t rank)
{
    DS_TRY(grow(b));
    uint32_t i = slot_of(b, left, right);
    b->n_merges += b->merge[i].left == NONE;
    b->merge[i] = (ds_merge){left, right, id, rank};
    return DS_OK;
}

static const ds_merge *find_merge(const ds_bpe *b, int32_t left, int32_t right)
{
    const ds_merge *m = b->n_slots ? &b->merge[slot_of(b, left, right)] : NULL;
    return m && m->left != NONE ? m : NULL;
}

static ds_code heap_push(ds_bpe_scratch *s, uint64_t key)
{
    if (s->n_heap == s->cap_heap) {
        size_t cap = s->cap_heap ? s->cap_heap * 2 : 64;
        uint64_t *h = realloc(s->heap, cap * sizeof *h);
        if (!h)
            return DS_ENOMEM;
        s->heap = h;
        s->cap_heap = cap;
    }
    size_t i = s->n_heap++;
    for (; i > 0 && s->heap[(i - 1) / 2] > key; i = (i - 1) / 2)
        s->heap[i] = s->heap[(i - 1) / 2];
    s->heap[i] = key;
    return DS_OK;
}

static uint64_t heap_pop(ds_bpe_scratch *s)
{
    uint64_t top = s->heap[0], last = s->heap[--s->n_heap];
    size_t i = 0;
    for (size_t c; (c = 2 * i + 1) < s->n_heap; i = c) {
        c += c + 1 < s->n_heap && s->heap[c + 1] < s->heap[c];
        if (s->heap[c] >= last)
            break;
        s->heap[i] = s->heap[c];
    }
    s->heap[i] = last;
    return top;
}

static ds_code offer(const ds_bpe *b, ds_bpe_scratch *s, uint32_t at)
{
    uint32_t next = s->symbol[at].next;
    const ds_merge *m = next == END ? NULL : find_merge(b, s->symbol[at].id, s->symbol[next].id);
    return m ? heap_push(s, (uint64_t)m->rank << 32 | at) : DS_OK;
}

static void add_symbol(ds_bpe_scratch *s, int32_t id)
{
    uint32_t i = (uint32_t)s->n++;
    s->symbol[i] = (ds_bpe_symbol){id, i ? i - 1 : END, END};
    if (i)
        s->symbol[i - 1].next = i;
}

static void add_unknown(const ds_bpe *b, ds_bpe_scratch *s)
{
    int fused = b->fuse_unk && s->n && s->symbol[s->n - 1].id == b->unk_id;
    if (b->unk_id >= 0 && !fused)
        add_symbol(s, b->unk_id);
}

static void symbols_of_bytes(const ds_bpe *b, ds_bpe_scratch *s, const char *word, size_t len)
{
    for (size_t i = 0; i < len; i++) {
        int32_t id = b->byte_id[(unsigned char)word[i]];
        if (id >= 0)
            add_symbol(s, id);
        else
            add_unknown(b, s);
    }
}

/* A code point without a token becomes its bytes, if all of them have tokens, else the unknown token. */
static void symbols_of_chars(const ds_bpe *b, ds_bpe_scratch *s, const char *word, size_t len)
{
    for (const char *p = word, *end = word + len; p < end;) {
        uint32_t cp;
        int is_short, n = ds_utf8_next(p, end, &cp, &is_short), whole = 1;
        n = n < 0 ? -n : n;
        int32_t id = ds_vocab_find(b->vocab, p, (size_t)n);
        for (int i = 0; i < n; i++)
            whole &= b->byte_id[(unsigned char)p[i]] >= 0;
        if (id >= 0)
            add_symbol(s, id);
        else if (whole)
            symbols_of_bytes(b, s, p, (size_t)n);
        else
            add_unknown(b, s);
        p += n;
    }
}

static ds_code merge_all(const ds_bpe *b, ds_bpe_scratch *s)
{
    s->n_heap = 0;
    for (uint32_t i = 0; i + 1 < s->n; i++)
        DS_TRY(offer(b, s, i));
    while (s->n_heap) {
        uint64_t key = heap_pop(s);
        uint32_t at = (uint32_t)key, next = s->symbol[at].next;
        if (s->symbol[at].id < 0 || next == END)
            continue;
        const ds_merge *m = find_merge(b, s->symbol[at].id, s->symbol[next].id);
        if (!m || m->rank != key >> 32)
            continue;
        uint32_t after = s->symbol[next].next, before = s->symbol[at].prev;
        s->symbol[at].id = m->id;
        s->symbol[at].next = after;
        s->symbol[next].id = NONE;
        if (after != END)
            s->symbol[after].prev = at;
        if (before != END)
            DS_TRY(offer(b, s, before));
        DS_TRY(offer(b, s, at));
    }
    return DS_OK;
}

/* The token whose string is the whole word, or -1. */
static int32_t whole_word(const ds_bpe *b, ds_bpe_scratch *s, const char *word, size_t len)
{
    if (!b->byte_level)
        return ds_vocab_find(b->vocab, word, len);
    if (len > b->vocab->max_bytes)
        return NONE;
    ds_buf_clear(&s->raw);
    for (size_t i = 0; i < len; i++) {
        char letter[2];
        int n;
        ds_alphabet_encode((unsigned char)word[i], letter, &n);
        if (ds_buf_append(&s->raw, letter, (size_t)n) != DS_OK)
            return NONE;
    }
    return ds_vocab_find(b->vocab, s->raw.data, s->raw.len);
}

ds_code ds_bpe_word(const ds_bpe *b, ds_bpe_scratch *s, const char *word, size_t len, ds_ids *out)
{
    if (b->ignore_merges && len) {
        int32_t id = whole_word(b, s, word, len);
        if (id >= 0)
            return ds_ids_push(out, id);
    }
    if (len > s->cap) {
        size_t cap = len < 256 ? 256 : len + len / 2;
        ds_bpe_symbol *p = cap < UINT32_MAX / 2 ? realloc(s->symbol, cap * sizeof *p) : NULL;
        if (!p)
            return DS_ENOMEM;
        s->symbol = p;
        s->cap = cap;
    }
    s->n = 0;
    if (b->byte_level)
        symbols_of_bytes(b, s, word, len);
    else
        symbols_of_chars(b, s, word, len);
    DS_TRY(merge_all(b, s));
    for (uint32_t i = s->n ? 0 : END; i != END; i = s->symbol[i].next)
        DS_TRY(ds_ids_push(out, s->symbol[i].id));
    return DS_OK;
}

void ds_bpe_scratch_free(ds_bpe_scratch *s)
{
    free(s->symbol);
    free(s->heap);
    ds_buf_free(&s->raw);
    *s = (ds_bpe_scratch){0};
}

void ds_bpe_free(ds_bpe *b)
{
    free(b->merge);
    *b = (ds_bpe){0};
}
