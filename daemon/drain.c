/* drain.c - the way out. SIGTERM: new requests get 503, /ready says no, running ones finish within drain_ms,
 * then the workers are told to go and the process ends with 0. Time up, or a second signal: stop at once,
 * exit code 75. */
#include "daemon/daemon.h"
#include "daemon/supervise.h"

#include "base/log.h"

#include <signal.h>
#include <sysexits.h>

enum { WORKER_EXIT_MS = 3000 };

void ds_drain_signal(ds_daemon *d)
{
    if (d->draining) {
        ds_log(DS_LOG_WARN, "drain", "second signal: stopping with %d requests open", d->n_requests);
        int lost = d->n_requests;
        ds_daemon_fail_all(d);
        ds_daemon_exit(d, lost ? EX_TEMPFAIL : 0);
        return;
    }
    ds_log(DS_LOG_INFO, "drain", "draining: %d requests open", d->n_requests);
    d->draining = 1;
    d->drain_ns = ds_clock_ns(d->clock) + (uint64_t)d->conf.drain_ms * 1000000;
    ds_httpd_drain(d->http);
    ds_drain_tick(d);
}

void ds_drain_tick(ds_daemon *d)
{
    uint64_t now = ds_clock_ns(d->clock);
    if (!d->draining)
        return;
    if (d->workers_told) {
        if (!ds_supervisor_alive(d->sup) || now > d->drain_ns)
            ds_daemon_exit(d, 0);
    } else if (d->n_requests == 0 && ds_httpd_idle(d->http)) {
        ds_links_drain_workers(d->links, WORKER_EXIT_MS);
        ds_supervisor_stop(d->sup, SIGTERM);
        d->workers_told = 1;
        d->drain_ns = now + (uint64_t)WORKER_EXIT_MS * 1000000;
    } else if (now > d->drain_ns) {
        ds_log(DS_LOG_WARN, "drain", "%d requests still open after %lld ms", d->n_requests,
               (long long)d->conf.drain_ms);
        ds_daemon_fail_all(d);
        ds_daemon_exit(d, EX_TEMPFAIL);
    }
}
