/* The device loop on a tiny pair: requests join, leave, are cancelled and end while rounds are in flight,
 * their pages changing hands, and every token equals what the engine gives the request alone. */
#include "base/rng.h"
#include "tests/lib/test.h"
#include "tests/lib/tiny_pair.h"
#include "worker/engine.h"
#include "worker/loop.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum {
    N = 40,
    S = 6,
    MAX_PROMPT = 48,
    MAX_OUT = 64,
    ROWS = 128,
    PAGES = 36,
    PT = 16,
    MAX_LEN = 112,
    STRIDE = 7
};

typedef struct ask {
    int32_t prompt[MAX_PROMPT], stop[2], want[MAX_OUT];
    int n_want, n, slot, done, cancelled; /* n: tokens got; slot -1: not running */
    ds_finish finish;
    ds_req q;
} ask;

typedef struct house {
    char dir[64];
    ds_backend *b;
    ds_model *m;
    ds_draft *draft;
    ds_kv_pool kv, draft_kv;
    ds_loop *loop;
    ask ask[N];
    int who[S]; /* request of each slot, -1: free */
    int32_t table[S * STRIDE];
    int n_pages[S], n_free;
    int32_t free_page[PAGES];
    int rounds, verified, accepted, checked, progress;
    uint32_t dice_at, seed;
} house;

static uint32_t dice(house *h, uint32_t n)
{
    return ds_rng_u32(h->seed, DS_RNG_INIT, h->dice_at++, 0) % n;
}

/* ---- what each request gives alone, by the ordinary engine ---- */

static void on_event(void *ctx, const ds_event *ev)
{
    ask *a = &((house *)ctx)->ask[ev->id];
    if (ev->kind == DS_EV_TOKENS)
        for (int i = 0; i < ev->n; i++)
            a->want[a->n_want++] = ev->token[i].token;
    else
        a->finish = ev->finish;
}

static void make_asks(house *h)
{
    for (int id = 0; id < N; id++) {
        ask *a = &h->ask[id];
        int n = 1 + (id * 19) % MAX_PROMPT;
        for (int i = 0; i < n; i++)
            a->prompt[i] = (i * i * 7 + i * 13 + id * 101) % TINY_V;
        a->stop[0] = id % TINY_V;
        a->stop[1] = (id * 3 + 1) % TINY_V;
        a->slot = -1;
        a->q = (ds_req){.id = (uint64_t)id,
                        .prompt = a->prompt,
                        .n_prompt = n,
                        .max_tokens = 1 + (id * 11) % MAX_OUT,
                        .min_tokens = id % 4 == 1 ? 12 : 0,
                        .temperature = id % 3 == 0 ? 0.0f : 0.3f * (float)(id % 5),
                        .top_p = id % 5 == 1 ? 0.9f : 1.0f,
                        .min_p = id % 7 == 3 ? 0.05f : 0.0f,
                        .top_k = id % 6 == 2 ? 5 : 0,
                        .repetition = 1,
                        .seed = 500u + (uint64_t)id,
                        .stop_id = a->stop,
                        .n_stop_id = id % 3,
                        .n_logprobs = -1,
                        .prompt_logprobs = -1};
    }
}

static void ask_alone(house *h)
{
    ds_engine_conf conf = {.max_seqs = 1,
                           .max_step_rows = ROWS,
                           .max_queue = 1,
                           .kv_pages = STRIDE,
                           .page_tokens = PT,
                           .clock = ds_clock_system()};
    for (int id = 0; id < N; id++) {
        ds_engine *e;
        ds_err err = {0};
        CHECK_OK(ds_engine_create(&conf, h->m, h->b, on_event, h, &e, &err), err);
        CHECK_OK(ds_engine_submit(e, &h->ask[id].q, &err), err);
        for (int work = 1; work;)
            CHECK_OK(ds_engine_step(e, &work, &err), err);
        ds_engine_destroy(e);
        CHECK(h->ask[id].n_want > 0);
    }
}

/* ---- the loop's house ---- */

