/* The draft and the whole speculative loop against DeepSpec itself (tools/golden/make_dspark.py; its head
 * says what the files of tests/golden/pairs hold): features, context vectors and cache, hidden rows, base and
 * corrected logits, confidences, verify logits, greedy rollouts through the engine, rejection decisions.
 *
 * Bounds (docs/models.md). Both sides compute in f32 on the stored weights: EXACT, twenty times the largest
 * error measured over all pairs. With bf16 KV keys and values are rounded, a subset of what DeepSpec's own
 * bf16 run rounds: the error must stay below that run's, stored as bf16_err. Rollouts hang on no decision
 * closer than `margin`, so tokens and accepted lengths must be equal. */
#include "base/rng.h"
#include "tests/lib/accept_ref.h"
#include "tests/lib/level.h"
#include "tests/lib/test.h"
#include "worker/engine.h"
#include "worker/model/safetensors.h"

#include <jansson.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum { PAGE = 16, PAGES = 24, ROWS = 64, MAX_V = 128, MAX_C = 64, MAX_G = 7 };
static const double EXACT = 2e-4;

/* --- the pair ------------------------------------------------------------------------------------------ */

typedef struct pair {
    char name[80];
    json_t *json;
    ds_st st; /* the vectors */
    ds_backend *b;
    ds_model *model;
    ds_draft *draft;
    ds_draft_info info;
    int V, C;
    ds_kv_pool kv, draft_kv;
    int32_t table[PAGES];
    double worst;
    const json_t *low; /* bf16_err: compare with that instead */
    struct {
        const char *what;
        double max, sum, n;
    } err[10]; /* by kind of tensor */
} pair;

/* What the ops of a draft pass saw: hidden rows and base logits of the head's matrix, corrected logits at
 * each draw, the context vector at the first norm. */
static struct {
    ds_backend ops; /* the real ones */
    int V, norms, slots;
    const int32_t *force; /* drafted tokens to go on with */
    float ctx[ROWS * MAX_C], hidden[MAX_G * MAX_C], base[MAX_G * MAX_V], corrected[MAX_G * MAX_V];
} spy;

static ds_code spy_rmsnorm(ds_backend *b, const ds_rmsnorm_args *a)
{
    ds_code code = spy.ops.rmsnorm(b, a);
    if (spy.norms++ == 0)
        memcpy(spy.ctx, a->y, sizeof(float) * (size_t)a->T * (size_t)a->w.n);
    return code;
}

static ds_code spy_linear(ds_backend *b, const ds_linear_args *a)
{
    ds_code code = spy.ops.linear(b, a);
    if (a->w.n == spy.V && !a->accumulate && a->T <= MAX_G) {
        memcpy(spy.hidden, a->x, sizeof(float) * (size_t)a->T * (size_t)a->w.k);
        memcpy(spy.base, a->y, sizeof(float) * (size_t)a->T * (size_t)spy.V);
    }
    return code;
}

static ds_code spy_sample(ds_backend *b, const ds_sample_args *a)
{
    CHECK(a->R == 1 && spy.slots < MAX_G);
    memcpy(spy.corrected + spy.slots * spy.V, a->logits, sizeof(float) * (size_t)spy.V);
    ds_code code = spy.ops.sample(b, a);
    a->out[0].token = spy.force[spy.slots++];
    return code;
}

