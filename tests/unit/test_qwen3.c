/* Opening a model folder: the memory plan, options, and damaged checkpoints. Each damage is done to a copy of
 * a golden folder; the error must name the tensor or key. */
#include "tests/golden/golden.h"
#include "worker/model/safetensors.h"
#include "worker/model/weights.h"

#include <dirent.h>
#include <unistd.h>

static const ds_model_opts OPTS = {.max_rows = 64, .max_logit_rows = 8};

typedef struct copy {
    char dir[1024];
} copy;

static char *slurp(const char *path, size_t *n)
{
    FILE *f = fopen(path, "rb");
    CHECK_MSG(f, "%s", path);
    char *p = malloc(1 << 20);
    *n = fread(p, 1, (1 << 20) - 1, f);
    p[*n] = 0;
    fclose(f);
    return p;
}

static void spill(const copy *c, const char *name, const char *p, size_t n)
{
    char path[2048];
    snprintf(path, sizeof path, "%s/%s", c->dir, name);
    FILE *f = fopen(path, "wb");
    CHECK(f && fwrite(p, 1, n, f) == n);
    fclose(f);
}

static copy copy_folder(const char *name)
{
    copy c;
    char from[2048], path[4096];
    snprintf(c.dir, sizeof c.dir, "%s/ds_model_XXXXXX", DS_BIN_DIR);
    CHECK(mkdtemp(c.dir) != NULL);
    snprintf(from, sizeof from, "%s/tests/golden/data/%s", DS_SOURCE_DIR, name);
    DIR *d = opendir(from);
    CHECK(d != NULL);
    for (struct dirent *e; (e = readdir(d));) {
        if (e->d_name[0] == '.')
            continue;
        size_t n;
        snprintf(path, sizeof path, "%s/%s", from, e->d_name);
        char *p = slurp(path, &n);
        spill(&c, e->d_name, p, n);
        free(p);
    }
    closedir(d);
    return c;
}

static void drop(const copy *c)
{
    char path[2048];
    DIR *d = opendir(c->dir);
    for (struct dirent *e; d && (e = readdir(d));) {
        snprintf(path, sizeof path, "%s/%s", c->dir, e->d_name);
        unlink(path);
    }
    if (d)
        closedir(d);
    rmdir(c->dir);
}

/* Replace the one occurrence of `from` in a file of the copy by `to`; equal lengths when binary. */
static void edit(const copy *c, const char *file, const char *from, const char *to)
{
    char path[2048], out[1 << 14];
    size_t n, at = 0, f = strlen(from), t = strlen(to);
    snprintf(path, sizeof path, "%s/%s", c->dir, file);
    char *p = slurp(path, &n);
    while (at + f <= n && memcmp(p + at, from, f) != 0)
        at++;
    CHECK_MSG(at + f <= n, "'%s' is not in %s", from, file);
    if (f == t) {
        memcpy(p + at, to, t);
        spill(c, file, p, n);
    } else {
        CHECK(n - f + t < sizeof out);
        memcpy(out, p, at);
        memcpy(out + at, to, t);
        memcpy(out + at + t, p + at + f, n - at - f);
        spill(c, file, out, n - f + t);
    }
    free(p);
}

static ds_code try_open(const copy *c, const ds_model_opts *opts, ds_err *err)
{
    ds_backend *b = NULL;
    ds_model *m = NULL;
    memset(err, 0, sizeof *err);
    CHECK_EQ(ds_backend_open("cpu", 1, NULL, &b, err), DS_OK);
    ds_code code = ds_model_open(c->dir, opts, b, &m, err);
    ds_model_close(m);
    b->destroy(b);
    return code;
}

static void fails(const copy *c, ds_code code, const char *names)
{
    ds_err err;
    ds_code got = try_open(c, &OPTS, &err);
    drop(c);
    CHECK_MSG(got == code && strstr(err.msg, names), "%s '%s', want %s naming '%s'", ds_err_name(got),
              err.msg, ds_err_name(code), names);
}