static void open_house(house *h, const char *backend, const char *head)
{
    static const int taps[] = {0, 2};
    ds_err err = {0};
    char target[80], draft[80];
    memset(h, 0, sizeof *h);
    strcpy(h->dir, "/tmp/dspark-loop-XXXXXX");
    ds_code code =
        ds_backend_open(backend, 1, strcmp(backend, "cuda") == 0 ? "invariant" : NULL, &h->b, &err);
    if (code != DS_OK && strcmp(backend, "cpu") != 0)
        ds_test_skip(err.msg);
    CHECK_OK(code, err);
    CHECK(mkdtemp(h->dir) != NULL);
    snprintf(target, sizeof target, "%s/target", h->dir);
    snprintf(draft, sizeof draft, "%s/draft", h->dir);
    tiny_write_target(target);
    ds_model_opts opts = {.max_rows = ROWS, .max_logit_rows = ROWS, .taps = taps, .n_taps = head ? 2 : 0};
    CHECK_OK(ds_model_open(target, &opts, h->b, &h->m, &err), err);
    if (head) {
        tiny_write_draft(draft, head, "");
        CHECK_OK(ds_draft_open(draft, h->m, ROWS, S, h->b, &h->draft, &err), err);
        CHECK_OK(ds_draft_kv_alloc(h->draft, PAGES + 1, PT, &h->draft_kv, &err), err);
    }
    CHECK_OK(ds_model_kv_alloc(h->m, PAGES + 1, PT, &h->kv, &err), err);
    make_asks(h);
    ask_alone(h);
    for (int s = 0; s < S; s++)
        h->who[s] = -1;
    for (int i = 0; i < PAGES; i++)
        h->free_page[h->n_free++] = i;
}

static void on_progress(void *ctx, int done, int total)
{
    house *h = ctx;
    CHECK(done == h->progress + 1 && done <= total);
    h->progress = done;
}

static ds_loop_conf loop_conf(house *h)
{
    return (ds_loop_conf){.b = h->b,
                          .model = h->m,
                          .draft = h->draft,
                          .kv = &h->kv,
                          .draft_kv = &h->draft_kv,
                          .max_seats = S,
                          .max_rows = 24,
                          .max_len = MAX_LEN,
                          .page_stride = STRIDE,
                          .null_page = PAGES,
                          .progress = on_progress,
                          .ctx = h};
}

static void close_house(house *h)
{
    char cmd[96];
    ds_loop_destroy(h->loop);
    if (h->draft) {
        ds_draft_kv_free(h->draft, &h->draft_kv);
        ds_draft_close(h->draft);
    }
    ds_model_kv_free(h->m, &h->kv);
    ds_model_close(h->m);
    h->b->destroy(h->b);
    snprintf(cmd, sizeof cmd, "rm -rf '%s'", h->dir);
    CHECK_EQ(system(cmd), 0);
}

/* Pages for so many tokens of a slot; tell: the loop has the slot's table and hears of changes. */
static int reserve(house *h, int slot, int tokens, int tell)
{
    while (h->n_pages[slot] * PT < tokens) {
        if (!h->n_free)
            return 0;
        int at = (int)dice(h, (uint32_t)h->n_free), index = h->n_pages[slot]++;
        int32_t page = h->free_page[at];
        h->free_page[at] = h->free_page[--h->n_free];
        h->table[slot * STRIDE + index] = page;
        if (tell)
            ds_loop_page(h->loop, slot, index, page);
    }
    return 1;
}

static void leave(house *h, int slot)
{
    ask *a = &h->ask[h->who[slot]];
    for (int i = 0; i < h->n_pages[slot]; i++)
        h->free_page[h->n_free++] = h->table[slot * STRIDE + i];
    h->n_pages[slot] = 0;
    h->who[slot] = -1;
    a->slot = -1;
    a->done = 1;
}

