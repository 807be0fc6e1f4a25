/* config.h - config.json and generation_config.json of a Hugging Face folder as one plain struct.
 *
 * Hostile input: every field has a type and a range, and the error names key, value and limit. Defaults are
 * those of transformers' Qwen3Config, because that is what an absent key means to the tool that wrote the
 * file. What the engine does not compute exactly is refused (DS_EUNSUPPORTED), never approximated. */
#ifndef DS_WORKER_MODEL_CONFIG_H
#define DS_WORKER_MODEL_CONFIG_H

#include "base/err.h"
#include "worker/model/model.h"

typedef enum { DS_ROPE_DEFAULT, DS_ROPE_LINEAR, DS_ROPE_YARN } ds_rope_type;

typedef struct ds_rope_conf {
    ds_rope_type type;
    double theta;
    double factor;   /* LINEAR, YARN: >= 1 */
    double original; /* YARN: positions before scaling */
    double beta_fast, beta_slow;
    double attention_factor; /* multiplies cos and sin; 1 unless YARN */
    int truncate;            /* YARN: correction range rounded to whole dimensions */
} ds_rope_conf;

/* The keys a DSpark or DFlash draft adds to its target's config. */
enum { DS_MAX_TAPS = 16, DS_MAX_BLOCK_SIZE = 32, DS_MAX_MARKOV_RANK = 4096 };
typedef enum { DS_HEAD_NONE, DS_HEAD_VANILLA, DS_HEAD_GATED, DS_HEAD_RNN } ds_head_kind;
typedef struct ds_draft_conf {
    int block; /* slots of one block; 0: not a draft */
    int mask_token, target_layers;
    int n_taps, taps[DS_MAX_TAPS]; /* target_layer_ids: layer outputs, rising, below target_layers - 1; -1:
                                       the embedding */
    ds_head_kind head;
    int rank; /* of the Markov head; 0 without one */
    int confidence, confidence_markov;
} ds_draft_conf;

typedef struct ds_config {
    char arch[64]; /* "Qwen3ForCausalLM" */
    int vocab, hidden, layers, heads, kv_heads, head_dim, mlp, max_positions;
    float eps;
    int tied; /* lm_head is the embedding table */
    int attention_bias;
    ds_rope_conf rope;
    int n_eos, eos[DS_MAX_EOS];
    float temperature, top_p; /* NAN when absent */
    int top_k;                /* -1 when absent */
    ds_draft_conf draft;
} ds_config;

/* ds_config_load: read dir/config.json and, when there, dir/generation_config.json.
 * Errors: DS_ENOTFOUND no file; DS_ECORRUPT not JSON, wrong type or range; DS_EUNSUPPORTED. */
ds_code ds_config_load(const char *dir, ds_config *ret, ds_err *err);
/* ds_config_parse: the text of config.json; of a target (Qwen3ForCausalLM) or of a draft (Qwen3DSparkModel).
 */
ds_code ds_config_parse(const char *json, size_t n, ds_config *ret, ds_err *err);
/* ds_config_parse_generation: the text of generation_config.json; its eos ids replace those of c. */
ds_code ds_config_parse_generation(const char *json, size_t n, ds_config *c, ds_err *err);

/* ds_rope_fill: cos and sin tables [positions, head_dim/2] with the attention factor multiplied in, f32,
 * host. Angles are f32 products as in transformers, so that far positions agree. */
void ds_rope_fill(const ds_rope_conf *r, int head_dim, int positions, float *cos_table, float *sin_table);

/* ds_file_read: a whole regular file of at most max bytes; *ret is malloc'ed and NUL-terminated.
 * DS_ENOTFOUND, DS_EIO, DS_ECORRUPT (larger than max). */
ds_code ds_file_read(const char *dir, const char *name, size_t max, char **ret, size_t *ret_n, ds_err *err);

#endif
