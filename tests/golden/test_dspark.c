/* The draft's forward pass against the tiny golden vectors: context K/V, tokens of all four heads,
 * confidences, the target's verify logits, over three rounds with forced acceptance 2, 0 and 3. F32 weights
 * and KV; bound 1e-4 against float64 (the vectors are rounded to 7 digits; measured differences are below
 * 4e-6). */
#include "worker/model/draft.h"

#include "tests/lib/test.h"
#include "tests/lib/tiny_pair.h"

#include <jansson.h>
#include <math.h>
#include <unistd.h>

enum { PAGE = 16, PAGES = 4 };
static const double BOUND = 1e-4;

typedef struct pair {
    char dir[64], target_dir[80], draft_dir[80];
    ds_backend *b;
    ds_model *model;
    ds_draft *draft;
    ds_kv_pool kv, draft_kv;
    int32_t table[PAGES];
} pair;

static void pair_open(pair *p, const char *head)
{
    ds_err err = {0};
    *p = (pair){.table = {2, 0, 3, 1}};
    snprintf(p->dir, sizeof p->dir, "%s", "/tmp/dspark-tiny-XXXXXX");
    CHECK(mkdtemp(p->dir) != NULL);
    snprintf(p->target_dir, sizeof p->target_dir, "%s/target", p->dir);
    snprintf(p->draft_dir, sizeof p->draft_dir, "%s/draft", p->dir);
    tiny_write_target(p->target_dir);
    tiny_write_draft(p->draft_dir, head, "");
    ds_draft_info info;
    CHECK_OK(ds_draft_plan(p->draft_dir, p->target_dir, &info, &err), err);
    CHECK_EQ(info.block, 3);
    ds_model_opts opts = {.max_rows = 16, .max_logit_rows = 16, .taps = info.taps, .n_taps = info.n_taps};
    CHECK_OK(ds_backend_open("cpu", 1, NULL, &p->b, &err), err);
    CHECK_OK(ds_model_open(p->target_dir, &opts, p->b, &p->model, &err), err);
    CHECK_OK(ds_draft_open(p->draft_dir, p->model, 16, 2, p->b, &p->draft, &err), err);
    CHECK_OK(ds_model_kv_alloc(p->model, PAGES, PAGE, &p->kv, &err), err);
    CHECK_OK(ds_draft_kv_alloc(p->draft, PAGES, PAGE, &p->draft_kv, &err), err);
}

static void pair_close(pair *p)
{
    char cmd[128];
    ds_draft_kv_free(p->draft, &p->draft_kv);
    ds_model_kv_free(p->model, &p->kv);
    ds_draft_close(p->draft);
    ds_model_close(p->model);
    p->b->destroy(p->b);
    snprintf(cmd, sizeof cmd, "rm -rf '%s'", p->dir);
    CHECK_EQ(system(cmd), 0);
}

static void near(const json_t *want, const float *got, const char *what)
{
    for (size_t i = 0; i < json_array_size(want); i++)
        CHECK_MSG(fabs(json_number_value(json_array_get(want, i)) - (double)got[i]) < BOUND,
                  "%s[%zu] is %g, want %g", what, i, (double)got[i],
                  json_number_value(json_array_get(want, i)));
}

/* Target pass over n tokens from position `start`, logits of all rows; then context of the first `keep` rows.
 */
static const float *step(pair *p, const int32_t *token, int n, int start, int keep)
{
    ds_err err = {0};
    int32_t pos[16], slot[16] = {0}, all[16];
    for (int i = 0; i < n; i++) {
        pos[i] = start + i;
        all[i] = i;
    }
    ds_step_args a = {.rows = {n, token, pos, slot, p->table, PAGES, PAGE}, .logit_row = all, .R = n};
    CHECK_OK(ds_model_forward(p->model, &p->kv, &a, &err), err);
    a.rows.T = keep;
    CHECK_OK(ds_draft_context(p->draft, &p->draft_kv, &a.rows, a.taps, all, &err), err);
    return a.logits;
}

static void check_context(const pair *p, const json_t *g)
{
    const json_t *k = json_object_get(g, "draft_ctx_k_after_rope"), *v = json_object_get(g, "draft_ctx_v");
    for (size_t l = 0; l < 2; l++)
        for (size_t t = 0; t < 5; t++) {
            size_t at = ((size_t)p->table[0] * PAGE + t) * TINY_D;
            near(json_array_get(json_array_get(k, l), t), (float *)p->draft_kv.layer[l].k + at, "context K");
            near(json_array_get(json_array_get(v, l), t), (float *)p->draft_kv.layer[l].v + at, "context V");
        }
}

