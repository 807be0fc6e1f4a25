/* config.c - reads and checks config.json and generation_config.json. Owner: the thread that opens the model.
 * All numbers pass through get_int / get_real, which hold the ranges; nothing else trusts the file. */
#include "worker/model/config.h"
#include "base/limits.h"
#include "base/log.h"

#include <errno.h>
#include <fcntl.h>
#include <jansson.h>
#include <limits.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>
#include <strings.h>
#include <sys/stat.h>
#include <unistd.h>

static const char CONFIG[] = "config.json", GENERATION[] = "generation_config.json";

static json_t *get(const json_t *o, const char *key)
{
    json_t *v = json_object_get(o, key);
    return v && !json_is_null(v) ? v : NULL;
}

/* get_int: def is used when the key is absent or null; def < min means that it must be there. */
static ds_code get_int(const char *file, const json_t *o, const char *key, int min, int max, int def,
                       int *ret, ds_err *err)
{
    const json_t *v = get(o, key);
    if (!v) {
        *ret = def;
        if (def < min)
            return ds_err_field(err, DS_ECORRUPT, key, "%s: '%s' is missing", file, key);
        return DS_OK;
    }
    if (!json_is_integer(v))
        return ds_err_field(err, DS_ECORRUPT, key, "%s: '%s' must be an integer", file, key);
    long long x = json_integer_value(v);
    if (x < min || x > max)
        return ds_err_field(err, DS_ECORRUPT, key, "%s: '%s' is %lld, must be %d..%d", file, key, x, min,
                            max);
    *ret = (int)x;
    return DS_OK;
}

/* get_real: *ret keeps its value when the key is absent or null. */
static ds_code get_real(const char *file, const json_t *o, const char *key, double min, double max,
                        double *ret, ds_err *err)
{
    const json_t *v = get(o, key);
    if (!v)
        return DS_OK;
    if (!json_is_number(v))
        return ds_err_field(err, DS_ECORRUPT, key, "%s: '%s' must be a number", file, key);
    double x = json_number_value(v);
    if (!(x >= min && x <= max))
        return ds_err_field(err, DS_ECORRUPT, key, "%s: '%s' is %g, must be %g..%g", file, key, x, min, max);
    *ret = x;
    return DS_OK;
}

static ds_code get_bool(const char *file, const json_t *o, const char *key, int def, int *ret, ds_err *err)
{
    const json_t *v = get(o, key);
    if (v && !json_is_boolean(v))
        return ds_err_field(err, DS_ECORRUPT, key, "%s: '%s' must be true or false", file, key);
    *ret = v ? json_is_true(v) : def;
    return DS_OK;
}

/* --- architecture ------------------------------------------------------------------------------------- */

static ds_code parse_arch(const json_t *o, ds_config *c, ds_err *err)
{
    const json_t *list = get(o, "architectures"), *type = get(o, "model_type");
    if (list && !json_is_array(list))
        return ds_err_field(err, DS_ECORRUPT, "architectures", "config.json: 'architectures' must be a list");
    const char *arch = list ? json_string_value(json_array_get(list, 0)) : NULL;
    const char *name = type ? json_string_value(type) : NULL;
    if (!arch && !name)
        return ds_err_field(err, DS_ECORRUPT, "architectures",
                            "config.json: 'architectures' and 'model_type' are missing");
    int draft = arch && strcmp(arch, "Qwen3DSparkModel") == 0;
    if ((arch && !draft && strcmp(arch, "Qwen3ForCausalLM") != 0) || (name && strcmp(name, "qwen3") != 0))
        return ds_err_field(
            err, DS_EUNSUPPORTED, "architectures",
            "config.json: 'architectures' is '%.60s' (model_type '%.60s'), which is not supported; offered: "
            "Qwen3ForCausalLM (model_type qwen3), and Qwen3DSparkModel as its draft",
            arch ? arch : "", name ? name : "");
    snprintf(c->arch, sizeof c->arch, "%s", draft ? "Qwen3DSparkModel" : "Qwen3ForCausalLM");
    if (get(o, "quantization_config"))
        return ds_err_field(
            err, DS_EUNSUPPORTED, "quantization_config",
            "config.json: 'quantization_config' is set; only F32, BF16 and F16 weights are read "
            "(int8 is made at load)");
    const json_t *act = get(o, "hidden_act");
    if (act && (!json_is_string(act) || (strcmp(json_string_value(act), "silu") != 0 &&
                                         strcmp(json_string_value(act), "swish") != 0)))
        return ds_err_field(err, DS_EUNSUPPORTED, "hidden_act",
                            "config.json: 'hidden_act' must be \"silu\", got \"%.60s\"",
                            json_is_string(act) ? json_string_value(act) : "(not a string)");
    return DS_OK;
}

