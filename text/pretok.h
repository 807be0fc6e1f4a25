/* pretok.h - pre-tokenisation: stages that each cut a piece into smaller ones. Read-only after the loader
 * (the compiled patterns are shared by threads); a run belongs to one call and holds its match data. */
#ifndef DS_TEXT_PRETOK_H
#define DS_TEXT_PRETOK_H

#include "base/err.h"

#include <stddef.h>

enum { DS_PRETOK_MAX_STAGES = 16 };
typedef enum {
    DS_PRETOK_ISOLATED,
    DS_PRETOK_REMOVED,
    DS_PRETOK_CONTIGUOUS,
    DS_PRETOK_MERGED_WITH_PREVIOUS,
    DS_PRETOK_MERGED_WITH_NEXT
} ds_pretok_behavior;

typedef struct ds_pretok ds_pretok;
typedef struct ds_pretok_run ds_pretok_run;
typedef ds_code (*ds_pretok_fn)(void *ctx, const char *piece, size_t len);

ds_code ds_pretok_create(ds_pretok **ret);
void ds_pretok_destroy(ds_pretok *p);
/* ds_pretok_add_split: pattern is Oniguruma's, or plain text when literal. Patterns that can match nothing
 * are refused. invert: cut at what does not match. */
ds_code ds_pretok_add_split(ds_pretok *p, const char *pattern, size_t len, int literal,
                            ds_pretok_behavior behavior, int invert, ds_err *err);
/* ds_pretok_add_prefix: puts a space before a piece that has none. */
ds_code ds_pretok_add_prefix(ds_pretok *p, ds_err *err);

ds_code ds_pretok_run_open(const ds_pretok *p, ds_pretok_run **ret);
void ds_pretok_run_close(ds_pretok_run *r);
/* ds_pretok_cut: calls fn for each final piece of valid UTF-8, in order. DS_ELIMIT when a pattern needs more
 * steps than its budget (a file with a pattern of more than linear cost). */
ds_code ds_pretok_cut(ds_pretok_run *r, const char *text, size_t len, ds_pretok_fn fn, void *ctx);

#endif
