/* mirror.h - a device back end behind host memory, for tests: each op copies its arrays to the device, runs,
 * and copies what it wrote back. The kernel tests run on it as they run on the CPU, with the same references
 * and bounds. */
#ifndef DS_TESTS_KERNEL_MIRROR_H
#define DS_TESTS_KERNEL_MIRROR_H

#include "kernels/kernels.h"
#include "tests/lib/test.h"

#include <stdlib.h>
#include <string.h>

#define MIRROR_FN __attribute__((unused)) static

enum { MIRROR_ALLOCS = 256 };

typedef struct mirror {
    ds_backend b; /* first */
    ds_backend *dev;
    char *arena; /* device; handed out from the start by every op */
    size_t used, size;
} mirror;

static struct { /* host blocks made by `alloc` of any mirror */
    char *p;
    size_t bytes;
} mirror_block[MIRROR_ALLOCS];

MIRROR_FN void *mirror_in(mirror *m, const void *host, size_t bytes)
{
    char *p = m->arena + m->used;
    if (!host)
        return NULL;
    m->used += (bytes + 255) & ~(size_t)255;
    CHECK_MSG(m->used <= m->size, "the mirror's arena of %zu bytes is too small", m->size);
    CHECK_EQ(m->dev->upload(m->dev, p, host, bytes), DS_OK);
    return p;
}

MIRROR_FN ds_code mirror_out(mirror *m, ds_code code, void *host, const void *dev, size_t bytes)
{
    return code != DS_OK || bytes == 0 ? code : m->dev->download(m->dev, host, dev, bytes);
}

MIRROR_FN mirror *mirror_begin(ds_backend *b)
{
    mirror *m = (mirror *)b;
    m->used = 0;
    return m;
}

MIRROR_FN ds_mat mirror_mat(mirror *m, ds_mat w)
{
    size_t n = (size_t)w.n * (size_t)w.k;
    w.data = mirror_in(m, w.data, n * ds_dtype_size(w.dtype));
    w.scale = mirror_in(m, w.scale, n / DS_I8_BLOCK * sizeof(float));
    return w;
}

MIRROR_FN ds_vec mirror_vec(mirror *m, ds_vec v)
{
    v.data = mirror_in(m, v.data, (size_t)v.n * ds_dtype_size(v.dtype));
    return v;
}

MIRROR_FN ds_rows mirror_rows(mirror *m, ds_rows r)
{
    int slots = 0;
    for (int t = 0; t < r.T; t++)
        slots = r.slot[t] >= slots ? r.slot[t] + 1 : slots;
    size_t n = (size_t)r.T * sizeof(int32_t);
    r.page_table = mirror_in(m, r.page_table, (size_t)slots * (size_t)r.page_stride * sizeof(int32_t));
    r.token = mirror_in(m, r.token, n);
    r.pos = mirror_in(m, r.pos, n);
    r.slot = mirror_in(m, r.slot, n);
    return r;
}

MIRROR_FN size_t mirror_size(const void *p)
{
    for (int i = 0; i < MIRROR_ALLOCS; i++)
        if (mirror_block[i].p == p)
            return mirror_block[i].bytes;
    CHECK_MSG(0, "memory that the back end did not allocate");
    return 0;
}

MIRROR_FN ds_kv_layer mirror_kv(mirror *m, ds_kv_layer kv)
{
    kv.k = mirror_in(m, kv.k, mirror_size(kv.k));
    kv.v = mirror_in(m, kv.v, mirror_size(kv.v));
    return kv;
}

MIRROR_FN ds_code mirror_embed(ds_backend *b, const ds_embed_args *a)
{
    mirror *m = mirror_begin(b);
    ds_embed_args d = *a;
    size_t bytes = (size_t)a->T * (size_t)a->table.k * sizeof *a->y;
    d.table = mirror_mat(m, a->table);
    d.token = mirror_in(m, a->token, (size_t)a->T * sizeof *a->token);
    d.y = mirror_in(m, a->y, bytes);
    return mirror_out(m, m->dev->embed(m->dev, &d), a->y, d.y, bytes);
}

