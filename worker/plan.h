/* plan.h - the hard memory plan of a worker: weights, KV, scratch, against what the device has. Pure. */
#ifndef DS_WORKER_PLAN_H
#define DS_WORKER_PLAN_H

#include "base/err.h"
#include "worker/model/model.h"

typedef struct ds_plan_conf {
    int64_t kv_pages; /* 0: from kv_bytes */
    int64_t kv_bytes; /* 0: as much as the sequences may need, within half of what is left */
    int max_seqs, page_tokens;
    uint64_t weight_bytes; /* resident: mapped files, or the converted copy */
    uint64_t avail_bytes;  /* of the device, now */
} ds_plan_conf;

typedef struct ds_mem_plan {
    uint64_t weight_bytes, kv_bytes, scratch_bytes, total_bytes, avail_bytes;
    int kv_pages, page_tokens;
} ds_mem_plan;

/* ds_plan_make: sizes of everything a worker will hold. Errors: DS_ENOMEM it does not fit (err says the
 * figures); DS_EINVAL kv_pages or kv_bytes too small for one page. */
ds_code ds_plan_make(const ds_plan_conf *conf, const ds_model_info *info, ds_mem_plan *ret, ds_err *err);
/* ds_plan_text: "weights 1.2 GiB + KV ... = ... of ... available". */
void ds_plan_text(const ds_mem_plan *p, char *out, size_t cap);

#endif
