/* http.c - one easy handle, reused so that calls share a connection. Redirects are not followed, only http
 * and https are spoken, bodies are bounded: a daemon's address may be mistyped and answer anything. */
#include "cli/http.h"

#include <curl/curl.h>
#include <jansson.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

struct ds_http {
    CURL *easy;
    struct curl_slist *headers;
    char *url;
    const volatile int *stop;
    ds_buf *body;
    ds_sse sse;
    int streaming;
    ds_code sink_code;
};

static size_t on_bytes(char *p, size_t size, size_t n, void *ctx)
{
    ds_http *h = ctx;
    long status = 0;
    curl_easy_getinfo(h->easy, CURLINFO_RESPONSE_CODE, &status);
    h->sink_code = h->streaming && status == 200 ? ds_sse_feed(&h->sse, p, size * n)
                                                 : ds_buf_append(h->body, p, size * n);
    return h->sink_code ? CURL_WRITEFUNC_ERROR : size * n;
}

static int on_progress(void *ctx, curl_off_t a, curl_off_t b, curl_off_t c, curl_off_t d)
{
    (void)a, (void)b, (void)c, (void)d;
    ds_http *h = ctx;
    return h->stop && *h->stop;
}

ds_code ds_http_open(const char *url, int timeout_ms, const volatile int *stop, ds_http **ret, ds_err *err)
{
    ds_http *h = calloc(1, sizeof *h);
    if (!h)
        return ds_err_set(err, DS_ENOMEM, "no memory for an HTTP client");
    curl_global_init(CURL_GLOBAL_DEFAULT);
    h->easy = curl_easy_init();
    h->url = strdup(url);
    h->headers = curl_slist_append(NULL, "Content-Type: application/json");
    h->stop = stop;
    if (!h->easy || !h->url || !h->headers) {
        ds_http_close(h);
        return ds_err_set(err, DS_ENOMEM, "no memory for an HTTP client");
    }
    size_t n = strlen(h->url);
    while (n && h->url[n - 1] == '/')
        h->url[--n] = 0;
    curl_easy_setopt(h->easy, CURLOPT_PROTOCOLS_STR, "http,https");
    curl_easy_setopt(h->easy, CURLOPT_NOSIGNAL, 1L);
    curl_easy_setopt(h->easy, CURLOPT_CONNECTTIMEOUT_MS, 5000L);
    curl_easy_setopt(h->easy, CURLOPT_TIMEOUT_MS, (long)timeout_ms);
    curl_easy_setopt(h->easy, CURLOPT_WRITEFUNCTION, on_bytes);
    curl_easy_setopt(h->easy, CURLOPT_WRITEDATA, h);
    curl_easy_setopt(h->easy, CURLOPT_NOPROGRESS, 0L);
    curl_easy_setopt(h->easy, CURLOPT_XFERINFOFUNCTION, on_progress);
    curl_easy_setopt(h->easy, CURLOPT_XFERINFODATA, h);
    *ret = h;
    return DS_OK;
}

void ds_http_close(ds_http *h)
{
    if (!h)
        return;
    curl_easy_cleanup(h->easy);
    curl_slist_free_all(h->headers);
    ds_sse_fini(&h->sse);
    free(h->url);
    free(h);
}

ds_code ds_http_error(long status, const char *body, size_t n, ds_err *err)
{
    ds_code code = status == 404                   ? DS_ENOTFOUND
                   : status == 429                 ? DS_ELIMIT
                   : status == 503                 ? DS_EDRAINING
                   : status >= 400 && status < 500 ? DS_EINVAL
                                                   : DS_EIO;
    json_t *root = json_loadb(body ? body : "", n, 0, NULL), *e = json_object_get(root, "error");
    const char *message = json_string_value(json_object_get(e, "message"));
    const char *param = json_string_value(json_object_get(e, "param"));
    if (message)
        ds_err_field(err, code, param ? param : "", "%s (HTTP %ld)", message, status);
    else
        ds_err_set(err, code, "the daemon answered with HTTP status %ld", status);
    json_decref(root);
    return code;
}

/* One request with the body sink already set. json NULL: GET. */
static ds_code perform(ds_http *h, const char *path, const char *json, long *ret_status, ds_err *err)
{
    char url[1024];
    if ((size_t)snprintf(url, sizeof url, "%s%s", h->url, path) >= sizeof url)
        return ds_err_field(err, DS_EINVAL, "url", "the address is longer than %zu bytes", sizeof url);
    curl_easy_setopt(h->easy, CURLOPT_URL, url);
    if (json) {
        curl_easy_setopt(h->easy, CURLOPT_HTTPHEADER, h->headers);
        curl_easy_setopt(h->easy, CURLOPT_POSTFIELDSIZE_LARGE, (curl_off_t)strlen(json));
        curl_easy_setopt(h->easy, CURLOPT_POSTFIELDS, json);
        curl_easy_setopt(h->easy, CURLOPT_POST, 1L);
    } else {
        curl_easy_setopt(h->easy, CURLOPT_HTTPHEADER, NULL);
        curl_easy_setopt(h->easy, CURLOPT_HTTPGET, 1L);
    }
    h->sink_code = DS_OK;
    CURLcode rc = curl_easy_perform(h->easy);
    curl_easy_getinfo(h->easy, CURLINFO_RESPONSE_CODE, ret_status);
    if (rc == CURLE_OK)
        return DS_OK;
    if (rc == CURLE_ABORTED_BY_CALLBACK || h->sink_code == DS_ECANCELLED)
        return ds_err_set(err, DS_ECANCELLED, "stopped");
    if (h->sink_code)
        return ds_err_set(err, h->sink_code, "%s: the answer is larger than %d bytes", url, DS_HTTP_MAX_BODY);
    return ds_err_field(err, rc == CURLE_OPERATION_TIMEDOUT ? DS_ETIMEOUT : DS_EIO, "url", "%s: %s", url,
                        curl_easy_strerror(rc));
}

static ds_code exchange(ds_http *h, const char *path, const char *json, ds_buf *body, long *ret_status,
                        ds_err *err)
{
    long status = 0;
    ds_buf_clear(body);
    body->max = DS_HTTP_MAX_BODY;
    h->body = body;
    h->streaming = 0;
    DS_TRY(perform(h, path, json, &status, err));
    if (ret_status)
        *ret_status = status;
    else if (status < 200 || status > 299)
        return ds_http_error(status, body->data, body->len, err);
    return DS_OK;
}

ds_code ds_http_get(ds_http *h, const char *path, ds_buf *body, long *ret_status, ds_err *err)
{
    return exchange(h, path, NULL, body, ret_status, err);
}

ds_code ds_http_post(ds_http *h, const char *path, const char *json, ds_buf *body, ds_err *err)
{
    return exchange(h, path, json, body, NULL, err);
}

ds_code ds_http_stream(ds_http *h, const char *path, const char *json, ds_sse_fn fn, void *ctx, ds_err *err)
{
    ds_buf body = {.max = DS_HTTP_MAX_BODY};
    long status = 0;
    ds_sse_fini(&h->sse);
    ds_sse_init(&h->sse, fn, ctx);
    h->body = &body;
    h->streaming = 1;
    ds_code code = perform(h, path, json, &status, err);
    if (!code && status != 200)
        code = ds_http_error(status, body.data, body.len, err);
    ds_buf_free(&body);
    return code;
}
