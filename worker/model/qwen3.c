/* qwen3.c - Qwen3 dense. Per layer: x += o(attn(rope(norm(qkv(norm x))))); x += down(silu(gate n) * up n)
 * with n = norm x. q, k and v (and gate and up) are separate matrices in the file; each linear writes its own
 * columns of one wide row, so nothing is fused by copying. Activations are f32. */
#include "worker/model/qwen3.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

/* --- binding ------------------------------------------------------------------------------------------ */

enum { NAME_MAX_BYTES = 96 };

static const char *name_of(const ds_qwen3 *q, char *buf, int layer, const char *suffix)
{
    snprintf(buf, NAME_MAX_BYTES, "%slayers.%d.%s", q->prefix, layer, suffix);
    return buf;
}

static ds_code bind_attention(ds_qwen3 *q, int i, ds_weights *w, ds_err *err)
{
    const ds_config *c = &q->conf;
    ds_qwen3_layer *l = &q->layer[i];
    int hd = c->heads * c->head_dim, gd = c->kv_heads * c->head_dim, d = c->hidden;
    struct {
        const char *name, *bias;
        int n, k;
        ds_mat *w, *b;
    } t[] = {{"self_attn.q_proj.weight", "self_attn.q_proj.bias", hd, d, &l->q, &l->q_b},
             {"self_attn.k_proj.weight", "self_attn.k_proj.bias", gd, d, &l->k, &l->k_b},
             {"self_attn.v_proj.weight", "self_attn.v_proj.bias", gd, d, &l->v, &l->v_b},
             {"self_attn.o_proj.weight", "self_attn.o_proj.bias", d, hd, &l->o, &l->o_b}};
    char s[NAME_MAX_BYTES];
    for (int j = 0; j < 4; j++) {
        DS_TRY(ds_weights_mat(w, name_of(q, s, i, t[j].name), t[j].n, t[j].k, DS_WEIGHT_LINEAR, t[j].w, err));
        if (c->attention_bias)
            DS_TRY(ds_weights_column(w, name_of(q, s, i, t[j].bias), t[j].n, t[j].b, err));
    }
    DS_TRY(ds_weights_vec(w, name_of(q, s, i, "self_attn.q_norm.weight"), c->head_dim, &l->q_norm, err));
    return ds_weights_vec(w, name_of(q, s, i, "self_attn.k_norm.weight"), c->head_dim, &l->k_norm, err);
}

static ds_code bind_layer(ds_qwen3 *q, int i, ds_weights *w, ds_err *err)
{
    int d = q->conf.hidden, m = q->conf.mlp;
    ds_qwen3_layer *l = &q->layer[i];
    char s[NAME_MAX_BYTES];
    DS_TRY(ds_weights_vec(w, name_of(q, s, i, "input_layernorm.weight"), d, &l->attn_norm, err));
    DS_TRY(bind_attention(q, i, w, err));
    DS_TRY(ds_weights_vec(w, name_of(q, s, i, "post_attention_layernorm.weight"), d, &l->mlp_norm, err));
    DS_TRY(
        ds_weights_mat(w, name_of(q, s, i, "mlp.gate_proj.weight"), m, d, DS_WEIGHT_LINEAR, &l->gate, err));
    DS_TRY(ds_weights_mat(w, name_of(q, s, i, "mlp.up_proj.weight"), m, d, DS_WEIGHT_LINEAR, &l->up, err));
    return ds_weights_mat(w, name_of(q, s, i, "mlp.down_proj.weight"), d, m, DS_WEIGHT_LINEAR, &l->down, err);
}

/* Tied models store one of the two tables; where both are stored each is used as it is, as transformers does.
 * The head is bound first, so that the load threads start with the largest matrix. */
