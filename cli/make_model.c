/* make_model.c - dspark-bench make-model: a checkpoint folder of a known shape with random BF16 weights.
 *
 * For timing only: the weights are zero-mean with magnitudes 2^-7 to 2^-5, so that activations stay finite,
 * and the norms are one. Same seed, same file. Shapes are those of the published Qwen3 config.json files. */
#include "cli/make_model.h"

#include "base/buf.h"
#include "base/rng.h"

#include <errno.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>

enum { BLOCK = 1 << 16 }; /* BF16 values written at once */

typedef struct shape {
    const char *name;
    int hidden, layers, heads, kv_heads, head_dim, mlp, vocab, positions, tied;
} shape;

static const shape SHAPES[] = {
    {"tiny", 64, 2, 4, 2, 16, 128, 512, 2048, 1},
    {"demo", 512, 8, 8, 4, 64, 1536, 16384, 2048, 1}, /* of the bundled model's size: 67 MB */
    {"qwen3-0.6b", 1024, 28, 16, 8, 128, 3072, 151936, 40960, 1},
    {"qwen3-1.7b", 2048, 28, 16, 8, 128, 6144, 151936, 40960, 1},
    {"qwen3-4b", 2560, 36, 32, 8, 128, 9728, 151936, 40960, 1},
    {"qwen3-8b", 4096, 36, 32, 8, 128, 12288, 151936, 40960, 0},
    {"qwen3-14b", 5120, 40, 40, 8, 128, 17408, 151936, 40960, 0},
    {"qwen3-32b", 5120, 64, 64, 8, 128, 25600, 151936, 40960, 0},
};

typedef struct writer { /* pass 1 collects the header, pass 2 writes the same tensors in the same order */
    ds_buf header;
    uint64_t offset; /* bytes of data so far */
    FILE *f;         /* NULL in pass 1 */
    uint64_t seed;
    uint32_t index; /* of the tensor */
    ds_code code;
} writer;

static void put_values(writer *w, uint64_t n, int is_norm)
{
    static uint16_t block[BLOCK];
    for (uint64_t done = 0; done < n; done += BLOCK) {
        size_t some = n - done < BLOCK ? (size_t)(n - done) : BLOCK;
        for (size_t i = 0; i < some; i += 8) {
            ds_rng4 r = ds_philox(w->seed, (uint32_t)((done + i) >> 3), (uint32_t)((done + i) >> 35),
                                  w->index, DS_RNG_INIT);
            for (size_t j = 0; j < 8 && i + j < some; j++) {
                uint32_t bits = r.v[j >> 1] >> 16 * (j & 1);
                uint32_t exponent = 120 + (bits >> 7 & 1); /* 2^-7 or 2^-6 */
                block[i + j] = is_norm ? 0x3F80 : (uint16_t)((bits & 0x8000) | exponent << 7 | (bits & 0x7F));
            }
        }
        if (fwrite(block, sizeof *block, some, w->f) != some)
            w->code = DS_EIO;
    }
}

/* cols 0: a vector, which in these models is always the weight of a norm. */
static void put_tensor(writer *w, const char *name, int rows, int cols)
{
    uint64_t n = (uint64_t)rows * (uint64_t)(cols ? cols : 1);
    if (w->code)
        return;
    if (w->f) {
        put_values(w, n, cols == 0);
    } else {
        char dims[32];
        snprintf(dims, sizeof dims, cols ? "%d,%d" : "%d", rows, cols);
        w->code = ds_buf_printf(&w->header,
                                "%s\"%s\":{\"dtype\":\"BF16\",\"shape\":[%s],\"data_offsets\":[%llu,%llu]}",
                                w->index ? "," : "", name, dims, (unsigned long long)w->offset,
                                (unsigned long long)(w->offset + 2 * n));
    }
    w->offset += 2 * n;
    w->index++;
}

static void put_layer(writer *w, const shape *s, int layer)
{
    const struct {
        const char *name;
        int rows, cols;
    } tensors[] = {{"input_layernorm", s->hidden, 0},
                   {"self_attn.q_proj", s->heads * s->head_dim, s->hidden},
                   {"self_attn.k_proj", s->kv_heads * s->head_dim, s->hidden},
                   {"self_attn.v_proj", s->kv_heads * s->head_dim, s->hidden},
                   {"self_attn.q_norm", s->head_dim, 0},
                   {"self_attn.k_norm", s->head_dim, 0},
                   {"self_attn.o_proj", s->hidden, s->heads * s->head_dim},
                   {"post_attention_layernorm", s->hidden, 0},
                   {"mlp.gate_proj", s->mlp, s->hidden},
                   {"mlp.up_proj", s->mlp, s->hidden},
                   {"mlp.down_proj", s->hidden, s->mlp}};
    for (size_t i = 0; i < sizeof tensors / sizeof *tensors; i++) {
        char name[96];
        snprintf(name, sizeof name, "model.layers.%d.%s.weight", layer, tensors[i].name);
        put_tensor(w, name, tensors[i].rows, tensors[i].cols);
    }
}

