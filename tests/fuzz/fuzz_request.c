/* A request body through the door: JSON, the field table, then the validator with a Submit built from it. */
#include "daemon/params.h"
#include "proto/validate.h"

#include <stdint.h>
#include <stdlib.h>

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

static void judge(ds_params *p)
{
    int32_t *ids = NULL;
    int n = 0;
    ds_err err;
    if (p->n_prompts && json_is_array(p->prompt[0]) && ds_params_ids(p->prompt[0], "prompt", &ids, &n, &err))
        return;
    ds_pb_caps caps = DSPARK__V1__CAPABILITIES__INIT;
    caps.vocab = 1000;
    caps.max_positions = 4096;
    caps.prompt_logprobs = 1;
    ds_pb_submit s = DSPARK__V1__SUBMIT__INIT;
    s.id = 1;
    s.prompt_ids = ids;
    s.n_prompt_ids = (size_t)n;
    s.sampling = &p->sampling;
    s.speculation = &p->spec;
    p->sampling.max_tokens = p->max_tokens > 0 ? (uint32_t)p->max_tokens : 1;
    ds_proto_validate_submit(&s, &caps, 0, &err);
    free(ids);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    for (int api = DS_API_CHAT; api <= DS_API_COMPLETIONS; api++) {
        ds_params p;
        ds_err err = {0};
        if (ds_params_parse((ds_api)api, (const char *)data, size, &p, &err) == DS_OK) {
            judge(&p);
            ds_params_free(&p);
        } else if (!err.msg[0]) {
            abort(); /* every refusal says why */
        }
    }
    return 0;
}
