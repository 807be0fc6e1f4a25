/* conn.c - see conn.h. */
#include "proto/conn.h"

#include "proto/socket.h"

#include <errno.h>
#include <stdatomic.h>
#include <stdint.h>
#include <stdio.h>
#include <string.h>
#include <zmq.h>

enum {
    EVENTS = ZMQ_EVENT_HANDSHAKE_SUCCEEDED | ZMQ_EVENT_DISCONNECTED | ZMQ_EVENT_HANDSHAKE_FAILED_NO_DETAIL |
             ZMQ_EVENT_HANDSHAKE_FAILED_PROTOCOL | ZMQ_EVENT_HANDSHAKE_FAILED_AUTH,
};

static ds_code open_monitor(void *zctx, ds_conn *c, ds_err *err)
{
    static atomic_uint count;
    char name[64];
    int zero = 0;
    snprintf(name, sizeof name, "inproc://dspark-monitor-%u", atomic_fetch_add(&count, 1));
    if (zmq_socket_monitor(c->sock, name, EVENTS) != 0)
        return ds_err_set(err, DS_EIO, "monitoring a socket: %s", zmq_strerror(errno));
    c->mon = zmq_socket(zctx, ZMQ_PAIR);
    if (!c->mon || zmq_setsockopt(c->mon, ZMQ_LINGER, &zero, sizeof zero) != 0 ||
        zmq_connect(c->mon, name) != 0)
        return ds_err_set(err, DS_EIO, "opening a socket monitor: %s", zmq_strerror(errno));
    return DS_OK;
}

ds_code ds_conn_open(void *zctx, const char *endpoint, ds_conn *ret, ds_err *err)
{
    *ret = (ds_conn){0};
    ds_code code = ds_sock_dealer(zctx, &ret->sock, err);
    if (code == DS_OK)
        code = open_monitor(zctx, ret, err);
    if (code == DS_OK)
        code = ds_sock_connect(ret->sock, endpoint, err);
    if (code != DS_OK)
        ds_conn_close(ret, 0);
    return code;
}

ds_conn_event ds_conn_next(ds_conn *c)
{
    uint8_t head[6];
    while (c->mon && zmq_recv(c->mon, head, sizeof head, ZMQ_DONTWAIT) >= 2) {
        char address[256];
        zmq_recv(c->mon, address, sizeof address, ZMQ_DONTWAIT);
        uint16_t event;
        memcpy(&event, head, sizeof event); /* host order, by zmq_socket_monitor(3) */
        return event == ZMQ_EVENT_HANDSHAKE_SUCCEEDED ? DS_CONN_UP : DS_CONN_DOWN;
    }
    return DS_CONN_NONE;
}

void ds_conn_close(ds_conn *c, int linger_ms)
{
    if (c->sock) {
        zmq_setsockopt(c->sock, ZMQ_LINGER, &linger_ms, sizeof linger_ms);
        zmq_socket_monitor(c->sock, NULL, 0);
        zmq_close(c->sock);
    }
    if (c->mon)
        zmq_close(c->mon);
    *c = (ds_conn){0};
}
