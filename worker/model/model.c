/* model.c - opens a folder, plans its memory, owns the KV pool's layout and checks every step before it
 * reaches the ops. One architecture today; another is one more bind/alloc/forward beside qwen3. */
#include "worker/model/model.h"
#include "base/log.h"
#include "worker/model/mirror.h"
#include "worker/model/qwen3.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

struct ds_model {
    ds_model_info info;
    ds_config conf;
    ds_weights weights;
    ds_qwen3 qwen3;
    ds_backend *backend;
    ds_row_mirror mirror;
};

/* --- open --------------------------------------------------------------------------------------------- */

/* Index of value among the words of choices ("auto|int8"); NULL is the first. */
static ds_code parse_choice(const char *key, const char *value, const char *choices, int *ret, ds_err *err)
{
    int index = 0;
    for (const char *c = choices; value; c = strchr(c, '|') + 1, index++) {
        size_t n = strcspn(c, "|");
        if (strlen(value) == n && memcmp(value, c, n) == 0)
            break;
        if (!c[n])
            return ds_err_field(err, DS_EINVAL, key, "%s is '%.40s', must be one of %s", key, value, choices);
    }
    *ret = index;
    return DS_OK;
}

static void fill_info(ds_model *m, ds_dtype stored, ds_dtype kv)
{
    const ds_config *c = &m->conf;
    ds_model_info *o = &m->info;
    *o = (ds_model_info){.vocab = c->vocab,
                         .hidden = c->hidden,
                         .layers = c->layers,
                         .heads = c->heads,
                         .kv_heads = c->kv_heads,
                         .head_dim = c->head_dim,
                         .mlp = c->mlp,
                         .max_positions = m->qwen3.max_positions,
                         .n_eos = c->n_eos,
                         .kv_layers = c->layers,
                         .kv_heads_cache = c->kv_heads,
                         .kv_head_dim = c->head_dim,
                         .kv_dtype = kv,
                         .weight_dtype = stored,
                         .weight_bytes = m->weights.step_bytes,
                         .weight_mem_bytes = m->weights.mem_bytes,
                         .scratch_bytes = m->qwen3.scratch_bytes,
                         .params = m->weights.params,
                         .temperature = c->temperature,
                         .top_p = c->top_p,
                         .top_k = c->top_k};
    memcpy(o->arch, c->arch, sizeof o->arch);
    memcpy(o->eos, c->eos, sizeof o->eos);
    o->kv_bytes_per_token =
        2 * (size_t)c->layers * (size_t)c->kv_heads * (size_t)c->head_dim * ds_dtype_size(kv);
}

/* Everything that the headers and configs can tell; no weight is read. */
static ds_code prepare(ds_model *m, const char *dir, const ds_model_opts *opts, ds_err *err)
{
    int weights, kv;
    DS_TRY(parse_choice("weights", opts->weights, "auto|int8", &weights, err));
    DS_TRY(parse_choice("kv_dtype", opts->kv_dtype, "auto|f32|bf16", &kv, err));
    DS_TRY(ds_config_load(dir, &m->conf, err));
    if (m->conf.draft.block)
        return ds_err_field(err, DS_EUNSUPPORTED, "architectures",
                            "config.json: this is a draft (%s); give it as --draft, beside its target",
                            m->conf.arch);
    DS_TRY(ds_weights_open(dir, weights == 1, &m->weights, err));
    DS_TRY(ds_qwen3_bind(&m->qwen3, &m->conf, opts, &m->weights, err));
    ds_dtype held = m->qwen3.head.dtype, table = m->qwen3.embed.dtype;
    ds_dtype cache = kv == 1 || (kv == 0 && table == DS_F32) ? DS_F32 : DS_BF16;
    fill_info(m, held, cache);
    return DS_OK;
}

static ds_code open_on(ds_model *m, ds_backend *b, ds_err *err)
{
    m->backend = b;
    ds_weights_warn_extra(&m->weights);
    DS_TRY(ds_weights_load(&m->weights, b, err));
    DS_TRY(ds_qwen3_alloc(&m->qwen3, b, err));
    return ds_row_mirror_init(&m->mirror, b, m->qwen3.max_rows, 1, err);
}

ds_code ds_model_open(const char *dir, const ds_model_opts *opts, ds_backend *b, ds_model **ret, ds_err *err)
{
    ds_model *m = calloc(1, sizeof *m);
    if (!m)
        return ds_err_set(err, DS_ENOMEM, "no memory for a model");
    ds_code code = prepare(m, dir, opts, err);
    if (code == DS_OK)
        code = open_on(m, b, err);
    if (code != DS_OK) {
        ds_model_close(m);
        return code;
    }
    *ret = m;
    return DS_OK;
}

void ds_model_close(ds_model *m)
{
    if (!m)
        return;
    ds_row_mirror_free(&m->mirror, m->backend);
    ds_qwen3_free(&m->qwen3, m->backend);
    ds_weights_close(&m->weights);
    free(m);
}