static ds_code bind_tables(ds_qwen3 *q, ds_weights *w, ds_err *err)
{
    static const char EMBED[] = "model.embed_tokens.weight", HEAD[] = "lm_head.weight";
    const char *embed = EMBED, *head = HEAD;
    int v = q->conf.vocab, d = q->conf.hidden;
    if (q->conf.tied && !ds_weights_has(w, HEAD))
        head = EMBED;
    else if (q->conf.tied && !ds_weights_has(w, EMBED))
        embed = HEAD;
    DS_TRY(ds_weights_mat(w, head, v, d, DS_WEIGHT_LINEAR, &q->head, err));
    DS_TRY(ds_weights_mat(w, embed, v, d, DS_WEIGHT_TABLE, &q->embed, err));
    return ds_weights_vec(w, "model.norm.weight", d, &q->norm, err);
}

static ds_code check_opts(ds_qwen3 *q, const ds_model_opts *o, ds_err *err)
{
    const ds_config *c = &q->conf;
    q->max_positions = o->max_positions ? o->max_positions : c->max_positions;
    q->max_rows = o->max_rows;
    q->max_logit_rows = o->max_logit_rows;
    if (o->max_rows < 1 || o->max_rows > 1 << 20)
        return ds_err_field(err, DS_EINVAL, "max_rows", "max_rows is %d, must be 1..%d", o->max_rows,
                            1 << 20);
    if (o->max_logit_rows < 1 || o->max_logit_rows > o->max_rows)
        return ds_err_field(err, DS_EINVAL, "max_logit_rows",
                            "max_logit_rows is %d, must be 1..max_rows (%d)", o->max_logit_rows, o->max_rows);
    if (q->max_positions < 1 || q->max_positions > c->max_positions)
        return ds_err_field(err, DS_EINVAL, "max_positions",
                            "max_positions is %d, must be 1..max_position_embeddings of config.json (%d)",
                            q->max_positions, c->max_positions);
    for (int i = 0; i < o->n_taps; i++)
        if (o->taps[i] < -1 || o->taps[i] >= c->layers || (i && o->taps[i] <= o->taps[i - 1]))
            return ds_err_field(err, DS_EINVAL, "taps", "tap %d is layer %d; taps must rise within -1..%d", i,
                                o->taps[i], c->layers - 1);
    return DS_OK;
}

/* One block holds all scratch; carve is called with base NULL to size it and again to place it. */
static size_t carve(ds_qwen3 *q, char *base)
{
    const ds_config *c = &q->conf;
    size_t T = (size_t)q->max_rows, R = (size_t)q->max_logit_rows, C = (size_t)c->hidden;
    size_t HD = (size_t)c->heads * (size_t)c->head_dim, GD = (size_t)c->kv_heads * (size_t)c->head_dim;
    size_t I = (size_t)c->mlp, rope = (size_t)q->max_positions * (size_t)(c->head_dim / 2), at = 0;
    size_t wide = HD + 2 * GD > 2 * I ? HD + 2 * GD : 2 * I, mid = HD > I ? HD : I;
    struct {
        float **p;
        size_t n;
    } part[] = {{&q->s.x, T * C},
                {&q->s.y, T * C},
                {&q->s.wide, T * wide},
                {&q->s.mid, T * mid},
                {&q->s.g, R * C},
                {&q->s.logits, R * (size_t)c->vocab},
                {&q->s.taps, T * (size_t)q->n_taps * C},
                {&q->s.ones, c->attention_bias ? T : 0},
                {&q->s.cos, rope},
                {&q->s.sin, rope},
                {(float **)&q->s.iota, q->n_taps ? T : 0}};
    for (size_t i = 0; i < sizeof part / sizeof *part; i++) {
        if (base)
            *part[i].p = part[i].n ? (float *)(base + at) : NULL;
        at += (part[i].n * sizeof(float) + 63) / 64 * 64;
    }
    return at;
}

