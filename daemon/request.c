/* request.c - see request.h: life of a request from the pool to its one outcome. */
#include "daemon/daemon.h"

#include "base/log.h"
#include "base/rng.h"
#include "proto/validate.h"

#include <stdlib.h>
#include <string.h>
#include <sys/random.h>
#include <time.h>

static void release(ds_request *r)
{
    ds_daemon *d = r->d;
    *(r->prev ? &r->prev->next : &d->requests) = r->next;
    if (r->next)
        r->next->prev = r->prev;
    d->n_requests--;
    for (int i = 0; i < r->n_choices; i++)
        ds_choice_close(&r->choices[i]);
    for (int i = 0; i < r->n_prompts; i++) {
        free(r->prompt[i].ids);
        ds_buf_free(&r->prompt[i].echo);
    }
    free(r->choices);
    ds_params_free(&r->params);
    ds_buf_free(&r->prefix);
    ds_buf_free(&r->body);
    ds_buf_free(&r->reply);
    free(r);
}

ds_request *ds_request_create(ds_daemon *d, const char *prefix, const ds_sink *sink, void *peer)
{
    ds_request *r = calloc(1, sizeof *r);
    uint64_t id[2];
    if (!r || getrandom(id, sizeof id, 0) != sizeof id) {
        free(r);
        return NULL;
    }
    r->d = d;
    r->sink = sink;
    r->peer = peer;
    r->params.logprobs = -1;
    r->start_ns = ds_clock_ns(d->clock);
    r->created = (int64_t)time(NULL);
    snprintf(r->id, sizeof r->id, "%s-%016llx%08x", prefix, (unsigned long long)id[0], (unsigned)id[1]);
    r->next = d->requests;
    if (r->next)
        r->next->prev = r;
    d->requests = r;
    d->n_requests++;
    return r;
}

/* The one place that ends a request. Its memory goes now, or when the pool lets go of it. */
void ds_request_end(ds_request *r)
{
    DS_ASSERT(r->state != REQ_ENDED);
    int in_pool = r->state == REQ_PREPARE;
    r->state = REQ_ENDED;
    r->peer = NULL;
    ds_metric_observe(r->d->m.duration, (double)(ds_clock_ns(r->d->clock) - r->start_ns) * 1e-9);
    if (!in_pool)
        release(r);
}

static void end_choices(ds_request *r)
{
    r->live = -1; /* the last choice must not finish the request: it has another outcome */
    for (int i = 0; i < r->n_choices; i++)
        ds_choice_enter(&r->choices[i], CHOICE_ENDED);
}

/* The proto field an error names, as the client knows it. */
static void translate(const ds_request *r, const ds_err *from, ds_err *to)
{
    static const char *const NAMES[][4] = {
        /* proto, chat, completions, in the message when it is not the field's name */
        {"prompt_ids", "messages", "prompt", NULL},
        {"logit_bias_id", "logit_bias", "logit_bias", "logit_bias key"},
        {"prompt_logprobs", "logprobs", "logprobs", NULL},
        {"logprobs", "top_logprobs", "logprobs", NULL},
    };
    *to = *from;
    for (size_t i = 0; i < sizeof NAMES / sizeof *NAMES && r->params.api; i++) {
        size_t n = strlen(NAMES[i][0]);
        const char *name = NAMES[i][r->params.api];
        if (strcmp(from->field, NAMES[i][0]))
            continue;
        snprintf(to->field, sizeof to->field, "%s", name);
        if (!strncmp(from->msg, NAMES[i][0], n))
            snprintf(to->msg, sizeof to->msg, "%s%.*s", NAMES[i][3] ? NAMES[i][3] : name, DS_ERR_MSG_MAX - 32,
                     from->msg + n);
        return;
    }
}

void ds_request_fail(ds_request *r, const ds_err *err)
{
    ds_err e;
    if (r->state == REQ_ENDED)
        return;
    translate(r, err, &e);
    ds_metric_add(r->d->m.failed, 1);
    end_choices(r);
    r->sink->fail(r, &e);
    ds_request_end(r);
}

