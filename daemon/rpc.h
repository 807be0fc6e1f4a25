/* rpc.h - the door for internal clients: a ZeroMQ ROUTER that speaks proto/dspark.proto. Same validator, same
 * queue, same choices as HTTP. Owner: the loop thread. */
#ifndef DS_DAEMON_RPC_H
#define DS_DAEMON_RPC_H

#include "daemon/daemon.h"

ds_code ds_rpc_open(ds_daemon *d, const char *endpoint, ds_rpc **ret, ds_err *err);
void ds_rpc_close(ds_rpc *r); /* live requests are abandoned */
int ds_rpc_fd(const ds_rpc *r);
int ds_rpc_pending(ds_rpc *r);
void ds_rpc_drain(ds_rpc *r); /* take what waits, bounded per call */
void ds_rpc_tick(ds_rpc *r);  /* heartbeats; clients that went silent */

#endif
