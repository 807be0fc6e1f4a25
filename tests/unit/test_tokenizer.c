/* test_tokenizer.c - ids against vectors: the published tokenizers of ../shared/data where that folder lies
 * beside the checkout (else skipped and counted), and small trained ones in tests/golden/tokenizer always. */
#include "base/clock.h"
#include "tests/lib/test.h"
#include "text/file.h"
#include "text/tokenizer.h"
#include "text/utf8.h"

#include <jansson.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#define SHARED DS_SOURCE_DIR "/../shared/data"
#define GOLDEN DS_SOURCE_DIR "/tests/golden/tokenizer"

static ds_tokenizer *must_open(const char *dir)
{
    ds_tokenizer *t;
    ds_err err = {0};
    CHECK_OK(ds_tokenizer_open(dir, &t, &err), err);
    return t;
}

static char *decode(const ds_tokenizer *t, const ds_ids *ids, size_t *ret_len)
{
    ds_buf b = {0};
    for (int i = 0; i < ids->n; i++) {
        size_t n;
        const char *p = ds_tokenizer_token(t, ids->v[i], &n);
        CHECK(p != NULL);
        CHECK_EQ(ds_buf_append(&b, p, n), DS_OK);
    }
    CHECK_EQ(ds_buf_append(&b, "", 0), DS_OK);
    *ret_len = b.len;
    return b.data;
}

static void check_vector(const ds_tokenizer *t, const char *file, int line, const json_t *v, int decodes)
{
    const json_t *text = json_object_get(v, "text"), *want = json_object_get(v, "ids");
    ds_ids ids = {0};
    ds_err err = {0};
    CHECK(text && want);
    CHECK_OK(ds_tokenizer_encode(t, json_string_value(text), json_string_length(text), 1, 0, 0, &ids, &err),
             err);
    for (int i = 0; i < ids.n || i < (int)json_array_size(want); i++) {
        int got = i < ids.n ? ids.v[i] : -1;
        const json_t *w = json_array_get(want, (size_t)i);
        CHECK_MSG(w && got == json_integer_value(w), "%s:%d id %d is %d, want %d", file, line, i, got,
                  w ? (int)json_integer_value(w) : -1);
    }
    size_t len;
    char *back = decode(t, &ids, &len);
    if (decodes)
        CHECK_MSG(len == json_string_length(text) && memcmp(back, json_string_value(text), len) == 0,
                  "%s:%d does not decode to itself", file, line);
    free(back);
    ds_ids_free(&ids);
}

/* One {"text", "ids"} a line. decodes: ids give the text back (no normalisation in between). */
static int check_file(const ds_tokenizer *t, const char *dir, const char *name, int decodes)
{
    ds_buf b = {0};
    ds_err err = {0};
    CHECK_OK(ds_text_read_file(dir, name, &b, &err), err);
    int lines = 0;
    for (char *p = b.data, *nl; (nl = strchr(p, '\n')); p = nl + 1) {
        json_error_t je;
        json_t *v = json_loadb(p, (size_t)(nl - p), JSON_ALLOW_NUL, &je);
        CHECK_MSG(v != NULL, "%s:%d: %s", name, lines + 1, je.text);
        check_vector(t, name, ++lines, v, decodes);
        json_decref(v);
    }
    ds_buf_free(&b);
    return lines;
}

static void check_shared(const char *name, int want_lines, int decodes)
{
    char dir[512], file[64];
    snprintf(dir, sizeof dir, "%s/tokenizers/%s", SHARED, name);
    snprintf(file, sizeof file, "%s.jsonl", name);
    if (access(dir, R_OK) != 0)
        ds_test_skip("../shared/data is not beside the checkout");
    uint64_t t0 = ds_now_ns();
    ds_tokenizer *t = must_open(dir);
    printf("  loaded in %.0f ms\n", (double)(ds_now_ns() - t0) / 1e6);
    int lines = check_file(t, SHARED "/tokenizer-vectors", file, decodes);
    CHECK_MSG(lines >= want_lines, "%d vectors, want %d", lines, want_lines);
    printf("  %d vectors\n", lines);
    ds_tokenizer_close(t);
}

DS_TEST(shared_qwen3)
{
    check_shared("qwen3", 250, 0);
}

DS_TEST(shared_deepseek_v3_r1)
{
    check_shared("deepseek-v3-r1", 214, 1);
}

DS_TEST(shared_deepseek_v4)
{
    check_shared("deepseek-v4", 180, 1);
}

DS_TEST(golden)
{
    static const struct {
        const char *name;
        int decodes;
    } kind[] = {{"qwen", 0}, {"deepseek", 1}, {"bytefallback", 0}};
    for (size_t i = 0; i < sizeof kind / sizeof *kind; i++) {
        char dir[512], file[64];
        snprintf(dir, sizeof dir, "%s/%s", GOLDEN, kind[i].name);
        snprintf(file, sizeof file, "%s.jsonl", kind[i].name);
        ds_tokenizer *t = must_open(dir);
        int lines = check_file(t, GOLDEN, file, kind[i].decodes);
        CHECK_MSG(lines >= 150, "%d vectors in %s", lines, file);
        ds_tokenizer_close(t);
    }
}

static void check_option(const json_t *base, const json_t *texts, const json_t *c)
{
    json_t *file = json_deep_copy(base);
    const char *name = json_string_value(json_object_get(c, "name"));
    CHECK_EQ(json_object_update(file, json_object_get(c, "override")), 0);
    CHECK_EQ(json_object_update(json_object_get(file, "model"), json_object_get(c, "model")), 0);
    char *dump = json_dumps(file, JSON_COMPACT);
    ds_tokenizer *t;
    ds_err err = {0};
    ds_code code = ds_tokenizer_parse(dump, strlen(dump), &t, &err);
    CHECK_MSG(code == DS_OK, "%s: %s", name, err.msg);
    int add_special = json_is_true(json_object_get(c, "add_special"));
    for (size_t i = 0; i < json_array_size(texts); i++) {
        const json_t *text = json_array_get(texts, i), *want = json_array_get(json_object_get(c, "ids"), i);
        ds_ids ids = {0};
        CHECK_OK(ds_tokenizer_encode(t, json_string_value(text), json_string_length(text), 1, add_special, 0,
                                     &ids, &err),
                 err);
        CHECK_MSG(ids.n == (int)json_array_size(want), "%s, text %zu: %d ids, want %zu", name, i, ids.n,
                  json_array_size(want));
        for (int k = 0; k < ids.n; k++)
            CHECK_MSG(ids.v[k] == json_integer_value(json_array_get(want, (size_t)k)), "%s, text %zu, id %d",
                      name, i, k);
        ds_ids_free(&ids);
    }
    ds_tokenizer_close(t);
    free(dump);
    json_decref(file);
}

/* Every key the loader honours, one at a time over one base. */
DS_TEST(golden_options)
{
    json_error_t je;
    json_t *all = json_load_file(GOLDEN "/options.json", JSON_ALLOW_NUL, &je);
    CHECK_MSG(all != NULL, "%s", je.text);
    const json_t *cases = json_object_get(all, "cases");
    CHECK(json_array_size(cases) >= 30);
    for (size_t i = 0; i < json_array_size(cases); i++)
        check_option(json_object_get(all, "base"), json_object_get(all, "texts"), json_array_get(cases, i));
    json_decref(all);
}