static ds_code parse_sizes(const json_t *o, ds_config *c, ds_err *err)
{
    DS_TRY(get_int(CONFIG, o, "vocab_size", 1, 1 << 22, 0, &c->vocab, err));
    DS_TRY(get_int(CONFIG, o, "hidden_size", 1, 1 << 17, 0, &c->hidden, err));
    DS_TRY(get_int(CONFIG, o, "intermediate_size", 1, 1 << 19, 0, &c->mlp, err));
    DS_TRY(get_int(CONFIG, o, "num_hidden_layers", 1, 1024, 0, &c->layers, err));
    DS_TRY(get_int(CONFIG, o, "num_attention_heads", 1, 1024, 0, &c->heads, err));
    DS_TRY(get_int(CONFIG, o, "num_key_value_heads", 1, 1024, c->heads, &c->kv_heads, err));
    DS_TRY(get_int(CONFIG, o, "head_dim", 2, 1024, 128, &c->head_dim, err));
    DS_TRY(get_int(CONFIG, o, "max_position_embeddings", 1, 1 << 24, 32768, &c->max_positions, err));
    if (c->heads % c->kv_heads)
        return ds_err_field(err, DS_ECORRUPT, "num_key_value_heads",
                            "config.json: 'num_key_value_heads' (%d) must divide 'num_attention_heads' (%d)",
                            c->kv_heads, c->heads);
    if (c->head_dim % 2)
        return ds_err_field(err, DS_ECORRUPT, "head_dim", "config.json: 'head_dim' is %d, must be even",
                            c->head_dim);
    double eps = 1e-6;
    DS_TRY(get_real(CONFIG, o, "rms_norm_eps", 0, 1, &eps, err));
    c->eps = (float)eps;
    DS_TRY(get_bool(CONFIG, o, "tie_word_embeddings", 0, &c->tied, err));
    return get_bool(CONFIG, o, "attention_bias", 0, &c->attention_bias, err);
}

/* Sliding layers as Qwen3Config derives them: none unless use_sliding_window, then from max_window_layers on.
 */
static ds_code refuse_sliding(const json_t *o, const ds_config *c, ds_err *err)
{
    int on = 0, window = 0, from = 0;
    DS_TRY(get_bool(CONFIG, o, "use_sliding_window", 0, &on, err));
    DS_TRY(get_int(CONFIG, o, "sliding_window", 1, INT_MAX, INT_MAX, &window, err));
    DS_TRY(get_int(CONFIG, o, "max_window_layers", 0, INT_MAX, 28, &from, err));
    const json_t *types = get(o, "layer_types");
    if (types && (!json_is_array(types) || json_array_size(types) != (size_t)c->layers))
        return ds_err_field(err, DS_ECORRUPT, "layer_types",
                            "config.json: 'layer_types' must be a list of 'num_hidden_layers' (%d) names",
                            c->layers);
    for (size_t i = 0; types && i < json_array_size(types); i++) {
        const char *t = json_string_value(json_array_get(types, i));
        if (!t || strcmp(t, "full_attention") != 0)
            return ds_err_field(
                err, DS_EUNSUPPORTED, "layer_types",
                "config.json: 'layer_types' entry %zu is '%.60s'; only full_attention is offered", i,
                t ? t : "(not a string)");
    }
    if (on && !types && get(o, "sliding_window") && from < c->layers)
        return ds_err_field(
            err, DS_EUNSUPPORTED, "use_sliding_window",
            "config.json: 'use_sliding_window' is on for layers %d..%d (window %d); only full "
            "attention is offered",
            from, c->layers - 1, window);
    return DS_OK;
}

/* --- rope --------------------------------------------------------------------------------------------- */

static double mscale_of(double factor, double m)
{
    return factor <= 1 ? 1.0 : 0.1 * m * log(factor) + 1.0;
}