const ds_model_info *ds_model_get_info(const ds_model *m)
{
    return &m->info;
}

ds_code ds_model_plan(const char *dir, const ds_model_opts *opts, ds_model_info *ret, ds_err *err)
{
    ds_model *m = calloc(1, sizeof *m);
    if (!m)
        return ds_err_set(err, DS_ENOMEM, "no memory for a model");
    ds_code code = prepare(m, dir, opts, err);
    *ret = m->info;
    ds_model_close(m);
    return code;
}

void ds_model_tables(const ds_model *m, ds_mat *ret_embed, ds_mat *ret_head)
{
    *ret_embed = m->qwen3.embed;
    *ret_head = m->qwen3.head;
}

/* --- KV ----------------------------------------------------------------------------------------------- */

ds_code ds_model_kv_alloc(ds_model *m, int pages, int page_tokens, ds_kv_pool *ret, ds_err *err)
{
    const ds_model_info *o = &m->info;
    return ds_kv_pool_alloc(m->backend, o->kv_layers, o->kv_heads_cache, o->kv_head_dim, o->kv_dtype, pages,
                            page_tokens, ret, err);
}

void ds_model_kv_free(ds_model *m, ds_kv_pool *kv)
{
    ds_kv_pool_free(m->backend, kv);
}

/* --- forward ------------------------------------------------------------------------------------------ */

/* A wrong row would read or write outside the tables, so each is checked; the cost is a few ns per row. */
static ds_code check_rows(const ds_model *m, const ds_kv_pool *kv, const ds_step_args *a, ds_err *err)
{
    const ds_rows *r = &a->rows;
    if (r->T < 1 || r->T > m->qwen3.max_rows || a->R < 0 || a->R > r->T || a->R > m->qwen3.max_logit_rows)
        return ds_err_field(err, DS_EINVAL, "rows", "step of %d rows, %d with logits; at most %d and %d",
                            r->T, a->R, m->qwen3.max_rows, m->qwen3.max_logit_rows);
    if (r->page_tokens != kv->page_tokens)
        return ds_err_field(err, DS_EINVAL, "page_tokens", "page_tokens is %d, the pool has %d",
                            r->page_tokens, kv->page_tokens);
    for (int t = 0; t < r->T; t++) {
        int p = r->pos[t], page = p / r->page_tokens;
        if (r->token[t] < 0 || r->token[t] >= m->conf.vocab)
            return ds_err_field(err, DS_EINVAL, "token", "row %d: token %d is not in 0..%d", t, r->token[t],
                                m->conf.vocab - 1);
        if (p < 0 || p >= m->qwen3.max_positions || r->slot[t] < 0 || page >= r->page_stride)
            return ds_err_field(err, DS_EINVAL, "pos", "row %d: position %d of slot %d is outside the tables",
                                t, p, r->slot[t]);
        int32_t id = r->page_table[(size_t)r->slot[t] * (size_t)r->page_stride + (size_t)page];
        if (id < 0 || id >= kv->pages)
            return ds_err_field(err, DS_EINVAL, "page_table", "row %d: page %d is not in 0..%d", t, id,
                                kv->pages - 1);
    }
    for (int i = 0; i < a->R; i++)
        if (a->logit_row[i] < 0 || a->logit_row[i] >= r->T || (i && a->logit_row[i] <= a->logit_row[i - 1]))
            return ds_err_field(err, DS_EINVAL, "logit_row",
                                "logit_row %d is %d; rows must rise within 0..%d", i, a->logit_row[i],
                                r->T - 1);
    return DS_OK;
}

ds_code ds_model_forward(ds_model *m, const ds_kv_pool *kv, ds_step_args *a, ds_err *err)
{
    DS_TRY(check_rows(m, kv, a, err));
    ds_step_args dev = *a;
    ds_code code = ds_row_mirror_rows(&m->mirror, m->backend, &dev.rows, err);
    if (code == DS_OK)
        code = ds_row_mirror_more(&m->mirror, m->backend, 0, &dev.logit_row, a->R);
    if (code != DS_OK)
        return code == DS_ENOMEM ? code : ds_err_set(err, code, "upload of %d rows failed", a->rows.T);
    DS_TRY(ds_qwen3_forward(&m->qwen3, m->backend, kv, &dev, err));
    a->logits = dev.logits;
    a->taps = dev.taps;
    return DS_OK;
}

ds_code ds_model_forward_rows(ds_model *m, const ds_kv_pool *kv, ds_step_args *a, ds_err *err)
{
    if (a->rows.T < 1 || a->rows.T > m->qwen3.max_logit_rows)
        return ds_err_field(err, DS_EINVAL, "rows", "step of %d rows with logits; at most %d", a->rows.T,
                            m->qwen3.max_logit_rows);
    a->logit_row = NULL;
    a->R = a->rows.T;
    return ds_qwen3_forward(&m->qwen3, m->backend, kv, a, err);
}
