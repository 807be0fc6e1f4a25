/* cpu.c - the CPU back end: memory, and the ops that are one loop over rows or weight rows.
 *
 * Owner: the engine thread. Ops run to their end before they return; `sync` has nothing to wait for. Scratch
 * grows to the largest step seen. Invariant: how an op is split over threads never changes a result. */
#include "kernels/cpu/cpu.h"

#include "kernels/cpu/mem.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

/* Work below this many multiply-adds or elements (a few microseconds) is not worth a hand-over. */
enum { INLINE_MACS = 96 << 10, INLINE_ELEMS = 8 << 10 };
/* Activation rows of one panel: bounds the packed scratch; the weights are read once for each panel. */
enum { PANEL_ROWS = 512 };

void *ds_scratch_need(ds_scratch *s, size_t bytes)
{
    if (bytes <= s->bytes)
        return s->p;
    void *p = ds_mem_alloc(bytes);
    if (!p)
        return NULL;
    ds_mem_free(s->p);
    *s = (ds_scratch){p, bytes};
    return p;
}

static int dtype_ok(ds_dtype t)
{
    return t == DS_F32 || t == DS_BF16 || t == DS_F16 || t == DS_I8;
}

static int mat_ok(const ds_mat *m)
{
    return m->data && m->n > 0 && m->k > 0 && dtype_ok(m->dtype) &&
           (m->dtype != DS_I8 || (m->scale && m->k % DS_I8_BLOCK == 0));
}

/* Items per chunk so that each thread gets several, in multiples of `align`. */
static int grain_of(const ds_cpu *c, int n, int align)
{
    int g = n / (ds_pool_threads(c->pool) * 8);
    return g < align ? align : g / align * align;
}

/* A norm's weights as f32, in shared scratch at `at` floats; NULL for no weights. */
static const float *vec_f32(ds_cpu *c, const ds_vec *v, float *at)
{
    if (!v->data)
        return NULL;
    c->isa->expand(v->dtype, v->data, NULL, v->n, at);
    return at;
}

typedef struct linear_job {
    ds_cpu *c;
    const ds_linear_args *a;
    ds_lin lin;
    int t0; /* first row of the panel */
} linear_job;

static void pack_part(void *ctx, int thread, int begin, int end)
{
    (void)thread;
    linear_job *j = ctx;
    char *x = (char *)(uintptr_t)j->lin.x;
    for (int t = begin; t < end; t++)
        j->c->isa->pack(j->a->w.dtype, j->a->x + (size_t)(j->t0 + t) * (size_t)j->a->x_stride, j->a->w.k,
                        x + (size_t)t * j->lin.x_row);
}

static void linear_part(void *ctx, int thread, int begin, int end)
{
    (void)thread;
    linear_job *j = ctx;
    j->c->isa->linear(&j->lin, begin, end);
}

static ds_code cpu_linear(ds_backend *b, const ds_linear_args *a)
{
    ds_cpu *c = (ds_cpu *)b;
    if (!mat_ok(&a->w) || a->T < 0 || a->x_stride < a->w.k || a->y_stride < a->w.n)
        return DS_EINVAL;
    linear_job j = {.c = c, .a = a};
    const size_t k = (size_t)a->w.k, row = k * ds_dtype_size(a->w.dtype);
    size_t x_row = c->isa->pack_bytes(a->w.dtype, a->w.k);
    int panel = a->T < PANEL_ROWS ? a->T : PANEL_ROWS;
    char *x = ds_scratch_need(&c->pack, x_row * (size_t)panel);
    if (a->T && !x)
        return DS_ENOMEM;
    for (j.t0 = 0; j.t0 < a->T; j.t0 += panel) {
        int rows = a->T - j.t0 < panel ? a->T - j.t0 : panel;
        j.lin = (ds_lin){
            a->w.data, row,    a->w.scale, x,           x_row,         a->y + (size_t)j.t0 * a->y_stride,
            a->w.n,    a->w.k, rows,       a->y_stride, a->accumulate, a->w.dtype};
        int pack_grain = (size_t)rows * k < 4 * INLINE_ELEMS ? rows : grain_of(c, rows, 1);
        ds_pool_for(c->pool, rows, pack_grain, pack_part, &j);
        int small = (size_t)rows * k * (size_t)a->w.n < INLINE_MACS;
        ds_pool_for(c->pool, a->w.n, small ? a->w.n : grain_of(c, a->w.n, DS_LIN_BLOCK), linear_part, &j);
    }
    return DS_OK;
}

typedef struct row_job {
    ds_cpu *c;
    const void *a;
    const float *w;
} row_job;

static void run_rows(ds_cpu *c, int rows, size_t elems_per_row, ds_pool_fn fn, row_job *j)
{
    int grain = (size_t)rows * elems_per_row < INLINE_ELEMS ? rows : grain_of(c, rows, 1);
    ds_pool_for(c->pool, rows, grain, fn, j);
}

