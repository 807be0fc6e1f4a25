/* bench_prompts.h - what the load asks: prompts of a JSONL file, or synthetic ones of an exact length. */
#ifndef DS_CLI_BENCH_PROMPTS_H
#define DS_CLI_BENCH_PROMPTS_H

#include "base/err.h"
#include "base/limits.h"

#include <stdint.h>

enum { DS_PROMPTS_MAX = 1 << 20, DS_PROMPT_MAX_TURNS = 64, DS_PROMPT_MAX_LINE = 8 << 20 };

typedef struct ds_prompt { /* either turns or ids */
    char **turn;           /* [n_turns] what the user says, in order; each waits for the answer before it */
    int n_turns;
    int is_chat;  /* came as "turns" */
    int32_t *ids; /* [n_ids] */
    int n_ids;
} ds_prompt;

typedef struct ds_prompts {
    ds_prompt *item; /* [n] */
    int n;
} ds_prompts;

/* ds_prompts_read: one object a line: {"prompt": "text" | [ids]} or {"turns": ["text", ...]}; other keys are
 * ignored. Errors name file and line. */
ds_code ds_prompts_read(const char *path, ds_prompts *ret, ds_err *err);
/* ds_prompts_synthetic: n prompts of exactly `tokens` ids drawn from pool [n_pool]; same seed, same prompts.
 */
ds_code ds_prompts_synthetic(const int32_t *pool, int n_pool, int tokens, int n, uint64_t seed,
                             ds_prompts *ret, ds_err *err);
extern const char ds_prompts_pool_text[]; /* English words; its token ids make a pool */
void ds_prompts_free(ds_prompts *p);

#endif
