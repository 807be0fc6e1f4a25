/* The ops of the device loop against plain statements of what they do: admission against the ranking of
 * worker/spec.c, acceptance against a second walk over the tokens, draws against `sample`. Every case runs on
 * each back end that is here; CUDA's is skipped and counted without a card. */
#include "base/rng.h"
#include "kernels/kernels.h"
#include "tests/lib/test.h"
#include "worker/spec.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

enum { S = 300, G = 7, T = 640, PAGES = 64, STRIDE = 4 };

static uint32_t dice_at;
static uint32_t dice(uint32_t n) /* 0..n-1 */
{
    return ds_rng_u32(99, DS_RNG_INIT, dice_at++, 0) % n;
}

static ds_backend *open_backend(const char *name)
{
    ds_backend *b;
    ds_err err = {0};
    ds_code code = ds_backend_open(name, 1, NULL, &b, &err);
    if (code != DS_OK && strcmp(name, "cpu") != 0)
        ds_test_skip(err.msg);
    CHECK_OK(code, err);
    return b;
}

/* Device copy of a host array. */
static void *give(ds_backend *b, const void *src, size_t bytes)
{
    void *p;
    ds_err err = {0};
    CHECK_OK(b->alloc(b, bytes, &p, &err), err);
    CHECK(b->upload(b, p, src, bytes) == DS_OK);
    return p;
}

static void take(ds_backend *b, void *dst, const void *src, size_t bytes)
{
    CHECK(b->download(b, dst, src, bytes) == DS_OK);
}

typedef struct world {
    ds_seat seat[S];
    int32_t control[4 + S + 2 * 8], table[(S + 1) * STRIDE];
    float inv_temp[G], odds[G];
    int n, n_patch;
} world;

typedef struct rows {
    int32_t token[T], pos[T], slot[T], row_seat[T], first[S + 1];
    float survival[S * G];
} rows;

/* Confidences on a grid of 1/4 make ties common; exp(-z) of distinct grid points never rounds together. */
static void make_world(world *w, uint32_t seed, int n, int budget)
{
    dice_at = seed * 100000;
    memset(w, 0, sizeof *w);
    w->n = n;
    for (int s = 0; s < S; s++) {
        ds_seat *q = &w->seat[s];
        q->state = dice(8) ? DS_SEAT_LIVE : (int)dice(5);
        q->seed = dice(1000);
        q->anchor = (int32_t)dice(40);
        q->start = (int32_t)dice(40);
        q->end = q->start + 2 + (int32_t)dice(12);
        q->min_pos = q->start + (int32_t)dice(6) - 2;
        q->max_draft = (int32_t)dice(G + 2);
        q->eager = dice(9) == 0;
        q->n_draft = dice(4) ? G : 0;
        q->n_verify = 77;
        q->temperature = dice(3) ? 0.5f + 0.25f * (float)dice(4) : 0;
        q->top_p = dice(2) ? 1.0f : 0.8f;
        q->min_p = dice(2) ? 0.0f : 0.05f;
        q->top_k = dice(2) ? 0 : 5;
        q->n_stop = (int32_t)dice(4);
        for (int i = 0; i < q->n_stop; i++)
            q->stop[i] = (int32_t)dice(40);
        for (int k = 0; k < G; k++) {
            q->draft[k] = (int32_t)dice(40);
            q->conf[k] = dice(12) ? (float)((int)dice(24) - 6) / 4 : -200.0f; /* survival 0: never let in */
        }
    }
    w->control[DS_CONTROL_N] = n;
    w->control[DS_CONTROL_BUDGET] = budget;
    w->control[DS_CONTROL_PATCHES] = w->n_patch = 5;
    int32_t *seat = w->control + DS_CONTROL_SEATS;
    for (int i = 0; i < n; i++)
        seat[i] = (i * 7 + 3) % S; /* 7 and S have no common factor */
    for (int i = 0; i < w->n_patch; i++) {
        seat[n + 2 * i] = i * 11;
        seat[n + 2 * i + 1] = 100 + i;
    }
    for (int k = 0; k < G; k++) {
        w->inv_temp[k] = 0.5f + 0.125f * (float)k;
        w->odds[k] = 0.5f;
    }
}

