/* client.c - see client.h. One DEALER, no thread of its own: everything happens inside the caller's calls.
 *
 * A request id is generation * 65536 + slot, so that slots are found without a search and an id is not
 * reused. A frame for an id that is not live is dropped (its outcome was delivered). */
#include "client/client.h"

#include "base/clock.h"
#include "proto/conn.h"
#include "proto/socket.h"
#include "proto/status.h"
#include "proto/validate.h"

#include <errno.h>
#include <math.h>
#include <poll.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>
#include <zmq.h>

enum {
    BEAT_MS = 1000,
    STALE_MS = 4000, /* after so long without a word the router may have let us go (it does after 5 s) */
};

typedef enum {
    CONN_WAITING,  /* no connection; ZeroMQ tries */
    CONN_GREETING, /* our Hello is sent */
    CONN_GREETED,  /* the router's Hello came */
    CONN_UP,       /* and its credits */
} conn_state;

typedef struct backlog {
    struct backlog *next;
    ds_frame frame;
} backlog;

struct ds_client {
    void *zctx;
    ds_conn conn;
    conn_state state;
    char endpoint[512], name[DS_MAX_NAME_BYTES + 1];
    int timeout_ms;
    ds_frame hello; /* owns caps */
    ds_frame in;    /* the frame just received */
    ds_frame shown; /* what the caller's last event or answer points into */
    backlog *first, **last;
    int n_backlog;
    uint64_t *id; /* [cap] id of the live request in a slot, 0 free */
    int *unused;  /* [cap] stack of free slots */
    int cap, n_unused, n_live;
    uint64_t generation;
    uint32_t credits; /* requests the router will still take */
    uint64_t sent_ns; /* when the router last heard of us */
    uint64_t beats;
    int lost; /* slots below it have been told about the last lost connection; -1: nothing to tell */
};

/* ---- requests ---- */

static ds_code slot_take(ds_client *c, uint64_t *ret, ds_err *err)
{
    if (c->n_unused == 0) {
        int cap = c->cap ? c->cap * 2 : 64;
        if (cap > DS_CLIENT_MAX_LIVE)
            return ds_err_set(err, DS_ELIMIT, "%d requests are live, no more are allowed", c->n_live);
        uint64_t *id = realloc(c->id, (size_t)cap * sizeof *id);
        if (id)
            c->id = id;
        int *unused = realloc(c->unused, (size_t)cap * sizeof *unused);
        if (unused)
            c->unused = unused;
        if (!id || !unused)
            return ds_err_set(err, DS_ENOMEM, "no memory for %d requests", cap);
        for (int s = cap - 1; s >= c->cap; s--) {
            c->id[s] = 0;
            c->unused[c->n_unused++] = s;
        }
        c->cap = cap;
    }
    int s = c->unused[--c->n_unused];
    c->id[s] = *ret = ++c->generation * DS_CLIENT_MAX_LIVE + (uint64_t)s;
    c->n_live++;
    return DS_OK;
}

static int slot_of(const ds_client *c, uint64_t id)
{
    int s = (int)(id % DS_CLIENT_MAX_LIVE);
    return id && s < c->cap && c->id[s] == id ? s : -1;
}

static void slot_release(ds_client *c, int s)
{
    c->id[s] = 0;
    c->unused[c->n_unused++] = s;
    c->n_live--;
}

/* ---- connection ---- */

static ds_code say_hello(ds_client *c, ds_err *err)
{
    ds_pb_hello h = DSPARK__V1__HELLO__INIT;
    h.role = (char *)"client";
    h.name = c->name;
    h.software = (char *)"dspark-client " DS_VERSION;
    h.incarnation = ds_now_ns();
    h.heartbeat_ms = DS_HEARTBEAT_MS;
    ds_pb_envelope env = ds_frame_wrap(DSPARK__V1__ENVELOPE__BODY_HELLO, &h);
    return ds_frame_send(c->conn.sock, NULL, &env, err);
}