static ds_code parse_yarn(const json_t *o, const json_t *r, const ds_config *c, ds_rope_conf *y, ds_err *err)
{
    double original = c->max_positions, m = 0, all = 0;
    DS_TRY(get_real(CONFIG, r, "original_max_position_embeddings", 1, 1 << 24, &original, err));
    DS_TRY(get_real(CONFIG, o, "original_max_position_embeddings", 1, 1 << 24, &original, err));
    y->original = original;
    if (!get(r, "factor"))
        y->factor = c->max_positions / original;
    y->beta_fast = y->beta_slow = 0;
    DS_TRY(get_real(CONFIG, r, "beta_fast", 0, 1e6, &y->beta_fast, err));
    DS_TRY(get_real(CONFIG, r, "beta_slow", 0, 1e6, &y->beta_slow, err));
    y->beta_fast = y->beta_fast == 0 ? 32 : y->beta_fast; /* transformers: `beta_fast or 32` */
    y->beta_slow = y->beta_slow == 0 ? 1 : y->beta_slow;
    DS_TRY(get_real(CONFIG, r, "mscale", 0, 100, &m, err));
    DS_TRY(get_real(CONFIG, r, "mscale_all_dim", 0, 100, &all, err));
    y->attention_factor =
        m != 0 && all != 0 ? mscale_of(y->factor, m) / mscale_of(y->factor, all) : mscale_of(y->factor, 1);
    DS_TRY(get_real(CONFIG, r, "attention_factor", 0, 100, &y->attention_factor, err));
    return get_bool(CONFIG, r, "truncate", 1, &y->truncate, err);
}

/* Both spellings: rope_scaling {type | rope_type} beside rope_theta (to 4.x), rope_parameters (5.x). A
 * non-empty rope_scaling wins, and a theta inside the object wins over the one beside it, as in transformers.
 */
static ds_code parse_rope(const json_t *o, ds_config *c, ds_err *err)
{
    const json_t *r = get(o, "rope_scaling");
    const char *where = "rope_scaling";
    if (!r || (json_is_object(r) && json_object_size(r) == 0)) {
        r = get(o, "rope_parameters");
        where = "rope_parameters";
    }
    if (r && !json_is_object(r))
        return ds_err_field(err, DS_ECORRUPT, where, "config.json: '%s' must be an object", where);
    c->rope = (ds_rope_conf){.theta = 10000, .factor = 1, .attention_factor = 1, .truncate = 1};
    DS_TRY(get_real(CONFIG, o, "rope_theta", 1.0 + 1e-9, 1e18, &c->rope.theta, err));
    double partial = 1;
    DS_TRY(get_real(CONFIG, o, "partial_rotary_factor", 0, 1, &partial, err));
    const char *type = "default";
    if (r) {
        DS_TRY(get_real(CONFIG, r, "rope_theta", 1.0 + 1e-9, 1e18, &c->rope.theta, err));
        DS_TRY(get_real(CONFIG, r, "partial_rotary_factor", 0, 1, &partial, err));
        DS_TRY(get_real(CONFIG, r, "factor", 1, 1e6, &c->rope.factor, err));
        const json_t *t = get(r, "rope_type") ? get(r, "rope_type") : get(r, "type");
        if (t && !json_is_string(t))
            return ds_err_field(err, DS_ECORRUPT, where, "config.json: '%s.rope_type' must be a string",
                                where);
        type = t ? json_string_value(t) : type;
        const char *key;
        json_t *v;
        json_object_foreach((json_t *)r, key, v) if (json_is_object(v)) return ds_err_field(
            err, DS_EUNSUPPORTED, where, "config.json: '%s' by layer type ('%.60s') is not supported", where,
            key);
    }
    if (partial != 1)
        return ds_err_field(err, DS_EUNSUPPORTED, "partial_rotary_factor",
                            "config.json: 'partial_rotary_factor' is %g; only 1 is offered", partial);
    if (strcmp(type, "default") == 0) {
        c->rope.factor = 1;
        return DS_OK;
    }
    if (strcmp(type, "linear") == 0) {
        c->rope.type = DS_ROPE_LINEAR;
        if (!get(r, "factor"))
            return ds_err_field(err, DS_ECORRUPT, "factor", "config.json: '%s.factor' is missing", where);
        return DS_OK;
    }
    if (strcmp(type, "yarn") == 0) {
        c->rope.type = DS_ROPE_YARN;
        return parse_yarn(o, r, c, &c->rope, err);
    }
    return ds_err_field(err, DS_EUNSUPPORTED, where,
                        "config.json: '%s' type '%.60s' is not supported; offered: default, linear, yarn",
                        where, type);
}