static void admit(ds_backend *b, world *w, int T_, int odds, rows *r)
{
    world *d = give(b, w, sizeof *w);
    rows *o = give(b, r, sizeof *r);
    ds_admit_args a = {.control = d->control,
                       .seat = d->seat,
                       .page_table = d->table,
                       .inv_temp = d->inv_temp,
                       .odds = odds ? d->odds : NULL,
                       .T = T_,
                       .S = S,
                       .block = G,
                       .max_n = S,
                       .token = o->token,
                       .pos = o->pos,
                       .slot = o->slot,
                       .row_seat = o->row_seat,
                       .first = o->first,
                       .survival = o->survival};
    CHECK(b->admit(b, &a) == DS_OK);
    take(b, w, d, sizeof *w);
    take(b, r, o, sizeof *r);
    b->free(b, d);
    b->free(b, o);
}

static int want_cap(const ds_seat *q)
{
    int cap = q->n_draft < q->max_draft ? q->n_draft : q->max_draft, left = q->end - (q->start + 1) - 1;
    cap = cap < left ? cap : left;
    return q->state == DS_SEAT_LIVE && cap > 0 ? cap : 0;
}

static void check_rows(const world *w, const world *before, const rows *r, const int *len, int T_)
{
    const int32_t *seat = w->control + DS_CONTROL_SEATS;
    int t = 0;
    for (int i = 0; i < w->n; i++) {
        const ds_seat *q = &before->seat[seat[i]];
        CHECK_EQ(r->first[i], t);
        if (q->state != DS_SEAT_LIVE)
            continue;
        CHECK_EQ(w->seat[seat[i]].n_verify, len[i]);
        for (int j = 0; j <= len[i]; j++, t++)
            CHECK_MSG(r->token[t] == (j ? q->draft[j - 1] : q->anchor) && r->pos[t] == q->start + j &&
                          r->slot[t] == seat[i] && r->row_seat[t] == seat[i],
                      "row %d of seat %d", j, seat[i]);
    }
    CHECK_EQ(r->first[w->n], t);
    for (; t < T_; t++)
        CHECK(r->token[t] == 0 && r->pos[t] == 0 && r->slot[t] == S && r->row_seat[t] == -1);
    for (int i = 0; i < w->n_patch; i++)
        CHECK_EQ(w->table[i * 11], 100 + i);
}

/* Lengths by the ranking of worker/spec.c over the survivals that the op reports. */
static void admit_case(ds_backend *b, uint32_t seed, int n, int budget, int T_, int odds)
{
    static world w, before;
    static rows r;
    static ds_spec_cand cand[S * G], tmp[S * G];
    static ds_spec_req req[S];
    static int len[S];
    make_world(&w, seed, n, budget);
    before = w;
    memset(&r, 0x55, sizeof r);
    admit(b, &w, T_, odds, &r);
    int live = 0;
    const int32_t *seat = w.control + DS_CONTROL_SEATS;
    for (int i = 0; i < n; i++) {
        const ds_seat *q = &before.seat[seat[i]];
        float *a = &r.survival[i * G], p = 1.0f;
        live += q->state == DS_SEAT_LIVE;
        req[i] = (ds_spec_req){.survival = a, .n = want_cap(q)};
        int none = q->state != DS_SEAT_LIVE || q->n_draft == 0;
        CHECK((a[0] < 0) == none);
        for (int k = 0; k < G && !none; k++) {
            p *= q->eager ? 1.0f
                 : odds   ? before.odds[k]
                          : 1.0f / (1.0f + expf(-q->conf[k] * before.inv_temp[k]));
            CHECK_MSG(fabsf(a[k] - p) <= 1e-5f * p, "survival %d of %d is %g, want %g", k, i, (double)a[k],
                      (double)p);
        }
    }
    int n_cand = ds_spec_rank(req, n, cand, tmp);
    ds_spec_top_k(cand, n_cand, n, budget < T_ - live ? budget : T_ - live, len);
    check_rows(&w, &before, &r, len, T_);
}

