/* supervise.h - the workers this router starts itself: spawn, watch, restart with backoff, stop.
 * Owner: the loop thread. The binary is `dspark-worker` beside our own executable. */
#ifndef DS_DAEMON_SUPERVISE_H
#define DS_DAEMON_SUPERVISE_H

#include "base/err.h"
#include "daemon/daemon.h"

/* ds_supervisor_open: starts conf.workers processes that connect to endpoint. Errors: DS_ENOTFOUND no binary,
 * DS_EIO spawn. */
ds_code ds_supervisor_open(ds_daemon *d, const char *endpoint, ds_supervisor **ret, ds_err *err);
/* ds_supervisor_lost: the link says this worker is gone; when it is ours and still lives, it is killed (a
 * wedged process must not hold its memory) and started again. Names of others are ignored. */
void ds_supervisor_lost(ds_supervisor *s, const char *name);
int ds_supervisor_alive(const ds_supervisor *s); /* processes not yet reaped */
/* ds_supervisor_stop: no restarts any more; sig to all. */
void ds_supervisor_stop(ds_supervisor *s, int sig);
void ds_supervisor_close(ds_supervisor *s); /* memory goes with the loop's last callbacks */

#endif
