/* frame.h - one protobuf Envelope as one ZeroMQ message part: size cap, depth cap, version check, send,
 * receive.
 *
 * A peer's bytes are hostile: before protobuf-c sees them they are walked with the schema (depth, groups,
 * UTF-8, NUL in strings), and decoding runs in an arena of at most DS_MAX_FRAME_DECODED_BYTES. Values are not
 * judged here: proto/validate.h does. A ds_frame is owned by one thread and can be used again. */
#ifndef DS_PROTO_FRAME_H
#define DS_PROTO_FRAME_H

#include "base/buf.h"
#include "base/err.h"
#include "base/limits.h"
#include "proto/dspark.pb-c.h"

#include <stdint.h>

enum { DS_PROTO_VERSION = 1 };

typedef Dspark__V1__Envelope ds_pb_envelope;
typedef Dspark__V1__Hello ds_pb_hello;
typedef Dspark__V1__Capabilities ds_pb_caps;
typedef Dspark__V1__Submit ds_pb_submit;
typedef Dspark__V1__Sampling ds_pb_sampling;
typedef Dspark__V1__Speculation ds_pb_speculation;
typedef Dspark__V1__Tokens ds_pb_tokens;
typedef Dspark__V1__TokenLogprob ds_pb_logprob;
typedef Dspark__V1__TopLogprob ds_pb_top;
typedef Dspark__V1__Done ds_pb_done;
typedef Dspark__V1__Error ds_pb_error;
typedef Dspark__V1__Cancel ds_pb_cancel;
typedef Dspark__V1__Credits ds_pb_credits;
typedef Dspark__V1__Heartbeat ds_pb_heartbeat;
typedef Dspark__V1__Drain ds_pb_drain;
typedef Dspark__V1__Stats ds_pb_stats;
typedef Dspark__V1__TokenizeRequest ds_pb_tokenize;
typedef Dspark__V1__TokenizeReply ds_pb_tokenize_reply;

/* Address of a peer of a ROUTER socket, issued by the socket itself. */
typedef struct ds_peer {
    uint8_t len;
    uint8_t id[255];
} ds_peer;

typedef struct ds_frame {
    ds_pb_envelope *env; /* valid until the next decode, recv or clear of this frame; NULL when none */
    uint64_t id; /* id in the body's first field, 0 none; also set, where readable, when decoding fails */
    struct ds_frame_chunk *chunks; /* arena, newest first */
} ds_frame;

/* ds_frame_decode: parse n bytes into f (zeroed or used before). Errors: DS_EPROTO too long, nested too deep,
 * malformed, a string that is not UTF-8 or holds a NUL, another version, no body, too much memory (err->field
 * names the field where one is known). The frame owns a copy of everything. */
ds_code ds_frame_decode(ds_frame *f, const void *p, size_t n, ds_err *err);
void ds_frame_clear(ds_frame *f); /* releases all memory; f is zeroed */

/* ds_frame_encode: append env to out, with env->version set by the caller's INIT (0 is sent as
 * DS_PROTO_VERSION). DS_ELIMIT: longer than DS_MAX_FRAME_BYTES. */
ds_code ds_frame_encode(const ds_pb_envelope *env, ds_buf *out, ds_err *err);

/* ds_frame_send: never blocks. peer: for a ROUTER; NULL for a DEALER. Errors: DS_ELIMIT too long (err->field
 * "frame") or the peer's queue is full; DS_ENOTFOUND the peer is gone (ROUTER); DS_EIO the socket. */
ds_code ds_frame_send(void *sock, const ds_peer *peer, const ds_pb_envelope *env, ds_err *err);

/* ds_frame_recv: never blocks. ret_peer: filled for a ROUTER, NULL for a DEALER. DS_ETIMEOUT: nothing is
 * waiting. DS_EPROTO: a bad message was taken off the socket (ret_peer and f->id are set where known); go on
 * receiving. DS_EIO: the socket. */
ds_code ds_frame_recv(void *sock, ds_peer *ret_peer, ds_frame *f, ds_err *err);

/* An Envelope around one body, for sending: ds_frame_wrap(DSPARK__V1__ENVELOPE__BODY_DONE, &done). */
ds_pb_envelope ds_frame_wrap(Dspark__V1__Envelope__BodyCase kind, void *body);
const char *ds_frame_kind(const ds_pb_envelope *env); /* "submit", "tokens", ...; "none" */

typedef struct ds_stats_lists { /* room for the lists by position of one Stats */
    uint64_t draft_tokens[DS_MAX_DRAFT_TOKENS], accepted_tokens[DS_MAX_DRAFT_TOKENS];
    double calibration_error[DS_MAX_DRAFT_TOKENS], temperatures[DS_MAX_DRAFT_TOKENS];
} ds_stats_lists;
/* ds_frame_keep_stats: a Stats that outlives its frame: its lists by position move to `at`, at most
 * DS_MAX_DRAFT_TOKENS of each; `workers` are left out, `worker` is the frame's. */
void ds_frame_keep_stats(const ds_pb_stats *s, ds_pb_stats *ret, ds_stats_lists *at);

/* ds_utf8_valid: 1 when the n bytes are well-formed UTF-8 (no overlong form, surrogate, or value > U+10FFFF).
 */
int ds_utf8_valid(const char *s, size_t n);

#endif