static void embed_part(void *ctx, int thread, int begin, int end)
{
    (void)thread;
    row_job *j = ctx;
    const ds_embed_args *a = j->a;
    const size_t k = (size_t)a->table.k, row = k * ds_dtype_size(a->table.dtype);
    for (int t = begin; t < end; t++) {
        size_t id = (size_t)a->token[t];
        const float *scale = a->table.scale ? a->table.scale + id * (k / DS_I8_BLOCK) : NULL;
        const char *src = (const char *)a->table.data + id * row;
        j->c->isa->expand(a->table.dtype, src, scale, a->table.k, a->y + (size_t)t * k);
    }
}

static ds_code cpu_embed(ds_backend *b, const ds_embed_args *a)
{
    if (!mat_ok(&a->table) || a->T < 0)
        return DS_EINVAL;
    for (int t = 0; t < a->T; t++)
        if (a->token[t] < 0 || a->token[t] >= a->table.n)
            return DS_EINVAL;
    run_rows((ds_cpu *)b, a->T, (size_t)a->table.k, embed_part, &(row_job){(ds_cpu *)b, a, NULL});
    return DS_OK;
}

static void rmsnorm_part(void *ctx, int thread, int begin, int end)
{
    (void)thread;
    row_job *j = ctx;
    const ds_rmsnorm_args *a = j->a;
    const size_t n = (size_t)a->w.n;
    for (int t = begin; t < end; t++)
        j->c->isa->rmsnorm(a->x + (size_t)t * n, j->w, a->w.n, a->eps, a->y + (size_t)t * n);
}

static ds_code cpu_rmsnorm(ds_backend *b, const ds_rmsnorm_args *a)
{
    ds_cpu *c = (ds_cpu *)b;
    if (a->T < 0 || a->w.n <= 0 || !a->w.data || !dtype_ok(a->w.dtype) || a->w.dtype == DS_I8)
        return DS_EINVAL;
    float *w = ds_scratch_need(&c->shared, (size_t)a->w.n * sizeof *w);
    if (!w)
        return DS_ENOMEM;
    run_rows(c, a->T, (size_t)a->w.n, rmsnorm_part, &(row_job){c, a, vec_f32(c, &a->w, w)});
    return DS_OK;
}

static void silu_part(void *ctx, int thread, int begin, int end)
{
    (void)thread;
    row_job *j = ctx;
    const ds_silu_mul_args *a = j->a;
    const size_t n = (size_t)a->I;
    for (int t = begin; t < end; t++) {
        const float *gate = a->gu + (size_t)t * 2 * n;
        j->c->isa->silu_mul(gate, gate + n, a->I, a->y + (size_t)t * n);
    }
}

static ds_code cpu_silu_mul(ds_backend *b, const ds_silu_mul_args *a)
{
    if (a->T < 0 || a->I <= 0)
        return DS_EINVAL;
    run_rows((ds_cpu *)b, a->T, 4 * (size_t)a->I, silu_part, &(row_job){(ds_cpu *)b, a, NULL});
    return DS_OK;
}

static ds_code cpu_gather(ds_backend *b, const ds_gather_args *a)
{
    (void)b;
    if (a->R < 0 || a->C <= 0 || a->y_stride < a->C)
        return DS_EINVAL;
    for (int r = 0; r < a->R; r++) {
        if (a->row[r] < 0)
            return DS_EINVAL;
        memmove(a->y + (size_t)r * a->y_stride, a->x + (size_t)a->row[r] * a->C,
                (size_t)a->C * sizeof(float));
    }
    return DS_OK;
}

int ds_rows_valid(const ds_rows *r)
{
    if (r->T < 0 || r->page_tokens <= 0 || r->page_tokens % 16 != 0 || r->page_stride <= 0)
        return 0;
    for (int t = 0; t < r->T; t++)
        if (r->slot[t] < 0 || r->pos[t] < 0 || r->pos[t] / r->page_tokens >= r->page_stride)
            return 0;
    return 1;
}

static void kv_write(const ds_cpu *c, ds_dtype t, void *base, size_t at, const float *src, int d)
{
    if (t == DS_BF16)
        c->isa->to_bf16(src, d, (uint16_t *)base + at);
    else
        memcpy((float *)base + at, src, (size_t)d * sizeof *src);
}

