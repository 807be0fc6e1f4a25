/* tok_parse.c - see tok_parse.h. Source: the JSON forms of huggingface/tokenizers 0.13 to 0.23. */
#include "text/tok_parse.h"

#include "base/limits.h"

#include <stdlib.h>
#include <string.h>

/* The one pattern that ByteLevel brings itself (GPT-2's). */
static const char GPT2_PATTERN[] =
    "'s|'t|'re|'ve|'m|'ll|'d| ?\\p{L}+| ?\\p{N}+| ?[^\\s\\p{L}\\p{N}]+|\\s+(?!\\S)|\\s+";

static const char *type_of(const json_t *o)
{
    const char *s = json_string_value(json_object_get(o, "type"));
    return s ? s : "(none)";
}

static int is_true(const json_t *o, const char *key, int if_absent)
{
    const json_t *v = json_object_get(o, key);
    return v ? json_is_true(v) : if_absent;
}

static ds_code unsupported(ds_err *err, const char *key, const char *value)
{
    return ds_err_field(err, DS_EUNSUPPORTED, key, "tokenizer.json: %s \"%.60s\" is not supported", key,
                        value);
}

/* Calls fn on o, or on each member of its list when it is a Sequence. One level: sequences do not nest. */
typedef ds_code (*part_fn)(ds_tokenizer *t, const json_t *part, ds_err *err);
static ds_code each_part(ds_tokenizer *t, const json_t *o, const char *list_key, part_fn fn, ds_err *err)
{
    if (!o || json_is_null(o))
        return DS_OK;
    if (strcmp(type_of(o), "Sequence") != 0)
        return fn(t, o, err);
    const json_t *list = json_object_get(o, list_key);
    if (!json_is_array(list))
        return ds_err_field(err, DS_ECORRUPT, list_key, "tokenizer.json: %s is not a list", list_key);
    for (size_t i = 0; i < json_array_size(list); i++)
        DS_TRY(fn(t, json_array_get(list, i), err));
    return DS_OK;
}

static ds_code normal_part(ds_tokenizer *t, const json_t *o, ds_err *err)
{
    ds_normal *n = &t->normal;
    const char *type = type_of(o), *from = NULL, *to = NULL;
    if (n->n == DS_NORMAL_MAX_STEPS)
        return ds_err_field(err, DS_ELIMIT, "normalizer", "tokenizer.json: more than %d normalizers",
                            DS_NORMAL_MAX_STEPS);
    if (strcmp(type, "NFC") == 0) {
        n->step[n->n].kind = DS_NORMAL_NFC;
    } else if (strcmp(type, "Replace") == 0) {
        n->step[n->n].kind = DS_NORMAL_REPLACE;
        from = json_string_value(json_object_get(json_object_get(o, "pattern"), "String"));
        to = json_string_value(json_object_get(o, "content"));
        if (!from || !*from || !to)
            return unsupported(err, "normalizer.pattern", "other than a non-empty String");
    } else if (strcmp(type, "Prepend") == 0) {
        n->step[n->n].kind = DS_NORMAL_PREPEND;
        to = json_string_value(json_object_get(o, "prepend"));
        if (!to)
            return ds_err_field(err, DS_ECORRUPT, "normalizer.prepend",
                                "tokenizer.json: no normalizer.prepend");
    } else {
        return unsupported(err, "normalizer.type", type);
    }
    char *copy_from = from ? strdup(from) : NULL, *copy_to = to ? strdup(to) : NULL;
    n->step[n->n].from = copy_from;
    n->step[n->n].to = copy_to;
    n->n++;
    return (from && !copy_from) || (to && !copy_to) ? ds_err_set(err, DS_ENOMEM, "no memory for a normalizer")
                                                    : DS_OK;
}

ds_code ds_tok_parse_normalizer(ds_tokenizer *t, const json_t *root, ds_err *err)
{
    return each_part(t, json_object_get(root, "normalizer"), "normalizers", normal_part, err);
}

