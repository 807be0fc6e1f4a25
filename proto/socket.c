/* socket.c - see socket.h. The reason of each value is in proto/PROTOCOL.md, "Sockets". */
#include "proto/socket.h"

#include "base/limits.h"

#include <errno.h>
#include <fcntl.h>
#include <stdint.h>
#include <stdio.h>
#include <string.h>
#include <sys/file.h>
#include <sys/stat.h>
#include <unistd.h>
#include <zmq.h>

typedef struct option {
    int key, value;
    const char *name;
} option;

static const option g_common[] = {
    {ZMQ_LINGER, DS_SOCK_LINGER_MS, "LINGER"},
    {ZMQ_SNDHWM, DS_SOCK_HWM, "SNDHWM"},
    {ZMQ_RCVHWM, DS_SOCK_HWM, "RCVHWM"},
    {ZMQ_SNDTIMEO, 0, "SNDTIMEO"},
    {ZMQ_HANDSHAKE_IVL, DS_SOCK_HANDSHAKE_MS, "HANDSHAKE_IVL"},
    {ZMQ_HEARTBEAT_IVL, DS_SOCK_HEARTBEAT_MS, "HEARTBEAT_IVL"},
    {ZMQ_HEARTBEAT_TIMEOUT, DS_SOCK_HEARTBEAT_TIMEOUT_MS, "HEARTBEAT_TIMEOUT"},
    {ZMQ_RECONNECT_IVL, DS_SOCK_RECONNECT_MS, "RECONNECT_IVL"},
    {ZMQ_RECONNECT_IVL_MAX, DS_SOCK_RECONNECT_MAX_MS, "RECONNECT_IVL_MAX"},
};

static ds_code set_option(void *sock, const option *o, ds_err *err)
{
    if (zmq_setsockopt(sock, o->key, &o->value, sizeof o->value) != 0)
        return ds_err_field(err, DS_EIO, o->name, "setting ZMQ_%s: %s", o->name, zmq_strerror(errno));
    return DS_OK;
}

static ds_code set_options(void *sock, const option *special, int n, ds_err *err)
{
    int64_t max = DS_MAX_FRAME_BYTES;
    if (zmq_setsockopt(sock, ZMQ_MAXMSGSIZE, &max, sizeof max) != 0)
        return ds_err_field(err, DS_EIO, "MAXMSGSIZE", "setting ZMQ_MAXMSGSIZE: %s", zmq_strerror(errno));
    for (size_t i = 0; i < sizeof g_common / sizeof g_common[0]; i++)
        DS_TRY(set_option(sock, &g_common[i], err));
    for (int i = 0; i < n; i++)
        DS_TRY(set_option(sock, &special[i], err));
    return DS_OK;
}

static ds_code open_socket(void *zctx, int type, const option *special, int n, void **ret, ds_err *err)
{
    void *sock = zmq_socket(zctx, type);
    if (!sock)
        return ds_err_set(err, DS_EIO, "opening a ZeroMQ socket: %s", zmq_strerror(errno));
    ds_code code = set_options(sock, special, n, err);
    if (code != DS_OK) {
        zmq_close(sock);
        return code;
    }
    *ret = sock;
    return DS_OK;
}

ds_code ds_sock_router(void *zctx, void **ret, ds_err *err)
{
    static const option special[] = {{ZMQ_ROUTER_MANDATORY, 1, "ROUTER_MANDATORY"},
                                     {ZMQ_ROUTER_HANDOVER, 0, "ROUTER_HANDOVER"}};
    return open_socket(zctx, ZMQ_ROUTER, special, 2, ret, err);
}

ds_code ds_sock_dealer(void *zctx, void **ret, ds_err *err)
{
    static const option special[] = {{ZMQ_IMMEDIATE, 1, "IMMEDIATE"}};
    return open_socket(zctx, ZMQ_DEALER, special, 1, ret, err);
}

static ds_code lock_ipc(const char *path, int *ret_lock, ds_err *err)
{
    char lock[256];
    if (snprintf(lock, sizeof lock, "%s.lock", path) >= (int)sizeof lock)
        return ds_err_set(err, DS_EINVAL, "ipc path %s is too long", path);
    int fd = open(lock, O_RDWR | O_CREAT | O_CLOEXEC | O_NOFOLLOW, 0600);
    if (fd < 0)
        return ds_err_set(err, DS_EIO, "opening %s: %s", lock, strerror(errno));
    if (flock(fd, LOCK_EX | LOCK_NB) != 0) {
        close(fd);
        return ds_err_set(err, DS_ELIMIT, "another process serves ipc://%s", path);
    }
    *ret_lock = fd;
    return DS_OK;
}

ds_code ds_sock_bind(void *sock, const char *endpoint, int *ret_lock, ds_err *err)
{
    const char *path = strncmp(endpoint, "ipc://", 6) == 0 && endpoint[6] != '@' ? endpoint + 6 : NULL;
    *ret_lock = -1;
    if (path)
        DS_TRY(lock_ipc(path, ret_lock, err));
    mode_t old = umask(0177);
    int rc = zmq_bind(sock, endpoint), why = errno;
    umask(old);
    if (rc == 0)
        return DS_OK;
    if (*ret_lock >= 0)
        close(*ret_lock);
    *ret_lock = -1;
    return ds_err_set(err,
                      why == EADDRINUSE ? DS_ELIMIT
                      : why == EINVAL   ? DS_EINVAL
                                        : DS_EIO,
                      "binding %s: %s", endpoint, zmq_strerror(why));
}

ds_code ds_sock_connect(void *sock, const char *endpoint, ds_err *err)
{
    if (zmq_connect(sock, endpoint) != 0)
        return ds_err_set(err, errno == EINVAL ? DS_EINVAL : DS_EIO, "connecting to %s: %s", endpoint,
                          zmq_strerror(errno));
    return DS_OK;
}
