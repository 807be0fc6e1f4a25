/* sample_rows.cu - `sample` as the op table has it: rows, lists and results in host memory. Everything goes
 * up in one copy, the kernel of sample.cu runs, the results come down in one copy; the only op that waits. */
#include "kernels/cuda/internal.h"

#include <string.h>

extern "C" {
#include "base/limits.h"
}

static int ids_ok(const int32_t *id, int n, int V)
{
    for (int i = 0; i < n; i++)
        if (id[i] < 0 || id[i] >= V)
            return 0;
    return n >= 0;
}

/* Bytes of lists a row brings, and its undo room. */
static size_t list_bytes(const ds_sample_row *r)
{
    return 4 * (2 * (size_t)r->n_seen + 2 * (size_t)r->n_bias + (size_t)r->n_banned + (size_t)r->n_extra);
}

static size_t undo_bytes(const ds_sample_row *r)
{
    size_t n = (size_t)r->n_seen + (size_t)r->n_bias + (size_t)r->n_banned + (size_t)r->n_extra;
    return (r->draft_logits ? 2 : 1) * 4 * n;
}

static ds_code check_rows(const ds_sample_args *a)
{
    if (a->R < 0 || a->V <= 0 || a->V > DS_MAX_VOCAB)
        return DS_EINVAL;
    for (int i = 0; i < a->R; i++) {
        const ds_sample_row *r = &a->row[i];
        if (!ids_ok(r->seen, r->n_seen, a->V) || !ids_ok(r->bias_id, r->n_bias, a->V) ||
            !ids_ok(r->banned, r->n_banned, a->V) || !ids_ok(r->extra, r->n_extra, a->V) ||
            r->given >= a->V || r->n_logprobs > DS_MAX_TOP_LOGPROBS ||
            (r->draft_logits && !ids_ok(&r->draft, 1, a->V)))
            return DS_EINVAL;
    }
    return DS_OK;
}

/* Copies n entries to the staging block at *at; the device address they will have. */
static const void *stage(char *host, const char *dev, size_t *at, const void *src, int n)
{
    const void *p = dev + *at;
    if (n > 0)
        memcpy(host + *at, src, 4 * (size_t)n);
    *at += 4 * (size_t)n;
    return p;
}

static ds_cuda_row stage_row(const ds_sample_row *r, char *host, const char *dev, size_t *at, float *undo)
{
    ds_cuda_row d = {};
    d.temperature = r->temperature;
    d.top_p = r->top_p;
    d.min_p = r->min_p;
    d.repetition = r->repetition;
    d.presence = r->presence;
    d.frequency = r->frequency;
    d.top_k = r->top_k;
    d.n_logprobs = r->n_logprobs;
    d.given = r->given;
    d.n_seen = r->n_seen;
    d.n_bias = r->n_bias;
    d.n_banned = r->n_banned;
    d.n_extra = r->n_extra;
    d.seen = (const int32_t *)stage(host, dev, at, r->seen, r->n_seen);
    d.seen_count = (const int32_t *)stage(host, dev, at, r->seen_count, r->n_seen);
    d.bias_id = (const int32_t *)stage(host, dev, at, r->bias_id, r->n_bias);
    d.bias = (const float *)stage(host, dev, at, r->bias, r->n_bias);
    d.banned = (const int32_t *)stage(host, dev, at, r->banned, r->n_banned);
    d.extra = (const int32_t *)stage(host, dev, at, r->extra, r->n_extra);
    d.undo = undo;
    d.banned_until = r->banned_until;
    d.stream = r->stream;
    d.draft = r->draft;
    d.draft_logits = r->draft_logits;
    d.seed = r->seed;
    d.pos = r->pos;
    return d;
}

static ds_code pinned_room(ds_cuda *c, size_t bytes)
{
    if (bytes <= c->pinned_bytes)
        return DS_OK;
    DS_TRY(ds_cuda_code(c, cudaStreamSynchronize(c->stream)));
    cudaFreeHost(c->pinned);
    c->pinned = NULL;
    c->pinned_bytes = 0;
    DS_TRY(ds_cuda_code(c, cudaMallocHost(&c->pinned, 2 * bytes)));
    c->pinned_bytes = 2 * bytes;
    return DS_OK;
}

/* Layout, on the device and (without undo) in pinned memory: rows, lists | results, undo. */
ds_code ds_cuda_sample(ds_backend *b, const ds_sample_args *a)
{
    ds_cuda *c = ds_cuda_of(b);
    DS_TRY(check_rows(a));
    if (a->R == 0)
        return ds_cuda_flush(c);
    size_t R = (size_t)a->R, rows = R * sizeof(ds_cuda_row), lists = 0, undos = 0, at = rows;
    for (int i = 0; i < a->R; i++) {
        lists += list_bytes(&a->row[i]);
        undos += undo_bytes(&a->row[i]);
    }
    size_t up = (rows + lists + 255) & ~(size_t)255, outs = R * sizeof(ds_sample_out);
    DS_TRY(ds_cuda_room(c, &c->sampler, up + outs + undos));
    DS_TRY(pinned_room(c, up + outs));
    char *host = (char *)c->pinned, *dev = (char *)c->sampler.p;
    float *undo = (float *)(dev + up + outs);
    for (int i = 0; i < a->R; i++) {
        ds_cuda_row d = stage_row(&a->row[i], host, dev, &at, undo);
        memcpy(host + (size_t)i * sizeof d, &d, sizeof d);
        undo += undo_bytes(&a->row[i]) / 4;
    }
    ds_sample_out *out = (ds_sample_out *)(dev + up);
    DS_TRY(ds_cuda_flush(c));
    DS_TRY(ds_cuda_code(c, cudaMemcpyAsync(dev, host, rows + lists, cudaMemcpyHostToDevice, c->stream)));
    DS_TRY(ds_cuda_sample_enqueue(b, a->logits, a->R, a->V, (const ds_cuda_row *)dev, out));
    DS_TRY(ds_cuda_code(c, cudaMemcpyAsync(host + up, out, outs, cudaMemcpyDeviceToHost, c->stream)));
    DS_TRY(ds_cuda_code(c, cudaStreamSynchronize(c->stream)));
    memcpy(a->out, host + up, outs);
    return DS_OK;
}
