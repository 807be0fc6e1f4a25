/* test_proto.c - framing limits at the limit, hostile frames, the validator grid, the status table. */
#include "base/limits.h"
#include "proto/frame.h"
#include "proto/socket.h"
#include "proto/status.h"
#include "proto/validate.h"
#include "tests/lib/test.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>
#include <zmq.h>

#define BODY(kind) DSPARK__V1__ENVELOPE__BODY_##kind

/* ---- frames ---- */

DS_TEST(round_trip)
{
    int32_t ids[] = {1, 2, 300000};
    ds_pb_tokens t = DSPARK__V1__TOKENS__INIT;
    t.id = 7, t.index = 3, t.ids = ids, t.n_ids = 3;
    t.text = (char *)"h\xc3\xa9";
    ds_pb_envelope env = ds_frame_wrap(BODY(TOKENS), &t);
    CHECK_STR(ds_frame_kind(&env), "tokens");
    ds_buf b = {0};
    ds_err err = {0};
    ds_frame f = {0};
    CHECK_OK(ds_frame_encode(&env, &b, &err), err);
    for (int again = 0; again < 3; again++) {
        CHECK_OK(ds_frame_decode(&f, b.data, b.len, &err), err);
        CHECK_EQ(f.env->body_case, BODY(TOKENS));
        CHECK_EQ(f.id, 7);
        CHECK_EQ(f.env->tokens->n_ids, 3);
        CHECK_EQ(f.env->tokens->ids[2], 300000);
        CHECK_STR(f.env->tokens->text, "h\xc3\xa9");
    }
    ds_frame_clear(&f);
    ds_buf_free(&b);
}

static ds_code decode(const void *p, size_t n, ds_err *err)
{
    ds_frame f = {0};
    *err = (ds_err){0};
    ds_code code = ds_frame_decode(&f, p, n, err);
    CHECK((code == DS_OK) == (f.env != NULL));
    ds_frame_clear(&f);
    return code;
}

/* An Envelope whose Submit.text makes the frame exactly `bytes` long. */
static void text_frame(ds_buf *out, size_t bytes)
{
    ds_err err = {0};
    ds_pb_submit s = DSPARK__V1__SUBMIT__INIT;
    ds_pb_envelope env = ds_frame_wrap(BODY(SUBMIT), &s);
    char *text = malloc(bytes + 1);
    CHECK(text);
    size_t n = bytes - 32;
    for (;;) {
        memset(text, 'a', n);
        text[n] = 0;
        s.id = 5, s.text = text;
        size_t have = dspark__v1__envelope__get_packed_size(&env);
        if (have >= bytes)
            break;
        n += bytes - have;
    }
    CHECK_EQ(dspark__v1__envelope__get_packed_size(&env), bytes);
    if (bytes <= DS_MAX_FRAME_BYTES) {
        CHECK_OK(ds_frame_encode(&env, out, &err), err);
    } else {
        CHECK_EQ(ds_frame_encode(&env, out, &err), DS_ELIMIT);
        CHECK_STR(err.field, "frame");
        CHECK_EQ(ds_buf_reserve(out, bytes), DS_OK);
        dspark__v1__envelope__pack(&env, (uint8_t *)out->data);
        out->len = bytes;
    }
    free(text);
}

DS_TEST(size_limit)
{
    ds_err err;
    for (int over = 0; over <= 1; over++) {
        ds_buf b = {0};
        text_frame(&b, DS_MAX_FRAME_BYTES + (size_t)over);
        CHECK_EQ(decode(b.data, b.len, &err), over ? DS_EPROTO : DS_OK);
        ds_buf_free(&b);
    }
    CHECK(strstr(err.msg, "8388608"));
}