/* YaRN (Peng et al. 2023, sec. 3.2) as in transformers' modeling_rope_utils.py, with its f32 roundings. */
static void inverse_frequencies(const ds_rope_conf *r, int head_dim, float *f)
{
    int half = head_dim / 2;
    double low = 0, high = 1;
    if (r->type == DS_ROPE_YARN) {
        double pi2 = 2 * M_PI, d = 2 * log(r->theta);
        low = head_dim * log(r->original / (r->beta_fast * pi2)) / d;
        high = head_dim * log(r->original / (r->beta_slow * pi2)) / d;
        if (r->truncate) {
            low = floor(low);
            high = ceil(high);
        }
        low = low > 0 ? low : 0;
        high = high < head_dim - 1 ? high : head_dim - 1;
        if (low == high)
            high += 0.001;
    }
    for (int j = 0; j < half; j++) {
        float power = (float)pow(r->theta, (float)(2 * j) / (float)head_dim), own = 1.0f / power;
        f[j] = own;
        if (r->type == DS_ROPE_LINEAR)
            f[j] = own / (float)r->factor;
        if (r->type == DS_ROPE_YARN) {
            float ramp = ((float)j - (float)low) / (float)(high - low);
            float keep = 1 - (ramp < 0 ? 0 : ramp > 1 ? 1 : ramp);
            f[j] = 1.0f / ((float)r->factor * power) * (1 - keep) + own * keep;
        }
    }
}

void ds_rope_fill(const ds_rope_conf *r, int head_dim, int positions, float *cos_table, float *sin_table)
{
    int half = head_dim / 2;
    float f[512];
    DS_ASSERT(half <= 512);
    inverse_frequencies(r, head_dim, f);
    float scale = (float)r->attention_factor;
    for (int p = 0; p < positions; p++)
        for (int j = 0; j < half; j++) {
            double angle = (float)p * f[j];
            cos_table[(size_t)p * half + j] = (float)cos(angle) * scale;
            sin_table[(size_t)p * half + j] = (float)sin(angle) * scale;
        }
}

/* --- end ids and sampling defaults -------------------------------------------------------------------- */

/* An id outside the vocabulary can never be produced: it is dropped with a warning, not an error, because
 * small checkpoints often keep the ids of the big tokenizer. */
static ds_code parse_eos(const json_t *o, const char *file, ds_config *c, ds_err *err)
{
    const json_t *v = get(o, "eos_token_id");
    if (!v)
        return DS_OK;
    size_t n = json_is_array(v) ? json_array_size(v) : 1;
    if (n > DS_MAX_EOS)
        return ds_err_field(err, DS_ECORRUPT, "eos_token_id", "%s: 'eos_token_id' has %zu ids, at most %d",
                            file, n, DS_MAX_EOS);
    c->n_eos = 0;
    for (size_t i = 0; i < n; i++) {
        const json_t *e = json_is_array(v) ? json_array_get(v, i) : v;
        if (!json_is_integer(e))
            return ds_err_field(err, DS_ECORRUPT, "eos_token_id",
                                "%s: 'eos_token_id' must be an integer or a list of integers", file);
        long long id = json_integer_value(e);
        if (id < 0 || id >= c->vocab)
            ds_log(DS_LOG_WARN, "model", "%s: eos_token_id %lld is outside the vocabulary (%d); ignored",
                   file, id, c->vocab);
        else
            c->eos[c->n_eos++] = (int)id;
    }
    return DS_OK;
}

static ds_code load_object(const char *file, const char *json, size_t n, json_t **ret, ds_err *err)
{
    json_error_t je;
    json_t *o = json_loadb(json, n, JSON_REJECT_DUPLICATES, &je);
    if (!o)
        return ds_err_set(err, DS_ECORRUPT, "%s: not valid JSON at line %d: %s", file, je.line, je.text);
    if (!json_is_object(o)) {
        json_decref(o);
        return ds_err_set(err, DS_ECORRUPT, "%s: must hold one JSON object", file);
    }
    *ret = o;
    return DS_OK;
}

/* --- draft -------------------------------------------------------------------------------------------- */

static ds_code parse_taps(const json_t *o, ds_draft_conf *d, ds_err *err)
{
    static const char KEY[] = "target_layer_ids";
    const json_t *list = get(o, KEY);
    size_t n = json_array_size(list);
    if (!json_is_array(list) || n < 1 || n > DS_MAX_TAPS)
        return ds_err_field(err, DS_ECORRUPT, KEY, "%s: '%s' must be a list of 1..%d layer ids", CONFIG, KEY,
                            DS_MAX_TAPS);
    for (size_t i = 0; i < n; i++) {
        const json_t *v = json_array_get(list, i);
        json_int_t id = json_is_integer(v) ? json_integer_value(v) : -2; /* -1 is the embedding */
        json_int_t min = i ? d->taps[i - 1] + 1 : -1, max = d->target_layers - 2;
        if (id < min || id > max) /* the last layer is forbidden: docs/speculation.md */
            return ds_err_field(
                err, DS_ECORRUPT, KEY,
                "%s: entry %zu of '%s' must be an integer in %lld..%lld (rising, below the last "
                "layer)",
                CONFIG, i, KEY, (long long)min, (long long)max);
        d->taps[d->n_taps++] = (int)id;
    }
    return DS_OK;
}

