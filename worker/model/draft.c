/* draft.c - the DSpark draft in ops of kernels.h. Its layers are the target's kind, so qwen3.c's parts serve
 * both; what is its own: K/V of the context come from the target's taps, all slots of a block see each other,
 * and the head is serial over the slots. Rows of the backbone are request-major, rows of the head slot-major.
 */
#include "worker/model/draft.h"

#include "base/rng.h"
#include "worker/model/qwen3.h"

#include <jansson.h>
#include <stdlib.h>
#include <string.h>

struct ds_draft {
    ds_draft_info info;
    ds_draft_conf conf;
    ds_qwen3 q; /* layers, final norm, embedding and head (own or the target's), scratch */
    ds_weights weights;
    ds_backend *backend;
    int max_rows, max_reqs;
    ds_dtype kv_dtype;                     /* the target's */
    ds_mat fc;                             /* [C, n_taps * C] */
    ds_vec hidden_norm;                    /* [C] */
    ds_mat w1, w2;                         /* [V, r] */
    ds_mat gate, gate_b;                   /* GATED: [r, C + r], [r, 1]; RNN: [3r, 2r + C], [3r, 1] */
    ds_mat conf_w, conf_b;                 /* [1, C (+ r)], [1, 1] */
    ds_mat own_embed, own_head;            /* data NULL: not in the file */
    void *block;                           /* scratch below, one allocation */
    float *f;                              /* [max_rows, n_taps * C] taps of accepted rows */
    float *cat;                            /* [R, C + r] h, e of one slot */
    float *joint;                          /* [R, 2r + C] state, e, h of one slot */
    float *e, *cell_in, *cell_out, *state; /* [R, r], [R, 3r], [R, r], [R, r] */
    float *h;                              /* [block * R, C] slot-major hidden */
    float *z;                              /* [block * R] confidence logits */
    float *one;                            /* [R] 1.0 */
    int32_t *token, *pos, *limit, *slot, *order, *prev; /* row arrays, rows = max_reqs * block */
    ds_sample_row *row;                                 /* [R] host */
    ds_sample_out *out;                                 /* [R] host */
};

/* --- open --------------------------------------------------------------------------------------------- */

static ds_code need(const char *key, int have, int want, ds_err *err)
{
    if (have == want)
        return DS_OK;
    return ds_err_field(err, DS_EINVAL, key, "draft: '%s' is %d, the target's is %d", key, have, want);
}

/* A draft made for another target would run and accept next to nothing. */
static ds_code check_pair(const ds_config *c, int vocab, int hidden, int layers, int kv_heads, int head_dim,
                          ds_err *err)
{
    if (!c->draft.block)
        return ds_err_field(err, DS_EUNSUPPORTED, "architectures",
                            "draft: 'architectures' names a target (%s), not a draft", c->arch);
    DS_TRY(need("vocab_size", c->vocab, vocab, err));
    DS_TRY(need("hidden_size", c->hidden, hidden, err));
    DS_TRY(need("num_key_value_heads", c->kv_heads, kv_heads, err));
    DS_TRY(need("head_dim", c->head_dim, head_dim, err));
    return need("num_target_layers", c->draft.target_layers, layers, err);
}

static void fill_info(ds_draft_info *o, const ds_config *c, ds_dtype kv)
{
    *o = (ds_draft_info){.block = c->draft.block,
                         .layers = c->layers,
                         .n_taps = c->draft.n_taps,
                         .mask_token = c->draft.mask_token,
                         .markov_rank = c->draft.rank,
                         .confidence = c->draft.confidence,
                         .head = c->draft.head};
    memcpy(o->taps, c->draft.taps, sizeof o->taps);
    o->kv_bytes_per_token =
        2 * (size_t)c->layers * (size_t)c->kv_heads * (size_t)c->head_dim * ds_dtype_size(kv);
}

/* sts.json: {"temperatures": [T_1, ...]}, made by tools/train; without it confidences are taken as they are.
 */
