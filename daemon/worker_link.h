/* worker_link.h - the router's end of the worker links: one ZeroMQ ROUTER socket, hello, credits, heartbeats,
 * and a table of flights (requests a worker holds). Owner: the loop thread.
 *
 * A flight has its own wire id per attempt. An answer is taken only for the wire id's live flight and only
 * from the worker that holds it: late or forged frames of an earlier attempt change nothing (fencing). Each
 * flight ends exactly once: done, error or lost. */
#ifndef DS_DAEMON_WORKER_LINK_H
#define DS_DAEMON_WORKER_LINK_H

#include "base/clock.h"
#include "daemon/route.h"
#include "proto/frame.h"

enum { DS_MAX_WORKERS = 64, DS_MAX_FLIGHTS = 1 << 16 };

typedef enum {
    LINK_EMPTY,    /* slot is free */
    LINK_READY,    /* said hello; takes requests while it has credits */
    LINK_DRAINING, /* told to finish; takes nothing new */
} ds_link_state;

typedef struct ds_worker {
    ds_link_state state;
    ds_peer peer;
    char name[DS_MAX_NAME_BYTES + 1];
    uint64_t incarnation;
    uint64_t last_ns;       /* last frame heard */
    uint64_t step, step_ns; /* engine step of its last heartbeat, and since when it stands */
    uint32_t credits;
    uint64_t outstanding; /* tokens of its flights */
    int flights;
    /* a copy of its Capabilities */
    char model[DS_MAX_MODEL_BYTES + 1], arch[DS_MAX_NAME_BYTES + 1], device[DS_MAX_NAME_BYTES + 1];
    char weights[DS_MAX_NAME_BYTES + 1], draft[DS_MAX_NAME_BYTES + 1];
    ds_pb_caps caps; /* its strings and eos point into this struct */
    int32_t eos[DS_MAX_STOP_TOKENS];
    ds_pb_stats stats; /* last; its lists point into stats_at, workers are cleared */
    ds_stats_lists stats_at;
} ds_worker;

/* What the owner of the flights is told. `owner` is the pointer given to ds_links_submit. */
typedef struct ds_link_events {
    void (*tokens)(void *owner, const ds_pb_tokens *t);
    void (*done)(void *owner, const ds_pb_done *d);
    void (*error)(void *owner, const ds_err *err);
    void (*lost)(void *owner, const char *why); /* its worker is gone: resubmit */
    void (*room)(void *ctx);                    /* a worker came, or has credit again */
    void (*gone)(void *ctx, const char *name);  /* a worker was declared lost (its supervisor must act) */
    void *ctx;
} ds_link_events;

typedef struct ds_links ds_links;

typedef struct ds_links_opts {
    const char *endpoint;
    const char *name;      /* of this router, in Hello */
    uint32_t heartbeat_ms; /* sent this often */
    uint32_t timeout_ms;   /* silence after which a worker is lost */
    uint32_t wedge_ms;     /* work but no engine step for so long: lost */
    ds_link_events on;
    ds_clock clock;
} ds_links_opts;

/* ds_links_open: bind. Errors: DS_EINVAL endpoint, DS_ELIMIT served by another process, DS_EIO. */
ds_code ds_links_open(void *zctx, const ds_links_opts *opts, ds_links **ret, ds_err *err);
void ds_links_close(ds_links *l);
int ds_links_fd(const ds_links *l);
int ds_links_pending(ds_links *l); /* frames wait */
void ds_links_drain(ds_links *l);  /* take what waits, bounded per call */
void ds_links_tick(ds_links *l);   /* heartbeats and deadlines; call every heartbeat_ms or more often */

int ds_links_ready(const ds_links *l);                      /* workers that serve */
const ds_worker *ds_links_worker(const ds_links *l, int i); /* 0..DS_MAX_WORKERS-1; state may be LINK_EMPTY */
const ds_pb_caps *ds_links_caps(const ds_links *l);         /* of the model, NULL before the first worker */
int ds_links_flights(const ds_links *l);
/* ds_links_submit: pick a worker and send. s->id is set to the wire id. avoid: name of a worker not wanted,
 * or NULL. Errors: DS_ELIMIT no worker has room (keep it and wait for `room`), DS_EINVAL and others from
 * validation. */
ds_code ds_links_submit(ds_links *l, ds_pb_submit *s, const char *avoid, void *owner, uint64_t *ret_wire,
                        ds_err *err);
/* ds_links_cancel: the owner wants no more; the flight stays, without owner, until the worker ends it. */
void ds_links_cancel(ds_links *l, uint64_t wire);
const char *ds_links_holder(const ds_links *l, uint64_t wire); /* the worker's name, NULL when not live */
void ds_links_drop(ds_links *l, const char *name, const char *why); /* its process died */
void ds_links_drain_workers(ds_links *l, uint32_t deadline_ms);

#endif
