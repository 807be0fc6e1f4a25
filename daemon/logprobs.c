/* logprobs.c - log-probabilities as OpenAI's two forms, rendered as tokens come: chat has one object per
 * token, completions four parallel lists. A token's text is its own bytes, made valid UTF-8; chat's `bytes`
 * are exact. */
#include "daemon/daemon.h"
#include "daemon/json_out.h"

#include <stdio.h>
#include <string.h>

void ds_lp_clear(ds_lp *lp)
{
    ds_buf_clear(&lp->entry);
    ds_buf_clear(&lp->logprob);
    ds_buf_clear(&lp->top);
    ds_buf_clear(&lp->offset);
}

void ds_lp_free(ds_lp *lp)
{
    ds_buf_free(&lp->entry);
    ds_buf_free(&lp->logprob);
    ds_buf_free(&lp->top);
    ds_buf_free(&lp->offset);
}

enum { NAME_BYTES = 24 };

/* The bytes of a token; NULL for an id the tokenizer does not have (vocabularies are padded). */
static const char *text_of(const ds_choice *c, int32_t id, size_t *len)
{
    const ds_tokenizer *tok = c->req->d->tok;
    *len = 0;
    return tok ? ds_tokenizer_token(tok, id, len) : NULL;
}

/* What a token is called: its bytes, or "token_id:N" (in name) when it has none. */
static const char *token_bytes(const ds_choice *c, int32_t id, char name[NAME_BYTES], size_t *len)
{
    const char *s = text_of(c, id, len);
    if (s)
        return s;
    *len = (size_t)snprintf(name, NAME_BYTES, "token_id:%d", id);
    return name;
}

static ds_code comma(ds_buf *b)
{
    return b->len ? ds_buf_append(b, ",", 1) : DS_OK;
}

static ds_code chat_item(const ds_choice *c, ds_buf *out, int32_t id, float logprob)
{
    char name[NAME_BYTES];
    size_t len;
    const char *s = token_bytes(c, id, name, &len);
    DS_TRY(ds_buf_puts(out, "{\"token\":"));
    DS_TRY(ds_json_str(out, s, len));
    DS_TRY(ds_buf_puts(out, ",\"logprob\":"));
    DS_TRY(ds_json_logprob(out, logprob));
    DS_TRY(ds_buf_puts(out, ",\"bytes\":"));
    return ds_json_bytes(out, s, s == name ? 0 : len); /* none: the name is not its text */
}

static ds_code add_chat(ds_choice *c, int32_t id, const ds_pb_logprob *lp)
{
    ds_buf *out = &c->lp.entry;
    DS_TRY(comma(out));
    DS_TRY(chat_item(c, out, id, lp->logprob));
    DS_TRY(ds_buf_puts(out, ",\"top_logprobs\":["));
    for (size_t i = 0; i < lp->n_top && (int)i < c->req->params.logprobs; i++) {
        if (i)
            DS_TRY(ds_buf_append(out, ",", 1));
        DS_TRY(chat_item(c, out, lp->top[i]->id, lp->top[i]->logprob));
        DS_TRY(ds_buf_append(out, "}", 1));
    }
    return ds_buf_puts(out, "]}");
}

/* A key of top_logprobs. Bytes that are no text on their own are written as OpenAI does: "bytes:\xe2\x82". */
static ds_code put_key(const ds_choice *c, ds_buf *out, int32_t id)
{
    char name[NAME_BYTES];
    size_t len, i = 0;
    const char *s = token_bytes(c, id, name, &len);
    while (i < len && ds_utf8_next(s + i, len - i))
        i += (size_t)ds_utf8_next(s + i, len - i);
    if (i == len)
        return ds_json_str(out, s, len);
    DS_TRY(ds_buf_puts(out, "\"bytes:"));
    for (i = 0; i < len; i++)
        DS_TRY(ds_buf_printf(out, "\\\\x%02x", (unsigned char)s[i]));
    return ds_buf_append(out, "\"", 1);
}

