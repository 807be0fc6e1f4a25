/* identity.h - what a model folder is, as workers of one router must agree on it. */
#ifndef DS_WORKER_IDENTITY_H
#define DS_WORKER_IDENTITY_H

#include "base/err.h"

#include <stddef.h>
#include <stdint.h>

typedef struct ds_identity {
    char name[257]; /* the folder's name: the model's id unless a served name is given */
    uint64_t hash;  /* of config.json, and name, size and tensor table of each shard; not of the weights */
    uint64_t file_bytes; /* of all shards */
} ds_identity;

/* ds_identity_read: DS_ENOTFOUND no such folder, config.json or shard; DS_EIO; DS_ECORRUPT a shard's header.
 */
ds_code ds_identity_read(const char *dir, ds_identity *ret, ds_err *err);

#endif