static void admit_all(const char *name)
{
    ds_backend *b = open_backend(name);
    static const int size[] = {0, 1, 2, 3, 8, 31, 32, 33, 64, 250, 300};
    for (uint32_t i = 0; i < sizeof size / sizeof *size; i++)
        for (int budget = 0; budget <= size[i] * G; budget += 1 + budget) {
            int n = size[i];
            admit_case(b, i + 1, n, budget, T, 0);
            admit_case(b, i + 20, n, budget, T, 1); /* every survival ties with others */
            admit_case(b, i + 40, n, budget, n + budget / 2 + 1 < T ? n + budget / 2 + 1 : T, 0);
        }
    b->destroy(b);
}

/* ---- accept ---- */

typedef struct taken {
    int32_t drawn[T];
    ds_round_out out[S];
} taken;

static int is_stop(const ds_seat *q, int32_t token, int pos)
{
    int found = 0;
    for (int i = 0; i < q->n_stop; i++)
        found |= q->stop[i] == token;
    return found && pos >= q->min_pos;
}

/* The tokens a plain decoder would have taken from these draws, and where it would have stood. */
static void check_seat(const ds_seat *was, const ds_seat *is, const ds_round_out *o, const int32_t *drawn)
{
    int pos = was->start, n = 0, state = was->state, accepted = 0;
    if (state == DS_SEAT_LIVE)
        for (int j = 0; j <= was->n_verify; j++) {
            if (drawn[j] < 0) {
                state = DS_SEAT_BAD;
                break;
            }
            CHECK_EQ(o->token[n], drawn[j]);
            n++;
            pos++;
            int same = j < was->n_verify && drawn[j] == was->draft[j];
            accepted += same;
            if (is_stop(was, drawn[j], pos) || pos + 1 >= was->end || !same) {
                state = is_stop(was, drawn[j], pos) ? DS_SEAT_STOPPED
                        : pos + 1 >= was->end       ? DS_SEAT_FULL
                                                    : DS_SEAT_LIVE;
                break;
            }
        }
    CHECK(o->n == n && o->n_accepted == accepted && o->state == state);
    CHECK(is->state == state && is->start == pos && is->n_draft == 0);
    CHECK_EQ(is->anchor, n ? o->token[n - 1] : was->anchor);
    CHECK_EQ(o->n_verify, state == was->state || was->state == DS_SEAT_LIVE ? was->n_verify : 0);
}

static void accept(ds_backend *b, world *w, const rows *r, int odds, taken *t)
{
    world *d = give(b, w, sizeof *w);
    rows *dr = give(b, r, sizeof *r);
    taken *dt = give(b, t, sizeof *t);
    ds_accept_args a = {.control = d->control,
                        .first = dr->first,
                        .drawn = dt->drawn,
                        .survival = dr->survival,
                        .odds = odds ? d->odds : NULL,
                        .seat = d->seat,
                        .S = S,
                        .block = G,
                        .max_n = S,
                        .out = dt->out};
    CHECK(b->accept(b, &a) == DS_OK);
    take(b, w, d, sizeof *w);
    take(b, t, dt, sizeof *t);
    b->free(b, d);
    b->free(b, dr);
    b->free(b, dt);
}

