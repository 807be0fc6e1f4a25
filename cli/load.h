/* load.h - the load generator: keeps requests in flight through a door (HTTP or RPC) and measures them.
 *
 * Closed loop: `concurrency` slots, each starts the next request when its last has ended. Open loop: arrivals
 * at a fixed rate whatever the answers do; times then count from the planned arrival, so that a stalled
 * server cannot hide its stall. One thread; doors call ds_load_on_* from their wait only. */
#ifndef DS_CLI_LOAD_H
#define DS_CLI_LOAD_H

#include "base/buf.h"
#include "cli/bench_prompts.h"
#include "cli/dist.h"

#include <jansson.h>

enum { DS_LOAD_MAX_SLOTS = 4096 };

typedef struct ds_load ds_load;

/* One request as a door sees it; valid during start. */
typedef struct ds_load_req {
    const ds_prompt *prompt;
    int turn;              /* which of prompt->turn is asked now */
    const ds_buf *answers; /* [turn] what was answered to the turns before */
    uint64_t seed;
} ds_load_req;

typedef struct ds_door { /* how requests travel */
    void *self;
    /* start: at most one request a slot at a time. An error here fails that request only. */
    ds_code (*start)(void *self, int slot, const ds_load_req *req, ds_err *err);
    /* wait: up to timeout_ms (0: only look) for something to happen. An error ends the run. */
    ds_code (*wait)(void *self, int timeout_ms, ds_err *err);
    void (*close)(void *self);
} ds_door;

typedef struct ds_load_result ds_load_result;

typedef struct ds_load_conf {
    int concurrency;   /* slots; in open loop the most outstanding requests */
    double rate;       /* requests a second; 0: closed loop */
    int poisson;       /* open loop: exponential gaps, else constant ones */
    int64_t requests;  /* stop after as many; 0: by time only */
    double duration_s; /* start nothing later than this; 0: by requests only */
    uint64_t seed;
    const ds_prompts *prompts;
    int64_t first_prompt; /* so that runs of a sweep do not repeat each other's prompts */
    const volatile int *stop;
    void (*progress)(void *ctx, const ds_load_result *so_far, double share); /* about 10 times a second */
    void *progress_ctx;
} ds_load_conf;

struct ds_load_result {
    int concurrency;
    double rate;
    double seconds;                               /* first start to last end */
    double cpu_seconds;                           /* of this process in that time */
    int64_t started, ok, failed, cancelled, late; /* late: open loop, no slot was free at the planned time */
    int64_t prompt_tokens, output_tokens, cached_tokens;
    ds_dist ttft_ms, itl_ms, tpot_ms, e2e_ms; /* of requests that ended well; itl: gaps between events */
    char first_error[256];
};

/* ds_load_create: the door is opened with the load, so they are made in two steps. */
ds_code ds_load_create(ds_load **ret, ds_err *err);
void ds_load_destroy(ds_load *l);
/* ds_load_run: one run to its end. DS_ECANCELLED when stopped; *ret is filled in every case and freed with
 * ds_load_result_fini. */
ds_code ds_load_run(ds_load *l, const ds_load_conf *conf, ds_door *door, ds_load_result *ret, ds_err *err);
void ds_load_result_fini(ds_load_result *r);

void ds_load_on_text(ds_load *l, int slot, const char *text, size_t n);
typedef struct ds_load_end {
    ds_code code;
    const char *msg; /* of an error */
    int64_t prompt_tokens, output_tokens, cached_tokens;
} ds_load_end;
void ds_load_on_end(ds_load *l, int slot, const ds_load_end *end);

#endif