void ds_request_abandon(void *owner)
{
    ds_request *r = owner;
    if (r->state == REQ_ENDED)
        return;
    ds_metric_add(r->d->m.cancelled, 1);
    r->peer = NULL;
    end_choices(r);
    ds_request_end(r);
}

/* ---- the pool's part ---- */

static void work(uv_work_t *w)
{
    ds_request *r = w->data;
    r->prepare_code = r->prepare(r, &r->prepare_err);
}

static void work_done(uv_work_t *w, int status)
{
    ds_request *r = w->data;
    ds_daemon *d = r->d;
    d->n_preparing--;
    d->preparing_bytes -= r->body.len;
    ds_buf_free(&r->body);
    if (r->state == REQ_ENDED) {
        release(r); /* the client left meanwhile */
        return;
    }
    r->state = REQ_RUNNING;
    if (status || r->prepare_code) {
        if (status)
            ds_err_set(&r->prepare_err, DS_ECANCELLED, "cancelled");
        ds_request_fail(r, &r->prepare_err);
    } else {
        r->prepared(r);
    }
}

void ds_request_prepare(ds_request *r)
{
    ds_daemon *d = r->d;
    ds_err err = {0};
    r->work.data = r;
    ds_code code = DS_OK;
    if (d->n_preparing >= d->conf.max_waiting ||
        d->preparing_bytes + r->body.len > (size_t)d->conf.max_pending_bytes)
        code = ds_err_set(&err, DS_ELIMIT, "too many requests are being read");
    else if (uv_queue_work(d->loop, &r->work, work, work_done))
        code = ds_err_set(&err, DS_EBUG, "the thread pool is closed");
    if (code) {
        r->state = REQ_RUNNING;
        ds_request_fail(r, &err);
        return;
    }
    d->n_preparing++;
    d->preparing_bytes += r->body.len;
}

ds_code ds_request_encode(ds_request *r, int i, const char *text, size_t len, int special, ds_err *err)
{
    ds_ids ids = {0};
    if (!r->d->tok)
        return ds_err_field(err, DS_EUNSUPPORTED, "prompt_ids",
                            "this model has no tokenizer: give token ids");
    ds_code code = ds_tokenizer_encode(r->d->tok, text, len, 1, special, DS_MAX_PROMPT_TOKENS, &ids, err);
    if (code) {
        ds_ids_free(&ids);
        if (!err->field[0])
            snprintf(err->field, sizeof err->field, "prompt_ids");
        if (code == DS_ELIMIT) /* too long is the caller's matter, not a matter of load */
            return ds_err_field(err, DS_EINVAL, "prompt_ids", "prompt has more than %d tokens",
                                DS_MAX_PROMPT_TOKENS);
        return code;
    }
    r->prompt[i].ids = ids.v;
    r->prompt[i].n = ids.n;
    return DS_OK;
}

ds_code ds_text_decode(const ds_tokenizer *tok, const int32_t *ids, int n, ds_buf *out, ds_err *err)
{
    ds_detok *t;
    const char *text;
    size_t len;
    int stop;
    if (!tok)
        return DS_OK; /* a model without a tokenizer has no text */
    DS_TRY(ds_detok_open(tok, 0, NULL, 0, &t, err));
    ds_code code = DS_OK;
    for (int i = 0; i < n && code == DS_OK; i++) {
        code = ds_detok_push(t, ids[i], &text, &len, &stop);
        if (code == DS_OK)
            code = ds_buf_append(out, text, len);
    }
    if (code == DS_OK)
        code = ds_detok_flush(t, &text, &len);
    if (code == DS_OK)
        code = ds_buf_append(out, text, len);
    ds_detok_close(t);
    return code ? ds_err_set(err, code, "the prompt's token ids cannot be decoded") : DS_OK;
}

