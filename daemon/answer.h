/* answer.h - what all HTTP answers share: error bodies, usage, events of a stream. Owner: the loop thread. */
#ifndef DS_DAEMON_ANSWER_H
#define DS_DAEMON_ANSWER_H

#include "daemon/daemon.h"

/* ds_answer_error: reply in OpenAI's shape, {"error": {message, type, param, code}}, with Retry-After where
 * it helps. */
void ds_answer_error(ds_daemon *d, ds_hconn *c, const char *path, const ds_err *err);
/* ds_answer_status: the same for what has no ds_code (404 of a path, 405). extra: header lines. */
void ds_answer_status(ds_daemon *d, ds_hconn *c, const char *path, int status, const char *code,
                      const char *extra, const char *message);
/* ds_answer_head: {"id":..,"object":..,..."system_fingerprint":..., of a whole answer. */
ds_code ds_answer_head(const ds_request *r, const char *object, ds_buf *out);
void ds_answer_json(ds_request *r, const char *path, const ds_buf *body);
/* ds_answer_fail: sink->fail of every HTTP request: a reply, or the last event of a stream that has begun. */
void ds_answer_fail(ds_request *r, const char *path, const ds_err *err);
/* ds_answer_usage: "usage":{...} with exact counts. */
ds_code ds_answer_usage(const ds_request *r, ds_buf *out);
const char *ds_answer_finish(const ds_choice *c); /* "stop", "length", "tool_calls" */

/* Events. ds_sse_head is called before the first; an event is head + fields of one choice + tail. */
ds_code ds_sse_head(ds_request *r, const char *object);
ds_code ds_sse_begin(ds_choice *c, ds_buf *out);             /* data: {..."choices":[{"index":i, */
ds_code ds_sse_finish(ds_choice *c, ds_buf *out, int ended); /* "finish_reason":..}]} */
void ds_sse_send(ds_request *r, ds_buf *out,
                 ds_code code); /* code: of building it; an error drops the client */
void ds_sse_end(ds_request *r, const char *object,
                const char *path); /* usage when asked for, [DONE], end of stream */

/* ds_answer_ids: ,"accepted_draft":[..],"token_ids":[..] of tokens from..n_out, each when asked for, and the
 * prompt's ids on the choice's first event. */
ds_code ds_answer_ids(ds_choice *c, ds_buf *out, int from, int with_prompt);

#endif