DS_TEST(version_and_body)
{
    ds_err err;
    ds_pb_cancel c = DSPARK__V1__CANCEL__INIT;
    ds_pb_envelope env = ds_frame_wrap(BODY(CANCEL), &c);
    env.version = 2;
    ds_buf b = {0};
    CHECK_OK(ds_frame_encode(&env, &b, &err), err);
    CHECK_EQ(decode(b.data, b.len, &err), DS_EPROTO);
    CHECK_STR(err.field, "version");
    CHECK_EQ(decode("\x08\x01", 2, &err), DS_EPROTO);
    CHECK_STR(err.field, "body");
    CHECK_EQ(decode("", 0, &err), DS_EPROTO);
    ds_buf_free(&b);
}

/* Stats nests in itself: an unlimited decoder would overflow its stack. */
static size_t nested_stats(uint8_t *out, size_t cap, int depth)
{
    size_t at = cap, len = 0;
    for (int d = 0; d < depth; d++) {
        uint8_t head[16];
        size_t n = 0, v = len;
        if (d + 1 < depth) {
            head[n++] = 0x8a, head[n++] = 0x01; /* workers = 17 */
        } else {
            head[n++] = 0x08, head[n++] = 0x01, head[n++] = 0x52; /* version 1, stats = 10 */
        }
        do {
            head[n++] = (uint8_t)(v | 0x80);
            v >>= 7;
        } while (v);
        head[n - 1] &= 0x7f;
        CHECK(at >= n);
        at -= n;
        memcpy(out + at, head, n);
        len += n;
    }
    memmove(out, out + at, len);
    return len;
}

DS_TEST(depth_limit)
{
    ds_err err;
    uint8_t *p = malloc(DS_MAX_FRAME_BYTES);
    CHECK(p);
    size_t n = nested_stats(p, DS_MAX_FRAME_BYTES, DS_MAX_FRAME_DEPTH - 1);
    CHECK_EQ(decode(p, n, &err), DS_OK);
    n = nested_stats(p, DS_MAX_FRAME_BYTES, DS_MAX_FRAME_DEPTH);
    CHECK_EQ(decode(p, n, &err), DS_EPROTO);
    n = nested_stats(p, DS_MAX_FRAME_BYTES, 1000000);
    CHECK_EQ(decode(p, n, &err), DS_EPROTO);
    CHECK(strstr(err.msg, "nested"));
    free(p);
}

/* 8 MiB of empty TokenLogprob messages would take hundreds of MiB decoded. */
DS_TEST(memory_limit)
{
    ds_err err;
    size_t n = DS_MAX_FRAME_BYTES;
    uint8_t *p = malloc(n);
    CHECK(p);
    size_t body = (n - 8) & ~(size_t)1;
    uint8_t head[] = {0x08, 0x01, 0x22, 0, 0, 0, 0};
    for (int i = 0; i < 4; i++)
        head[3 + i] = (uint8_t)((body >> (7 * i) & 0x7f) | (i < 3 ? 0x80 : 0));
    memcpy(p, head, sizeof head);
    for (size_t i = 0; i < body; i += 2)
        p[7 + i] = 0x22, p[8 + i] = 0;
    CHECK_EQ(decode(p, body + 7, &err), DS_EPROTO);
    free(p);
}

DS_TEST(hostile_bytes)
{
    ds_err err;
    static const struct {
        const char *bytes;
        size_t n;
    } bad[] = {
        {"\x08", 1},                                              /* cut varint */
        {"\x08\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff\x01", 12}, /* varint of 11 bytes */
        {"\x08\x01\x1a\x7f", 4},                                  /* length beyond the end */
        {"\x08\x01\x1b", 3},                                      /* group */
        {"\x08\x01\x00", 3},                                      /* field number 0 */
        {"\x08\x01\x1a\x03\x1a\x01\xff", 7},                      /* Submit.text not UTF-8 */
        {"\x08\x01\x1a\x03\x1a\x01\x00", 7},                      /* Submit.text holds NUL */
        {"\x08\x01\x12\x04\x0a\x02\xc0\xaf", 8},                  /* Hello.role overlong */
        {"\x08\x01\x1a\x02\x12\x80", 6},                          /* cut packed ids */
    };
    for (size_t i = 0; i < sizeof bad / sizeof bad[0]; i++)
        CHECK_MSG(decode(bad[i].bytes, bad[i].n, &err) == DS_EPROTO, "case %zu accepted", i);
    ds_frame f = {0}; /* the id is known although the text is not taken */
    CHECK_EQ(ds_frame_decode(&f, "\x08\x01\x1a\x05\x08\x09\x1a\x01\x00", 9, &err), DS_EPROTO);
    CHECK_EQ(f.id, 9);
    CHECK_STR(err.field, "text");
    ds_frame_clear(&f);
    CHECK(ds_utf8_valid("\xf4\x8f\xbf\xbf", 4) && !ds_utf8_valid("\xf4\x90\x80\x80", 4));
    CHECK(!ds_utf8_valid("\xed\xa0\x80", 3) && !ds_utf8_valid("\xe2\x82", 2) && ds_utf8_valid("", 0));
}

