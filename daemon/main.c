/* main.c - dsparkd: configuration, then the loop until it is told to stop. Exit codes: docs/operations.md. */
#include "daemon/daemon.h"

#include "base/log.h"

#include <jansson.h>
#include <stdio.h>
#include <string.h>

enum { EXIT_CONFIG = 2, EXIT_MODEL = 3, EXIT_ADDRESS = 4, EXIT_INTERNAL = 70 };

extern char **environ;

static ds_log_level level(const char *name)
{
    return !strcmp(name, "error") ? DS_LOG_ERROR
           : !strcmp(name, "warn") ? DS_LOG_WARN
           : !strcmp(name, "debug") ? DS_LOG_DEBUG
                                    : DS_LOG_INFO;
}

/* Which exit code an error at start means. */
static int exit_of(const ds_err *err)
{
    if (!strcmp(err->field, "listen") || err->code == DS_EIO || err->code == DS_ELIMIT)
        return EXIT_ADDRESS;
    if (err->code == DS_EINVAL)
        return EXIT_CONFIG;
    return err->code == DS_ENOMEM || err->code == DS_EBUG ? EXIT_INTERNAL : EXIT_MODEL;
}

int main(int argc, char **argv)
{
    static ds_daemon d;
    ds_err err = {0};
    ds_conf_action action;
    if (ds_conf_load(&ds_dconf_prog, &d.conf, argc, argv, environ, &action, NULL, &err)) {
        fprintf(stderr, "dsparkd: %s\n", err.msg);
        return EXIT_CONFIG;
    }
    int code = 0;
    int check = action == DS_CONF_RUN || action == DS_CONF_CHECK;
    if (check && ds_dconf_check(&d.conf, &err)) {
        fprintf(stderr, "dsparkd: %s\n", err.msg);
        code = EXIT_CONFIG;
    } else if (action != DS_CONF_RUN) {
        code = ds_conf_show(&ds_dconf_prog, &d.conf, action) ? EXIT_INTERNAL : 0;
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
