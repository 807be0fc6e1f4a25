/* frame.c - Envelope <-> bytes <-> ZeroMQ. See frame.h. No state of its own: any thread, one ds_frame each.
 */
#include "proto/frame.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <zmq.h>

struct ds_frame_chunk {
    struct ds_frame_chunk *next;
    size_t used, cap;
    max_align_t data[];
};

enum { CHUNK_BYTES = 16 << 10 };

/* ---- arena: protobuf-c allocates here and never frees; the whole arena goes at once ---- */

static size_t arena_bytes(const ds_frame *f)
{
    size_t sum = 0;
    for (const struct ds_frame_chunk *c = f->chunks; c; c = c->next)
        sum += c->cap;
    return sum;
}

static void *arena_alloc(void *ctx, size_t size)
{
    ds_frame *f = ctx;
    if (size > DS_MAX_FRAME_DECODED_BYTES)
        return NULL;
    size = (size + 15) & ~(size_t)15;
    struct ds_frame_chunk *c = f->chunks;
    if (!c || c->cap - c->used < size) {
        size_t have = arena_bytes(f), cap = have < CHUNK_BYTES ? CHUNK_BYTES : have;
        if (cap < size)
            cap = size;
        if (have + cap > DS_MAX_FRAME_DECODED_BYTES)
            cap = size;
        if (have + cap > DS_MAX_FRAME_DECODED_BYTES)
            return NULL;
        c = malloc(sizeof *c + cap);
        if (!c)
            return NULL;
        *c = (struct ds_frame_chunk){.next = f->chunks, .cap = cap};
        f->chunks = c;
    }
    void *p = (char *)c->data + c->used;
    c->used += size;
    return p;
}

static void arena_free(void *ctx, void *p)
{
    (void)ctx;
    (void)p;
}

/* Keeps one small chunk, so that a frame used again does not allocate in the usual case. */
static void arena_reset(ds_frame *f)
{
    struct ds_frame_chunk *c = f->chunks, *keep = NULL;
    while (c) {
        struct ds_frame_chunk *next = c->next;
        if (!keep && c->cap == CHUNK_BYTES) {
            keep = c;
            keep->next = NULL;
            keep->used = 0;
        } else {
            free(c);
        }
        c = next;
    }
    *f = (ds_frame){.chunks = keep};
}

void ds_frame_clear(ds_frame *f)
{
    arena_reset(f);
    free(f->chunks);
    f->chunks = NULL;
}

/* ---- the walk before decoding ---- */

int ds_utf8_valid(const char *s, size_t n)
{
    const unsigned char *p = (const unsigned char *)s, *end = p + n;
    while (p < end) {
        if (*p < 0x80) {
            p++;
            continue;
        }
        int more = *p >= 0xf0 ? 3 : *p >= 0xe0 ? 2 : 1;
        if (*p < 0xc2 || *p > 0xf4 || end - p <= more)
            return 0;
        if ((*p == 0xe0 && p[1] < 0xa0) || (*p == 0xed && p[1] > 0x9f) || (*p == 0xf0 && p[1] < 0x90) ||
            (*p == 0xf4 && p[1] > 0x8f))
            return 0;
        for (int i = 1; i <= more; i++)
            if ((p[i] & 0xc0) != 0x80)
                return 0;
        p += more + 1;
    }
    return 1;
}

static int take_varint(const uint8_t **p, const uint8_t *end, uint64_t *ret)
{
    uint64_t v = 0;
    for (int shift = 0; shift < 64 && *p < end; shift += 7) {
        uint8_t b = *(*p)++;
        v |= (uint64_t)(b & 0x7f) << shift;
        if (b < 0x80) {
            *ret = v;
            return 1;
        }
    }
    return 0;
}

typedef struct walk {
    ds_frame *f;
    ds_err *err;
} walk;

static ds_code walk_message(walk *w, const ProtobufCMessageDescriptor *d, const uint8_t *p, size_t n,
                            int depth);

static ds_code walk_bytes(walk *w, const ProtobufCFieldDescriptor *field, const uint8_t *p, size_t n,
                          int depth)
{
    if (!field)
        return DS_OK;
    if (field->type == PROTOBUF_C_TYPE_MESSAGE) {
        if (depth + 1 > DS_MAX_FRAME_DEPTH)
            return ds_err_field(w->err, DS_EPROTO, field->name, "frame is nested deeper than %d messages",
                                DS_MAX_FRAME_DEPTH);
        return walk_message(w, field->descriptor, p, n, depth + 1);
    }
    if (field->type == PROTOBUF_C_TYPE_STRING) {
        if (memchr(p, 0, n))
            return ds_err_field(w->err, DS_EPROTO, field->name, "%s holds a NUL byte", field->name);
        if (!ds_utf8_valid((const char *)p, n))
            return ds_err_field(w->err, DS_EPROTO, field->name, "%s is not valid UTF-8", field->name);
    }
    return DS_OK;
}

