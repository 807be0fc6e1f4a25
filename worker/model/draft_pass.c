/* draft_pass.c - the DSpark draft in ops of kernels.h. Its layers are the target's kind, so qwen3.c's parts
 * serve both; what is its own: K/V of the context come from the target's taps, all slots of a block see each
 * other, and the head is serial over the slots. Rows of the backbone are request-major, rows of the head
 * slot-major.
 *
 * A pass is driven by the host (ds_draft_block: any sampling, host arrays) or by the device (ds_draft_round:
 * seats, only enqueued ops); both run the same layers and head. */
#include "worker/model/draft_int.h"

#include "base/rng.h"

#include <string.h>

static ds_code norm(ds_draft *d, ds_vec w, const float *x, float *y, int T)
{
    ds_rmsnorm_args a = {.x = x, .w = w, .y = y, .eps = d->q.conf.eps, .T = T};
    return d->backend->rmsnorm(d->backend, &a);
}

static ds_code gather(ds_draft *d, const float *x, const int32_t *row, int R, int C, float *y, int y_stride)
{
    ds_gather_args a = {.x = x, .row = row, .y = y, .R = R, .C = C, .y_stride = y_stride};
    return d->backend->gather(d->backend, &a);
}

/* --- context ------------------------------------------------------------------------------------------ */

static ds_code context_layer(ds_draft *d, int i, const ds_kv_pool *kv, const ds_rows *rows)
{
    const ds_config *c = &d->q.conf;
    const ds_qwen3_layer *l = &d->q.layer[i];
    ds_backend *b = d->backend;
    int gd = c->kv_heads * c->head_dim, T = rows->T;
    float *wide = d->q.s.wide;
    DS_TRY(ds_qwen3_linear(b, &l->k, d->q.s.y, wide, 2 * gd, T, 0));
    DS_TRY(ds_qwen3_linear(b, &l->v, d->q.s.y, wide + gd, 2 * gd, T, 0));
    DS_TRY(ds_qwen3_bias(&d->q, b, &l->k_b, wide, 2 * gd, T));
    DS_TRY(ds_qwen3_bias(&d->q, b, &l->v_b, wide + gd, 2 * gd, T));
    ds_qkv_args a = {.rows = *rows,
                     .qkv = wide,
                     .k_norm = l->k_norm,
                     .rope = {.cos = d->q.s.cos, .sin = d->q.s.sin, .positions = d->q.max_positions},
                     .kv = kv->layer[i],
                     .eps = c->eps,
                     .G = c->kv_heads,
                     .D = c->head_dim};
    return b->qkv(b, &a);
}

/* taps [T, n_taps * C] of the rows, all in device memory. */
static ds_code context(ds_draft *d, const ds_kv_pool *kv, const ds_rows *rows, const float *taps)
{
    DS_TRY(ds_qwen3_linear(d->backend, &d->fc, taps, d->q.s.x, d->q.conf.hidden, rows->T, 0));
    DS_TRY(norm(d, d->hidden_norm, d->q.s.x, d->q.s.y, rows->T));
    for (int i = 0; i < d->info.layers; i++)
        DS_TRY(context_layer(d, i, kv, rows));
    return DS_OK;
}

static ds_code picked_context(ds_draft *d, const ds_kv_pool *kv, ds_rows rows, const float *taps,
                              const int32_t *pick, ds_err *err)
{
    int wide = d->conf.n_taps * d->q.conf.hidden;
    DS_TRY(ds_row_mirror_rows(&d->mirror, d->backend, &rows, err));
    DS_TRY(ds_row_mirror_more(&d->mirror, d->backend, 0, &pick, rows.T));
    DS_TRY(gather(d, taps, pick, rows.T, wide, d->f, wide));
    return context(d, kv, &rows, d->f);
}

static ds_code check_context(const ds_draft *d, int T, ds_err *err)
{
    if (T < 0 || T > d->max_rows)
        return ds_err_field(err, DS_EINVAL, "rows", "%d context rows; at most %d", T, d->max_rows);
    return DS_OK;
}

static ds_code say(ds_code code, const char *what, int n, ds_err *err)
{
    if (code == DS_OK || code == DS_ENOMEM)
        return code;
    return ds_err_set(err, code, "%s of %d failed: %s", what, n, ds_err_name(code));
}

