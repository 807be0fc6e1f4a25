#include "worker/loop.h"

#include "worker/calib.h"

#include <stdlib.h>
#include <string.h>

enum {
    REPEATS = 3,           /* timings of a graph; the median counts */
    IN_A_ROW = 2,          /* launches of each */
    PROFILE_CONTEXT = 512, /* tokens behind each row while timing, where they fit */
    PROBE_ROUNDS = 64,     /* a draft pass at least that often, so that expectations stay honest */
    PATCHES = 12, /* page table changes per seat and round: 7 new pages, and published ones that move */
};

typedef struct flight { /* pinned memory of one round */
    int32_t *control;
    ds_round_out *out; /* [max_seats] */
    int n;
} flight;

struct ds_loop {
    ds_loop_conf conf;
    ds_loop_costs cost;
    ds_graph *verify[DS_LOOP_BUCKETS], *draft[DS_LOOP_BUCKETS];
    int block, page_tokens; /* block 1 without a draft */

    /* Device memory, one allocation. */
    void *mem;
    ds_seat *seat;                                  /* [S] */
    int32_t *control;                               /* [4 + S + 2 * PATCHES * S] */
    int32_t *table;                                 /* [S + 1, page_stride] */
    int32_t *token, *pos, *slot, *row_seat, *drawn; /* [max_rows] */
    int32_t *first;                                 /* [S + 1] */
    float *survival, *inv_temp, *odds;
    ds_round_out *out; /* [S] */

    flight flight[DS_LOOP_DEPTH];
    uint64_t launched, collected, drafted;
    int32_t *patch; /* [n_patch, 2] for the next round */
    int n_patch;

    /* What the host expects of drafts, from records. */
    float *expect;                /* [S, block] survivals of a seat's newest record */
    float typical[DS_STEP_BLOCK]; /* of all requests lately */
    uint8_t *drafting;            /* [S] the seat makes drafts; max_draft of it */
    ds_spec_req *req;             /* [S] */
    ds_spec_cand *cand;           /* [2, S * block]: the second half is scratch */
    int since_draft;
    int on_offer; /* some seat has drafts when the next round begins */
};

/* ---- memory ---- */

static size_t carve(ds_loop *l, char *base)
{
    size_t S = (size_t)l->conf.max_seats, T = (size_t)l->conf.max_rows, g = (size_t)l->block, at = 0;
    struct {
        void *p;
        size_t bytes;
    } part[] = {{&l->seat, S * sizeof *l->seat},
                {&l->control, (4 + S + 2 * PATCHES * S) * 4},
                {&l->table, (S + 1) * (size_t)l->conf.page_stride * 4},
                {&l->token, T * 4},
                {&l->pos, T * 4},
                {&l->slot, T * 4},
                {&l->row_seat, T * 4},
                {&l->drawn, T * 4},
                {&l->first, (S + 1) * 4},
                {&l->survival, S * g * 4},
                {&l->inv_temp, g * 4},
                {&l->odds, g * 4},
                {&l->out, S * sizeof *l->out}};
    for (size_t i = 0; i < sizeof part / sizeof *part; i++) {
        char *p = base ? base + at : NULL;
        memcpy(part[i].p, &p, sizeof p);
        at += (part[i].bytes + 63) / 64 * 64;
    }
    return at;
}

static ds_code allocate(ds_loop *l, ds_err *err)
{
    ds_backend *b = l->conf.b;
    size_t S = (size_t)l->conf.max_seats, g = (size_t)l->block;
    l->patch = calloc(2 * PATCHES * S, sizeof *l->patch);
    l->expect = calloc(S * g, sizeof *l->expect);
    l->drafting = calloc(S, sizeof *l->drafting);
    l->req = calloc(S, sizeof *l->req);
    l->cand = calloc(2 * S * g, sizeof *l->cand);
    if (!l->patch || !l->expect || !l->drafting || !l->req || !l->cand)
        return ds_err_set(err, DS_ENOMEM, "no memory for a loop of %zu seats", S);
    DS_TRY(b->alloc(b, carve(l, NULL), &l->mem, err));
    carve(l, l->mem);
    for (int i = 0; i < DS_LOOP_DEPTH; i++) {
        size_t words = 4 + S + 2 * PATCHES * S;
        DS_TRY(b->pin(b, words * sizeof(int32_t), (void **)&l->flight[i].control, err));
        DS_TRY(b->pin(b, S * sizeof(ds_round_out), (void **)&l->flight[i].out, err));
    }
    return DS_OK;
}

