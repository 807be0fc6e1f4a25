/* fuzz_frame.c - hostile bytes through the frame decoder and all validators. What decodes must encode again,
 * to a frame that decodes to the same bytes. */
#include "proto/frame.h"
#include "proto/validate.h"

#include <stdlib.h>
#include <string.h>

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

static void judge(const ds_pb_envelope *env)
{
    ds_err err;
    ds_pb_caps caps = DSPARK__V1__CAPABILITIES__INIT;
    caps.vocab = 1000;
    caps.max_positions = 4096;
    caps.model = (char *)"m";
    switch (env->body_case) {
    case DSPARK__V1__ENVELOPE__BODY_SUBMIT:
        (void)ds_proto_validate_submit(env->submit, &caps, 1, &err);
        (void)ds_proto_validate_submit(env->submit, &caps, 0, &err);
        (void)ds_proto_validate_submit(env->submit, NULL, 0, &err);
        break;
    case DSPARK__V1__ENVELOPE__BODY_HELLO:
        (void)ds_proto_validate_hello(env->hello, "worker", &err);
        (void)ds_proto_validate_hello(env->hello, "client", &err);
        break;
    case DSPARK__V1__ENVELOPE__BODY_TOKENS:
        (void)ds_proto_validate_tokens(env->tokens, &caps, &err);
        break;
    default:
        break;
    }
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    ds_err err;
    ds_frame f = {0}, again = {0};
    ds_buf out = {0}, out2 = {0};
    if (ds_frame_decode(&f, data, size, &err) == DS_OK) {
        judge(f.env);
        if (ds_frame_encode(f.env, &out, &err) == DS_OK) {
            if (ds_frame_decode(&again, out.data, out.len, &err) != DS_OK ||
                ds_frame_encode(again.env, &out2, &err) != DS_OK || out.len != out2.len ||
                memcmp(out.data, out2.data, out.len) != 0)
                abort();
        }
    }
    ds_frame_clear(&f);
    ds_frame_clear(&again);
    ds_buf_free(&out);
    ds_buf_free(&out2);
    return 0;
}
