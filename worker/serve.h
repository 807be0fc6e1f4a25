/* serve.h - the engine thread's loop: commands of the link into the engine, events of the engine onto the
 * link. Owner: the engine thread. Invariant: what the link calls live, the engine has accepted or answers at
 * once. */
#ifndef DS_WORKER_SERVE_H
#define DS_WORKER_SERVE_H

#include "worker/engine.h"
#include "worker/link.h"

typedef struct ds_serve ds_serve;

ds_code ds_serve_create(ds_serve **ret, ds_err *err);
void ds_serve_destroy(ds_serve *s);
/* ds_serve_event: the engine's event callback; ctx is the ds_serve. */
void ds_serve_event(void *ctx, const ds_event *ev);
/* ds_serve_run: until drained (DS_OK), stopped (DS_ECANCELLED), the device is lost (DS_ELOST, the router was
 * told) or the engine reports another error. page_tokens: of the engine's conf, for the statistics. */
ds_code ds_serve_run(ds_serve *s, ds_engine *e, ds_link *l, int page_tokens, ds_err *err);

#endif
