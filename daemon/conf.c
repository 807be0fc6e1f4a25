/* conf.c - see conf.h. */
#include "daemon/conf.h"

#include "base/limits.h"

#include <stddef.h>

#define KEY(type, member) #member, type, offsetof(ds_dconf, member)

static const ds_conf_key KEYS[] = {
    {KEY(DS_CONF_STR, model), NULL, .help = "folder of the target model (Hugging Face layout); required"},
    {KEY(DS_CONF_STR, draft), NULL, .help = "folder of the draft model; none: no speculation"},
    {KEY(DS_CONF_ENUM, speculation), NULL, .choices = "auto|off|max",
     .help =
         "workers started here, with a draft: what requests that do not say get; none: the worker decides"},
    {KEY(DS_CONF_INT, max_draft), "0", 0, DS_MAX_DRAFT_TOKENS, .unit = "tokens",
     .help = "workers started here, with a draft: drafts verified at once for one request; 0: the block"},
    {KEY(DS_CONF_STR, listen), "127.0.0.1:8000",
     .help = "ADDR:PORT of the HTTP door; port 0 takes a free one"},
    {KEY(DS_CONF_STR, served_model_name), NULL,
     .help = "the model's id in the API; default: the folder's name"},
    {KEY(DS_CONF_ENUM, device), "cpu", .choices = "cpu|cuda", .help = "device of the workers started here"},
    {KEY(DS_CONF_INT, workers), "1", 0, 64,
     .help = "workers to start and supervise; 0: only those that connect"},
    {KEY(DS_CONF_INT, threads), "0", 0, 1024,
     .help = "threads of each worker started here; 0: the worker decides"},
    {KEY(DS_CONF_ENUM, weights), "auto", .choices = "auto|int8",
     .help = "workers started here: auto keeps weights as stored, int8 converts at load"},
    {KEY(DS_CONF_BYTES, kv_bytes), "0", 0, 0x1p50, .unit = "bytes",
     .help = "workers started here: KV pool; 0: the worker decides"},
    {KEY(DS_CONF_INT, max_seqs), "0", 0, 4096, .help = "workers started here: sequences at once; 0: theirs"},
    {KEY(DS_CONF_INT, max_step_rows), "0", 0, 65536,
     .help = "workers started here: tokens of a step; 0: theirs"},
    {KEY(DS_CONF_INT, max_model_len), "0", 0, 1 << 20, .unit = "tokens",
     .help = "workers started here: longest sequence; 0: the model's"},
    {KEY(DS_CONF_STR, worker_config), NULL, .help = "configuration file handed to the workers started here"},
    {KEY(DS_CONF_STR, bind_workers), NULL,
     .help = "ipc:// or tcp:// endpoint for workers; default: a private socket. tcp has no authentication: "
             "keep it on "
             "a trusted network"},
    {KEY(DS_CONF_STR, rpc), NULL,
     .help = "ipc:// or tcp:// endpoint for internal RPC clients; none: no RPC door"},
    {KEY(DS_CONF_STR, runtime_dir), NULL,
     .help = "folder for private sockets; default: a new one in the temporary folder"},
    {KEY(DS_CONF_INT, max_connections), "4096", 1, 60000, .help = "HTTP connections; one more gets 503"},
    {KEY(DS_CONF_BYTES, max_body_bytes), "8M", 1024, DS_MAX_HTTP_BODY_BYTES, .unit = "bytes",
     .help = "body of one request; larger gets 413"},
    {KEY(DS_CONF_BYTES, max_backlog_bytes), "1M", 65536, 1 << 30, .unit = "bytes",
     .help = "answer a client may leave unread; then it is dropped"},
    {KEY(DS_CONF_INT, max_waiting), "1024", 1, 65536,
     .help = "choices waiting for a worker; one more gets 429"},
    {KEY(DS_CONF_BYTES, max_pending_bytes), "256M", 1 << 20, 0x1p36, .unit = "bytes",
     .help = "request bodies being tokenised at once; beyond: 429"},
    {KEY(DS_CONF_INT, queue_ms), "30000", 1, 3600000, .unit = "ms",
     .help = "longest wait for a worker; then 429 or 503"},
    {KEY(DS_CONF_INT, head_ms), "10000", 10, 600000, .unit = "ms", .help = "time to send a request's header"},
    {KEY(DS_CONF_INT, idle_ms), "75000", 10, 3600000, .unit = "ms",
     .help = "keep-alive of an idle connection"},
    {KEY(DS_CONF_INT, stall_ms), "30000", 10, 3600000, .unit = "ms",
     .help = "longest time a client may read nothing"},
    {KEY(DS_CONF_INT, heartbeat_ms), "250", 10, 60000, .unit = "ms",
     .help = "heartbeat towards workers and clients"},
    {KEY(DS_CONF_INT, worker_timeout_ms), "2000", 50, 600000, .unit = "ms",
     .help = "silence after which a worker is lost"},
    {KEY(DS_CONF_INT, wedge_ms), "60000", 100, 3600000, .unit = "ms",
     .help = "a worker that holds work but makes no step for so long is lost"},
    {KEY(DS_CONF_INT, drain_ms), "45000", 0, 3600000, .unit = "ms", .help = "longest drain after SIGTERM"},
    {KEY(DS_CONF_ENUM, log_level), "info", .choices = "error|warn|info|debug",
     .help = "least severe line logged"},
    {KEY(DS_CONF_ENUM, log_format), "text", .choices = "text|json", .help = "one line per event on stderr"},
};

const ds_conf_prog ds_dconf_prog = {
    .name = "dsparkd",
    .summary = "Serves a large language model over the OpenAI HTTP API and internal RPC.",
    .usage = "--model DIR [--listen ADDR:PORT] [options]",
    .keys = KEYS,
    .n_keys = sizeof KEYS / sizeof *KEYS,
    .footer =
        "SIGTERM or SIGINT drains: new requests get 503, running ones finish; a second one stops at once.\n"
        "Exit codes: 0 stopped as asked, 64 command line or configuration, 65 a model file is corrupt or "
        "unsupported,\n"
        "66 it does not exist, 69 it does not fit, 70 internal error, 74 an address, file or socket failed,\n"
        "75 stopped before the work was done.\n",
};

ds_code ds_dconf_check(const ds_dconf *c, ds_err *err)
{
    if (!c->model || !c->model[0])
        return ds_err_field(err, DS_EINVAL, "model", "--model DIR is required");
    if (c->workers == 0 && !c->bind_workers)
        return ds_err_field(err, DS_EINVAL, "bind_workers", "--workers 0 needs --bind-workers ENDPOINT");
    if (c->worker_timeout_ms < 2 * c->heartbeat_ms)
        return ds_err_field(err, DS_EINVAL, "worker_timeout_ms",
                            "worker_timeout_ms is %lld, must be at least twice heartbeat_ms (%lld)",
                            (long long)c->worker_timeout_ms, (long long)c->heartbeat_ms);
    return DS_OK;
}