/* Overwrite element `index` of a tensor in model.safetensors of the copy. */
static void poke(const copy *c, const char *tensor, size_t index, const void *value, size_t size)
{
    ds_st st;
    ds_err err;
    char path[2048];
    CHECK_OK(ds_st_open(c->dir, &st, &err), err);
    const ds_st_tensor *t = ds_st_find(&st, tensor);
    CHECK_MSG(t, "%s", tensor);
    snprintf(path, sizeof path, "%s/%s", c->dir, st.file[t->file].name);
    FILE *f = fopen(path, "r+b");
    CHECK(f && fseek(f, (long)(t->begin + index * size), SEEK_SET) == 0 && fwrite(value, size, 1, f) == 1);
    fclose(f);
    ds_st_close(&st);
}

DS_TEST(plan_equals_open)
{
    static const char *const names[] = {"qwen3-f32", "qwen3-bf16-tied", "qwen3-bf16-yarn-sharded"};
    for (int i = 0; i < 3; i++) {
        golden g;
        ds_model_info plan;
        ds_err err;
        g_open(&g, names[i], NULL);
        ds_model_opts opts = {.max_rows = G_ROWS, .max_logit_rows = G_LOGIT_ROWS};
        CHECK_OK(ds_model_plan(g.dir, &opts, &plan, &err), err);
        CHECK(memcmp(&plan.kv_layers, &g.info->kv_layers, sizeof(int)) == 0);
        CHECK_EQ(plan.scratch_bytes, g.info->scratch_bytes);
        CHECK_EQ(plan.weight_bytes, g.info->weight_bytes);
        CHECK_EQ(plan.kv_bytes_per_token, g.info->kv_bytes_per_token);
        CHECK_EQ(plan.params, g.info->params);
        g_close(&g);
    }
}

DS_TEST(info_of_a_known_folder)
{
    ds_model_info p;
    ds_err err;
    char dir[1024];
    snprintf(dir, sizeof dir, "%s/tests/golden/data/qwen3-f32", DS_SOURCE_DIR);
    CHECK_OK(ds_model_plan(dir, &OPTS, &p, &err), err);
    CHECK_STR(p.arch, "Qwen3ForCausalLM");
    CHECK_EQ(p.vocab, 131);
    CHECK_EQ(p.kv_dtype, DS_F32);
    CHECK(p.n_eos == 2 && p.eos[0] == 3 && p.eos[1] == 5);
    /* by hand: tables, per layer q k v o + MLP + norms, final norm */
    uint64_t layer = 72 * 56 + 2 * 24 * 56 + 56 * 72 + 3 * 56 * 90 + 2 * 56 + 2 * 24;
    CHECK_EQ(p.params, 2 * 131 * 56 + 3 * layer + 56);
    CHECK_EQ(p.weight_mem_bytes, 4 * p.params);
    CHECK_EQ(p.weight_bytes, 4 * (p.params - 131 * 56)); /* the embedding is read by rows */
    CHECK_EQ(p.kv_bytes_per_token, 3 * 2 * 24 * 4);
    snprintf(dir, sizeof dir, "%s/tests/golden/data/qwen3-bf16-tied", DS_SOURCE_DIR);
    CHECK_OK(ds_model_plan(dir, &OPTS, &p, &err), err);
    CHECK_EQ(p.kv_dtype, DS_BF16);
    CHECK_EQ(p.weight_mem_bytes, 2 * p.params);
    CHECK_EQ(p.weight_bytes, p.weight_mem_bytes); /* the tied table is the head */
}

