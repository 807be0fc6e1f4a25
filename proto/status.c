/* status.c - the table of status.h. */
#include "proto/status.h"

static const ds_status g_table[] = {
    {DS_OK, 0, "OK", 200, "", "", 0},
    {DS_EINVAL, 3, "INVALID_ARGUMENT", 400, "invalid_request_error", "invalid_value", 0},
    {DS_ENOTFOUND, 5, "NOT_FOUND", 404, "invalid_request_error", "not_found", 0},
    {DS_EUNSUPPORTED, 12, "UNIMPLEMENTED", 400, "invalid_request_error", "unsupported", 0},
    {DS_ELIMIT, 8, "RESOURCE_EXHAUSTED", 429, "rate_limit_error", "overloaded", 1000},
    {DS_ENOMEM, 8, "RESOURCE_EXHAUSTED", 503, "server_error", "out_of_memory", 1000},
    {DS_ETIMEOUT, 4, "DEADLINE_EXCEEDED", 504, "server_error", "timeout", 1000},
    {DS_ECANCELLED, 1, "CANCELLED", 499, "invalid_request_error", "cancelled", 0},
    {DS_EDRAINING, 14, "UNAVAILABLE", 503, "server_error", "draining", 2000},
    {DS_EIO, 14, "UNAVAILABLE", 502, "server_error", "io", 1000},
    {DS_EPROTO, 13, "INTERNAL", 502, "server_error", "protocol", 0},
    {DS_ECORRUPT, 15, "DATA_LOSS", 500, "server_error", "corrupt", 0},
    {DS_EDEVICE, 13, "INTERNAL", 500, "server_error", "device", 0},
    {DS_ENUMERIC, 13, "INTERNAL", 500, "server_error", "numeric", 0},
    {DS_ELOST, 14, "UNAVAILABLE", 503, "server_error", "worker_lost", 1000},
    {DS_EBUG, 13, "INTERNAL", 500, "server_error", "internal", 0},
};
enum { N_TABLE = sizeof g_table / sizeof g_table[0] };

const ds_status *ds_status_of(ds_code code)
{
    for (int i = 0; i < N_TABLE; i++)
        if (g_table[i].code == code)
            return &g_table[i];
    return &g_table[N_TABLE - 1];
}

ds_code ds_status_from_wire(uint32_t code)
{
    for (int i = 1; i < N_TABLE; i++)
        if ((uint32_t)g_table[i].code == code)
            return g_table[i].code;
    return DS_EPROTO;
}