ds_code ds_qwen3_init(ds_qwen3 *q, const ds_config *conf, const ds_model_opts *opts, const char *prefix,
                      ds_err *err)
{
    *q = (ds_qwen3){.conf = *conf, .prefix = prefix, .n_taps = opts->n_taps};
    DS_TRY(check_opts(q, opts, err));
    q->layer = calloc((size_t)conf->layers, sizeof *q->layer);
    q->tap = calloc((size_t)opts->n_taps + 1, sizeof *q->tap);
    if (!q->layer || !q->tap)
        return ds_err_set(err, DS_ENOMEM, "no memory for %d layers", conf->layers);
    for (int i = 0; i < opts->n_taps; i++)
        q->tap[i] = opts->taps[i];
    q->scratch_bytes = carve(q, NULL);
    return DS_OK;
}

ds_code ds_qwen3_bind_layers(ds_qwen3 *q, ds_weights *w, ds_err *err)
{
    for (int i = 0; i < q->conf.layers; i++)
        DS_TRY(bind_layer(q, i, w, err));
    return DS_OK;
}

ds_code ds_qwen3_bind(ds_qwen3 *q, const ds_config *conf, const ds_model_opts *opts, ds_weights *w,
                      ds_err *err)
{
    DS_TRY(ds_qwen3_init(q, conf, opts, "model.", err));
    DS_TRY(bind_tables(q, w, err));
    return ds_qwen3_bind_layers(q, w, err);
}

/* --- scratch ------------------------------------------------------------------------------------------ */

static ds_code fill_tables(ds_qwen3 *q, ds_backend *b, float *host)
{
    size_t rope = (size_t)q->max_positions * (size_t)(q->conf.head_dim / 2);
    ds_rope_fill(&q->conf.rope, q->conf.head_dim, q->max_positions, host, host + rope);
    DS_TRY(b->upload(b, q->s.cos, host, rope * sizeof(float)));
    DS_TRY(b->upload(b, q->s.sin, host + rope, rope * sizeof(float)));
    DS_TRY(b->sync(b));
    for (int i = 0; q->s.ones && i < q->max_rows; i++)
        host[i] = 1.0f;
    if (q->s.ones)
        DS_TRY(b->upload(b, q->s.ones, host, (size_t)q->max_rows * sizeof(float)));
    DS_TRY(b->sync(b));
    int32_t *row = (int32_t *)host;
    for (int i = 0; q->s.iota && i < q->max_rows; i++)
        row[i] = i;
    if (q->s.iota)
        DS_TRY(b->upload(b, q->s.iota, row, (size_t)q->max_rows * sizeof *row));
    return b->sync(b);
}

ds_code ds_qwen3_alloc(ds_qwen3 *q, ds_backend *b, ds_err *err)
{
    DS_TRY(b->alloc(b, q->scratch_bytes, &q->s.block, err));
    carve(q, q->s.block);
    size_t rope = (size_t)q->max_positions * (size_t)q->conf.head_dim;
    size_t n = rope > (size_t)q->max_rows ? rope : (size_t)q->max_rows;
    float *host = malloc(n * sizeof *host);
    if (!host)
        return ds_err_set(err, DS_ENOMEM, "no memory for rope tables of %d positions", q->max_positions);
    ds_code code = fill_tables(q, b, host);
    free(host);
    return code == DS_OK ? DS_OK : ds_err_set(err, code, "upload of the rope tables failed");
}

void ds_qwen3_free(ds_qwen3 *q, ds_backend *b)
{
    if (q->s.block)
        b->free(b, q->s.block);
    free(q->layer);
    free(q->tap);
    *q = (ds_qwen3){0};
}

/* --- forward ------------------------------------------------------------------------------------------ */

/* y (+)= x W^T (+ bias), rows T. */
ds_code ds_qwen3_linear(ds_backend *b, const ds_mat *w, const float *x, float *y, int y_stride, int T,
                        int add)
{
    ds_linear_args a = {
        .x = x, .w = *w, .y = y, .T = T, .x_stride = w->k, .y_stride = y_stride, .accumulate = add};
    return b->linear(b, &a);
}

ds_code ds_qwen3_bias(ds_qwen3 *q, ds_backend *b, const ds_mat *w, float *y, int y_stride, int T)
{
    return w->data ? ds_qwen3_linear(b, w, q->s.ones, y, y_stride, T, 1) : DS_OK;
}

