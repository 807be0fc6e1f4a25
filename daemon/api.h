/* api.h - the paths of the HTTP door. */
#ifndef DS_DAEMON_API_H
#define DS_DAEMON_API_H

#include "daemon/daemon.h"

void ds_api_chat(ds_daemon *d, ds_hconn *c, ds_http_reader *msg);        /* POST /v1/chat/completions */
void ds_api_completions(ds_daemon *d, ds_hconn *c, ds_http_reader *msg); /* POST /v1/completions */
void ds_api_tokenize(ds_daemon *d, ds_hconn *c, ds_http_reader *msg);    /* POST /tokenize */
void ds_api_detokenize(ds_daemon *d, ds_hconn *c, ds_http_reader *msg);  /* POST /detokenize */

/* ds_api_start: a request of this connection, its body on the way to the pool. */
void ds_api_start(ds_daemon *d, ds_hconn *c, ds_http_reader *msg, const char *id_prefix, const ds_sink *sink,
                  ds_code (*prepare)(ds_request *, ds_err *), void (*prepared)(ds_request *));

#endif