/* ---- sockets ---- */

DS_TEST(router_dealer)
{
    ds_err err = {0};
    char dir[] = P_tmpdir "/dspark-proto-XXXXXX", endpoint[128];
    CHECK(mkdtemp(dir));
    snprintf(endpoint, sizeof endpoint, "ipc://%s/s", dir);
    void *zctx = zmq_ctx_new(), *router, *second, *dealer;
    int lock, lock2;
    CHECK_OK(ds_sock_router(zctx, &router, &err), err);
    CHECK_OK(ds_sock_router(zctx, &second, &err), err);
    CHECK_OK(ds_sock_dealer(zctx, &dealer, &err), err);
    CHECK_OK(ds_sock_bind(router, endpoint, &lock, &err), err);
    CHECK_EQ(ds_sock_bind(second, endpoint, &lock2, &err), DS_ELIMIT); /* never takes a live endpoint over */
    CHECK_EQ(ds_sock_bind(second, "nonsense", &lock2, &err), DS_EINVAL);
    CHECK_OK(ds_sock_connect(dealer, endpoint, &err), err);

    ds_pb_heartbeat hb = DSPARK__V1__HEARTBEAT__INIT;
    hb.seq = 42;
    ds_pb_envelope env = ds_frame_wrap(BODY(HEARTBEAT), &hb);
    ds_code code = DS_ELIMIT;
    for (int i = 0; i < 500 && code != DS_OK; i++, usleep(10000))
        code = ds_frame_send(dealer, NULL, &env, &err); /* IMMEDIATE: refused until connected */
    CHECK_EQ(code, DS_OK);
    zmq_send(dealer, "junk", 4, 0);
    zmq_send(dealer, "a", 1, ZMQ_SNDMORE);
    zmq_send(dealer, "b", 1, 0);
    ds_frame f = {0};
    ds_peer peer = {0};
    zmq_pollitem_t item = {router, 0, ZMQ_POLLIN, 0};
    CHECK(zmq_poll(&item, 1, 5000) == 1);
    CHECK_OK(ds_frame_recv(router, &peer, &f, &err), err);
    CHECK_EQ(f.env->heartbeat->seq, 42);
    CHECK(peer.len > 0);
    for (int i = 0; i < 2; i++) {
        CHECK(zmq_poll(&item, 1, 5000) == 1);
        CHECK_EQ(ds_frame_recv(router, &peer, &f, &err), DS_EPROTO);
    }
    CHECK_EQ(ds_frame_recv(router, &peer, &f, &err), DS_ETIMEOUT);
    CHECK_OK(ds_frame_send(router, &peer, &env, &err), err);
    item.socket = dealer;
    CHECK(zmq_poll(&item, 1, 5000) == 1);
    CHECK_OK(ds_frame_recv(dealer, NULL, &f, &err), err);
    ds_peer nobody = {3, "xyz"};
    CHECK_EQ(ds_frame_send(router, &nobody, &env, &err), DS_ENOTFOUND);
    ds_frame_clear(&f);
    zmq_close(dealer), zmq_close(second), zmq_close(router);
    zmq_ctx_term(zctx);
    close(lock);
    char path[160];
    snprintf(path, sizeof path, "%s/s.lock", dir);
    unlink(path);
    snprintf(path, sizeof path, "%s/s", dir);
    unlink(path);
    CHECK_EQ(rmdir(dir), 0);
}