/* The newest tokens must be the ones of the request alone, and the end its end. */
static void got(house *h, ask *a, const int32_t *token, int n, int state)
{
    for (int i = 0; i < n; i++, a->n++)
        CHECK_MSG(a->n < a->n_want && token[i] == a->want[a->n], "request %d: token %d is %d, alone %d",
                  (int)a->q.id, a->n, token[i], a->n < a->n_want ? a->want[a->n] : -1);
    int want = a->n < a->n_want                ? DS_SEAT_LIVE
               : a->finish == DS_FINISH_STOP   ? DS_SEAT_STOPPED
               : a->finish == DS_FINISH_LENGTH ? DS_SEAT_FULL
                                               : DS_SEAT_BAD;
    CHECK_MSG(state == want, "request %d: state %d after %d of %d tokens", (int)a->q.id, state, a->n,
              a->n_want);
    if (state != DS_SEAT_LIVE)
        leave(h, a->slot);
}

static void collect(house *h)
{
    const ds_round_out *o;
    int n;
    ds_err err = {0};
    CHECK_OK(ds_loop_collect(h->loop, &o, &n, &err), err);
    h->rounds++;
    for (int i = 0; i < n; i++) {
        int id = h->who[o[i].seat];
        if (id < 0) { /* it ended or was cancelled when this round was already on its way */
            continue;
        }
        CHECK(o[i].n_accepted <= o[i].n_verify && o[i].n_verify <= TINY_BLOCK && o[i].n >= 1);
        h->verified += o[i].n_verify;
        h->accepted += o[i].n_accepted;
        got(h, &h->ask[id], o[i].token, o[i].n, o[i].state);
    }
}

static void drain(house *h)
{
    while (ds_loop_in_flight(h->loop))
        collect(h);
}

/* Prefill as the engine does it: one step of the host, then the draft's context. Returns the first token. */
static int32_t prefill(house *h, const ask *a)
{
    int n = a->q.n_prompt;
    int32_t pos[MAX_PROMPT], slot[MAX_PROMPT], last = n - 1;
    ds_err err = {0};
    for (int i = 0; i < n; i++) {
        pos[i] = i;
        slot[i] = a->slot;
    }
    ds_step_args step = {.rows = {n, a->prompt, pos, slot, h->table, STRIDE, PT}, .logit_row = &last, .R = 1};
    CHECK_OK(ds_model_forward(h->m, &h->kv, &step, &err), err);
    if (h->draft)
        CHECK_OK(ds_draft_context(h->draft, &h->draft_kv, &step.rows, step.taps, pos, &err), err);
    ds_sample_row row = {.temperature = a->q.temperature,
                         .top_p = a->q.top_p,
                         .min_p = a->q.min_p,
                         .top_k = a->q.top_k,
                         .repetition = 1,
                         .seed = a->q.seed,
                         .pos = n,
                         .banned = a->stop,
                         .n_banned = a->q.n_stop_id,
                         .banned_until = n + a->q.min_tokens,
                         .n_logprobs = -1,
                         .given = -1};
    ds_sample_out out;
    CHECK(h->b->sample(h->b, &(ds_sample_args){step.logits, 1, TINY_V, &row, &out}) == DS_OK);
    return out.token;
}

static void join(house *h, ask *a, int slot)
{
    ds_err err = {0};
    drain(h);
    if (!reserve(h, slot, a->q.n_prompt + 1, 0)) {
        for (; h->n_pages[slot] > 0;)
            h->free_page[h->n_free++] = h->table[slot * STRIDE + --h->n_pages[slot]];
        return;
    }
    h->who[slot] = (int)a->q.id;
    a->slot = slot;
    int32_t first = prefill(h, a);
    got(h, a, &first, 1,
        a->n_want == 1 ? (a->finish == DS_FINISH_STOP ? DS_SEAT_STOPPED : DS_SEAT_FULL) : DS_SEAT_LIVE);
    if (a->done)
        return;
    int end = a->q.n_prompt + a->q.max_tokens;
    ds_seat seat = {.seed = a->q.seed,
                    .state = DS_SEAT_LIVE,
                    .anchor = first,
                    .start = a->q.n_prompt,
                    .end = end < MAX_LEN + 1 ? end : MAX_LEN + 1,
                    .min_pos = a->q.n_prompt + a->q.min_tokens,
                    .max_draft = a->q.id % 9 == 8   ? 0
                                 : a->q.id % 9 == 7 ? 2
                                                    : TINY_BLOCK,
                    .eager = a->q.id % 2,
                    .temperature = a->q.temperature,
                    .top_p = a->q.top_p,
                    .min_p = a->q.min_p,
                    .top_k = a->q.top_k,
                    .n_stop = a->q.n_stop_id};
    memcpy(seat.stop, a->stop, sizeof a->stop);
    CHECK_OK(ds_loop_enter(h->loop, slot, &seat, h->table + slot * STRIDE, h->n_pages[slot], &err), err);
}

