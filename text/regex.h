/* regex.h - tokenizer.json's patterns are Oniguruma's (Ruby syntax); this writes the same pattern for PCRE2.
 * Only constructs that mean the same in both, or that can be spelled out, pass; the rest is refused by name.
 * Spelled out: \s and \S (PCRE2 counts U+180E as space), `.`, \d, script names, \v, \uXXXX. */
#ifndef DS_TEXT_REGEX_H
#define DS_TEXT_REGEX_H

#include "base/buf.h"
#include "base/err.h"

/* ds_regex_translate: DS_EUNSUPPORTED names the construct and its byte offset in the pattern. */
ds_code ds_regex_translate(const char *pattern, size_t len, ds_buf *out, ds_err *err);

#endif
