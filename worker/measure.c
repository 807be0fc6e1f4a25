#include "worker/measure.h"

#include <stdlib.h>

enum { NEAR = 64, REPEATS = 3 };

typedef struct bench { /* dummy but valid work of one sequence */
    const ds_measure *m;
    int32_t *table; /* [stride] page i of the sequence is page i of the pool */
    int stride;
    int32_t *token, *pos, *slot, *pick; /* [n], n the larger of max_rows and max_seqs */
    ds_sample_row *row;                 /* [n] */
    ds_sample_out *out;                 /* [n] */
    int32_t *x;                         /* [max_seqs * block] */
    float *z;
    uint64_t until_ns;
} bench;

static int late(const bench *b)
{
    return ds_clock_ns(b->m->clock) > b->until_ns;
}

/* A target pass of `rows` rows behind `start` tokens, a choice for each, and their draft context. */
static ds_code verify(bench *b, int rows, int start, ds_err *err)
{
    const ds_target *t = b->m->target;
    for (int i = 0; i < rows; i++) {
        b->token[i] = i % t->info->vocab;
        b->pos[i] = start + i;
        b->slot[i] = 0;
        b->pick[i] = i;
        b->row[i] = (ds_sample_row){
            .temperature = 1, .top_p = 1, .repetition = 1, .pos = start, .n_logprobs = -1, .given = -1};
    }
    ds_step_args a = {.rows = {rows, b->token, b->pos, b->slot, b->table, b->stride, b->m->page_tokens},
                      .logit_row = b->pick,
                      .R = rows};
    DS_TRY(t->forward(t->model, b->m->kv, &a, err));
    ds_sample_args sa = {a.logits, rows, t->info->vocab, b->row, b->out};
    DS_TRY(t->sample(t->device, &sa));
    const ds_drafter *d = b->m->drafter;
    return d->context(d->draft, b->m->draft_kv, &a.rows, a.taps, b->pick, err);
}

static ds_code draft(bench *b, int R, int start, ds_err *err)
{
    const ds_drafter *d = b->m->drafter;
    for (int i = 0; i < R; i++) {
        b->token[i] = b->slot[i] = 0;
        b->pos[i] = start;
        b->row[i] = (ds_sample_row){.temperature = 1, .top_p = 1, .repetition = 1};
    }
    ds_draft_batch db = {.R = R,
                         .anchor = b->token,
                         .start = b->pos,
                         .slot = b->slot,
                         .page_table = b->table,
                         .page_stride = b->stride,
                         .page_tokens = b->m->page_tokens,
                         .row = b->row,
                         .token = b->x,
                         .conf = b->z};
    return d->propose(d->draft, b->m->draft_kv, &db, err);
}

typedef ds_code pass_fn(bench *, int n, int start, ds_err *);

static int by_size(const void *a, const void *b)
{
    double x = *(const double *)a, y = *(const double *)b;
    return x < y ? -1 : x > y;
}

/* Median of some passes after one that warms up; a single one when time is short. */
static ds_code seconds_of(bench *b, pass_fn *pass, int n, int start, double *ret, ds_err *err)
{
    double t[REPEATS];
    int k = 0;
    DS_TRY(pass(b, n, start, err));
    while (k < REPEATS && (k == 0 || !late(b))) {
        uint64_t began = ds_clock_ns(b->m->clock);
        DS_TRY(pass(b, n, start, err));
        t[k++] = (double)(ds_clock_ns(b->m->clock) - began) * 1e-9;
    }
    qsort(t, (size_t)k, sizeof *t, by_size);
    *ret = t[k / 2] > 1e-9 ? t[k / 2] : 1e-9;
    return DS_OK;
}

