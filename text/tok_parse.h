/* tok_parse.h - the small keys of tokenizer.json (everything but vocab and merges) into a tokenizer. Each
 * reader refuses what it does not do exactly, naming the key. Loader only; one thread. */
#ifndef DS_TEXT_TOK_PARSE_H
#define DS_TEXT_TOK_PARSE_H

#include "text/tok.h"

#include <jansson.h>

ds_code ds_tok_parse_normalizer(ds_tokenizer *t, const json_t *root, ds_err *err);
/* Sets bpe.byte_level when a ByteLevel stage is among them. */
ds_code ds_tok_parse_pre_tokenizer(ds_tokenizer *t, const json_t *root, ds_err *err);
/* After the vocabulary. */
ds_code ds_tok_parse_added(ds_tokenizer *t, const json_t *root, ds_err *err);
ds_code ds_tok_parse_post_processor(ds_tokenizer *t, const json_t *root, ds_err *err);
/* Reads the decoder and fills vocab.bytes; after the added tokens. */
ds_code ds_tok_parse_decoder(ds_tokenizer *t, const json_t *root, ds_err *err);

#endif
