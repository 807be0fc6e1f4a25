/* plan.c - see plan.h. */
#include "worker/plan.h"

#include <stdio.h>

enum { OVERHEAD_BYTES = 48 << 20 }; /* code, stacks, sequences, sockets: measured 20 to 40 MiB */

/* Decimal MiB below 1 GiB, else GiB. */
static const char *human(uint64_t bytes, char buf[32])
{
    if (bytes < (uint64_t)1 << 30)
        snprintf(buf, 32, "%.1f MiB", (double)bytes / (1 << 20));
    else
        snprintf(buf, 32, "%.2f GiB", (double)bytes / (1 << 30));
    return buf;
}

void ds_plan_text(const ds_mem_plan *p, char *out, size_t cap)
{
    char w[32], k[32], s[32], t[32], a[32];
    snprintf(out, cap,
             "weights %s + KV %s (%d pages of %d tokens: %lld tokens) + scratch %s = %s of %s available",
             human(p->weight_bytes, w), human(p->kv_bytes, k), p->kv_pages, p->page_tokens,
             (long long)p->kv_pages * p->page_tokens, human(p->scratch_bytes, s), human(p->total_bytes, t),
             human(p->avail_bytes, a));
}

/* Pages for every sequence at full length would be the most that can be used; half of what is left is the
 * most that is taken unasked, because other processes live here too. */
static uint64_t auto_pages(const ds_plan_conf *c, const ds_model_info *info, uint64_t page_bytes,
                           uint64_t fixed)
{
    uint64_t a_seq =
        ((uint64_t)info->max_positions + (uint64_t)c->page_tokens - 1) / (uint64_t)c->page_tokens;
    uint64_t most = a_seq * (uint64_t)c->max_seqs;
    uint64_t left = c->avail_bytes > fixed ? (c->avail_bytes - fixed) / 2 / page_bytes : 0;
    return left < most ? left : most;
}

ds_code ds_plan_make(const ds_plan_conf *c, const ds_model_info *info, ds_mem_plan *ret, ds_err *err)
{
    uint64_t page_bytes = (uint64_t)info->kv_bytes_per_token * (uint64_t)c->page_tokens;
    uint64_t fixed = c->weight_bytes + info->scratch_bytes + OVERHEAD_BYTES;
    uint64_t pages = c->kv_pages   ? (uint64_t)c->kv_pages
                     : c->kv_bytes ? (uint64_t)c->kv_bytes / page_bytes
                                   : auto_pages(c, info, page_bytes, fixed);
    if (pages > INT32_MAX / (uint64_t)c->page_tokens)
        pages = INT32_MAX / (uint64_t)c->page_tokens;
    if (c->kv_bytes && pages == 0)
        return ds_err_field(err, DS_EINVAL, "kv_bytes", "kv_bytes is %lld, one page needs %llu",
                            (long long)c->kv_bytes, (unsigned long long)page_bytes);
    *ret = (ds_mem_plan){.weight_bytes = c->weight_bytes,
                         .kv_bytes = (pages ? pages : 1) * page_bytes,
                         .scratch_bytes = info->scratch_bytes + OVERHEAD_BYTES,
                         .avail_bytes = c->avail_bytes,
                         .kv_pages = (int)pages,
                         .page_tokens = c->page_tokens};
    ret->total_bytes = ret->weight_bytes + ret->kv_bytes + ret->scratch_bytes;
    if (ret->total_bytes <= c->avail_bytes && pages > 0)
        return DS_OK;
    char text[320];
    ds_plan_text(ret, text, sizeof text);
    return ds_err_set(err, DS_ENOMEM, "does not fit: %s", text);
}
