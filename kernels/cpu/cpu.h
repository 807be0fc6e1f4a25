/* cpu.h - inside the CPU back end: the table each instruction-set level fills, and the state of the back end.
 *
 * Ops (cpu.c, attention.c, sample.c) validate, split the work and run a level's functions on parts of it. A
 * level's functions compute every output in an order that depends on the output alone: batch invariance holds
 * by construction, whatever the split. Levels differ in rounding; one process uses one level. */
#ifndef DS_CPU_CPU_H
#define DS_CPU_CPU_H

#include "kernels/cpu/pool.h"
#include "kernels/kernels.h"

/* One matrix product over packed activations. */
typedef struct ds_lin {
    const char *w;      /* [n] rows of w_row bytes */
    size_t w_row;       /* bytes */
    const float *scale; /* DS_I8: [n, k/32] */
    const char *x;      /* [T] packed rows of x_row bytes (isa->pack) */
    size_t x_row;       /* bytes */
    float *y;           /* [T, y_stride] */
    int n, k, T, y_stride, accumulate;
    ds_dtype dtype;
} ds_lin;

enum { DS_LIN_BLOCK = 24 }; /* weight rows are best given in multiples: every tile height divides it */

/* One tile of attention: rows of one sequence (consecutive positions), all query heads of one KV head. */
typedef struct ds_attn_tile {
    const ds_attn_args *a;
    int row, rows, head; /* rows [row, row + rows), KV head */
    float *scratch;      /* ds_attn_scratch(H / G, D) floats, 64-byte aligned */
} ds_attn_tile;
enum { DS_ATTN_ROWS = 8 }; /* rows of one tile at most */

typedef struct ds_isa {
    const char *name;
    /* Activations in the form this level's product wants them; depends on the weights' dtype. */
    size_t (*pack_bytes)(ds_dtype w, int k); /* bytes of one packed row, multiple of 64 */
    void (*pack)(ds_dtype w, const float *x, int k, void *ret);
    void (*linear)(const ds_lin *j, int n0, int n1); /* outputs [T, n0..n1) */
    void (*expand)(ds_dtype t, const void *src, const float *scale, int n, float *ret); /* to f32, exact */
    void (*to_bf16)(const float *src, int n, uint16_t *ret);                            /* nearest even */
    void (*rmsnorm)(const float *x, const float *w, int n, float eps, float *y);        /* w NULL: ones */
    void (*rope)(float *x, const float *cos, const float *sin, int d);
    void (*silu_mul)(const float *gate, const float *up, int n, float *y);
    void (*attention)(const ds_attn_tile *t);
    float (*max)(const float *x, int n, int *ret_bad);                /* bad: a NaN or +inf; -inf for n = 0 */
    double (*sum_exp)(const float *x, int n, float max, float scale); /* of exp((x - max) * scale) */
    void (*exp_all)(const float *x, int n, float max, float scale, float *y); /* exp((x - max) * scale) */
} ds_isa;

extern const ds_isa ds_isa_portable;
#if defined(__x86_64__)
extern const ds_isa ds_isa_avx2, ds_isa_avx512, ds_isa_avx512bf16;
#endif
/* ds_isa_find: NULL or "" = best of this machine. DS_EINVAL: no such level; DS_EUNSUPPORTED: not this CPU's.
 */
ds_code ds_isa_find(const char *name, const ds_isa **ret, ds_err *err);

typedef struct ds_scratch { /* grows to the largest step seen, then stays */
    void *p;
    size_t bytes;
} ds_scratch;
/* ds_scratch_need: at least `bytes`, 64-byte aligned, contents undefined; NULL when memory ran out. */
void *ds_scratch_need(ds_scratch *s, size_t bytes);

typedef struct ds_cpu {
    ds_backend b; /* first: a ds_backend * is a ds_cpu * */
    const ds_isa *isa;
    ds_pool *pool;
    ds_scratch pack, shared, thread; /* packed activations; small per-op tables; private parts per thread */
    char detail[64];
    ds_graph *recording;   /* the graph between begin and end, else NULL */
    ds_backend direct;     /* the table to go back to at its end */
    double mark[DS_MARKS]; /* seconds */
} ds_cpu;

/* ds_cpu_open: the back end of kernels/registry.c. */
ds_code ds_cpu_open(int threads, const char *isa, ds_backend **ret, ds_err *err);

size_t ds_attn_scratch(int group, int d); /* floats */
ds_code ds_cpu_attention(ds_backend *b, const ds_attn_args *a);
ds_code ds_cpu_qkv(ds_backend *b, const ds_qkv_args *a);
ds_code ds_cpu_cell(ds_backend *b, const ds_cell_args *a);
ds_code ds_cpu_sample(ds_backend *b, const ds_sample_args *a);
ds_code ds_cpu_admit(ds_backend *b, const ds_admit_args *a);
ds_code ds_cpu_draw(ds_backend *b, const ds_draw_args *a);
ds_code ds_cpu_accept(ds_backend *b, const ds_accept_args *a);
ds_code ds_cpu_block(ds_backend *b, const ds_block_args *a);
ds_code ds_cpu_offer(ds_backend *b, const ds_offer_args *a);
void ds_cpu_stream(ds_backend *b); /* fills in graphs, marks and transfers */
void ds_graph_destroy(ds_graph *g);
int ds_rows_valid(const ds_rows *r);

#endif
