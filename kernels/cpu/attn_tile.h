/* attn_tile.h - attention of one instruction-set level; included after linear_tile.h and row_tile.h.
 *
 * Online softmax over blocks of ATTN_BLOCK keys, in ascending order, for every query alike: a query's result
 * depends on itself and its keys only. Keys of a block are read once for all query heads of the KV head and
 * for all rows of the tile. Slots beyond a row's position may hold anything (a recycled page): their scores
 * are masked and their values never touched, so a NaN in them cannot spread. bf16 queries, values and sums
 * are in the even/odd order of linear_tile.h; the output is put right at the end. */
#ifndef DS_CPU_ATTN_TILE_H
#define DS_CPU_ATTN_TILE_H

enum { ATTN_BLOCK = 16, ATTN_TQ = 4 };

typedef struct attn_state {
    int nq, group, d, dp; /* queries of the tile (row-major: row, then head of the group), padded D */
    float *q, *acc;       /* [nq, dp] packed queries, running sums */
    float *p;             /* [nq, ATTN_BLOCK] scores, then weights */
    float *m, *l;         /* [nq] running maximum and sum */
} attn_state;

static void attn_init(attn_state *s, const ds_attn_tile *t)
{
    const ds_attn_args *a = t->a;
    s->group = a->H / a->G;
    s->nq = t->rows * s->group;
    s->d = a->D;
    s->dp = (int)(lin_pack_bytes(a->kv.dtype, a->D) / sizeof(float));
    s->q = t->scratch;
    s->acc = s->q + (size_t)s->nq * s->dp;
    s->p = s->acc + (size_t)s->nq * s->dp;
    s->m = s->p + (size_t)s->nq * ATTN_BLOCK;
    s->l = s->m + s->nq;
    for (int r = 0; r < t->rows; r++)
        for (int g = 0; g < s->group; g++) {
            int i = r * s->group + g;
            const float *q =
                a->q + (size_t)(t->row + r) * a->q_stride + (size_t)(t->head * s->group + g) * a->D;
            lin_pack(a->kv.dtype, q, a->D, s->q + (size_t)i * s->dp);
            s->m[i] = -INFINITY;
            s->l[i] = 0;
        }
    memset(s->acc, 0, (size_t)s->nq * s->dp * sizeof *s->acc);
}

/* Scores of query i over `valid` keys into weights exp(score - m); rescales what was summed before. */
static void attn_softmax(attn_state *s, int i, int valid, float scale)
{
    float *p = s->p + (size_t)i * ATTN_BLOCK;
    for (int k = valid; k < ATTN_BLOCK; k++)
        p[k] = -INFINITY;
    vf v[ATTN_BLOCK / VW], best = vf_set1(s->m[i]);
    DS_UNROLL
    for (int k = 0; k < ATTN_BLOCK / VW; k++) {
        v[k] = vf_mul(vf_load(p + k * VW), vf_set1(scale));
        best = vf_max(best, v[k]);
    }
    float m = vf_hmax(best);
    vf sum = vf_set1(0);
    DS_UNROLL
    for (int k = 0; k < ATTN_BLOCK / VW; k++) {
        vf e = vf_exp(vf_sub(v[k], vf_set1(m)));
        vf_store(p + k * VW, e);
        sum = vf_add(sum, e);
    }
    if (m != s->m[i]) {
        float c[VW];
        vf_store(c, vf_exp(vf_set1(s->m[i] - m)));
        float *acc = s->acc + (size_t)i * s->dp;
        for (int d = 0; d < s->dp; d += VW)
            vf_store(acc + d, vf_mul(vf_load(acc + d), vf_set1(c[0])));
        s->l[i] *= c[0];
        s->m[i] = m;
    }
    s->l[i] += vf_hsum(sum);
}

/* acc[q0..q0+NQ), units [d, d + ND): += weights times `valid` values, `step` bytes apart at src. */
DS_INLINE void attn_units(attn_state *s, const int t, const int NQ, const int ND, const char *src,
                          size_t step, int q0, int d, int valid)
{
    const float *p = s->p + (size_t)q0 * ATTN_BLOCK;
    float *acc = s->acc + (size_t)q0 * s->dp + d;
    vf a[ATTN_TQ][2 * ATTN_TQ];
    DS_UNROLL
    for (int i = 0; i < NQ; i++) {
        DS_UNROLL
        for (int h = 0; h < 2 * ND; h++)
            a[i][h] = vf_load(acc + (size_t)i * s->dp + h * VW);
    }
    for (int k = 0; k < valid; k++) {
        DS_UNROLL
        for (int h = 0; h < 2 * ND; h++) {
            vf v = vf_keep(lin_load(src + (size_t)k * step + (size_t)(h / 2 * UNIT) * lin_elem(t), t, h % 2));
            DS_UNROLL
            for (int i = 0; i < NQ; i++)
                a[i][h] = vf_fma(vf_set1(p[i * ATTN_BLOCK + k]), v, a[i][h]);
        }
    }
    DS_UNROLL
    for (int i = 0; i < NQ; i++) {
        DS_UNROLL
        for (int h = 0; h < 2 * ND; h++)
            vf_store(acc + (size_t)i * s->dp + h * VW, a[i][h]);
    }
}

