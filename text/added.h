/* added.h - added tokens found in text: leftmost, longest first. Read-only after the loader. */
#ifndef DS_TEXT_ADDED_H
#define DS_TEXT_ADDED_H

#include "base/err.h"

#include <stddef.h>
#include <stdint.h>

enum { DS_ADDED_SINGLE_WORD = 1, DS_ADDED_LSTRIP = 2, DS_ADDED_RSTRIP = 4 };

typedef struct ds_added_node {
    int32_t child, sibling; /* -1: none */
    int32_t id;             /* token that ends here, or -1 */
    unsigned char byte, flags;
} ds_added_node;

typedef struct ds_added {
    ds_added_node *node; /* [n]; node 0 is the root */
    int32_t n, cap;
    int32_t first[256]; /* the root's children by byte */
} ds_added;

typedef struct ds_added_match {
    size_t from, to; /* bytes of text the token takes, with stripped white space */
    int32_t id;
} ds_added_match;

ds_code ds_added_add(ds_added *a, const char *s, size_t len, int32_t id, int flags);
/* ds_added_next: first match at or after `from`, the end of the previous one. Returns 0 when there is none.
 */
int ds_added_next(const ds_added *a, const char *text, size_t len, size_t from, ds_added_match *ret);
void ds_added_free(ds_added *a);

#endif