static ds_code walk_message(walk *w, const ProtobufCMessageDescriptor *d, const uint8_t *p, size_t n,
                            int depth)
{
    const uint8_t *end = p + n;
    while (p < end) {
        uint64_t key, v;
        if (!take_varint(&p, end, &key) || key >> 3 == 0 || key >> 3 > 536870911)
            return ds_err_set(w->err, DS_EPROTO, "frame has a malformed field key in %s", d->short_name);
        const ProtobufCFieldDescriptor *field =
            protobuf_c_message_descriptor_get_field(d, (unsigned)(key >> 3));
        switch (key & 7) {
        case 0:
            if (!take_varint(&p, end, &v))
                return ds_err_set(w->err, DS_EPROTO, "frame has a malformed number in %s", d->short_name);
            if (depth == 2 && key >> 3 == 1) /* every body that speaks of a request has its id in field 1 */
                w->f->id = v;
            break;
        case 1:
        case 5: {
            size_t skip = (key & 7) == 1 ? 8 : 4;
            if ((size_t)(end - p) < skip)
                return ds_err_set(w->err, DS_EPROTO, "frame is cut inside %s", d->short_name);
            p += skip;
            break;
        }
        case 2:
            if (!take_varint(&p, end, &v) || v > (uint64_t)(end - p))
                return ds_err_set(w->err, DS_EPROTO, "frame is cut inside %s", d->short_name);
            DS_TRY(walk_bytes(w, field, p, (size_t)v, depth));
            p += v;
            break;
        default:
            return ds_err_set(w->err, DS_EPROTO, "frame has wire type %d in %s", (int)(key & 7),
                              d->short_name);
        }
    }
    return DS_OK;
}

/* ---- decode, encode ---- */

ds_code ds_frame_decode(ds_frame *f, const void *p, size_t n, ds_err *err)
{
    arena_reset(f);
    if (n > DS_MAX_FRAME_BYTES)
        return ds_err_field(err, DS_EPROTO, "frame", "frame of %zu bytes, at most %d", n, DS_MAX_FRAME_BYTES);
    walk w = {f, err};
    DS_TRY(walk_message(&w, &dspark__v1__envelope__descriptor, p, n, 1));
    ProtobufCAllocator alloc = {arena_alloc, arena_free, f};
    ds_pb_envelope *env = dspark__v1__envelope__unpack(&alloc, n, p);
    if (!env)
        return ds_err_field(err, DS_EPROTO, "frame",
                            "frame of %zu bytes does not decode, or needs more than %d bytes", n,
                            DS_MAX_FRAME_DECODED_BYTES);
    if (env->version != DS_PROTO_VERSION)
        return ds_err_field(err, DS_EPROTO, "version", "protocol version %u, want %d", env->version,
                            DS_PROTO_VERSION);
    if (env->body_case == DSPARK__V1__ENVELOPE__BODY__NOT_SET)
        return ds_err_field(err, DS_EPROTO, "body", "frame has no body this version knows");
    f->env = env;
    return DS_OK;
}

static ds_code packed_size(const ds_pb_envelope *env, ds_pb_envelope *ret_env, size_t *ret, ds_err *err)
{
    *ret_env = *env;
    if (ret_env->version == 0)
        ret_env->version = DS_PROTO_VERSION;
    *ret = dspark__v1__envelope__get_packed_size(ret_env);
    if (*ret > DS_MAX_FRAME_BYTES)
        return ds_err_field(err, DS_ELIMIT, "frame", "%s frame of %zu bytes, at most %d", ds_frame_kind(env),
                            *ret, DS_MAX_FRAME_BYTES);
    return DS_OK;
}

ds_code ds_frame_encode(const ds_pb_envelope *env, ds_buf *out, ds_err *err)
{
    ds_pb_envelope e;
    size_t n;
    DS_TRY(packed_size(env, &e, &n, err));
    ds_code code = ds_buf_reserve(out, n);
    if (code != DS_OK)
        return ds_err_set(err, code, "no room for a frame of %zu bytes", n);
    dspark__v1__envelope__pack(&e, (uint8_t *)out->data + out->len);
    out->len += n;
    return DS_OK;
}

ds_pb_envelope ds_frame_wrap(Dspark__V1__Envelope__BodyCase kind, void *body)
{
    ds_pb_envelope env = DSPARK__V1__ENVELOPE__INIT;
    env.version = DS_PROTO_VERSION;
    env.body_case = kind;
    env.hello = body; /* all members of the union are pointers */
    return env;
}

const char *ds_frame_kind(const ds_pb_envelope *env)
{
    const ProtobufCFieldDescriptor *field =
        env->body_case == DSPARK__V1__ENVELOPE__BODY__NOT_SET
            ? NULL
            : protobuf_c_message_descriptor_get_field(&dspark__v1__envelope__descriptor, env->body_case);
    return field ? field->name : "none";
}

