/* rpc.c - see rpc.h. A client says Hello, gets the router's with its capabilities and credits, and may then
 * submit. A silent client's requests are cancelled. */
#include "daemon/rpc.h"

#include "base/log.h"
#include "proto/socket.h"
#include "proto/status.h"
#include "proto/validate.h"

#include <stdlib.h>
#include <string.h>
#include <unistd.h>
#include <zmq.h>

enum {
    MAX_CLIENTS = 256,
    CLIENT_CREDITS = 1024, /* requests one client may have open */
    DRAIN_FRAMES = 1024,
    SILENT_MS = 5000, /* a client without a frame for so long is gone */
};

typedef struct client {
    int used;
    ds_peer peer;
    uint64_t last_ns;
    int live;
} client;

struct ds_rpc {
    ds_daemon *d;
    void *sock;
    int lock;
    client clients[MAX_CLIENTS];
    uint64_t beat, beat_ns;
    ds_frame frame;
};

/* ---- sending ---- */

static void leave(ds_rpc *r, client *c, const char *why);

static void post(ds_rpc *r, client *c, Dspark__V1__Envelope__BodyCase kind, void *body)
{
    ds_pb_envelope env = ds_frame_wrap(kind, body);
    ds_err err = {0};
    if (ds_frame_send(r->sock, &c->peer, &env, &err))
        c->last_ns =
            0; /* gone, or it does not read: the next tick lets it go, not this call below its request */
}

static void post_error(ds_rpc *r, client *c, uint64_t id, const ds_err *e)
{
    ds_pb_error m = DSPARK__V1__ERROR__INIT;
    m.id = id;
    m.code = (uint32_t)e->code;
    m.field = (char *)e->field;
    m.message = (char *)e->msg;
    m.retry_after_ms = (uint32_t)ds_status_of(e->code)->retry_after_ms;
    post(r, c, DSPARK__V1__ENVELOPE__BODY_ERROR, &m);
}

/* ---- the sink: how answers leave through this door ---- */

static void on_tokens(ds_choice *c, const ds_pb_tokens *t, int n)
{
    ds_request *q = c->req;
    if (!q->peer)
        return;
    ds_pb_tokens m = *t;
    m.id = q->peer_id;
    m.n_ids = (size_t)n;
    m.n_logprobs = t->n_logprobs ? (size_t)n : 0;
    m.n_accepted_draft = t->n_accepted_draft ? (size_t)n : 0;
    m.n_source = m.n_draft_slot = m.n_draft_confidence = t->n_source ? (size_t)n : 0;
    for (size_t i = (size_t)n; i < t->n_accepted_draft; i++)
        m.rejected_draft += t->accepted_draft[i] != 0;
    m.text = c->text.len && q->want_text ? c->text.data : (char *)"";
    post(q->d->rpc, q->peer, DSPARK__V1__ENVELOPE__BODY_TOKENS, &m);
    ds_buf_clear(&c->text);
}

static void on_piece(ds_choice *c)
{
    (void)c; /* on_tokens has sent it */
}

static void on_end(ds_choice *c)
{
    ds_request *q = c->req;
    if (!q->peer)
        return;
    if (c->text.len && q->want_text) { /* what the detokeniser still held */
        ds_pb_tokens m = DSPARK__V1__TOKENS__INIT;
        m.id = q->peer_id;
        m.index = (uint32_t)c->n_out;
        m.text = c->text.data;
        post(q->d->rpc, q->peer, DSPARK__V1__ENVELOPE__BODY_TOKENS, &m);
    }
    ds_pb_done m = DSPARK__V1__DONE__INIT;
    m.id = q->peer_id;
    m.finish = c->finish == FINISH_STOP ? DSPARK__V1__DONE__FINISH__STOP : DSPARK__V1__DONE__FINISH__LENGTH;
    m.stop_token = c->finish == FINISH_STOP && !c->stop_string && c->n_out ? c->out[c->n_out - 1] : -1;
    m.stop_string = c->stop_string ? c->stop_string : (char *)"";
    m.prompt_tokens = (uint32_t)q->prompt[0].n;
    m.output_tokens = (uint32_t)c->n_out;
    m.cached_tokens = c->cached;
    m.accepted_draft_tokens = c->accepted;
    m.rejected_draft_tokens = c->rejected;
    post(q->d->rpc, q->peer, DSPARK__V1__ENVELOPE__BODY_DONE, &m);
}