/* Target and draft see the tokens of slot s before its newest anew, as after a preemption. */
static void compute_again(house *h, int s, int n)
{
    const ask *a = &h->ask[h->who[s]];
    int32_t token[MAX_LEN], pos[MAX_LEN], slot[MAX_LEN];
    ds_err err = {0};
    for (int i = 0; i < n; i++) {
        token[i] = i < a->q.n_prompt ? a->prompt[i] : a->want[i - a->q.n_prompt];
        pos[i] = i;
        slot[i] = s;
    }
    ds_step_args step = {.rows = {n, token, pos, slot, h->table, STRIDE, PT}};
    CHECK_OK(ds_model_forward(h->m, &h->kv, &step, &err), err);
    CHECK_OK(ds_draft_context(h->draft, &h->draft_kv, &step.rows, step.taps, pos, &err), err);
}

/* The drafts on offer must be those of a pass driven by the host over a fresh context: one that the rounds
 * left stale, or a row of another request, shows here. */
static void check_drafts(house *h, int s, const ds_seat *q)
{
    compute_again(h, s, q->start);
    int32_t token[TINY_BLOCK], slot = s;
    float conf[TINY_BLOCK];
    ds_err err = {0};
    ds_sample_row row = {.temperature = q->temperature,
                         .top_p = q->top_p,
                         .min_p = q->min_p,
                         .top_k = q->top_k,
                         .repetition = 1,
                         .seed = q->seed,
                         .banned = q->stop,
                         .n_banned = q->n_stop,
                         .banned_until = q->min_pos};
    ds_draft_batch b = {1, &q->anchor, &q->start, &slot, h->table, STRIDE, PT, &row, token, conf, 0, NULL};
    CHECK_OK(ds_draft_block(h->draft, &h->draft_kv, &b, &err), err);
    for (int k = 0; k < TINY_BLOCK; k++)
        CHECK_MSG(token[k] == q->draft[k] && conf[k] == q->conf[k],
                  "draft %d is %d (%g), driven by the host %d (%g)", k, q->draft[k], (double)q->conf[k],
                  token[k], (double)conf[k]);
    h->checked++;
}

/* Read the seats back and enter them again, drafts and all, as around an ordinary step. */
static void pass_through(house *h)
{
    ds_seat seat[S];
    ds_err err = {0};
    drain(h);
    CHECK_OK(ds_loop_read(h->loop, seat, &err), err);
    for (int s = 0; s < S; s++) {
        if (h->who[s] < 0)
            continue;
        const ask *a = &h->ask[h->who[s]];
        CHECK_EQ(seat[s].start, a->q.n_prompt + a->n - 1);
        CHECK_EQ(seat[s].anchor, a->want[a->n - 1]);
        if (seat[s].n_draft)
            check_drafts(h, s, &seat[s]);
        CHECK_OK(ds_loop_enter(h->loop, s, &seat[s], h->table + s * STRIDE, h->n_pages[s], &err), err);
    }
}

static int next_ask(const house *h)
{
    for (int id = 0; id < N; id++)
        if (!h->ask[id].done && h->ask[id].slot < 0)
            return id;
    return -1;
}

