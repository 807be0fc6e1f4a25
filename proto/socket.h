/* socket.h - ZeroMQ sockets with every option that matters set on purpose (docs: proto/PROTOCOL.md,
 * "Sockets"). A socket belongs to the thread that uses it. */
#ifndef DS_PROTO_SOCKET_H
#define DS_PROTO_SOCKET_H

#include "base/err.h"

enum {
    DS_SOCK_HWM = 10000,         /* messages per peer; backstop only, credits are the flow control */
    DS_SOCK_LINGER_MS = 500,     /* last words (Error LOST, Done) may still leave at close */
    DS_SOCK_HANDSHAKE_MS = 2000, /* a silent connection is dropped after this */
    DS_SOCK_HEARTBEAT_MS = 250,  /* ZMTP ping */
    DS_SOCK_HEARTBEAT_TIMEOUT_MS = 5000,
    DS_SOCK_RECONNECT_MS = 100,
    DS_SOCK_RECONNECT_MAX_MS = 5000,
    DS_HEARTBEAT_MS = 250, /* application heartbeat (Hello.heartbeat_ms) */
};

/* ds_sock_router: a ROUTER, mandatory routing, no handover. Errors: DS_EIO names the option. */
ds_code ds_sock_router(void *zctx, void **ret, ds_err *err);
/* ds_sock_dealer: a DEALER that queues nothing before the connection stands (IMMEDIATE). */
ds_code ds_sock_dealer(void *zctx, void **ret, ds_err *err);

/* ds_sock_bind: "ipc://PATH" or "tcp://HOST:PORT". An ipc path is guarded by PATH.lock, because ZeroMQ takes
 * over a live path silently, and is made private (0600); *ret_lock is the lock's descriptor (-1 for tcp),
 * held as long as the socket. Errors: DS_ELIMIT another process serves there; DS_EINVAL endpoint; DS_EIO. */
ds_code ds_sock_bind(void *sock, const char *endpoint, int *ret_lock, ds_err *err);
ds_code ds_sock_connect(void *sock, const char *endpoint, ds_err *err);

#endif