static ds_code reconnect(ds_client *c, ds_err *err)
{
    ds_conn_close(&c->conn, 0);
    if (c->state == CONN_UP && c->n_live)
        c->lost = 0;
    c->state = CONN_WAITING;
    while (c->first) {
        backlog *b = c->first;
        c->first = b->next;
        ds_frame_clear(&b->frame);
        free(b);
    }
    c->last = &c->first;
    c->n_backlog = 0;
    return ds_conn_open(c->zctx, c->endpoint, &c->conn, err);
}

static ds_code on_monitor(ds_client *c, ds_err *err)
{
    for (ds_conn_event ev; (ev = ds_conn_next(&c->conn)) != DS_CONN_NONE;) {
        if (ev == DS_CONN_DOWN)
            return reconnect(c, err);
        DS_TRY(say_hello(c, err));
        c->state = CONN_GREETING;
    }
    return DS_OK;
}

static ds_code on_hello(ds_client *c, ds_err *err)
{
    const ds_pb_hello *h = c->in.env->hello;
    DS_TRY(ds_proto_validate_hello(h, "router", err));
    if (!h->capabilities)
        return ds_err_field(err, DS_EPROTO, "capabilities", "the router sent no capabilities");
    ds_frame keep = c->hello;
    c->hello = c->in;
    c->in = keep;
    c->state = CONN_GREETED;
    c->credits = 0;
    c->sent_ns = ds_now_ns();
    return DS_OK;
}

/* Receives one frame into c->in. A Hello and link errors are dealt with here: *ret_got says whether a frame
 * for the caller is there. */
static ds_code receive(ds_client *c, int *ret_got, ds_err *err)
{
    *ret_got = 0;
    ds_code code = ds_frame_recv(c->conn.sock, NULL, &c->in, err);
    if (code == DS_ETIMEOUT)
        return DS_OK;
    if (code != DS_OK) {
        if (c->state != CONN_UP)
            return code;
        return reconnect(c, err); /* a router that sends garbage is lost */
    }
    const ds_pb_envelope *env = c->in.env;
    if (env->body_case == DSPARK__V1__ENVELOPE__BODY_HELLO)
        return on_hello(c, err);
    if (env->body_case == DSPARK__V1__ENVELOPE__BODY_CREDITS) {
        c->credits += env->credits->add;
        c->state = c->state == CONN_GREETED ? CONN_UP : c->state;
        return DS_OK;
    }
    if (env->body_case == DSPARK__V1__ENVELOPE__BODY_ERROR && env->error->id == 0) {
        int was_up = c->state == CONN_UP; /* then it has let us go: what was live ends, and we greet again */
        code = ds_err_field(err, ds_status_from_wire(env->error->code), env->error->field, "%s",
                            env->error->message);
        DS_TRY(reconnect(c, err));
        return was_up ? DS_OK : code;
    }
    *ret_got = c->state == CONN_UP;
    return DS_OK;
}

/* The router lets a silent client go, so each call that waits says now and then that we are here. */
static ds_code beat(ds_client *c, ds_err *err)
{
    uint64_t now = ds_now_ns();
    if (c->state != CONN_UP || now < c->sent_ns + (uint64_t)BEAT_MS * 1000000)
        return DS_OK;
    c->sent_ns = now;
    ds_pb_heartbeat hb = DSPARK__V1__HEARTBEAT__INIT;
    hb.seq = ++c->beats;
    ds_pb_envelope env = ds_frame_wrap(DSPARK__V1__ENVELOPE__BODY_HEARTBEAT, &hb);
    ds_code code = ds_frame_send(c->conn.sock, NULL, &env, err);
    return code == DS_ELIMIT ? DS_OK : code; /* full or just cut: the monitor will say which */
}