/* One turn of a host that is sometimes late, sometimes early. Returns 0 when all is done. */
static int turn(house *h)
{
    ds_err err = {0};
    int list[S], n = 0, waiting = next_ask(h);
    for (int s = 0; s < S && waiting >= 0; s++)
        if (h->who[s] < 0 && dice(h, 3) == 0) {
            join(h, &h->ask[waiting], s);
            waiting = next_ask(h);
        }
    if (dice(h, 12) == 0)
        pass_through(h);
    for (int s = 0; s < S; s++) {
        if (h->who[s] >= 0 && dice(h, 60) == 0) {
            h->ask[h->who[s]].cancelled = 1;
            leave(h, s);
        }
        const ask *a = h->who[s] < 0 ? NULL : &h->ask[h->who[s]];
        if (a && reserve(h, s, ds_loop_reach(h->loop, a->q.n_prompt + a->n), 1))
            list[n++] = s;
    }
    for (int i = n - 1; i > 0; i--) { /* any order */
        int j = (int)dice(h, (uint32_t)i + 1), t = list[i];
        list[i] = list[j];
        list[j] = t;
    }
    if (n)
        CHECK_OK(ds_loop_launch(h->loop, list, n, &err), err);
    if (ds_loop_in_flight(h->loop) == DS_LOOP_DEPTH || (!n && ds_loop_in_flight(h->loop)) || dice(h, 4) == 0)
        if (ds_loop_in_flight(h->loop))
            collect(h);
    return n || ds_loop_in_flight(h->loop) || next_ask(h) >= 0;
}

static void everything(const char *backend, const char *head)
{
    static house h;
    ds_err err = {0};
    open_house(&h, backend, head);
    ds_loop_conf conf = loop_conf(&h);
    CHECK_OK(ds_loop_create(&conf, &h.loop, &err), err);
    CHECK(h.progress > 5);
    ds_loop_costs c;
    ds_loop_get_costs(h.loop,
                      &c); /* as if rows cost a little and drafts next to nothing: all kinds of budgets */
    for (int i = 0; i < DS_LOOP_BUCKETS; i++) {
        c.verify[i] = 1 + 0.02 * c.rows[i];
        c.draft[i] = 0.001;
    }
    ds_loop_destroy(h.loop);
    conf.cost = &c;
    h.progress = 0;
    CHECK_OK(ds_loop_create(&conf, &h.loop, &err), err);
    int stopped = 0, full = 0;
    for (h.seed = 1; h.seed <= 12; h.seed++) {
        for (int turns = 0; turn(&h); turns++)
            CHECK(turns < 100000);
        CHECK_EQ(h.n_free, PAGES);
        for (int id = 0; id < N; id++) {
            ask *a = &h.ask[id];
            CHECK(a->done && (a->cancelled || a->n == a->n_want));
            stopped += !a->cancelled && a->finish == DS_FINISH_STOP;
            full += !a->cancelled && a->finish == DS_FINISH_LENGTH;
            a->n = a->done = a->cancelled = 0;
        }
    }
    printf("  %d rounds, %d drafts verified, %d accepted\n", h.rounds, h.verified, h.accepted);
    CHECK(stopped > 50 && full > 50);
    if (head)
        CHECK(h.verified > 500 && h.accepted > 50 && h.checked > 50 && ds_loop_drafted(h.loop) > 50);
    else
        CHECK(h.verified == 0 && ds_loop_drafted(h.loop) == 0);
    close_house(&h);
}