/* ---- sockets ---- */

static ds_code send_failed(int why, ds_err *err)
{
    if (why == EAGAIN)
        return ds_err_set(err, DS_ELIMIT, "the peer's send queue is full");
    if (why == EHOSTUNREACH)
        return ds_err_set(err, DS_ENOTFOUND, "the peer is gone");
    return ds_err_set(err, DS_EIO, "sending a frame: %s", zmq_strerror(why));
}

ds_code ds_frame_send(void *sock, const ds_peer *peer, const ds_pb_envelope *env, ds_err *err)
{
    ds_pb_envelope e;
    size_t n;
    DS_TRY(packed_size(env, &e, &n, err));
    zmq_msg_t msg;
    if (zmq_msg_init_size(&msg, n) != 0)
        return ds_err_set(err, DS_ENOMEM, "no memory for a frame of %zu bytes", n);
    dspark__v1__envelope__pack(&e, zmq_msg_data(&msg));
    if (peer && zmq_send(sock, peer->id, peer->len, ZMQ_SNDMORE | ZMQ_DONTWAIT) < 0) {
        int why = errno;
        zmq_msg_close(&msg);
        return send_failed(why, err);
    }
    if (zmq_msg_send(&msg, sock, ZMQ_DONTWAIT) < 0) {
        int why = errno;
        zmq_msg_close(&msg);
        return send_failed(why, err);
    }
    return DS_OK;
}

/* Takes the remaining parts of a message off the socket. */
static int drain_parts(void *sock, zmq_msg_t *msg)
{
    int parts = 0;
    while (zmq_msg_more(msg)) {
        zmq_msg_close(msg);
        zmq_msg_init(msg);
        if (zmq_msg_recv(msg, sock, ZMQ_DONTWAIT) < 0)
            break;
        parts++;
    }
    return parts;
}

static ds_code recv_part(void *sock, zmq_msg_t *msg, ds_err *err)
{
    while (zmq_msg_recv(msg, sock, ZMQ_DONTWAIT) < 0) {
        if (errno == EAGAIN)
            return DS_ETIMEOUT;
        if (errno != EINTR)
            return ds_err_set(err, DS_EIO, "receiving a frame: %s", zmq_strerror(errno));
    }
    return DS_OK;
}

ds_code ds_frame_recv(void *sock, ds_peer *ret_peer, ds_frame *f, ds_err *err)
{
    zmq_msg_t msg;
    arena_reset(f);
    zmq_msg_init(&msg);
    ds_code code = recv_part(sock, &msg, err);
    if (code == DS_OK && ret_peer) {
        size_t len = zmq_msg_size(&msg);
        ret_peer->len = len <= sizeof ret_peer->id ? (uint8_t)len : 0;
        memcpy(ret_peer->id, zmq_msg_data(&msg), ret_peer->len);
        if (!zmq_msg_more(&msg)) {
            zmq_msg_close(&msg);
            return ds_err_set(err, DS_EPROTO, "message without a frame");
        }
        code = recv_part(sock, &msg, err);
    }
    if (code == DS_OK) {
        code = ds_frame_decode(f, zmq_msg_data(&msg), zmq_msg_size(&msg), err);
        int extra = drain_parts(sock, &msg);
        if (extra > 0) {
            f->env = NULL;
            code = ds_err_set(err, DS_EPROTO, "message of %d parts, want one frame", extra + 1);
        }
    }
    zmq_msg_close(&msg);
    return code;
}

/* A list of 8-byte numbers. */
static size_t keep_list(const void *from, size_t n, void *to)
{
    n = n < DS_MAX_DRAFT_TOKENS ? n : DS_MAX_DRAFT_TOKENS;
    if (n)
        memcpy(to, from, n * 8);
    return n;
}

void ds_frame_keep_stats(const ds_pb_stats *s, ds_pb_stats *ret, ds_stats_lists *at)
{
    *ret = *s;
    ret->workers = NULL;
    ret->n_workers = 0;
    ret->draft_tokens_at = at->draft_tokens;
    ret->n_draft_tokens_at = keep_list(s->draft_tokens_at, s->n_draft_tokens_at, at->draft_tokens);
    ret->accepted_tokens_at = at->accepted_tokens;
    ret->n_accepted_tokens_at =
        keep_list(s->accepted_tokens_at, s->n_accepted_tokens_at, at->accepted_tokens);
    ret->calibration_error_at = at->calibration_error;
    ret->n_calibration_error_at =
        keep_list(s->calibration_error_at, s->n_calibration_error_at, at->calibration_error);
    ret->temperatures = at->temperatures;
    ret->n_temperatures = keep_list(s->temperatures, s->n_temperatures, at->temperatures);
}
