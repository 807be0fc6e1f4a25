/* test_chat.c - the Qwen3 chat format against what the published template gives (tests/golden/chat, made by
 * tools/golden/make_chat.py), its recognition, and errors that name their field. */
#include "base/limits.h"
#include "tests/lib/test.h"
#include "text/chat.h"
#include "text/file.h"
#include "text/pyjson.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#define GOLDEN DS_SOURCE_DIR "/tests/golden/chat"
#define SHARED DS_SOURCE_DIR "/../shared/data/tokenizers"

static json_t *load(const char *text)
{
    json_error_t je;
    json_t *v = json_loads(text, 0, &je);
    CHECK_MSG(v != NULL, "%s in %s", je.text, text);
    return v;
}

static void check_case(const json_t *c)
{
    const json_t *thinking = json_object_get(c, "enable_thinking"), *want = json_object_get(c, "render");
    ds_chat_opts opts = {json_is_true(json_object_get(c, "add_generation_prompt")),
                         thinking ? json_is_true(thinking) : -1};
    ds_buf out = {0};
    ds_err err = {0};
    CHECK_OK(ds_chat_render(DS_CHAT_QWEN3, json_object_get(c, "messages"), json_object_get(c, "tools"), &opts,
                            &out, &err),
             err);
    ds_test_str(__FILE__, __LINE__, json_string_value(json_object_get(c, "name")), out.data,
                json_string_value(want));
    CHECK_EQ(out.len, json_string_length(want));
    ds_buf_free(&out);
}

DS_TEST(golden)
{
    json_error_t je;
    json_t *cases = json_load_file(GOLDEN "/cases.json", 0, &je);
    CHECK_MSG(cases != NULL, "%s", je.text);
    CHECK(json_array_size(cases) >= 200);
    for (size_t i = 0; i < json_array_size(cases); i++)
        check_case(json_array_get(cases, i));
    printf("  %zu cases\n", json_array_size(cases));
    json_decref(cases);
}

static void check_error(const char *messages, const char *tools, ds_code code, const char *field)
{
    json_t *m = load(messages), *t = tools ? load(tools) : NULL;
    ds_chat_opts opts = {1, -1};
    ds_buf out = {0};
    ds_err err = {0};
    CHECK_EQ(ds_buf_puts(&out, "kept"), DS_OK);
    CHECK_EQ(ds_chat_render(DS_CHAT_QWEN3, m, t, &opts, &out, &err), code);
    CHECK_STR(err.field, field);
    CHECK_MSG(strstr(err.msg, field) != NULL, "\"%s\" does not name %s", err.msg, field);
    CHECK_EQ(out.len, 4);
    ds_buf_free(&out);
    json_decref(m);
    json_decref(t);
}

DS_TEST(errors_name_their_field)
{
    check_error("[]", NULL, DS_EINVAL, "messages");
    check_error("{}", NULL, DS_EINVAL, "messages");
    check_error("[1]", NULL, DS_EINVAL, "messages[0]");
    check_error("[{\"content\":\"x\"}]", NULL, DS_EINVAL, "messages[0].role");
    check_error("[{\"role\":\"user\",\"content\":\"x\"},{\"role\":\"robot\",\"content\":\"x\"}]", NULL,
                DS_EINVAL, "messages[1].role");
    check_error("[{\"role\":\"user\"}]", NULL, DS_EINVAL, "messages[0].content");
    check_error("[{\"role\":\"user\",\"content\":{}}]", NULL, DS_EINVAL, "messages[0].content");
    check_error("[{\"role\":\"system\",\"content\":null}]", NULL, DS_EINVAL, "messages[0].content");
    check_error(
        "[{\"role\":\"user\",\"content\":[{\"type\":\"text\",\"text\":\"x\"},{\"type\":\"image_url\"}]}]",
        NULL, DS_EUNSUPPORTED, "messages[0].content[1].type");
    check_error("[{\"role\":\"user\",\"content\":[{\"type\":\"text\"}]}]", NULL, DS_EINVAL,
                "messages[0].content[0].text");
    check_error("[{\"role\":\"user\",\"content\":[7]}]", NULL, DS_EINVAL, "messages[0].content[0].type");
    check_error("[{\"role\":\"assistant\",\"tool_calls\":{}}]", NULL, DS_EINVAL, "messages[0].tool_calls");
    check_error("[{\"role\":\"assistant\",\"tool_calls\":[{}]}]", NULL, DS_EINVAL,
                "messages[0].tool_calls[0].function.name");
    check_error("[{\"role\":\"assistant\",\"tool_calls\":[{\"function\":{\"name\":\"f\",\"arguments\":3}}]}]",
                NULL, DS_EINVAL, "messages[0].tool_calls[0].function.arguments");
    check_error("[{\"role\":\"user\",\"content\":\"x\"}]", "{}", DS_EINVAL, "tools");
    check_error("[{\"role\":\"user\",\"content\":\"x\"}]", "[{},\"y\"]", DS_EINVAL, "tools[1]");
}

