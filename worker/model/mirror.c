#include "worker/model/mirror.h"

#include "worker/model/weights.h"

ds_code ds_row_mirror_init(ds_row_mirror *m, ds_backend *b, int max_rows, int n_more, ds_err *err)
{
    *m = (ds_row_mirror){.host = ds_backend_is_host(b), .cap = (size_t)max_rows};
    if (m->host)
        return DS_OK;
    return b->alloc(b, (3 + (size_t)n_more) * m->cap * sizeof *m->row, (void **)&m->row, err);
}

void ds_row_mirror_free(ds_row_mirror *m, ds_backend *b)
{
    if (m->row)
        b->free(b, m->row);
    if (m->table)
        b->free(b, m->table);
    *m = (ds_row_mirror){0};
}

static ds_code grow_table(ds_row_mirror *m, ds_backend *b, size_t entries, ds_err *err)
{
    if (entries <= m->table_cap)
        return DS_OK;
    if (m->table)
        b->free(b, m->table);
    m->table = NULL;
    m->table_cap = 0;
    DS_TRY(b->alloc(b, 2 * entries * sizeof *m->table, (void **)&m->table, err));
    m->table_cap = 2 * entries;
    return DS_OK;
}

static ds_code copy(ds_row_mirror *m, ds_backend *b, size_t i, const int32_t **a, size_t n)
{
    int32_t *to = m->row + i * m->cap;
    ds_code code = n ? b->upload(b, to, *a, n * sizeof *to) : DS_OK;
    *a = to;
    return code;
}

ds_code ds_row_mirror_rows(ds_row_mirror *m, ds_backend *b, ds_rows *r, ds_err *err)
{
    if (m->host)
        return DS_OK;
    size_t T = (size_t)r->T, slots = 0;
    for (size_t t = 0; t < T; t++)
        slots = (size_t)r->slot[t] >= slots ? (size_t)r->slot[t] + 1 : slots;
    size_t entries = slots * (size_t)r->page_stride;
    DS_TRY(grow_table(m, b, entries, err));
    DS_TRY(copy(m, b, 0, &r->token, T));
    DS_TRY(copy(m, b, 1, &r->pos, T));
    DS_TRY(copy(m, b, 2, &r->slot, T));
    ds_code code = b->upload(b, m->table, r->page_table, entries * sizeof *m->table);
    r->page_table = m->table;
    return code;
}

ds_code ds_row_mirror_more(ds_row_mirror *m, ds_backend *b, int i, const int32_t **a, int n)
{
    return m->host ? DS_OK : copy(m, b, 3 + (size_t)i, a, (size_t)n);
}
