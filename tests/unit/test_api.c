/* JSON bodies to parameters: each field, each limit, and the name in each error. JSON written out. */
#include "daemon/json_out.h"
#include "daemon/params.h"
#include "tests/lib/test.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

static ds_params P;
static ds_err E;

static ds_code parse(ds_api api, const char *extra)
{
    static char body[4096];
    snprintf(body, sizeof body, "{%s%s}",
             api == DS_API_CHAT ? "\"messages\":[{\"role\":\"user\",\"content\":\"x\"}]" : "\"prompt\":\"x\"",
             extra);
    E = (ds_err){0};
    return ds_params_parse(api, body, strlen(body), &P, &E);
}

static void ok(ds_api api, const char *extra)
{
    ds_code code = parse(api, extra);
    CHECK_MSG(code == DS_OK, "%s: %s", extra, E.msg);
    ds_params_free(&P);
}

static void refused(ds_api api, const char *extra, const char *field)
{
    ds_code code = parse(api, extra);
    CHECK_MSG(code == DS_EINVAL || code == DS_EUNSUPPORTED, "%s was taken (%d)", extra, code);
    CHECK_MSG(!strcmp(E.field, field), "%s names '%s', want '%s' (%s)", extra, E.field, field, E.msg);
}

#define CHAT DS_API_CHAT
#define COMP DS_API_COMPLETIONS

DS_TEST(defaults_are_openais)
{
    CHECK_OK(parse(COMP, ""), E);
    CHECK(P.sampling.temperature == 1 && P.sampling.top_p == 1 && P.sampling.repetition_penalty == 1);
    CHECK_EQ(P.sampling.top_k, 0);
    CHECK_EQ(P.max_tokens, 16);
    CHECK_EQ(P.n, 1);
    CHECK_EQ(P.has_seed, 0);
    CHECK_EQ(P.sampling.logprobs, -1);
    CHECK_EQ(P.sampling.prompt_logprobs, -1);
    ds_params_free(&P);
    CHECK_OK(parse(CHAT, ""), E);
    CHECK_EQ(P.max_tokens, -1);
    CHECK_EQ(P.enable_thinking, -1);
    ds_params_free(&P);
}

DS_TEST(fields_arrive)
{
    CHECK_OK(
        parse(COMP,
              ",\"max_tokens\":7,\"temperature\":0.5,\"top_p\":0.25,\"top_k\":3,\"min_p\":0.125,"
              "\"presence_penalty\":-1,\"frequency_penalty\":1.5,\"repetition_penalty\":2,\"seed\":-5,"
              "\"n\":3,\"stop\":[\"a\",\"bc\"],\"stop_token_ids\":[4,5],\"logit_bias\":{\"9\":-100,\"10\":2},"
              "\"ignore_eos\":true,\"min_tokens\":2,\"user\":\"u\",\"logprobs\":4,\"echo\":true,"
              "\"return_token_ids\":true,\"stream\":true,\"stream_options\":{\"include_usage\":true},"
              "\"priority\":-3,\"speculation\":{\"mode\":\"off\",\"max_draft\":2},\"model\":\"m\""),
        E);
    CHECK_EQ(P.max_tokens, 7);
    CHECK(P.sampling.temperature == 0.5f && P.sampling.top_p == 0.25f && P.sampling.min_p == 0.125f);
    CHECK(P.sampling.presence_penalty == -1 && P.sampling.frequency_penalty == 1.5f);
    CHECK(P.sampling.repetition_penalty == 2 && P.sampling.top_k == 3 && P.n == 3 && P.priority == -3);
    CHECK(P.sampling.seed == (uint64_t)-5 && P.has_seed);
    CHECK_EQ(P.n_stop, 2);
    CHECK_STR(P.stop[1], "bc");
    CHECK_EQ(P.sampling.n_stop_token_ids, 2);
    CHECK_EQ(P.sampling.stop_token_ids[1], 5);
    CHECK_EQ(P.sampling.n_logit_bias, 2);
    CHECK(P.sampling.ignore_eos && P.echo && P.stream && P.include_usage && P.return_token_ids);
    CHECK_EQ(P.sampling.logprobs, 4);
    CHECK_EQ(P.sampling.prompt_logprobs, 4);
    CHECK_EQ(P.spec.mode, DSPARK__V1__SPECULATION__MODE__OFF);
    CHECK_EQ(P.spec.max_draft, 2);
    CHECK_STR(P.model, "m");
    ds_params_free(&P);
    CHECK_OK(
        parse(CHAT,
              ",\"logprobs\":true,\"top_logprobs\":5,\"max_completion_tokens\":9,"
              "\"chat_template_kwargs\":{\"enable_thinking\":false},\"tools\":[{}],\"tool_choice\":\"none\""),
        E);
    CHECK_EQ(P.logprobs, 5);
    CHECK_EQ(P.max_tokens, 9);
    CHECK_EQ(P.enable_thinking, 0);
    CHECK(P.tools == NULL);
    ds_params_free(&P);
    CHECK_OK(parse(COMP, ",\"max_tokens\":0,\"echo\":true,\"logprobs\":0"), E);
    CHECK_EQ(P.score_only, 1);
    CHECK_EQ(P.sampling.prompt_logprobs, 0);
    ds_params_free(&P);
}

