/* conf.h - configuration as one table of keys. A program declares its table once; flags (--kv-pages 100), a
 * config file (kv_pages = 100), environment overrides (DSPARK_KV_PAGES=100), --help, --check-config and the
 * reference page all come from it. Precedence: default < file < environment < flag. Unknown keys and
 * out-of-range values are errors that name key, value and range. */
#ifndef DS_BASE_CONF_H
#define DS_BASE_CONF_H

#include "base/buf.h"
#include "base/err.h"

#include <stdint.h>

typedef enum {
    DS_CONF_STR,
    DS_CONF_INT,
    DS_CONF_BYTES,
    DS_CONF_FLOAT,
    DS_CONF_BOOL,
    DS_CONF_ENUM
} ds_conf_type;

typedef struct ds_conf_key {
    const char *name; /* "kv_pages": file and, upper case with DSPARK_, environment; flag is --kv-pages */
    ds_conf_type type;
    size_t offset;   /* of the field: char * (STR, ENUM), int64_t (INT, BYTES: 64M, 2G), double, int (BOOL) */
    const char *def; /* default as text; NULL: unset (STR) */
    double min, max; /* INT, BYTES, FLOAT; equal: any value */
    const char *choices; /* ENUM: "cpu|cuda" */
    const char *unit;    /* "ms", "bytes", "" */
    const char *help;    /* one line */
} ds_conf_key;

typedef struct ds_conf_prog {
    const char *name, *summary; /* "dsparkd", one line */
    const char *usage;          /* "--model DIR [options]" */
    const ds_conf_key *keys;
    int n_keys;
    const char *footer; /* printed at the end of --help; may be NULL */
} ds_conf_prog;

/* What the command line asked for beside values. */
typedef enum { DS_CONF_RUN, DS_CONF_HELP, DS_CONF_VERSION, DS_CONF_CHECK, DS_CONF_MARKDOWN } ds_conf_action;

/* ds_conf_load: fill `out` (a zeroed struct) from defaults, --config FILE, environ, argv. Positional words
 * are left in argv[*ret_rest..] only when ret_rest is not NULL, else they are errors. Strings are owned by
 * out: ds_conf_free. */
ds_code ds_conf_load(const ds_conf_prog *prog, void *out, int argc, char **argv, char **envp,
                     ds_conf_action *ret_action, int *ret_rest, ds_err *err);
/* ds_conf_has_colors: whether the terminal of this environment takes colours (TERM, NO_COLOR). */
int ds_conf_has_colors(char **envp);
void ds_conf_free(const ds_conf_prog *prog, void *out);
ds_code ds_conf_help(const ds_conf_prog *prog, ds_buf *out);     /* --help text */
ds_code ds_conf_markdown(const ds_conf_prog *prog, ds_buf *out); /* reference page (--help-markdown) */
ds_code ds_conf_dump(const ds_conf_prog *prog, const void *conf,
                     ds_buf *out); /* effective values, --check-config */
/* ds_conf_show: what an action other than RUN prints, on stdout (HELP, VERSION, CHECK, MARKDOWN); DS_EIO when
 * it cannot be written. */
ds_code ds_conf_show(const ds_conf_prog *prog, const void *conf, ds_conf_action action);

#endif
