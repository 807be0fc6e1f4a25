#include "worker/request.h"

#include <math.h>
#include <stddef.h>

static ds_code check_ids(const char *field, const int32_t *id, int n, int vocab, ds_err *err)
{
    for (int i = 0; i < n; i++)
        if (id[i] < 0 || id[i] >= vocab)
            return ds_err_field(err, DS_EINVAL, field, "%s[%d] is %d, must be a token id 0..%d", field, i,
                                id[i], vocab - 1);
    return DS_OK;
}

static ds_code check_int(const char *field, int64_t v, int64_t min, int64_t max, ds_err *err)
{
    if (v < min || v > max)
        return ds_err_field(err, DS_EINVAL, field, "%s is %lld, must be %lld..%lld", field, (long long)v,
                            (long long)min, (long long)max);
    return DS_OK;
}

static ds_code check_float(const char *field, float v, float min, float max, ds_err *err)
{
    if (!(v >= min && v <= max)) /* NaN fails too */
        return ds_err_field(err, DS_EINVAL, field, "%s is %g, must be %g..%g", field, (double)v, (double)min,
                            (double)max);
    return DS_OK;
}

static ds_code check_open(const char *field, float v, float max, ds_err *err)
{
    if (!(v > 0.0f && v <= max))
        return ds_err_field(err, DS_EINVAL, field, "%s is %g, must be above 0 and at most %g", field,
                            (double)v, (double)max);
    return DS_OK;
}

static ds_code check_lengths(const ds_req *r, int max_len, ds_err *err)
{
    DS_TRY(check_int("prompt_ids", r->n_prompt, 1, DS_MAX_PROMPT_TOKENS, err));
    DS_TRY(check_int("max_tokens", r->max_tokens, 1, INT32_MAX, err));
    DS_TRY(check_int("min_tokens", r->min_tokens, 0, r->max_tokens, err));
    DS_TRY(check_int("output_ids", r->n_output, 0, r->max_tokens, err));
    if (r->n_prompt > max_len)
        return ds_err_field(err, DS_EINVAL, "prompt_ids", "the prompt has %d tokens, at most %d fit here",
                            r->n_prompt, max_len);
    if (r->n_output > max_len + 1 - r->n_prompt)
        return ds_err_field(err, DS_EINVAL, "output_ids",
                            "prompt and output have %d + %d tokens, at most %d fit here", r->n_prompt,
                            r->n_output, max_len + 1);
    return DS_OK;
}

ds_code ds_req_validate(const ds_req *r, int vocab, int max_len, ds_err *err)
{
    DS_TRY(check_lengths(r, max_len, err));
    DS_TRY(check_ids("prompt_ids", r->prompt, r->n_prompt, vocab, err));
    DS_TRY(check_ids("output_ids", r->output, r->n_output, vocab, err));
    DS_TRY(check_float("temperature", r->temperature, 0.0f, 2.0f, err));
    DS_TRY(check_open("top_p", r->top_p, 1.0f, err));
    DS_TRY(check_float("min_p", r->min_p, 0.0f, 1.0f, err));
    DS_TRY(check_int("top_k", r->top_k, 0, INT32_MAX, err));
    DS_TRY(check_open("repetition_penalty", r->repetition, 10.0f, err));
    DS_TRY(check_float("presence_penalty", r->presence, -2.0f, 2.0f, err));
    DS_TRY(check_float("frequency_penalty", r->frequency, -2.0f, 2.0f, err));
    DS_TRY(check_int("logprobs", r->n_logprobs, -1, DS_MAX_TOP_LOGPROBS, err));
    DS_TRY(check_int("prompt_logprobs", r->prompt_logprobs, -1, DS_MAX_TOP_LOGPROBS, err));
    DS_TRY(check_int("stop_token_ids", r->n_stop_id, 0, DS_MAX_STOP_TOKENS, err));
    DS_TRY(check_ids("stop_token_ids", r->stop_id, r->n_stop_id, vocab, err));
    DS_TRY(check_int("logit_bias", r->n_bias, 0, DS_MAX_LOGIT_BIAS, err));
    DS_TRY(check_ids("logit_bias", r->bias_id, r->n_bias, vocab, err));
    for (int i = 0; i < r->n_bias; i++)
        if (isnan(r->bias[i]) || r->bias[i] == INFINITY)
            return ds_err_field(err, DS_EINVAL, "logit_bias",
                                "logit_bias of token %d is %g, must be finite or -inf", r->bias_id[i],
                                (double)r->bias[i]);
    return DS_OK;
}