DS_TEST(nul_is_text_in_prompts_only)
{
    CHECK_OK(ds_params_parse(COMP, "{\"prompt\":\"a\\u0000b\"}", 21, &P, &E), E);
    CHECK_EQ(json_string_length(P.prompt[0]), 3);
    ds_params_free(&P);
    refused(COMP, ",\"stop\":\"a\\u0000\"", "stop");
    refused(COMP, ",\"stop\":[\"\\u0000\"]", "stop");
    refused(CHAT, ",\"model\":\"a\\u0000\"", "model");
    refused(CHAT, ",\"user\":\"a\\u0000\"", "user");
}

DS_TEST(a_number_that_fits_no_type_names_its_field)
{
    refused(COMP, ",\"seed\":99999999999999999999", "seed");
    refused(COMP, ",\"temperature\":-1e999,\"seed\":1", "temperature");
    refused(COMP, ",\"stop_token_ids\":[1, 99999999999999999999]", "stop_token_ids");
    refused(COMP, ",\"stop\":[\"a:b\",1e999]", "");
    refused(COMP, ",\"logit_bias\":{\"5\":100.5}", "logit_bias");
}

DS_TEST(null_means_not_given)
{
    ok(COMP, ",\"stop\":null,\"seed\":null,\"logprobs\":null,\"best_of\":null,\"suffix\":null");
    ok(CHAT, ",\"tools\":null,\"max_tokens\":null,\"stream_options\":null,\"functions\":null");
}

DS_TEST(known_but_without_effect)
{
    ok(CHAT,
       ",\"store\":true,\"metadata\":{\"a\":\"b\"},\"service_tier\":\"auto\",\"parallel_tool_calls\":false");
    ok(CHAT, ",\"response_format\":{\"type\":\"text\"},\"modalities\":[\"text\"]");
}

