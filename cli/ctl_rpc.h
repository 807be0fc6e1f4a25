/* ctl_rpc.h - dsparkctl's commands over the internal RPC door (libdspark-client). */
#ifndef DS_CLI_CTL_RPC_H
#define DS_CLI_CTL_RPC_H

#include "cli/ctl.h"
#include "client/client.h"

ds_code ds_ctl_rpc_open(const ds_ctl_conf *conf, struct ds_ctl_rpc **ret, ds_err *err);
void ds_ctl_rpc_close(struct ds_ctl_rpc *r);
ds_code ds_ctl_rpc_complete(ds_ctl *c, const char *prompt, ds_ctl_text_fn fn, void *ctx, ds_ctl_answer *ret,
                            ds_err *err);
ds_code ds_ctl_rpc_look(ds_ctl *c, ds_view *ret, ds_err *err);
ds_code ds_ctl_rpc_models(ds_ctl *c, ds_err *err);
ds_code ds_ctl_rpc_model(ds_ctl *c, char out[256]);
ds_code ds_ctl_rpc_tokenize(ds_ctl *c, const char *text, json_t **ret_ids, ds_err *err);

#endif