static ds_code read_temperatures(const char *dir, ds_draft_info *o, ds_err *err)
{
    enum { MAX_BYTES = 1 << 16 };
    static const char KEY[] = "temperatures";
    char *text;
    size_t n;
    for (int k = 0; k < o->block; k++)
        o->T[k] = 1.0;
    ds_code code = ds_file_read(dir, "sts.json", MAX_BYTES, &text, &n, err);
    if (code == DS_ENOTFOUND)
        return DS_OK;
    if (code != DS_OK)
        return code;
    json_t *root = json_loadb(text, n, JSON_REJECT_DUPLICATES, NULL);
    const json_t *list = json_object_get(root, KEY);
    free(text);
    o->calibrated = json_is_array(list) && json_array_size(list) == (size_t)o->block;
    for (int k = 0; o->calibrated && k < o->block; k++) {
        double T = json_number_value(json_array_get(list, (size_t)k));
        o->calibrated = T >= 0.01 && T <= 100.0;
        o->T[k] = T;
    }
    json_decref(root);
    if (o->calibrated)
        return DS_OK;
    return ds_err_field(err, DS_ECORRUPT, KEY, "sts.json: '%s' must be a list of %d numbers in 0.01..100",
                        KEY, o->block);
}

ds_code ds_draft_plan(const char *dir, const char *target_dir, ds_draft_info *ret, ds_err *err)
{
    ds_config c, t;
    DS_TRY(ds_config_load(target_dir, &t, err));
    DS_TRY(ds_config_load(dir, &c, err));
    DS_TRY(check_pair(&c, t.vocab, t.hidden, t.layers, t.kv_heads, t.head_dim, err));
    fill_info(ret, &c, DS_BF16);
    return read_temperatures(dir, ret, err);
}

static ds_code bind_head(ds_draft *d, ds_err *err)
{
    ds_weights *w = &d->weights;
    const ds_draft_conf *c = &d->conf;
    int C = d->q.conf.hidden, V = d->q.conf.vocab, r = c->rank;
    if (c->head != DS_HEAD_NONE) {
        DS_TRY(ds_weights_mat(w, "markov_head.markov_w1.weight", V, r, DS_WEIGHT_TABLE, &d->w1, err));
        DS_TRY(ds_weights_mat(w, "markov_head.markov_w2.weight", V, r, DS_WEIGHT_LINEAR, &d->w2, err));
    }
    if (c->head == DS_HEAD_GATED) {
        DS_TRY(ds_weights_mat(w, "markov_head.gate_proj.weight", r, C + r, DS_WEIGHT_LINEAR, &d->gate, err));
        DS_TRY(ds_weights_column(w, "markov_head.gate_proj.bias", r, &d->gate_b, err));
    }
    if (c->head == DS_HEAD_RNN) {
        DS_TRY(ds_weights_mat(w, "markov_head.joint_proj.weight", 3 * r, 2 * r + C, DS_WEIGHT_LINEAR,
                              &d->gate, err));
        DS_TRY(ds_weights_column(w, "markov_head.joint_proj.bias", 3 * r, &d->gate_b, err));
    }
    if (!c->confidence)
        return DS_OK;
    int k = C + (c->confidence_markov ? r : 0);
    DS_TRY(ds_weights_mat(w, "confidence_head.proj.weight", 1, k, DS_WEIGHT_LINEAR, &d->conf_w, err));
    if (ds_weights_has(w, "confidence_head.proj.bias")) /* V4's drafts have none */
        DS_TRY(ds_weights_column(w, "confidence_head.proj.bias", 1, &d->conf_b, err));
    return DS_OK;
}

static ds_code bind(ds_draft *d, ds_err *err)
{
    ds_weights *w = &d->weights;
    int C = d->q.conf.hidden, V = d->q.conf.vocab;
    if (ds_weights_has(w, "embed_tokens.weight"))
        DS_TRY(ds_weights_mat(w, "embed_tokens.weight", V, C, DS_WEIGHT_TABLE, &d->own_embed, err));
    if (ds_weights_has(w, "lm_head.weight"))
        DS_TRY(ds_weights_mat(w, "lm_head.weight", V, C, DS_WEIGHT_LINEAR, &d->own_head, err));
    DS_TRY(ds_weights_mat(w, "fc.weight", C, d->conf.n_taps * C, DS_WEIGHT_LINEAR, &d->fc, err));
    DS_TRY(ds_weights_vec(w, "hidden_norm.weight", C, &d->hidden_norm, err));
    DS_TRY(ds_weights_vec(w, "norm.weight", C, &d->q.norm, err));
    DS_TRY(ds_qwen3_bind_layers(&d->q, w, err));
    return bind_head(d, err);
}