ds_code ds_draft_context(ds_draft *d, const ds_kv_pool *kv, const ds_rows *rows, const float *taps,
                         const int32_t *pick, ds_err *err)
{
    DS_TRY(check_context(d, rows->T, err));
    return rows->T ? say(picked_context(d, kv, *rows, taps, pick, err), "context rows", rows->T, err) : DS_OK;
}

ds_code ds_draft_context_rows(ds_draft *d, const ds_kv_pool *kv, const ds_rows *rows, const float *taps,
                              ds_err *err)
{
    DS_TRY(check_context(d, rows->T, err));
    return say(context(d, kv, rows, taps), "context rows", rows->T, err);
}

/* --- backbone and head -------------------------------------------------------------------------------- */

/* h of all slots, slot-major, after the final norm; then the base logits of all slots. limit [T]: the last
 * position each row sees; order [T]: request-major row of each slot-major one. */
static ds_code backbone(ds_draft *d, const ds_kv_pool *kv, const ds_rows *rows, const int32_t *limit,
                        const int32_t *order)
{
    ds_backend *b = d->backend;
    ds_qwen3 *q = &d->q;
    int T = rows->T, C = q->conf.hidden;
    ds_rows seen = *rows;
    seen.pos = limit;
    ds_embed_args e = {.table = q->embed, .token = rows->token, .y = q->s.x, .T = T};
    DS_TRY(b->embed(b, &e));
    for (int i = 0; i < d->info.layers; i++) {
        DS_TRY(ds_qwen3_project(q, b, i, kv, rows));
        DS_TRY(ds_qwen3_attend(q, b, i, kv, &seen));
        DS_TRY(ds_qwen3_finish(q, b, i, q->s.mid, q->s.x, T));
    }
    DS_TRY(norm(d, q->norm, q->s.x, q->s.y, T));
    DS_TRY(gather(d, q->s.y, order, T, C, d->h, C));
    return ds_qwen3_linear(b, &q->head, d->h, q->s.logits, q->conf.vocab, T, 0);
}

/* logits of one slot += B_k; the slot's h and e are in cat. */
static ds_code markov(ds_draft *d, const float *h, float *logits, int R)
{
    ds_backend *b = d->backend;
    int C = d->q.conf.hidden, r = d->conf.rank;
    const float *bias = d->e;
    ds_cell_args cell = {.e = d->e, .state = d->state, .t = d->cell_in, .y = d->cell_out, .R = R, .N = r};
    if (d->conf.head == DS_HEAD_GATED) {
        cell.kind = DS_CELL_GATED;
        DS_TRY(ds_qwen3_linear(b, &d->gate, d->cat, d->cell_in, r, R, 0));
        DS_TRY(ds_qwen3_linear(b, &d->gate_b, d->one, d->cell_in, r, R, 1));
    } else if (d->conf.head == DS_HEAD_RNN) {
        cell.kind = DS_CELL_RNN;
        int wide = 2 * r + C;
        DS_TRY(gather(d, d->state, d->iota, R, r, d->joint, wide));
        DS_TRY(gather(d, d->e, d->iota, R, r, d->joint + r, wide));
        DS_TRY(gather(d, h, d->iota, R, C, d->joint + 2 * r, wide));
        DS_TRY(ds_qwen3_linear(b, &d->gate, d->joint, d->cell_in, 3 * r, R, 0));
        DS_TRY(ds_qwen3_linear(b, &d->gate_b, d->one, d->cell_in, 3 * r, R, 1));
    }
    if (d->conf.head != DS_HEAD_VANILLA) {
        DS_TRY(b->cell(b, &cell));
        bias = d->cell_out;
    }
    return ds_qwen3_linear(b, &d->w2, bias, logits, d->q.conf.vocab, R, 1);
}

static float *slot_logits(const ds_draft *d, int k, int R)
{
    return d->q.s.logits + (size_t)k * (size_t)R * (size_t)d->q.conf.vocab;
}

/* One slot for all requests: its logits get their bias. prev [R]: the tokens before it. */
static ds_code slot(ds_draft *d, const int32_t *prev, int k, int R)
{
    ds_backend *b = d->backend;
    int C = d->q.conf.hidden, r = d->conf.rank;
    const float *h = d->h + (size_t)k * (size_t)R * (size_t)C;
    if (!r)
        return DS_OK;
    ds_embed_args e = {.table = d->w1, .token = prev, .y = d->e, .T = R};
    DS_TRY(b->embed(b, &e));
    if (d->conf.head == DS_HEAD_GATED) {
        DS_TRY(gather(d, h, d->iota, R, C, d->cat, C + r));
        DS_TRY(gather(d, d->e, d->iota, R, r, d->cat + C, C + r));
    }
    return markov(d, h, slot_logits(d, k, R), R);
}