static void give_back(ds_request *q)
{
    client *c = q->peer;
    ds_pb_credits m = DSPARK__V1__CREDITS__INIT;
    m.add = 1;
    c->live--;
    post(q->d->rpc, c, DSPARK__V1__ENVELOPE__BODY_CREDITS, &m);
}

static void on_finish(ds_request *q)
{
    if (q->peer)
        give_back(q);
}

static void on_fail(ds_request *q, const ds_err *err)
{
    if (!q->peer)
        return;
    post_error(q->d->rpc, q->peer, q->peer_id, err);
    give_back(q);
}

static const ds_sink SINK = {
    .piece = on_piece, .end = on_end, .finish = on_finish, .fail = on_fail, .tokens = on_tokens};

/* ---- requests ---- */

static ds_request *find(ds_rpc *r, const client *c, uint64_t id)
{
    for (ds_request *q = r->d->requests; q; q = q->next)
        if (q->sink->tokens == on_tokens && q->peer == c && q->peer_id == id)
            return q;
    return NULL;
}

static ds_code copy_ids(const int32_t *from, size_t n, int32_t **ret)
{
    *ret = NULL;
    if (!n)
        return DS_OK;
    *ret = malloc(n * sizeof **ret);
    if (!*ret)
        return DS_ENOMEM;
    memcpy(*ret, from, n * sizeof **ret);
    return DS_OK;
}

/* The Submit into the request's own memory: the frame goes with the next receive. */
static ds_code take(ds_request *q, const ds_pb_submit *s)
{
    ds_params *p = &q->params;
    const ds_pb_sampling *g = s->sampling;
    p->n = 1;
    p->max_tokens = g->max_tokens;
    p->has_seed = 1;
    p->priority = s->priority;
    p->logprobs = g->logprobs;
    p->sampling = *g;
    p->sampling.stop_token_ids = NULL;
    p->sampling.logit_bias_id = NULL;
    p->sampling.logit_bias = NULL;
    dspark__v1__speculation__init(&p->spec);
    if (s->speculation) {
        p->spec.mode = s->speculation->mode;
        p->spec.max_draft = s->speculation->max_draft;
    }
    q->want_text = s->want_text;
    q->n_prompts = 1;
    q->prompt[0].n = (int)s->n_prompt_ids;
    DS_TRY(copy_ids(s->prompt_ids, s->n_prompt_ids, &q->prompt[0].ids));
    DS_TRY(copy_ids(g->stop_token_ids, g->n_stop_token_ids, &p->sampling.stop_token_ids));
    DS_TRY(copy_ids(g->logit_bias_id, g->n_logit_bias_id, &p->sampling.logit_bias_id));
    if (g->n_logit_bias) {
        p->sampling.logit_bias = malloc(g->n_logit_bias * sizeof(float));
        if (!p->sampling.logit_bias)
            return DS_ENOMEM;
        memcpy(p->sampling.logit_bias, g->logit_bias, g->n_logit_bias * sizeof(float));
    }
    for (size_t i = 0; i < s->n_stop; i++) {
        if (!(p->stop[i] = strdup(s->stop[i])))
            return DS_ENOMEM;
        p->n_stop++;
    }
    if (s->user[0] && !(p->user = strdup(s->user)))
        return DS_ENOMEM;
    return s->text && s->text[0] ? ds_buf_puts(&q->body, s->text) : DS_OK;
}

static ds_code prepare(ds_request *q, ds_err *err)
{
    if (!q->body.len)
        return DS_OK;
    return ds_request_encode(q, 0, q->body.data, q->body.len, 1, err);
}

static void router_caps(const ds_rpc *r, ds_pb_caps *ret)
{
    const ds_pb_caps *caps = ds_links_caps(r->d->links);
    dspark__v1__capabilities__init(ret);
    if (caps)
        *ret = *caps;
    ret->model = r->d->model;
}

