/* door_rpc.h - a load's door over the internal RPC: one client, any number of requests at once. */
#ifndef DS_CLI_DOOR_RPC_H
#define DS_CLI_DOOR_RPC_H

#include "cli/load.h"
#include "client/client.h"

typedef struct ds_door_rpc_conf {
    int slots;
    int64_t max_tokens;
    double temperature;
    int ignore_eos;
} ds_door_rpc_conf;

/* ds_door_rpc_open: borrows client. RPC knows no chat template: the turns of a conversation and the answers
 * to them are joined by line ends. */
ds_code ds_door_rpc_open(const ds_door_rpc_conf *conf, ds_client *client, ds_load *load, ds_door *ret,
                         ds_err *err);

#endif