static ds_code parse_head(const json_t *o, ds_draft_conf *d, ds_err *err)
{
    static const char *const names[] = {"", "vanilla", "gated", "rnn"};
    const json_t *type = get(o, "markov_head_type");
    const char *name = json_is_string(type) ? json_string_value(type) : "vanilla";
    if (type && !json_is_string(type))
        return ds_err_field(err, DS_ECORRUPT, "markov_head_type", "%s: 'markov_head_type' must be a string",
                            CONFIG);
    if (d->rank == 0)
        return DS_OK;
    for (int i = DS_HEAD_VANILLA; i <= DS_HEAD_RNN; i++)
        if (strcasecmp(name, names[i]) == 0) /* DeepSpec ignores the case too */
            d->head = (ds_head_kind)i;
    if (d->head == DS_HEAD_NONE)
        return ds_err_field(err, DS_EUNSUPPORTED, "markov_head_type",
                            "%s: 'markov_head_type' is '%.40s', must be vanilla, gated or rnn", CONFIG, name);
    return DS_OK;
}

/* Keys of other trainers' drafts that change what a slot predicts: refused, since such a draft would load and
 * accept next to nothing. num_anchors is for training only, but must be what it says. */
static ds_code refuse_layouts(const json_t *o, const ds_config *c, ds_err *err)
{
    int anchored, width, anchors;
    double scale = 1;
    DS_TRY(get_bool(CONFIG, o, "sample_from_anchor", 1, &anchored, err));
    if (!anchored)
        return ds_err_field(err, DS_EUNSUPPORTED, "sample_from_anchor",
                            "%s: 'sample_from_anchor' is false; only blocks whose first slot is the anchor "
                            "and predicts the token after it are offered",
                            CONFIG);
    DS_TRY(get_int(CONFIG, o, "draft_vocab_size", 1, 1 << 22, c->vocab, &width, err));
    if (width != c->vocab)
        return ds_err_field(err, DS_EUNSUPPORTED, "draft_vocab_size",
                            "%s: 'draft_vocab_size' is %d; only the target's vocabulary (%d) is offered",
                            CONFIG, width, c->vocab);
    DS_TRY(get_real(CONFIG, o, "logit_scale", 0, 1e6, &scale, err));
    if (scale != 1)
        return ds_err_field(err, DS_EUNSUPPORTED, "logit_scale", "%s: 'logit_scale' is %g; only 1 is offered",
                            CONFIG, scale);
    return get_int(CONFIG, o, "num_anchors", 1, INT_MAX, 1, &anchors, err);
}

static ds_code parse_draft(const json_t *o, ds_config *c, ds_err *err)
{
    ds_draft_conf *d = &c->draft;
    if (strcmp(c->arch, "Qwen3DSparkModel") != 0)
        return DS_OK;
    DS_TRY(refuse_layouts(o, c, err));
    DS_TRY(get_int(CONFIG, o, "block_size", 1, DS_MAX_BLOCK_SIZE, 0, &d->block, err));
    DS_TRY(get_int(CONFIG, o, "mask_token_id", 0, c->vocab - 1, -1, &d->mask_token, err));
    DS_TRY(get_int(CONFIG, o, "num_target_layers", 1, 4096, 0, &d->target_layers, err));
    DS_TRY(parse_taps(o, d, err));
    DS_TRY(get_int(CONFIG, o, "markov_rank", 0, DS_MAX_MARKOV_RANK, 0, &d->rank, err));
    DS_TRY(parse_head(o, d, err));
    DS_TRY(get_bool(CONFIG, o, "enable_confidence_head", 0, &d->confidence, err));
    DS_TRY(get_bool(CONFIG, o, "confidence_head_with_markov", 0, &d->confidence_markov, err));
    if (d->confidence && d->confidence_markov && !d->rank)
        return ds_err_field(err, DS_ECORRUPT, "confidence_head_with_markov",
                            "%s: 'confidence_head_with_markov' needs a markov_rank above 0", CONFIG);
    return DS_OK;
}