/* ---- validator ---- */

typedef struct sample {
    ds_pb_submit s;
    ds_pb_sampling sam;
    ds_pb_speculation spec;
    ds_pb_caps caps;
    int32_t ids[4];
} sample;

static void good(sample *x)
{
    *x = (sample){DSPARK__V1__SUBMIT__INIT,
                  DSPARK__V1__SAMPLING__INIT,
                  DSPARK__V1__SPECULATION__INIT,
                  DSPARK__V1__CAPABILITIES__INIT,
                  {0, 1, 99, 5}};
    x->caps.vocab = 100, x->caps.max_positions = 64, x->caps.model = (char *)"m";
    x->caps.prompt_logprobs = 1;
    x->s.id = 1, x->s.prompt_ids = x->ids, x->s.n_prompt_ids = 4, x->s.sampling = &x->sam;
    x->s.speculation = &x->spec;
    x->sam.max_tokens = 8, x->sam.top_p = 1, x->sam.repetition_penalty = 1, x->sam.temperature = 1;
    x->sam.logprobs = x->sam.prompt_logprobs = -1;
}

static const char *verdict(const sample *x, int from_client)
{
    static ds_err err;
    err = (ds_err){0};
    ds_code code = ds_proto_validate_submit(&x->s, &x->caps, from_client, &err);
    return code == DS_OK ? "ok" : err.field;
}

DS_TEST(float_grid)
{
    sample x;
    good(&x);
    const struct {
        const char *name;
        float *field, bad_low, min, max, bad_high;
    } grid[] = {
        {"temperature", &x.sam.temperature, -0.001f, 0, 2, 2.001f},
        {"top_p", &x.sam.top_p, 0, 1e-6f, 1, 1.001f},
        {"min_p", &x.sam.min_p, -0.001f, 0, 1, 1.001f},
        {"presence_penalty", &x.sam.presence_penalty, -2.001f, -2, 2, 2.001f},
        {"frequency_penalty", &x.sam.frequency_penalty, -2.001f, -2, 2, 2.001f},
        {"repetition_penalty", &x.sam.repetition_penalty, 0, 1e-3f, 10, 10.01f},
    };
    for (size_t i = 0; i < sizeof grid / sizeof grid[0]; i++) {
        float keep = *grid[i].field;
        const float ok[] = {grid[i].min, grid[i].max};
        const float bad[] = {grid[i].bad_low, grid[i].bad_high, NAN, -NAN, INFINITY, -INFINITY};
        for (size_t j = 0; j < 2; j++) {
            *grid[i].field = ok[j];
            CHECK_STR(verdict(&x, 1), "ok");
        }
        for (size_t j = 0; j < 6; j++) {
            *grid[i].field = bad[j];
            CHECK_STR(verdict(&x, 1), grid[i].name);
            CHECK_STR(verdict(&x, 0), grid[i].name);
        }
        *grid[i].field = keep;
    }
}

