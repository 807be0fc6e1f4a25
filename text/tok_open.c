/* tok_open.c - tokenizer.json to a ds_tokenizer. The file is hostile: sizes are bounded before memory is
 * taken, ids and strings are checked against each other, and what is not understood is refused by name. vocab
 * and merges are read in place (jscan.h); the rest of the file goes through jansson with both replaced by
 * null. */
#include "base/limits.h"
#include "text/file.h"
#include "text/jscan.h"
#include "text/tok_parse.h"
#include "text/utf8.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

typedef struct {
    const char *p;
    size_t len;
} span;

typedef struct {
    span vocab, merges;
} spans;

static ds_code corrupt(ds_err *err, const char *key, const char *what)
{
    return ds_err_field(err, DS_ECORRUPT, key, "tokenizer.json: %s %s", key, what);
}

/* The field of an error from below that names none. */
static ds_code in_field(ds_err *err, const char *field, ds_code code)
{
    if (code != DS_OK && err && !err->field[0])
        snprintf(err->field, sizeof err->field, "%s", field);
    return code;
}

/* Walks the members of the object at s; key is borrowed until the next string is read. */
static int next_member(ds_jscan *s, int *first, const char **key, size_t *len)
{
    if (ds_jscan_peek(s) == '}')
        return 0;
    if (!*first && !ds_jscan_char(s, ','))
        return -1;
    *first = 0;
    return ds_jscan_string(s, key, len) && ds_jscan_char(s, ':') ? 1 : -1;
}

static int is_key(const char *key, size_t len, const char *want)
{
    return len == strlen(want) && memcmp(key, want, len) == 0;
}

static int find_in_model(ds_jscan *s, spans *ret)
{
    const char *key;
    size_t len;
    int first = 1, more;
    if (!ds_jscan_char(s, '{'))
        return 0;
    while ((more = next_member(s, &first, &key, &len)) > 0) {
        span *to = is_key(key, len, "vocab") ? &ret->vocab : is_key(key, len, "merges") ? &ret->merges : NULL;
        ds_jscan_peek(s);
        const char *from = s->p;
        if (!ds_jscan_skip(s) || (to && to->p))
            return 0;
        if (to)
            *to = (span){from, (size_t)(s->p - from)};
    }
    return more == 0 && ds_jscan_char(s, '}');
}

static int find_spans(ds_jscan *s, spans *ret)
{
    const char *key;
    size_t len;
    int first = 1, more;
    if (!ds_jscan_char(s, '{'))
        return 0;
    while ((more = next_member(s, &first, &key, &len)) > 0)
        if (!(is_key(key, len, "model") ? find_in_model(s, ret) : ds_jscan_skip(s)))
            return 0;
    return more == 0 && ds_jscan_char(s, '}');
}

/* The file with both spans replaced by null. */
static ds_code load_rest(const char *json, size_t len, const spans *sp, json_t **ret, ds_err *err)
{
    span a = sp->vocab, b = sp->merges;
    if (a.p > b.p) {
        a = sp->merges;
        b = sp->vocab;
    }
    ds_buf rest = {0};
    ds_code code = ds_buf_append(&rest, json, (size_t)(a.p - json));
    if (code == DS_OK)
        code = ds_buf_puts(&rest, "null");
    if (code == DS_OK)
        code = ds_buf_append(&rest, a.p + a.len, (size_t)(b.p - a.p) - a.len);
    if (code == DS_OK)
        code = ds_buf_puts(&rest, "null");
    if (code == DS_OK)
        code = ds_buf_append(&rest, b.p + b.len, (size_t)(json + len - b.p) - b.len);
    json_error_t je;
    *ret = code == DS_OK ? json_loadb(rest.data, rest.len, 0, &je) : NULL;
    ds_buf_free(&rest);
    if (code == DS_OK && !*ret)
        return ds_err_set(err, DS_ECORRUPT, "tokenizer.json is not JSON: %.200s", je.text);
    return code == DS_OK ? DS_OK : ds_err_set(err, code, "no memory for tokenizer.json");
}

static ds_code parse_vocab(ds_tokenizer *t, span in, ds_err *err)
{
    ds_jscan s = {.p = in.p, .end = in.p + in.len};
    const char *key;
    size_t len;
    int first = 1, more = -1;
    ds_code code = DS_OK;
    if (ds_jscan_char(&s, '{'))
        while (code == DS_OK && (more = next_member(&s, &first, &key, &len)) > 0) {
            int64_t id;
            if (!ds_jscan_int(&s, &id))
                code = corrupt(err, "model.vocab", "has an id that is no integer");
            else if (t->vocab.n_hashed >= DS_MAX_VOCAB)
                code = ds_err_field(err, DS_ELIMIT, "model.vocab", "tokenizer.json: more than %d tokens",
                                    DS_MAX_VOCAB);
            else
                code = in_field(err, "model.vocab", ds_vocab_add(&t->vocab, key, len, id, 1, err));
        }
    ds_jscan_fini(&s);
    if (code == DS_OK && more != 0)
        return corrupt(err, "model.vocab", "is not an object of strings to integers");
    return code;
}

