/* validate.c - see validate.h. Comparisons are written so that a NaN fails them. */
#include "proto/validate.h"

#include <inttypes.h>
#include <math.h>
#include <string.h>

/* Ranges of Sampling's floats; open_min: min itself is outside. */
typedef struct float_range {
    const char *name;
    size_t offset;
    float min, max;
    int open_min;
} float_range;

static const float_range g_floats[] = {
    {"temperature", offsetof(ds_pb_sampling, temperature), 0, 2, 0},
    {"top_p", offsetof(ds_pb_sampling, top_p), 0, 1, 1},
    {"min_p", offsetof(ds_pb_sampling, min_p), 0, 1, 0},
    {"presence_penalty", offsetof(ds_pb_sampling, presence_penalty), -2, 2, 0},
    {"frequency_penalty", offsetof(ds_pb_sampling, frequency_penalty), -2, 2, 0},
    {"repetition_penalty", offsetof(ds_pb_sampling, repetition_penalty), 0, 10, 1},
};

static ds_code check_floats(const ds_pb_sampling *s, ds_err *err)
{
    for (size_t i = 0; i < sizeof g_floats / sizeof g_floats[0]; i++) {
        const float_range *r = &g_floats[i];
        float v;
        memcpy(&v, (const char *)s + r->offset, sizeof v);
        if (!(v >= r->min && v <= r->max) || (r->open_min && v == r->min))
            return ds_err_field(err, DS_EINVAL, r->name, "%s is %g, must be in %c%g, %g]", r->name, (double)v,
                                r->open_min ? '(' : '[', (double)r->min, (double)r->max);
    }
    return DS_OK;
}

static ds_code check_int(const char *name, int64_t v, int64_t min, int64_t max, ds_err *err)
{
    if (v >= min && v <= max)
        return DS_OK;
    return ds_err_field(err, DS_EINVAL, name, "%s is %" PRId64 ", must be in [%" PRId64 ", %" PRId64 "]",
                        name, v, min, max);
}

static ds_code check_count(const char *name, size_t n, size_t max, ds_err *err)
{
    if (n <= max)
        return DS_OK;
    return ds_err_field(err, DS_EINVAL, name, "%s has %zu entries, at most %zu", name, n, max);
}

static ds_code check_ids(const char *name, const int32_t *id, size_t n, const ds_pb_caps *caps, ds_err *err)
{
    int64_t limit = caps && caps->vocab ? caps->vocab : (int64_t)INT32_MAX + 1;
    for (size_t i = 0; i < n; i++)
        if (id[i] < 0 || id[i] >= limit)
            return ds_err_field(err, DS_EINVAL, name, "%s[%zu] is %d, must be in [0, %" PRId64 "]", name, i,
                                id[i], limit - 1);
    return DS_OK;
}

static ds_code check_text(const char *name, const char *s, size_t min, size_t max, ds_err *err)
{
    size_t n = strlen(s);
    if (n < min)
        return ds_err_field(err, DS_EINVAL, name, "%s is empty", name);
    if (n > max)
        return ds_err_field(err, DS_EINVAL, name, "%s has %zu bytes, at most %zu", name, n, max);
    if (!ds_utf8_valid(s, n))
        return ds_err_field(err, DS_EINVAL, name, "%s is not valid UTF-8", name);
    return DS_OK;
}

static ds_code check_bias(const ds_pb_sampling *s, const ds_pb_caps *caps, ds_err *err)
{
    DS_TRY(check_count("logit_bias", s->n_logit_bias_id, DS_MAX_LOGIT_BIAS, err));
    if (s->n_logit_bias != s->n_logit_bias_id)
        return ds_err_field(err, DS_EINVAL, "logit_bias", "logit_bias has %zu values for %zu ids",
                            s->n_logit_bias, s->n_logit_bias_id);
    DS_TRY(check_ids("logit_bias_id", s->logit_bias_id, s->n_logit_bias_id, caps, err));
    for (size_t i = 0; i < s->n_logit_bias; i++)
        if (!(fabsf(s->logit_bias[i]) <= DS_MAX_BIAS_ABS))
            return ds_err_field(err, DS_EINVAL, "logit_bias", "logit_bias[%zu] is %g, must be in [%d, %d]", i,
                                (double)s->logit_bias[i], -DS_MAX_BIAS_ABS, DS_MAX_BIAS_ABS);
    return DS_OK;
}