/* Waits until something happened, a heartbeat is due, or the deadline passed (DS_ETIMEOUT). */
static ds_code wait_some(ds_client *c, uint64_t deadline_ns, ds_err *err)
{
    DS_TRY(beat(c, err));
    uint64_t now = ds_now_ns(), until = now + (uint64_t)BEAT_MS * 1000000;
    if (deadline_ns < until)
        until = deadline_ns;
    zmq_pollitem_t items[] = {{c->conn.sock, 0, ZMQ_POLLIN, 0}, {c->conn.mon, 0, ZMQ_POLLIN, 0}};
    int n = zmq_poll(items, 2, until <= now ? 0 : (long)((until - now) / 1000000 + 1));
    if (n < 0 && errno != EINTR)
        return ds_err_set(err, DS_EIO, "waiting for the router: %s", zmq_strerror(errno));
    if (n <= 0 && ds_now_ns() >= deadline_ns)
        return c->state == CONN_UP ? ds_err_set(err, DS_ETIMEOUT, "no event in time")
                                   : ds_err_set(err, DS_ETIMEOUT, "nobody answers at %s", c->endpoint);
    return DS_OK;
}

static uint64_t deadline_after(int timeout_ms)
{
    return timeout_ms < 0 ? UINT64_MAX : ds_now_ns() + (uint64_t)timeout_ms * 1000000;
}

static ds_code wait_up(ds_client *c, uint64_t deadline_ns, ds_err *err)
{
    DS_TRY(on_monitor(c, err));
    while (c->state != CONN_UP) {
        int got;
        DS_TRY(wait_some(c, deadline_ns, err));
        DS_TRY(on_monitor(c, err));
        DS_TRY(receive(c, &got, err));
    }
    return DS_OK;
}

/* Before a frame that wants an answer: a client that was idle for long greets again. */
static ds_code refresh(ds_client *c, ds_err *err)
{
    DS_TRY(on_monitor(c, err));
    if (c->state == CONN_UP && c->n_live == 0 && ds_now_ns() > c->sent_ns + (uint64_t)STALE_MS * 1000000) {
        DS_TRY(reconnect(c, err));
        return wait_up(c, deadline_after(c->timeout_ms), err);
    }
    return DS_OK;
}

ds_code ds_client_open(const char *endpoint, const ds_client_opts *opts, ds_client **ret, ds_err *err)
{
    ds_client *c = calloc(1, sizeof *c);
    if (!c)
        return ds_err_set(err, DS_ENOMEM, "no memory for a client");
    c->last = &c->first;
    c->lost = -1;
    c->timeout_ms = opts && opts->timeout_ms > 0 ? opts->timeout_ms : 5000;
    int n = opts && opts->name ? snprintf(c->name, sizeof c->name, "%s", opts->name)
                               : snprintf(c->name, sizeof c->name, "client-%d", (int)getpid());
    ds_code code = DS_OK;
    if (n < 1 || n >= (int)sizeof c->name)
        code = ds_err_field(err, DS_EINVAL, "name", "name must have 1 to %d bytes", DS_MAX_NAME_BYTES);
    else if (snprintf(c->endpoint, sizeof c->endpoint, "%s", endpoint) >= (int)sizeof c->endpoint)
        code = ds_err_field(err, DS_EINVAL, "endpoint", "endpoint is longer than %zu bytes",
                            sizeof c->endpoint - 1);
    else if (!(c->zctx = zmq_ctx_new()))
        code = ds_err_set(err, DS_EIO, "opening ZeroMQ: %s", zmq_strerror(errno));
    if (code == DS_OK)
        code = ds_conn_open(c->zctx, c->endpoint, &c->conn, err);
    if (code == DS_OK)
        code = wait_up(c, deadline_after(c->timeout_ms), err);
    if (code != DS_OK) {
        ds_client_close(c);
        return code;
    }
    *ret = c;
    return DS_OK;
}

void ds_client_close(ds_client *c)
{
    if (!c)
        return;
    ds_conn_close(&c->conn, 100);
    if (c->zctx)
        zmq_ctx_term(c->zctx);
    while (c->first) {
        backlog *b = c->first;
        c->first = b->next;
        ds_frame_clear(&b->frame);
        free(b);
    }
    ds_frame_clear(&c->hello);
    ds_frame_clear(&c->in);
    ds_frame_clear(&c->shown);
    free(c->id);
    free(c->unused);
    free(c);
}

