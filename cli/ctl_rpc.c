#include "cli/ctl_rpc.h"

#include "base/clock.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum { POLL_MS = 100 }; /* how often a wait looks whether Ctrl-C came */

struct ds_ctl_rpc {
    ds_client *client;
};

ds_code ds_ctl_rpc_open(const ds_ctl_conf *conf, struct ds_ctl_rpc **ret, ds_err *err)
{
    struct ds_ctl_rpc *r = calloc(1, sizeof *r);
    if (!r)
        return ds_err_set(err, DS_ENOMEM, "no memory for an RPC client");
    ds_client_opts opts = {.timeout_ms = 5000};
    ds_code code = ds_client_open(conf->rpc, &opts, &r->client, err);
    if (code) {
        free(r);
        return code;
    }
    *ret = r;
    return DS_OK;
}

void ds_ctl_rpc_close(struct ds_ctl_rpc *r)
{
    if (!r)
        return;
    ds_client_close(r->client);
    free(r);
}

static ds_client_req request(const ds_ctl *c, const char *prompt)
{
    ds_client_req req = ds_client_req_default(c->rpc->client);
    req.text = prompt;
    req.max_tokens = (int)c->conf->max_tokens;
    req.temperature = (float)c->conf->temperature;
    req.top_p = (float)c->conf->top_p;
    req.top_k = (int)c->conf->top_k;
    req.seed = c->conf->seed >= 0 ? (uint64_t)c->conf->seed : ds_now_ns();
    req.stop = (const char *const *)&c->conf->stop;
    req.n_stop = c->conf->stop != NULL;
    return req;
}

static const char *finish_name(const ds_pb_done *done)
{
    switch (done->finish) {
    case DSPARK__V1__DONE__FINISH__STOP:
        return "stop";
    case DSPARK__V1__DONE__FINISH__LENGTH:
        return "length";
    case DSPARK__V1__DONE__FINISH__CANCELLED:
        return "cancelled";
    default:
        return "";
    }
}

ds_code ds_ctl_rpc_complete(ds_ctl *c, const char *prompt, ds_ctl_text_fn fn, void *ctx, ds_ctl_answer *ret,
                            ds_err *err)
{
    ds_client *client = c->rpc->client;
    ds_client_req req = request(c, prompt);
    uint64_t id, deadline_ns = ds_now_ns() + (uint64_t)c->conf->timeout_ms * 1000000;
    DS_TRY(ds_client_submit(client, &req, &id, err));
    for (int cancelled = 0;;) {
        ds_client_event ev;
        ds_code code = ds_client_next(client, POLL_MS, &ev, err);
        int late = ds_now_ns() > deadline_ns;
        if ((*c->stop || late) && !cancelled) {
            ds_client_cancel(client, id, NULL);
            cancelled = 1;
        }
        if (code == DS_ETIMEOUT && !(late && cancelled))
            continue;
        if (code)
            return code;
        if (ev.kind == DS_CLIENT_ERROR)
            return ds_err_field(err, ev.code, ev.field, "%s", ev.msg);
        if (ev.kind == DS_CLIENT_DONE) {
            snprintf(ret->finish, sizeof ret->finish, "%s", finish_name(ev.done));
            ret->prompt_tokens = ev.done->prompt_tokens;
            ret->output_tokens = ev.done->output_tokens;
            ret->cached_tokens = ev.done->cached_tokens;
            ret->accepted = ev.done->accepted_draft_tokens;
            ret->rejected = ev.done->rejected_draft_tokens;
            return cancelled ? ds_err_set(err, DS_ECANCELLED, "stopped") : DS_OK;
        }
        const ds_pb_tokens *t = ev.tokens;
        if (!t->prompt && t->text && !cancelled &&
            fn(ctx, t->text, t->n_ids, t->n_accepted_draft == t->n_ids ? t->accepted_draft : NULL)) {
            ds_client_cancel(client, id, NULL);
            cancelled = 1;
        }
    }
}

static void take_stats(const ds_pb_stats *s, ds_view_worker *w)
{
    *w = (ds_view_worker){.up = 1,
                          .running = s->running,
                          .waiting = s->waiting,
                          .kv_used = (double)s->kv_tokens_used,
                          .kv_total = (double)s->kv_tokens,
                          .steps = (double)s->steps,
                          .rows = (double)s->rows,
                          .prompt_tokens = (double)s->prompt_tokens,
                          .output_tokens = (double)s->output_tokens,
                          .prefix_hit_tokens = (double)s->prefix_hit_tokens,
                          .preemptions = (double)s->preemptions,
                          .finished = (double)s->finished,
                          .cancelled = (double)s->cancelled,
                          .failed = (double)s->failed,
                          .draft_tokens = (double)s->draft_tokens,
                          .accepted_tokens = (double)s->accepted_tokens,
                          .draft_rounds = (double)s->draft_rounds,
                          .proposed_tokens = (double)s->proposed_tokens,
                          .busy_s = (double)s->busy_ns / 1e9,
                          .last_step_s = (double)s->last_step_ns / 1e9,
                          .rss_bytes = (double)s->rss_bytes,
                          .output_rate = NAN,
                          .prompt_rate = NAN,
                          .step_rate = NAN,
                          .busy_share = NAN,
                          .accepted_length = NAN,
                          .acceptance = NAN};
    snprintf(w->name, sizeof w->name, "%s", s->worker);
}

ds_code ds_ctl_rpc_look(ds_ctl *c, ds_view *ret, ds_err *err)
{
    const ds_pb_stats *stats;
    DS_TRY(ds_client_stats(c->rpc->client, &stats, err));
    ret->at_ns = ds_now_ns();
    ret->n_workers = 0;
    for (size_t i = 0; i < stats->n_workers && i < DS_VIEW_MAX_WORKERS; i++)
        take_stats(stats->workers[i], &ret->worker[ret->n_workers++]);
    ds_view_sum(ret);
    return DS_OK;
}

ds_code ds_ctl_rpc_model(ds_ctl *c, char out[256])
{
    snprintf(out, 256, "%s", ds_client_caps(c->rpc->client)->model);
    return DS_OK;
}

ds_code ds_ctl_rpc_models(ds_ctl *c, ds_err *err)
{
    const ds_pb_caps *caps = ds_client_caps(c->rpc->client);
    if (!c->conf->json) {
        printf("%s\t%u tokens\n", caps->model, caps->max_positions);
        return DS_OK;
    }
    json_t *o = json_pack("{s:[{s:s, s:s, s:I}]}", "data", "id", caps->model, "arch", caps->arch,
                          "max_model_len", (json_int_t)caps->max_positions);
    char *text = o ? json_dumps(o, JSON_COMPACT) : NULL;
    if (text)
        puts(text);
    free(text);
    json_decref(o);
    return text ? DS_OK : ds_err_set(err, DS_EPROTO, "the router's model name is not valid UTF-8");
}

ds_code ds_ctl_rpc_tokenize(ds_ctl *c, const char *text, json_t **ret_ids, ds_err *err)
{
    const int32_t *ids;
    size_t n;
    DS_TRY(ds_client_tokenize(c->rpc->client, text, &ids, &n, err));
    *ret_ids = json_array();
    for (size_t i = 0; i < n; i++)
        if (json_array_append_new(*ret_ids, json_integer(ids[i])))
            return ds_err_set(err, DS_ENOMEM, "no memory for %zu tokens", n);
    return DS_OK;
}