static void accept_all(const char *name)
{
    static world w, before;
    static rows r;
    static taken t;
    ds_backend *b = open_backend(name);
    int ends[DS_SEAT_BAD + 1] = {0}, full = 0;
    for (uint32_t seed = 1; seed <= 20; seed++) {
        make_world(&w, seed, 64, 200);
        admit(b, &w, T, 0, &r);
        const int32_t *seat = w.control + DS_CONTROL_SEATS;
        for (int i = 0; i < T; i++) /* mostly what was drafted */
            t.drawn[i] = r.row_seat[i] >= 0 && i + 1 < T && r.row_seat[i + 1] == r.row_seat[i] && dice(5)
                             ? r.token[i + 1]
                         : dice(30) ? (int32_t)dice(40)
                                    : -1;
        before = w;
        accept(b, &w, &r, 0, &t);
        for (int i = 0; i < w.n; i++) {
            CHECK_EQ(t.out[i].seat, seat[i]);
            check_seat(&before.seat[seat[i]], &w.seat[seat[i]], &t.out[i], t.drawn + r.first[i]);
            CHECK(memcmp(t.out[i].survival, &r.survival[i * G], G * sizeof(float)) == 0);
            if (before.seat[seat[i]].state == DS_SEAT_LIVE) {
                ends[t.out[i].state]++;
                full += t.out[i].n_verify && t.out[i].n_accepted == t.out[i].n_verify;
            }
        }
    }
    for (int s = DS_SEAT_LIVE; s <= DS_SEAT_BAD; s++)
        CHECK_MSG(ends[s] > 10, "state %d was reached %d times", s, ends[s]);
    CHECK(full > 10);
    b->destroy(b);
}

/* With given odds a draft stands as often as they say. */
static void odds_all(const char *name)
{
    static world w;
    static rows r;
    static taken t;
    ds_backend *b = open_backend(name);
    int tried = 0, stood = 0;
    for (uint32_t seed = 1; seed <= 40; seed++) {
        make_world(&w, seed, 64, 64 * G);
        for (int s = 0; s < S; s++) {
            w.seat[s].n_stop = 0;
            w.seat[s].end = 1000;
            w.seat[s].seed = ((uint64_t)seed << 32) + (uint64_t)s;
        }
        admit(b, &w, T, 1, &r);
        for (int i = 0; i < T; i++)
            t.drawn[i] = 39;
        accept(b, &w, &r, 1, &t);
        for (int i = 0; i < w.n; i++) {
            tried += t.out[i].n_accepted + (t.out[i].n_accepted < t.out[i].n_verify);
            stood += t.out[i].n_accepted;
        }
    }
    double sigma = sqrt(0.25 / tried);
    CHECK_MSG(tried > 2000 && fabs((double)stood / tried - 0.5) < 4 * sigma, "%d of %d stood", stood, tried);
    b->destroy(b);
}

/* ---- the draft pass ---- */

typedef struct pass {
    int32_t token[64 * G], pos[64 * G], limit[64 * G], slot[64 * G], order[64 * G], anchor[64], start[64],
        row_seat[64], x[64 * G];
    float state[64 * 3], z[64 * G];
} pass;