static void on_submit(ds_rpc *r, client *c, const ds_pb_submit *s)
{
    ds_err err = {0};
    ds_pb_caps caps;
    router_caps(r, &caps);
    ds_code code = ds_proto_validate_submit(s, &caps, 1, &err);
    if (code == DS_OK && find(r, c, s->id))
        code = ds_err_field(&err, DS_EINVAL, "id", "request %llu is live already", (unsigned long long)s->id);
    if (code == DS_OK && c->live >= CLIENT_CREDITS)
        code =
            ds_err_set(&err, DS_ELIMIT, "this client has %d requests open, its credit is used up", c->live);
    if (code) {
        post_error(r, c, s->id, &err);
        return;
    }
    ds_request *q = ds_request_create(r->d, "rpc", &SINK, c);
    if (!q) {
        ds_err_set(&err, DS_ENOMEM, "no memory for the request");
        post_error(r, c, s->id, &err);
        return;
    }
    c->live++;
    q->peer_id = s->id;
    q->prepare = prepare;
    q->prepared = ds_request_start;
    code = take(q, s);
    if (code) {
        ds_err_set(&err, code, "no memory for the request");
        q->state = REQ_RUNNING;
        ds_request_fail(q, &err);
        return;
    }
    ds_request_prepare(q);
}

static void on_cancel(ds_rpc *r, client *c, uint64_t id)
{
    ds_request *q = find(r, c, id);
    if (!q)
        return; /* it has ended: its last word is under way */
    ds_pb_done m = DSPARK__V1__DONE__INIT;
    m.id = id;
    m.finish = DSPARK__V1__DONE__FINISH__CANCELLED;
    m.stop_token = -1;
    m.prompt_tokens = (uint32_t)q->prompt[0].n * (q->state != REQ_PREPARE);
    if (q->n_choices) {
        m.output_tokens = (uint32_t)q->choices[0].n_out;
        m.accepted_draft_tokens = q->choices[0].accepted;
        m.rejected_draft_tokens = q->choices[0].rejected;
    }
    post(r, c, DSPARK__V1__ENVELOPE__BODY_DONE, &m);
    give_back(q);
    ds_request_abandon(q);
}

/* ---- tokenize, stats ---- */

static void on_tokenize(ds_rpc *r, client *c, const ds_pb_tokenize *t)
{
    enum { INLINE_BYTES = 256 << 10 }; /* this answer is made on the loop; more goes through /tokenize */
    ds_err err = {0};
    ds_ids ids = {0};
    ds_buf text = {0};
    ds_code code = DS_OK;
    if (!r->d->tok)
        code = ds_err_field(&err, DS_EUNSUPPORTED, "text", "this model has no tokenizer");
    else if (strlen(t->text) > INLINE_BYTES || t->n_ids > INLINE_BYTES / 4)
        code =
            ds_err_field(&err, DS_EINVAL, "text", "at most %d bytes are tokenised through RPC", INLINE_BYTES);
    else if (!t->detokenize)
        code = ds_tokenizer_encode(r->d->tok, t->text, strlen(t->text), 1, 1, 0, &ids, &err);
    for (size_t i = 0; t->detokenize && code == DS_OK && i < t->n_ids; i++)
        if (t->ids[i] < 0 || t->ids[i] >= ds_tokenizer_size(r->d->tok))
            code =
                ds_err_field(&err, DS_EINVAL, "ids", "ids[%zu] is %d, outside the vocabulary", i, t->ids[i]);
    if (t->detokenize && code == DS_OK)
        code = ds_text_decode(r->d->tok, t->ids, (int)t->n_ids, &text, &err);
    if (code) {
        post_error(r, c, t->id, &err);
    } else {
        ds_pb_tokenize_reply m = DSPARK__V1__TOKENIZE_REPLY__INIT;
        m.id = t->id;
        m.ids = ids.v;
        m.n_ids = (size_t)ids.n;
        m.text = text.len ? text.data : (char *)"";
        post(r, c, DSPARK__V1__ENVELOPE__BODY_TOKENIZE_REPLY, &m);
    }
    ds_ids_free(&ids);
    ds_buf_free(&text);
}