static void pair_open(pair *p, const char *folder, const char *draft, const char *kv, const char *isa)
{
    char target[256], dir[256], path[512];
    json_error_t je;
    ds_err err = {0};
    *p = (pair){0};
    snprintf(p->name, sizeof p->name, "%s/%s", folder, draft);
    snprintf(target, sizeof target, "%s/tests/golden/pairs/%s/target", DS_SOURCE_DIR, folder);
    snprintf(dir, sizeof dir, "%s/tests/golden/pairs/%s/%s", DS_SOURCE_DIR, folder, draft);
    snprintf(path, sizeof path, "%s/golden/golden.json", dir);
    p->json = json_load_file(path, 0, &je);
    CHECK_MSG(p->json, "%s: %s", path, je.text);
    snprintf(path, sizeof path, "%s/golden", dir);
    CHECK_OK(ds_st_open(path, &p->st, &err), err);
    CHECK_OK(ds_st_map(&p->st, &err), err);
    CHECK_OK(ds_draft_plan(dir, target, &p->info, &err), err);
    ds_model_opts opts = {.max_rows = ROWS,
                          .max_logit_rows = ROWS,
                          .kv_dtype = kv,
                          .taps = p->info.taps,
                          .n_taps = p->info.n_taps};
    CHECK_OK(ds_backend_open("cpu", 1, isa, &p->b, &err), err);
    CHECK_OK(ds_model_open(target, &opts, p->b, &p->model, &err), err);
    CHECK_OK(ds_draft_open(dir, p->model, ROWS, 4, p->b, &p->draft, &err), err);
    CHECK_OK(ds_model_kv_alloc(p->model, PAGES, PAGE, &p->kv, &err), err);
    CHECK_OK(ds_draft_kv_alloc(p->draft, PAGES, PAGE, &p->draft_kv, &err), err);
    p->info = *ds_draft_get_info(p->draft);
    p->V = ds_model_get_info(p->model)->vocab;
    p->C = ds_model_get_info(p->model)->hidden;
    CHECK(p->V <= MAX_V && p->C <= MAX_C && p->info.block <= MAX_G);
    for (int i = 0; i < PAGES; i++)
        p->table[i] = (i * 5 + 3) % PAGES; /* scattered */
    spy.ops = *p->b;
    spy.V = p->V;
}

static void pair_close(pair *p)
{
    ds_draft_kv_free(p->draft, &p->draft_kv);
    ds_model_kv_free(p->model, &p->kv);
    ds_draft_close(p->draft);
    ds_model_close(p->model);
    p->b->destroy(p->b);
    ds_st_close(&p->st);
    json_decref(p->json);
}

static const float *tensor(const pair *p, const char *name, int64_t count)
{
    const ds_st_tensor *t = ds_st_find(&p->st, name);
    CHECK_MSG(t && t->bytes == (uint64_t)count * sizeof(float), "%s: vector %s", p->name, name);
    return t->data;
}

static void near(pair *p, const char *what, const float *want, const float *got, int n)
{
    int k = 0;
    while (p->err[k].what && strcmp(p->err[k].what, what) != 0)
        k++;
    p->err[k].what = what;
    for (int i = 0; i < n; i++) {
        double e = fabs((double)want[i] - (double)got[i]);
        CHECK_MSG(p->low ? isfinite(e) : e <= EXACT, "%s: %s[%d] is %.7g, want %.7g", p->name, what, i,
                  (double)got[i], (double)want[i]);
        p->worst = e > p->worst ? e : p->worst;
        p->err[k].max = e > p->err[k].max ? e : p->err[k].max;
        p->err[k].sum += e;
        p->err[k].n++;
    }
}

static int number(const json_t *o, const char *key)
{
    CHECK_MSG(json_is_integer(json_object_get(o, key)), "%s", key);
    return (int)json_integer_value(json_object_get(o, key));
}

static int ids_of(const json_t *list, int32_t *out, int max)
{
    int n = (int)json_array_size(list);
    CHECK(json_is_array(list) && n <= max);
    for (int i = 0; i < n; i++)
        out[i] = (int32_t)json_integer_value(json_array_get(list, (size_t)i));
    return n;
}

/* --- step by step -------------------------------------------------------------------------------------- */

/* Target pass over n tokens from `start` and the context of the first `keep`; features and context vectors
 * against the vectors. Returns the logits of all rows. */
