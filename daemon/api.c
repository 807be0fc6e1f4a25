/* api.c - from a path to its handler, and the small answers: health, ready, models, metrics. */
#include "daemon/api.h"
#include "daemon/answer.h"
#include "daemon/json_out.h"

#include <ctype.h>
#include <stdio.h>
#include <string.h>

void ds_api_start(ds_daemon *d, ds_hconn *c, ds_http_reader *msg, const char *id_prefix, const ds_sink *sink,
                  ds_code (*prepare)(ds_request *, ds_err *), void (*prepared)(ds_request *))
{
    ds_err err = {0};
    ds_request *r = ds_request_create(d, id_prefix, sink, c);
    if (!r) {
        ds_err_set(&err, DS_ENOMEM, "no memory for the request");
        ds_answer_error(d, c, msg->path, &err);
        return;
    }
    r->body = msg->body;
    msg->body = (ds_buf){0};
    r->prepare = prepare;
    r->prepared = prepared;
    ds_hconn_own(c, r, ds_request_abandon);
    ds_request_prepare(r);
}

static void reply(ds_daemon *d, ds_hconn *c, const char *path, int status, const char *type, const char *body,
                  size_t n)
{
    ds_metrics_http(d, path, status);
    ds_hconn_reply(c, status, type, "", body, n);
}

/* Alive: the loop turns. Says nothing about workers; that is /ready. */
static void health(ds_daemon *d, ds_hconn *c, ds_http_reader *msg)
{
    static const char body[] = "{\"status\":\"ok\"}";
    reply(d, c, msg->path, 200, "application/json", body, sizeof body - 1);
}

static void ready(ds_daemon *d, ds_hconn *c, ds_http_reader *msg)
{
    char body[128];
    int n_workers = ds_links_ready(d->links), ok = n_workers > 0 && !d->draining;
    int n = snprintf(body, sizeof body, "{\"status\":\"%s\",\"workers\":%d}",
                     ok            ? "ready"
                     : d->draining ? "draining"
                                   : "no worker is ready",
                     n_workers);
    reply(d, c, msg->path, ok ? 200 : 503, "application/json", body, (size_t)n);
}

static void metrics(ds_daemon *d, ds_hconn *c, ds_http_reader *msg)
{
    ds_metrics_http(d, msg->path, 200);
    ds_buf_clear(&d->scratch);
    ds_code code = ds_metrics_page(d, &d->scratch);
    if (code)
        ds_answer_status(d, c, msg->path, 500, "internal", "", "the metrics could not be written");
    else
        ds_hconn_reply(c, 200, "text/plain; version=0.0.4; charset=utf-8", "", d->scratch.data,
                       d->scratch.len);
}

static ds_code put_model(ds_daemon *d, ds_buf *out)
{
    const ds_pb_caps *caps = ds_links_caps(d->links);
    DS_TRY(ds_buf_puts(out, "{\"id\":"));
    DS_TRY(ds_json_str(out, d->model, strlen(d->model)));
    DS_TRY(ds_buf_printf(out,
                         ",\"object\":\"model\",\"created\":%lld,\"owned_by\":\"dsparkd\",\"max_model_len\":",
                         (long long)d->created));
    return caps ? ds_buf_printf(out, "%u}", caps->max_positions) : ds_buf_puts(out, "null}");
}

/* Clients escape a model's id in the path; "a%2Fb" and "a/b" are the same. */
static void unescape(char *s)
{
    unsigned byte;
    char *out = s;
    for (; *s; s++) {
        int escaped = s[0] == '%' && isxdigit((unsigned char)s[1]) && isxdigit((unsigned char)s[2]);
        if (escaped && sscanf(s + 1, "%2x", &byte) == 1 && byte) {
            *out++ = (char)byte;
            s += 2;
        } else {
            *out++ = *s;
        }
    }
    *out = 0;
}

static void models(ds_daemon *d, ds_hconn *c, ds_http_reader *msg)
{
    static const char PATH[] = "/v1/models";
    char *id = msg->path + sizeof PATH - 1;
    unescape(id);
    ds_buf *out = &d->scratch;
    ds_buf_clear(out);
    if (*id == '/' && strcmp(id + 1, d->model)) {
        ds_err err = {0};
        ds_err_field(&err, DS_ENOTFOUND, "model", "no such model; '%.128s' is served here", d->model);
        ds_answer_error(d, c, PATH, &err);
        return;
    }
    ds_code code = *id ? DS_OK : ds_buf_puts(out, "{\"object\":\"list\",\"data\":[");
    if (code == DS_OK)
        code = put_model(d, out);
    if (code == DS_OK && !*id)
        code = ds_buf_puts(out, "]}");
    if (code)
        ds_answer_status(d, c, PATH, 500, "internal", "", "the models could not be written");
    else
        reply(d, c, PATH, 200, "application/json", out->data, out->len);
}

static const struct {
    const char *method, *path;
    int prefix; /* also path/... */
    void (*handle)(ds_daemon *, ds_hconn *, ds_http_reader *);
} ROUTES[] = {
    {"POST", "/v1/chat/completions", 0, ds_api_chat},
    {"POST", "/v1/completions", 0, ds_api_completions},
    {"GET", "/v1/models", 1, models},
    {"GET", "/health", 0, health},
    {"GET", "/ready", 0, ready},
    {"GET", "/metrics", 0, metrics},
    {"POST", "/tokenize", 0, ds_api_tokenize},
    {"POST", "/detokenize", 0, ds_api_detokenize},
};

void ds_api_request(void *ctx, ds_hconn *c, ds_http_reader *msg)
{
    ds_daemon *d = ctx;
    for (size_t i = 0; i < sizeof ROUTES / sizeof *ROUTES; i++) {
        size_t n = strlen(ROUTES[i].path);
        int same = !strcmp(msg->path, ROUTES[i].path);
        if (!same && !(ROUTES[i].prefix && !strncmp(msg->path, ROUTES[i].path, n) && msg->path[n] == '/'))
            continue;
        int is_get = !strcmp(ROUTES[i].method, "GET");
        if (!strcmp(msg->method, ROUTES[i].method) || (is_get && !strcmp(msg->method, "HEAD"))) {
            ROUTES[i].handle(d, c, msg);
            return;
        }
        char allow[32];
        snprintf(allow, sizeof allow, "Allow: %s\r\n", is_get ? "GET, HEAD" : ROUTES[i].method);
        ds_answer_status(d, c, ROUTES[i].path, 405, "method_not_allowed", allow,
                         "this path takes another method");
        return;
    }
    ds_answer_status(d, c, "other", 404, "not_found", "", "no such path");
}
