/* safetensors.h - the tensors of a checkpoint folder: model.safetensors, or the shards named by
 * model.safetensors.index.json. Owner: the thread that opens the model; read-only once mapped.
 *
 * Headers are hostile input. After a successful open: every tensor lies inside its file, no two overlap, the
 * data section has no holes and ends with the file, shape times element size equals the byte range, and names
 * are unique over all shards. Only then are files mapped. A file that somebody truncates later still faults;
 * checkpoints are replaced by renaming, never in place (docs/models.md). */
#ifndef DS_WORKER_MODEL_SAFETENSORS_H
#define DS_WORKER_MODEL_SAFETENSORS_H

#include "base/err.h"

#include <stddef.h>
#include <stdint.h>

enum { DS_ST_MAX_RANK = 8 };

typedef struct ds_st_tensor {
    const char *name;
    char dtype[12]; /* as stored: "F32", "BF16", "F16", "I64", ... */
    int rank;
    int64_t shape[DS_ST_MAX_RANK];
    uint64_t begin, bytes; /* offset in the file, header included */
    int file;              /* index of the shard */
    const void *data;      /* NULL until ds_st_map; any alignment */
} ds_st_tensor;

typedef struct ds_st_file {
    char *name; /* "model-00001-of-00002.safetensors" */
    int fd;
    uint64_t size;
    void *map; /* NULL until ds_st_map */
} ds_st_file;

typedef struct ds_st {
    ds_st_tensor *tensor; /* [n] sorted by name */
    int n;
    ds_st_file *file; /* [n_files] */
    int n_files;
} ds_st;

/* ds_st_open: read and check all headers; nothing is mapped.
 * Errors: DS_ENOTFOUND no checkpoint or shard; DS_EIO; DS_ECORRUPT (message names file and tensor). */
ds_code ds_st_open(const char *dir, ds_st *ret, ds_err *err);
/* ds_st_map: map every file read-only and set the data pointers. */
ds_code ds_st_map(ds_st *st, ds_err *err);
void ds_st_close(ds_st *st); /* unmaps; a zeroed struct is fine */
/* ds_st_find: NULL when there is none. */
const ds_st_tensor *ds_st_find(const ds_st *st, const char *name);

/* ds_st_parse: the header JSON (n bytes) of a file of file_size bytes whose data starts at data_begin;
 * appends the tensors to st as file `file` (unsorted). */
ds_code ds_st_parse(ds_st *st, int file, const char *name, const char *json, size_t n, uint64_t data_begin,
                    uint64_t file_size, ds_err *err);
/* ds_st_sort: order by name; DS_ECORRUPT when two shards hold the same name. */
ds_code ds_st_sort(ds_st *st, ds_err *err);

#endif