static const float *step(pair *p, const int32_t *token, int n, int start, int keep, int compared)
{
    ds_err err = {0};
    int32_t pos[ROWS], slot[ROWS] = {0}, all[ROWS];
    int width = p->info.n_taps * p->C;
    for (int i = 0; i < n; i++) {
        pos[i] = start + i;
        all[i] = i;
    }
    ds_step_args a = {.rows = {n, token, pos, slot, p->table, PAGES, PAGE}, .logit_row = all, .R = n};
    CHECK_OK(ds_model_forward(p->model, &p->kv, &a, &err), err);
    a.rows.T = keep;
    spy.norms = 0;
    p->b->rmsnorm = spy_rmsnorm;
    CHECK_OK(ds_draft_context(p->draft, &p->draft_kv, &a.rows, a.taps, all, &err), err);
    p->b->rmsnorm = spy.ops.rmsnorm;
    if (compared) {
        const ds_st_tensor *f = ds_st_find(&p->st, "features");
        int rows = (int)f->shape[0];
        near(p, "features", tensor(p, "features", rows * width) + start * width, a.taps, keep * width);
        near(p, "ctx", tensor(p, "ctx", rows * p->C) + start * p->C, spy.ctx, keep * p->C);
    }
    return a.logits;
}

static void block(pair *p, int j, const json_t *round, const int32_t *draft)
{
    ds_err err = {0};
    int g = p->info.block;
    int32_t anchor = number(round, "anchor"), start = number(round, "start"), slot = 0, token[MAX_G];
    float conf[MAX_G];
    char name[32];
    ds_sample_row row = {.top_p = 1, .repetition = 1};
    ds_draft_batch b = {1, &anchor, &start, &slot, p->table, PAGES, PAGE, &row, token, conf};
    spy.slots = 0;
    spy.force = draft;
    p->b->linear = spy_linear;
    p->b->sample = spy_sample;
    CHECK_OK(ds_draft_block(p->draft, &p->draft_kv, &b, &err), err);
    p->b->linear = spy.ops.linear;
    p->b->sample = spy.ops.sample;
    CHECK_EQ(spy.slots, g);
    snprintf(name, sizeof name, "r%d.hidden", j);
    near(p, "hidden", tensor(p, name, g * p->C), spy.hidden, g * p->C);
    snprintf(name, sizeof name, "r%d.base", j);
    near(p, "base", tensor(p, name, g * p->V), spy.base, g * p->V);
    snprintf(name, sizeof name, "r%d.corrected", j);
    near(p, "corrected", tensor(p, name, g * p->V), spy.corrected, g * p->V);
    snprintf(name, sizeof name, "r%d.conf", j);
    CHECK_EQ(ds_st_find(&p->st, name) != NULL, p->info.confidence);
    if (p->info.confidence)
        near(p, "conf", tensor(p, name, g), conf, g);
    for (int k = 0; k < g && !p->low; k++) /* the greedy block is what DeepSpec drafted */
        for (int v = 0; v < p->V; v++)
            CHECK(v == draft[k] || spy.corrected[k * p->V + v] < spy.corrected[k * p->V + draft[k]]);
}

static float element(const void *x, ds_dtype dtype, size_t at)
{
    uint32_t u = dtype == DS_BF16 ? (uint32_t)((const uint16_t *)x)[at] << 16 : ((const uint32_t *)x)[at];
    float f;
    memcpy(&f, &u, sizeof f);
    return f;
}

static void check_cache(pair *p, int n)
{
    const ds_model_info *m = ds_model_get_info(p->model);
    int G = m->kv_heads, D = m->head_dim, L = p->info.layers;
    const float *k = tensor(p, "cache_k", (int64_t)L * n * G * D),
                *v = tensor(p, "cache_v", (int64_t)L * n * G * D);
    for (int l = 0; l < L; l++)
        for (int t = 0; t < n; t++)
            for (int h = 0; h < G; h++)
                for (int j = 0; j < D; j++, k++, v++) {
                    size_t at =
                        ((size_t)(p->table[t / PAGE] * G + h) * PAGE + (size_t)(t % PAGE)) * (size_t)D +
                        (size_t)j;
                    float got_k = element(p->draft_kv.layer[l].k, m->kv_dtype, at),
                          got_v = element(p->draft_kv.layer[l].v, m->kv_dtype, at);
                    near(p, "cache_k", k, &got_k, 1);
                    near(p, "cache_v", v, &got_v, 1);
                }
}