static int behavior_of(const char *name, ds_pretok_behavior *ret)
{
    static const struct {
        const char *name;
        ds_pretok_behavior behavior;
    } known[] = {{"Isolated", DS_PRETOK_ISOLATED},
                 {"Removed", DS_PRETOK_REMOVED},
                 {"Contiguous", DS_PRETOK_CONTIGUOUS},
                 {"MergedWithPrevious", DS_PRETOK_MERGED_WITH_PREVIOUS},
                 {"MergedWithNext", DS_PRETOK_MERGED_WITH_NEXT}};
    for (size_t i = 0; name && i < sizeof known / sizeof *known; i++)
        if (strcmp(name, known[i].name) == 0) {
            *ret = known[i].behavior;
            return 1;
        }
    return 0;
}

static ds_code add_split(ds_tokenizer *t, const char *pattern, int literal, ds_pretok_behavior b, int invert,
                         ds_err *err)
{
    ds_code code = ds_pretok_add_split(t->pretok, pattern, strlen(pattern), literal, b, invert, err);
    if (code != DS_OK && err)
        memcpy(err->field, "pre_tokenizer.pattern", sizeof "pre_tokenizer.pattern");
    return code;
}

static ds_code split_part(ds_tokenizer *t, const json_t *o, ds_err *err)
{
    const json_t *pattern = json_object_get(o, "pattern");
    const char *regex = json_string_value(json_object_get(pattern, "Regex"));
    const char *string = json_string_value(json_object_get(pattern, "String"));
    const char *behavior = json_string_value(json_object_get(o, "behavior"));
    ds_pretok_behavior b;
    if (!regex && !string)
        return ds_err_field(err, DS_ECORRUPT, "pre_tokenizer.pattern",
                            "tokenizer.json: pre_tokenizer.pattern has neither Regex nor String");
    if (!behavior_of(behavior, &b))
        return unsupported(err, "pre_tokenizer.behavior", behavior ? behavior : "(none)");
    return add_split(t, regex ? regex : string, !regex, b, is_true(o, "invert", 0), err);
}

static ds_code pretok_part(ds_tokenizer *t, const json_t *o, ds_err *err)
{
    const char *type = type_of(o);
    if (t->bpe.byte_level)
        return unsupported(err, "pre_tokenizer", "a stage after ByteLevel");
    if (strcmp(type, "Split") == 0)
        return split_part(t, o, err);
    if (strcmp(type, "Digits") == 0)
        return add_split(t, "\\p{N}", 0,
                         is_true(o, "individual_digits", 0) ? DS_PRETOK_ISOLATED : DS_PRETOK_CONTIGUOUS, 0,
                         err);
    if (strcmp(type, "ByteLevel") != 0)
        return unsupported(err, "pre_tokenizer.type", type);
    t->bpe.byte_level = 1;
    if (is_true(o, "add_prefix_space", 1))
        DS_TRY(ds_pretok_add_prefix(t->pretok, err));
    return is_true(o, "use_regex", 1) ? add_split(t, GPT2_PATTERN, 0, DS_PRETOK_ISOLATED, 0, err) : DS_OK;
}

ds_code ds_tok_parse_pre_tokenizer(ds_tokenizer *t, const json_t *root, ds_err *err)
{
    if (ds_pretok_create(&t->pretok) != DS_OK)
        return ds_err_set(err, DS_ENOMEM, "no memory for the pre-tokenizer");
    return each_part(t, json_object_get(root, "pre_tokenizer"), "pretokenizers", pretok_part, err);
}

/* The form of an added token that the normalised text is searched for. */
static ds_code add_normalized(ds_tokenizer *t, const char *s, size_t len, int32_t id, int flags)
{
    ds_buf buf[2] = {{0}, {0}};
    ds_code code = ds_normal_apply(&t->normal, s, len, buf, &s, &len);
    if (code == DS_OK && len)
        code = ds_added_add(&t->added_normalized, s, len, id, flags);
    ds_buf_free(&buf[0]);
    ds_buf_free(&buf[1]);
    return code;
}

