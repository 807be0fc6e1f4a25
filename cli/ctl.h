/* ctl.h - dsparkctl's commands and what they share. One thread; a signal sets `stop`. */
#ifndef DS_CLI_CTL_H
#define DS_CLI_CTL_H

#include "base/conf.h"
#include "cli/http.h"
#include "cli/view.h"

typedef struct ds_ctl_conf {
    char *url, *rpc, *model_id, *system, *stop, *marks, *summary;
    int64_t max_tokens, top_k, seed, timeout_ms, interval_ms;
    double temperature, top_p;
    int json, once, thinking, ids;
} ds_ctl_conf;

typedef struct ds_ctl ds_ctl;

/* A running answer: text, and for each of its n tokens 1 when it was an accepted draft (NULL: none was).
 * Nonzero stops the request. */
typedef int (*ds_ctl_text_fn)(void *ctx, const char *text, size_t n, const uint32_t *accepted);

typedef struct ds_ctl_answer { /* how a request ended; zero counts: not told */
    char finish[32];
    long long prompt_tokens, output_tokens, cached_tokens, accepted, rejected;
} ds_ctl_answer;

struct ds_ctl {
    const ds_ctl_conf *conf;
    ds_http *http;          /* NULL over RPC */
    struct ds_ctl_rpc *rpc; /* NULL over HTTP */
    volatile int *stop;
};

/* Commands: argv[0..argc-1] are the words after the command's name. */
ds_code ds_ctl_status(ds_ctl *c, int argc, char **argv, ds_err *err);
ds_code ds_ctl_models(ds_ctl *c, int argc, char **argv, ds_err *err);
ds_code ds_ctl_chat(ds_ctl *c, int argc, char **argv, ds_err *err);
ds_code ds_ctl_complete(ds_ctl *c, int argc, char **argv, ds_err *err);
ds_code ds_ctl_tokenize(ds_ctl *c, int argc, char **argv, ds_err *err);
ds_code ds_ctl_top(ds_ctl *c, int argc, char **argv, ds_err *err);

/* ds_ctl_look: one look at the workers, over whichever door is open. */
ds_code ds_ctl_look(ds_ctl *c, ds_view *ret, ds_err *err);
/* ds_ctl_model: the id to ask for: --model-id, else the first that /v1/models lists. */
ds_code ds_ctl_model(ds_ctl *c, char out[256], ds_err *err);

#endif