static void block_all(const char *name)
{
    static world w, before;
    static pass p, got;
    enum { R = 64, N = 50, MAX_LEN = 40 };
    ds_backend *b = open_backend(name);
    make_world(&w, 5, N, 0);
    for (int i = 0; i < R * G; i++) {
        p.x[i] = (int32_t)dice(40);
        p.z[i] = dice(10) ? (float)dice(8) : NAN;
    }
    for (int i = 0; i < R * 3; i++)
        p.state[i] = 5;
    before = w;
    world *d = give(b, &w, sizeof w);
    pass *dp = give(b, &p, sizeof p);
    ds_block_args a = {d->control,   d->seat,   R,         S,        G,         39,         MAX_LEN,
                       dp->token,    dp->pos,   dp->limit, dp->slot, dp->order, dp->anchor, dp->start,
                       dp->row_seat, dp->state, R * 3};
    CHECK(b->block(b, &a) == DS_OK);
    ds_offer_args o = {d->seat, dp->row_seat, dp->x, dp->z, R, S, G};
    CHECK(b->offer(b, &o) == DS_OK);
    take(b, &got, dp, sizeof got);
    take(b, &w, d, sizeof w);
    int some = 0, offered[S] = {0};
    for (int r = 0; r < R; r++) {
        int s = r < N ? w.control[DS_CONTROL_SEATS + r] : -1;
        const ds_seat *q = s >= 0 ? &before.seat[s] : NULL;
        int there = q && q->state == DS_SEAT_LIVE && q->max_draft > 0 && q->start + G <= MAX_LEN &&
                    q->start + 2 < q->end;
        some += there;
        CHECK_EQ(got.row_seat[r], there ? s : -1);
        CHECK_EQ(got.anchor[r], there ? q->anchor : 0);
        CHECK_EQ(got.start[r], there ? q->start : 0);
        for (int k = 0; k < G; k++) {
            int t = r * G + k;
            CHECK_EQ(got.token[t], k ? 39 : got.anchor[r]);
            CHECK(got.pos[t] == got.start[r] + k && got.limit[t] == got.start[r] + G - 1);
            CHECK_EQ(got.slot[t], there ? s : S);
            CHECK_EQ(got.order[k * R + r], t);
            float z = p.z[k * R + r];
            if (there)
                CHECK(w.seat[s].draft[k] == p.x[k * R + r] && w.seat[s].conf[k] == (isnan(z) ? -30.0f : z));
        }
        if (there)
            offered[s] = 1;
    }
    CHECK(some > 10 && some < N);
    for (int s = 0; s < S; s++)
        CHECK_EQ(w.seat[s].n_draft, offered[s] ? G : before.seat[s].n_draft);
    for (int i = 0; i < R * 3; i++)
        CHECK(got.state[i] == 0);
    b->free(b, d);
    b->free(b, dp);
    b->destroy(b);
}

/* ---- draw, graphs ---- */

enum { V = 1000, ROWS = 48 };
typedef struct draws {
    float logits[ROWS * V];
    int32_t row_seat[ROWS], row_pos[ROWS], token[ROWS];
} draws;

static void make_draws(world *w, draws *d)
{
    make_world(w, 8, 8, 0);
    for (int r = 0; r < ROWS; r++) {
        d->row_seat[r] = r % 11 == 10 ? -1 : (int32_t)dice(S);
        ds_seat *q = &w->seat[r % 11 == 10 ? 0 : d->row_seat[r]];
        d->row_pos[r] = q->min_pos + (int32_t)dice(5) - 3; /* on both sides of min_pos */
        d->row_pos[r] = d->row_pos[r] < 0 ? 0 : d->row_pos[r];
        for (int i = 0; i < V; i++)
            d->logits[r * V + i] = (float)dice(4000) / 1000;
        for (int i = 0; i < q->n_stop; i++) /* likely, so that a missing ban shows */
            d->logits[r * V + q->stop[i]] = 9;
    }
    d->logits[7 * V + 3] = NAN;
}