DS_TEST(refusals_name_the_field)
{
    refused(CHAT, ",\"no_such_field\":1", "no_such_field");
    refused(CHAT, ",\"echo\":true", "echo");
    refused(COMP, ",\"tools\":[]", "tools");
    refused(COMP, ",\"messages\":[]", "messages");
    refused(COMP, ",\"max_tokens\":0", "max_tokens");
    refused(COMP, ",\"max_tokens\":-1", "max_tokens");
    refused(COMP, ",\"max_tokens\":1048577", "max_tokens");
    refused(COMP, ",\"max_tokens\":1.5", "max_tokens");
    refused(COMP, ",\"max_tokens\":\"5\"", "max_tokens");
    refused(COMP, ",\"n\":0", "n");
    refused(COMP, ",\"n\":65", "n");
    refused(COMP, ",\"n\":5000000", "n");
    refused(COMP, ",\"temperature\":\"hot\"", "temperature");
    refused(COMP, ",\"top_k\":4294967296", "top_k");
    refused(COMP, ",\"top_k\":-2", "top_k");
    refused(COMP, ",\"logprobs\":21", "logprobs");
    refused(COMP, ",\"logprobs\":true", "logprobs");
    refused(CHAT, ",\"logprobs\":1", "logprobs");
    refused(CHAT, ",\"logprobs\":true,\"top_logprobs\":21", "top_logprobs");
    refused(CHAT, ",\"top_logprobs\":2", "top_logprobs");
    refused(COMP, ",\"stop\":\"\"", "stop");
    refused(COMP, ",\"stop\":[1]", "stop");
    refused(COMP,
            ",\"stop\":[\"1\",\"2\",\"3\",\"4\",\"5\",\"6\",\"7\",\"8\",\"9\",\"10\",\"11\",\"12\",\"13\","
            "\"14\",\"15\",\"16\",\"17\"]",
            "stop");
    refused(COMP, ",\"stop_token_ids\":[-1]", "stop_token_ids");
    refused(COMP, ",\"logit_bias\":{\"x\":1}", "logit_bias");
    refused(COMP, ",\"logit_bias\":{\"1\":\"x\"}", "logit_bias");
    refused(COMP, ",\"logit_bias\":{\"-1\":1}", "logit_bias");
    refused(COMP, ",\"logit_bias\":[1]", "logit_bias");
    refused(COMP, ",\"seed\":1.5", "seed");
    refused(COMP, ",\"stream\":1", "stream");
    refused(COMP, ",\"stream_options\":{\"include_usage\":true}", "stream_options");
    refused(COMP, ",\"stream\":true,\"stream_options\":{\"x\":true}", "stream_options");
    refused(CHAT, ",\"max_tokens\":5,\"max_completion_tokens\":6", "max_completion_tokens");
    refused(CHAT, ",\"tool_choice\":\"required\"", "tool_choice");
    refused(CHAT, ",\"response_format\":{\"type\":\"json_object\"}", "response_format");
    refused(CHAT, ",\"chat_template_kwargs\":{\"x\":1}", "chat_template_kwargs");
    refused(CHAT, ",\"functions\":[]", "functions");
    refused(COMP, ",\"best_of\":2", "best_of");
    refused(COMP, ",\"speculation\":{\"mode\":\"fast\"}", "speculation.mode");
}

static ds_code prompt(const char *value)
{
    char body[512];
    snprintf(body, sizeof body, "{\"prompt\":%s}", value);
    E = (ds_err){0};
    return ds_params_parse(COMP, body, strlen(body), &P, &E);
}

DS_TEST(prompt_forms)
{
    static const struct {
        const char *text;
        int n;
    } good[] = {{"\"a\"", 1}, {"[\"a\",\"b\"]", 2}, {"[1,2,3]", 1}, {"[[1],[2,3]]", 2}};
    for (size_t i = 0; i < 4; i++) {
        CHECK_OK(prompt(good[i].text), E);
        CHECK_EQ(P.n_prompts, good[i].n);
        ds_params_free(&P);
    }
    static const char *const wrong[] = {"[]",          "1",     "{}",   "[\"a\",1]",
                                        "[[1],\"a\"]", "[1.5]", "true", "[null]"};
    for (size_t i = 0; i < sizeof wrong / sizeof *wrong; i++) {
        CHECK_MSG(prompt(wrong[i]) == DS_EINVAL, "%s was taken", wrong[i]);
        CHECK_STR(E.field, "prompt");
    }
    int32_t *ids;
    int n;
    json_t *a = json_loads("[1,\"x\"]", 0, NULL);
    CHECK_EQ(ds_params_ids(a, "prompt", &ids, &n, &E), DS_EINVAL);
    json_decref(a);
}

static ds_code load(const char *text, size_t n)
{
    json_t *root = NULL;
    ds_code code = ds_json_load(text, n, &root, &E);
    if (code == DS_OK)
        json_decref(root);
    return code;
}

