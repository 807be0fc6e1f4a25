/* The fixed cost of a step: everything but the model. The target does nothing, so what is measured is
 * planning, packing, committing and emitting. Prints; never fails on time. */
#include "base/rng.h"
#include "tests/lib/test.h"
#include "worker/profile.h"
#include "worker/target.h"

#include <stdio.h>
#include <stdlib.h>
#include <time.h>

enum { V = 32000, CONTEXT = 2048, STEPS = 2000 };

static ds_code kv_alloc(void *model, int pages, int page_tokens, ds_kv_pool *ret, ds_err *err)
{
    static ds_kv_layer layer;
    (void)model, (void)err;
    *ret = (ds_kv_pool){&layer, pages, page_tokens};
    return DS_OK;
}

static void kv_free(void *model, ds_kv_pool *kv)
{
    (void)model, (void)kv;
}

static uint64_t g_model_ns; /* what the passes would have taken */

static ds_code forward(void *model, const ds_kv_pool *kv, ds_step_args *a, ds_err *err)
{
    (void)model, (void)kv, (void)err;
    g_model_ns += 10000000 + 8000 * (uint64_t)a->rows.T;
    return DS_OK;
}

static ds_code sample(void *device, const ds_sample_args *a)
{
    (void)device;
    for (int r = 0; r < a->R; r++) {
        a->out[r].token = (int32_t)((a->row[r].pos * 7919 + (int64_t)a->row[r].seed) % V);
        a->out[r].bad = 0;
    }
    return DS_OK;
}

static void on_event(void *ctx, const ds_event *ev)
{
    *(long *)ctx += ev->n;
}

static void measure(int seqs, float repetition)
{
    ds_engine_conf conf = {.max_seqs = seqs,
                           .max_step_rows = 4096,
                           .max_logit_rows = seqs,
                           .max_queue = seqs,
                           .kv_pages = seqs * (CONTEXT + STEPS + 64) / 16,
                           .page_tokens = 16,
                           .prefix_cache = 1,
                           .clock = ds_clock_system()};
    ds_model_info info = {.vocab = V, .max_positions = CONTEXT + STEPS + 64};
    ds_target target = {0, 0, &info, kv_alloc, kv_free, forward, sample};
    ds_engine *e;
    ds_err err = {0};
    long tokens = 0;
    int work;
    CHECK_OK(ds_engine_create_on(&conf, &target, NULL, on_event, &tokens, &e, &err), err);
    int32_t *prompt = calloc(CONTEXT, sizeof *prompt);
    for (int id = 0; id < seqs; id++) {
        for (int i = 0; i < CONTEXT; i++)
            prompt[i] = (i * 31 + id * 17) % V;
        ds_req q = {.id = (uint64_t)id,
                    .prompt = prompt,
                    .n_prompt = CONTEXT,
                    .max_tokens = STEPS + 32,
                    .top_p = 1,
                    .repetition = repetition,
                    .n_logprobs = -1,
                    .prompt_logprobs = -1,
                    .seed = (uint64_t)id};
        CHECK_OK(ds_engine_submit(e, &q, &err), err);
    }
    free(prompt);
    uint64_t t0 = ds_now_ns();
    while (tokens < 2 * seqs)
        CHECK_OK(ds_engine_step(e, &work, &err), err);
    uint64_t t1 = ds_now_ns();
    for (int i = 0; i < STEPS; i++)
        CHECK_OK(ds_engine_step(e, &work, &err), err);
    uint64_t t2 = ds_now_ns();
    printf("  %3d sequences, context %d, penalties %s: prefill %.1f ns/token, decode step %.2f us (%.0f ns a "
           "sequence)\n",
           seqs, CONTEXT, repetition != 1 ? "on " : "off", (double)(t1 - t0) / seqs / CONTEXT,
           (double)(t2 - t1) / STEPS / 1e3, (double)(t2 - t1) / STEPS / seqs);
    ds_engine_destroy(e);
}

/* ---- with a draft that costs nothing: what deciding costs ---- */

enum { BLOCK = 7, DRAFTED_STEPS = 300 };

static ds_code context(void *draft, const ds_kv_pool *kv, const ds_rows *rows, const float *taps,
                       const int32_t *pick, ds_err *err)
{
    (void)draft, (void)kv, (void)rows, (void)taps, (void)pick, (void)err;
    return DS_OK;
}