static void draw_all(const char *name)
{
    static world w;
    static draws d, got;
    static ds_sample_row row[ROWS];
    static ds_sample_out out[ROWS];
    ds_backend *b = open_backend(name);
    make_draws(&w, &d);
    world *dw = give(b, &w, sizeof w);
    draws *dd = give(b, &d, sizeof d);
    ds_draw_args a = {dd->logits, ROWS, V, S, dw->seat, dd->row_seat, dd->row_pos, 2, -1, dd->token};
    CHECK(b->draw(b, &a) == DS_OK);
    take(b, &got, dd, sizeof got);
    b->free(b, dd);
    float *logits = give(b, d.logits, sizeof d.logits);
    int banned = 0;
    for (int r = 0; r < ROWS; r++) {
        const ds_seat *q = &w.seat[d.row_seat[r] < 0 ? 0 : d.row_seat[r]];
        int pos = d.row_pos[r] + 2;
        row[r] = (ds_sample_row){.temperature = q->temperature,
                                 .top_p = q->top_p,
                                 .min_p = q->min_p,
                                 .top_k = q->top_k,
                                 .repetition = 1,
                                 .seed = q->seed,
                                 .pos = pos,
                                 .banned = q->stop,
                                 .n_banned = pos < q->min_pos ? q->n_stop : 0,
                                 .banned_until = INT64_MAX,
                                 .n_logprobs = -1,
                                 .given = -1};
        banned += row[r].n_banned;
    }
    CHECK(b->sample(b, &(ds_sample_args){logits, ROWS, V, row, out}) == DS_OK);
    CHECK(banned > 3 && out[7].bad);
    for (int r = 0; r < ROWS; r++)
        CHECK_EQ(got.token[r], d.row_seat[r] < 0 ? 0 : out[r].bad ? -1 : out[r].token);
    b->free(b, logits);
    b->free(b, dw);
    b->destroy(b);
}

/* A graph runs nothing while it is collected, and what it reads is read when it is launched. */
static void graph_all(const char *name)
{
    enum { C = 32, N = 4 };
    ds_backend *b = open_backend(name);
    ds_err err = {0};
    float x[N * C], got[N * C];
    int32_t row[N] = {3, 1, 0, 2};
    memset(got, 0, sizeof got);
    for (int i = 0; i < N * C; i++)
        x[i] = (float)i;
    float *dx = give(b, x, sizeof x), *dy = give(b, got, sizeof got), *pinned;
    int32_t *drow = give(b, row, sizeof row);
    CHECK_OK(b->pin(b, sizeof x, (void **)&pinned, &err), err);
    ds_gather_args g = {dx, drow, dy, N, C, C};
    CHECK(b->gather(b, &g) == DS_OK); /* warm */
    CHECK(b->upload(b, dy, got, sizeof got) == DS_OK);
    ds_graph *graph;
    CHECK(b->graph_begin(b) == DS_OK);
    CHECK(b->gather(b, &g) == DS_OK);
    CHECK_OK(b->graph_end(b, &graph, &err), err);
    take(b, got, dy, sizeof got);
    CHECK(got[1] == 0);
    for (int turn = 0; turn < 3; turn++) {
        for (int i = 0; i < N * C; i++)
            pinned[i] = (float)(i + 1000 * turn);
        CHECK(b->push(b, dx, pinned, sizeof x) == DS_OK && b->mark(b, 0) == DS_OK);
        CHECK(b->graph_launch(b, graph) == DS_OK && b->mark(b, 1) == DS_OK && b->wait(b, 1) == DS_OK);
        CHECK(b->fetch(b, pinned, dy, sizeof x) == DS_OK && b->mark(b, 2) == DS_OK && b->wait(b, 2) == DS_OK);
        for (int i = 0; i < N * C; i++)
            CHECK_EQ((int)pinned[i], row[i / C] * C + i % C + 1000 * turn);
        double seconds = -1;
        CHECK(b->elapsed(b, 0, 2, &seconds) == DS_OK && seconds >= 0 && seconds < 10);
    }
    CHECK(b->mark(b, DS_MARKS) == DS_EINVAL && b->wait(b, -1) == DS_EINVAL);
    b->graph_free(b, graph);
    b->unpin(b, pinned);
    b->free(b, dx);
    b->free(b, dy);
    b->free(b, drow);
    b->destroy(b);
}

#define BOTH(what)          \
    DS_TEST(what##_cpu)     \
    {                       \
        what##_all("cpu");  \
    }                       \
    DS_TEST(what##_cuda)    \
    {                       \
        what##_all("cuda"); \
    }
BOTH(admit)
BOTH(accept)
BOTH(odds)
BOTH(block)
BOTH(draw)
BOTH(graph)