static void qkv_part(void *ctx, int thread, int begin, int end)
{
    (void)thread;
    row_job *j = ctx;
    const ds_qkv_args *a = j->a;
    const ds_isa *isa = j->c->isa;
    const float *qw = a->q_norm.data ? j->w : NULL, *kw = a->k_norm.data ? j->w + a->D : NULL;
    const ds_rows *rows = &a->rows;
    const size_t d = (size_t)a->D, half = d / 2;
    for (int t = begin; t < end; t++) {
        float *x = a->qkv + (size_t)t * (size_t)(a->H + 2 * a->G) * d;
        int pos = rows->pos[t];
        const float *cos = a->rope.cos + (size_t)pos * half, *sin = a->rope.sin + (size_t)pos * half;
        for (int h = 0; h < a->H + a->G; h++) {
            const float *w = h < a->H ? qw : kw;
            if (w)
                isa->rmsnorm(x + h * d, w, a->D, a->eps, x + h * d);
            isa->rope(x + h * d, cos, sin, a->D);
        }
        size_t page =
            (size_t)rows->page_table[(size_t)rows->slot[t] * rows->page_stride + pos / rows->page_tokens];
        for (int g = 0; g < a->G; g++) {
            size_t at = ((page * a->G + g) * rows->page_tokens + pos % rows->page_tokens) * d;
            kv_write(j->c, a->kv.dtype, a->kv.k, at, x + (a->H + g) * d, a->D);
            kv_write(j->c, a->kv.dtype, a->kv.v, at, x + (a->H + a->G + g) * d, a->D);
        }
    }
}

ds_code ds_cpu_qkv(ds_backend *b, const ds_qkv_args *a)
{
    ds_cpu *c = (ds_cpu *)b;
    if (!ds_rows_valid(&a->rows) || a->H < 0 || a->G <= 0 || a->D <= 0 || a->D % 2 != 0 ||
        (a->kv.dtype != DS_F32 && a->kv.dtype != DS_BF16) || (a->q_norm.data && a->q_norm.n != a->D) ||
        (a->k_norm.data && a->k_norm.n != a->D))
        return DS_EINVAL;
    for (int t = 0; t < a->rows.T; t++)
        if (a->rows.pos[t] >= a->rope.positions)
            return DS_EINVAL;
    float *w = ds_scratch_need(&c->shared, 2 * (size_t)a->D * sizeof *w);
    if (!w)
        return DS_ENOMEM;
    vec_f32(c, &a->q_norm, w);
    vec_f32(c, &a->k_norm, w + a->D);
    run_rows(c, a->rows.T, 4 * (size_t)(a->H + a->G) * (size_t)a->D, qkv_part, &(row_job){c, a, w});
    return DS_OK;
}

static ds_code cpu_alloc(ds_backend *b, size_t bytes, void **ret, ds_err *err)
{
    (void)b;
    *ret = ds_mem_alloc(bytes);
    return *ret ? DS_OK : ds_err_set(err, DS_ENOMEM, "no memory for %zu bytes", bytes);
}

static void cpu_free(ds_backend *b, void *p)
{
    (void)b;
    ds_mem_free(p);
}

static ds_code cpu_copy(ds_backend *b, void *dst, const void *src, size_t bytes)
{
    (void)b;
    if (bytes)
        memcpy(dst, src, bytes);
    return DS_OK;
}

static ds_code cpu_sync(ds_backend *b)
{
    (void)b;
    return DS_OK;
}

static void cpu_destroy(ds_backend *b)
{
    ds_cpu *c = (ds_cpu *)b;
    ds_graph_destroy(c->recording);
    ds_pool_destroy(c->pool);
    ds_mem_free(c->pack.p);
    ds_mem_free(c->shared.p);
    ds_mem_free(c->thread.p);
    free(c);
}

ds_code ds_cpu_open(int threads, const char *isa, ds_backend **ret, ds_err *err)
{
    const ds_isa *level;
    DS_TRY(ds_isa_find(isa, &level, err));
    ds_cpu *c = calloc(1, sizeof *c);
    if (!c)
        return ds_err_set(err, DS_ENOMEM, "no memory for the CPU back end");
    c->isa = level;
    if (threads == 0)
        threads = ds_pool_cpus();
    ds_code code = ds_pool_create(threads, &c->pool, err);
    if (code != DS_OK) {
        free(c);
        return code;
    }
    snprintf(c->detail, sizeof c->detail, "%s, %d thread%s", level->name, threads, threads == 1 ? "" : "s");
    c->b = (ds_backend){.name = "cpu",
                        .detail = c->detail,
                        .alloc = cpu_alloc,
                        .free = cpu_free,
                        .upload = cpu_copy,
                        .download = cpu_copy,
                        .sync = cpu_sync,
                        .destroy = cpu_destroy,
                        .embed = cpu_embed,
                        .rmsnorm = cpu_rmsnorm,
                        .linear = cpu_linear,
                        .qkv = ds_cpu_qkv,
                        .attention = ds_cpu_attention,
                        .silu_mul = cpu_silu_mul,
                        .gather = cpu_gather,
                        .cell = ds_cpu_cell,
                        .sample = ds_cpu_sample,
                        .admit = ds_cpu_admit,
                        .draw = ds_cpu_draw,
                        .accept = ds_cpu_accept,
                        .block = ds_cpu_block,
                        .offer = ds_cpu_offer};
    ds_cpu_stream(&c->b);
    ds_mem_machine(&c->b.mem_total, &c->b.mem_free);
    *ret = &c->b;
    return DS_OK;
}
