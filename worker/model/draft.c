/* draft.c - opens a draft: checks it against its target, binds its tensors, sizes its scratch. Its passes are
 * in draft_pass.c. */
#include "worker/model/draft_int.h"

#include <jansson.h>
#include <stdlib.h>
#include <string.h>

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
    int host = ds_backend_is_host(d->backend); /* a device's copies are not read back: own ones are kept */
    int e = host ? same(&d->own_embed, &embed) : !d->own_embed.data;
    int h = host ? same(&d->own_head, &head) : !d->own_head.data;
    d->q.embed = e ? embed : d->own_embed;
    d->q.head = h ? head : d->own_head;
    d->info.own_tables = !e || !h;
}

static size_t carve(ds_draft *d, char *base)
{
    size_t C = (size_t)d->q.conf.hidden, r = (size_t)(d->conf.rank ? d->conf.rank : 1),
           R = (size_t)d->max_reqs, at = 0;
    size_t rows = R * (size_t)d->conf.block;
    struct {
        void *p;
        size_t n;
    } part[] = {{&d->f, (size_t)d->max_rows * (size_t)d->conf.n_taps * C},
                {&d->cat, rows * (C + r)},
                {&d->joint, R * (C + 2 * r)},
                {&d->e, rows * r},
                {&d->cell_in, R * 3 * r},
                {&d->cell_out, R * r},
                {&d->state, R * r},
                {&d->h, rows * C},
                {&d->z, rows},
                {&d->one, rows},
                {&d->iota, rows},
                {&d->token, rows},
                {&d->pos, rows},
                {&d->limit, rows},
                {&d->slot, rows},
                {&d->order, rows},
                {&d->prev, rows + R},
                {&d->start, R},
                {&d->row_seat, R}};
    for (size_t i = 0; i < sizeof part / sizeof *part; i++) {
        char *p = base ? base + at : NULL;
        memcpy(part[i].p, &p, sizeof p);
        at += (part[i].n * 4 + 63) / 64 * 64; /* float and int32_t alike */
    }
    return at;
}

/* Host side of a pass driven by the host, and the constants of the device's. */
static ds_code make_host(ds_draft *d, size_t most, ds_err *err)
{
    size_t R = (size_t)d->max_reqs, rows = R * (size_t)d->conf.block, states = R * (size_t)d->conf.rank;
    d->row = calloc(R, sizeof *d->row);
    d->out = calloc(R, sizeof *d->out);
    d->rows = calloc(6 * most, sizeof *d->rows);
    d->numbers = calloc(rows > states ? rows : states, sizeof *d->numbers);
    if (!d->row || !d->out || !d->rows || !d->numbers)
        return ds_err_set(err, DS_ENOMEM, "no memory for drafts of %d requests", d->max_reqs);
    for (size_t i = 0; i < rows; i++) {
        d->numbers[i] = 1.0f;
        d->rows[i] = (int32_t)i;
    }
    DS_TRY(d->backend->upload(d->backend, d->one, d->numbers, rows * sizeof(float)));
    DS_TRY(d->backend->upload(d->backend, d->iota, d->rows, rows * sizeof(int32_t)));
    return d->backend->sync(d->backend);
}

static ds_code open_on(ds_draft *d, const char *dir, ds_model *target, ds_err *err)
{
    const ds_model_info *t = ds_model_get_info(target);
    ds_backend *b = d->backend;
    ds_config c;
    DS_TRY(ds_config_load(dir, &c, err));
    DS_TRY(check_pair(&c, t->vocab, t->hidden, t->layers, t->kv_heads, t->head_dim, err));
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
    DS_TRY(make_host(d, (size_t)most, err));
    DS_TRY(ds_row_mirror_init(&d->mirror, b, most, 2, err));
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
    ds_row_mirror_free(&d->mirror, d->backend);
    free(d->row);
    free(d->out);
    free(d->rows);
    free(d->numbers);
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