DS_TEST(int_grid)
{
    sample x;
    good(&x);
    x.caps.max_positions = 0; /* positions have their own case */
    const struct {
        const char *name;
        void *field;
        int64_t bad_low, min, max, bad_high; /* bad_low == min, bad_high == max: no such bound */
    } grid[] = {
        {"max_tokens", &x.sam.max_tokens, 0, 1, DS_MAX_PROMPT_TOKENS, DS_MAX_PROMPT_TOKENS + 1},
        {"min_tokens", &x.sam.min_tokens, 0, 0, 8, 9},
        {"top_k", &x.sam.top_k, -1, 0, INT32_MAX, INT32_MAX},
        {"logprobs", &x.sam.logprobs, -2, -1, DS_MAX_TOP_LOGPROBS, DS_MAX_TOP_LOGPROBS + 1},
        {"prompt_logprobs", &x.sam.prompt_logprobs, -2, -1, DS_MAX_TOP_LOGPROBS, DS_MAX_TOP_LOGPROBS + 1},
        {"speculation.mode", &x.spec.mode, -1, 0, 2, 3},
        {"speculation.max_draft", &x.spec.max_draft, 0, 0, DS_MAX_DRAFT_TOKENS, DS_MAX_DRAFT_TOKENS + 1},
    };
    for (size_t i = 0; i < sizeof grid / sizeof grid[0]; i++) {
        int32_t keep, v;
        memcpy(&keep, grid[i].field, 4);
        const int64_t value[] = {grid[i].min, grid[i].max, grid[i].bad_low, grid[i].bad_high, UINT32_MAX};
        for (int j = 0; j < 5; j++) {
            v = (int32_t)value[j];
            memcpy(grid[i].field, &v, 4);
            int inside = value[j] >= grid[i].min && value[j] <= grid[i].max;
            if (value[j] == UINT32_MAX && (grid[i].min == -1)) /* -1 as int32 */
                inside = 1;
            CHECK_STR(verdict(&x, 1), inside ? "ok" : grid[i].name);
        }
        memcpy(grid[i].field, &keep, 4);
    }
}

DS_TEST(ids_and_counts)
{
    sample x;
    static int32_t many[DS_MAX_PROMPT_TOKENS + 1];
    static float bias[DS_MAX_LOGIT_BIAS + 1];
    const int32_t bad[] = {-1, 100, INT32_MIN, INT32_MAX};
    for (int i = 0; i < 4; i++) {
        good(&x), x.ids[2] = bad[i];
        CHECK_STR(verdict(&x, 1), "prompt_ids");
        good(&x), many[0] = bad[i];
        x.sam.stop_token_ids = many, x.sam.n_stop_token_ids = 1;
        CHECK_STR(verdict(&x, 1), "stop_token_ids");
        good(&x), x.sam.logit_bias_id = many, x.sam.n_logit_bias_id = 1;
        x.sam.logit_bias = bias, x.sam.n_logit_bias = 1;
        CHECK_STR(verdict(&x, 1), "logit_bias_id");
        good(&x), x.s.output_ids = many, x.s.n_output_ids = 1;
        CHECK_STR(verdict(&x, 0), "output_ids");
    }
    many[0] = 0;
    for (size_t over = 0; over <= 1; over++) {
        good(&x), x.sam.stop_token_ids = many, x.sam.n_stop_token_ids = DS_MAX_STOP_TOKENS + over;
        CHECK_STR(verdict(&x, 1), over ? "stop_token_ids" : "ok");
        good(&x), x.sam.logit_bias_id = many, x.sam.logit_bias = bias;
        x.sam.n_logit_bias = x.sam.n_logit_bias_id = DS_MAX_LOGIT_BIAS + over;
        CHECK_STR(verdict(&x, 1), over ? "logit_bias" : "ok");
        good(&x), x.caps.max_positions = 0, x.s.prompt_ids = many;
        x.s.n_prompt_ids = DS_MAX_PROMPT_TOKENS + over;
        CHECK_STR(verdict(&x, 1), over ? "prompt_ids" : "ok");
        good(&x), x.sam.max_tokens = 61 + (uint32_t)over; /* 4 + 61 - 1 = 64 positions */
        CHECK_STR(verdict(&x, 1), over ? "max_tokens" : "ok");
        good(&x), x.s.prompt_ids = many, x.s.n_prompt_ids = 64 + over, x.sam.max_tokens = 1;
        CHECK_STR(verdict(&x, 1), over ? "prompt_ids" : "ok");
        good(&x), x.s.output_ids = many, x.s.n_output_ids = 7 + over;
        CHECK_STR(verdict(&x, 0), over ? "output_ids" : "ok");
    }
    const float values[] = {-100, 100, 100.1f, -100.1f, NAN, INFINITY, -INFINITY};
    for (int i = 0; i < 7; i++) {
        good(&x), x.sam.logit_bias_id = many, x.sam.n_logit_bias_id = 1;
        bias[0] = values[i], x.sam.logit_bias = bias, x.sam.n_logit_bias = 1;
        CHECK_STR(verdict(&x, 1), i < 2 ? "ok" : "logit_bias");
    }
    good(&x), x.sam.logit_bias_id = many, x.sam.n_logit_bias_id = 1;
    CHECK_STR(verdict(&x, 1), "logit_bias"); /* an id without a value */
}