static ds_code norm(ds_qwen3 *q, ds_backend *b, ds_vec w, const float *x, float *y, int T)
{
    ds_rmsnorm_args a = {.x = x, .w = w, .y = y, .eps = q->conf.eps, .T = T};
    return b->rmsnorm(b, &a);
}

static ds_code gather(ds_backend *b, const float *x, const int32_t *row, int R, int C, float *y, int y_stride)
{
    ds_gather_args a = {.x = x, .row = row, .y = y, .R = R, .C = C, .y_stride = y_stride};
    return b->gather(b, &a);
}

/* x -> K and V of all rows in their pages, q of all rows in s.wide. */
ds_code ds_qwen3_project(ds_qwen3 *q, ds_backend *b, int i, const ds_kv_pool *kv, const ds_rows *rows)
{
    const ds_config *c = &q->conf;
    const ds_qwen3_layer *l = &q->layer[i];
    int hd = c->heads * c->head_dim, gd = c->kv_heads * c->head_dim, row = hd + 2 * gd, T = rows->T;
    float *y = q->s.y, *wide = q->s.wide;
    DS_TRY(norm(q, b, l->attn_norm, q->s.x, y, T));
    DS_TRY(ds_qwen3_linear(b, &l->q, y, wide, row, T, 0));
    DS_TRY(ds_qwen3_linear(b, &l->k, y, wide + hd, row, T, 0));
    DS_TRY(ds_qwen3_linear(b, &l->v, y, wide + hd + gd, row, T, 0));
    DS_TRY(ds_qwen3_bias(q, b, &l->q_b, wide, row, T));
    DS_TRY(ds_qwen3_bias(q, b, &l->k_b, wide + hd, row, T));
    DS_TRY(ds_qwen3_bias(q, b, &l->v_b, wide + hd + gd, row, T));
    ds_qkv_args a = {.rows = *rows,
                     .qkv = wide,
                     .q_norm = l->q_norm,
                     .k_norm = l->k_norm,
                     .rope = {.cos = q->s.cos, .sin = q->s.sin, .positions = q->max_positions},
                     .kv = kv->layer[i],
                     .eps = c->eps,
                     .H = c->heads,
                     .G = c->kv_heads,
                     .D = c->head_dim};
    return b->qkv(b, &a);
}

/* s.wide -> s.mid [T, HD] */
ds_code ds_qwen3_attend(ds_qwen3 *q, ds_backend *b, int i, const ds_kv_pool *kv, const ds_rows *rows)
{
    const ds_config *c = &q->conf;
    ds_attn_args a = {.rows = *rows,
                      .q = q->s.wide,
                      .q_stride = (c->heads + 2 * c->kv_heads) * c->head_dim,
                      .kv = kv->layer[i],
                      .out = q->s.mid,
                      .scale = 1.0f / sqrtf((float)c->head_dim),
                      .H = c->heads,
                      .G = c->kv_heads,
                      .D = c->head_dim};
    return b->attention(b, &a);
}

/* x += o(heads); x += mlp(norm x), rows T of x and heads. */
ds_code ds_qwen3_finish(ds_qwen3 *q, ds_backend *b, int i, const float *heads, float *x, int T)
{
    const ds_config *c = &q->conf;
    const ds_qwen3_layer *l = &q->layer[i];
    float *y = q->s.y, *wide = q->s.wide, *mid = q->s.mid;
    DS_TRY(ds_qwen3_linear(b, &l->o, heads, x, c->hidden, T, 1));
    DS_TRY(ds_qwen3_bias(q, b, &l->o_b, x, c->hidden, T));
    DS_TRY(norm(q, b, l->mlp_norm, x, y, T));
    DS_TRY(ds_qwen3_linear(b, &l->gate, y, wide, 2 * c->mlp, T, 0));
    DS_TRY(ds_qwen3_linear(b, &l->up, y, wide + c->mlp, 2 * c->mlp, T, 0));
    ds_silu_mul_args act = {.gu = wide, .y = mid, .T = T, .I = c->mlp};
    DS_TRY(b->silu_mul(b, &act));
    return ds_qwen3_linear(b, &l->down, mid, x, c->hidden, T, 1);
}