DS_TEST(options_out_of_range)
{
    static const int falling[] = {1, 0}, high[] = {3}, low[] = {-2, 0};
    const struct {
        ds_model_opts o;
        const char *field;
    } cases[] = {{{.max_rows = 0, .max_logit_rows = 1}, "max_rows"},
                 {{.max_rows = 4, .max_logit_rows = 5}, "max_logit_rows"},
                 {{.max_rows = 4, .max_logit_rows = 4, .max_positions = 2049}, "max_positions"},
                 {{.max_rows = 4, .max_logit_rows = 4, .weights = "int4"}, "weights"},
                 {{.max_rows = 4, .max_logit_rows = 4, .kv_dtype = "fp8"}, "kv_dtype"},
                 {{.max_rows = 4, .max_logit_rows = 4, .taps = falling, .n_taps = 2}, "taps"},
                 {{.max_rows = 4, .max_logit_rows = 4, .taps = low, .n_taps = 2}, "taps"},
                 {{.max_rows = 4, .max_logit_rows = 4, .taps = high, .n_taps = 1}, "taps"}};
    char dir[1024];
    snprintf(dir, sizeof dir, "%s/tests/golden/data/qwen3-f32", DS_SOURCE_DIR);
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        ds_model_info p;
        ds_err err = {0};
        CHECK_EQ(ds_model_plan(dir, &cases[i].o, &p, &err), DS_EINVAL);
        CHECK_STR(err.field, cases[i].field);
    }
}

DS_TEST(nan_and_infinity_name_their_tensor)
{
    static const uint32_t f32_bad[] = {0x7fc00000u, 0x7f800000u, 0xff800001u};
    for (int i = 0; i < 3; i++) {
        copy c = copy_folder("qwen3-f32");
        poke(&c, "model.layers.1.mlp.up_proj.weight", 56 * 7 + 3, &f32_bad[i], 4);
        fails(&c, DS_ECORRUPT, "'model.layers.1.mlp.up_proj.weight' holds a NaN or infinity at [7, 3]");
    }
    copy c = copy_folder("qwen3-bf16-tied");
    poke(&c, "model.embed_tokens.weight", 256 * 72 + 71, &(uint16_t){0xffc0}, 2);
    fails(&c, DS_ECORRUPT, "'model.embed_tokens.weight' holds a NaN or infinity at [256, 71]");
    c = copy_folder("qwen3-f16-linear-bias");
    poke(&c, "model.norm.weight", 0, &(uint16_t){0x7c00}, 2);
    fails(&c, DS_ECORRUPT, "'model.norm.weight'");
}

DS_TEST(scan_finds_every_place_and_no_large_number)
{
    static const uint16_t large_bf16 = 0x7f7f, large_f16 = 0x7bff, nan_bf16 = 0x7f81, inf_f16 = 0xfc00;
    static uint16_t v[5000];
    for (int n = 1; n < 5000; n = n * 3 + 1) {
        for (int i = 0; i < n; i++)
            v[i] = i % 3 ? large_bf16 : 0x8001;
        CHECK_EQ(ds_weights_scan(v, (size_t)n, DS_BF16), -1);
        for (int at = 0; at < n; at += 1 + n / 7) {
            uint16_t old = v[at];
            v[at] = nan_bf16;
            CHECK_EQ(ds_weights_scan(v, (size_t)n, DS_BF16), at);
            v[at] = old;
        }
        for (int i = 0; i < n; i++)
            v[i] = large_f16;
        CHECK_EQ(ds_weights_scan(v, (size_t)n, DS_F16), -1);
        v[n - 1] = inf_f16;
        CHECK_EQ(ds_weights_scan(v, (size_t)n, DS_F16), n - 1);
    }
}

DS_TEST(damaged_checkpoints_name_the_tensor)
{
    copy c = copy_folder("qwen3-f32");
    edit(&c, "model.safetensors", "model.layers.2.self_attn.k_proj", "model.layers.9.self_attn.k_proj");
    fails(&c, DS_ECORRUPT, "'model.layers.2.self_attn.k_proj.weight' is missing");
    c = copy_folder("qwen3-f32");
    edit(&c, "config.json", "\"vocab_size\": 131", "\"vocab_size\": 130");
    fails(&c, DS_ECORRUPT, "'lm_head.weight' has shape [131, 56], config.json asks for [130, 56]");
    c = copy_folder("qwen3-f32");
    edit(&c, "config.json", "\"head_dim\": 24", "\"head_dim\": 26");
    fails(&c, DS_ECORRUPT, "'model.layers.0.self_attn.q_proj.weight'");
    c = copy_folder("qwen3-f32");
    edit(&c, "config.json", "\"num_hidden_layers\": 3", "\"num_hidden_layers\": 4");
    fails(&c, DS_ECORRUPT, "layer_types");
    c = copy_folder("qwen3-f32");
    edit(&c, "config.json", "\"Qwen3ForCausalLM\"", "\"Qwen3MoeForCausalLM\"");
    fails(&c, DS_EUNSUPPORTED, "Qwen3MoeForCausalLM");
    c = copy_folder("qwen3-bf16-yarn-sharded");
    char path[2048];
    snprintf(path, sizeof path, "%s/model-00003-of-00005.safetensors", c.dir);
    CHECK_EQ(truncate(path, 30000), 0);
    fails(&c, DS_ECORRUPT, "model-00003-of-00005.safetensors: tensor");
    c = copy_folder("qwen3-bf16-yarn-sharded");
    snprintf(path, sizeof path, "%s/model-00004-of-00005.safetensors", c.dir);
    CHECK_EQ(unlink(path), 0);
    fails(&c, DS_ENOTFOUND, "model-00004-of-00005.safetensors");
    c = copy_folder("qwen3-f32");
    snprintf(path, sizeof path, "%s/config.json", c.dir);
    CHECK_EQ(unlink(path), 0);
    fails(&c, DS_ENOTFOUND, "config.json");
}