static ds_code add_merge(ds_tokenizer *t, int32_t left, int32_t right, uint32_t rank, ds_err *err)
{
    char whole[2 * DS_MAX_TOKEN_BYTES];
    const ds_vocab *v = &t->vocab;
    int32_t id = -1;
    if (left >= 0 && right >= 0) {
        const ds_tok_entry *a = &v->tok[left], *b = &v->tok[right];
        memcpy(whole, v->raw.data + a->raw, a->raw_len);
        memcpy(whole + a->raw_len, v->raw.data + b->raw, b->raw_len);
        id = ds_vocab_find(v, whole, a->raw_len + b->raw_len);
    }
    if (id < 0)
        return ds_err_field(err, DS_ECORRUPT, "model.merges",
                            "tokenizer.json: merge %u names a token that is not in the vocabulary", rank);
    return ds_bpe_add(&t->bpe, left, right, id, rank) == DS_OK
               ? DS_OK
               : ds_err_set(err, DS_ENOMEM, "no memory for the merges");
}

/* One merge: ["a", "b"] or "a b" (split at the only space, as the reference does). */
static int read_merge(const ds_vocab *v, ds_jscan *s, int32_t *left, int32_t *right)
{
    const char *p;
    size_t len;
    if (ds_jscan_peek(s) == '[') {
        s->p++;
        if (!ds_jscan_string(s, &p, &len))
            return 0;
        *left = ds_vocab_find(v, p, len);
        if (!ds_jscan_char(s, ',') || !ds_jscan_string(s, &p, &len))
            return 0;
        *right = ds_vocab_find(v, p, len);
        return ds_jscan_char(s, ']');
    }
    if (!ds_jscan_string(s, &p, &len))
        return 0;
    const char *space = memchr(p, ' ', len);
    if (!space || memchr(space + 1, ' ', len - (size_t)(space + 1 - p)))
        return 0;
    *left = ds_vocab_find(v, p, (size_t)(space - p));
    *right = ds_vocab_find(v, space + 1, len - (size_t)(space + 1 - p));
    return 1;
}

static ds_code parse_merges(ds_tokenizer *t, span in, ds_err *err)
{
    enum { MAX_MERGES = 4 * DS_MAX_VOCAB };
    ds_jscan s = {.p = in.p, .end = in.p + in.len};
    ds_code code = DS_OK;
    int ok = ds_jscan_char(&s, '[');
    for (uint32_t rank = 0; ok && code == DS_OK && ds_jscan_peek(&s) != ']'; rank++) {
        int32_t left = -1, right = -1;
        ok = (rank == 0 || ds_jscan_char(&s, ',')) && read_merge(&t->vocab, &s, &left, &right);
        if (ok)
            code = rank < MAX_MERGES
                       ? add_merge(t, left, right, rank, err)
                       : ds_err_field(err, DS_ELIMIT, "model.merges", "tokenizer.json: too many merges");
    }
    ds_jscan_fini(&s);
    return ok || code != DS_OK ? code : corrupt(err, "model.merges", "is not a list of pairs");
}

static ds_code refuse_key(ds_err *err, const char *key)
{
    return ds_err_field(err, DS_EUNSUPPORTED, key, "tokenizer.json: %s is set, which is not supported", key);
}

static int is_empty(const json_t *v)
{
    return !v || json_is_null(v) || json_is_false(v) || (json_is_string(v) && !json_string_length(v)) ||
           (json_is_number(v) && json_number_value(v) == 0);
}

static ds_code parse_model_flags(ds_tokenizer *t, const json_t *model, ds_err *err)
{
    const char *type = json_string_value(json_object_get(model, "type"));
    if (type && strcmp(type, "BPE") != 0)
        return ds_err_field(err, DS_EUNSUPPORTED, "model.type",
                            "tokenizer.json: model.type \"%.60s\" is not supported", type);
    if (!is_empty(json_object_get(model, "dropout")))
        return refuse_key(err, "model.dropout");
    if (!is_empty(json_object_get(model, "continuing_subword_prefix")))
        return refuse_key(err, "model.continuing_subword_prefix");
    if (!is_empty(json_object_get(model, "end_of_word_suffix")))
        return refuse_key(err, "model.end_of_word_suffix");
    t->bpe.ignore_merges = json_is_true(json_object_get(model, "ignore_merges"));
    t->bpe.fuse_unk = json_is_true(json_object_get(model, "fuse_unk"));
    return DS_OK;
}