static void check_rounds(pair *p)
{
    const json_t *rounds = json_object_get(p->json, "rounds"), *round;
    int32_t prompt[ROWS], verify[MAX_G + 1];
    int n = ids_of(json_object_get(p->json, "prompt"), prompt, ROWS), g = p->info.block;
    size_t j;
    step(p, prompt, n, 0, n, 1);
    json_array_foreach(rounds, j, round)
    {
        int last = j + 1 == json_array_size(rounds), accepted = number(round, "accepted");
        char name[32];
        verify[0] = number(round, "anchor");
        CHECK_EQ(ids_of(json_object_get(round, "draft"), verify + 1, MAX_G), g);
        block(p, (int)j, round, verify + 1);
        if (last)
            check_cache(p, number(round, "start"));
        const float *logits = step(p, verify, g + 1, number(round, "start"), accepted + 1, !last);
        snprintf(name, sizeof name, "r%zu.verify", j);
        near(p, "verify", tensor(p, name, (g + 1) * p->V), logits, (g + 1) * p->V);
    }
}

/* --- rollouts through the engine ----------------------------------------------------------------------- */

enum { MAX_ROLLS = 8, MAX_NEW = 64 };
typedef struct roll {
    int32_t token[MAX_NEW], prompt[ROWS], stop;
    int n, round[MAX_NEW], n_rounds;
    ds_finish finish;
} roll;

static void on_event(void *ctx, const ds_event *ev)
{
    roll *r = (roll *)ctx + ev->id;
    CHECK_MSG(ev->kind != DS_EV_ERROR, "%s", ev->msg);
    if (ev->kind == DS_EV_TOKENS) {
        CHECK(r->n + ev->n <= MAX_NEW);
        for (int i = 0; i < ev->n; i++)
            r->token[r->n++] = ev->token[i].token;
        r->round[r->n_rounds++] = ev->n; /* the first is the prompt's own token, no round of DeepSpec's */
    } else if (ev->kind == DS_EV_DONE) {
        r->finish = ev->finish;
    }
}

static void check_roll(const pair *p, const json_t *want, const roll *r)
{
    int32_t token[MAX_NEW], length[MAX_NEW];
    int n = ids_of(json_object_get(want, "tokens"), token, MAX_NEW), left = n - 1;
    int rounds = ids_of(json_object_get(want, "rounds"), length, MAX_NEW);
    CHECK_EQ(r->n, n);
    for (int i = 0; i < n; i++)
        CHECK_MSG(r->token[i] == token[i], "%s: token %d is %d, want %d", p->name, i, r->token[i], token[i]);
    for (int i = 0; i < rounds && left > 0; i++) { /* DeepSpec cuts the last round afterwards */
        int emitted = length[i] < left ? length[i] : left;
        CHECK_MSG(i + 1 < r->n_rounds && r->round[i + 1] == emitted, "%s: round %d accepts %d, want %d",
                  p->name, i, r->round[i + 1], emitted);
        left -= emitted;
    }
    CHECK_EQ(r->finish, r->stop >= 0 ? DS_FINISH_STOP : DS_FINISH_LENGTH);
}

static void check_rollouts(pair *p, int together, ds_acceptance rule)
{
    static roll r[MAX_ROLLS];
    const json_t *list = json_object_get(p->json, "rollouts"), *one;
    ds_engine_conf conf = {.max_seqs = together ? 4 : 1,
                           .max_step_rows = ROWS,
                           .max_logit_rows = ROWS,
                           .max_queue = MAX_ROLLS,
                           .kv_pages = PAGES,
                           .page_tokens = PAGE,
                           .schedule = DS_SCHED_FIXED,
                           .acceptance = rule,
                           .clock = ds_clock_system()};
    ds_engine *e;
    ds_err err = {0};
    size_t i;
    memset(r, 0, sizeof r);
    CHECK_OK(ds_engine_create_drafted(&conf, p->model, p->draft, p->b, on_event, r, &e, &err), err);
    json_array_foreach(list, i, one)
    {
        int n_stop = ids_of(json_object_get(one, "stop"), &r[i].stop, 1);
        ds_req q = {.id = i,
                    .prompt = r[i].prompt,
                    .n_prompt = ids_of(json_object_get(one, "prompt"), r[i].prompt, ROWS),
                    .max_tokens = (int)json_array_size(json_object_get(one, "tokens")) + 9 * n_stop,
                    .top_p = 1,
                    .repetition = 1,
                    .n_logprobs = -1,
                    .prompt_logprobs = -1,
                    .stop_id = &r[i].stop,
                    .n_stop_id = n_stop};
        r[i].stop = n_stop ? r[i].stop : -1;
        CHECK_OK(ds_engine_submit(e, &q, &err), err);
    }
    for (int work = 1; work;)
        CHECK_OK(ds_engine_step(e, &work, &err), err);
    json_array_foreach(list, i, one) check_roll(p, one, &r[i]);
    ds_engine_destroy(e);
}

