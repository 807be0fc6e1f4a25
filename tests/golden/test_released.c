/* A draft folder with the names, keys, layers, taps and block of the released dspark_qwen3_4b_block7 (scaled
 * down; tests/golden/pairs/released) loads as it is, and every way in which it may not fit its target, or
 * not be such a draft at all, is refused with an error that names the key or the tensor. */
#include "tests/lib/test.h"
#include "worker/model/draft.h"

#include <jansson.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

static const char TARGET[] = DS_SOURCE_DIR "/tests/golden/pairs/released/target",
                  DRAFT[] = DS_SOURCE_DIR "/tests/golden/pairs/released/dspark";

/* Plan, target and draft, as the worker opens them. */
static ds_code try_open(const char *dir, int positions, ds_draft_info *ret, ds_err *err)
{
    ds_backend *b;
    ds_model *m = NULL;
    ds_draft *d = NULL;
    *err = (ds_err){0};
    DS_TRY(ds_draft_plan(dir, TARGET, ret, err));
    ds_model_opts opts = {.max_rows = 16,
                          .max_logit_rows = 16,
                          .max_positions = positions,
                          .taps = ret->taps,
                          .n_taps = ret->n_taps};
    CHECK_EQ(ds_backend_open("cpu", 1, NULL, &b, err), DS_OK);
    CHECK_EQ(ds_model_open(TARGET, &opts, b, &m, err), DS_OK);
    ds_code code = ds_draft_open(dir, m, 16, 2, b, &d, err);
    if (code == DS_OK)
        *ret = *ds_draft_get_info(d);
    ds_draft_close(d);
    ds_model_close(m);
    b->destroy(b);
    return code;
}

DS_TEST(the_released_layout_loads)
{
    ds_draft_info o;
    ds_err err;
    static const int taps[] = {1, 9, 17, 25, 33};
    CHECK_OK(try_open(DRAFT, 0, &o, &err), err);
    CHECK(o.block == 7 && o.layers == 5 && o.n_taps == 5 && memcmp(o.taps, taps, sizeof taps) == 0);
    CHECK(o.head == DS_HEAD_VANILLA && o.markov_rank == 16 && o.confidence && !o.own_tables);
    CHECK_EQ(o.kv_bytes_per_token, 2 * 5 * 8 * 2);
}

/* The folder with one key of config.json replaced, or left out (value NULL), then opened. */
static ds_code edited(const char *key, const char *value, ds_draft_info *o, ds_err *err)
{
    char dir[512], from[1024], to[1024];
    json_error_t je;
    snprintf(dir, sizeof dir, "%s/released_XXXXXX", DS_BIN_DIR);
    CHECK(mkdtemp(dir) != NULL);
    snprintf(from, sizeof from, "%s/config.json", DRAFT);
    snprintf(to, sizeof to, "%s/config.json", dir);
    json_t *c = json_load_file(from, 0, &je);
    CHECK_MSG(c, "%s", je.text);
    if (value) {
        json_t *v = json_loads(value, JSON_DECODE_ANY, &je);
        CHECK_MSG(v && json_object_set_new(c, key, v) == 0, "%s", value);
    } else {
        CHECK_EQ(json_object_del(c, key), 0);
    }
    CHECK_EQ(json_dump_file(c, to, 0), 0);
    json_decref(c);
    snprintf(from, sizeof from, "%s/model.safetensors", DRAFT);
    snprintf(to, sizeof to, "%s/model.safetensors", dir);
    CHECK_EQ(symlink(from, to), 0);
    ds_code code = try_open(dir, 0, o, err);
    unlink(to);
    snprintf(to, sizeof to, "%s/config.json", dir);
    unlink(to);
    rmdir(dir);
    return code;
}

static void refused(const char *key, const char *value, ds_code code, const char *field, const char *says)
{
    ds_draft_info o;
    ds_err err;
    ds_code got = edited(key, value, &o, &err);
    CHECK_MSG(got == code && strcmp(err.field, field) == 0, "%s = %s: %s, field '%s': %s", key,
              value ? value : "(absent)", ds_err_name(got), err.field, err.msg);
    CHECK_MSG(strstr(err.msg, field) && strstr(err.msg, says), "%s = %s: '%s' does not say '%s'", key,
              value ? value : "(absent)", err.msg, says);
}

DS_TEST(a_draft_of_another_target_is_refused)
{
    refused("vocab_size", "96", DS_ECORRUPT, "mask_token_id", "0..95");
    refused("vocab_size", "98", DS_EINVAL, "vocab_size", "is 98, the target's is 97");
    refused("hidden_size", "24", DS_EINVAL, "hidden_size", "is 24, the target's is 20");
    refused("num_target_layers", "35", DS_EINVAL, "num_target_layers", "is 35, the target's is 36");
    refused("num_target_layers", NULL, DS_ECORRUPT, "num_target_layers", "missing");
    refused("num_key_value_heads", "2", DS_EINVAL, "num_key_value_heads", "the target's is 1");
    refused("head_dim", "16", DS_EINVAL, "head_dim", "the target's is 8");
    refused("max_position_embeddings", "128", DS_EINVAL, "max_position_embeddings", "128");
}