/* Constants of the device: calibration, the null slot. */
static ds_code upload_constants(ds_loop *l, ds_err *err)
{
    ds_backend *b = l->conf.b;
    float inv[DS_STEP_BLOCK];
    for (int k = 0; k < l->block; k++) {
        inv[k] = l->conf.T ? (float)(1.0 / l->conf.T[k]) : 1.0f;
        l->typical[k] = 1.0f; /* hopeful until records come */
    }
    size_t g = (size_t)l->block * sizeof *inv, stride = (size_t)l->conf.page_stride;
    ds_code code = b->upload(b, l->inv_temp, inv, g);
    if (code == DS_OK && l->conf.odds)
        code = b->upload(b, l->odds, l->conf.odds, g);
    int32_t *row = calloc(stride, sizeof *row);
    if (!row)
        return ds_err_set(err, DS_ENOMEM, "no memory for a page table row");
    for (size_t i = 0; i < stride; i++)
        row[i] = l->conf.null_page;
    if (code == DS_OK)
        code = b->upload(b, l->table + (size_t)l->conf.max_seats * stride, row, stride * sizeof *row);
    if (code == DS_OK)
        code = b->sync(b);
    free(row);
    return code == DS_OK ? code : ds_err_set(err, code, "upload of the loop's tables failed");
}

/* ---- the two graphs ---- */

static ds_code run_verify(ds_loop *l, int T, ds_err *err)
{
    const ds_loop_conf *c = &l->conf;
    ds_backend *b = c->b;
    const float *odds = c->odds ? l->odds : NULL;
    ds_admit_args admit = {.control = l->control,
                           .seat = l->seat,
                           .page_table = l->table,
                           .inv_temp = l->inv_temp,
                           .odds = odds,
                           .T = T,
                           .S = c->max_seats,
                           .block = l->block,
                           .max_n = c->max_seats,
                           .token = l->token,
                           .pos = l->pos,
                           .slot = l->slot,
                           .row_seat = l->row_seat,
                           .first = l->first,
                           .survival = l->survival};
    DS_TRY(b->admit(b, &admit));
    ds_step_args step = {.rows = {T, l->token, l->pos, l->slot, l->table, c->page_stride, l->page_tokens}};
    DS_TRY(ds_model_forward_rows(c->model, c->kv, &step, err));
    ds_draw_args draw = {.logits = step.logits,
                         .R = T,
                         .V = ds_model_get_info(c->model)->vocab,
                         .S = c->max_seats,
                         .seat = l->seat,
                         .row_seat = l->row_seat,
                         .row_pos = l->pos,
                         .ahead = 1,
                         .bad = -1,
                         .token = l->drawn};
    DS_TRY(b->draw(b, &draw));
    ds_accept_args accept = {.control = l->control,
                             .first = l->first,
                             .drawn = l->drawn,
                             .survival = l->survival,
                             .odds = odds,
                             .seat = l->seat,
                             .S = c->max_seats,
                             .block = l->block,
                             .max_n = c->max_seats,
                             .out = l->out};
    DS_TRY(b->accept(b, &accept));
    return c->draft ? ds_draft_context_rows(c->draft, c->draft_kv, &step.rows, step.taps, err) : DS_OK;
}

static ds_code run_draft(ds_loop *l, int R, ds_err *err)
{
    const ds_loop_conf *c = &l->conf;
    ds_draft_round r = {.control = l->control,
                        .seat = l->seat,
                        .page_table = l->table,
                        .R = R,
                        .S = c->max_seats,
                        .page_stride = c->page_stride,
                        .page_tokens = l->page_tokens,
                        .max_len = c->max_len};
    return ds_draft_round_pass(c->draft, c->draft_kv, &r, err);
}

typedef ds_code (*part_fn)(ds_loop *l, int size, ds_err *err);

/* Run once, so that libraries and workspaces are ready, then collect. */
static ds_code capture(ds_loop *l, part_fn part, int size, ds_graph **ret, ds_err *err)
{
    ds_backend *b = l->conf.b;
    ds_code code = part(l, size, err);
    if (code == DS_OK)
        code = b->sync(b);
    if (code == DS_OK)
        code = b->graph_begin(b);
    if (code == DS_OK) {
        code = part(l, size, err);
        ds_err why = {0};
        ds_code end = b->graph_end(b, ret, code == DS_OK ? err : &why);
        code = code == DS_OK ? end : code;
    }
    if (code == DS_OK || err->msg[0])
        return code;
    return ds_err_set(err, code, "capture of a graph of %d rows failed: %s", size, ds_err_name(code));
}