MIRROR_FN ds_code mirror_rmsnorm(ds_backend *b, const ds_rmsnorm_args *a)
{
    mirror *m = mirror_begin(b);
    ds_rmsnorm_args d = *a;
    size_t bytes = (size_t)a->T * (size_t)a->w.n * sizeof *a->y;
    d.w = mirror_vec(m, a->w);
    d.x = mirror_in(m, a->x, bytes);
    d.y = a->y == a->x ? (float *)(uintptr_t)d.x : mirror_in(m, a->y, bytes);
    return mirror_out(m, m->dev->rmsnorm(m->dev, &d), a->y, d.y, bytes);
}

MIRROR_FN ds_code mirror_linear(ds_backend *b, const ds_linear_args *a)
{
    mirror *m = mirror_begin(b);
    ds_linear_args d = *a;
    if (a->T < 1)
        return m->dev->linear(m->dev, a);
    size_t in = ((size_t)(a->T - 1) * (size_t)a->x_stride + (size_t)a->w.k) * sizeof *a->x,
           out = ((size_t)(a->T - 1) * (size_t)a->y_stride + (size_t)a->w.n) * sizeof *a->y;
    d.x = mirror_in(m, a->x, in);
    d.w = mirror_mat(m, a->w);
    d.y = mirror_in(m, a->y, out);
    return mirror_out(m, m->dev->linear(m->dev, &d), a->y, d.y, out);
}

MIRROR_FN ds_code mirror_qkv(ds_backend *b, const ds_qkv_args *a)
{
    mirror *m = mirror_begin(b);
    ds_qkv_args d = *a;
    size_t bytes = (size_t)a->rows.T * (size_t)(a->H + 2 * a->G) * (size_t)a->D * sizeof *a->qkv,
           rope = (size_t)a->rope.positions * (size_t)a->D / 2 * sizeof *a->rope.cos;
    d.rows = mirror_rows(m, a->rows);
    d.qkv = mirror_in(m, a->qkv, bytes);
    d.q_norm = mirror_vec(m, a->q_norm);
    d.k_norm = mirror_vec(m, a->k_norm);
    d.rope.cos = mirror_in(m, a->rope.cos, rope);
    d.rope.sin = mirror_in(m, a->rope.sin, rope);
    d.kv = mirror_kv(m, a->kv);
    ds_code code = mirror_out(m, m->dev->qkv(m->dev, &d), a->qkv, d.qkv, bytes);
    code = mirror_out(m, code, a->kv.k, d.kv.k, mirror_size(a->kv.k));
    return mirror_out(m, code, a->kv.v, d.kv.v, mirror_size(a->kv.v));
}

MIRROR_FN ds_code mirror_attention(ds_backend *b, const ds_attn_args *a)
{
    mirror *m = mirror_begin(b);
    ds_attn_args d = *a;
    size_t T = (size_t)a->rows.T, bytes = T * (size_t)a->H * (size_t)a->D * sizeof *a->out;
    d.rows = mirror_rows(m, a->rows);
    d.q = mirror_in(m, a->q, T * (size_t)a->q_stride * sizeof *a->q);
    d.kv = mirror_kv(m, a->kv);
    d.out = mirror_in(m, a->out, bytes);
    return mirror_out(m, m->dev->attention(m->dev, &d), a->out, d.out, bytes);
}

MIRROR_FN ds_code mirror_silu_mul(ds_backend *b, const ds_silu_mul_args *a)
{
    mirror *m = mirror_begin(b);
    ds_silu_mul_args d = *a;
    size_t bytes = (size_t)a->T * (size_t)a->I * sizeof *a->y;
    d.gu = mirror_in(m, a->gu, 2 * bytes);
    d.y = mirror_in(m, a->y, bytes);
    return mirror_out(m, m->dev->silu_mul(m->dev, &d), a->y, d.y, bytes);
}