/* --- rejection sampling -------------------------------------------------------------------------------- */

/* A seed whose acceptance draw at pos is next to DeepSpec's uniform. */
static uint64_t seed_near(float u, int64_t pos)
{
    uint64_t seed = 1;
    while (fabsf(ds_rng_unit(ds_rng_u32(seed, DS_RNG_ACCEPT, (uint64_t)pos, 0)) - u) > 2e-4f)
        seed++;
    return seed;
}

/* One verify row of the sampler: does the draft stand, with DeepSpec's uniform? 2: too close to tell. When it
 * does not, the token must be one that p has more of than q. */
static int stands(pair *p, const float *pk, const float *qk, int32_t x, float u, int64_t pos)
{
    float logits[MAX_V], draft[MAX_V];
    for (int v = 0; v < p->V; v++) {
        logits[v] = logf(pk[v]);
        draft[v] = logf(qk[v]);
    }
    ds_sample_out out;
    ds_sample_row row = {.temperature = 1,
                         .top_p = 1,
                         .repetition = 1,
                         .seed = seed_near(u, pos),
                         .pos = pos,
                         .n_logprobs = -1,
                         .given = -1,
                         .draft = x,
                         .draft_logits = draft};
    ds_sample_args a = {logits, 1, p->V, &row, &out};
    CHECK_EQ(p->b->sample(p->b, &a), DS_OK);
    if (fabsf(u - pk[x] / qk[x]) < 1e-3f)
        return 2;
    CHECK_MSG(out.token == x || pk[out.token] > qk[out.token], "%s: token %d has no residual", p->name,
              out.token);
    return out.token == x;
}

static void check_sampled(pair *p)
{
    const json_t *one;
    size_t j;
    int g = p->info.block, seen[MAX_G + 1] = {0}, kinds = 0, judged = 0, close = 0;
    json_array_foreach(json_object_get(p->json, "sampled"), j, one)
    {
        const float *t[4];
        static const char *const part[] = {"p", "q", "accept_u", "final_u"};
        const int size[] = {(g + 1) * p->V, g * p->V, g, 1};
        int32_t x[MAX_G], token = -1;
        int accepted = number(one, "accepted");
        for (int k = 0; k < 4; k++) {
            char name[32];
            snprintf(name, sizeof name, "s%zu.%s", j, part[k]);
            t[k] = tensor(p, name, size[k]);
        }
        CHECK_EQ(ids_of(json_object_get(one, "draft"), x, MAX_G), g);
        int n = accept_ref_reject(t[0], t[1], x, g, p->V, t[2], t[3][0], &token);
        CHECK_MSG(n == accepted && token == number(one, "token"),
                  "%s: sample %zu: the reference accepts %d and draws %d, DeepSpec %d and %d", p->name, j, n,
                  token, accepted, number(one, "token"));
        for (int k = 0; k < g && k <= accepted; k++, judged++) {
            int yes = stands(p, t[0] + k * p->V, t[1] + k * p->V, x[k], t[2][k], 100 + k);
            CHECK_MSG(yes == 2 || yes == (k < accepted), "%s: sample %zu: draft %d", p->name, j, k);
            close += yes == 2;
        }
        kinds += !seen[n]++;
    }
    CHECK_MSG(j >= 8 && kinds >= 2 && close <= 1, "%s: %zu samples of %d kinds, %d of %d too close", p->name,
              j, kinds, close, judged);
}