/* Confidence logits of all slots, which see the tokens before them and not their own. d->prev [block, R] */
static ds_code confidences(ds_draft *d, int R)
{
    ds_backend *b = d->backend;
    int C = d->q.conf.hidden, r = d->conf.rank, T = R * d->conf.block;
    if (!d->conf.confidence)
        return DS_OK;
    DS_TRY(gather(d, d->h, d->iota, T, C, d->cat, C + r));
    if (r) {
        ds_embed_args e = {.table = d->w1, .token = d->prev, .y = d->e, .T = T};
        DS_TRY(b->embed(b, &e));
        DS_TRY(gather(d, d->e, d->iota, T, r, d->cat + C, C + r));
    }
    ds_linear_args a = {.x = d->cat, .w = d->conf_w, .y = d->z, .T = T, .x_stride = C + r, .y_stride = 1};
    DS_TRY(b->linear(b, &a));
    return d->conf_b.data ? ds_qwen3_linear(b, &d->conf_b, d->one, d->z, 1, T, 1) : DS_OK;
}

/* --- driven by the host ------------------------------------------------------------------------------- */

static ds_code host_backbone(ds_draft *d, const ds_kv_pool *kv, const ds_draft_batch *bt, ds_err *err)
{
    int g = d->conf.block, T = bt->R * g;
    int32_t *token = d->rows, *pos = token + T, *seat = pos + T, *limit = seat + T, *order = limit + T;
    for (int t = 0; t < T; t++) {
        int r = t / g, k = t % g;
        token[t] = k ? d->conf.mask_token : bt->anchor[r];
        pos[t] = bt->start[r] + k;
        limit[t] = bt->start[r] + g - 1; /* every slot sees the whole block */
        seat[t] = bt->slot[r];
        order[k * bt->R + r] = t;
    }
    ds_rows rows = {T, token, pos, seat, bt->page_table, bt->page_stride, bt->page_tokens};
    const int32_t *seen = limit, *by_slot = order;
    DS_TRY(ds_row_mirror_rows(&d->mirror, d->backend, &rows, err));
    DS_TRY(ds_row_mirror_more(&d->mirror, d->backend, 0, &seen, T));
    DS_TRY(ds_row_mirror_more(&d->mirror, d->backend, 1, &by_slot, T));
    return backbone(d, kv, &rows, seen, by_slot);
}

/* Draw slot k and keep its tokens; host `prev` becomes them. */
static ds_code host_draw(ds_draft *d, const ds_draft_batch *bt, int32_t *prev, int k)
{
    ds_backend *b = d->backend;
    int R = bt->R, g = d->conf.block;
    for (int i = 0; i < R; i++) {
        d->row[i] = bt->row[i];
        d->row[i].pos = (int64_t)bt->start[i] + k + 1;
        d->row[i].n_logprobs = -1;
        d->row[i].given = -1;
        d->row[i].stream = bt->independent ? ds_rng_draft_stream(k) : DS_RNG_TOKEN;
        d->row[i].extra = bt->token + (size_t)i * (size_t)g;
        d->row[i].n_extra = bt->row[i].n_seen ? k : 0; /* with penalties: those of the block count too */
    }
    ds_sample_args s = {slot_logits(d, k, R), R, d->q.conf.vocab, d->row, d->out};
    DS_TRY(b->sample(b, &s));
    for (int i = 0; i < R; i++) {
        /* a row without numbers drafts nothing useful; any id is safe, the target refuses it */
        bt->conf[i * g + k] = d->out[i].bad ? -30.0f : 30.0f;
        prev[i] = bt->token[i * g + k] = d->out[i].bad ? 0 : d->out[i].token;
    }
    return DS_OK;
}

static ds_code host_confidences(ds_draft *d, const ds_draft_batch *bt)
{
    int R = bt->R, g = d->conf.block;
    float *z = d->numbers;
    if (!d->conf.confidence)
        return DS_OK;
    DS_TRY(confidences(d, R));
    DS_TRY(d->backend->download(d->backend, z, d->z, (size_t)(R * g) * sizeof *z));
    for (int t = 0; t < R * g; t++) { /* slot-major */
        float *c = &bt->conf[t % R * g + t / R];
        *c = *c < 0 || !(z[t] == z[t]) ? -30.0f : z[t];
    }
    return DS_OK;
}

