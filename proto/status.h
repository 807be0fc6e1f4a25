/* status.h - one table: ds_code <-> RPC status <-> HTTP status and OpenAI error type.
 * The wire carries the ds_code itself (Error.code); RPC names follow the canonical gRPC codes. */
#ifndef DS_PROTO_STATUS_H
#define DS_PROTO_STATUS_H

#include "base/err.h"

#include <stdint.h>

typedef struct ds_status {
    ds_code code;
    int rpc;              /* canonical code number */
    const char *rpc_name; /* "INVALID_ARGUMENT" */
    int http;
    const char *type;   /* OpenAI error type */
    const char *reason; /* OpenAI error code: short, stable, for programs */
    int retry_after_ms; /* default Retry-After; 0: repeating it will not help */
} ds_status;

const ds_status *ds_status_of(ds_code code); /* never NULL: an unknown code is DS_EBUG's entry */
/* ds_status_from_wire: Error.code of a peer; a number that is not a ds_code becomes DS_EPROTO. */
ds_code ds_status_from_wire(uint32_t code);

#endif
