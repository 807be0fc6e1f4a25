/* bench_loop: the engine with the device loop over any pair of folders, with synthetic acceptance: tokens per
 * second of 1 to max users, with and without drafts, and how much of the time lies between the graphs.
 *
 * Usage: bench_loop DEVICE TARGET DRAFT MAX_USERS TOKENS [HOST]    HOST: also the ordinary step, for
 * comparison Each user: a prompt of 16 tokens, TOKENS tokens at temperature 0. Odds per draft position are
 * those of the paper's figure 2: code and math (tau 5.5), chat (tau 3.6). */
#include "worker/engine.h"
#include "worker/loop.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum { PROMPT = 16, MAX_USERS = 512 };

typedef struct bench {
    ds_backend *b;
    ds_model *m;
    ds_draft *draft;
    int users, tokens, block, done;
} bench;

typedef struct result { /* of the stretch in which all users decode */
    double seconds;
    ds_engine_stats s; /* differences */
} result;

static void die(const ds_err *err)
{
    fprintf(stderr, "bench_loop: %s\n", err->msg);
    exit(1);
}

static void on_event(void *ctx, const ds_event *ev)
{
    bench *x = ctx;
    if (ev->kind == DS_EV_ERROR) {
        fprintf(stderr, "bench_loop: request %d: %s\n", (int)ev->id, ev->msg);
        exit(1);
    }
    x->done += ev->kind == DS_EV_DONE;
}

static void open_pair(bench *x, const char *device, const char *target, const char *draft)
{
    ds_err err = {0};
    ds_draft_info di;
    if (ds_backend_open(device, 0, NULL, &x->b, &err) != DS_OK ||
        ds_draft_plan(draft, target, &di, &err) != DS_OK)
        die(&err);
    x->block = di.block;
    int rows = x->users * (1 + di.block);
    rows = rows > 256 ? rows : 256;
    ds_model_opts opts = {.max_rows = rows,
                          .max_logit_rows = rows,
                          .max_positions = 4096,
                          .taps = di.taps,
                          .n_taps = di.n_taps};
    if (ds_model_open(target, &opts, x->b, &x->m, &err) != DS_OK ||
        ds_draft_open(draft, x->m, rows, x->users, x->b, &x->draft, &err) != DS_OK)
        die(&err);
}

static void submit_all(bench *x, ds_engine *e, int users)
{
    int32_t prompt[PROMPT];
    ds_err err = {0};
    for (int id = 0; id < users; id++) {
        for (int i = 0; i < PROMPT; i++)
            prompt[i] = (id * 31 + i * 7) % ds_model_get_info(x->m)->vocab;
        ds_req q = {.id = (uint64_t)id,
                    .prompt = prompt,
                    .n_prompt = PROMPT,
                    .max_tokens = x->tokens,
                    .top_p = 1,
                    .repetition = 1,
                    .seed = (uint64_t)id,
                    .n_logprobs = -1,
                    .prompt_logprobs = -1,
                    .ignore_eos = 1};
        if (ds_engine_submit(e, &q, &err) != DS_OK)
            die(&err);
    }
}

/* From the first step in which all decode to the last before somebody ends. */
static result run(bench *x, ds_engine *e, int users)
{
    ds_err err = {0};
    ds_engine_stats before, now;
    ds_clock clock = ds_clock_system();
    int work = 1;
    x->done = 0;
    submit_all(x, e, users);
    for (int i = 0; i < 6; i++) /* prefill and the first rounds */
        if (ds_engine_step(e, &work, &err) != DS_OK)
            die(&err);
    ds_engine_get_stats(e, &before);
    now = before;
    uint64_t began = ds_clock_ns(clock), ended = began;
    while (!x->done) {
        ended = ds_clock_ns(clock);
        ds_engine_get_stats(e, &now);
        if (ds_engine_step(e, &work, &err) != DS_OK)
            die(&err);
    }
    while (work)
        if (ds_engine_step(e, &work, &err) != DS_OK)
            die(&err);
    now.output_tokens -= before.output_tokens;
    now.steps -= before.steps;
    now.spec.passes -= before.spec.passes;
    now.spec.verified -= before.spec.verified;
    return (result){(double)(ended - began) * 1e-9, now};
}

