/* tiny_pair.h - writes the tiny target and its drafts of the golden vectors as checkpoint folders (F32
 * safetensors), so that the real loader reads them. Weights are the streams of tiny_stream.h, named as in
 * tests/golden/dspark/tiny.json. */
#ifndef DS_TESTS_LIB_TINY_PAIR_H
#define DS_TESTS_LIB_TINY_PAIR_H

#include "tests/lib/test.h"
#include "tests/lib/tiny_stream.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>

enum {
    TINY_V = 40,
    TINY_C = 8,
    TINY_L = 4,
    TINY_H = 2,
    TINY_G = 1,
    TINY_D = 4,
    TINY_I = 12,
    TINY_R = 4,
    TINY_BLOCK = 3
};

typedef struct tiny_tensor {
    char name[80];
    int n, k; /* k 0: a vector [n] */
    double base, scale;
} tiny_tensor;

typedef struct tiny_list {
    tiny_tensor t[96];
    int n;
} tiny_list;

static inline void tiny_add(tiny_list *l, const char *prefix, const char *name, int n, int k, double base,
                            double scale)
{
    tiny_tensor *t = &l->t[l->n++];
    snprintf(t->name, sizeof t->name, "%s%s", prefix, name);
    t->n = n;
    t->k = k;
    t->base = base;
    t->scale = scale;
}

static inline void tiny_layer(tiny_list *l, const char *prefix, int i)
{
    char p[40];
    snprintf(p, sizeof p, "%slayers.%d.", prefix, i);
    tiny_add(l, p, "input_layernorm.weight", TINY_C, 0, 1, 1);
    tiny_add(l, p, "post_attention_layernorm.weight", TINY_C, 0, 1, 1);
    tiny_add(l, p, "self_attn.q_proj.weight", TINY_H * TINY_D, TINY_C, 0, 1);
    tiny_add(l, p, "self_attn.k_proj.weight", TINY_G * TINY_D, TINY_C, 0, 1);
    tiny_add(l, p, "self_attn.v_proj.weight", TINY_G * TINY_D, TINY_C, 0, 1);
    tiny_add(l, p, "self_attn.o_proj.weight", TINY_C, TINY_H * TINY_D, 0, 1);
    tiny_add(l, p, "self_attn.q_norm.weight", TINY_D, 0, 1, 1);
    tiny_add(l, p, "self_attn.k_norm.weight", TINY_D, 0, 1, 1);
    tiny_add(l, p, "mlp.gate_proj.weight", TINY_I, TINY_C, 0, 1);
    tiny_add(l, p, "mlp.up_proj.weight", TINY_I, TINY_C, 0, 1);
    tiny_add(l, p, "mlp.down_proj.weight", TINY_C, TINY_I, 0, 1);
}

/* seed_prefix: what the stream's name has in front of the tensor's ("draft."). */
static inline void tiny_write(const char *dir, const char *config, const tiny_list *l,
                              const char *seed_prefix)
{
    char path[256];
    CHECK(mkdir(dir, 0700) == 0);
    snprintf(path, sizeof path, "%s/config.json", dir);
    FILE *f = fopen(path, "w");
    CHECK(f && fputs(config, f) >= 0 && fclose(f) == 0);
    static char header[16384];
    size_t at = 0, begin = 0;
    for (int i = 0; i < l->n; i++) {
        const tiny_tensor *t = &l->t[i];
        size_t bytes = sizeof(float) * (size_t)t->n * (size_t)(t->k ? t->k : 1);
        char shape[32];
        snprintf(shape, sizeof shape, t->k ? "%d,%d" : "%d", t->n, t->k);
        at += (size_t)snprintf(header + at, sizeof header - at,
                               "%s\"%s\":{\"dtype\":\"F32\",\"shape\":[%s],\"data_offsets\":[%zu,%zu]}",
                               i ? "," : "{", t->name, shape, begin, begin + bytes);
        begin += bytes;
    }
    at += (size_t)snprintf(header + at, sizeof header - at, "}");
    while (at % 8)
        header[at++] = ' ';
    snprintf(path, sizeof path, "%s/model.safetensors", dir);
    f = fopen(path, "wb");
    CHECK(f != NULL);
    uint64_t size = at;
    CHECK(fwrite(&size, 8, 1, f) == 1 && fwrite(header, 1, at, f) == at);
    for (int i = 0; i < l->n; i++) {
        const tiny_tensor *t = &l->t[i];
        char name[96];
        snprintf(name, sizeof name, "%s%s", seed_prefix, t->name);
        uint64_t s = ds_tiny_seed(name);
        for (int j = 0; j < t->n * (t->k ? t->k : 1); j++) {
            float x = (float)(t->base + ds_tiny_next(&s) * t->scale);
            CHECK(fwrite(&x, sizeof x, 1, f) == 1);
        }
    }
    CHECK(fclose(f) == 0);
}