DS_TEST(layer_ids_that_cannot_be_taps_are_refused)
{
    static const char KEY[] = "target_layer_ids";
    refused(KEY, "[1,9,17,25,35]", DS_ECORRUPT, KEY, "entry 4"); /* the last layer's output is normalised */
    refused(KEY, "[1,9,17,25,99]", DS_ECORRUPT, KEY, "below the last layer");
    refused(KEY, "[1,9,9,25,33]", DS_ECORRUPT, KEY, "entry 2");
    refused(KEY, "[33,25,17,9,1]", DS_ECORRUPT, KEY, "rising");
    refused(KEY, "[-2,9,17,25,33]", DS_ECORRUPT, KEY, "entry 0");
    refused(KEY, "[1,9,17,25,33.0]", DS_ECORRUPT, KEY, "integer");
    refused(KEY, "[]", DS_ECORRUPT, KEY, "1..16");
    refused(KEY, "5", DS_ECORRUPT, KEY, "list");
    refused(KEY, NULL, DS_ECORRUPT, KEY, "list");
    refused(KEY, "[1,9,17,25]", DS_ECORRUPT, "fc.weight", "[20, 100], config.json asks for [20, 80]");
    refused(KEY, "[1,9,17,25,29,33]", DS_ECORRUPT, "fc.weight", "asks for [20, 120]");
}

DS_TEST(blocks_heads_and_layouts_that_are_not_offered_are_refused)
{
    refused("block_size", "0", DS_ECORRUPT, "block_size", "1..32");
    refused("block_size", "33", DS_ECORRUPT, "block_size", "1..32");
    refused("block_size", "\"7\"", DS_ECORRUPT, "block_size", "integer");
    refused("block_size", NULL, DS_ECORRUPT, "block_size", "missing");
    refused("mask_token_id", "97", DS_ECORRUPT, "mask_token_id", "0..96");
    refused("mask_token_id", "-1", DS_ECORRUPT, "mask_token_id", "0..96");
    refused("mask_token_id", NULL, DS_ECORRUPT, "mask_token_id", "missing");
    refused("num_anchors", "0", DS_ECORRUPT, "num_anchors", "is 0");
    refused("num_anchors", "[]", DS_ECORRUPT, "num_anchors", "integer");
    refused("sample_from_anchor", "false", DS_EUNSUPPORTED, "sample_from_anchor", "anchor");
    refused("draft_vocab_size", "32", DS_EUNSUPPORTED, "draft_vocab_size", "97");
    refused("logit_scale", "0.5", DS_EUNSUPPORTED, "logit_scale", "0.5");
    refused("markov_rank", "8", DS_ECORRUPT, "markov_head.markov_w1.weight", "[97, 16]");
    refused("markov_rank", "0", DS_ECORRUPT, "confidence_head_with_markov", "markov_rank");
    refused("markov_rank", "-1", DS_ECORRUPT, "markov_rank", "0..4096");
    refused("markov_head_type", "\"lstm\"", DS_EUNSUPPORTED, "markov_head_type", "lstm");
    refused("markov_head_type", "\"gated\"", DS_ECORRUPT, "markov_head.gate_proj.weight", "missing");
    refused("markov_head_type", "7", DS_ECORRUPT, "markov_head_type", "string");
    refused("confidence_head_with_markov", "false", DS_ECORRUPT, "confidence_head.proj.weight", "[1, 36]");
    refused("enable_confidence_head", "1", DS_ECORRUPT, "enable_confidence_head", "true or false");
    refused("num_hidden_layers", "6", DS_ECORRUPT, "layer_types", "6");
    refused("layer_types",
            "[\"full_attention\",\"sliding_attention\",\"full_attention\",\"full_attention\","
            "\"full_attention\"]",
            DS_EUNSUPPORTED, "layer_types", "sliding_attention");
    refused("architectures", "[\"Qwen3ForCausalLM\"]", DS_EUNSUPPORTED, "architectures", "names a target");
    refused("architectures", "[\"DFlashDraftModel\"]", DS_EUNSUPPORTED, "architectures", "DFlashDraftModel");
    refused("architectures", "[\"Gemma4DSparkModel\"]", DS_EUNSUPPORTED, "architectures",
            "Gemma4DSparkModel");
}

/* What does not change the draft's numbers is no reason to refuse it. */
DS_TEST(harmless_differences_load)
{
    static const char *const same[][2] = {{"num_anchors", NULL},
                                          {"sample_from_anchor", "true"},
                                          {"draft_vocab_size", "97"},
                                          {"markov_head_type", "\"Vanilla\""},
                                          {"layer_types", NULL},
                                          {"max_position_embeddings", "4096"},
                                          {"dtype", "\"float16\""},
                                          {"some_new_key", "{\"a\":[1]}"},
                                          {"enable_confidence_head", "false"}};
    for (size_t i = 0; i < sizeof same / sizeof *same; i++) {
        ds_draft_info o;
        ds_err err;
        CHECK_OK(edited(same[i][0], same[i][1], &o, &err), err);
        CHECK(o.block == 7 && o.markov_rank == 16);
        CHECK_EQ(o.confidence, strcmp(same[i][0], "enable_confidence_head") != 0);
    }
}
