/* tok.h - the tokenizer's inside, shared by tokenizer.c (use), tok_parse.c (build) and detok.c. */
#ifndef DS_TEXT_TOK_H
#define DS_TEXT_TOK_H

#include "text/added.h"
#include "text/bpe.h"
#include "text/normal.h"
#include "text/pretok.h"
#include "text/tokenizer.h"
#include "text/vocab.h"

enum { DS_TOK_MAX_AFFIX = 16 };

struct ds_tokenizer {
    ds_vocab vocab;
    ds_bpe bpe;
    ds_added added_raw;        /* matched before normalisation */
    ds_added added_normalized; /* matched after it */
    ds_normal normal;
    ds_pretok *pretok;
    int32_t prefix[DS_TOK_MAX_AFFIX], suffix[DS_TOK_MAX_AFFIX]; /* the post-processor's BOS/EOS */
    int n_prefix, n_suffix;
};

#endif
