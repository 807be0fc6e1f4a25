/* tok_decoder.c - the decoder key: what bytes each token stands for, worked out once for all tokens. Two
 * kinds: ByteLevel, and the SentencePiece-like sequence of Replace, ByteFallback, Fuse. */
#include "text/tok_parse.h"

#include <stdlib.h>
#include <string.h>

typedef struct {
    int byte_level, byte_fallback;
    const char *from, *to; /* Replace; borrowed from the JSON tree */
} decoder;

static ds_code unsupported(ds_err *err, const char *what)
{
    return ds_err_field(err, DS_EUNSUPPORTED, "decoder", "tokenizer.json: decoder \"%.60s\" is not supported",
                        what);
}

static ds_code decoder_part(decoder *d, const json_t *o, ds_err *err)
{
    const char *type = json_string_value(json_object_get(o, "type"));
    if (!type)
        return unsupported(err, "(none)");
    if (strcmp(type, "ByteLevel") == 0) {
        d->byte_level = 1;
    } else if (strcmp(type, "ByteFallback") == 0) {
        d->byte_fallback = 1;
    } else if (strcmp(type, "Replace") == 0 && !d->from && !d->byte_fallback) {
        d->from = json_string_value(json_object_get(json_object_get(o, "pattern"), "String"));
        d->to = json_string_value(json_object_get(o, "content"));
        if (!d->from || !*d->from || !d->to)
            return unsupported(err, "Replace of other than a String");
    } else if (strcmp(type, "Fuse") != 0) {
        return unsupported(err, type);
    }
    return DS_OK;
}

static int fallback_byte(const char *s, size_t len)
{
    char *end, digits[3];
    if (len != 6 || memcmp(s, "<0x", 3) != 0 || s[5] != '>' || !memchr("0123456789ABCDEFabcdef", s[3], 22) ||
        !memchr("0123456789ABCDEFabcdef", s[4], 22))
        return -1;
    memcpy(digits, s + 3, 2);
    digits[2] = 0;
    return (int)strtol(digits, &end, 16);
}

static ds_code put_bytes(const decoder *d, const char *s, size_t len, ds_buf *out)
{
    if (d->byte_level)
        return ds_alphabet_decode(s, len, out) == DS_OK ? DS_OK : ds_buf_append(out, s, len);
    int byte = d->byte_fallback ? fallback_byte(s, len) : -1;
    if (byte >= 0)
        return ds_buf_append(out, &(char){(char)byte}, 1);
    const char *end = s + len, *hit;
    size_t n = d->from ? strlen(d->from) : 0;
    while (n && (hit = memmem(s, (size_t)(end - s), d->from, n))) {
        DS_TRY(ds_buf_append(out, s, (size_t)(hit - s)));
        DS_TRY(ds_buf_puts(out, d->to));
        s = hit + n;
    }
    return ds_buf_append(out, s, (size_t)(end - s));
}

static ds_code fill_bytes(ds_vocab *v, const decoder *d)
{
    for (int32_t id = 0; id < v->n; id++) {
        ds_tok_entry *e = &v->tok[id];
        if (!(e->flags & DS_TOK_USED))
            continue;
        size_t at = v->bytes.len;
        DS_TRY(put_bytes(d, v->raw.data + e->raw, e->raw_len, &v->bytes));
        if (v->bytes.len > UINT32_MAX)
            return DS_ELIMIT;
        e->bytes = (uint32_t)at;
        e->bytes_len = (uint32_t)(v->bytes.len - at);
        if (e->bytes_len > v->max_bytes)
            v->max_bytes = e->bytes_len;
    }
    return DS_OK;
}

ds_code ds_tok_parse_decoder(ds_tokenizer *t, const json_t *root, ds_err *err)
{
    decoder d = {0};
    const json_t *o = json_object_get(root, "decoder"), *list = json_object_get(o, "decoders");
    const char *type = json_string_value(json_object_get(o, "type"));
    if (type && strcmp(type, "Sequence") == 0) {
        for (size_t i = 0; i < json_array_size(list); i++)
            DS_TRY(decoder_part(&d, json_array_get(list, i), err));
    } else {
        DS_TRY(decoder_part(&d, o, err));
    }
    if (d.byte_level != t->bpe.byte_level || (d.byte_level && (d.from || d.byte_fallback)))
        return unsupported(err, "ByteLevel in only one of pre_tokenizer and decoder");
    ds_code code = fill_bytes(&t->vocab, &d);
    return code == DS_OK ? DS_OK : ds_err_set(err, code, "tokenizer.json: the tokens' bytes do not fit");
}
