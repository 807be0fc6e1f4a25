/* normal.h - normalisers: NFC, literal replacement, prefix. Read-only after the loader. */
#ifndef DS_TEXT_NORMAL_H
#define DS_TEXT_NORMAL_H

#include "base/buf.h"
#include "base/err.h"

typedef enum { DS_NORMAL_NFC, DS_NORMAL_REPLACE, DS_NORMAL_PREPEND } ds_normal_kind;
enum { DS_NORMAL_MAX_STEPS = 8 };

typedef struct ds_normal {
    struct {
        ds_normal_kind kind;
        char *from, *to; /* NUL-terminated; from only for REPLACE */
    } step[DS_NORMAL_MAX_STEPS];
    int n;
} ds_normal;

/* ds_nfc: appends the NFC form of valid UTF-8 in linear time. (utf8proc's own whole-string call sorts
 * combining marks by repeated swaps, which a hostile text makes quadratic.) Source: UAX #15; utf8proc. */
ds_code ds_nfc(const char *text, size_t len, ds_buf *out);
/* ds_normal_apply: runs the steps. *ret_text points to the text itself when nothing changes it, else into
 * buf (two buffers, used in turn). */
ds_code ds_normal_apply(const ds_normal *n, const char *text, size_t len, ds_buf buf[2],
                        const char **ret_text, size_t *ret_len);
void ds_normal_free(ds_normal *n);

#endif
