/* door_http.c - libcurl's multi interface driven by epoll: the cost of an event does not grow with the number
 * of streams. Each slot has one easy handle for its life; connections are kept and reused. */
#include "cli/door_http.h"

#include "base/clock.h"
#include "cli/http.h"
#include "cli/sse.h"

#include <curl/curl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <unistd.h>

enum { MAX_READY = 256, MAX_ERROR_BODY = 64 << 10 };

typedef struct stream { /* of one slot */
    struct http_door *door;
    int slot, is_chat;
    CURL *easy;
    char *body; /* sent; owned until the request ends */
    ds_sse sse;
    ds_buf error_body;
    long status;
    ds_load_end end;
    char error_text[DS_ERR_MSG_MAX];
    int saw_finish;
} stream;

typedef struct http_door {
    ds_door_http_conf conf;
    char *url[2]; /* completions, chat */
    char *model;
    ds_load *load;
    CURLM *multi;
    struct curl_slist *headers;
    int epoll;
    uint64_t timer_ns; /* when curl wants to be called; 0: never */
    stream *streams;   /* [conf.slots] */
} http_door;

static int fail(stream *s, ds_code code, const char *text)
{
    s->end.code = code;
    snprintf(s->error_text, sizeof s->error_text, "%s", text);
    return 1;
}

static int on_event(void *ctx, char *data, size_t n)
{
    stream *s = ctx;
    if (strcmp(data, "[DONE]") == 0)
        return 0;
    json_t *root = json_loadb(data, n, 0, NULL);
    if (!root)
        return fail(s, DS_EPROTO, "the stream holds an event that is not JSON");
    json_t *error = json_object_get(root, "error"), *usage = json_object_get(root, "usage");
    if (error) {
        const char *message = json_string_value(json_object_get(error, "message"));
        fail(s, DS_EIO, message ? message : "the stream ended with an error");
        json_decref(root);
        return 1;
    }
    json_t *choice = json_array_get(json_object_get(root, "choices"), 0);
    json_t *text = s->is_chat ? json_object_get(json_object_get(choice, "delta"), "content")
                              : json_object_get(choice, "text");
    if (json_string_length(text) > 0)
        ds_load_on_text(s->door->load, s->slot, json_string_value(text), json_string_length(text));
    if (json_is_string(json_object_get(choice, "finish_reason")))
        s->saw_finish = 1;
    if (json_is_object(usage)) {
        json_t *details = json_object_get(usage, "prompt_tokens_details");
        s->end.prompt_tokens = json_integer_value(json_object_get(usage, "prompt_tokens"));
        s->end.output_tokens = json_integer_value(json_object_get(usage, "completion_tokens"));
        s->end.cached_tokens = json_integer_value(json_object_get(details, "cached_tokens"));
    }
    json_decref(root);
    return 0;
}

static size_t on_bytes(char *p, size_t size, size_t n, void *ctx)
{
    stream *s = ctx;
    if (s->status == 0)
        curl_easy_getinfo(s->easy, CURLINFO_RESPONSE_CODE, &s->status);
    ds_code code =
        s->status == 200 ? ds_sse_feed(&s->sse, p, size * n) : ds_buf_append(&s->error_body, p, size * n);
    if (code && !s->end.code)
        fail(s, code, "the answer is too large");
    return code ? CURL_WRITEFUNC_ERROR : size * n;
}

static int on_socket(CURL *easy, curl_socket_t fd, int what, void *ctx, void *known)
{
    (void)easy;
    http_door *d = ctx;
    if (what == CURL_POLL_REMOVE) {
        epoll_ctl(d->epoll, EPOLL_CTL_DEL, fd, NULL);
        return 0;
    }
    struct epoll_event ev = {.data.fd = fd};
    ev.events = (what & CURL_POLL_IN ? EPOLLIN : 0u) | (what & CURL_POLL_OUT ? EPOLLOUT : 0u);
    if (epoll_ctl(d->epoll, known ? EPOLL_CTL_MOD : EPOLL_CTL_ADD, fd, &ev))
        return -1;
    curl_multi_assign(d->multi, fd, d); /* any non-NULL mark: epoll knows this descriptor */
    return 0;
}

static int on_timer(CURLM *multi, long timeout_ms, void *ctx)
{
    (void)multi;
    http_door *d = ctx;
    d->timer_ns = timeout_ms < 0 ? 0 : ds_now_ns() + (uint64_t)timeout_ms * 1000000 + 1;
    return 0;
}

static json_t *said(const char *role, const char *text)
{
    return json_pack("{s:s, s:s}", "role", role, "content", text);
}

