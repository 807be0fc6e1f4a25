/* tokenizer.c - use of a loaded tokenizer: text to ids, ids to bytes. Text is cut at added tokens (raw, then
 * normalised), each gap is normalised, pre-tokenised and merged. A ds_tokenizer is never written after
 * ds_tokenizer_parse, so threads share it without locks; what a call needs lies in its own encode_run. */
#include "text/tokenizer.h"

#include "base/limits.h"
#include "text/tok.h"
#include "text/utf8.h"

#include <stdlib.h>
#include <string.h>

typedef struct {
    const ds_tokenizer *t;
    ds_pretok_run *pretok;
    ds_bpe_scratch bpe;
    ds_buf normal[2];
    ds_ids *out;
    int limit; /* out->n may not exceed it */
} encode_run;

void ds_ids_free(ds_ids *ids)
{
    free(ids->v);
    *ids = (ds_ids){0};
}

int ds_tokenizer_size(const ds_tokenizer *t)
{
    return t->vocab.n;
}

static const ds_tok_entry *entry(const ds_tokenizer *t, int32_t id)
{
    return id >= 0 && id < t->vocab.n && (t->vocab.tok[id].flags & DS_TOK_USED) ? &t->vocab.tok[id] : NULL;
}

const char *ds_tokenizer_token(const ds_tokenizer *t, int32_t id, size_t *ret_len)
{
    const ds_tok_entry *e = entry(t, id);
    *ret_len = e ? e->bytes_len : 0;
    return e ? t->vocab.bytes.data + e->bytes : NULL;
}

int ds_tokenizer_is_special(const ds_tokenizer *t, int32_t id)
{
    const ds_tok_entry *e = entry(t, id);
    return e && (e->flags & DS_TOK_SPECIAL) != 0;
}

int32_t ds_tokenizer_find(const ds_tokenizer *t, const char *token, size_t len)
{
    for (int32_t id = 0; id < t->vocab.n; id++) {
        const ds_tok_entry *e = &t->vocab.tok[id];
        if ((e->flags & DS_TOK_ADDED) && e->raw_len == len &&
            memcmp(t->vocab.raw.data + e->raw, token, len) == 0)
            return id;
    }
    return -1;
}

static ds_code emit(encode_run *r, int32_t id)
{
    return r->out->n < r->limit ? ds_ids_push(r->out, id) : DS_ELIMIT;
}

static ds_code on_piece(void *ctx, const char *piece, size_t len)
{
    encode_run *r = ctx;
    /* A piece needs at least this many tokens: refuse before the merges, not after. */
    if (r->t->vocab.max_bytes && len / r->t->vocab.max_bytes > (size_t)(r->limit - r->out->n) &&
        r->t->bpe.byte_level)
        return DS_ELIMIT;
    DS_TRY(ds_bpe_word(&r->t->bpe, &r->bpe, piece, len, r->out));
    return r->out->n <= r->limit ? DS_OK : DS_ELIMIT;
}

/* Text without raw added tokens. */
static ds_code encode_gap(encode_run *r, const char *text, size_t len, int parse_special)
{
    if (!len)
        return DS_OK;
    DS_TRY(ds_normal_apply(&r->t->normal, text, len, r->normal, &text, &len));
    size_t done = 0;
    ds_added_match m;
    while (parse_special && ds_added_next(&r->t->added_normalized, text, len, done, &m)) {
        DS_TRY(ds_pretok_cut(r->pretok, text + done, m.from - done, on_piece, r));
        DS_TRY(emit(r, m.id));
        done = m.to;
    }
    return ds_pretok_cut(r->pretok, text + done, len - done, on_piece, r);
}

static ds_code encode_text(encode_run *r, const char *text, size_t len, int parse_special)
{
    size_t done = 0;
    ds_added_match m;
    while (parse_special && ds_added_next(&r->t->added_raw, text, len, done, &m)) {
        DS_TRY(encode_gap(r, text + done, m.from - done, parse_special));
        DS_TRY(emit(r, m.id));
        done = m.to;
    }
    return encode_gap(r, text + done, len - done, parse_special);
}

static ds_code encode_all(encode_run *r, const char *text, size_t len, int parse_special, int add_special)
{
    DS_TRY(ds_pretok_run_open(r->t->pretok, &r->pretok));
    for (int i = 0; add_special && i < r->t->n_prefix; i++)
        DS_TRY(emit(r, r->t->prefix[i]));
    DS_TRY(encode_text(r, text, len, parse_special));
    for (int i = 0; add_special && i < r->t->n_suffix; i++)
        DS_TRY(emit(r, r->t->suffix[i]));
    return DS_OK;
}

ds_code ds_tokenizer_encode(const ds_tokenizer *t, const char *text, size_t len, int parse_special,
                            int add_special, int max_ids, ds_ids *out, ds_err *err)
{
    if (len > DS_MAX_TEXT_BYTES)
        return ds_err_set(err, DS_ELIMIT, "text has %zu bytes; the limit is %d", len, DS_MAX_TEXT_BYTES);
    if (!len)
        text = "";
    size_t valid = ds_utf8_prefix(text, len);
    if (valid != len)
        return ds_err_set(err, DS_EINVAL, "text is not valid UTF-8 at byte %zu", valid);
    int before = out->n, room = INT32_MAX - before;
    encode_run r = {.t = t, .out = out, .limit = before + (max_ids > 0 && max_ids < room ? max_ids : room)};
    ds_code code = encode_all(&r, text, len, parse_special, add_special);
    ds_pretok_run_close(r.pretok);
    ds_bpe_scratch_free(&r.bpe);
    ds_buf_free(&r.normal[0]);
    ds_buf_free(&r.normal[1]);
    if (code == DS_OK)
        return DS_OK;
    out->n = before;
    if (code == DS_ELIMIT && max_ids > 0)
        return ds_err_set(err, code, "text has more than %d tokens", max_ids);
    if (code == DS_ELIMIT)
        return ds_err_set(err, code, "text needs more steps or memory than the tokenizer's limits allow");
    return ds_err_set(err, code, "encoding failed: %s", ds_err_name(code));
}

void ds_tokenizer_close(ds_tokenizer *t)
{
    if (!t)
        return;
    ds_vocab_free(&t->vocab);
    ds_bpe_free(&t->bpe);
    ds_added_free(&t->added_raw);
    ds_added_free(&t->added_normalized);
    ds_normal_free(&t->normal);
    ds_pretok_destroy(t->pretok);
    free(t);
}