static ds_code tap(ds_qwen3 *q, ds_backend *b, int i, int T)
{
    int C = q->conf.hidden;
    for (int t = 0; t < q->n_taps; t++)
        if (q->tap[t] == i)
            return gather(b, q->s.x, q->s.iota, T, C, q->s.taps + (size_t)t * (size_t)C, q->n_taps * C);
    return DS_OK;
}

/* The last layer: nobody reads the residual of rows without logits, unless it is tapped. *ret is the [R, C]
 * residual of the rows with logits. */
static ds_code last_layer(ds_qwen3 *q, ds_backend *b, const ds_kv_pool *kv, const ds_step_args *a,
                          float **ret)
{
    int i = q->conf.layers - 1, C = q->conf.hidden, hd = q->conf.heads * q->conf.head_dim, T = a->rows.T;
    int tapped = q->n_taps && q->tap[q->n_taps - 1] == i;
    DS_TRY(ds_qwen3_project(q, b, i, kv, &a->rows));
    *ret = q->s.g;
    if (tapped || a->R == T) {
        DS_TRY(ds_qwen3_attend(q, b, i, kv, &a->rows));
        DS_TRY(ds_qwen3_finish(q, b, i, q->s.mid, q->s.x, T));
        DS_TRY(tap(q, b, i, T));
        if (a->R == T)
            *ret = q->s.x; /* ascending rows: all of them, in order */
        return a->R && a->R < T ? gather(b, q->s.x, a->logit_row, a->R, C, q->s.g, C) : DS_OK;
    }
    if (a->R == 0)
        return DS_OK;
    DS_TRY(ds_qwen3_attend(q, b, i, kv, &a->rows));
    DS_TRY(gather(b, q->s.x, a->logit_row, a->R, C, q->s.g, C));
    DS_TRY(gather(b, q->s.mid, a->logit_row, a->R, hd, q->s.wide, hd));
    return ds_qwen3_finish(q, b, i, q->s.wide, q->s.g, a->R);
}

static ds_code run(ds_qwen3 *q, ds_backend *b, const ds_kv_pool *kv, ds_step_args *a, int *ret_layer)
{
    int T = a->rows.T, last = q->conf.layers - 1;
    ds_embed_args e = {.table = q->embed, .token = a->rows.token, .y = q->s.x, .T = T};
    DS_TRY(b->embed(b, &e));
    DS_TRY(tap(q, b, -1, T));
    for (int i = 0; i < last; i++) {
        *ret_layer = i;
        DS_TRY(ds_qwen3_project(q, b, i, kv, &a->rows));
        DS_TRY(ds_qwen3_attend(q, b, i, kv, &a->rows));
        DS_TRY(ds_qwen3_finish(q, b, i, q->s.mid, q->s.x, T));
        DS_TRY(tap(q, b, i, T));
    }
    *ret_layer = last;
    float *x;
    DS_TRY(last_layer(q, b, kv, a, &x));
    a->logits = q->s.logits;
    a->taps = q->s.taps;
    if (a->R == 0)
        return DS_OK;
    DS_TRY(norm(q, b, q->norm, x, q->s.y, a->R));
    return ds_qwen3_linear(b, &q->head, q->s.y, q->s.logits, q->conf.vocab, a->R, 0);
}

ds_code ds_qwen3_forward(ds_qwen3 *q, ds_backend *b, const ds_kv_pool *kv, ds_step_args *a, ds_err *err)
{
    int layer = 0;
    ds_code code = run(q, b, kv, a, &layer);
    return code == DS_OK ? DS_OK
                         : ds_err_set(err, code, "forward of %d rows failed at layer %d: %s", a->rows.T,
                                      layer, ds_err_name(code));
}
