/* conn.h - a DEALER connection that knows whether its peer is there.
 *
 * ZeroMQ reconnects behind one's back, and a ROUTER then sees a stranger without a Hello. So a link is tied
 * to one connection: when the monitor reports it gone, the owner closes the conn, forgets what was in flight,
 * and opens a new one. Used by the worker link and the client library. Owner: one thread. */
#ifndef DS_PROTO_CONN_H
#define DS_PROTO_CONN_H

#include "base/err.h"

typedef struct ds_conn {
    void *sock; /* DEALER: for ds_frame_send, ds_frame_recv and zmq_poll */
    void *mon;  /* PAIR of the monitor: poll it, then call ds_conn_next */
} ds_conn;

typedef enum { DS_CONN_NONE, DS_CONN_UP, DS_CONN_DOWN } ds_conn_event;

/* ds_conn_open: starts connecting to endpoint; ds_conn_next reports when it stands. Errors: DS_EINVAL,
 * DS_EIO. */
ds_code ds_conn_open(void *zctx, const char *endpoint, ds_conn *ret, ds_err *err);
/* ds_conn_next: the next change, DS_CONN_NONE when there is none; never blocks. */
ds_conn_event ds_conn_next(ds_conn *c);
/* ds_conn_close: drops what was not sent within linger_ms. Safe on a zeroed or closed conn. */
void ds_conn_close(ds_conn *c, int linger_ms);

#endif