MIRROR_FN ds_code mirror_cell(ds_backend *b, const ds_cell_args *a)
{
    mirror *m = mirror_begin(b);
    ds_cell_args d = *a;
    size_t bytes = (size_t)a->R * (size_t)a->N * sizeof *a->y;
    d.t = mirror_in(m, a->t, a->kind == DS_CELL_RNN ? 3 * bytes : bytes);
    d.e = mirror_in(m, a->e, bytes);
    d.state = mirror_in(m, a->state, bytes);
    d.y = mirror_in(m, a->y, bytes);
    ds_code code = mirror_out(m, m->dev->cell(m->dev, &d), a->y, d.y, bytes);
    return a->state ? mirror_out(m, code, a->state, d.state, bytes) : code;
}

MIRROR_FN ds_code mirror_sample(ds_backend *b, const ds_sample_args *a)
{
    mirror *m = mirror_begin(b);
    ds_sample_args d = *a;
    size_t row = (size_t)a->V * sizeof *a->logits, R = (size_t)a->R;
    ds_sample_row *rows = malloc((R + 1) * sizeof *rows);
    d.logits = mirror_in(m, a->logits, R * row);
    d.row = rows;
    for (size_t i = 0; i < R; i++) {
        rows[i] = a->row[i];
        rows[i].draft_logits = mirror_in(m, a->row[i].draft_logits, row);
    }
    ds_code code = mirror_out(m, m->dev->sample(m->dev, &d), a->logits, d.logits, R * row);
    for (size_t i = 0; i < R; i++)
        if (rows[i].draft_logits)
            code = mirror_out(m, code, a->row[i].draft_logits, rows[i].draft_logits, row);
    free(rows);
    return code;
}

MIRROR_FN ds_code mirror_alloc(ds_backend *b, size_t bytes, void **ret, ds_err *err)
{
    (void)b;
    *ret = calloc(1, bytes);
    for (int i = 0; i < MIRROR_ALLOCS && *ret; i++)
        if (!mirror_block[i].p) {
            mirror_block[i].p = *ret;
            mirror_block[i].bytes = bytes;
            return DS_OK;
        }
    return ds_err_set(err, DS_ENOMEM, "no memory for %zu bytes", bytes);
}

MIRROR_FN void mirror_free(ds_backend *b, void *p)
{
    (void)b;
    for (int i = 0; i < MIRROR_ALLOCS; i++)
        if (mirror_block[i].p == p)
            mirror_block[i].p = NULL;
    free(p);
}

MIRROR_FN void mirror_destroy(ds_backend *b)
{
    mirror *m = (mirror *)b;
    m->dev->free(m->dev, m->arena);
    m->dev->destroy(m->dev);
    free(m);
}

/* mirror_open: dev behind host memory; owns it. arena: device bytes that the arrays of one op may take
 * together. */
MIRROR_FN ds_backend *mirror_open(ds_backend *dev, size_t arena)
{
    mirror *m = calloc(1, sizeof *m);
    ds_err err = {0};
    CHECK(m != NULL);
    m->dev = dev;
    m->size = arena;
    CHECK_OK(dev->alloc(dev, arena, (void **)&m->arena, &err), err);
    m->b = (ds_backend){.name = dev->name,
                        .detail = dev->detail,
                        .alloc = mirror_alloc,
                        .free = mirror_free,
                        .destroy = mirror_destroy,
                        .embed = mirror_embed,
                        .rmsnorm = mirror_rmsnorm,
                        .linear = mirror_linear,
                        .qkv = mirror_qkv,
                        .attention = mirror_attention,
                        .silu_mul = mirror_silu_mul,
                        .cell = mirror_cell,
                        .sample = mirror_sample};
    return &m->b;
}

#endif
