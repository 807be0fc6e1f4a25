#include "worker/seq.h"

#include <stdlib.h>
#include <string.h>

static void seen_add(ds_seen *seen, int32_t token, int as_output)
{
    uint32_t at = (uint32_t)token * 0x9E3779B1u & seen->mask;
    while (seen->index[at] && seen->id[seen->index[at] - 1] != token)
        at = (at + 1) & seen->mask;
    if (!seen->index[at]) {
        seen->id[seen->n] = token;
        seen->count[seen->n] = 0;
        seen->index[at] = ++seen->n;
    }
    seen->count[seen->index[at] - 1] += as_output;
}

/* The arrays of one sequence, carved out of one block: first pass (base NULL) only counts the bytes. */
static size_t layout(ds_seq *s, char *base, int n_seen, int n_index)
{
    size_t at = (sizeof *s + 15) & ~(size_t)15;
    struct {
        void **place;
        size_t n;
    } part[] = {
        {(void **)&s->tokens, (size_t)s->cap},
        {(void **)&s->stop, (size_t)s->n_stop},
        {(void **)&s->req.bias_id, (size_t)s->req.n_bias},
        {(void **)&s->req.bias, (size_t)s->req.n_bias},
        {(void **)&s->seen.id, (size_t)n_seen},
        {(void **)&s->seen.count, (size_t)n_seen},
        {(void **)&s->seen.index, (size_t)n_index},
    };
    for (size_t i = 0; i < sizeof part / sizeof *part; i++) {
        if (base)
            *part[i].place = base + at;
        at += part[i].n * 4; /* int32_t and float alike */
    }
    return at;
}

ds_code ds_seq_create(const ds_req *req, const ds_seq_limits *limits, ds_seq **ret, ds_err *err)
{
    int64_t cap = (int64_t)req->n_prompt + req->max_tokens;
    ds_seq tmp = {.req = *req, .cap = cap <= limits->max_len ? (int)cap : limits->max_len + 1};
    tmp.n_stop = req->n_stop_id;
    for (int i = 0; i < limits->n_eos && !req->ignore_eos; i++)
        tmp.n_stop += limits->eos[i] >= 0 && limits->eos[i] < limits->vocab;
    tmp.penalized = req->repetition != 1.0f || req->presence != 0.0f || req->frequency != 0.0f;
    int n_seen = !tmp.penalized ? 0 : tmp.cap < limits->vocab ? tmp.cap : limits->vocab;
    int n_index = tmp.penalized ? 1 : 0;
    while (tmp.penalized && n_index < 2 * n_seen)
        n_index *= 2;

    size_t bytes = layout(&tmp, NULL, n_seen, n_index);
    ds_seq *s = *ret = calloc(1, bytes);
    if (!s)
        return ds_err_set(err, DS_ENOMEM, "no memory for a request of up to %d tokens (%zu bytes)", tmp.cap,
                          bytes);
    *s = tmp;
    layout(s, (char *)s, n_seen, n_index);
    s->seen.mask = n_index ? (uint32_t)n_index - 1 : 0;
    s->slot = s->n_cached = -1;
    s->n_scored = 1;
    memcpy(s->tokens, req->prompt, (size_t)req->n_prompt * sizeof *s->tokens);
    if (req->n_output)
        memcpy(s->tokens + req->n_prompt, req->output, (size_t)req->n_output * sizeof *s->tokens);
    s->n = req->n_prompt + req->n_output;
    s->req.prompt = s->tokens;
    s->req.output = s->tokens + req->n_prompt;
    if (req->n_bias) {
        memcpy((int32_t *)s->req.bias_id, req->bias_id, (size_t)req->n_bias * sizeof(int32_t));
        memcpy((float *)s->req.bias, req->bias, (size_t)req->n_bias * sizeof(float));
    }
    if (req->n_stop_id)
        memcpy(s->stop, req->stop_id, (size_t)req->n_stop_id * sizeof *s->stop);
    for (int i = 0, at = req->n_stop_id; at < s->n_stop; i++)
        if (limits->eos[i] >= 0 && limits->eos[i] < limits->vocab) /* a checkpoint's config may name more */
            s->stop[at++] = limits->eos[i];
    s->req.stop_id = s->stop;
    for (int i = 0; s->penalized && i < s->n; i++)
        seen_add(&s->seen, s->tokens[i], i >= req->n_prompt);
    return DS_OK;
}

void ds_seq_destroy(ds_seq *s)
{
    free(s);
}

ds_finish ds_seq_finished(const ds_seq *s)
{
    int n_output = ds_seq_n_output(s);
    for (int i = 0; n_output > s->req.min_tokens && i < s->n_stop; i++)
        if (s->tokens[s->n - 1] == s->stop[i])
            return DS_FINISH_STOP;
    return n_output >= s->req.max_tokens || s->n >= s->cap ? DS_FINISH_LENGTH : DS_FINISH_NONE;
}

ds_finish ds_seq_append(ds_seq *s, int32_t token)
{
    DS_ASSERT(s->n < s->cap);
    s->tokens[s->n++] = token;
    if (s->penalized)
        seen_add(&s->seen, token, 1);
    return ds_seq_finished(s);
}
