/* profile.h - what a step costs: seconds of the target pass by rows and context, of the draft pass by
 * requests, and of the rest. Measured quickly at start (measure.h), kept in a readable file
 * (profile_file.c), refined by every step that decodes. Pure, except load and save. Owner: the engine thread.
 */
#ifndef DS_WORKER_PROFILE_H
#define DS_WORKER_PROFILE_H

#include "worker/spec.h"

enum { DS_PROFILE_VERSION = 1, DS_PROFILE_POINTS = 16, DS_PROFILE_CONTEXTS = 4 };

typedef struct ds_profile {
    int n_rows, n_ctx, n_reqs;
    int rows[DS_PROFILE_POINTS];                           /* [n_rows] ascending */
    int ctx[DS_PROFILE_CONTEXTS];                          /* [n_ctx] ascending: tokens before each row */
    double verify[DS_PROFILE_CONTEXTS][DS_PROFILE_POINTS]; /* [n_ctx, n_rows] target pass, choosing, context
                                                              of the draft */
    int reqs[DS_PROFILE_POINTS];                           /* [n_reqs] ascending */
    double draft[DS_PROFILE_POINTS];                       /* [n_reqs] draft pass */
    double host;                                           /* the rest of a step */
    int staircase;          /* 1: a pass costs what the next measured size costs (captured graphs) */
    uint64_t refined;       /* steps that refined it */
    double T[DS_MAX_BLOCK]; /* [n_T] confidence temperatures that serving arrived at */
    int n_T;
} ds_profile;

/* Costs at one context, ready for ds_cost_seconds; made once a step. */
typedef struct ds_profile_curve {
    double seconds[DS_PROFILE_POINTS];
    const ds_profile *p;
} ds_profile_curve;

/* ds_profile_at: the curve of target passes whose rows have `ctx` tokens before them on average: linear
 * between measured contexts, last slope beyond, never falling with rows. */
void ds_profile_at(const ds_profile *p, double ctx, ds_profile_curve *ret);
/* ds_profile_verify, _draft: seconds of a pass. 0 rows or requests cost nothing. */
double ds_profile_verify(const ds_profile_curve *c, int rows);
double ds_profile_draft(const ds_profile *p, int reqs);
/* ds_profile_tell_verify, _draft, _host: a measured pass moves the points beside it a little (1/16 of the
 * deviation, which counts as at most a factor of two): a slow spell fades, a wrong table is mended. */
void ds_profile_tell_verify(ds_profile *p, int rows, double ctx, double seconds);
void ds_profile_tell_draft(ds_profile *p, int reqs, double seconds);
void ds_profile_tell_host(ds_profile *p, double seconds);

/* What a profile is of. Another key is another profile. */
typedef struct ds_profile_key {
    char device[192]; /* back end, instruction set, threads */
    char kv_dtype[16], weights[16];
    uint64_t model, draft; /* checksums of config and tensor tables */
    int block, max_seqs;
} ds_profile_key;

/* ds_profile_path: "dspark-profile.<device>.<max_seqs>-seqs.json" in dir, what is not a letter or digit as -.
 * DS_EINVAL: longer than cap. */
ds_code ds_profile_path(const char *dir, const ds_profile_key *key, char *ret, size_t cap, ds_err *err);
/* ds_profile_load: DS_ENOTFOUND; DS_ECORRUPT not a profile, or out of range; DS_EINVAL another version or key
 * (err.field and the message say which part). */
ds_code ds_profile_load(const char *file, const ds_profile_key *key, ds_profile *ret, ds_err *err);
/* ds_profile_save: written beside and renamed. DS_EIO. */
ds_code ds_profile_save(const char *file, const ds_profile_key *key, const ds_profile *p, ds_err *err);

#endif
