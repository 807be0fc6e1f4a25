/* file.c - see file.h. Reads until the end instead of trusting the size, so that a growing file meets the
 * same limit; only regular files are read. */
#include "text/file.h"

#include "base/limits.h"

#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <stdio.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

static ds_code read_all(FILE *f, ds_buf *out)
{
    struct stat st;
    if (fstat(fileno(f), &st) == 0 && st.st_size > 0 && st.st_size <= DS_MAX_TOKENIZER_BYTES)
        DS_TRY(ds_buf_reserve(out, (size_t)st.st_size + 1));
    char chunk[65536];
    for (size_t n; (n = fread(chunk, 1, sizeof chunk, f)) > 0;) {
        if (out->len + n > DS_MAX_TOKENIZER_BYTES)
            return DS_ELIMIT;
        DS_TRY(ds_buf_append(out, chunk, n));
    }
    return ferror(f) ? DS_EIO : DS_OK;
}

ds_code ds_text_read_file(const char *dir, const char *name, ds_buf *out, ds_err *err)
{
    char path[PATH_MAX];
    if (snprintf(path, sizeof path, "%s/%s", dir, name) >= (int)sizeof path)
        return ds_err_set(err, DS_EINVAL, "the path of %s is too long", name);
    int fd = open(path, O_RDONLY | O_CLOEXEC | O_NONBLOCK); /* a FIFO must not hang the start */
    if (fd < 0)
        return ds_err_set(err, errno == ENOENT ? DS_ENOTFOUND : DS_EIO, "%s: %s", path, strerror(errno));
    struct stat st;
    FILE *f = fstat(fd, &st) == 0 && S_ISREG(st.st_mode) ? fdopen(fd, "rb") : NULL;
    if (!f) {
        close(fd);
        return ds_err_set(err, DS_EIO, "%s is not a regular file", path);
    }
    ds_code code = read_all(f, out);
    fclose(f);
    if (code == DS_OK)
        return DS_OK;
    ds_buf_free(out);
    if (code == DS_ELIMIT)
        return ds_err_set(err, code, "%s has more than %d bytes", path, DS_MAX_TOKENIZER_BYTES);
    return ds_err_set(err, code, "%s cannot be read", path);
}