#define TINY_COMMON                                                                                   \
    "\"hidden_size\":8,\"intermediate_size\":12,\"num_attention_heads\":2,\"num_key_value_heads\":1," \
    "\"head_dim\":4,\"vocab_size\":40,\"max_position_embeddings\":256,\"rms_norm_eps\":1e-6,"         \
    "\"rope_theta\":10000.0,\"tie_word_embeddings\":false,\"hidden_act\":\"silu\",\"model_type\":\"qwen3\""

static inline void tiny_write_target(const char *dir)
{
    static tiny_list l;
    l.n = 0;
    tiny_add(&l, "", "model.embed_tokens.weight", TINY_V, TINY_C, 0, 4);
    tiny_add(&l, "", "lm_head.weight", TINY_V, TINY_C, 0, 4);
    tiny_add(&l, "", "model.norm.weight", TINY_C, 0, 1, 1);
    for (int i = 0; i < TINY_L; i++)
        tiny_layer(&l, "model.", i);
    tiny_write(dir, "{\"architectures\":[\"Qwen3ForCausalLM\"],\"num_hidden_layers\":4," TINY_COMMON "}", &l,
               "");
}

/* head: "none", "vanilla", "gated" or "rnn"; extra: more config, with a leading comma, or "". */
static inline void tiny_write_draft(const char *dir, const char *head, const char *extra)
{
    static tiny_list l;
    char config[1024];
    int r = strcmp(head, "none") == 0 ? 0 : TINY_R;
    l.n = 0;
    tiny_add(&l, "", "fc.weight", TINY_C, 2 * TINY_C, 0, 1);
    tiny_add(&l, "", "hidden_norm.weight", TINY_C, 0, 1, 1);
    tiny_add(&l, "", "norm.weight", TINY_C, 0, 1, 1);
    for (int i = 0; i < 2; i++)
        tiny_layer(&l, "", i);
    if (r) {
        tiny_add(&l, "markov_head.", "markov_w1.weight", TINY_V, r, 0, 4);
        tiny_add(&l, "markov_head.", "markov_w2.weight", TINY_V, r, 0, 8);
        tiny_add(&l, "confidence_head.", "proj.weight", 1, TINY_C + r, 0, 1);
        tiny_add(&l, "confidence_head.", "proj.bias", 1, 0, 0, 1);
    }
    if (strcmp(head, "gated") == 0) {
        tiny_add(&l, "markov_head.", "gate_proj.weight", r, TINY_C + r, 0, 1);
        tiny_add(&l, "markov_head.", "gate_proj.bias", r, 0, 0, 1);
    } else if (strcmp(head, "rnn") == 0) {
        tiny_add(&l, "markov_head.", "joint_proj.weight", 3 * r, 2 * r + TINY_C, 0, 1);
        tiny_add(&l, "markov_head.", "joint_proj.bias", 3 * r, 0, 0, 1);
    }
    snprintf(config, sizeof config,
             "{\"architectures\":[\"Qwen3DSparkModel\"],\"num_hidden_layers\":2,\"num_target_layers\":4,"
             "\"block_size\":3,"
             "\"mask_token_id\":39,\"target_layer_ids\":[0,2],\"markov_rank\":%d,\"markov_head_type\":\"%s\","
             "\"enable_confidence_head\":%s,\"confidence_head_with_markov\":%s," TINY_COMMON "%s}",
             r, r ? head : "vanilla", r ? "true" : "false", r ? "true" : "false", extra);
    tiny_write(dir, config, &l, "draft.");
}

#endif