static void on_stats(ds_rpc *r, client *c)
{
    ds_pb_stats sum = DSPARK__V1__STATS__INIT, *list[DS_MAX_WORKERS];
    sum.worker = (char *)"router";
    sum.waiting = (uint32_t)r->d->n_waiting;
    for (int i = 0; i < DS_MAX_WORKERS; i++) {
        const ds_worker *w = ds_links_worker(r->d->links, i);
        if (w->state == LINK_EMPTY)
            continue;
        const ds_pb_stats *s = &w->stats;
        list[sum.n_workers++] = (ds_pb_stats *)s;
        ((ds_pb_stats *)s)->worker = (char *)w->name;
        sum.running += s->running;
        sum.waiting += s->waiting;
        sum.kv_tokens_used += s->kv_tokens_used;
        sum.kv_tokens += s->kv_tokens;
        sum.steps += s->steps;
        sum.rows += s->rows;
        sum.prompt_tokens += s->prompt_tokens;
        sum.output_tokens += s->output_tokens;
        sum.prefix_hit_tokens += s->prefix_hit_tokens;
        sum.preemptions += s->preemptions;
        sum.finished += s->finished;
        sum.cancelled += s->cancelled;
        sum.failed += s->failed;
        sum.busy_ns += s->busy_ns;
        sum.draft_tokens += s->draft_tokens;
        sum.accepted_tokens += s->accepted_tokens;
        sum.draft_rounds += s->draft_rounds;
        sum.draft_passes += s->draft_passes;
        sum.draft_skips += s->draft_skips;
        sum.draft_ns += s->draft_ns;
        sum.proposed_tokens += s->proposed_tokens;
        sum.sched_ns += s->sched_ns;
        sum.verify_budget += s->verify_budget;
        sum.draft_request_skips += s->draft_request_skips;
        sum.drafted_step_ns += s->drafted_step_ns;
        sum.plain_step_ns += s->plain_step_ns;
        sum.guard_offs += s->guard_offs;
        sum.guard_bands_off += s->guard_bands_off;
        sum.calibration_drift |= s->calibration_drift;
        sum.calibration_refits += s->calibration_refits;
        sum.calibration_rollbacks += s->calibration_rollbacks;
        sum.rss_bytes += s->rss_bytes;
    }
    sum.workers = list;
    post(r, c, DSPARK__V1__ENVELOPE__BODY_STATS, &sum);
}

/* ---- clients ---- */

static client *find_client(ds_rpc *r, const ds_peer *peer)
{
    for (int i = 0; i < MAX_CLIENTS; i++)
        if (r->clients[i].used && r->clients[i].peer.len == peer->len &&
            !memcmp(r->clients[i].peer.id, peer->id, peer->len))
            return &r->clients[i];
    return NULL;
}

static void leave(ds_rpc *r, client *c, const char *why)
{
    ds_log(DS_LOG_INFO, "rpc", "a client left: %s; %d requests end", why, c->live);
    for (ds_request *q = r->d->requests, *next; q; q = next) {
        next = q->next;
        if (q->sink->tokens == on_tokens && q->peer == c)
            ds_request_abandon(q);
    }
    *c = (client){0};
}

static void refuse(ds_rpc *r, const ds_peer *peer, const ds_err *err)
{
    client stranger = {.peer = *peer};
    post_error(r, &stranger, 0, err);
}

static void on_hello(ds_rpc *r, const ds_peer *peer, const ds_pb_hello *h)
{
    ds_err err = {0};
    client *c = find_client(r, peer);
    if (c)
        leave(r, c, "it said hello again");
    c = NULL;
    for (int i = 0; i < MAX_CLIENTS && !c; i++)
        if (!r->clients[i].used)
            c = &r->clients[i];
    if (!c)
        ds_err_set(&err, DS_ELIMIT, "this router has %d clients already", MAX_CLIENTS);
    if (!c || ds_proto_validate_hello(h, "client", &err)) {
        refuse(r, peer, &err);
        return;
    }
    *c = (client){.used = 1, .peer = *peer, .last_ns = ds_clock_ns(r->d->clock)};
    ds_pb_caps caps;
    router_caps(r, &caps);
    ds_pb_hello m = DSPARK__V1__HELLO__INIT;
    m.role = (char *)"router";
    m.name = r->d->name;
    m.software = (char *)"dsparkd " DS_VERSION;
    m.incarnation = (uint64_t)r->d->created;
    m.heartbeat_ms = (uint32_t)r->d->conf.heartbeat_ms;
    m.capabilities = &caps;
    post(r, c, DSPARK__V1__ENVELOPE__BODY_HELLO, &m);
    ds_pb_credits credits = DSPARK__V1__CREDITS__INIT;
    credits.add = CLIENT_CREDITS;
    post(r, c, DSPARK__V1__ENVELOPE__BODY_CREDITS, &credits);
}

