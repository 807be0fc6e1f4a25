#include "cli/door_rpc.h"

#include <stdlib.h>
#include <string.h>

typedef struct rpc_door {
    ds_door_rpc_conf conf;
    ds_client *client;
    ds_load *load;
    uint64_t *id; /* [slots] of the live request; 0: none */
} rpc_door;

static ds_code whole_text(const ds_load_req *req, ds_buf *out)
{
    for (int t = 0; t < req->turn; t++)
        DS_TRY(ds_buf_printf(out, "%s\n%s\n", req->prompt->turn[t],
                             req->answers[t].data ? req->answers[t].data : ""));
    return ds_buf_puts(out, req->prompt->turn[req->turn]);
}

static ds_code start(void *self, int slot, const ds_load_req *r, ds_err *err)
{
    rpc_door *d = self;
    ds_client_req req = ds_client_req_default(d->client);
    ds_buf text = {0};
    if (r->prompt->ids) {
        req.prompt_ids = r->prompt->ids;
        req.n_prompt_ids = (size_t)r->prompt->n_ids;
    } else {
        if (whole_text(r, &text)) {
            ds_buf_free(&text);
            return ds_err_set(err, DS_ENOMEM, "no memory for a prompt");
        }
        req.text = text.data;
    }
    req.max_tokens = (int)d->conf.max_tokens;
    req.temperature = (float)d->conf.temperature;
    req.top_p = 1;
    req.top_k = 0;
    req.seed = r->seed;
    req.ignore_eos = d->conf.ignore_eos;
    ds_code code = ds_client_submit(d->client, &req, &d->id[slot], err);
    if (code)
        d->id[slot] = 0;
    ds_buf_free(&text);
    return code;
}

static void take_event(rpc_door *d, int slot, const ds_client_event *ev)
{
    ds_load_end end = {0};
    if (ev->kind == DS_CLIENT_TOKENS) {
        const char *text = ev->tokens->text ? ev->tokens->text : "";
        if (!ev->tokens->prompt && ev->tokens->n_ids > 0)
            ds_load_on_text(d->load, slot, text, strlen(text));
        return;
    }
    if (ev->kind == DS_CLIENT_ERROR) {
        end.code = ev->code;
        end.msg = ev->msg;
    } else {
        end.prompt_tokens = ev->done->prompt_tokens;
        end.output_tokens = ev->done->output_tokens;
        end.cached_tokens = ev->done->cached_tokens;
    }
    d->id[slot] = 0;
    ds_load_on_end(d->load, slot, &end);
}

static ds_code wait_for(void *self, int timeout_ms, ds_err *err)
{
    rpc_door *d = self;
    for (;; timeout_ms = 0) { /* wait for one, then take all that is there */
        ds_client_event ev;
        ds_code code = ds_client_next(d->client, timeout_ms, &ev, err);
        if (code == DS_ETIMEOUT)
            return DS_OK;
        if (code)
            return code;
        int slot = 0;
        while (slot < d->conf.slots && d->id[slot] != ev.id)
            slot++;
        if (slot < d->conf.slots)
            take_event(d, slot, &ev);
    }
}

static void close_door(void *self)
{
    rpc_door *d = self;
    free(d->id);
    free(d);
}

ds_code ds_door_rpc_open(const ds_door_rpc_conf *conf, ds_client *client, ds_load *load, ds_door *ret,
                         ds_err *err)
{
    rpc_door *d = calloc(1, sizeof *d);
    uint64_t *id = calloc((size_t)conf->slots, sizeof *id);
    if (!d || !id) {
        free(d);
        free(id);
        return ds_err_set(err, DS_ENOMEM, "no memory for the RPC door");
    }
    *d = (rpc_door){*conf, client, load, id};
    *ret = (ds_door){d, start, wait_for, close_door};
    return DS_OK;
}
