/* daemon.h - the router process: one struct that every module of the room sees. Owner: the loop thread; the
 * thread pool reads tok, chat and conf only, which do not change after start. */
#ifndef DS_DAEMON_DAEMON_H
#define DS_DAEMON_DAEMON_H

#include "base/clock.h"
#include "base/metric.h"
#include "daemon/conf.h"
#include "daemon/http_conn.h"
#include "daemon/request.h"
#include "daemon/worker_link.h"

typedef struct ds_rpc ds_rpc;
typedef struct ds_supervisor ds_supervisor;

typedef struct ds_counters {
    ds_metric *prompt_tokens, *output_tokens, *cached_tokens, *moved, *cancelled, *failed, *finished, *events;
    ds_metric *running, *waiting, *connections, *workers, *dropped, *ready;
    ds_metric *ttft, *itl, *duration;
} ds_counters;

struct ds_daemon {
    ds_dconf conf;
    uv_loop_t *loop;
    ds_clock clock;
    char name[64]; /* of this process, towards workers */
    /* text: immutable */
    ds_tokenizer *tok;
    ds_chat_kind chat;
    char chat_error[DS_ERR_MSG_MAX]; /* why there is no chat template; "" when there is one */
    char *model;                     /* served name */
    char fingerprint[40];
    int64_t created; /* start of the process, Unix seconds */
    /* doors and links */
    void *zctx;
    ds_links *links;
    ds_httpd *http;
    ds_rpc *rpc; /* NULL without --rpc */
    ds_supervisor *sup;
    /* requests */
    ds_request *requests;
    int n_requests, n_preparing;
    size_t preparing_bytes;
    ds_choice *head, *tail; /* admission queue, by priority then arrival */
    int n_waiting, pump;    /* pump: the queue may move */
    ds_buf scratch;         /* one event or answer under construction */
    ds_metrics *metrics;
    ds_counters m;
    int draining, stopping, exit_code;
    int workers_told;  /* draining: they were asked to go */
    uint64_t drain_ns; /* when draining must end */
};

/* daemon.c */
ds_code ds_daemon_open(ds_daemon *d, ds_err *err); /* conf is filled; everything else is made */
void ds_daemon_run(ds_daemon *d);                  /* until told to stop */
void ds_daemon_close(ds_daemon *d);
void ds_daemon_exit(ds_daemon *d, int exit_code); /* stop at once; the first code counts */
void ds_daemon_fail_all(ds_daemon *d);            /* every open request gets its error */
/* drain.c */
void ds_drain_signal(ds_daemon *d); /* SIGTERM or SIGINT: the first drains, the second stops */
void ds_drain_tick(ds_daemon *d);   /* is everything done, or the time up? */

/* admit.c */
void ds_admit_push(ds_choice *c, int first); /* first: before its equals (it had its turn) */
void ds_admit_remove(ds_choice *c);
void ds_admit_pump(ds_daemon *d);                         /* submit while workers have room */
void ds_admit_expire(ds_daemon *d);                       /* those that waited too long */
ds_code ds_admit_check(ds_daemon *d, int n, ds_err *err); /* room for n more choices? */

/* metrics.c */
ds_code ds_metrics_open(ds_daemon *d, ds_err *err);
ds_code ds_metrics_page(ds_daemon *d, ds_buf *out);
void ds_metrics_http(ds_daemon *d, const char *path, int status); /* path: one of ours, never the client's */

/* api.c */
void ds_api_request(void *d, ds_hconn *c, ds_http_reader *msg);

#endif