DS_TEST(strings_and_doors)
{
    sample x;
    char longest[DS_MAX_STOP_BYTES + 2];
    char *stops[DS_MAX_STOP_STRINGS + 1];
    memset(longest, 'x', sizeof longest);
    longest[DS_MAX_STOP_BYTES] = 0;
    for (int i = 0; i <= DS_MAX_STOP_STRINGS; i++)
        stops[i] = longest;
    good(&x), x.s.stop = stops, x.s.n_stop = DS_MAX_STOP_STRINGS;
    CHECK_STR(verdict(&x, 1), "ok");
    CHECK_STR(verdict(&x, 0), "stop");
    x.s.n_stop++;
    CHECK_STR(verdict(&x, 1), "stop");
    x.s.n_stop = 1;
    stops[0] = (char *)"";
    CHECK_STR(verdict(&x, 1), "stop");
    stops[0] = (char *)"\xff";
    CHECK_STR(verdict(&x, 1), "stop");
    longest[DS_MAX_STOP_BYTES] = 'x', longest[DS_MAX_STOP_BYTES + 1] = 0, stops[0] = longest;
    CHECK_STR(verdict(&x, 1), "stop");
    longest[DS_MAX_USER_BYTES] = 0;
    good(&x), x.s.user = longest;
    CHECK_STR(verdict(&x, 1), "ok");
    longest[DS_MAX_USER_BYTES] = 'x', longest[DS_MAX_USER_BYTES + 1] = 0;
    CHECK_STR(verdict(&x, 1), "user");

    good(&x), x.s.model = (char *)"m";
    CHECK_STR(verdict(&x, 1), "ok");
    x.s.model = (char *)"other";
    CHECK_STR(verdict(&x, 1), "model");
    good(&x), x.s.text = (char *)"hi";
    CHECK_STR(verdict(&x, 1), "prompt_ids"); /* both */
    x.s.n_prompt_ids = 0;
    CHECK_STR(verdict(&x, 1), "ok");
    CHECK_STR(verdict(&x, 0), "text");
    x.s.text = (char *)"";
    CHECK_STR(verdict(&x, 1), "prompt_ids"); /* neither */
    good(&x), x.s.output_ids = x.ids, x.s.n_output_ids = 1;
    CHECK_STR(verdict(&x, 1), "output_ids");
    CHECK_STR(verdict(&x, 0), "ok");
    good(&x), x.s.want_text = 1;
    CHECK_STR(verdict(&x, 0), "want_text");
    good(&x), x.s.id = 0;
    CHECK_STR(verdict(&x, 1), "id");
    good(&x), x.s.sampling = NULL;
    CHECK_STR(verdict(&x, 1), "sampling");
    good(&x), x.caps.prompt_logprobs = 0, x.sam.prompt_logprobs = 0;
    CHECK_STR(verdict(&x, 1), "prompt_logprobs");
    CHECK_EQ(ds_proto_validate_submit(&x.s, NULL, 1, NULL), DS_OK);
}

