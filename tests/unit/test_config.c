/* config.json and generation_config.json: what is read, what is refused, and that errors name the key. */
#include "tests/lib/test.h"
#include "worker/model/config.h"

#include <math.h>
#include <stdio.h>
#include <string.h>

#define BASE                                                                                                \
    "\"architectures\":[\"Qwen3ForCausalLM\"],\"model_type\":\"qwen3\",\"vocab_size\":131,\"hidden_size\":" \
    "56,"                                                                                                   \
    "\"intermediate_size\":90,\"num_hidden_layers\":3,\"num_attention_heads\":3,\"num_key_value_heads\":1," \
    "\"head_dim\":24,\"max_position_embeddings\":2048"

static ds_code parse(const char *extra, ds_config *c, ds_err *err)
{
    char text[4096];
    snprintf(text, sizeof text, "{" BASE "%s%s}", *extra ? "," : "", extra);
    return ds_config_parse(text, strlen(text), c, err);
}

/* The extra keys must fail with this code and name this field. */
static void refused(const char *extra, ds_code code, const char *field)
{
    ds_config c;
    ds_err err = {0};
    ds_code got = parse(extra, &c, &err);
    CHECK_MSG(got == code, "%s: code %s (%s)", extra, ds_err_name(got), err.msg);
    CHECK_MSG(strcmp(err.field, field) == 0, "%s: field '%s', want '%s'", extra, err.field, field);
    CHECK_MSG(strstr(err.msg, field), "%s: '%s' does not name '%s'", extra, err.msg, field);
}

/* text, with one base key replaced, must fail and name it. */
static void refused_base(const char *key, const char *value, ds_code code)
{
    char text[4096] = "{" BASE "}", out[4096], quoted[64];
    snprintf(quoted, sizeof quoted, "\"%s\":", key);
    char *at = strstr(text, quoted);
    CHECK(at != NULL);
    char *end = at + strlen(quoted);
    end += strcspn(end, ",}");
    snprintf(out, sizeof out, "%.*s%s%s%s", (int)(at - text), text, quoted, value, end);
    ds_config c;
    ds_err err = {0};
    ds_code got = ds_config_parse(out, strlen(out), &c, &err);
    CHECK_MSG(got == code && strstr(err.msg, key), "%s=%s: %s '%s'", key, value, ds_err_name(got), err.msg);
}

DS_TEST(defaults_are_those_of_transformers)
{
    ds_config c;
    ds_err err;
    CHECK_OK(parse("", &c, &err), err);
    CHECK_EQ(c.vocab, 131);
    CHECK_EQ(c.head_dim, 24);
    CHECK_EQ(c.tied, 0);
    CHECK_EQ(c.n_eos, 0);
    CHECK(c.rope.type == DS_ROPE_DEFAULT && c.rope.theta == 10000 && c.rope.attention_factor == 1);
    CHECK(fabsf(c.eps - 1e-6f) < 1e-12f);
    CHECK(isnan(c.temperature) && isnan(c.top_p) && c.top_k == -1);
}

DS_TEST(both_rope_spellings)
{
    ds_config a, b;
    ds_err err;
    CHECK_OK(parse("\"rope_theta\":1000000,\"rope_scaling\":{\"type\":\"yarn\",\"factor\":4.0,"
                   "\"original_max_position_embeddings\":512}",
                   &a, &err),
             err);
    CHECK_OK(parse("\"rope_parameters\":{\"rope_type\":\"yarn\",\"rope_theta\":1e6,\"factor\":4,"
                   "\"original_max_position_embeddings\":512},\"rope_scaling\":null",
                   &b, &err),
             err);
    CHECK(a.rope.type == DS_ROPE_YARN && a.rope.theta == 1e6 && a.rope.factor == 4 && a.rope.original == 512);
    CHECK(fabs(a.rope.attention_factor - (0.1 * log(4) + 1)) < 1e-12);
    CHECK(b.rope.type == a.rope.type && b.rope.theta == a.rope.theta && b.rope.factor == a.rope.factor &&
          b.rope.original == a.rope.original && b.rope.attention_factor == a.rope.attention_factor);
    CHECK_OK(
        parse("\"rope_scaling\":{\"rope_type\":\"yarn\",\"factor\":4,\"mscale\":0.7,\"mscale_all_dim\":0.5,"
              "\"beta_fast\":16,\"beta_slow\":2,\"truncate\":false}",
              &a, &err),
        err);
    CHECK(a.rope.beta_fast == 16 && a.rope.beta_slow == 2 && !a.rope.truncate && a.rope.original == 2048);
    CHECK(fabs(a.rope.attention_factor - (0.07 * log(4) + 1) / (0.05 * log(4) + 1)) < 1e-12);
}