/* Dummy but valid requests: n live seats, all on the pages that exist. */
static ds_code fill_dummies(ds_loop *l, int n, ds_err *err)
{
    ds_backend *b = l->conf.b;
    const ds_loop_conf *c = &l->conf;
    ds_seat *seat = calloc((size_t)c->max_seats, sizeof *seat);
    int32_t *control = l->flight[0].control;
    if (!seat)
        return ds_err_set(err, DS_ENOMEM, "no memory for the profile");
    int start = c->max_len / 2 < PROFILE_CONTEXT ? c->max_len / 2 : PROFILE_CONTEXT;
    for (int i = 0; i < n; i++) {
        seat[i] = (ds_seat){.state = DS_SEAT_LIVE,
                            .start = start,
                            .end = c->max_len + 1,
                            .max_draft = l->block,
                            .temperature = 1.0f,
                            .top_p = 1.0f,
                            .seed = (uint64_t)i};
        control[DS_CONTROL_SEATS + i] = i;
    }
    control[DS_CONTROL_N] = n;
    control[DS_CONTROL_BUDGET] = control[DS_CONTROL_PATCHES] = control[3] = 0;
    ds_code code = b->upload(b, l->seat, seat, (size_t)c->max_seats * sizeof *seat);
    if (code == DS_OK)
        code = b->push(b, l->control, control, (DS_CONTROL_SEATS + (size_t)n) * sizeof *control);
    if (code == DS_OK)
        code = b->sync(b);
    free(seat);
    return code == DS_OK ? code : ds_err_set(err, code, "upload of the profile's seats failed");
}

static ds_code dummy_tables(ds_loop *l, ds_err *err)
{
    size_t n = (size_t)l->conf.max_seats * (size_t)l->conf.page_stride;
    int32_t *table = calloc(n, sizeof *table);
    if (!table)
        return ds_err_set(err, DS_ENOMEM, "no memory for the profile");
    for (size_t i = 0; i < n; i++)
        table[i] = (int32_t)(i % (size_t)l->conf.kv->pages);
    ds_code code = l->conf.b->upload(l->conf.b, l->table, table, n * sizeof *table);
    if (code == DS_OK)
        code = l->conf.b->sync(l->conf.b);
    free(table);
    return code == DS_OK ? code : ds_err_set(err, code, "upload of the profile's tables failed");
}

static int by_size(const void *a, const void *b)
{
    double x = *(const double *)a, y = *(const double *)b;
    return x < y ? -1 : x > y;
}

/* Seconds of one launch among others, as in a round: the one before hides what launching costs the host. */
static ds_code time_once(ds_loop *l, ds_graph *g, double *ret)
{
    ds_backend *b = l->conf.b;
    DS_TRY(b->graph_launch(b, g));
    DS_TRY(b->mark(b, 0));
    for (int i = 0; i < IN_A_ROW; i++)
        DS_TRY(b->graph_launch(b, g));
    DS_TRY(b->mark(b, 1));
    DS_TRY(b->wait(b, 1));
    DS_TRY(b->elapsed(b, 0, 1, ret));
    *ret /= IN_A_ROW;
    return DS_OK;
}

static ds_code time_graph(ds_loop *l, ds_graph *g, int n, double before, double *ret, ds_err *err)
{
    double t[REPEATS];
    for (int i = 0; i < REPEATS; i++) {
        DS_TRY(fill_dummies(l, n, err));
        ds_code code = time_once(l, g, &t[i]);
        if (code != DS_OK)
            return ds_err_set(err, code, "timing a graph failed: %s", ds_err_name(code));
    }
    qsort(t, REPEATS, sizeof *t, by_size);
    *ret = t[REPEATS / 2] > before ? t[REPEATS / 2] : before; /* noise must not make more rows look cheaper */
    return DS_OK;
}

/* 1, 2, 4, 8 and on with one size between powers, then max itself. */
static int buckets(int max, int between, int *ret)
{
    int n = 0;
    for (int p = 1; p < max && n < DS_LOOP_BUCKETS - 2; p *= 2) {
        ret[n++] = p;
        if (between && p >= 8 && p + p / 2 < max)
            ret[n++] = p + p / 2;
    }
    ret[n++] = max;
    return n;
}