/* All of D, ND units at a time: enough sums at once to hide the latency of an FMA. */
DS_INLINE void attn_values(attn_state *s, const int t, const int NQ, const int ND, const char *v, int q0,
                           int valid)
{
    const size_t elem = lin_elem(t), row = (size_t)s->d * elem;
    int d = 0;
    for (; d + ND * UNIT <= s->d; d += ND * UNIT)
        attn_units(s, t, NQ, ND, v + (size_t)d * elem, row, q0, d, valid);
    for (; d + UNIT <= s->d; d += UNIT)
        attn_units(s, t, NQ, 1, v + (size_t)d * elem, row, q0, d, valid);
    if (d < s->d) { /* values may end where memory ends: no read beyond */
        char tail[ATTN_BLOCK][UNIT * 4] = {{0}};
        for (int k = 0; k < valid; k++)
            memcpy(tail[k], v + (size_t)d * elem + (size_t)k * row, (size_t)(s->d - d) * elem);
        attn_units(s, t, NQ, 1, tail[0], sizeof tail[0], q0, d, valid);
    }
}

static void attn_values_n(attn_state *s, ds_dtype t, const char *v, int q0, int n, int valid)
{
    for (; n >= ATTN_TQ; n -= ATTN_TQ, q0 += ATTN_TQ) {
        if (t == DS_BF16)
            attn_values(s, DS_BF16, ATTN_TQ, 1, v, q0, valid);
        else
            attn_values(s, DS_F32, ATTN_TQ, 1, v, q0, valid);
    }
    if (n >= 2) {
        if (t == DS_BF16)
            attn_values(s, DS_BF16, 2, 2, v, q0, valid);
        else
            attn_values(s, DS_F32, 2, 2, v, q0, valid);
        n -= 2;
        q0 += 2;
    }
    if (n) {
        if (t == DS_BF16)
            attn_values(s, DS_BF16, 1, 4, v, q0, valid);
        else
            attn_values(s, DS_F32, 1, 4, v, q0, valid);
    }
}

/* One block of keys for the queries [q0, nq), those whose position reaches it. */
static void attn_block(attn_state *s, const ds_attn_tile *t, int first, const char *k, const char *v)
{
    const ds_attn_args *a = t->a;
    const int32_t *pos = a->rows.pos + t->row;
    int r0 = 0;
    while (pos[r0] < first)
        r0++;
    int q0 = r0 * s->group;
    ds_lin j = {.w = k,
                .w_row = (size_t)a->D * lin_elem(a->kv.dtype),
                .x = (const char *)(s->q + (size_t)q0 * s->dp),
                .x_row = (size_t)s->dp * sizeof(float),
                .y = s->p + (size_t)q0 * ATTN_BLOCK,
                .n = ATTN_BLOCK,
                .k = a->D,
                .T = s->nq - q0,
                .y_stride = ATTN_BLOCK,
                .dtype = a->kv.dtype};
    lin_run(&j, 0, ATTN_BLOCK);
    for (int r = r0; r < t->rows;) { /* runs of rows with the same count of valid keys */
        int valid = pos[r] - first + 1 < ATTN_BLOCK ? pos[r] - first + 1 : ATTN_BLOCK, end = r + 1;
        if (valid == ATTN_BLOCK)
            end = t->rows;
        for (int i = r * s->group; i < end * s->group; i++)
            attn_softmax(s, i, valid, a->scale);
        attn_values_n(s, a->kv.dtype, v, r * s->group, (end - r) * s->group, valid);
        r = end;
    }
}

static void attn_finish(const attn_state *s, const ds_attn_tile *t)
{
    const ds_attn_args *a = t->a;
    for (int i = 0; i < s->nq; i++) {
        int r = t->row + i / s->group, h = t->head * s->group + i % s->group;
        float *out = a->out + ((size_t)r * a->H + h) * a->D;
        const float *acc = s->acc + (size_t)i * s->dp;
        vf inv = vf_set1(1.0f / s->l[i]);
        for (int d = 0; d < a->D; d += UNIT) {
            float buf[UNIT];
            vf lo = vf_mul(vf_load(acc + d), inv), hi = vf_mul(vf_load(acc + d + VW), inv);
            if (a->kv.dtype == DS_BF16) {
                vf_store_zip(buf, lo, hi);
            } else {
                vf_store(buf, lo);
                vf_store(buf + VW, hi);
            }
            int left = a->D - d < UNIT ? a->D - d : UNIT;
            memcpy(out + d, buf, (size_t)left * sizeof *out);
        }
    }
}

/* Bytes from the start of the layer's K or V to the block of keys that begins at position `first`. */
static size_t attn_at(const ds_attn_tile *t, int first)
{
    const ds_attn_args *a = t->a;
    const int32_t *table = a->rows.page_table + (size_t)a->rows.slot[t->row] * a->rows.page_stride;
    size_t page = (size_t)table[first / a->rows.page_tokens],
           slot = (page * a->G + t->head) * a->rows.page_tokens + (size_t)(first % a->rows.page_tokens);
    return slot * (size_t)a->D * lin_elem((int)a->kv.dtype);
}

static void attn_fetch(const char *p, size_t bytes)
{
    for (size_t i = 0; i < bytes; i += 64)
        __builtin_prefetch(p + i, 0, 2);
}

static void attn_run(const ds_attn_tile *t)
{
    const ds_attn_args *a = t->a;
    const char *k = a->kv.k, *v = a->kv.v;
    const size_t bytes = (size_t)ATTN_BLOCK * a->D * lin_elem((int)a->kv.dtype);
    attn_state s;
    attn_init(&s, t);
    int last = a->rows.pos[t->row + t->rows - 1];
    for (int first = 0; first <= last; first += ATTN_BLOCK) {
        size_t at = attn_at(t, first);
        if (first + ATTN_BLOCK <= last) { /* pages lie apart: the hardware cannot foresee the next */
            size_t next = attn_at(t, first + ATTN_BLOCK);
            attn_fetch(k + next, bytes);
            attn_fetch(v + next, bytes);
        }
        attn_block(&s, t, first, k + at, v + at);
    }
    attn_finish(&s, t);
}

#endif