static ds_code parse_all(const json_t *o, ds_config *c, ds_err *err)
{
    DS_TRY(parse_arch(o, c, err));
    DS_TRY(parse_sizes(o, c, err));
    DS_TRY(refuse_sliding(o, c, err));
    DS_TRY(parse_rope(o, c, err));
    DS_TRY(parse_draft(o, c, err));
    return parse_eos(o, CONFIG, c, err);
}

ds_code ds_config_parse(const char *json, size_t n, ds_config *ret, ds_err *err)
{
    json_t *o = NULL;
    *ret = (ds_config){.temperature = NAN, .top_p = NAN, .top_k = -1};
    DS_TRY(load_object("config.json", json, n, &o, err));
    ds_code code = parse_all(o, ret, err);
    json_decref(o);
    return code;
}

static ds_code parse_generation(const json_t *o, ds_config *c, ds_err *err)
{
    DS_TRY(parse_eos(o, GENERATION, c, err));
    double temperature = NAN, top_p = NAN;
    DS_TRY(get_real(GENERATION, o, "temperature", 0, 100, &temperature, err));
    DS_TRY(get_real(GENERATION, o, "top_p", 0, 1, &top_p, err));
    c->temperature = (float)temperature;
    c->top_p = (float)top_p;
    return get_int(GENERATION, o, "top_k", -1, INT_MAX, -1, &c->top_k, err);
}

ds_code ds_config_parse_generation(const char *json, size_t n, ds_config *c, ds_err *err)
{
    json_t *o = NULL;
    DS_TRY(load_object("generation_config.json", json, n, &o, err));
    ds_code code = parse_generation(o, c, err);
    json_decref(o);
    return code;
}

/* --- files -------------------------------------------------------------------------------------------- */

static ds_code read_fd(int fd, const char *path, size_t max, char **ret, size_t *ret_n, ds_err *err)
{
    struct stat st;
    if (fstat(fd, &st) != 0 || !S_ISREG(st.st_mode))
        return ds_err_set(err, DS_EIO, "%s: not a regular file", path);
    if ((uint64_t)st.st_size > max)
        return ds_err_set(err, DS_ECORRUPT, "%s: %lld bytes, at most %zu are read", path,
                          (long long)st.st_size, max);
    size_t n = (size_t)st.st_size, got = 0;
    char *p = malloc(n + 1);
    if (!p)
        return ds_err_set(err, DS_ENOMEM, "%s: no memory for %zu bytes", path, n);
    while (got < n) {
        ssize_t k = read(fd, p + got, n - got);
        if (k < 0 && errno == EINTR)
            continue;
        if (k <= 0) {
            free(p);
            return ds_err_set(err, DS_EIO, "%s: %s", path,
                              k < 0 ? strerror(errno) : "file shrank while read");
        }
        got += (size_t)k;
    }
    p[n] = 0;
    *ret = p;
    *ret_n = n;
    return DS_OK;
}

ds_code ds_file_read(const char *dir, const char *name, size_t max, char **ret, size_t *ret_n, ds_err *err)
{
    char path[4096];
    if ((size_t)snprintf(path, sizeof path, "%s/%s", dir, name) >= sizeof path)
        return ds_err_set(err, DS_EINVAL, "%.200s...: path is longer than %zu bytes", dir, sizeof path - 1);
    int fd =
        open(path, O_RDONLY | O_CLOEXEC | O_NONBLOCK); /* a FIFO in a model folder must not hang the start */
    if (fd < 0)
        return ds_err_set(err, errno == ENOENT || errno == ENOTDIR ? DS_ENOTFOUND : DS_EIO, "%s: %s", path,
                          strerror(errno));
    ds_code code = read_fd(fd, path, max, ret, ret_n, err);
    close(fd);
    return code;
}

ds_code ds_config_load(const char *dir, ds_config *ret, ds_err *err)
{
    char *text = NULL;
    size_t n = 0;
    DS_TRY(ds_file_read(dir, "config.json", DS_MAX_CONFIG_BYTES, &text, &n, err));
    ds_code code = ds_config_parse(text, n, ret, err);
    free(text);
    if (code != DS_OK)
        return code;
    code = ds_file_read(dir, "generation_config.json", DS_MAX_CONFIG_BYTES, &text, &n, err);
    if (code == DS_ENOTFOUND)
        return DS_OK;
    if (code != DS_OK)
        return code;
    code = ds_config_parse_generation(text, n, ret, err);
    free(text);
    return code;
}
