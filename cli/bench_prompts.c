#include "cli/bench_prompts.h"

#include "base/rng.h"

#include <errno.h>
#include <jansson.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

const char ds_prompts_pool_text[] =
    "the river runs past an old mill where three children count white stones and a tall woman sells bread to "
    "every "
    "traveller who comes over the bridge before noon because nobody else in that quiet valley keeps such "
    "warm ovens "
    "while far above them grey clouds gather slowly around the highest mountain and promise heavy rain by "
    "evening so "
    "farmers hurry home with their carts full of wheat apples honey wool candles paper ink glass copper salt "
    "and "
    "silver thread for the winter market near the northern harbour where ships leave twice each month under "
    "blue "
    "flags carrying letters maps seeds tools clocks books music and stories about distant islands";

static void prompt_free(ds_prompt *p)
{
    for (int i = 0; i < p->n_turns; i++)
        free(p->turn[i]);
    free(p->turn);
    free(p->ids);
    *p = (ds_prompt){0};
}

void ds_prompts_free(ds_prompts *p)
{
    for (int i = 0; i < p->n; i++)
        prompt_free(&p->item[i]);
    free(p->item);
    *p = (ds_prompts){0};
}

/* Room for one more item; NULL without memory. */
static ds_prompt *push(ds_prompts *p)
{
    if ((p->n & (p->n - 1)) == 0) { /* grows at powers of two */
        ds_prompt *more = realloc(p->item, (size_t)(p->n ? 2 * p->n : 1) * sizeof *more);
        if (!more)
            return NULL;
        p->item = more;
    }
    p->item[p->n] = (ds_prompt){0};
    return &p->item[p->n++];
}

static const char *take_turns(json_t *turns, ds_prompt *p)
{
    size_t n = json_array_size(turns);
    if (n < 1 || n > DS_PROMPT_MAX_TURNS)
        return "\"turns\" must be an array of 1 to 64 texts";
    p->turn = calloc(n, sizeof *p->turn);
    p->is_chat = 1;
    for (size_t i = 0; p->turn && i < n; i++) {
        const char *text = json_string_value(json_array_get(turns, i));
        if (!text)
            return "\"turns\" must be an array of 1 to 64 texts";
        p->turn[i] = strdup(text);
        if (!p->turn[i])
            return "no memory";
        p->n_turns++;
    }
    return p->turn ? NULL : "no memory";
}

static const char *take_ids(json_t *ids, ds_prompt *p)
{
    size_t n = json_array_size(ids);
    if (n < 1 || n > DS_MAX_PROMPT_TOKENS)
        return "\"prompt\" must be a text or a non-empty array of token ids";
    p->ids = calloc(n, sizeof *p->ids);
    if (!p->ids)
        return "no memory";
    for (size_t i = 0; i < n; i++) {
        json_t *id = json_array_get(ids, i);
        json_int_t v = json_integer_value(id);
        if (!json_is_integer(id) || v < 0 || v > INT32_MAX)
            return "\"prompt\" holds something that is not a token id";
        p->ids[p->n_ids++] = (int32_t)v;
    }
    return NULL;
}

static const char *take_text(json_t *prompt, ds_prompt *p)
{
    p->turn = calloc(1, sizeof *p->turn);
    if (!p->turn)
        return "no memory";
    p->turn[0] = strdup(json_string_value(prompt));
    p->n_turns = p->turn[0] != NULL;
    return p->n_turns ? NULL : "no memory";
}

/* NULL, or what is wrong with the line. */
static const char *take_line(const char *line, size_t n, ds_prompts *prompts)
{
    json_t *root = json_loadb(line, n, 0, NULL);
    json_t *turns = json_object_get(root, "turns"), *prompt = json_object_get(root, "prompt");
    ds_prompt *p = turns || prompt ? push(prompts) : NULL;
    const char *wrong = !root                    ? "not a JSON object"
                        : !turns && !prompt      ? "neither \"prompt\" nor \"turns\""
                        : !p                     ? "no memory"
                        : turns                  ? take_turns(turns, p)
                        : json_is_string(prompt) ? take_text(prompt, p)
                                                 : take_ids(prompt, p);
    json_decref(root);
    return wrong;
}

ds_code ds_prompts_read(const char *path, ds_prompts *ret, ds_err *err)
{
    *ret = (ds_prompts){0};
    FILE *f = fopen(path, "rb");
    if (!f)
        return ds_err_field(err, DS_ENOTFOUND, "prompts", "prompts file %s: %s", path, strerror(errno));
    char *line = NULL;
    size_t cap = 0;
    ds_code code = DS_OK;
    ssize_t n;
    for (int line_no = 1; !code && (n = getline(&line, &cap, f)) > 0; line_no++) {
        const char *wrong = n > DS_PROMPT_MAX_LINE          ? "longer than 8 MiB"
                            : ret->n >= DS_PROMPTS_MAX      ? "more than 1048576 prompts"
                            : line[strspn(line, " \t\r\n")] ? take_line(line, (size_t)n, ret)
                                                            : NULL;
        if (wrong)
            code = ds_err_field(err, DS_EINVAL, "prompts", "%s:%d: %s", path, line_no, wrong);
    }
    free(line);
    fclose(f);
    if (!code && ret->n == 0)
        code = ds_err_field(err, DS_EINVAL, "prompts", "prompts file %s holds no prompt", path);
    if (code)
        ds_prompts_free(ret);
    return code;
}

ds_code ds_prompts_synthetic(const int32_t *pool, int n_pool, int tokens, int n, uint64_t seed,
                             ds_prompts *ret, ds_err *err)
{
    *ret = (ds_prompts){0};
    for (int i = 0; i < n; i++) {
        ds_prompt *p = push(ret);
        if (p)
            p->ids = calloc((size_t)tokens, sizeof *p->ids);
        if (!p || !p->ids) {
            ds_prompts_free(ret);
            return ds_err_set(err, DS_ENOMEM, "no memory for %d prompts of %d tokens", n, tokens);
        }
        for (p->n_ids = 0; p->n_ids < tokens; p->n_ids++)
            p->ids[p->n_ids] =
                pool[ds_rng_u32(seed, DS_RNG_INIT, (uint64_t)i, (uint32_t)p->n_ids) % (uint32_t)n_pool];
    }
    return DS_OK;
}
