/* The fixed cost of a step: everything but the model. The target does nothing, so what is measured is
 * planning, packing, committing and emitting. Prints; never fails on time. */
#include "tests/lib/test.h"
#include "worker/target.h"

#include <stdio.h>
#include <stdlib.h>

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

static ds_code forward(void *model, const ds_kv_pool *kv, ds_step_args *a, ds_err *err)
{
    (void)model, (void)kv, (void)a, (void)err;
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

DS_TEST(step_overhead)
{
    static const int seqs[] = {1, 8, 32, 256};
    for (int i = 0; i < 4; i++) {
        measure(seqs[i], 1.0f);
        measure(seqs[i], 1.1f);
    }
}