ds_code ds_request_encode_prompts(ds_request *r, ds_err *err)
{
    const ds_params *p = &r->params;
    for (int i = 0; i < p->n_prompts; i++) {
        ds_prompt *pr = &r->prompt[i];
        r->n_prompts = i + 1;
        if (json_is_string(p->prompt[i])) {
            pr->text = json_string_value(p->prompt[i]);
            pr->text_len = json_string_length(p->prompt[i]);
            DS_TRY(ds_request_encode(r, i, pr->text, pr->text_len, 1, err));
        } else {
            DS_TRY(ds_params_ids(p->prompt[i], "prompt", &pr->ids, &pr->n, err));
        }
        if (pr->n == 0)
            return ds_err_field(err, DS_EINVAL, "prompt", "prompt[%d] is empty", i);
        if (p->echo && pr->text)
            DS_TRY(ds_buf_append(&pr->echo, pr->text, pr->text_len));
        else if (p->echo)
            DS_TRY(ds_text_decode(r->d->tok, pr->ids, pr->n, &pr->echo, err));
    }
    return DS_OK;
}

/* ---- start ---- */

static uint64_t choice_seed(uint64_t seed, int i)
{
    if (i == 0)
        return seed;
    return (uint64_t)ds_rng_u32(seed, DS_RNG_CHOICE, (uint64_t)i, 0) << 32 |
           ds_rng_u32(seed, DS_RNG_CHOICE, (uint64_t)i, 1);
}

static ds_code check(ds_request *r, ds_err *err)
{
    const ds_daemon *d = r->d;
    const ds_params *p = &r->params;
    if (p->model && strcmp(p->model, d->model))
        return ds_err_field(err, DS_ENOTFOUND, "model", "model '%.128s' is not served here, '%.128s' is",
                            p->model, d->model);
    DS_TRY(ds_admit_check(r->d, r->n_choices, err));
    for (int i = 0; i < r->n_choices; i += p->n) {
        ds_pb_submit s;
        ds_pb_sampling sampling;
        ds_choice_submit(&r->choices[i], &s, &sampling);
        DS_TRY(ds_proto_validate_submit(&s, ds_links_caps(d->links), 0, err));
        const ds_pb_caps *caps = ds_links_caps(d->links);
        if (caps->kv_tokens && (uint64_t)s.n_prompt_ids + sampling.max_tokens > caps->kv_tokens + 1)
            return ds_err_field(
                err, DS_EINVAL, "max_tokens",
                "prompt of %zu tokens plus max_tokens %u exceed the worker's cache of %llu tokens",
                s.n_prompt_ids, sampling.max_tokens, (unsigned long long)caps->kv_tokens);
    }
    return DS_OK;
}

void ds_request_start(ds_request *r)
{
    const ds_params *p = &r->params;
    ds_err err = {0};
    if (!p->has_seed && getrandom(&r->params.sampling.seed, sizeof r->params.sampling.seed, 0) < 0)
        r->params.sampling.seed = r->start_ns;
    int n = r->n_prompts * p->n;
    r->choices = calloc((size_t)n, sizeof *r->choices);
    if (!r->choices) {
        ds_err_set(&err, DS_ENOMEM, "no memory for the request");
        ds_request_fail(r, &err);
        return;
    }
    r->live = 1; /* held until all are queued */
    for (int i = 0; i < n; i++) {
        ds_choice *c = &r->choices[i];
        *c = (ds_choice){
            .req = r, .index = i, .prompt = i / p->n, .seed = choice_seed(p->sampling.seed, i % p->n)};
        r->n_choices = i + 1;
        if (ds_choice_open(c, &err)) {
            ds_request_fail(r, &err);
            return;
        }
    }
    r->live = n;
    if (check(r, &err)) {
        ds_request_fail(r, &err);
        return;
    }
    for (int i = 0; i < r->n_prompts; i++)
        ds_metric_add(r->d->m.prompt_tokens, r->prompt[i].n);
    for (int i = 0; i < n; i++)
        ds_admit_push(&r->choices[i], 0);
    json_decref(r->params.root); /* the tree is not needed any more */
    r->params.root = NULL;
    for (int i = 0; i < r->n_prompts; i++)
        r->prompt[i].text = NULL;
}