static ds_code check_sampling(const ds_pb_sampling *s, const ds_pb_caps *caps, ds_err *err)
{
    DS_TRY(check_int("max_tokens", s->max_tokens, 1, DS_MAX_PROMPT_TOKENS, err));
    DS_TRY(check_int("min_tokens", s->min_tokens, 0, s->max_tokens, err));
    DS_TRY(check_floats(s, err));
    DS_TRY(check_int("top_k", s->top_k, 0, INT32_MAX, err));
    DS_TRY(check_bias(s, caps, err));
    DS_TRY(check_count("stop_token_ids", s->n_stop_token_ids, DS_MAX_STOP_TOKENS, err));
    DS_TRY(check_ids("stop_token_ids", s->stop_token_ids, s->n_stop_token_ids, caps, err));
    DS_TRY(check_int("logprobs", s->logprobs, -1, DS_MAX_TOP_LOGPROBS, err));
    DS_TRY(check_int("prompt_logprobs", s->prompt_logprobs, -1, DS_MAX_TOP_LOGPROBS, err));
    if (s->prompt_logprobs >= 0 && caps && caps->vocab && !caps->prompt_logprobs)
        return ds_err_field(err, DS_EUNSUPPORTED, "prompt_logprobs",
                            "prompt_logprobs are not offered by this model");
    return DS_OK;
}

static ds_code check_prompt(const ds_pb_submit *s, const ds_pb_caps *caps, int from_client, ds_err *err)
{
    int has_text = s->text && s->text[0];
    if (has_text && !from_client)
        return ds_err_field(err, DS_EINVAL, "text", "text is not taken here, only prompt_ids");
    if (has_text && s->n_prompt_ids)
        return ds_err_field(err, DS_EINVAL, "prompt_ids", "prompt_ids and text are both given");
    if (!has_text && !s->n_prompt_ids)
        return ds_err_field(err, DS_EINVAL, "prompt_ids", "prompt is empty");
    if (has_text)
        return check_text("text", s->text, 1, DS_MAX_FRAME_BYTES, err);
    DS_TRY(check_count("prompt_ids", s->n_prompt_ids, DS_MAX_PROMPT_TOKENS, err));
    if (caps && caps->max_positions && s->n_prompt_ids > caps->max_positions)
        return ds_err_field(err, DS_EINVAL, "prompt_ids", "prompt has %zu tokens, the model has %u positions",
                            s->n_prompt_ids, caps->max_positions);
    return check_ids("prompt_ids", s->prompt_ids, s->n_prompt_ids, caps, err);
}

/* Needs sampling to be checked before. */
static ds_code check_room(const ds_pb_submit *s, const ds_pb_caps *caps, ds_err *err)
{
    uint64_t last = (uint64_t)s->n_prompt_ids + s->sampling->max_tokens - 1;
    if (caps && caps->max_positions && last > caps->max_positions)
        return ds_err_field(err, DS_EINVAL, "max_tokens",
                            "prompt of %zu tokens plus max_tokens %u exceed the model's %u positions",
                            s->n_prompt_ids, s->sampling->max_tokens, caps->max_positions);
    if (s->n_output_ids >= s->sampling->max_tokens)
        return ds_err_field(err, DS_EINVAL, "output_ids",
                            "output_ids has %zu entries, must be below max_tokens %u", s->n_output_ids,
                            s->sampling->max_tokens);
    return DS_OK;
}

static ds_code check_client_fields(const ds_pb_submit *s, const ds_pb_caps *caps, int from_client,
                                   ds_err *err)
{
    if (from_client && s->n_output_ids)
        return ds_err_field(err, DS_EINVAL, "output_ids", "output_ids are not taken from clients");
    if (!from_client && (s->n_stop || s->want_text))
        return ds_err_field(err, DS_EINVAL, s->n_stop ? "stop" : "want_text",
                            "a worker speaks token ids only: no stop strings, no text");
    DS_TRY(check_count("stop", s->n_stop, DS_MAX_STOP_STRINGS, err));
    for (size_t i = 0; i < s->n_stop; i++)
        DS_TRY(check_text("stop", s->stop[i], 1, DS_MAX_STOP_BYTES, err));
    DS_TRY(check_text("user", s->user, 0, DS_MAX_USER_BYTES, err));
    DS_TRY(check_text("model", s->model, 0, DS_MAX_MODEL_BYTES, err));
    if (from_client && s->model[0] && caps && strcmp(s->model, caps->model) != 0)
        return ds_err_field(err, DS_ENOTFOUND, "model", "model '%s' is not served here", s->model);
    return DS_OK;
}

static ds_code check_speculation(const ds_pb_speculation *s, ds_err *err)
{
    if (!s)
        return DS_OK;
    DS_TRY(check_int("speculation.mode", s->mode, 0, DSPARK__V1__SPECULATION__MODE__MAX, err));
    return check_int("speculation.max_draft", s->max_draft, 0, DS_MAX_DRAFT_TOKENS, err);
}

ds_code ds_proto_validate_submit(const ds_pb_submit *s, const ds_pb_caps *caps, int from_client, ds_err *err)
{
    if (s->id == 0)
        return ds_err_field(err, DS_EINVAL, "id", "id is 0, must be positive");
    if (!s->sampling)
        return ds_err_field(err, DS_EINVAL, "sampling", "sampling is missing");
    DS_TRY(check_client_fields(s, caps, from_client, err));
    DS_TRY(check_prompt(s, caps, from_client, err));
    DS_TRY(check_ids("output_ids", s->output_ids, s->n_output_ids, caps, err));
    DS_TRY(check_sampling(s->sampling, caps, err));
    DS_TRY(check_room(s, caps, err));
    return check_speculation(s->speculation, err);
}