DS_TEST(refusals_name_the_field)
{
    refused("\"attention_bias\":1", DS_ECORRUPT, "attention_bias");
    refused("\"hidden_act\":\"gelu\"", DS_EUNSUPPORTED, "hidden_act");
    refused("\"quantization_config\":{\"quant_method\":\"fp8\"}", DS_EUNSUPPORTED, "quantization_config");
    refused("\"rope_scaling\":{\"type\":\"dynamic\",\"factor\":2}", DS_EUNSUPPORTED, "rope_scaling");
    refused("\"rope_scaling\":{\"type\":\"linear\"}", DS_ECORRUPT, "factor");
    refused("\"rope_scaling\":{\"type\":\"yarn\",\"factor\":0.5}", DS_ECORRUPT, "factor");
    refused("\"rope_scaling\":7", DS_ECORRUPT, "rope_scaling");
    refused("\"rope_parameters\":{\"full_attention\":{\"rope_type\":\"default\"}}", DS_EUNSUPPORTED,
            "rope_parameters");
    refused("\"rope_theta\":\"big\"", DS_ECORRUPT, "rope_theta");
    refused("\"rope_theta\":-1", DS_ECORRUPT, "rope_theta");
    refused("\"partial_rotary_factor\":0.5", DS_EUNSUPPORTED, "partial_rotary_factor");
    refused("\"use_sliding_window\":true,\"sliding_window\":16,\"max_window_layers\":1", DS_EUNSUPPORTED,
            "use_sliding_window");
    refused("\"layer_types\":[\"full_attention\",\"sliding_attention\",\"full_attention\"]", DS_EUNSUPPORTED,
            "layer_types");
    refused("\"layer_types\":[\"full_attention\"]", DS_ECORRUPT, "layer_types");
    refused("\"eos_token_id\":\"x\"", DS_ECORRUPT, "eos_token_id");
    refused("\"eos_token_id\":[1,2,3,4,5,6,7,8,9,10,11,12,13,14,15,16,17]", DS_ECORRUPT, "eos_token_id");
    refused("\"rms_norm_eps\":-1", DS_ECORRUPT, "rms_norm_eps");
}

DS_TEST(sizes_have_limits)
{
    refused_base("vocab_size", "0", DS_ECORRUPT);
    refused_base("vocab_size", "4194305", DS_ECORRUPT);
    refused_base("vocab_size", "1.5", DS_ECORRUPT);
    refused_base("vocab_size", "null", DS_ECORRUPT);
    refused_base("hidden_size", "131073", DS_ECORRUPT);
    refused_base("num_hidden_layers", "1025", DS_ECORRUPT);
    refused_base("num_attention_heads", "-3", DS_ECORRUPT);
    refused_base("num_key_value_heads", "2", DS_ECORRUPT);
    refused_base("head_dim", "25", DS_ECORRUPT);
    refused_base("head_dim", "1026", DS_ECORRUPT);
    refused_base("intermediate_size", "9223372036854775807", DS_ECORRUPT);
    refused_base("max_position_embeddings", "16777217", DS_ECORRUPT);
    ds_config c;
    ds_err err;
    char text[] = "{\"architectures\":[\"LlamaForCausalLM\"],\"model_type\":\"llama\"}";
    CHECK_EQ(ds_config_parse(text, strlen(text), &c, &err), DS_EUNSUPPORTED);
    CHECK(strstr(err.msg, "LlamaForCausalLM") != NULL);
    CHECK_EQ(ds_config_parse("{", 1, &c, &err), DS_ECORRUPT);
    CHECK_EQ(ds_config_parse("[]", 2, &c, &err), DS_ECORRUPT);
    CHECK_EQ(ds_config_parse("{\"a\":1,\"a\":2}", 13, &c, &err), DS_ECORRUPT);
}

DS_TEST(generation_config_replaces_eos)
{
    ds_config c;
    ds_err err;
    CHECK_OK(parse("\"eos_token_id\":7", &c, &err), err);
    CHECK(c.n_eos == 1 && c.eos[0] == 7);
    static const char g[] = "{\"eos_token_id\":[3,151645,5],\"temperature\":0.6,\"top_p\":0.95,\"top_k\":20}";
    CHECK_OK(ds_config_parse_generation(g, strlen(g), &c, &err), err);
    CHECK(c.n_eos == 2 && c.eos[0] == 3 && c.eos[1] == 5); /* outside the vocabulary: dropped */
    CHECK(fabsf(c.temperature - 0.6f) < 1e-6f && fabsf(c.top_p - 0.95f) < 1e-6f && c.top_k == 20);
    static const char bad[] = "{\"temperature\":\"hot\"}";
    CHECK_EQ(ds_config_parse_generation(bad, strlen(bad), &c, &err), DS_ECORRUPT);
    CHECK_STR(err.field, "temperature");
    CHECK(strstr(err.msg, "generation_config.json") != NULL);
}

/* Values printed by transformers' _compute_yarn_parameters and by hand for the others. */
DS_TEST(rope_tables)
{
    ds_rope_conf r = {.theta = 10000, .factor = 1, .attention_factor = 1, .truncate = 1};
    float c[3 * 4], s[3 * 4];
    ds_rope_fill(&r, 8, 3, c, s);
    for (int p = 0; p < 3; p++)
        for (int j = 0; j < 4; j++) {
            double a = p * pow(10000, -j / 4.0);
            CHECK(fabs(c[p * 4 + j] - cos(a)) < 1e-6 && fabs(s[p * 4 + j] - sin(a)) < 1e-6);
        }
    r.type = DS_ROPE_LINEAR;
    r.factor = 2;
    ds_rope_fill(&r, 8, 3, c, s);
    CHECK(fabs(s[2 * 4] - sin(1.0)) < 1e-6); /* position 2 at half speed */
}