/* Tokens of single bytes, and the unknown token; after the vocabulary. */
static ds_code find_base_tokens(ds_tokenizer *t, const json_t *model, ds_err *err)
{
    int fallback = json_is_true(json_object_get(model, "byte_fallback"));
    for (int b = 0; b < 256; b++) {
        char s[8];
        int n;
        if (t->bpe.byte_level)
            ds_alphabet_encode((unsigned char)b, s, &n);
        else
            n = snprintf(s, sizeof s, "<0x%02X>", (unsigned)b);
        t->bpe.byte_id[b] = t->bpe.byte_level || fallback ? ds_vocab_find(&t->vocab, s, (size_t)n) : -1;
    }
    const json_t *unk = json_object_get(model, "unk_token");
    t->bpe.unk_id = -1;
    if (json_is_string(unk)) {
        t->bpe.unk_id = ds_vocab_find(&t->vocab, json_string_value(unk), json_string_length(unk));
        if (t->bpe.unk_id < 0)
            return corrupt(err, "model.unk_token", "is not in the vocabulary");
    }
    return DS_OK;
}

static ds_code parse_all(ds_tokenizer *t, const json_t *root, const spans *sp, ds_err *err)
{
    const json_t *model = json_object_get(root, "model");
    DS_TRY(parse_model_flags(t, model, err));
    DS_TRY(ds_tok_parse_normalizer(t, root, err));
    DS_TRY(ds_tok_parse_pre_tokenizer(t, root, err));
    DS_TRY(parse_vocab(t, sp->vocab, err));
    DS_TRY(parse_merges(t, sp->merges, err));
    t->bpe.vocab = &t->vocab;
    DS_TRY(find_base_tokens(t, model, err));
    DS_TRY(ds_tok_parse_added(t, root, err));
    DS_TRY(ds_tok_parse_post_processor(t, root, err));
    return ds_tok_parse_decoder(t, root, err);
}

/* Errors from below speak of a token or a pattern: say where it stands. */
static void name_the_file(ds_err *err)
{
    char msg[DS_ERR_MSG_MAX];
    if (!err || !strncmp(err->msg, "tokenizer.json", 14))
        return;
    memcpy(msg, err->msg, sizeof msg);
    snprintf(err->msg, sizeof err->msg, "tokenizer.json: %s%s%.400s", err->field, err->field[0] ? ": " : "",
             msg);
}

ds_code ds_tokenizer_parse(const char *json, size_t len, ds_tokenizer **ret, ds_err *err)
{
    *ret = NULL;
    if (len > DS_MAX_TOKENIZER_BYTES)
        return ds_err_set(err, DS_ELIMIT, "tokenizer.json has %zu bytes; the limit is %d", len,
                          DS_MAX_TOKENIZER_BYTES);
    size_t valid = ds_utf8_prefix(json, len);
    if (valid != len)
        return ds_err_set(err, DS_ECORRUPT, "tokenizer.json is not valid UTF-8 at byte %zu", valid);
    ds_jscan s = {.p = json, .end = json + len};
    spans sp = {0};
    int found = find_spans(&s, &sp);
    ds_jscan_fini(&s);
    if (!found)
        return ds_err_set(err, DS_ECORRUPT,
                          "tokenizer.json is not a JSON object, or nests deeper than %d levels",
                          DS_MAX_JSON_DEPTH);
    if (!sp.vocab.p || !sp.merges.p)
        return ds_err_field(err, DS_EUNSUPPORTED, "model",
                            "tokenizer.json: model has no vocab or no merges; only BPE is supported");
    json_t *root;
    DS_TRY(load_rest(json, len, &sp, &root, err));
    ds_tokenizer *t = calloc(1, sizeof *t);
    ds_code code =
        t ? parse_all(t, root, &sp, err) : ds_err_set(err, DS_ENOMEM, "no memory for the tokenizer");
    json_decref(root);
    if (code != DS_OK) {
        name_the_file(err);
        ds_tokenizer_close(t);
        return code;
    }
    *ret = t;
    return DS_OK;
}

ds_code ds_tokenizer_open(const char *dir, ds_tokenizer **ret, ds_err *err)
{
    ds_buf file = {0};
    *ret = NULL;
    DS_TRY(ds_text_read_file(dir, "tokenizer.json", &file, err));
    ds_code code = ds_tokenizer_parse(file.data, file.len, ret, err);
    ds_buf_free(&file);
    return code;
}