/* Costs that were given must be of these buckets. */
static ds_code check_costs(ds_loop *l, ds_err *err)
{
    const ds_loop_costs *have = l->conf.cost;
    ds_loop_costs *c = &l->cost;
    if (!have)
        return DS_OK;
    if (have->n_rows != c->n_rows || have->n_reqs != c->n_reqs ||
        memcmp(have->rows, c->rows, (size_t)c->n_rows * sizeof *c->rows) != 0 ||
        memcmp(have->reqs, c->reqs, (size_t)c->n_reqs * sizeof *c->reqs) != 0)
        return ds_err_field(err, DS_EINVAL, "cost", "the costs are of other buckets: measure again");
    memcpy(c->verify, have->verify, sizeof c->verify);
    memcpy(c->draft, have->draft, sizeof c->draft);
    return DS_OK;
}

static ds_code capture_all(ds_loop *l, ds_err *err)
{
    ds_loop_costs *c = &l->cost;
    int S = l->conf.max_seats, done = 0;
    c->n_rows = buckets(l->conf.max_rows, 1, c->rows);
    c->n_reqs = l->conf.draft ? buckets(S, 0, c->reqs) : 0;
    DS_TRY(check_costs(l, err));
    DS_TRY(dummy_tables(l, err));
    for (int i = 0; i < c->n_rows + c->n_reqs; i++) {
        int d = i - c->n_rows, draft = d >= 0, at = draft ? d : i, size = draft ? c->reqs[at] : c->rows[at];
        ds_graph **g = draft ? &l->draft[at] : &l->verify[at];
        double *t = draft ? &c->draft[at] : &c->verify[at];
        int n = size < S ? size : S;
        DS_TRY(fill_dummies(l, n, err));
        DS_TRY(capture(l, draft ? run_draft : run_verify, size, g, err));
        if (!l->conf.cost)
            DS_TRY(time_graph(l, *g, n, at ? t[-1] : 1e-9, t, err));
        if (l->conf.progress)
            l->conf.progress(l->conf.ctx, ++done, c->n_rows + c->n_reqs);
    }
    return DS_OK;
}

/* ---- life ---- */

static ds_code check(const ds_loop_conf *c, ds_err *err)
{
    struct {
        const char *name;
        int value, min, max;
    } field[] = {{"max_seats", c->max_seats, 1, DS_LOOP_MAX_SEATS},
                 {"max_rows", c->max_rows, c->max_seats, DS_LOOP_MAX_ROWS},
                 {"max_len", c->max_len, 1, c->page_stride * c->kv->page_tokens},
                 {"null_page", c->null_page, 0, c->kv->pages - 1}};
    for (size_t i = 0; i < sizeof field / sizeof *field; i++)
        if (field[i].value < field[i].min || field[i].value > field[i].max)
            return ds_err_field(err, DS_EINVAL, field[i].name, "%s is %d, must be %d..%d", field[i].name,
                                field[i].value, field[i].min, field[i].max);
    int block = c->draft ? ds_draft_get_info(c->draft)->block : 1;
    if (block > DS_STEP_BLOCK || block > c->page_stride * c->kv->page_tokens)
        return ds_err_field(err, DS_EINVAL, "block", "a block of %d drafts; at most %d here", block,
                            DS_STEP_BLOCK);
    return DS_OK;
}

ds_code ds_loop_create(const ds_loop_conf *conf, ds_loop **ret, ds_err *err)
{
    *ret = NULL;
    DS_TRY(check(conf, err));
    ds_loop *l = calloc(1, sizeof *l);
    if (!l)
        return ds_err_set(err, DS_ENOMEM, "no memory for the loop");
    l->conf = *conf;
    l->block = conf->draft ? ds_draft_get_info(conf->draft)->block : 1;
    l->page_tokens = conf->kv->page_tokens;
    ds_code code = allocate(l, err);
    if (code == DS_OK)
        code = upload_constants(l, err);
    if (code == DS_OK)
        code = capture_all(l, err);
    if (code != DS_OK) {
        ds_loop_destroy(l);
        return code;
    }
    *ret = l;
    return DS_OK;
}