/* Released drafts carry frozen copies of the target's tables: the same bytes are kept once. */
static int same(const ds_mat *a, const ds_mat *b)
{
    return !a->data || (a->dtype == b->dtype && a->dtype != DS_I8 &&
                        memcmp(a->data, b->data, (size_t)a->n * (size_t)a->k * ds_dtype_size(a->dtype)) == 0);
}

static void share_tables(ds_draft *d, const ds_model *target)
{
    ds_mat embed, head;
    ds_model_tables(target, &embed, &head);
    int e = same(&d->own_embed, &embed), h = same(&d->own_head, &head);
    d->q.embed = e ? embed : d->own_embed;
    d->q.head = h ? head : d->own_head;
    d->info.own_tables = !e || !h;
}

static size_t carve(ds_draft *d, char *base)
{
    size_t C = (size_t)d->q.conf.hidden, r = (size_t)(d->conf.rank ? d->conf.rank : 1),
           R = (size_t)d->max_reqs, at = 0;
    size_t rows = R * (size_t)d->conf.block, T = rows > (size_t)d->max_rows ? rows : (size_t)d->max_rows;
    struct {
        void *p;
        size_t n;
    } part[] = {{&d->f, (size_t)d->max_rows * (size_t)d->conf.n_taps * C},
                {&d->cat, R * (C + r)},
                {&d->joint, R * (C + 2 * r)},
                {&d->e, R * r},
                {&d->cell_in, R * 3 * r},
                {&d->cell_out, R * r},
                {&d->state, R * r},
                {&d->h, rows * C},
                {&d->z, rows},
                {&d->one, R},
                {&d->token, T},
                {&d->pos, T},
                {&d->limit, T},
                {&d->slot, T},
                {&d->order, T},
                {&d->prev, R}};
    for (size_t i = 0; i < sizeof part / sizeof *part; i++) {
        char *p = base ? base + at : NULL;
        memcpy(part[i].p, &p, sizeof p);
        at += (part[i].n * 4 + 63) / 64 * 64; /* float and int32_t alike */
    }
    return at;
}

static ds_code open_on(ds_draft *d, const char *dir, ds_model *target, ds_err *err)
{
    const ds_model_info *t = ds_model_get_info(target);
    ds_backend *b = d->backend;
    ds_config c;
    DS_TRY(ds_config_load(dir, &c, err));
    DS_TRY(check_pair(&c, t->vocab, t->hidden, t->layers, t->kv_heads, t->head_dim, err));
    if (!ds_backend_is_host(b))
        return ds_err_field(err, DS_EUNSUPPORTED, "device", "drafts run on the CPU back end only");
    if (c.max_positions < t->max_positions)
        return ds_err_field(err, DS_EINVAL, "max_position_embeddings",
                            "draft: 'max_position_embeddings' is %d, the target serves %d positions",
                            c.max_positions, t->max_positions);
    d->conf = c.draft;
    d->kv_dtype = t->kv_dtype;
    fill_info(&d->info, &c, t->kv_dtype);
    DS_TRY(read_temperatures(dir, &d->info, err));
    int rows = d->max_reqs * c.draft.block, most = rows > d->max_rows ? rows : d->max_rows;
    ds_model_opts opts = {.max_rows = most, .max_logit_rows = rows, .max_positions = t->max_positions};
    DS_TRY(ds_qwen3_init(&d->q, &c, &opts, "", err));
    DS_TRY(ds_weights_open(dir, 0, &d->weights, err));
    DS_TRY(bind(d, err));
    ds_weights_warn_extra(&d->weights);
    DS_TRY(ds_weights_load(&d->weights, b, err));
    share_tables(d, target);
    DS_TRY(ds_qwen3_alloc(&d->q, b, err));
    size_t bytes = carve(d, NULL);
    DS_TRY(b->alloc(b, bytes, &d->block, err));
    carve(d, d->block);
    for (int i = 0; i < d->max_reqs; i++)
        d->one[i] = 1.0f;
    d->row = calloc((size_t)d->max_reqs, sizeof *d->row);
    d->out = calloc((size_t)d->max_reqs, sizeof *d->out);
    if (!d->row || !d->out)
        return ds_err_set(err, DS_ENOMEM, "no memory for drafts of %d requests", d->max_reqs);
    d->info.weight_bytes = d->weights.step_bytes;
    d->info.scratch_bytes = d->q.scratch_bytes + bytes;
    return DS_OK;
}

