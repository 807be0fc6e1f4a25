/* unicode.h - code points newer than PCRE2's tables, for \p{...} in patterns (regex.c). Constant data. */
#ifndef DS_TEXT_UNICODE_H
#define DS_TEXT_UNICODE_H

#include <stdint.h>

typedef struct ds_unicode_range {
    uint32_t from, to; /* inclusive */
    char category[3];  /* "Lo" */
} ds_unicode_range;

extern const ds_unicode_range DS_UNICODE_NEW[]; /* ascending */
extern const int DS_UNICODE_N_NEW;

#endif