void ds_loop_destroy(ds_loop *l)
{
    if (!l)
        return;
    ds_backend *b = l->conf.b;
    b->sync(b);
    for (int i = 0; i < DS_LOOP_BUCKETS; i++) {
        if (l->verify[i])
            b->graph_free(b, l->verify[i]);
        if (l->draft[i])
            b->graph_free(b, l->draft[i]);
    }
    for (int i = 0; i < DS_LOOP_DEPTH; i++) {
        if (l->flight[i].control)
            b->unpin(b, l->flight[i].control);
        if (l->flight[i].out)
            b->unpin(b, l->flight[i].out);
    }
    if (l->mem)
        b->free(b, l->mem);
    free(l->patch);
    free(l->expect);
    free(l->drafting);
    free(l->req);
    free(l->cand);
    free(l);
}

void ds_loop_get_costs(const ds_loop *l, ds_loop_costs *ret)
{
    *ret = l->cost;
}

uint64_t ds_loop_drafted(const ds_loop *l)
{
    return l->drafted;
}

int ds_loop_in_flight(const ds_loop *l)
{
    return (int)(l->launched - l->collected);
}

/* ---- seats ---- */

static float *expect_of(const ds_loop *l, int slot)
{
    return l->expect + (size_t)slot * (size_t)l->block;
}

ds_code ds_loop_enter(ds_loop *l, int slot, const ds_seat *seat, const int32_t *pages, int n_pages,
                      ds_err *err)
{
    ds_backend *b = l->conf.b;
    DS_ASSERT(!ds_loop_in_flight(l) && slot >= 0 && slot < l->conf.max_seats);
    DS_ASSERT(n_pages >= 0 && n_pages <= l->conf.page_stride && seat->n_stop <= DS_SEAT_STOPS);
    int32_t *row = l->table + (size_t)slot * (size_t)l->conf.page_stride;
    ds_code code = b->upload(b, l->seat + slot, seat, sizeof *seat);
    if (code == DS_OK && n_pages)
        code = b->upload(b, row, pages, (size_t)n_pages * sizeof *row);
    if (code != DS_OK)
        return ds_err_set(err, code, "upload of a seat failed");
    l->drafting[slot] = (uint8_t)(l->conf.draft ? seat->max_draft : 0);
    float *expect = expect_of(l, slot);
    expect[0] = -1.0f;
    if (seat->n_draft) {
        ds_calib_survival(seat->conf, l->conf.T, l->block, expect);
        l->on_offer = 1;
    }
    return DS_OK;
}

void ds_loop_page(ds_loop *l, int slot, int index, int32_t page)
{
    DS_ASSERT(l->n_patch < PATCHES * l->conf.max_seats && index >= 0 && index < l->conf.page_stride);
    l->patch[2 * l->n_patch] = slot * l->conf.page_stride + index;
    l->patch[2 * l->n_patch++ + 1] = page;
}

int ds_loop_reach(const ds_loop *l, int n)
{
    int block = l->conf.draft ? l->block : 0;
    int64_t most = (int64_t)n + (ds_loop_in_flight(l) + 1) * (block + 1) + block;
    return most < l->conf.max_len ? (int)most : l->conf.max_len;
}

void ds_loop_abandon(ds_loop *l)
{
    l->conf.b->sync(l->conf.b);
    l->collected = l->launched;
    l->n_patch = 0;
}

ds_code ds_loop_read(ds_loop *l, ds_seat *ret, ds_err *err)
{
    DS_ASSERT(!ds_loop_in_flight(l));
    ds_backend *b = l->conf.b;
    ds_code code = b->download(b, ret, l->seat, (size_t)l->conf.max_seats * sizeof *ret);
    return code == DS_OK ? code : ds_err_set(err, code, "reading the seats failed");
}

/* ---- what to run ---- */

static int fit(const int *size, int n, int want)
{
    int i = 0;
    while (i < n - 1 && size[i] < want)
        i++;
    return i;
}

/* Expected drafts of the seats, best first; those that newly came are taken to be typical. */
static int rank(ds_loop *l, const int *slot, int n)
{
    for (int i = 0; i < n; i++) {
        const float *mine = expect_of(l, slot[i]);
        int most = l->drafting[slot[i]] < l->block ? l->drafting[slot[i]] : l->block;
        l->req[i] = (ds_spec_req){.survival = mine[0] < 0 ? l->typical : mine, .n = most};
    }
    return ds_spec_rank(l->req, n, l->cand, l->cand + (size_t)l->conf.max_seats * (size_t)l->block);
}

/* The row bucket with the most expected tokens per second, draft pass included; *ret_drafts: 0 when plain
 * rounds are better. Under `coupled` acceptance any choice is legal, and this one is two rounds old. */
