/* conf.h - dsparkd's configuration: one table (conf.c) gives flags, file, environment, help and reference
 * page. */
#ifndef DS_DAEMON_CONF_H
#define DS_DAEMON_CONF_H

#include "base/conf.h"

#include <stdint.h>

typedef struct ds_dconf {
    char *model, *draft, *listen, *served_model_name, *device, *bind_workers, *rpc, *worker_config,
        *runtime_dir;
    char *log_level, *log_format;
    char *speculation, *weights; /* these and the next line: handed to the workers started here */
    int64_t max_draft, threads, kv_bytes, max_seqs, max_step_rows, max_model_len;
    int64_t workers;
    int64_t max_connections, max_body_bytes, max_backlog_bytes, max_waiting, max_pending_bytes;
    int64_t queue_ms, head_ms, idle_ms, stall_ms, heartbeat_ms, worker_timeout_ms, wedge_ms, drain_ms;
} ds_dconf;

extern const ds_conf_prog ds_dconf_prog;

/* ds_dconf_check: what one value alone cannot tell. DS_EINVAL names the key. */
ds_code ds_dconf_check(const ds_dconf *c, ds_err *err);

#endif