static void put_prompt(json_t *body, const ds_load_req *req, int is_chat)
{
    const ds_prompt *p = req->prompt;
    json_t *list = json_array();
    if (is_chat) {
        for (int t = 0; t <= req->turn; t++) {
            json_array_append_new(list, said("user", p->turn[t]));
            if (t < req->turn)
                json_array_append_new(list,
                                      said("assistant", req->answers[t].data ? req->answers[t].data : ""));
        }
        json_object_set_new(body, "messages", list);
    } else if (p->ids) {
        for (int i = 0; i < p->n_ids; i++)
            json_array_append_new(list, json_integer(p->ids[i]));
        json_object_set_new(body, "prompt", list);
    } else {
        json_decref(list);
        json_object_set_new(body, "prompt", json_string(p->turn[req->turn]));
    }
}

static char *make_body(const http_door *d, const ds_load_req *req, int is_chat)
{
    json_t *o = json_pack("{s:s, s:b, s:{s:b}, s:I, s:f, s:I}", "model", d->model, "stream", 1,
                          "stream_options", "include_usage", 1, "max_tokens", (json_int_t)d->conf.max_tokens,
                          "temperature", d->conf.temperature, "seed", (json_int_t)(req->seed & INT64_MAX));
    if (!o)
        return NULL;
    if (d->conf.ignore_eos)
        json_object_set_new(o, "ignore_eos", json_true());
    put_prompt(o, req, is_chat);
    char *text = json_dumps(o, JSON_COMPACT);
    json_decref(o);
    return text;
}

static ds_code start(void *self, int slot, const ds_load_req *req, ds_err *err)
{
    http_door *d = self;
    stream *s = &d->streams[slot];
    s->is_chat = d->conf.api == DS_DOOR_CHAT || (d->conf.api == DS_DOOR_AUTO && req->prompt->is_chat);
    if (s->is_chat && req->prompt->ids)
        return ds_err_field(err, DS_EINVAL, "api", "prompts of token ids need --api completions");
    free(s->body);
    s->body = make_body(d, req, s->is_chat);
    if (!s->body)
        return ds_err_set(err, DS_EINVAL, "the prompt is not valid UTF-8 (or memory ran out)");
    s->end = (ds_load_end){0};
    s->status = s->saw_finish = 0;
    s->error_text[0] = 0;
    ds_sse_reset(&s->sse);
    ds_buf_clear(&s->error_body);
    curl_easy_setopt(s->easy, CURLOPT_URL, d->url[s->is_chat]);
    curl_easy_setopt(s->easy, CURLOPT_POSTFIELDSIZE_LARGE, (curl_off_t)strlen(s->body));
    curl_easy_setopt(s->easy, CURLOPT_POSTFIELDS, s->body);
    if (curl_multi_add_handle(d->multi, s->easy) != CURLM_OK)
        return ds_err_set(err, DS_ENOMEM, "libcurl took no further request");
    return DS_OK;
}

static void finish(http_door *d, CURL *easy, CURLcode rc)
{
    stream *s = NULL;
    curl_easy_getinfo(easy, CURLINFO_PRIVATE, &s);
    curl_multi_remove_handle(d->multi, easy);
    curl_easy_getinfo(easy, CURLINFO_RESPONSE_CODE, &s->status);
    ds_err err = {0};
    if (!s->end.code && rc != CURLE_OK)
        fail(s, rc == CURLE_OPERATION_TIMEDOUT ? DS_ETIMEOUT : DS_EIO, curl_easy_strerror(rc));
    else if (!s->end.code && s->status != 200)
        fail(s, ds_http_error(s->status, s->error_body.data, s->error_body.len, &err), err.msg);
    else if (!s->end.code && !s->saw_finish)
        fail(s, DS_EPROTO, "the stream ended without a finish_reason");
    s->end.msg = s->error_text;
    ds_load_on_end(d->load, s->slot, &s->end);
}

static ds_code wait_for(void *self, int timeout_ms, ds_err *err)
{
    http_door *d = self;
    struct epoll_event ready[MAX_READY];
    int running;
    uint64_t now = ds_now_ns();
    if (d->timer_ns) {
        int timer_ms = d->timer_ns <= now ? 0 : (int)((d->timer_ns - now + 999999) / 1000000);
        timeout_ms = timer_ms < timeout_ms ? timer_ms : timeout_ms;
    }
    int n = epoll_wait(d->epoll, ready, MAX_READY, timeout_ms);
    for (int i = 0; i < n; i++) {
        int what = (ready[i].events & EPOLLIN ? CURL_CSELECT_IN : 0) |
                   (ready[i].events & EPOLLOUT ? CURL_CSELECT_OUT : 0) |
                   (ready[i].events & (EPOLLERR | EPOLLHUP) ? CURL_CSELECT_ERR : 0);
        if (curl_multi_socket_action(d->multi, ready[i].data.fd, what, &running) != CURLM_OK)
            return ds_err_set(err, DS_EIO, "libcurl failed on a socket");
    }
    if (d->timer_ns && d->timer_ns <= ds_now_ns()) {
        d->timer_ns = 0;
        curl_multi_socket_action(d->multi, CURL_SOCKET_TIMEOUT, 0, &running);
    }
    int left;
    for (CURLMsg *m; (m = curl_multi_info_read(d->multi, &left));)
        if (m->msg == CURLMSG_DONE)
            finish(d, m->easy_handle, m->data.result);
    return DS_OK;
}