static void put_all(writer *w, const shape *s)
{
    w->offset = 0;
    w->index = 0;
    put_tensor(w, "model.embed_tokens.weight", s->vocab, s->hidden);
    for (int layer = 0; layer < s->layers; layer++)
        put_layer(w, s, layer);
    put_tensor(w, "model.norm.weight", s->hidden, 0);
    if (!s->tied)
        put_tensor(w, "lm_head.weight", s->vocab, s->hidden);
}

static ds_code write_weights(const shape *s, FILE *f, uint64_t seed)
{
    writer w = {.seed = seed};
    w.code = ds_buf_puts(&w.header, "{");
    put_all(&w, s);
    if (!w.code)
        w.code = ds_buf_puts(&w.header, "}");
    while (!w.code && w.header.len % 8)
        w.code = ds_buf_puts(&w.header, " "); /* data starts aligned */
    uint64_t n = w.header.len;                /* little-endian, as the format has it and as this host is */
    if (!w.code && (fwrite(&n, sizeof n, 1, f) != 1 || fwrite(w.header.data, 1, n, f) != n))
        w.code = DS_EIO;
    w.f = f;
    put_all(&w, s);
    ds_buf_free(&w.header);
    return w.code;
}

static ds_code write_config(const shape *s, FILE *f)
{
    int n = fprintf(
        f,
        "{\"architectures\": [\"Qwen3ForCausalLM\"], \"model_type\": \"qwen3\", \"hidden_size\": %d,\n"
        " \"num_hidden_layers\": %d, \"num_attention_heads\": %d, \"num_key_value_heads\": %d,\n"
        " \"head_dim\": %d, \"intermediate_size\": %d, \"vocab_size\": %d,\n"
        " \"max_position_embeddings\": %d, \"tie_word_embeddings\": %s, \"torch_dtype\": \"bfloat16\",\n"
        " \"rms_norm_eps\": 1e-06, \"rope_theta\": 1000000.0, \"hidden_act\": \"silu\",\n"
        " \"attention_bias\": false, \"bos_token_id\": %d, \"eos_token_id\": %d}\n",
        s->hidden, s->layers, s->heads, s->kv_heads, s->head_dim, s->mlp, s->vocab, s->positions,
        s->tied ? "true" : "false", s->vocab - 2, s->vocab - 1);
    return n < 0 ? DS_EIO : DS_OK;
}

/* Makes dir and the folders above it. */
static ds_code make_folders(const char *dir, ds_err *err)
{
    char path[4096];
    if ((size_t)snprintf(path, sizeof path, "%s", dir) >= sizeof path)
        return ds_err_field(err, DS_EINVAL, "dir", "the folder's name is longer than %zu bytes", sizeof path);
    for (char *p = path + 1;; p++) {
        if (*p && *p != '/')
            continue;
        char was = *p;
        *p = 0;
        if (mkdir(path, 0777) && errno != EEXIST)
            return ds_err_field(err, DS_EIO, "dir", "%s: %s", path, strerror(errno));
        *p = was;
        if (!was)
            return DS_OK;
    }
}

/* Under another name until it is whole, so that a folder never holds half a file. */
static ds_code write_file(const char *dir, const char *name, const shape *s, uint64_t seed, int is_config,
                          ds_err *err)
{
    char part[4200], path[4200];
    snprintf(path, sizeof path, "%s/%s", dir, name);
    snprintf(part, sizeof part, "%s/%s.part", dir, name);
    FILE *f = fopen(part, "wb");
    if (!f)
        return ds_err_field(err, DS_EIO, "dir", "%s: %s", part, strerror(errno));
    ds_code code = is_config ? write_config(s, f) : write_weights(s, f, seed);
    if (fclose(f) || code || rename(part, path)) {
        remove(part);
        return ds_err_field(err, DS_EIO, "dir", "%s could not be written: %s", path, strerror(errno));
    }
    return DS_OK;
}

static const shape *find_shape(const char *name, ds_err *err)
{
    char known[256] = "";
    size_t used = 0;
    for (size_t i = 0; i < sizeof SHAPES / sizeof *SHAPES; i++) {
        if (strcmp(SHAPES[i].name, name) == 0)
            return &SHAPES[i];
        used += (size_t)snprintf(known + used, sizeof known - used, "%s%s", i ? ", " : "", SHAPES[i].name);
    }
    ds_err_field(err, DS_EINVAL, "shape", "unknown shape \"%.60s\"; known are %s", name, known);
    return NULL;
}

ds_code ds_make_model(const char *name, const char *dir, uint64_t seed, ds_err *err)
{
    const shape *s = find_shape(name, err);
    if (!s)
        return DS_EINVAL;
    DS_TRY(make_folders(dir, err));
    DS_TRY(write_file(dir, "model.safetensors", s, seed, 0, err));
    return write_file(dir, "config.json", s, seed, 1, err); /* last: its presence means that all is there */
}