/* Drafts that are right about four times of five, with confidences all over the place. */
static ds_code propose(void *draft, const ds_kv_pool *kv, const ds_draft_batch *b, ds_err *err)
{
    static uint32_t at;
    (void)draft, (void)kv, (void)err;
    g_model_ns += 500000 + 2000 * (uint64_t)b->R;
    for (int i = 0; i < b->R; i++)
        for (int k = 0; k < BLOCK; k++) {
            int64_t pos = (int64_t)b->start[i] + k + 1;
            uint32_t u = ds_rng_u32(1, DS_RNG_INIT, 0, at++);
            b->token[i * BLOCK + k] = (int32_t)((pos * 7919 + (int64_t)b->row[i].seed + (u % 5 == 0)) % V);
            b->conf[i * BLOCK + k] = ds_rng_unit(u) * 6 - 2;
        }
    return DS_OK;
}

static ds_profile costs(void) /* so that about half of the drafts are worth a row */
{
    return (ds_profile){.n_rows = 4,
                        .rows = {1, 256, 1024, 2048},
                        .n_ctx = 2,
                        .ctx = {512, 8192},
                        .verify = {{.010, .012, .016, .024}, {.012, .020, .04, .08}},
                        .n_reqs = 2,
                        .reqs = {1, 256},
                        .draft = {.0005, .001}};
}

/* Time of this thread alone, since the machine may be busy with others, and of the passes. */
static uint64_t cpu_ns(void *ctx)
{
    struct timespec t;
    (void)ctx;
    clock_gettime(CLOCK_THREAD_CPUTIME_ID, &t);
    return (uint64_t)t.tv_sec * 1000000000u + (uint64_t)t.tv_nsec + g_model_ns;
}

static void measure_drafted(int seqs, ds_sched_kind kind, const char *name)
{
    ds_profile profile = costs();
    ds_engine_conf conf = {.max_seqs = seqs,
                           .max_step_rows = 4096,
                           .max_logit_rows = seqs * (1 + BLOCK),
                           .max_queue = seqs,
                           .kv_pages = seqs * 256,
                           .page_tokens = 16,
                           .schedule = kind,
                           .profile = &profile,
                           .clock = {cpu_ns, NULL}};
    ds_model_info info = {.vocab = V, .max_positions = 4096};
    ds_target target = {0, 0, &info, kv_alloc, kv_free, forward, sample};
    ds_drafter drafter = {0, BLOCK, kv_alloc, kv_free, context, propose};
    ds_engine *e;
    ds_err err = {0};
    long tokens = 0;
    int work;
    CHECK_OK(ds_engine_create_on(&conf, &target, &drafter, on_event, &tokens, &e, &err), err);
    int32_t prompt[64] = {0};
    for (int id = 0; id < seqs; id++) {
        ds_req q = {.id = (uint64_t)id,
                    .prompt = prompt,
                    .n_prompt = 64,
                    .max_tokens = 4000,
                    .top_p = 1,
                    .repetition = 1,
                    .n_logprobs = -1,
                    .prompt_logprobs = -1,
                    .seed = (uint64_t)id};
        CHECK_OK(ds_engine_submit(e, &q, &err), err);
    }
    while (tokens < 2 * seqs)
        CHECK_OK(ds_engine_step(e, &work, &err), err);
    ds_engine_stats a, b;
    ds_engine_get_stats(e, &a);
    uint64_t model_ns = g_model_ns;
    for (int i = 0; i < DRAFTED_STEPS; i++)
        CHECK_OK(ds_engine_step(e, &work, &err), err);
    ds_engine_get_stats(e, &b);
    double steps = (double)(b.steps - a.steps);
    CHECK(b.spec.verified - a.spec.verified > (uint64_t)(seqs * DRAFTED_STEPS));
    printf(
        "  %3d sequences, block %d, %-10s: deciding %.1f us a step, whole step without the models %.1f us\n",
        seqs, BLOCK, name, (double)(b.spec.sched_ns - a.spec.sched_ns) / steps / 1e3,
        (double)(b.busy_ns - a.busy_ns - (g_model_ns - model_ns)) / steps / 1e3);
    ds_engine_destroy(e);
}

DS_TEST(deciding)
{
    static const int seqs[] = {1, 32, 256};
    for (int i = 0; i < 3; i++) {
        measure_drafted(seqs[i], DS_SCHED_GLOBAL, "global");
        measure_drafted(seqs[i], DS_SCHED_EARLY_STOP, "early-stop");
        measure_drafted(seqs[i], DS_SCHED_STALE, "stale");
    }
}

DS_TEST(step_overhead)
{
    static const int seqs[] = {1, 8, 32, 256};
    for (int i = 0; i < 4; i++) {
        measure(seqs[i], 1.0f);
        measure(seqs[i], 1.1f);
    }
}