static int choose(ds_loop *l, const int *slot, int n, int *ret_drafts)
{
    const ds_loop_costs *c = &l->cost;
    int least = fit(c->rows, c->n_rows, n), best = least, n_cand = rank(l, slot, n);
    double draft = c->n_reqs ? c->draft[fit(c->reqs, c->n_reqs, n)] : 0, tau = n, most = 0;
    for (int i = least, k = 0; i < c->n_rows; i++) {
        for (; k < n_cand && k < c->rows[i] - n; k++)
            tau += (double)l->cand[k].a;
        double theta = tau / (c->verify[i] + draft);
        if (theta > most) {
            most = theta;
            best = i;
        }
        if (k == n_cand)
            break;
    }
    *ret_drafts = n_cand > 0 && most > n / c->verify[least];
    if (n_cand > 0 && !*ret_drafts && ++l->since_draft >= PROBE_ROUNDS)
        *ret_drafts = 1;
    if (*ret_drafts)
        l->since_draft = 0;
    return l->on_offer ? best : least;
}

static size_t write_control(ds_loop *l, int32_t *c, const int *slot, int n, int budget)
{
    c[DS_CONTROL_N] = n;
    c[DS_CONTROL_BUDGET] = budget;
    c[DS_CONTROL_PATCHES] = l->n_patch;
    c[3] = 0;
    for (int i = 0; i < n; i++)
        c[DS_CONTROL_SEATS + i] = slot[i];
    memcpy(c + DS_CONTROL_SEATS + n, l->patch, 2 * (size_t)l->n_patch * sizeof *c);
    size_t words = DS_CONTROL_SEATS + (size_t)n + 2 * (size_t)l->n_patch;
    l->n_patch = 0;
    return words * sizeof *c;
}

static ds_code enqueue(ds_loop *l, flight *f, int n, size_t bytes, int rows, int drafts, int mark,
                       ds_err *err)
{
    ds_backend *b = l->conf.b;
    ds_code code = b->push(b, l->control, f->control, bytes);
    if (code == DS_OK)
        code = b->graph_launch(b, l->verify[rows]);
    if (code == DS_OK)
        code = b->fetch(b, f->out, l->out, (size_t)n * sizeof *f->out);
    if (code == DS_OK)
        code = b->mark(b, mark);
    if (code == DS_OK && drafts)
        code = b->graph_launch(b, l->draft[fit(l->cost.reqs, l->cost.n_reqs, n)]);
    return code == DS_OK ? code : ds_err_set(err, code, "launching a round failed: %s", ds_err_name(code));
}

ds_code ds_loop_launch(ds_loop *l, const int *slot, int n, ds_err *err)
{
    DS_ASSERT(ds_loop_in_flight(l) < DS_LOOP_DEPTH && n >= 1 && n <= l->conf.max_seats);
    int at = (int)(l->launched % DS_LOOP_DEPTH), drafts;
    flight *f = &l->flight[at];
    int rows = choose(l, slot, n, &drafts);
    size_t bytes = write_control(l, f->control, slot, n, l->cost.rows[rows] - n);
    DS_TRY(enqueue(l, f, n, bytes, rows, drafts, at, err));
    f->n = n;
    l->launched++;
    l->drafted += (uint64_t)drafts;
    l->on_offer = drafts;
    return DS_OK;
}

/* Records tell what later rounds may expect. */
static void learn(ds_loop *l, const ds_round_out *o)
{
    memcpy(expect_of(l, o->seat), o->survival, (size_t)l->block * sizeof *o->survival);
    for (int k = 0; k < o->n_verify; k++)
        l->typical[k] += 0.02f * ((float)(k < o->n_accepted) - l->typical[k]);
}

ds_code ds_loop_collect(ds_loop *l, const ds_round_out **ret, int *ret_n, ds_err *err)
{
    DS_ASSERT(ds_loop_in_flight(l) > 0);
    int at = (int)(l->collected % DS_LOOP_DEPTH);
    const flight *f = &l->flight[at];
    ds_code code = l->conf.b->wait(l->conf.b, at);
    if (code != DS_OK)
        return ds_err_set(err, code, "a round failed: %s", ds_err_name(code));
    l->collected++;
    for (int i = 0; i < f->n; i++)
        learn(l, &f->out[i]);
    *ret = f->out;
    *ret_n = f->n;
    return DS_OK;
}
