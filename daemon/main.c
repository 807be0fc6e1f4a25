/* main.c - dsparkd: configuration, then the loop until it is told to stop. Exit codes: docs/operations.md. */
#include "daemon/daemon.h"

#include "base/log.h"

#include <jansson.h>
#include <stdio.h>
#include <string.h>
#include <sysexits.h>

extern char **environ;

static ds_log_level level(const char *name)
{
    return !strcmp(name, "error")   ? DS_LOG_ERROR
           : !strcmp(name, "warn")  ? DS_LOG_WARN
           : !strcmp(name, "debug") ? DS_LOG_DEBUG
                                    : DS_LOG_INFO;
}

/* Which exit code an error at start means. */
static int exit_of(const ds_err *err)
{
    switch (err->code) {
    case DS_EINVAL:
        return EX_USAGE;
    case DS_ENOTFOUND:
        return EX_NOINPUT;
    case DS_ECORRUPT:
    case DS_EUNSUPPORTED:
        return EX_DATAERR;
    case DS_EIO:
    case DS_ELIMIT: /* another process serves this endpoint */
        return EX_IOERR;
    default:
        return EX_SOFTWARE;
    }
}

int main(int argc, char **argv)
{
    static ds_daemon d;
    ds_err err = {0};
    ds_conf_action action;
    if (ds_conf_load(&ds_dconf_prog, &d.conf, argc, argv, environ, &action, NULL, &err)) {
        fprintf(stderr, "dsparkd: %s\n", err.msg);
        return EX_USAGE;
    }
    int code = 0;
    struct sockaddr_storage addr;
    int check = action == DS_CONF_RUN || action == DS_CONF_CHECK;
    if (check && (ds_dconf_check(&d.conf, &err) || ds_httpd_parse_listen(d.conf.listen, &addr, &err))) {
        fprintf(stderr, "dsparkd: %s\n", err.msg);
        code = EX_USAGE;
    } else if (action != DS_CONF_RUN) {
        code = ds_conf_show(&ds_dconf_prog, &d.conf, action) ? EX_SOFTWARE : 0;
    } else {
        ds_log_init(level(d.conf.log_level), !strcmp(d.conf.log_format, "json"));
        json_object_seed(0);
        if (ds_daemon_open(&d, &err)) {
            ds_log(DS_LOG_ERROR, "main", "%s", err.msg);
            code = exit_of(&err);
        } else {
            ds_daemon_run(&d);
            code = d.exit_code;
        }
        ds_daemon_close(&d);
    }
    ds_conf_free(&ds_dconf_prog, &d.conf);
    return code;
}