ds_code ds_draft_open(const char *dir, ds_model *target, int max_rows, int max_reqs, ds_backend *b,
                      ds_draft **ret, ds_err *err)
{
    *ret = NULL;
    ds_draft *d = calloc(1, sizeof *d);
    if (!d)
        return ds_err_set(err, DS_ENOMEM, "no memory for a draft");
    d->backend = b;
    d->max_rows = max_rows;
    d->max_reqs = max_reqs;
    ds_code code = open_on(d, dir, target, err);
    if (code != DS_OK) {
        ds_draft_close(d);
        return code;
    }
    *ret = d;
    return DS_OK;
}

void ds_draft_close(ds_draft *d)
{
    if (!d)
        return;
    if (d->block)
        d->backend->free(d->backend, d->block);
    free(d->row);
    free(d->out);
    ds_qwen3_free(&d->q, d->backend);
    ds_weights_close(&d->weights);
    free(d);
}

const ds_draft_info *ds_draft_get_info(const ds_draft *d)
{
    return &d->info;
}

ds_code ds_draft_kv_alloc(ds_draft *d, int pages, int page_tokens, ds_kv_pool *ret, ds_err *err)
{
    const ds_config *c = &d->q.conf;
    return ds_kv_pool_alloc(d->backend, c->layers, c->kv_heads, c->head_dim, d->kv_dtype, pages, page_tokens,
                            ret, err);
}

void ds_draft_kv_free(ds_draft *d, ds_kv_pool *kv)
{
    ds_kv_pool_free(d->backend, kv);
}

/* --- context ------------------------------------------------------------------------------------------ */

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

ds_code ds_draft_context(ds_draft *d, const ds_kv_pool *kv, const ds_rows *rows, const float *taps,
                         const int32_t *pick, ds_err *err)
{
    int T = rows->T, wide = d->conf.n_taps * d->q.conf.hidden;
    if (T < 0 || T > d->max_rows)
        return ds_err_field(err, DS_EINVAL, "rows", "%d context rows; at most %d", T, d->max_rows);
    if (T == 0)
        return DS_OK;
    ds_code code = gather(d, taps, pick, T, wide, d->f, wide);
    if (code == DS_OK)
        code = ds_qwen3_linear(d->backend, &d->fc, d->f, d->q.s.x, d->q.conf.hidden, T, 0);
    if (code == DS_OK)
        code = norm(d, d->hidden_norm, d->q.s.x, d->q.s.y, T);
    for (int i = 0; i < d->info.layers && code == DS_OK; i++)
        code = context_layer(d, i, kv, rows);
    return code == DS_OK ? DS_OK
                         : ds_err_set(err, code, "context of %d rows failed: %s", T, ds_err_name(code));
}

/* --- block -------------------------------------------------------------------------------------------- */

/* h of all slots, slot-major, after the final norm. */
static ds_code backbone(ds_draft *d, const ds_kv_pool *kv, const ds_draft_batch *bt)
{
    ds_backend *b = d->backend;
    ds_qwen3 *q = &d->q;
    int g = d->conf.block, T = bt->R * g, C = q->conf.hidden;
    for (int t = 0; t < T; t++) {
        int r = t / g, k = t % g;
        d->token[t] = k ? d->conf.mask_token : bt->anchor[r];
        d->pos[t] = bt->start[r] + k;
        d->limit[t] = bt->start[r] + g - 1; /* every slot sees the whole block */
        d->slot[t] = bt->slot[r];
        d->order[k * bt->R + r] = t;
    }
    ds_rows rows = {T, d->token, d->pos, d->slot, bt->page_table, bt->page_stride, bt->page_tokens},
            seen = rows;
    seen.pos = d->limit;
    ds_embed_args e = {.table = q->embed, .token = d->token, .y = q->s.x, .T = T};
    DS_TRY(b->embed(b, &e));
    for (int i = 0; i < d->info.layers; i++) {
        DS_TRY(ds_qwen3_project(q, b, i, kv, &rows));
        DS_TRY(ds_qwen3_attend(q, b, i, kv, &seen));
        DS_TRY(ds_qwen3_finish(q, b, i, q->s.mid, q->s.x, T));
    }
    DS_TRY(norm(d, q->norm, q->s.x, q->s.y, T));
    return gather(d, q->s.y, d->order, T, C, d->h, C);
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
        DS_TRY(gather(d, d->state, d->order, R, r, d->joint, wide));
        DS_TRY(gather(d, d->e, d->order, R, r, d->joint + r, wide));
        DS_TRY(gather(d, h, d->order, R, C, d->joint + 2 * r, wide));
        DS_TRY(ds_qwen3_linear(b, &d->gate, d->joint, d->cell_in, 3 * r, R, 0));
        DS_TRY(ds_qwen3_linear(b, &d->gate_b, d->one, d->cell_in, 3 * r, R, 1));
    }
    if (d->conf.head != DS_HEAD_VANILLA) {
        DS_TRY(b->cell(b, &cell));
        bias = d->cell_out;
    }
    return ds_qwen3_linear(b, &d->w2, bias, logits, d->q.conf.vocab, R, 1);
}

