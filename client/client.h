/* client.h - libdspark-client: internal RPC to a router (dsparkd) over ZeroMQ.
 *
 *   ds_client *c;
 *   ds_client_open("ipc:///run/dspark/rpc", NULL, &c, &err);
 *   ds_client_req req = ds_client_req_default(c);
 *   req.text = "Once upon a time";  req.max_tokens = 64;
 *   ds_client_submit(c, &req, &id, &err);
 *   while (ds_client_next(c, -1, &ev, &err) == DS_OK && ev.kind == DS_CLIENT_TOKENS)
 *       fputs(ev.tokens->text, stdout);
 *   ds_client_close(c);
 *
 * A client belongs to one thread. Nothing happens outside its calls: with live requests, call ds_client_next
 * at least every 4 seconds, or the router takes the client for dead and cancels them. Each accepted request
 * ends with exactly one DONE or ERROR event; when the router is lost, every live request gets an ERROR
 * (DS_EIO) and the client connects again by itself. Rules: proto/PROTOCOL.md. */
#ifndef DS_CLIENT_CLIENT_H
#define DS_CLIENT_CLIENT_H

#include "base/err.h"
#include "base/limits.h"
#include "proto/frame.h"

typedef struct ds_client ds_client;

enum {
    DS_CLIENT_MAX_LIVE = 65536,      /* requests of one client at once */
    DS_CLIENT_MAX_BACKLOG = 1 << 20, /* events that wait while a call below waits for its answer */
};

typedef struct ds_client_opts {
    const char *name; /* at most DS_MAX_NAME_BYTES; NULL: "client-PID" */
    int timeout_ms;   /* to connect and greet, and for stats and tokenize; 0: 5000 */
} ds_client_opts;

/* One request. Start from ds_client_req_default. Ranges: proto/dspark.proto. Pointers are borrowed by the
 * call. */
typedef struct ds_client_req {
    const char *text;          /* prompt as UTF-8, or NULL when prompt_ids are given */
    const int32_t *prompt_ids; /* [n_prompt_ids] */
    size_t n_prompt_ids;
    int want_text;  /* 1: Tokens carry text beside ids (default) */
    int max_tokens; /* default 16 */
    int min_tokens;
    float temperature, top_p, min_p, presence, frequency, repetition;
    int top_k;
    uint64_t seed;
    const int32_t *bias_id; /* [n_bias] */
    const float *bias;
    size_t n_bias;
    const char *const *stop; /* [n_stop] strings */
    size_t n_stop;
    const int32_t *stop_id; /* [n_stop_id] */
    size_t n_stop_id;
    int ignore_eos;
    int logprobs, prompt_logprobs; /* -1: none (default), 0..DS_MAX_TOP_LOGPROBS */
    int priority;
    int speculation;  /* Speculation.Mode: 0 auto, 1 off, 2 max */
    int max_draft;    /* 0: the worker's */
    const char *user; /* NULL: none */
} ds_client_req;

typedef enum { DS_CLIENT_TOKENS, DS_CLIENT_DONE, DS_CLIENT_ERROR } ds_client_kind;

/* Everything it points at is valid until the next call on the client. */
typedef struct ds_client_event {
    ds_client_kind kind;
    uint64_t id;
    const ds_pb_tokens *tokens; /* TOKENS */
    const ds_pb_done *done;     /* DONE */
    ds_code code;               /* ERROR */
    const char *field, *msg;    /* ERROR: field may be "" */
    int retry_after_ms;         /* ERROR: 0 = repeating it will not help */
} ds_client_event;

/* ds_client_open: connects, greets, learns the router's capabilities. opts may be NULL. Errors: DS_ETIMEOUT
 * nobody answers at endpoint; DS_EINVAL endpoint; DS_EPROTO the peer is no router of this version. */
ds_code ds_client_open(const char *endpoint, const ds_client_opts *opts, ds_client **ret, ds_err *err);
void ds_client_close(ds_client *c); /* the router cancels what is live; NULL is fine */
/* ds_client_caps: model, vocabulary, limits of the router. Valid while the client is open (a reconnect renews
 * it). */
const ds_pb_caps *ds_client_caps(const ds_client *c);
/* ds_client_req_default: the model's default sampling; c may be NULL (temperature 1, top_p 1). */
ds_client_req ds_client_req_default(const ds_client *c);

/* ds_client_submit: validates locally, sends. Errors: DS_EINVAL (err->field), DS_ELIMIT no
 * credit or too many live requests (take events, then try again), DS_EIO not connected just now (call
 * ds_client_next to let it reconnect, then try again). */
ds_code ds_client_submit(ds_client *c, const ds_client_req *req, uint64_t *ret_id, ds_err *err);
/* ds_client_cancel: asks; the request still ends with one event. DS_ENOTFOUND when id is not live. */
ds_code ds_client_cancel(ds_client *c, uint64_t id, ds_err *err);
/* ds_client_next: the next event of any request. timeout_ms < 0: wait for ever, 0: only look. DS_ETIMEOUT:
 * none came. With no live request it still waits (and reconnects) until the timeout, so do not wait for ever
 * then. */
ds_code ds_client_next(ds_client *c, int timeout_ms, ds_client_event *ret, ds_err *err);
int ds_client_live(const ds_client *c); /* requests without an outcome yet */

/* The calls below wait for their answer, at most opts.timeout_ms; events of live requests are kept for _next.
 */
/* ds_client_stats: of the router, with one entry in `workers` per worker. Valid until the next call. */
ds_code ds_client_stats(ds_client *c, const ds_pb_stats **ret, ds_err *err);
/* ds_client_tokenize: *ret [*ret_n] is valid until the next call. */
ds_code ds_client_tokenize(ds_client *c, const char *text, const int32_t **ret, size_t *ret_n, ds_err *err);
ds_code ds_client_detokenize(ds_client *c, const int32_t *ids, size_t n, const char **ret, ds_err *err);

#endif