DS_TEST(depth_and_size_are_bounded)
{
    json_t *deep = json_object(), *tools = json_array();
    for (int i = 0; i <= DS_MAX_JSON_DEPTH; i++) {
        json_t *outer = json_object();
        json_object_set_new(outer, "k", deep);
        deep = outer;
    }
    json_array_append_new(tools, deep);
    json_t *m = load("[{\"role\":\"user\",\"content\":\"x\"}]");
    ds_chat_opts opts = {1, -1};
    ds_buf out = {0}, small = {.max = 20};
    ds_err err = {0};
    CHECK_EQ(ds_chat_render(DS_CHAT_QWEN3, m, tools, &opts, &out, &err), DS_EINVAL);
    CHECK_STR(err.field, "tools[0]");
    CHECK_EQ(ds_chat_render(DS_CHAT_QWEN3, m, NULL, &opts, &small, &err), DS_ELIMIT);
    CHECK_EQ(ds_chat_render(DS_CHAT_NONE, m, NULL, &opts, &out, &err), DS_EUNSUPPORTED);
    ds_buf_free(&out);
    ds_buf_free(&small);
    json_decref(m);
    json_decref(tools);
}

DS_TEST(developer_is_system)
{
    json_t *m = load("[{\"role\":\"developer\",\"content\":\"Be brief.\"}]");
    ds_chat_opts opts = {0, -1};
    ds_buf out = {0};
    ds_err err = {0};
    CHECK_OK(ds_chat_render(DS_CHAT_QWEN3, m, NULL, &opts, &out, &err), err);
    CHECK_STR(out.data, "<|im_start|>system\nBe brief.<|im_end|>\n");
    ds_buf_free(&out);
    json_decref(m);
}

DS_TEST(floats_as_python)
{
    static const struct {
        double x;
        const char *want;
    } known[] = {{1, "1.0"},
                 {-0.0, "-0.0"},
                 {0.1, "0.1"},
                 {1e15, "1000000000000000.0"},
                 {1e16, "1e+16"},
                 {123456789012345680.0, "1.2345678901234568e+17"},
                 {0.0001, "0.0001"},
                 {0.00001, "1e-05"},
                 {-1.5e300, "-1.5e+300"},
                 {5e-324, "5e-324"},
                 {0x1p-44, "5.684341886080802e-14"}, /* beside a power of two: not the nearest 16 digits */
                 {0x1p-1074, "5e-324"},
                 {9007199254740992.0, "9007199254740992.0"},
                 {1.0 / 3, "0.3333333333333333"},
                 {1234.5678, "1234.5678"},
                 {100, "100.0"}};
    for (size_t i = 0; i < sizeof known / sizeof *known; i++) {
        ds_buf out = {0};
        CHECK_EQ(ds_pyjson_float(known[i].x, &out), DS_OK);
        CHECK_STR(out.data, known[i].want);
        ds_buf_free(&out);
    }
}

/* A folder that holds one file; removed by the caller. */
static void make_dir(char *dir, const char *name, const char *text)
{
    char path[600];
    CHECK(mkdtemp(dir) != NULL);
    snprintf(path, sizeof path, "%s/%s", dir, name);
    FILE *f = fopen(path, "w");
    CHECK(f != NULL);
    CHECK_EQ(fwrite(text, 1, strlen(text), f), strlen(text));
    CHECK_EQ(fclose(f), 0);
}

static void check_detect(const char *name, const char *text, ds_code code, ds_chat_kind kind)
{
    char dir[] = "/tmp/ds-chat-XXXXXX", path[600];
    ds_chat_kind got;
    ds_err err = {0};
    make_dir(dir, name, text);
    CHECK_EQ(ds_chat_detect(dir, &got, &err), code);
    CHECK_EQ(got, kind);
    CHECK_EQ(err.code, code);
    snprintf(path, sizeof path, "%s/%s", dir, name);
    CHECK_EQ(unlink(path), 0);
    CHECK_EQ(rmdir(dir), 0);
}

DS_TEST(detect)
{
    ds_buf t = {0};
    ds_err err = {0};
    CHECK_OK(ds_text_read_file(GOLDEN, "template.jinja", &t, &err), err);
    check_detect("chat_template.jinja", t.data, DS_OK, DS_CHAT_QWEN3);
    json_t *named = json_pack("{s:[{s:s,s:s},{s:s,s:s}]}", "chat_template", "name", "tool_use", "template",
                              "x", "name", "default", "template", t.data);
    char *dump = json_dumps(named, 0);
    check_detect("tokenizer_config.json", dump, DS_OK, DS_CHAT_QWEN3);
    free(dump);
    json_decref(named);
    check_detect("tokenizer_config.json", "{}", DS_EUNSUPPORTED, DS_CHAT_NONE);
    check_detect("tokenizer_config.json", "{", DS_ECORRUPT, DS_CHAT_NONE);
    check_detect("other.json", "{}", DS_EUNSUPPORTED, DS_CHAT_NONE);
    check_detect("chat_template.jinja", "{% for m in messages %}{{ m.content }}{% endfor %}", DS_EUNSUPPORTED,
                 DS_CHAT_NONE);
    /* a relative that opens <think> in the generation prompt */
    CHECK_EQ(ds_buf_puts(&t, "{{- '<|im_start|>assistant\\n<think>\\n' }}"), DS_OK);
    check_detect("chat_template.jinja", t.data, DS_EUNSUPPORTED, DS_CHAT_NONE);
    ds_buf_free(&t);
}

DS_TEST(detect_published)
{
    ds_chat_kind kind;
    ds_err err = {0};
    if (access(SHARED, R_OK) != 0)
        ds_test_skip("../shared/data is not beside the checkout");
    CHECK_OK(ds_chat_detect(SHARED "/qwen3", &kind, &err), err);
    CHECK_EQ(kind, DS_CHAT_QWEN3);
    CHECK_EQ(ds_chat_detect(SHARED "/deepseek-v3-r1", &kind, &err), DS_EUNSUPPORTED);
}
