/* ctl_info.c - dsparkctl status, models and tokenize: questions with short answers. */
#include "base/clock.h"
#include "cli/ctl.h"
#include "cli/ctl_rpc.h"

#include <jansson.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

static ds_code no_words(int argc, char **argv, ds_err *err)
{
    if (argc > 0)
        return ds_err_set(err, DS_EINVAL, "unexpected word \"%.100s\"", argv[0]);
    return DS_OK;
}

static ds_code print_json(json_t *o, ds_err *err)
{
    char *text = o ? json_dumps(o, JSON_COMPACT | JSON_PRESERVE_ORDER) : NULL;
    if (text)
        puts(text);
    free(text);
    return text ? DS_OK : ds_err_set(err, DS_ENOMEM, "no memory for the answer");
}

static ds_code parse(const ds_buf *body, json_t **ret, ds_err *err)
{
    json_error_t why;
    *ret = json_loadb(body->data ? body->data : "", body->len, 0, &why);
    return *ret ? DS_OK : ds_err_set(err, DS_EPROTO, "the daemon's answer is not JSON: %s", why.text);
}

static ds_code get_models(ds_ctl *c, json_t **ret, ds_err *err)
{
    ds_buf body = {0};
    ds_code code = ds_http_get(c->http, "/v1/models", &body, NULL, err);
    if (!code)
        code = parse(&body, ret, err);
    ds_buf_free(&body);
    return code;
}

ds_code ds_ctl_model(ds_ctl *c, char out[256], ds_err *err)
{
    if (c->conf->model_id) {
        snprintf(out, 256, "%s", c->conf->model_id);
        return DS_OK;
    }
    json_t *root = NULL;
    DS_TRY(get_models(c, &root, err));
    const char *id =
        json_string_value(json_object_get(json_array_get(json_object_get(root, "data"), 0), "id"));
    if (id)
        snprintf(out, 256, "%s", id);
    json_decref(root);
    return id ? DS_OK : ds_err_set(err, DS_ENOTFOUND, "the daemon lists no model");
}

ds_code ds_ctl_models(ds_ctl *c, int argc, char **argv, ds_err *err)
{
    DS_TRY(no_words(argc, argv, err));
    if (c->rpc)
        return ds_ctl_rpc_models(c, err);
    json_t *root = NULL, *model;
    DS_TRY(get_models(c, &root, err));
    ds_code code = DS_OK;
    size_t i;
    if (c->conf->json)
        code = print_json(root, err);
    else
        json_array_foreach(json_object_get(root, "data"), i, model)
        {
            json_t *len = json_object_get(model, "max_model_len");
            const char *id = json_string_value(json_object_get(model, "id"));
            if (json_is_integer(len))
                printf("%s\t%lld tokens\n", id ? id : "?", (long long)json_integer_value(len));
            else
                printf("%s\n", id ? id : "?");
        }
    json_decref(root);
    return code;
}

ds_code ds_ctl_look(ds_ctl *c, ds_view *ret, ds_err *err)
{
    if (c->rpc)
        return ds_ctl_rpc_look(c, ret, err);
    ds_buf body = {0};
    ds_prom page = {0};
    ds_code code = ds_http_get(c->http, "/metrics", &body, NULL, err);
    if (!code)
        code = ds_prom_parse(body.data ? body.data : "", body.len, &page, err);
    if (!code)
        ds_view_from_metrics(&page, ds_now_ns(), ret);
    ds_prom_free(&page);
    ds_buf_free(&body);
    return code;
}

/* "ready", or what /ready says otherwise. */
static ds_code readiness(ds_ctl *c, char out[128], ds_err *err)
{
    if (c->rpc) {
        snprintf(out, 128, "ready");
        return DS_OK;
    }
    ds_buf body = {0};
    long status = 0;
    DS_TRY(ds_http_get(c->http, "/ready", &body, &status, err));
    json_t *root = json_loadb(body.data ? body.data : "", body.len, 0, NULL);
    const char *said = json_string_value(json_object_get(root, "status"));
    snprintf(out, 128, "%s", status == 200 ? "ready" : said ? said : "not ready");
    json_decref(root);
    ds_buf_free(&body);
    return DS_OK;
}

ds_code ds_ctl_status(ds_ctl *c, int argc, char **argv, ds_err *err)
{
    DS_TRY(no_words(argc, argv, err));
    static ds_view before, now; /* large, and there is one command a process */
    char ready[128], model[256];
    ds_err no_model;
    DS_TRY(readiness(c, ready, err));
    DS_TRY(ds_ctl_look(c, &before, err));
    struct timespec pause = {c->conf->interval_ms / 1000, c->conf->interval_ms % 1000 * 1000000};
    nanosleep(&pause, NULL);
    DS_TRY(ds_ctl_look(c, &now, err));
    ds_view_rates(&before, &now);
    if (c->rpc ? ds_ctl_rpc_model(c, model) : ds_ctl_model(c, model, &no_model))
        snprintf(model, sizeof model, "none");
    if (c->conf->json) {
        json_t *o = ds_view_json(&now);
        json_object_set_new(o, "state", json_string(ready));
        json_object_set_new(o, "model", json_string(model));
        ds_code code = print_json(o, err);
        json_decref(o);
        return code;
    }
    ds_buf table = {0};
    ds_code code = ds_view_table(&now, &table);
    if (!code)
        printf("%s: %s, model %s, %d worker%s\n\n%s", c->rpc ? c->conf->rpc : c->conf->url, ready, model,
               now.n_workers, now.n_workers == 1 ? "" : "s", table.data);
    ds_buf_free(&table);
    return code;
}

static ds_code http_tokenize(ds_ctl *c, const char *text, json_t **ret_ids, ds_err *err)
{
    json_t *req = json_pack("{s:s}", "prompt", text), *root = NULL;
    char *body_text = req ? json_dumps(req, JSON_COMPACT) : NULL;
    json_decref(req);
    if (!body_text)
        return ds_err_set(err, DS_EINVAL, "the text is not valid UTF-8");
    ds_buf body = {0};
    ds_code code = ds_http_post(c->http, "/tokenize", body_text, &body, err);
    free(body_text);
    if (!code)
        code = parse(&body, &root, err);
    ds_buf_free(&body);
    if (code)
        return code;
    *ret_ids = json_incref(json_object_get(root, "tokens"));
    json_decref(root);
    return json_is_array(*ret_ids) ? DS_OK
                                   : ds_err_set(err, DS_EPROTO, "the answer of /tokenize has no tokens");
}

ds_code ds_ctl_tokenize(ds_ctl *c, int argc, char **argv, ds_err *err)
{
    if (argc != 1)
        return ds_err_set(err, DS_EINVAL, "tokenize takes one text; quote it if it has blanks");
    json_t *ids = NULL, *id;
    ds_code code = c->rpc ? ds_ctl_rpc_tokenize(c, argv[0], &ids, err) : http_tokenize(c, argv[0], &ids, err);
    if (!code && c->conf->json) {
        json_t *o = json_pack("{s:O, s:i}", "tokens", ids, "count", (int)json_array_size(ids));
        code = print_json(o, err);
        json_decref(o);
    } else if (!code) {
        size_t i;
        json_array_foreach(ids, i, id) printf("%s%lld", i ? " " : "", (long long)json_integer_value(id));
        printf("\n%zu tokens\n", json_array_size(ids));
    }
    json_decref(ids);
    return code;
}