static ds_code added_part(ds_tokenizer *t, const json_t *o, ds_err *err)
{
    const json_t *content = json_object_get(o, "content"), *id_json = json_object_get(o, "id");
    const char *s = json_string_value(content);
    size_t len = json_string_length(content);
    json_int_t id = json_is_integer(id_json) ? json_integer_value(id_json) : -1;
    if (!s || !len || id < 0)
        return ds_err_field(err, DS_ECORRUPT, "added_tokens",
                            "tokenizer.json: an added token without content or without an id");
    int32_t known = ds_vocab_find(&t->vocab, s, len);
    if (known >= 0 && known != id)
        return ds_err_field(err, DS_ECORRUPT, "added_tokens",
                            "tokenizer.json: added token %.40s has id %lld, but %d in the vocabulary", s,
                            (long long)id, known);
    if (known < 0) {
        ds_code code = ds_vocab_add(&t->vocab, s, len, id, 0, err);
        if (code != DS_OK && err)
            memcpy(err->field, "added_tokens", sizeof "added_tokens");
        DS_TRY(code);
    }
    int special = is_true(o, "special", 0);
    t->vocab.tok[id].flags |= DS_TOK_ADDED | (special ? DS_TOK_SPECIAL : 0);
    int flags = (is_true(o, "single_word", 0) ? DS_ADDED_SINGLE_WORD : 0) |
                (is_true(o, "lstrip", 0) ? DS_ADDED_LSTRIP : 0) |
                (is_true(o, "rstrip", 0) ? DS_ADDED_RSTRIP : 0);
    ds_code code = is_true(o, "normalized", !special)
                       ? add_normalized(t, s, len, (int32_t)id, flags)
                       : ds_added_add(&t->added_raw, s, len, (int32_t)id, flags);
    return code == DS_OK ? DS_OK : ds_err_set(err, code, "added token %.40s: %s", s, ds_err_name(code));
}

ds_code ds_tok_parse_added(ds_tokenizer *t, const json_t *root, ds_err *err)
{
    const json_t *list = json_object_get(root, "added_tokens");
    if (json_array_size(list) > DS_MAX_ADDED_TOKENS)
        return ds_err_field(err, DS_ELIMIT, "added_tokens",
                            "tokenizer.json: %zu added tokens; the limit is %d", json_array_size(list),
                            DS_MAX_ADDED_TOKENS);
    for (size_t i = 0; i < json_array_size(list); i++)
        DS_TRY(added_part(t, json_array_get(list, i), err));
    return DS_OK;
}

static ds_code affix_add(ds_tokenizer *t, const json_t *ids, int32_t *list, int *n, ds_err *err)
{
    for (size_t i = 0; i < json_array_size(ids); i++) {
        const json_t *id = json_array_get(ids, i);
        if (!json_is_integer(id) || json_integer_value(id) < 0 || json_integer_value(id) >= t->vocab.n)
            return ds_err_field(err, DS_ECORRUPT, "post_processor.special_tokens",
                                "tokenizer.json: a special token's id is not in the vocabulary");
        if (*n == DS_TOK_MAX_AFFIX)
            return ds_err_field(err, DS_ELIMIT, "post_processor.single",
                                "tokenizer.json: more than %d special tokens", DS_TOK_MAX_AFFIX);
        list[(*n)++] = (int32_t)json_integer_value(id);
    }
    return DS_OK;
}

static ds_code template_part(ds_tokenizer *t, const json_t *o, ds_err *err)
{
    const json_t *single = json_object_get(o, "single"), *specials = json_object_get(o, "special_tokens");
    int after = 0;
    for (size_t i = 0; i < json_array_size(single); i++) {
        const json_t *item = json_array_get(single, i), *sp = json_object_get(item, "SpecialToken");
        if (json_object_get(item, "Sequence")) {
            after = 1;
            continue;
        }
        const char *name = json_string_value(json_object_get(sp, "id"));
        const json_t *ids = name ? json_object_get(json_object_get(specials, name), "ids") : NULL;
        if (!json_is_array(ids))
            return ds_err_field(err, DS_ECORRUPT, "post_processor.single",
                                "tokenizer.json: post_processor.single names an unknown special token");
        DS_TRY(affix_add(t, ids, after ? t->suffix : t->prefix, after ? &t->n_suffix : &t->n_prefix, err));
    }
    return DS_OK;
}

static ds_code post_part(ds_tokenizer *t, const json_t *o, ds_err *err)
{
    if (strcmp(type_of(o), "ByteLevel") == 0) /* offsets only */
        return DS_OK;
    if (strcmp(type_of(o), "TemplateProcessing") == 0)
        return template_part(t, o, err);
    return unsupported(err, "post_processor.type", type_of(o));
}

ds_code ds_tok_parse_post_processor(ds_tokenizer *t, const json_t *root, ds_err *err)
{
    return each_part(t, json_object_get(root, "post_processor"), "processors", post_part, err);
}