/* The same text can belong to two ids; a JSON object must not have a key twice, so the likelier one stays. */
static int same_token(const ds_choice *c, int32_t a, int32_t b)
{
    char name[2][NAME_BYTES];
    size_t n, m;
    const char *s = token_bytes(c, a, name[0], &n), *t = token_bytes(c, b, name[1], &m);
    return a == b || (n == m && !memcmp(s, t, n));
}

static ds_code add_top(ds_choice *c, int32_t id, const ds_pb_logprob *lp)
{
    ds_buf *out = &c->lp.top;
    int has_self = 0, n = 0;
    DS_TRY(ds_buf_append(out, "{", 1));
    for (size_t i = 0; i < lp->n_top && (int)i < c->req->params.logprobs; i++) {
        int twice = 0;
        for (size_t k = 0; k < i && !twice; k++)
            twice = same_token(c, lp->top[k]->id, lp->top[i]->id);
        if (twice)
            continue;
        has_self |= same_token(c, lp->top[i]->id, id);
        if (n++)
            DS_TRY(ds_buf_append(out, ",", 1));
        DS_TRY(put_key(c, out, lp->top[i]->id));
        DS_TRY(ds_buf_append(out, ":", 1));
        DS_TRY(ds_json_logprob(out, lp->top[i]->logprob));
    }
    if (!has_self) { /* the chosen token is always among them */
        if (n)
            DS_TRY(ds_buf_append(out, ",", 1));
        DS_TRY(put_key(c, out, id));
        DS_TRY(ds_buf_append(out, ":", 1));
        DS_TRY(ds_json_logprob(out, lp->logprob));
    }
    return ds_buf_append(out, "}", 1);
}

static ds_code add_completion(ds_choice *c, int32_t id, const ds_pb_logprob *lp)
{
    ds_lp *l = &c->lp;
    size_t len;
    const char *s = text_of(c, id, &len);
    DS_TRY(comma(&l->entry));
    DS_TRY(put_key(c, &l->entry, id));
    DS_TRY(comma(&l->offset));
    DS_TRY(ds_json_int(&l->offset, (int64_t)l->chars));
    int hidden =
        !s || (c->n_out && ds_tokenizer_is_special(c->req->d->tok, id)); /* in answers, not in echoes */
    l->chars += hidden ? 0 : ds_utf8_count(s, len);
    DS_TRY(comma(&l->logprob));
    DS_TRY(comma(&l->top));
    if (!lp) {
        DS_TRY(ds_buf_puts(&l->logprob, "null"));
        return ds_buf_puts(&l->top, "null");
    }
    DS_TRY(ds_json_logprob(&l->logprob, lp->logprob));
    return add_top(c, id, lp);
}

ds_code ds_lp_add(ds_choice *c, int32_t id, const ds_pb_logprob *lp)
{
    if (c->req->params.api == DS_API_CHAT)
        return lp ? add_chat(c, id, lp) : DS_OK;
    return add_completion(c, id, lp);
}

ds_code ds_lp_write(ds_choice *c, ds_buf *out)
{
    ds_lp *l = &c->lp;
    if (c->req->params.logprobs < 0)
        return ds_buf_puts(out, "\"logprobs\":null");
    if (c->req->params.api == DS_API_CHAT) {
        DS_TRY(ds_buf_puts(out, "\"logprobs\":{\"content\":["));
        DS_TRY(ds_buf_append(out, l->entry.data, l->entry.len));
        return ds_buf_puts(out, "],\"refusal\":null}");
    }
    DS_TRY(ds_buf_puts(out, "\"logprobs\":{\"text_offset\":["));
    DS_TRY(ds_buf_append(out, l->offset.data, l->offset.len));
    DS_TRY(ds_buf_puts(out, "],\"token_logprobs\":["));
    DS_TRY(ds_buf_append(out, l->logprob.data, l->logprob.len));
    DS_TRY(ds_buf_puts(out, "],\"tokens\":["));
    DS_TRY(ds_buf_append(out, l->entry.data, l->entry.len));
    DS_TRY(ds_buf_puts(out, "],\"top_logprobs\":["));
    DS_TRY(ds_buf_append(out, l->top.data, l->top.len));
    return ds_buf_puts(out, "]}");
}
