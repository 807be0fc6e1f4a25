/* link_int.h - state shared by the two halves of the link: link.c (engine side) and link_io.c (socket
 * thread). */
#ifndef DS_WORKER_LINK_INT_H
#define DS_WORKER_LINK_INT_H

#include "proto/conn.h"
#include "worker/link.h"

#include <pthread.h>

/* A request from its Submit to its outcome. Engine-side id = generation * 65536 + slot. */
typedef struct link_slot {
    uint64_t wire_id, id; /* id 0: free */
    uint32_t epoch;       /* connection it came by */
    int cancelled;        /* a CANCEL command was queued: at most one each */
} link_slot;

typedef enum {
    LINK_CLOSED,     /* no socket; a new one is opened at reopen_ns */
    LINK_CONNECTING, /* socket open, no peer yet; ZeroMQ tries with its own backoff */
    LINK_GREETING,   /* connected, our Hello is sent */
    LINK_UP,         /* the router's Hello came, credits are granted */
} link_state;

struct ds_link {
    ds_link_conf conf;
    pthread_t thread;
    int wake_fd; /* eventfd: engine -> socket thread */

    /* shared, under lock */
    pthread_mutex_t lock;
    pthread_cond_t cond; /* commands for the engine */
    link_slot *slots;    /* [conf.slots] */
    int n_live;
    uint64_t generation;
    uint32_t epoch;    /* of the present connection; posts of another one are dropped */
    int up;            /* 1: posts of this epoch are kept */
    int credits_owed;  /* ended requests whose credit was not given back */
    ds_link_cmd *ring; /* [ring_cap] */
    int ring_cap, ring_head, ring_n;
    int draining, stopping, closing;
    int overflow; /* out was full: the router does not read */
    ds_buf out;   /* frames to send, each after its length (u32) */
    ds_pb_stats stats;
    ds_stats_lists stats_at;

    /* socket thread only */
    link_state state;
    void *zctx;
    ds_conn conn;
    ds_frame in;
    ds_buf sending;
    size_t sent;
    uint64_t heartbeat_ns, heard_ns, reopen_ns, stop_ns;
    uint64_t incarnation, beats;
    uint32_t backoff_ms;
};

/* All with lock held. */
ds_code link_post(ds_link *l, ds_pb_envelope env); /* appends to out; full: overflow is set */
void link_push(ds_link *l, ds_link_cmd cmd);       /* queues for the engine and wakes it */
void link_push_once(ds_link *l, ds_link_kind kind, uint32_t deadline_ms); /* DRAIN, STOP: the first counts */
void link_cancel_slot(ds_link *l, link_slot *s);
void link_post_error(ds_link *l, uint64_t wire_id, ds_code code, const char *field, const char *msg);

void *link_io_main(void *link); /* the socket thread */

#endif