static void run(const char *head)
{
    json_error_t je;
    json_t *g = json_load_file(DS_SOURCE_DIR "/tests/golden/dspark/tiny.json", 0, &je);
    CHECK_MSG(g != NULL, "%s", je.text);
    static const int32_t prompt[] = {3, 17, 8, 25, 11};
    pair p;
    pair_open(&p, head);
    const float *logits = step(&p, prompt, 5, 0, 5);
    near(json_object_get(json_object_get(g, "prefill"), "logits_last_row"), logits + 4 * TINY_V,
         "prefill logits");
    check_context(&p, g);

    ds_err err = {0};
    size_t i;
    json_t *round;
    json_array_foreach(json_object_get(g, "rounds"), i, round)
    {
        int32_t anchor = (int32_t)json_integer_value(json_object_get(round, "anchor")), verify[4],
                token[2 * 3];
        int32_t start = (int32_t)json_integer_value(json_object_get(round, "start")), slot = 0;
        float conf[2 * 3];
        ds_sample_row row = {.top_p = 1, .repetition = 1};
        ds_draft_batch b = {1, &anchor, &start, &slot, p.table, PAGES, PAGE, &row, token, conf};
        CHECK_OK(ds_draft_block(p.draft, &p.draft_kv, &b, &err), err);
        const json_t *want = json_object_get(json_object_get(round, head), "tokens");
        for (size_t k = 0; k < 3; k++)
            CHECK_EQ(token[k], json_integer_value(json_array_get(want, k)));
        if (strcmp(head, "vanilla") == 0)
            near(json_object_get(round, "confidence_logits"), conf, "confidence");
        if (strcmp(head, "none") == 0)
            CHECK(conf[0] == 30.0f && conf[2] == 30.0f);
        for (size_t k = 0; k < 4; k++)
            verify[k] = (int32_t)json_integer_value(json_array_get(json_object_get(round, "verify_ids"), k));
        int keep = 1 + (int)json_integer_value(json_object_get(round, "forced_accepted"));
        logits = step(&p, verify, 4, start, keep);
        for (size_t k = 0; k < 4; k++)
            near(json_array_get(json_object_get(round, "verify_logits"), k), logits + k * TINY_V,
                 "verify logits");
    }
    pair_close(&p);
    json_decref(g);
}

DS_TEST(head_none)
{
    run("none");
}

DS_TEST(head_vanilla)
{
    run("vanilla");
}

DS_TEST(head_gated)
{
    run("gated");
}

DS_TEST(head_rnn)
{
    run("rnn");
}

/* A request's block does not change with its neighbours, and context beyond `start` is never read. */
DS_TEST(block_alone_and_in_company)
{
    static const int32_t prompt[] = {3, 17, 8, 25, 11};
    pair p;
    ds_err err = {0};
    pair_open(&p, "vanilla");
    step(&p, prompt, 5, 0, 5);
    int32_t anchor[2] = {7, 5}, start[2] = {3, 5}, slot[2] = {1, 0}, alone[3], both[6];
    int32_t table[2 * PAGES] = {2, 0, 3, 1, 2, 0, 3, 1}; /* slot 1 writes its block to page 3 */
    table[PAGES] = 3;
    float conf[3], conf2[6];
    float *k = p.draft_kv.layer[0].k;
    for (int i = 0; i < 11 * TINY_D; i++)
        k[(2 * PAGE + 5) * TINY_D + i] = NAN; /* positions 5.. of slot 0's page */
    ds_sample_row row[2] = {{.temperature = 1, .top_p = 1, .repetition = 1, .seed = 9},
                            {.temperature = 1, .top_p = 1, .repetition = 1, .seed = 4}};
    ds_draft_batch one = {1, anchor + 1, start + 1, slot + 1, table, PAGES, PAGE, row + 1, alone, conf};
    CHECK_OK(ds_draft_block(p.draft, &p.draft_kv, &one, &err), err);
    ds_draft_batch two = {2, anchor, start, slot, table, PAGES, PAGE, row, both, conf2};
    CHECK_OK(ds_draft_block(p.draft, &p.draft_kv, &two, &err), err);
    CHECK(memcmp(alone, both + 3, sizeof alone) == 0);
    CHECK(memcmp(conf, conf2 + 3, sizeof conf) == 0);
    for (int i = 0; i < 3; i++)
        CHECK(isfinite(conf[i]));
    pair_close(&p);
}

static void refused(const char *extra, const char *field)
{
    pair p;
    ds_err err = {0};
    ds_draft_info info;
    char dir[100], cmd[128];
    pair_open(&p, "vanilla");
    snprintf(dir, sizeof dir, "%s/bad", p.dir);
    tiny_write_draft(dir, "vanilla", "");
    snprintf(cmd, sizeof cmd, "sed -i 's/%s/' %s/config.json", extra, dir);
    CHECK_EQ(system(cmd), 0);
    CHECK(ds_draft_plan(dir, p.target_dir, &info, &err) != DS_OK);
    CHECK_STR(err.field, field);
    pair_close(&p);
}

DS_TEST(drafts_that_do_not_fit_are_refused)
{
    refused("\"vocab_size\":40/\"vocab_size\":41", "vocab_size");
    refused("\"num_target_layers\":4/\"num_target_layers\":5", "num_target_layers");
    refused("\\[0,2\\]/[0,3]", "target_layer_ids");
    refused("\\[0,2\\]/[2,0]", "target_layer_ids");
    refused("\"block_size\":3/\"block_size\":99", "block_size");
    refused("\"mask_token_id\":39/\"mask_token_id\":40", "mask_token_id");
    refused("\"head_dim\":4/\"head_dim\":8", "head_dim");
    refused("vanilla/other", "markov_head_type");
    refused("Qwen3DSparkModel/Qwen3ForCausalLM", "architectures");
}