/* --- cases --------------------------------------------------------------------------------------------- */

static void check(const char *folder, const char *draft)
{
    static pair p;
    pair_open(&p, folder, draft, "f32", level_exact());
    check_rounds(&p);
    check_sampled(&p);
    check_rollouts(&p, 0, DS_ACCEPT_COUPLED);
    check_rollouts(&p, 1, DS_ACCEPT_COUPLED);
    check_rollouts(&p, 1, DS_ACCEPT_REJECTION);
    printf("  %s: block %d, largest error %.1e\n", p.name, p.info.block, p.worst);
    pair_close(&p);
}

DS_TEST(f32_every_head)
{
    check("f32-heads", "dflash");
    check("f32-heads", "none");
    check("f32-heads", "vanilla");
    check("f32-heads", "vanilla-plain-confidence");
    check("f32-heads", "gated");
    check("f32-heads", "rnn");
}

DS_TEST(f32_biases_and_the_embedding_as_a_tap)
{
    check("f32-bias", "embedding-tap");
    check("f32-bias", "rnn");
}

DS_TEST(bf16_weights)
{
    check("bf16", "vanilla");
    check("bf16", "gated-own");
}

DS_TEST(bf16_yarn_tied)
{
    check("bf16-yarn-tied", "vanilla");
    check("bf16-yarn-tied", "rnn");
}

DS_TEST(released_layout)
{
    check("released", "dspark");
}

/* Errors against those of DeepSpec's own bf16 run; share: what the mean may be of its mean. */
static void closer_than_deepspec(const char *isa, double share)
{
    static const char *const cases[][2] = {
        {"bf16", "vanilla"}, {"bf16", "gated-own"}, {"bf16-yarn-tied", "vanilla"}, {"bf16-yarn-tied", "rnn"}};
    for (int i = 0; i < 4; i++) {
        static pair p;
        double worst = 0;
        pair_open(&p, cases[i][0], cases[i][1], "auto", isa);
        CHECK_EQ(ds_model_get_info(p.model)->kv_dtype, DS_BF16);
        p.low = json_object_get(p.json, "bf16_err");
        CHECK(json_object_size(p.low) >= 8);
        check_rounds(&p);
        for (int k = 0; p.err[k].what; k++) {
            const json_t *e = json_object_get(p.low, p.err[k].what);
            double max = p.err[k].max / json_number_value(json_array_get(e, 0)),
                   mean = p.err[k].sum / p.err[k].n / json_number_value(json_array_get(e, 1));
            CHECK_MSG(max < 1 && mean < share, "%s: error of %s is %.2f (mean %.2f) of DeepSpec's", p.name,
                      p.err[k].what, max, mean);
            worst = max > worst ? max : worst;
        }
        printf("  %s: errors at most %.2f of DeepSpec's own in bf16\n", p.name, worst);
        pair_close(&p);
    }
}

DS_TEST(bf16_kv_is_closer_than_deepspec_in_bf16)
{
    closer_than_deepspec(level_exact(), 0.5);
}

DS_TEST(rounded_activations_are_closer_than_deepspec_in_bf16)
{
    if (!level_rounds())
        ds_test_skip("no level here rounds activations");
    closer_than_deepspec(NULL, 1);
}

DS_TEST(shared_tables_are_kept_once)
{
    static const struct {
        const char *folder, *draft;
        int own;
    } cases[] = {{"f32-heads", "vanilla", 0}, {"f32-heads", "vanilla-plain-confidence", 0},
                 {"f32-heads", "rnn", 1},     {"f32-bias", "rnn", 0},
                 {"bf16", "gated-own", 1},    {"bf16-yarn-tied", "rnn", 0}};
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        static pair p;
        pair_open(&p, cases[i].folder, cases[i].draft, "f32", NULL);
        CHECK_EQ(p.info.own_tables, cases[i].own);
        pair_close(&p);
    }
}