DS_TEST(hostile_json)
{
    static const char *const wrong[] = {"",
                                        "[]",
                                        "1",
                                        "{",
                                        "{}x",
                                        "{\"a\"}",
                                        "{\"a\":1e400}",
                                        "{\"a\":NaN}",
                                        "{\"a\":1,\"a\":2}",
                                        "{\"a\":\"\\ud800\"}",
                                        "{\"a\":\"\xff\"}",
                                        "{\"a\\u0000\":1}",
                                        "\xef\xbb\xbf{}",
                                        "{\"a\":01}",
                                        "{'a':1}"};
    for (size_t i = 0; i < sizeof wrong / sizeof *wrong; i++)
        CHECK_MSG(load(wrong[i], strlen(wrong[i])) == DS_EINVAL, "%s was taken", wrong[i]);
    enum { N = 100000 };
    char *deep = malloc(2 * N + 16);
    CHECK(deep != NULL);
    memcpy(deep, "{\"a\":", 5);
    memset(deep + 5, '[', N);
    CHECK_EQ(load(deep, N + 5), DS_EINVAL);
    for (int depth = DS_MAX_JSON_DEPTH - 1; depth <= DS_MAX_JSON_DEPTH; depth++) { /* the limit itself */
        int n = sprintf(deep, "{\"a\":");
        memset(deep + n, '[', (size_t)depth);
        memset(deep + n + depth, ']', (size_t)depth);
        strcpy(deep + n + 2 * depth, "}");
        CHECK_EQ(load(deep, strlen(deep)), depth < DS_MAX_JSON_DEPTH ? DS_OK : DS_EINVAL);
    }
    free(deep);
}

static void str(const char *in, size_t n, const char *want)
{
    ds_buf b = {0};
    CHECK_EQ(ds_json_str(&b, in, n), DS_OK);
    CHECK_STR(b.data, want);
    ds_buf_free(&b);
}

DS_TEST(json_strings)
{
    str("a\"\\\n\r\t\x01", 7, "\"a\\\"\\\\\\n\\r\\t\\u0001\"");
    str("\xc3\xa4\xe2\x82\xac\xf0\x9f\x98\x80", 9, "\"\xc3\xa4\xe2\x82\xac\xf0\x9f\x98\x80\"");
    str("x\xff\xc3", 3, "\"x\xef\xbf\xbd\xef\xbf\xbd\"");
    str("\xed\xa0\x80", 3, "\"\xef\xbf\xbd\xef\xbf\xbd\xef\xbf\xbd\""); /* a surrogate */
    str("a\xe2\x80\xa8"
        "b\xe2\x80\xa9",
        8, "\"a\\u2028b\\u2029\"");
    str("a\0b\x7f", 4, "\"a\\u0000b\\u007f\"");
    /* every byte string becomes valid JSON that jansson reads back */
    for (int seed = 0; seed < 2000; seed++) {
        char in[24];
        for (int i = 0; i < 24; i++)
            in[i] = (char)((seed * 7919 + i * i * 104729 + (seed >> 3)) >> (i % 5));
        ds_buf b = {0};
        CHECK_EQ(ds_json_str(&b, in, sizeof in), DS_OK);
        json_t *v = json_loadb(b.data, b.len, JSON_DECODE_ANY | JSON_ALLOW_NUL, NULL);
        CHECK(v != NULL);
        json_decref(v);
        ds_buf_free(&b);
    }
}

static void logprob(float v, const char *want)
{
    ds_buf b = {0};
    CHECK_EQ(ds_json_logprob(&b, v), DS_OK);
    CHECK_STR(b.data, want);
    ds_buf_free(&b);
}

DS_TEST(json_numbers)
{
    logprob(-0.5f, "-0.5");
    logprob(0, "0.0");
    logprob(-INFINITY, "-9999.0");
    logprob(NAN, "-9999.0");
    logprob(-1.23456789f, "-1.23456788");
    ds_buf b = {0};
    int32_t ids[3] = {0, -1, INT32_MAX};
    CHECK_EQ(ds_json_ids(&b, ids, 3), DS_OK);
    CHECK_STR(b.data, "[0,-1,2147483647]");
    ds_buf_clear(&b);
    CHECK_EQ(ds_json_int(&b, INT64_MIN), DS_OK);
    CHECK_STR(b.data, "-9223372036854775808");
    ds_buf_free(&b);
    CHECK_EQ(ds_utf8_count("a\xc3\xa4\xff", 4), 3);
}