const ds_pb_caps *ds_client_caps(const ds_client *c)
{
    return c->hello.env->hello->capabilities;
}

int ds_client_live(const ds_client *c)
{
    return c->n_live;
}

/* ---- requests ---- */

ds_client_req ds_client_req_default(const ds_client *c)
{
    ds_client_req r = {.want_text = 1,
                       .max_tokens = 16,
                       .temperature = 1,
                       .top_p = 1,
                       .repetition = 1,
                       .logprobs = -1,
                       .prompt_logprobs = -1};
    const ds_pb_caps *caps = c ? ds_client_caps(c) : NULL;
    if (!caps || !caps->vocab) /* no worker came yet */
        return r;
    if (isfinite(caps->default_temperature))
        r.temperature = (float)caps->default_temperature;
    if (isfinite(caps->default_top_p) && caps->default_top_p > 0)
        r.top_p = (float)caps->default_top_p;
    if (caps->default_top_k > 0)
        r.top_k = caps->default_top_k;
    return r;
}

static void fill_sampling(ds_pb_sampling *s, const ds_client_req *r)
{
    s->max_tokens = r->max_tokens < 0 ? 0 : (uint32_t)r->max_tokens;
    s->min_tokens = r->min_tokens < 0 ? UINT32_MAX : (uint32_t)r->min_tokens;
    s->temperature = r->temperature;
    s->top_p = r->top_p;
    s->top_k = r->top_k;
    s->min_p = r->min_p;
    s->presence_penalty = r->presence;
    s->frequency_penalty = r->frequency;
    s->repetition_penalty = r->repetition;
    s->seed = r->seed;
    s->logit_bias_id = (int32_t *)r->bias_id;
    s->logit_bias = (float *)r->bias;
    s->n_logit_bias_id = s->n_logit_bias = r->n_bias;
    s->stop_token_ids = (int32_t *)r->stop_id;
    s->n_stop_token_ids = r->n_stop_id;
    s->ignore_eos = r->ignore_eos != 0;
    s->logprobs = r->logprobs;
    s->prompt_logprobs = r->prompt_logprobs;
}

ds_code ds_client_submit(ds_client *c, const ds_client_req *r, uint64_t *ret_id, ds_err *err)
{
    ds_pb_sampling sampling = DSPARK__V1__SAMPLING__INIT;
    ds_pb_speculation spec = DSPARK__V1__SPECULATION__INIT;
    ds_pb_submit s = DSPARK__V1__SUBMIT__INIT;
    DS_TRY(refresh(c, err));
    if (c->state != CONN_UP || c->lost >= 0)
        return ds_err_set(err, DS_EIO, "not connected to %s", c->endpoint);
    fill_sampling(&sampling, r);
    spec.mode = (Dspark__V1__Speculation__Mode)r->speculation;
    spec.max_draft = (uint32_t)r->max_draft;
    s.id = 1; /* a valid one, until validation has passed */
    s.prompt_ids = (int32_t *)r->prompt_ids;
    s.n_prompt_ids = r->n_prompt_ids;
    if (r->text)
        s.text = (char *)r->text;
    s.sampling = &sampling;
    s.speculation = &spec;
    s.priority = r->priority;
    s.stop = (char **)r->stop;
    s.n_stop = r->n_stop;
    s.want_text = r->want_text != 0;
    if (r->user)
        s.user = (char *)r->user;
    DS_TRY(ds_proto_validate_submit(&s, ds_client_caps(c), 1, err));
    if (c->credits == 0)
        return ds_err_set(err, DS_ELIMIT, "the router takes no more requests from this client just now");
    DS_TRY(slot_take(c, &s.id, err));
    ds_pb_envelope env = ds_frame_wrap(DSPARK__V1__ENVELOPE__BODY_SUBMIT, &s);
    ds_code code = ds_frame_send(c->conn.sock, NULL, &env, err);
    if (code != DS_OK) {
        slot_release(c, slot_of(c, s.id));
        return code;
    }
    c->credits--;
    if (ret_id)
        *ret_id = s.id;
    return DS_OK;
}

