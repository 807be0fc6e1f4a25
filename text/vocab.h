/* vocab.h - the token table: id to bytes, string to id. Built once by the loader, then read-only.
 * A token has two forms: `raw`, the string in the file (in byte-level files in the 256-letter alphabet), and
 * `bytes`, what it stands for in text. Ids may have holes; a hole has no bytes. */
#ifndef DS_TEXT_VOCAB_H
#define DS_TEXT_VOCAB_H

#include "base/buf.h"
#include "base/err.h"

#include <stdint.h>

enum { DS_TOK_USED = 1, DS_TOK_ADDED = 2, DS_TOK_SPECIAL = 4 };

typedef struct ds_tok_entry {
    uint32_t raw, raw_len, bytes, bytes_len, flags;
} ds_tok_entry;

typedef struct ds_vocab {
    ds_tok_entry *tok; /* [n] */
    int32_t n, cap;    /* highest id + 1 */
    ds_buf raw, bytes; /* arenas */
    uint32_t *slot;    /* hash of raw: id + 1, or 0 */
    uint32_t n_slots, n_hashed;
    uint32_t max_bytes; /* longest token, bytes of text */
} ds_vocab;

/* The GPT-2 alphabet: each byte is written as one printable code point below U+0144. */
void ds_alphabet_encode(unsigned char byte, char out[2], int *ret_len);
/* ds_alphabet_decode: appends the bytes of a string written in the alphabet; DS_EINVAL (and out unchanged)
 * when a code point is foreign to it. */
ds_code ds_alphabet_decode(const char *s, size_t len, ds_buf *out);

/* ds_vocab_add: DS_ELIMIT (id or length), DS_ECORRUPT (string or id taken by another token). A hashed token
 * is one the model can produce from text; added tokens outside the model's vocabulary are not hashed. */
ds_code ds_vocab_add(ds_vocab *v, const char *raw, size_t len, int64_t id, int hashed, ds_err *err);
int32_t ds_vocab_find(const ds_vocab *v, const char *raw, size_t len); /* id or -1 */
void ds_vocab_free(ds_vocab *v);

#endif
