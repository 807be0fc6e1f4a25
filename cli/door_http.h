/* door_http.h - a load's door over HTTP: streams of server-sent events, hundreds at once on one thread. */
#ifndef DS_CLI_DOOR_HTTP_H
#define DS_CLI_DOOR_HTTP_H

#include "cli/load.h"

typedef enum { DS_DOOR_AUTO, DS_DOOR_CHAT, DS_DOOR_COMPLETIONS } ds_door_api; /* AUTO: chat for "turns" */

typedef struct ds_door_http_conf {
    const char *url, *model;
    ds_door_api api;
    int slots; /* at most DS_LOAD_MAX_SLOTS */
    int64_t max_tokens, timeout_ms;
    double temperature;
    int ignore_eos;
} ds_door_http_conf;

ds_code ds_door_http_open(const ds_door_http_conf *conf, ds_load *load, ds_door *ret, ds_err *err);

#endif