ds_code ds_client_cancel(ds_client *c, uint64_t id, ds_err *err)
{
    if (slot_of(c, id) < 0)
        return ds_err_set(err, DS_ENOTFOUND, "request %llu is not live", (unsigned long long)id);
    if (c->state != CONN_UP)
        return DS_OK; /* its outcome, the lost connection, is on the way */
    ds_pb_cancel cancel = DSPARK__V1__CANCEL__INIT;
    cancel.id = id;
    ds_pb_envelope env = ds_frame_wrap(DSPARK__V1__ENVELOPE__BODY_CANCEL, &cancel);
    return ds_frame_send(c->conn.sock, NULL, &env, err);
}

/* Turns the frame in c->shown into an event; 0 when it is not one of a live request. */
static int to_event(ds_client *c, ds_client_event *ret)
{
    const ds_pb_envelope *env = c->shown.env;
    int slot = slot_of(c, c->shown.id);
    *ret = (ds_client_event){.id = c->shown.id, .field = "", .msg = ""};
    if (slot < 0)
        return 0;
    switch (env->body_case) {
    case DSPARK__V1__ENVELOPE__BODY_TOKENS:
        ret->kind = DS_CLIENT_TOKENS;
        ret->tokens = env->tokens;
        return 1;
    case DSPARK__V1__ENVELOPE__BODY_DONE:
        ret->kind = DS_CLIENT_DONE;
        ret->done = env->done;
        break;
    case DSPARK__V1__ENVELOPE__BODY_ERROR:
        ret->kind = DS_CLIENT_ERROR;
        ret->code = ds_status_from_wire(env->error->code);
        ret->field = env->error->field;
        ret->msg = env->error->message;
        ret->retry_after_ms =
            (int)(env->error->retry_after_ms > INT32_MAX ? INT32_MAX : env->error->retry_after_ms);
        break;
    default:
        return 0;
    }
    slot_release(c, slot);
    return 1;
}

/* The connection broke: one ERROR for each request that was live then. */
static int lost_event(ds_client *c, ds_client_event *ret)
{
    while (c->lost >= 0 && c->lost < c->cap) {
        int s = c->lost++;
        if (c->id[s] == 0)
            continue;
        *ret = (ds_client_event){.kind = DS_CLIENT_ERROR,
                                 .id = c->id[s],
                                 .code = DS_EIO,
                                 .field = "",
                                 .msg = "the connection to the router was lost",
                                 .retry_after_ms = ds_status_of(DS_EIO)->retry_after_ms};
        slot_release(c, s);
        return 1;
    }
    c->lost = -1;
    return 0;
}

static void show(ds_client *c, ds_frame *f)
{
    ds_frame old = c->shown;
    c->shown = *f;
    *f = old;
}

ds_code ds_client_next(ds_client *c, int timeout_ms, ds_client_event *ret, ds_err *err)
{
    uint64_t deadline = deadline_after(timeout_ms);
    for (;;) {
        int got = 0;
        if (lost_event(c, ret))
            return DS_OK;
        if (c->first) {
            backlog *b = c->first;
            c->first = b->next;
            if (!c->first)
                c->last = &c->first;
            c->n_backlog--;
            show(c, &b->frame);
            ds_frame_clear(&b->frame);
            free(b);
            if (to_event(c, ret))
                return DS_OK;
            continue;
        }
        DS_TRY(receive(c, &got, err)); /* what came before a disconnect is still delivered */
        if (got) {
            show(c, &c->in);
            if (to_event(c, ret))
                return DS_OK;
            continue;
        }
        DS_TRY(on_monitor(c, err));
        if (c->lost < 0)
            DS_TRY(wait_some(c, deadline, err));
    }
}