/* One slot for all requests: bias, draw, confidence. order holds 0..R-1 here. */
static ds_code slot(ds_draft *d, const ds_draft_batch *bt, int k)
{
    ds_backend *b = d->backend;
    int R = bt->R, C = d->q.conf.hidden, V = d->q.conf.vocab, r = d->conf.rank, g = d->conf.block;
    const float *h = d->h + (size_t)k * (size_t)R * (size_t)C;
    float *logits = d->q.s.logits + (size_t)k * (size_t)R * (size_t)V, *z = d->z + (size_t)k * (size_t)R;
    DS_TRY(gather(d, h, d->order, R, C, d->cat, C + r));
    if (r) {
        ds_embed_args e = {.table = d->w1, .token = d->prev, .y = d->e, .T = R};
        DS_TRY(b->embed(b, &e));
        DS_TRY(gather(d, d->e, d->order, R, r, d->cat + C, C + r));
        DS_TRY(markov(d, h, logits, R));
    }
    if (d->conf.confidence) {
        ds_linear_args a = {.x = d->cat, .w = d->conf_w, .y = z, .T = R, .x_stride = C + r, .y_stride = 1};
        DS_TRY(b->linear(b, &a));
        if (d->conf_b.data)
            DS_TRY(ds_qwen3_linear(b, &d->conf_b, d->one, z, 1, R, 1));
    }
    for (int i = 0; i < R; i++) {
        d->row[i] = bt->row[i];
        d->row[i].pos = (int64_t)bt->start[i] + k + 1;
        d->row[i].n_logprobs = -1;
        d->row[i].given = -1;
        d->row[i].stream = bt->independent ? ds_rng_draft_stream(k) : DS_RNG_TOKEN;
        d->row[i].extra = bt->token + (size_t)i * (size_t)g;
        d->row[i].n_extra = bt->row[i].n_seen ? k : 0; /* with penalties: those of the block count too */
    }
    ds_sample_args s = {logits, R, V, d->row, d->out};
    DS_TRY(b->sample(b, &s));
    for (int i = 0; i < R; i++) {
        /* a row without numbers drafts nothing useful; any id is safe, the target refuses it */
        int32_t x = d->out[i].bad ? 0 : d->out[i].token;
        d->prev[i] = bt->token[i * g + k] = x;
        bt->conf[i * g + k] = !d->conf.confidence ? 30.0f : d->out[i].bad || !(z[i] == z[i]) ? -30.0f : z[i];
    }
    return DS_OK;
}

static ds_code run_block(ds_draft *d, const ds_kv_pool *kv, const ds_draft_batch *bt)
{
    int R = bt->R, g = d->conf.block;
    DS_TRY(backbone(d, kv, bt));
    DS_TRY(ds_qwen3_linear(d->backend, &d->q.head, d->h, d->q.s.logits, d->q.conf.vocab, R * g, 0));
    for (int i = 0; i < R; i++) {
        d->order[i] = i;
        d->prev[i] = bt->anchor[i];
    }
    memset(d->state, 0, (size_t)R * (size_t)d->conf.rank * sizeof *d->state);
    for (int k = 0; k < g; k++)
        DS_TRY(slot(d, bt, k));
    size_t V = (size_t)d->q.conf.vocab;
    if (bt->logits)
        *bt->logits = (ds_draft_logits){d->q.s.logits, (size_t)R * V, V};
    return DS_OK;
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
    ds_code code = run_block(d, kv, b);
    return code == DS_OK ? DS_OK
                         : ds_err_set(err, code, "draft of %d blocks failed: %s", b->R, ds_err_name(code));
}
