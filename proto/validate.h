/* validate.h - one validator for every door: HTTP, internal RPC, and the worker check a request with the same
 * code and limits (a second door must not forget the first one's). Pure functions of their arguments. */
#ifndef DS_PROTO_VALIDATE_H
#define DS_PROTO_VALIDATE_H

#include "proto/frame.h"

/* ds_proto_validate_submit: ranges of proto/dspark.proto and base/limits.h. caps: of the worker or router
 * that will serve it, NULL when not known; a member that is 0 (no worker came yet) is not checked.
 * from_client 1: at the router, from HTTP or RPC: exactly one of text and prompt_ids, no output_ids; text may
 * still be of any length (validate again with from_client 0 when it is token ids).
 * from_client 0: towards and in the worker: token ids only; text, stop and want_text are refused.
 * Positions: prompt + max_tokens - 1 <= max_positions (the last token is never fed back).
 * Errors: DS_EINVAL, DS_ENOTFOUND (model), DS_EUNSUPPORTED; err->field is the proto field name. */
ds_code ds_proto_validate_submit(const ds_pb_submit *s, const ds_pb_caps *caps, int from_client, ds_err *err);
/* ds_proto_validate_hello: role is `role`, name and model lengths; a worker must bring sane capabilities. */
ds_code ds_proto_validate_hello(const ds_pb_hello *h, const char *role, ds_err *err);
/* ds_proto_validate_tokens: a worker's token ids are inside its vocabulary and its arrays agree. */
ds_code ds_proto_validate_tokens(const ds_pb_tokens *t, const ds_pb_caps *caps, ds_err *err);

#endif