static void close_door(void *self)
{
    http_door *d = self;
    for (int i = 0; d->streams && i < d->conf.slots; i++) {
        stream *s = &d->streams[i];
        if (s->easy && d->multi)
            curl_multi_remove_handle(d->multi, s->easy);
        curl_easy_cleanup(s->easy);
        free(s->body);
        ds_sse_fini(&s->sse);
        ds_buf_free(&s->error_body);
    }
    curl_multi_cleanup(d->multi);
    curl_slist_free_all(d->headers);
    if (d->epoll >= 0)
        close(d->epoll);
    free(d->streams);
    free(d->url[0]);
    free(d->url[1]);
    free(d->model);
    free(d);
}

static int init_stream(http_door *d, int slot)
{
    stream *s = &d->streams[slot];
    s->door = d;
    s->slot = slot;
    s->error_body.max = MAX_ERROR_BODY;
    ds_sse_init(&s->sse, on_event, s);
    s->easy = curl_easy_init();
    if (!s->easy)
        return 0;
    curl_easy_setopt(s->easy, CURLOPT_PROTOCOLS_STR, "http,https");
    curl_easy_setopt(s->easy, CURLOPT_NOSIGNAL, 1L);
    curl_easy_setopt(s->easy, CURLOPT_TIMEOUT_MS, (long)d->conf.timeout_ms);
    curl_easy_setopt(s->easy, CURLOPT_HTTPHEADER, d->headers);
    curl_easy_setopt(s->easy, CURLOPT_POST, 1L);
    curl_easy_setopt(s->easy, CURLOPT_WRITEFUNCTION, on_bytes);
    curl_easy_setopt(s->easy, CURLOPT_WRITEDATA, s);
    curl_easy_setopt(s->easy, CURLOPT_PRIVATE, s);
    return 1;
}

static int init_urls(http_door *d)
{
    static const char *const paths[2] = {"/v1/completions", "/v1/chat/completions"};
    int n = (int)strlen(d->conf.url);
    while (n && d->conf.url[n - 1] == '/')
        n--;
    for (int i = 0; i < 2; i++)
        if (asprintf(&d->url[i], "%.*s%s", n, d->conf.url, paths[i]) < 0) {
            d->url[i] = NULL;
            return 0;
        }
    d->model = strdup(d->conf.model);
    return d->model != NULL;
}

ds_code ds_door_http_open(const ds_door_http_conf *conf, ds_load *load, ds_door *ret, ds_err *err)
{
    http_door *d = calloc(1, sizeof *d);
    if (!d)
        return ds_err_set(err, DS_ENOMEM, "no memory for the HTTP door");
    curl_global_init(CURL_GLOBAL_DEFAULT);
    d->conf = *conf;
    d->load = load;
    d->epoll = epoll_create1(EPOLL_CLOEXEC);
    d->multi = curl_multi_init();
    d->headers = curl_slist_append(NULL, "Content-Type: application/json");
    d->streams = calloc((size_t)conf->slots, sizeof *d->streams);
    int good = d->epoll >= 0 && d->multi && d->headers && d->streams && init_urls(d);
    for (int i = 0; good && i < conf->slots; i++)
        good = init_stream(d, i);
    if (!good) {
        close_door(d);
        return ds_err_set(err, DS_ENOMEM, "no memory or descriptors for %d streams", conf->slots);
    }
    curl_multi_setopt(d->multi, CURLMOPT_SOCKETFUNCTION, on_socket);
    curl_multi_setopt(d->multi, CURLMOPT_SOCKETDATA, d);
    curl_multi_setopt(d->multi, CURLMOPT_TIMERFUNCTION, on_timer);
    curl_multi_setopt(d->multi, CURLMOPT_TIMERDATA, d);
    curl_multi_setopt(d->multi, CURLMOPT_MAXCONNECTS, (long)conf->slots + 8);
    *ret = (ds_door){d, start, wait_for, close_door};
    return DS_OK;
}
