/* jscan.h - a forward reader over JSON text, for the two members of tokenizer.json that hold nearly all of
 * its bytes (vocab, merges): a tree of them costs 370 ms for Qwen3, this reader a tenth. Everything else goes
 * through jansson. Constant stack; the text is hostile. Pure; any thread. */
#ifndef DS_TEXT_JSCAN_H
#define DS_TEXT_JSCAN_H

#include "base/buf.h"

#include <stdint.h>

typedef struct ds_jscan {
    const char *p, *end;
    ds_buf scratch; /* the last string that had escapes */
} ds_jscan;

/* All return 1 on success and 0 when the text is not of that form (the position is then undefined). */
int ds_jscan_char(ds_jscan *s, char c); /* white space, then exactly c */
int ds_jscan_peek(ds_jscan *s);         /* next character after white space, or -1 at the end */
/* ds_jscan_string: *ret is borrowed until the next string or fini. */
int ds_jscan_string(ds_jscan *s, const char **ret, size_t *ret_len);
int ds_jscan_int(ds_jscan *s, int64_t *ret);
/* ds_jscan_skip: passes over one value by matching brackets and strings; its inside is not fully checked. */
int ds_jscan_skip(ds_jscan *s);
void ds_jscan_fini(ds_jscan *s);

#endif