/* An integer matrix of the right byte count: the dtype is refused, not read as floats. */
DS_TEST(other_dtypes_are_refused)
{
    copy c = copy_folder("qwen3-f16-linear-bias");
    edit(&c, "model.safetensors", "\"lm_head.weight\":{\"dtype\":\"F16\"",
         "\"lm_head.weight\":{\"dtype\":\"I16\"");
    fails(&c, DS_EUNSUPPORTED, "'lm_head.weight' has dtype I16");
}

/* A tensor nobody needs is ignored (with a warning); a stored head beside a tied table is used as it is. */
DS_TEST(extra_tensors_are_ignored)
{
    ds_err err;
    copy c = copy_folder("qwen3-f32");
    edit(&c, "config.json", "\"num_hidden_layers\": 3", "\"num_hidden_layers\": 2");
    edit(&c, "config.json", "\"layer_types\"", "\"ignored\"");
    ds_code code = try_open(&c, &OPTS, &err);
    drop(&c);
    CHECK_OK(code, err);
    c = copy_folder("qwen3-f32");
    edit(&c, "config.json", "\"tie_word_embeddings\": false", "\"tie_word_embeddings\": true");
    ds_model_info p;
    code = ds_model_plan(c.dir, &OPTS, &p, &err);
    drop(&c);
    CHECK_OK(code, err);
    CHECK_EQ(p.weight_mem_bytes, 4 * p.params);
    CHECK(p.params > 2 * 131 * 56);
}

DS_TEST(wrong_rows_are_refused)
{
    golden g;
    ds_err err;
    g_open(&g, "qwen3-bf16-wide", NULL);
    int32_t token = 1, pos = 0, slot = 0, row = 0, far_page = g.kv.pages;
    ds_step_args ok = {
        .rows = {1, &token, &pos, &slot, g.table, g.stride, G_PAGE}, .logit_row = &row, .R = 1};
    ds_step_args a = ok;
    CHECK_OK(ds_model_forward(g.m, &g.kv, &a, &err), err);
    token = g.info->vocab;
    CHECK_EQ(ds_model_forward(g.m, &g.kv, &a, &err), DS_EINVAL);
    CHECK_STR(err.field, "token");
    token = 1;
    pos = g.info->max_positions;
    CHECK_EQ(ds_model_forward(g.m, &g.kv, &a, &err), DS_EINVAL);
    CHECK_STR(err.field, "pos");
    pos = 0;
    a.rows.page_table = &far_page;
    CHECK_EQ(ds_model_forward(g.m, &g.kv, &a, &err), DS_EINVAL);
    CHECK_STR(err.field, "page_table");
    a = ok;
    row = 1;
    CHECK_EQ(ds_model_forward(g.m, &g.kv, &a, &err), DS_EINVAL);
    CHECK_STR(err.field, "logit_row");
    a.rows.T = G_ROWS + 1;
    CHECK_EQ(ds_model_forward(g.m, &g.kv, &a, &err), DS_EINVAL);
    g_close(&g);
}