DS_TEST(hello_and_tokens)
{
    ds_err err = {0};
    sample x;
    good(&x);
    ds_pb_hello h = DSPARK__V1__HELLO__INIT;
    h.role = (char *)"worker", h.name = (char *)"w", h.heartbeat_ms = 250;
    CHECK_EQ(ds_proto_validate_hello(&h, "worker", &err), DS_EPROTO);
    CHECK_STR(err.field, "capabilities");
    x.caps.max_seqs = 4;
    h.capabilities = &x.caps;
    CHECK_OK(ds_proto_validate_hello(&h, "worker", &err), err);
    CHECK_EQ(ds_proto_validate_hello(&h, "client", &err), DS_EPROTO);
    h.name = (char *)"";
    CHECK_EQ(ds_proto_validate_hello(&h, "worker", &err), DS_EPROTO);
    CHECK_EQ(err.code, DS_EPROTO);

    ds_pb_tokens t = DSPARK__V1__TOKENS__INIT;
    t.ids = x.ids, t.n_ids = 4;
    CHECK_OK(ds_proto_validate_tokens(&t, &x.caps, &err), err);
    x.ids[3] = 100;
    CHECK_EQ(ds_proto_validate_tokens(&t, &x.caps, &err), DS_EPROTO);
    x.ids[3] = -1;
    CHECK_EQ(ds_proto_validate_tokens(&t, &x.caps, &err), DS_EPROTO);
    ds_pb_logprob lp = DSPARK__V1__TOKEN_LOGPROB__INIT, *lps[] = {&lp};
    t.n_ids = 2, t.logprobs = lps, t.n_logprobs = 1;
    CHECK_EQ(ds_proto_validate_tokens(&t, &x.caps, &err), DS_EPROTO);
}

DS_TEST(provenance_of_tokens)
{
    int32_t ids[2] = {1, 2};
    Dspark__V1__Tokens__Source source[2] = {DSPARK__V1__TOKENS__SOURCE__ACCEPTED,
                                            DSPARK__V1__TOKENS__SOURCE__BONUS};
    uint32_t slot[2] = {1, 2};
    float confidence[2] = {.5f, 0};
    ds_pb_tokens t = DSPARK__V1__TOKENS__INIT;
    ds_err err = {0};
    t.ids = ids, t.source = source, t.draft_slot = slot, t.draft_confidence = confidence;
    t.n_ids = t.n_source = t.n_draft_slot = t.n_draft_confidence = 2;
    CHECK_OK(ds_proto_validate_tokens(&t, NULL, &err), err);
    t.n_draft_slot = 1;
    CHECK_EQ(ds_proto_validate_tokens(&t, NULL, &err), DS_EPROTO);
    t.n_draft_slot = 2;
    slot[1] = DS_MAX_DRAFT_TOKENS + 2;
    CHECK_EQ(ds_proto_validate_tokens(&t, NULL, &err), DS_EPROTO);
    slot[1] = 2;
    confidence[0] = NAN;
    CHECK_EQ(ds_proto_validate_tokens(&t, NULL, &err), DS_EPROTO);
    confidence[0] = 1.5f;
    CHECK_EQ(ds_proto_validate_tokens(&t, NULL, &err), DS_EPROTO);
    confidence[0] = 1;
    source[1] = (Dspark__V1__Tokens__Source)4;
    CHECK_EQ(ds_proto_validate_tokens(&t, NULL, &err), DS_EPROTO);
}

DS_TEST(status_table)
{
    CHECK_EQ(ds_status_of(DS_EINVAL)->http, 400);
    CHECK_EQ(ds_status_of(DS_ELIMIT)->http, 429);
    CHECK(ds_status_of(DS_ELIMIT)->retry_after_ms > 0);
    CHECK_EQ(ds_status_of(DS_EDRAINING)->http, 503);
    CHECK_EQ(ds_status_of((ds_code)12345)->code, DS_EBUG);
    for (uint32_t c = 1; c < 60; c++)
        if (ds_status_of((ds_code)c)->code == (ds_code)c)
            CHECK_EQ(ds_status_from_wire(c), c);
        else
            CHECK_EQ(ds_status_from_wire(c), c == DS_EBUG ? DS_EBUG : DS_EPROTO);
    CHECK_EQ(ds_status_from_wire(0), DS_EPROTO);
    CHECK_EQ(ds_status_from_wire(UINT32_MAX), DS_EPROTO);
}
