/* request.h - one client request and its choices, from body to last byte. Owner: the loop thread, but for
 * ds_request's `prepare` part, which the thread pool owns between REQ_PREPARE and its return.
 *
 * Exactly one outcome: a request ends by finish, by fail, or because its client left. A choice ends once.
 * Nothing here knows HTTP or RPC: answers leave through a ds_sink. */
#ifndef DS_DAEMON_REQUEST_H
#define DS_DAEMON_REQUEST_H

#include "base/buf.h"
#include "daemon/params.h"
#include "proto/frame.h"
#include "text/chat.h"
#include "text/tokenizer.h"

#include <uv.h>

typedef struct ds_daemon ds_daemon;
typedef struct ds_request ds_request;
typedef struct ds_choice ds_choice;

typedef enum {
    CHOICE_WAITING, /* in the admission queue */
    CHOICE_FLYING,  /* a worker holds it */
    CHOICE_ENDED    /* finish is set, or the request failed */
} ds_choice_state;

typedef enum { FINISH_NONE, FINISH_STOP, FINISH_LENGTH } ds_finish_reason;

/* Rendered log-probabilities. Chat: `entry` holds objects. Completions: four parallel lists. Comma separated.
 */
typedef struct ds_lp {
    ds_buf entry, logprob, top, offset;
    size_t chars; /* text_offset of the next token */
} ds_lp;

typedef struct ds_prompt {
    const char *text; /* of a string prompt, borrowed from params.root; NULL for token ids */
    size_t text_len;
    int32_t *ids;
    int n;
    ds_buf echo; /* completions with echo: what the prompt reads */
} ds_prompt;

typedef struct ds_origin { /* of a token: Tokens.source, draft_slot and draft_confidence */
    unsigned char drafted, source, slot;
    float confidence;
} ds_origin;

struct ds_choice {
    ds_request *req;
    ds_choice *next, *prev; /* admission queue */
    uint64_t queued_ns;     /* when its wait began; 0: it does not wait yet */
    int queued;
    ds_choice_state state;
    int index, prompt;
    uint64_t seed;
    uint64_t wire; /* of the flight */
    int n_start;   /* tokens it had when it was submitted last */
    int deaths;    /* workers lost with it */
    int barren;    /* of them, the last in a row that gave it no token; the first always counts */
    char avoid[DS_MAX_NAME_BYTES + 1]; /* the last of them */
    int32_t *out;                      /* [n_out] every token generated so far; a new worker gets them */
    ds_origin *origin;                 /* [n_out] where each came from */
    int n_out, cap_out;
    int n_prompt_lp; /* prompt positions whose log-probabilities have come */
    ds_finish_reason finish;
    char *stop_string; /* borrowed from params */
    uint32_t cached;
    uint32_t accepted,
        rejected; /* drafts among its tokens, and verified ones that are not; of all attempts */
    ds_detok *detok;
    ds_chat_parser *parser;
    int n_calls;
    int started;  /* something of it was sent */
    int sent_ids; /* tokens already reported with return_token_ids or RPC */
    uint64_t first_ns, last_ns;
    /* what the sink has not sent yet (streams), or all of it (whole answers) */
    ds_buf text, reasoning, calls;
    ds_lp lp;
};

/* How answers leave. All run on the loop; none may free the request. */
typedef struct ds_sink {
    void (*piece)(ds_choice *c); /* new text or tokens in c's buffers */
    void (*end)(ds_choice *c);   /* c->finish is set */
    void (*finish)(ds_request *r);
    void (*fail)(ds_request *r, const ds_err *err);
    /* RPC only, else NULL: the worker's frame, of which n tokens count; text lies in c->text */
    void (*tokens)(ds_choice *c, const ds_pb_tokens *t, int n);
} ds_sink;

typedef enum {
    REQ_PREPARE, /* on the thread pool */
    REQ_RUNNING, /* choices wait or fly */
    REQ_ENDED    /* answered, failed or abandoned; freed once the pool has let go */
} ds_req_state;

struct ds_request {
    ds_daemon *d;
    ds_req_state state;
    const ds_sink *sink;
    void *peer;  /* ds_hconn or RPC peer, NULL once it is gone */
    char id[40]; /* "chatcmpl-..." */
    int64_t created;
    uint64_t start_ns;
    ds_params params;
    ds_prompt prompt[DS_MAX_PROMPTS];
    int n_prompts;
    int in_reasoning; /* the template opened the reasoning part */
    ds_choice *choices;
    int n_choices, live;
    int streaming; /* head of the stream was sent */
    ds_buf prefix; /* head of every SSE event */
    /* prepare */
    uv_work_t work;
    ds_buf body;
    ds_code (*prepare)(ds_request *r, ds_err *err); /* on the pool: body to params and prompts */
    void (*prepared)(ds_request *r);                /* on the loop, when it succeeded */
    ds_code prepare_code;
    ds_err prepare_err;
    /* /tokenize and /detokenize: their answer; RPC: the client's id */
    ds_buf reply;
    uint64_t peer_id;
    int want_text;           /* RPC */
    ds_request *next, *prev; /* all requests */
};

/* ds_request_create: NULL when there is no memory. prefix: "chatcmpl", "cmpl", ... */
ds_request *ds_request_create(ds_daemon *d, const char *prefix, const ds_sink *sink, void *peer);
/* ds_request_prepare: hand the request to the pool; then `prepared` or sink->fail runs. */
void ds_request_prepare(ds_request *r);
/* ds_request_start: choices into the admission queue. Refusals go to sink->fail. */
void ds_request_start(ds_request *r);
void ds_request_fail(ds_request *r, const ds_err *err); /* sink->fail, cancel the rest, end */
void ds_request_abandon(void *r);                       /* the client left: cancel, end; nobody is told */
void ds_request_end(ds_request *r);                     /* after the last word */
/* ds_request_encode: on the pool: r->prompt[i].ids from text. */
ds_code ds_request_encode(ds_request *r, int i, const char *text, size_t len, int special, ds_err *err);
ds_code ds_request_encode_prompts(ds_request *r, ds_err *err); /* completions: params.prompt to prompt[] */
/* ds_text_decode: ids to text, special tokens included. Pure. */
ds_code ds_text_decode(const ds_tokenizer *tok, const int32_t *ids, int n, ds_buf *out, ds_err *err);

/* choice.c: what the worker says, to text. */
ds_code ds_choice_open(ds_choice *c, ds_err *err);
void ds_choice_close(ds_choice *c);
void ds_choice_enter(ds_choice *c, ds_choice_state to);
void ds_choice_tokens(void *c, const ds_pb_tokens *t);
void ds_choice_done(void *c, const ds_pb_done *d);
void ds_choice_error(void *c, const ds_err *err);
void ds_choice_lost(void *c, const char *why);
/* ds_choice_submit: the Submit of its next attempt; arrays are borrowed from the choice. */
void ds_choice_submit(ds_choice *c, ds_pb_submit *s, ds_pb_sampling *sampling);

/* logprobs.c */
ds_code ds_lp_add(ds_choice *c, int32_t id,
                  const ds_pb_logprob *lp);     /* lp NULL: no value (first prompt token) */
ds_code ds_lp_write(ds_choice *c, ds_buf *out); /* "logprobs": value, null when none wanted */
void ds_lp_clear(ds_lp *lp);
void ds_lp_free(ds_lp *lp);

#endif
