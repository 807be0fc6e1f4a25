/* link.h - the worker's link to its router: a socket thread that owns ZeroMQ, and an engine thread that takes
 * commands and posts frames. Rules on the wire: proto/PROTOCOL.md.
 *
 * Invariants: at most conf.slots requests are live (that is what the credits grant), so every queue has that
 * bound; each accepted Submit gets exactly one Done or Error, unless its router is gone; when the connection
 * is lost, all its requests are cancelled and nothing of them reaches the next router. Neither thread spins
 * when idle. */
#ifndef DS_WORKER_LINK_H
#define DS_WORKER_LINK_H

#include "proto/frame.h"

#include <stdint.h>
#include <sys/types.h>

typedef struct ds_link ds_link;

enum {
    DS_LINK_MAX_SLOTS = 65535,
    DS_LINK_MAX_OUT_BYTES = 64 << 20, /* frames waiting for the router; beyond it the router counts as lost */
    DS_LINK_STOP_MS = 2000,           /* time from the second signal until the process is ended anyway */
};

typedef struct ds_link_conf {
    const char *endpoint;   /* "ipc://PATH", "tcp://HOST:PORT" */
    const char *name;       /* unique process name */
    const ds_pb_caps *caps; /* borrowed until close */
    int slots;              /* requests at once: max_seqs + max_queue; 1..DS_LINK_MAX_SLOTS */
    int heartbeat_ms;
    int router_timeout_ms; /* a router silent for that long is lost */
    int signal_fd;         /* signalfd: first signal drains, second stops; -1: none */
    pid_t parent;          /* stop when this is no longer our parent; 0: not supervised */
} ds_link_conf;

typedef enum {
    DS_LINK_SUBMIT, /* frame.env->submit is valid (ds_proto_validate_submit); the taker clears the frame */
    DS_LINK_CANCEL, /* id came with an earlier SUBMIT; may have ended meanwhile */
    DS_LINK_DRAIN,  /* finish what runs, then exit; no SUBMIT follows. deadline_ms 0: no deadline */
    DS_LINK_STOP,   /* end now */
} ds_link_kind;

typedef struct ds_link_cmd {
    ds_link_kind kind;
    uint64_t id; /* the link's own id, never used again; not the one on the wire */
    ds_frame frame;
    uint32_t deadline_ms;
} ds_link_cmd;

/* ds_link_open: starts the socket thread. Errors: DS_EINVAL, DS_EIO. An absent router is no error: it is
 * awaited. */
ds_code ds_link_open(const ds_link_conf *conf, ds_link **ret, ds_err *err);
/* ds_link_close: sends what is posted (at most 500 ms), stops the thread. NULL is fine. */
void ds_link_close(ds_link *l);

/* Engine side; one thread. */
/* ds_link_take: the next command into *ret, 1; or 0 when none came within timeout_ms (-1: wait for ever). */
int ds_link_take(ds_link *l, int timeout_ms, ds_link_cmd *ret);
/* Posts: `id` is that of the command. Dropped when its router is gone. Done and Error end the request and
 * free its slot. The socket thread is woken by ds_link_flush, once a step. */
void ds_link_tokens(ds_link *l, uint64_t id, ds_pb_tokens *t);
void ds_link_done(ds_link *l, uint64_t id, ds_pb_done *d);
void ds_link_error(ds_link *l, uint64_t id, ds_code code, const char *field, const char *msg);
/* ds_link_lost: the device is gone: tells the router (Error LOST of the link). Then close and exit. */
void ds_link_lost(ds_link *l, const char *msg);
/* ds_link_flush: stats (copied; strings borrowed) go out with the next heartbeat. */
void ds_link_flush(ds_link *l, const ds_pb_stats *stats);
int ds_link_live(ds_link *l); /* requests without an outcome */

#endif
