/* tokenizer.h - Hugging Face tokenizer.json: byte-level BPE with added tokens. Immutable after open, so any
 * number of threads may encode and decode at once. The file is hostile input. Time is linear in the text (O(n
 * log n) per word), stack is constant. Source: the file format of huggingface/tokenizers. */
#ifndef DS_TEXT_TOKENIZER_H
#define DS_TEXT_TOKENIZER_H

#include "base/err.h"

#include <stddef.h>
#include <stdint.h>

typedef struct ds_tokenizer ds_tokenizer;

typedef struct ds_ids {
    int32_t *v;
    int n, cap;
} ds_ids;
void ds_ids_free(ds_ids *ids);

/* ds_tokenizer_open: reads dir/tokenizer.json (and added-token flags). DS_ENOTFOUND, DS_ECORRUPT,
 * DS_EUNSUPPORTED name the key. */
ds_code ds_tokenizer_open(const char *dir, ds_tokenizer **ret, ds_err *err);
ds_code ds_tokenizer_parse(const char *json, size_t len, ds_tokenizer **ret, ds_err *err);
void ds_tokenizer_close(ds_tokenizer *t);
int ds_tokenizer_size(const ds_tokenizer *t); /* highest id + 1 */
/* ds_tokenizer_encode: appends ids of text (valid UTF-8 is required: DS_EINVAL names the byte offset).
 * parse_special: recognise added tokens inside the text. max_ids 0: no limit, else DS_ELIMIT beyond it.
 * add_special: apply the post-processor's BOS/EOS when the file has one. */
ds_code ds_tokenizer_encode(const ds_tokenizer *t, const char *text, size_t len, int parse_special,
                            int add_special, int max_ids, ds_ids *out, ds_err *err);
/* ds_tokenizer_token: the bytes a token stands for; NULL when the id has none. Valid until close. */
const char *ds_tokenizer_token(const ds_tokenizer *t, int32_t id, size_t *ret_len);
int ds_tokenizer_is_special(const ds_tokenizer *t, int32_t id); /* hidden by skip_special_tokens */
int32_t ds_tokenizer_find(const ds_tokenizer *t, const char *token,
                          size_t len); /* added token's id, else -1 */

/* ds_detok: incremental detokeniser of one stream. Holds back an incomplete UTF-8 sequence and, when stop
 * strings are given, any suffix that may become one. Output is always valid UTF-8 (invalid bytes become
 * U+FFFD, as in the reference's lossy decoding). */
typedef struct ds_detok ds_detok;
ds_code ds_detok_open(const ds_tokenizer *t, int skip_special, const char *const *stop, int n_stop,
                      ds_detok **ret, ds_err *err);
void ds_detok_close(ds_detok *d);
/* ds_detok_push: feed one token; *ret_text/len is the text now safe to send (borrowed until the next call).
 * *ret_stop: index of the stop string that ended the stream, else -1; text then ends before it (include_stop
 * 0). */
ds_code ds_detok_push(ds_detok *d, int32_t id, const char **ret_text, size_t *ret_len, int *ret_stop);
/* ds_detok_flush: what is still held, at the end of the stream. */
ds_code ds_detok_flush(ds_detok *d, const char **ret_text, size_t *ret_len);

#endif