static ds_code run_block(ds_draft *d, const ds_kv_pool *kv, const ds_draft_batch *bt, ds_err *err)
{
    ds_backend *b = d->backend;
    size_t R = (size_t)bt->R, state = R * (size_t)d->conf.rank;
    int32_t *prev = d->rows;
    DS_TRY(host_backbone(d, kv, bt, err));
    memset(d->numbers, 0, state * sizeof *d->numbers);
    if (state)
        DS_TRY(b->upload(b, d->state, d->numbers, state * sizeof *d->numbers));
    DS_TRY(b->sync(b)); /* the row arrays are used again */
    memcpy(prev, bt->anchor, R * sizeof *prev);
    for (int k = 0; k < d->conf.block; k++) {
        int32_t *before = d->prev + (size_t)k * R;
        DS_TRY(b->upload(b, before, prev, R * sizeof *prev));
        DS_TRY(slot(d, before, k, bt->R));
        DS_TRY(host_draw(d, bt, prev, k));
    }
    size_t V = (size_t)d->q.conf.vocab;
    if (bt->logits)
        *bt->logits = (ds_draft_logits){d->q.s.logits, R * V, V};
    return host_confidences(d, bt);
}

ds_code ds_draft_block(ds_draft *d, const ds_kv_pool *kv, const ds_draft_batch *b, ds_err *err)
{
    if (b->R < 1 || b->R > d->max_reqs)
        return ds_err_field(err, DS_EINVAL, "requests", "a draft pass of %d requests; 1..%d", b->R,
                            d->max_reqs);
    for (int i = 0; i < b->R; i++)
        if (b->start[i] < 0 || b->start[i] > d->q.max_positions - d->conf.block)
            return ds_err_field(err, DS_EINVAL, "start", "request %d: a block of %d at position %d passes %d",
                                i, d->conf.block, b->start[i], d->q.max_positions);
    return say(run_block(d, kv, b, err), "draft blocks", b->R, err);
}

/* --- driven by the device ----------------------------------------------------------------------------- */

static ds_code run_round(ds_draft *d, const ds_kv_pool *kv, const ds_draft_round *r)
{
    ds_backend *b = d->backend;
    int R = r->R, g = d->conf.block, V = d->q.conf.vocab;
    ds_block_args rows = {.control = r->control,
                          .seat = r->seat,
                          .R = R,
                          .S = r->S,
                          .block = g,
                          .mask_token = d->conf.mask_token,
                          .max_len = r->max_len,
                          .token = d->token,
                          .pos = d->pos,
                          .limit = d->limit,
                          .slot = d->slot,
                          .order = d->order,
                          .anchor = d->prev,
                          .start = d->start,
                          .row_seat = d->row_seat,
                          .state = d->state,
                          .n_state = R * d->conf.rank};
    DS_TRY(b->block(b, &rows));
    ds_rows bb = {R * g, d->token, d->pos, d->slot, r->page_table, r->page_stride, r->page_tokens};
    DS_TRY(backbone(d, kv, &bb, d->limit, d->order));
    for (int k = 0; k < g; k++) {
        int32_t *prev = d->prev + (size_t)k * (size_t)R;
        DS_TRY(slot(d, prev, k, R));
        ds_draw_args draw = {.logits = slot_logits(d, k, R),
                             .R = R,
                             .V = V,
                             .S = r->S,
                             .seat = r->seat,
                             .row_seat = d->row_seat,
                             .row_pos = d->start,
                             .ahead = k + 1,
                             .token = prev + R};
        DS_TRY(b->draw(b, &draw)); /* bad rows draft id 0: the target refuses it */
    }
    DS_TRY(confidences(d, R));
    ds_offer_args offer = {r->seat, d->row_seat, d->prev + R, d->conf.confidence ? d->z : NULL, R, r->S, g};
    return b->offer(b, &offer);
}

ds_code ds_draft_round_pass(ds_draft *d, const ds_kv_pool *kv, const ds_draft_round *r, ds_err *err)
{
    if (r->R < 1 || r->R > d->max_reqs)
        return ds_err_field(err, DS_EINVAL, "requests", "a draft pass of %d requests; 1..%d", r->R,
                            d->max_reqs);
    return say(run_round(d, kv, r), "draft blocks", r->R, err);
}
