/* The config file is hostile input: whatever it holds, loading either succeeds or names a fault. */
#include "base/conf.h"

#include <stdio.h>
#include <stdlib.h>
#include <sys/mman.h>
#include <unistd.h>

typedef struct conf {
    char *model, *device;
    int64_t pages, memory;
    double rate;
    int cache;
} conf;

static const ds_conf_key KEYS[] = {
    {"model", DS_CONF_STR, offsetof(conf, model), NULL, .help = ""},
    {"device", DS_CONF_ENUM, offsetof(conf, device), "cpu", .choices = "cpu|cuda", .help = ""},
    {"kv_pages", DS_CONF_INT, offsetof(conf, pages), "64", 1, 4096, .unit = "pages", .help = ""},
    {"memory", DS_CONF_BYTES, offsetof(conf, memory), "64M", 0, 0, .help = ""},
    {"rate", DS_CONF_FLOAT, offsetof(conf, rate), "0.5", 0, 10, .help = ""},
    {"prefix_cache", DS_CONF_BOOL, offsetof(conf, cache), "true", .help = ""},
};
static const ds_conf_prog PROG = {"fuzz", "", "", KEYS, 6, NULL};

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);
int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    int fd = memfd_create("conf", 0);
    char path[64], *argv[] = {"fuzz", "--config", path};
    if (fd < 0 || write(fd, data, size) != (ssize_t)size)
        abort();
    snprintf(path, sizeof path, "/proc/self/fd/%d", fd);
    conf c = {0};
    ds_conf_action action;
    ds_err err = {0};
    ds_code code = ds_conf_load(&PROG, &c, 3, argv, NULL, &action, NULL, &err);
    close(fd);
    if (code) {
        if (!err.msg[0] || c.model || c.device)
            abort();
        return 0;
    }
    ds_buf text = {0};
    if (ds_conf_dump(&PROG, &c, &text))
        abort();
    ds_buf_free(&text);
    ds_conf_free(&PROG, &c);
    return 0;
}
