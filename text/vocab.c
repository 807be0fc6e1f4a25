/* vocab.c - see vocab.h. Open addressing with a bounded probe: a file built to collide is refused, not slow.
 */
#include "text/vocab.h"

#include "base/limits.h"
#include "text/utf8.h"

#include <stdlib.h>
#include <string.h>

enum { MAX_PROBE = 4096, ALPHABET_END = 0x144 };

/* Printable Latin-1 stands for itself; the other 68 bytes follow from U+0100 on in order. */
static int stands_for_itself(unsigned b)
{
    return (b >= 0x21 && b <= 0x7E) || (b >= 0xA1 && b <= 0xAC) || b >= 0xAE;
}

void ds_alphabet_encode(unsigned char byte, char out[2], int *ret_len)
{
    uint32_t cp = byte;
    if (!stands_for_itself(byte)) {
        cp = 0x100;
        for (unsigned b = 0; b < byte; b++)
            cp += !stands_for_itself(b);
    }
    *ret_len = ds_utf8_put(cp, out);
}

static int alphabet_byte(uint32_t cp)
{
    if (cp < 0x100)
        return stands_for_itself(cp) ? (int)cp : -1;
    /* U+0100..0120: bytes 00..20; U+0121..0142: 7F..A0; U+0143: AD */
    if (cp <= 0x120)
        return (int)(cp - 0x100);
    if (cp <= 0x142)
        return (int)(cp - 0x121 + 0x7F);
    return cp < ALPHABET_END ? 0xAD : -1;
}

ds_code ds_alphabet_decode(const char *s, size_t len, ds_buf *out)
{
    size_t before = out->len;
    DS_TRY(ds_buf_reserve(out, len));
    for (const char *p = s, *end = s + len; p < end;) {
        uint32_t cp;
        int is_short, n = ds_utf8_next(p, end, &cp, &is_short), b = n > 0 ? alphabet_byte(cp) : -1;
        if (b < 0) {
            out->len = before;
            return DS_EINVAL;
        }
        out->data[out->len++] = (char)b;
        p += n;
    }
    return DS_OK;
}

static uint64_t hash_bytes(const char *s, size_t len)
{
    uint64_t h = 0x9E3779B97F4A7C15u ^ len;
    for (; len >= 8; s += 8, len -= 8) {
        uint64_t w;
        memcpy(&w, s, 8);
        h = (h ^ w) * 0xD6E8FEB86659FD93u;
        h ^= h >> 32;
    }
    uint64_t w = 0;
    memcpy(&w, s, len);
    h = (h ^ w) * 0xD6E8FEB86659FD93u;
    h ^= h >> 29;
    h *= 0xBF58476D1CE4E5B9u;
    return h ^ h >> 32;
}

int32_t ds_vocab_find(const ds_vocab *v, const char *raw, size_t len)
{
    if (!v->n_slots)
        return -1;
    uint32_t mask = v->n_slots - 1, i = (uint32_t)hash_bytes(raw, len) & mask;
    for (; v->slot[i]; i = (i + 1) & mask) {
        const ds_tok_entry *t = &v->tok[v->slot[i] - 1];
        if (t->raw_len == len && memcmp(v->raw.data + t->raw, raw, len) == 0)
            return (int32_t)v->slot[i] - 1;
    }
    return -1;
}

static ds_code slot_insert(ds_vocab *v, int32_t id)
{
    const ds_tok_entry *t = &v->tok[id];
    uint32_t mask = v->n_slots - 1, i = (uint32_t)hash_bytes(v->raw.data + t->raw, t->raw_len) & mask;
    for (int probe = 0; v->slot[i]; i = (i + 1) & mask)
        if (++probe > MAX_PROBE)
            return DS_ELIMIT;
    v->slot[i] = (uint32_t)id + 1;
    return DS_OK;
}

/* Keeps the table at most half full; ids already in it are inserted anew. */
static ds_code slots_grow(ds_vocab *v)
{
    if ((v->n_hashed + 1) * 2 <= v->n_slots)
        return DS_OK;
    uint32_t n_old = v->n_slots, *old = v->slot, n = n_old ? n_old * 2 : 1024;
    v->slot = calloc(n, sizeof *v->slot);
    if (!v->slot) {
        v->slot = old;
        return DS_ENOMEM;
    }
    v->n_slots = n;
    ds_code code = DS_OK;
    for (uint32_t i = 0; i < n_old && code == DS_OK; i++)
        if (old[i])
            code = slot_insert(v, (int32_t)old[i] - 1);
    free(old);
    return code;
}

static ds_code ids_grow(ds_vocab *v, int32_t id)
{
    if (id >= v->cap) {
        int32_t cap = v->cap ? v->cap : 1024;
        while (cap <= id)
            cap *= 2;
        ds_tok_entry *t = realloc(v->tok, (size_t)cap * sizeof *t);
        if (!t)
            return DS_ENOMEM;
        memset(t + v->cap, 0, (size_t)(cap - v->cap) * sizeof *t);
        v->tok = t;
        v->cap = cap;
    }
    if (id >= v->n)
        v->n = id + 1;
    return DS_OK;
}

ds_code ds_vocab_add(ds_vocab *v, const char *raw, size_t len, int64_t id, int hashed, ds_err *err)
{
    if (id < 0 || id >= DS_MAX_VOCAB)
        return ds_err_set(err, DS_ELIMIT, "token id %lld is outside 0..%d", (long long)id, DS_MAX_VOCAB - 1);
    if (len > DS_MAX_TOKEN_BYTES)
        return ds_err_set(err, DS_ELIMIT, "token %lld has %zu bytes; the limit is %d", (long long)id, len,
                          DS_MAX_TOKEN_BYTES);
    if (hashed && ds_vocab_find(v, raw, len) >= 0)
        return ds_err_set(err, DS_ECORRUPT, "token %lld repeats the string of token %d", (long long)id,
                          ds_vocab_find(v, raw, len));
    if (ids_grow(v, (int32_t)id) != DS_OK)
        return ds_err_set(err, DS_ENOMEM, "no memory for token %lld", (long long)id);
    ds_tok_entry *t = &v->tok[id];
    if (t->flags & DS_TOK_USED)
        return ds_err_set(err, DS_ECORRUPT, "two tokens have the id %lld", (long long)id);
    *t = (ds_tok_entry){(uint32_t)v->raw.len, (uint32_t)len, 0, 0, DS_TOK_USED};
    ds_code code = ds_buf_append(&v->raw, raw, len);
    if (code == DS_OK && hashed) {
        code = slots_grow(v);
        if (code == DS_OK)
            code = slot_insert(v, (int32_t)id);
        v->n_hashed++;
    }
    return code == DS_OK ? DS_OK : ds_err_set(err, code, "token %lld does not fit the table", (long long)id);
}

void ds_vocab_free(ds_vocab *v)
{
    free(v->tok);
    free(v->slot);
    ds_buf_free(&v->raw);
    ds_buf_free(&v->bytes);
    *v = (ds_vocab){0};
}