ds_code ds_proto_validate_hello(const ds_pb_hello *h, const char *role, ds_err *err)
{
    if (strcmp(h->role, role) != 0)
        return ds_err_field(err, DS_EPROTO, "role", "peer's role must be %s", role);
    if (check_text("name", h->name, 1, DS_MAX_NAME_BYTES, err) != DS_OK ||
        check_text("software", h->software, 0, DS_MAX_NAME_BYTES, err) != DS_OK ||
        check_int("heartbeat_ms", h->heartbeat_ms, 10, 60000, err) != DS_OK)
        return err ? (err->code = DS_EPROTO) : DS_EPROTO;
    if (strcmp(role, "worker") != 0)
        return DS_OK;
    const ds_pb_caps *c = h->capabilities;
    if (!c)
        return ds_err_field(err, DS_EPROTO, "capabilities", "a worker must bring its capabilities");
    if (check_text("model", c->model, 1, DS_MAX_MODEL_BYTES, err) != DS_OK ||
        check_text("arch", c->arch, 0, DS_MAX_NAME_BYTES, err) != DS_OK ||
        check_text("device", c->device, 0, DS_MAX_NAME_BYTES, err) != DS_OK ||
        check_int("vocab", c->vocab, 1, INT32_MAX, err) != DS_OK ||
        check_int("max_positions", c->max_positions, 1, INT32_MAX, err) != DS_OK ||
        check_int("max_seqs", c->max_seqs, 1, 1 << 16, err) != DS_OK ||
        check_int("max_queue", c->max_queue, 0, 1 << 16, err) != DS_OK ||
        check_count("eos", c->n_eos, DS_MAX_STOP_TOKENS, err) != DS_OK ||
        check_ids("eos", c->eos, c->n_eos, c, err) != DS_OK)
        return err ? (err->code = DS_EPROTO) : DS_EPROTO;
    return DS_OK;
}

ds_code ds_proto_validate_tokens(const ds_pb_tokens *t, const ds_pb_caps *caps, ds_err *err)
{
    int64_t limit = caps && caps->vocab ? caps->vocab : INT32_MAX;
    if (t->n_logprobs && t->n_logprobs != t->n_ids)
        return ds_err_field(err, DS_EPROTO, "logprobs", "Tokens has %zu logprobs for %zu ids", t->n_logprobs,
                            t->n_ids);
    if (t->n_accepted_draft && t->n_accepted_draft != t->n_ids)
        return ds_err_field(err, DS_EPROTO, "accepted_draft", "Tokens has %zu accepted_draft for %zu ids",
                            t->n_accepted_draft, t->n_ids);
    if ((t->n_source || t->n_draft_slot || t->n_draft_confidence) &&
        (t->n_source != t->n_ids || t->n_draft_slot != t->n_ids || t->n_draft_confidence != t->n_ids))
        return ds_err_field(err, DS_EPROTO, "source", "Tokens has provenance of %zu, %zu and %zu for %zu ids",
                            t->n_source, t->n_draft_slot, t->n_draft_confidence, t->n_ids);
    for (size_t i = 0; i < t->n_source; i++)
        if ((unsigned)t->source[i] > DSPARK__V1__TOKENS__SOURCE__BONUS ||
            t->draft_slot[i] > DS_MAX_DRAFT_TOKENS + 1 ||
            !(t->draft_confidence[i] >= 0 && t->draft_confidence[i] <= 1))
            return ds_err_field(err, DS_EPROTO, "source", "Tokens has provenance %d, slot %u, confidence %g",
                                (int)t->source[i], t->draft_slot[i], (double)t->draft_confidence[i]);
    for (size_t i = 0; i < t->n_ids; i++)
        if (t->ids[i] < 0 || t->ids[i] >= limit)
            return ds_err_field(err, DS_EPROTO, "ids", "token id %d outside [0, %" PRId64 "]", t->ids[i],
                                limit - 1);
    for (size_t i = 0; i < t->n_logprobs; i++) {
        const ds_pb_logprob *l = t->logprobs[i];
        if (l->n_top > DS_MAX_TOP_LOGPROBS)
            return ds_err_field(err, DS_EPROTO, "logprobs", "Tokens has %zu top logprobs, at most %d",
                                l->n_top, DS_MAX_TOP_LOGPROBS);
        for (size_t j = 0; j < l->n_top; j++)
            if (l->top[j]->id < 0 || l->top[j]->id >= limit)
                return ds_err_field(err, DS_EPROTO, "logprobs", "top token id %d outside [0, %" PRId64 "]",
                                    l->top[j]->id, limit - 1);
    }
    return DS_OK;
}