/* ---- calls with one answer ---- */

static ds_code keep_for_next(ds_client *c, ds_err *err)
{
    backlog *b = c->n_backlog < DS_CLIENT_MAX_BACKLOG ? malloc(sizeof *b) : NULL;
    if (!b)
        return ds_err_set(err, DS_ELIMIT, "%d events wait to be taken", c->n_backlog);
    *b = (backlog){.frame = c->in};
    c->in = (ds_frame){0};
    *c->last = b;
    c->last = &b->next;
    c->n_backlog++;
    return DS_OK;
}

/* Sends env and waits for a frame of kind `want` (and id, unless 0); it is then in c->shown. */
static ds_code call(ds_client *c, ds_pb_envelope *env, Dspark__V1__Envelope__BodyCase want, uint64_t id,
                    ds_err *err)
{
    uint64_t deadline = deadline_after(c->timeout_ms);
    DS_TRY(refresh(c, err));
    DS_TRY(wait_up(c, deadline, err));
    DS_TRY(ds_frame_send(c->conn.sock, NULL, env, err));
    for (;;) {
        int got = 0;
        DS_TRY(receive(c, &got, err));
        if (!got) {
            DS_TRY(on_monitor(c, err));
            if (c->state != CONN_UP)
                return ds_err_set(err, DS_EIO, "the connection to the router was lost");
            DS_TRY(wait_some(c, deadline, err));
            continue;
        }
        const ds_pb_envelope *in = c->in.env;
        if (in->body_case == want && (id == 0 || c->in.id == id)) {
            show(c, &c->in);
            return DS_OK;
        }
        if (id && in->body_case == DSPARK__V1__ENVELOPE__BODY_ERROR && in->error->id == id)
            return ds_err_field(err, ds_status_from_wire(in->error->code), in->error->field, "%s",
                                in->error->message);
        if (slot_of(c, c->in.id) >= 0)
            DS_TRY(keep_for_next(c, err));
    }
}

ds_code ds_client_stats(ds_client *c, const ds_pb_stats **ret, ds_err *err)
{
    Dspark__V1__StatsRequest req = DSPARK__V1__STATS_REQUEST__INIT;
    ds_pb_envelope env = ds_frame_wrap(DSPARK__V1__ENVELOPE__BODY_STATS_REQUEST, &req);
    DS_TRY(call(c, &env, DSPARK__V1__ENVELOPE__BODY_STATS, 0, err));
    *ret = c->shown.env->stats;
    return DS_OK;
}

static ds_code call_tokenize(ds_client *c, ds_pb_tokenize *req, ds_err *err)
{
    req->id = ++c->generation * DS_CLIENT_MAX_LIVE + DS_CLIENT_MAX_LIVE - 1;
    ds_pb_envelope env = ds_frame_wrap(DSPARK__V1__ENVELOPE__BODY_TOKENIZE, req);
    return call(c, &env, DSPARK__V1__ENVELOPE__BODY_TOKENIZE_REPLY, req->id, err);
}

ds_code ds_client_tokenize(ds_client *c, const char *text, const int32_t **ret, size_t *ret_n, ds_err *err)
{
    ds_pb_tokenize req = DSPARK__V1__TOKENIZE_REQUEST__INIT;
    req.text = (char *)text;
    DS_TRY(call_tokenize(c, &req, err));
    *ret = c->shown.env->tokenize_reply->ids;
    *ret_n = c->shown.env->tokenize_reply->n_ids;
    return DS_OK;
}

ds_code ds_client_detokenize(ds_client *c, const int32_t *ids, size_t n, const char **ret, ds_err *err)
{
    ds_pb_tokenize req = DSPARK__V1__TOKENIZE_REQUEST__INIT;
    req.detokenize = 1;
    req.ids = (int32_t *)ids;
    req.n_ids = n;
    DS_TRY(call_tokenize(c, &req, err));
    *ret = c->shown.env->tokenize_reply->text;
    return DS_OK;
}