static void on_frame(ds_rpc *r, const ds_peer *peer, const ds_pb_envelope *env)
{
    ds_err err = {0};
    if (env->body_case == DSPARK__V1__ENVELOPE__BODY_HELLO) {
        on_hello(r, peer, env->hello);
        return;
    }
    client *c = find_client(r, peer);
    if (!c) {
        ds_err_set(&err, DS_EPROTO, "say hello first");
        refuse(r, peer, &err);
        return;
    }
    c->last_ns = ds_clock_ns(r->d->clock);
    switch (env->body_case) {
    case DSPARK__V1__ENVELOPE__BODY_SUBMIT:
        on_submit(r, c, env->submit);
        break;
    case DSPARK__V1__ENVELOPE__BODY_CANCEL:
        on_cancel(r, c, env->cancel->id);
        break;
    case DSPARK__V1__ENVELOPE__BODY_HEARTBEAT:
        break;
    case DSPARK__V1__ENVELOPE__BODY_STATS_REQUEST:
        on_stats(r, c);
        break;
    case DSPARK__V1__ENVELOPE__BODY_TOKENIZE:
        on_tokenize(r, c, env->tokenize);
        break;
    default:
        ds_err_set(&err, DS_EPROTO, "clients do not send %s", ds_frame_kind(env));
        refuse(r, peer, &err);
        leave(r, c, err.msg);
    }
}

void ds_rpc_drain(ds_rpc *r)
{
    ds_peer peer;
    for (int i = 0; i < DRAIN_FRAMES; i++) {
        ds_err err = {0};
        ds_code code = ds_frame_recv(r->sock, &peer, &r->frame, &err);
        if (code == DS_ETIMEOUT || code == DS_EIO)
            return;
        if (code == DS_OK) {
            on_frame(r, &peer, r->frame.env);
            continue;
        }
        client *c = find_client(r, &peer);
        refuse(r, &peer, &err);
        if (c)
            leave(r, c, err.msg);
    }
}

int ds_rpc_pending(ds_rpc *r)
{
    int events = 0;
    size_t n = sizeof events;
    return zmq_getsockopt(r->sock, ZMQ_EVENTS, &events, &n) == 0 && (events & ZMQ_POLLIN);
}

int ds_rpc_fd(const ds_rpc *r)
{
    int fd = -1;
    size_t n = sizeof fd;
    zmq_getsockopt(r->sock, ZMQ_FD, &fd, &n);
    return fd;
}

void ds_rpc_tick(ds_rpc *r)
{
    uint64_t now = ds_clock_ns(r->d->clock);
    int beat = now - r->beat_ns >= (uint64_t)r->d->conf.heartbeat_ms * 1000000;
    if (beat) {
        r->beat_ns = now;
        r->beat++;
    }
    for (int i = 0; i < MAX_CLIENTS; i++) {
        client *c = &r->clients[i];
        if (!c->used)
            continue;
        if (now > c->last_ns && now - c->last_ns > (uint64_t)SILENT_MS * 1000000) {
            leave(r, c, "it went silent");
        } else if (beat) {
            ds_pb_heartbeat m = DSPARK__V1__HEARTBEAT__INIT;
            m.seq = r->beat;
            post(r, c, DSPARK__V1__ENVELOPE__BODY_HEARTBEAT, &m);
        }
    }
}

ds_code ds_rpc_open(ds_daemon *d, const char *endpoint, ds_rpc **ret, ds_err *err)
{
    ds_rpc *r = calloc(1, sizeof *r);
    if (!r)
        return ds_err_set(err, DS_ENOMEM, "no memory for the RPC door");
    r->d = d;
    r->lock = -1;
    ds_code code = ds_sock_router(d->zctx, &r->sock, err);
    if (code == DS_OK)
        code = ds_sock_bind(r->sock, endpoint, &r->lock, err);
    if (code) {
        ds_rpc_close(r);
        return code;
    }
    *ret = r;
    return DS_OK;
}

void ds_rpc_close(ds_rpc *r)
{
    if (!r)
        return;
    for (int i = 0; i < MAX_CLIENTS; i++)
        if (r->clients[i].used)
            leave(r, &r->clients[i], "the router stops");
    if (r->sock)
        zmq_close(r->sock);
    if (r->lock >= 0)
        close(r->lock);
    ds_frame_clear(&r->frame);
    free(r);
}