static ds_engine *open_engine(bench *x, const double *odds, int loop)
{
    ds_engine *e;
    ds_err err = {0};
    ds_engine_conf c = {.max_seqs = x->users,
                        .max_step_rows = x->users * 8 > 256 ? x->users * 8 : 256,
                        .max_logit_rows = x->users * 8 > 256 ? x->users * 8 : 256,
                        .max_queue = MAX_USERS,
                        .kv_pages = x->users * ((PROMPT + x->tokens + 64) / 16 + 1),
                        .page_tokens = 16,
                        .spec = odds ? DS_SPEC_AUTO : DS_SPEC_OFF,
                        .synthetic = odds,
                        .device_loop = loop,
                        .clock = ds_clock_system()};
    if (ds_engine_create_drafted(&c, x->m, odds ? x->draft : NULL, x->b, on_event, x, &e, &err) != DS_OK)
        die(&err);
    return e;
}

static void print_costs(const ds_engine *e)
{
    ds_loop_costs c;
    if (!ds_engine_get_loop_costs(e, &c))
        return;
    printf("graph costs, ms: verify");
    for (int i = 0; i < c.n_rows; i++)
        printf(" %d:%.3f", c.rows[i], 1e3 * c.verify[i]);
    printf(" draft");
    for (int i = 0; i < c.n_reqs; i++)
        printf(" %d:%.3f", c.reqs[i], 1e3 * c.draft[i]);
    printf("\n");
}

static void row(bench *x, const char *name, const double *odds, int loop)
{
    ds_engine *e = open_engine(x, odds, loop);
    if (loop)
        print_costs(e);
    for (int users = 1; users <= x->users; users *= users < 16 ? 4 : 2) {
        result r = run(x, e, users);
        double tokens = (double)r.s.output_tokens, steps = r.s.steps ? (double)r.s.steps : 1;
        printf("%-6s %s users %3d: %8.0f tokens/s, %7.1f per user, tau %.2f, drafts/step %.1f, step %.3f ms, "
               "%d of %d drafted\n",
               name, loop ? "loop" : "host", users, tokens / r.seconds, tokens / r.seconds / users,
               tokens / steps / users, (double)r.s.spec.verified / steps, 1e3 * r.seconds / steps,
               (int)r.s.spec.passes, (int)r.s.steps);
        fflush(stdout);
    }
    ds_engine_destroy(e);
}

int main(int argc, char **argv)
{
    static const double code[] = {0.905, 0.89, 0.885, 0.88, 0.88, 0.88, 0.88};
    static const double chat[] = {0.78, 0.75, 0.73, 0.72, 0.72, 0.72, 0.72};
    static bench x;
    if (argc < 6) {
        fprintf(stderr, "usage: bench_loop DEVICE TARGET DRAFT MAX_USERS TOKENS [HOST]\n");
        return 64;
    }
    x.users = atoi(argv[4]);
    x.tokens = atoi(argv[5]);
    if (x.users < 1 || x.users > MAX_USERS || x.tokens < 32) {
        fprintf(stderr, "bench_loop: MAX_USERS 1..%d, TOKENS from 32\n", MAX_USERS);
        return 64;
    }
    open_pair(&x, argv[1], argv[2], argv[3]);
    if (x.block > 7) {
        fprintf(stderr, "bench_loop: odds are known for blocks up to 7\n");
        return 64;
    }
    printf("%s, %d tokens each\n", x.b->detail, x.tokens);
    row(&x, "plain", NULL, 1);
    row(&x, "code", code, 1);
    row(&x, "chat", chat, 1);
    if (argc > 6) {
        row(&x, "plain", NULL, 0);
        row(&x, "code", code, 0);
    }
    ds_draft_close(x.draft);
    ds_model_close(x.m);
    x.b->destroy(x.b);
    return 0;
}
