/* identity.c - see identity.h. Reads headers only, so it costs milliseconds for any model. */
#include "worker/identity.h"

#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

enum { MAX_CONFIG_BYTES = 16 << 20, MAX_HEADER_BYTES = 100 << 20, MAX_SHARDS = 4096 };

static uint64_t mix(uint64_t h, const void *p, size_t n) /* FNV-1a, 64 bits */
{
    const unsigned char *s = p;
    for (size_t i = 0; i < n; i++)
        h = (h ^ s[i]) * 0x100000001b3u;
    return h;
}

static ds_code fail_open(const char *path, ds_err *err)
{
    return ds_err_set(err, errno == ENOENT || errno == ENOTDIR ? DS_ENOTFOUND : DS_EIO, "%s: %s", path,
                      strerror(errno));
}

/* Hashes the first n bytes of fd. */
static ds_code hash_head(int fd, const char *path, uint64_t n, uint64_t *hash, ds_err *err)
{
    char block[16384];
    while (n > 0) {
        ssize_t got = read(fd, block, n < sizeof block ? n : sizeof block);
        if (got <= 0)
            return ds_err_set(err, got < 0 ? DS_EIO : DS_ECORRUPT, "%s: %s", path,
                              got < 0 ? strerror(errno) : "ends inside its header");
        *hash = mix(*hash, block, (size_t)got);
        n -= (uint64_t)got;
    }
    return DS_OK;
}

static ds_code hash_file(const char *dir, const char *name, int is_shard, ds_identity *id, ds_err *err)
{
    char path[PATH_MAX];
    struct stat st;
    uint64_t head = 0;
    ds_code code = DS_OK;
    if (snprintf(path, sizeof path, "%s/%s", dir, name) >= (int)sizeof path)
        return ds_err_set(err, DS_EINVAL, "path of %s is too long", name);
    int fd = open(path, O_RDONLY | O_CLOEXEC | O_NONBLOCK);
    if (fd < 0)
        return fail_open(path, err);
    if (fstat(fd, &st) != 0 || !S_ISREG(st.st_mode))
        code = ds_err_set(err, DS_ECORRUPT, "%s is not a regular file", path);
    else if (!is_shard)
        head = (uint64_t)st.st_size;
    else if (pread(fd, &head, sizeof head, 0) != sizeof head || head > (uint64_t)st.st_size)
        code = ds_err_set(err, DS_ECORRUPT, "%s has no safetensors header", path);
    uint64_t max = is_shard ? MAX_HEADER_BYTES : MAX_CONFIG_BYTES;
    if (code == DS_OK && head > max)
        code = ds_err_set(err, DS_ECORRUPT, "%s has a header of %llu bytes, at most %llu", path,
                          (unsigned long long)head, (unsigned long long)max);
    if (code == DS_OK) {
        id->hash = mix(mix(id->hash, name, strlen(name) + 1), &st.st_size, sizeof st.st_size);
        id->file_bytes += is_shard ? (uint64_t)st.st_size : 0;
        code = hash_head(fd, path, is_shard && head + 8 <= (uint64_t)st.st_size ? head + 8 : head, &id->hash,
                         err);
    }
    close(fd);
    return code;
}

static int is_shard(const struct dirent *e)
{
    size_t n = strlen(e->d_name);
    return n > 12 && strcmp(e->d_name + n - 12, ".safetensors") == 0;
}

ds_code ds_identity_read(const char *dir, ds_identity *ret, ds_err *err)
{
    struct dirent **entry = NULL;
    *ret = (ds_identity){.hash = 0xcbf29ce484222325u};
    char *real = realpath(dir, NULL);
    if (!real)
        return fail_open(dir, err);
    const char *slash = strrchr(real, '/');
    snprintf(ret->name, sizeof ret->name, "%s", slash && slash[1] ? slash + 1 : real);
    ds_code code = hash_file(real, "config.json", 0, ret, err);
    int n = code == DS_OK ? scandir(real, &entry, is_shard, alphasort) : 0;
    if (n < 0)
        code = fail_open(real, err);
    else if (code == DS_OK && n == 0)
        code = ds_err_set(err, DS_ENOTFOUND, "%s holds no .safetensors file", real);
    else if (n > MAX_SHARDS)
        code = ds_err_set(err, DS_ECORRUPT, "%s holds %d shards, at most %d", real, n, MAX_SHARDS);
    for (int i = 0; i < n; i++) {
        if (code == DS_OK)
            code = hash_file(real, entry[i]->d_name, 1, ret, err);
        free(entry[i]);
    }
    free(entry);
    free(real);
    return code;
}