#define EVERYTHING(name, head)         \
    DS_TEST(same_tokens_##name##_cpu)  \
    {                                  \
        everything("cpu", head);       \
    }                                  \
    DS_TEST(same_tokens_##name##_cuda) \
    {                                  \
        everything("cuda", head);      \
    }
EVERYTHING(plain, NULL)
EVERYTHING(vanilla, "vanilla")
EVERYTHING(gated, "gated")
EVERYTHING(rnn, "rnn")
EVERYTHING(dflash, "none")

/* With given costs the choice of rows is known: all drafts where rows are free, none where they are dear, and
 * no draft pass where it does not pay, save a probe now and then. */
static void with_costs(double verify_step, double draft, int *ret_verified, int *ret_passes, int *ret_rounds)
{
    static house h;
    ds_err err = {0};
    open_house(&h, "cpu", "vanilla");
    ds_loop_conf conf = loop_conf(&h);
    float odds[TINY_BLOCK] = {0.9f, 0.9f, 0.9f};
    CHECK_OK(ds_loop_create(&conf, &h.loop, &err), err);
    ds_loop_costs c;
    ds_loop_get_costs(h.loop, &c);
    ds_loop_destroy(h.loop);
    CHECK(c.rows[0] == 1 && c.rows[c.n_rows - 1] == 24 && c.reqs[c.n_reqs - 1] == S);
    for (int i = 0; i < c.n_rows; i++)
        CHECK(c.verify[i] > 0 && (!i || (c.rows[i] > c.rows[i - 1] && c.verify[i] >= c.verify[i - 1])));
    for (int i = 0; i < c.n_rows; i++)
        c.verify[i] = 1 + verify_step * c.rows[i] * c.rows[i];
    for (int i = 0; i < c.n_reqs; i++)
        c.draft[i] = draft;
    conf.cost = &c;
    conf.odds = odds;
    h.progress = 0;
    CHECK_OK(ds_loop_create(&conf, &h.loop, &err), err);
    ds_seat seat = {
        .state = DS_SEAT_LIVE, .end = MAX_LEN + 1, .max_draft = TINY_BLOCK, .temperature = 1, .top_p = 1};
    reserve(&h, 0, MAX_LEN, 0);
    CHECK_OK(ds_loop_enter(h.loop, 0, &seat, h.table, h.n_pages[0], &err), err);
    *ret_verified = *ret_rounds = 0;
    for (int state = DS_SEAT_LIVE, slot = 0; state == DS_SEAT_LIVE; ++*ret_rounds) {
        const ds_round_out *o;
        int n;
        CHECK_OK(ds_loop_launch(h.loop, &slot, 1, &err), err);
        CHECK_OK(ds_loop_collect(h.loop, &o, &n, &err), err);
        *ret_verified += o->n_verify;
        state = o->state;
    }
    *ret_passes = (int)ds_loop_drafted(h.loop);
    c.rows[0] = 2;
    h.progress = 0;
    ds_loop *other;
    CHECK_EQ(ds_loop_create(&conf, &other, &err), DS_EINVAL);
    CHECK_STR(err.field, "cost");
    close_house(&h);
}

DS_TEST(costs_decide)
{
    int verified, passes, rounds;
    with_costs(0.0, 0.1, &verified, &passes, &rounds);
    CHECK_MSG(passes == rounds && rounds < 50 && verified >= 3 * (rounds - 4),
              "free rows: %d of %d rounds, %d rows", passes, rounds, verified);
    with_costs(0.0, 9.0, &verified, &passes, &rounds);
    CHECK_MSG(passes == 1 && rounds > 90, "dear drafts: %d passes in %d rounds", passes, rounds);
    with_costs(9.0, 0.0, &verified, &passes, &rounds);
    CHECK_MSG(verified <= 3 * passes && passes <= 2, "dear rows: %d verified, %d passes", verified, passes);
}

DS_TEST(wrong_sizes_are_refused)
{
    static house h;
    ds_err err = {0};
    open_house(&h, "cpu", "vanilla");
    struct {
        const char *field;
        int seats, rows, len, page;
    } bad[] = {
        {"max_seats", 0, 24, MAX_LEN, PAGES},       {"max_seats", DS_LOOP_MAX_SEATS + 1, 24, MAX_LEN, PAGES},
        {"max_rows", S, S - 1, MAX_LEN, PAGES},     {"max_rows", S, DS_LOOP_MAX_ROWS + 1, MAX_LEN, PAGES},
        {"max_len", S, 24, STRIDE * PT + 1, PAGES}, {"null_page", S, 24, MAX_LEN, PAGES + 1},
        {"rows", S, ROWS + 1, MAX_LEN, PAGES},    /* more than the model's logit rows */
        {"requests", S + 1, 24, MAX_LEN, PAGES}}; /* more than the draft's */
    for (size_t i = 0; i < sizeof bad / sizeof *bad; i++) {
        ds_loop_conf conf = loop_conf(&h);
        conf.max_seats = bad[i].seats;
        conf.max_rows = bad[i].rows;
        conf.max_len = bad[i].len;
        conf.null_page = bad[i].page;
        conf.progress = NULL;
        err = (ds_err){0};
        CHECK_EQ(ds_loop_create(&conf, &h.loop, &err), DS_EINVAL);
        CHECK_STR(err.field, bad[i].field);
    }
    close_house(&h);
}