/* Sizes 1, 2, 4 ... max, as far as the time goes, but at least two. Noise must not make more look cheaper. */
static ds_code sweep(bench *b, pass_fn *pass, int max, int start, int *at, double *seconds, int *ret_n,
                     ds_err *err)
{
    int n = 0;
    for (int size = 1; n < DS_PROFILE_POINTS && (n < 2 || !late(b)); size = size * 2 < max ? size * 2 : max) {
        DS_TRY(seconds_of(b, pass, size, start, &seconds[n], err));
        at[n] = size;
        if (n && seconds[n] < seconds[n - 1])
            seconds[n] = seconds[n - 1];
        n++;
        if (size == max)
            break;
    }
    *ret_n = n;
    return DS_OK;
}

/* Longer contexts: measured with one row and with a few; what they cost more is taken to grow with rows. */
static ds_code contexts(bench *b, ds_profile *p, ds_err *err)
{
    int few = p->rows[p->n_rows / 2];
    for (int ctx = NEAR * 8; p->n_ctx < DS_PROFILE_CONTEXTS && ctx + few <= b->m->max_len && !late(b);
         ctx *= 4) {
        double one, some;
        DS_TRY(seconds_of(b, verify, 1, ctx, &one, err));
        DS_TRY(seconds_of(b, verify, few, ctx, &some, err));
        double more = one - p->verify[0][0], slope = 0;
        if (few > 1)
            slope = (some - p->verify[0][p->n_rows / 2] - more) / (few - 1);
        for (int i = 0; i < p->n_rows; i++) {
            double t = p->verify[0][i] + more + slope * (p->rows[i] - 1), least = p->verify[p->n_ctx - 1][i];
            p->verify[p->n_ctx][i] = t > least ? t : least;
        }
        p->ctx[p->n_ctx++] = ctx;
    }
    return DS_OK;
}

static ds_code run(bench *b, ds_profile *p, ds_err *err)
{
    const ds_measure *m = b->m;
    double budget = m->budget_s > 0 ? m->budget_s : DS_MEASURE_BUDGET_S;
    int g = m->drafter->block, rows = m->max_rows < m->max_len ? m->max_rows : m->max_len;
    int start = m->max_len - (rows > g ? rows : g);
    start = start < 0 ? 0 : start < NEAR ? start : NEAR;
    uint64_t began = ds_clock_ns(m->clock), part = (uint64_t)(budget * 1e9 / 2);
    b->until_ns = began + part;
    DS_TRY(sweep(b, verify, rows, start, p->rows, p->verify[0], &p->n_rows, err));
    p->ctx[0] = start;
    p->n_ctx = 1;
    b->until_ns = began + part + part / 2;
    if (m->max_len > g)
        DS_TRY(sweep(b, draft, m->max_seqs, start, p->reqs, p->draft, &p->n_reqs, err));
    b->until_ns = began + 2 * part;
    return contexts(b, p, err);
}

ds_code ds_measure_profile(const ds_measure *m, ds_profile *ret, ds_err *err)
{
    size_t n = (size_t)(m->max_rows > m->max_seqs ? m->max_rows : m->max_seqs),
           blocks = (size_t)m->max_seqs * (size_t)m->drafter->block;
    bench b = {.m = m, .stride = (m->max_len + m->page_tokens - 1) / m->page_tokens};
    *ret = (ds_profile){0};
    b.table = calloc((size_t)b.stride, sizeof *b.table);
    b.token = calloc(4 * n, sizeof *b.token);
    b.row = calloc(n, sizeof *b.row);
    b.out = calloc(n, sizeof *b.out);
    b.x = calloc(blocks, sizeof *b.x);
    b.z = calloc(blocks, sizeof *b.z);
    ds_code code = DS_OK;
    if (!b.table || !b.token || !b.row || !b.out || !b.x || !b.z)
        code = ds_err_set(err, DS_ENOMEM, "no memory to measure steps of %zu rows", n);
    for (int i = 0; b.table && i < b.stride; i++)
        b.table[i] = i; /* max_len fits the pool */
    if (code == DS_OK) {
        b.pos = b.token + n;
        b.slot = b.pos + n;
        b.pick = b.slot + n;
        code = run(&b, ret, err);
    }
    free(b.table);
    free(b.token);
    free(b.row);
    free(b.out);
    free(b.x);
    free(b.z);
    return code;
}
