/* conf_help.c - what a table of keys says about itself: --help, the reference page, the effective values. */
#include "base/conf.h"
#include "base/conf_text.h"

#include <ctype.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum { HELP_COLUMN = 30, HELP_WIDTH = 100 };

void ds_conf_flag(const ds_conf_key *key, char out[DS_CONF_WORD])
{
    snprintf(out, DS_CONF_WORD, "--%s", key->name);
    for (char *p = out; *p; p++)
        if (*p == '_')
            *p = '-';
}

void ds_conf_env(const ds_conf_key *key, char out[DS_CONF_WORD])
{
    snprintf(out, DS_CONF_WORD, "DSPARK_%s", key->name);
    for (char *p = out; *p; p++)
        *p = (char)toupper((unsigned char)*p);
}

void ds_conf_number(double v, char out[DS_CONF_WORD])
{
    if (v == floor(v) && fabs(v) < 1e15) {
        snprintf(out, DS_CONF_WORD, "%.0f", v);
        return;
    }
    for (int digits = 6; digits <= 17; digits++) {
        snprintf(out, DS_CONF_WORD, "%.*g", digits, v);
        if (strtod(out, NULL) == v)
            return;
    }
}

void ds_conf_size(int64_t bytes, char out[DS_CONF_WORD])
{
    static const char units[] = "TGMK";
    for (int i = 0; bytes && i < 4; i++) {
        int shift = 10 * (4 - i);
        if (bytes % ((int64_t)1 << shift) == 0) {
            snprintf(out, DS_CONF_WORD, "%lld%c", (long long)(bytes / ((int64_t)1 << shift)), units[i]);
            return;
        }
    }
    snprintf(out, DS_CONF_WORD, "%lld", (long long)bytes);
}

static int is_number(const ds_conf_key *key)
{
    return key->type == DS_CONF_INT || key->type == DS_CONF_BYTES || key->type == DS_CONF_FLOAT;
}

void ds_conf_range(const ds_conf_key *key, char out[DS_CONF_WORD])
{
    out[0] = 0;
    if (!is_number(key) || key->min == key->max)
        return;
    char lo[DS_CONF_WORD], hi[DS_CONF_WORD];
    int is_size = key->type == DS_CONF_BYTES;
    if (is_size) {
        ds_conf_size((int64_t)key->min, lo);
        if (key->max < 0x1p62)
            ds_conf_size((int64_t)key->max, hi);
        else
            snprintf(hi, sizeof hi, "4194304T");
    } else {
        ds_conf_number(key->min, lo);
        ds_conf_number(key->max, hi);
    }
    const char *unit = key->unit ? key->unit : "";
    snprintf(out, DS_CONF_WORD, "%.60s to %.60s%s%.60s", lo, hi, *unit ? " " : "", unit);
}

const char *ds_conf_type_name(const ds_conf_key *key)
{
    switch (key->type) {
    case DS_CONF_STR:
        return "text";
    case DS_CONF_INT:
        return "integer";
    case DS_CONF_BYTES:
        return "size";
    case DS_CONF_FLOAT:
        return "number";
    case DS_CONF_BOOL:
        return "boolean";
    case DS_CONF_ENUM:
        return "choice";
    }
    return "";
}

/* "--kv-pages N", "--device cpu|cuda", "--[no-]prefix-cache" */
static void usage_of(const ds_conf_key *key, char out[2 * DS_CONF_WORD])
{
    static const char *const words[] = {
        [DS_CONF_STR] = "TEXT", [DS_CONF_INT] = "N", [DS_CONF_BYTES] = "SIZE", [DS_CONF_FLOAT] = "X"};
    char flag[DS_CONF_WORD];
    ds_conf_flag(key, flag);
    if (key->type == DS_CONF_BOOL)
        snprintf(out, 2 * DS_CONF_WORD, "--[no-]%s", flag + 2);
    else
        snprintf(out, 2 * DS_CONF_WORD, "%s %s", flag,
                 key->type == DS_CONF_ENUM ? key->choices : words[key->type]);
}

/* Text wrapped at HELP_WIDTH, continued at HELP_COLUMN. The cursor stands at column `col`. */
static ds_code put_wrapped(ds_buf *out, const char *text, int col)
{
    while (*text) {
        int n = (int)strcspn(text, " ");
        if (col > HELP_COLUMN && col + 1 + n > HELP_WIDTH) {
            DS_TRY(ds_buf_printf(out, "\n%*s", HELP_COLUMN, ""));
            col = HELP_COLUMN;
        } else if (col > HELP_COLUMN) {
            DS_TRY(ds_buf_puts(out, " "));
            col++;
        }
        DS_TRY(ds_buf_append(out, text, (size_t)n));
        col += n;
        text += n + (text[n] == ' ');
    }
    return ds_buf_puts(out, "\n");
}

static ds_code put_option(ds_buf *out, const char *usage, const char *text)
{
    int n = 2 + (int)strlen(usage);
    DS_TRY(ds_buf_printf(out, "  %s", usage));
    if (n + 2 > HELP_COLUMN)
        DS_TRY(ds_buf_printf(out, "\n%*s", HELP_COLUMN, ""));
    else
        DS_TRY(ds_buf_printf(out, "%*s", HELP_COLUMN - n, ""));
    return put_wrapped(out, text, HELP_COLUMN);
}

ds_code ds_conf_help(const ds_conf_prog *prog, ds_buf *out)
{
    DS_TRY(ds_buf_printf(out, "Usage: %s %s\n%s\n\nOptions:\n", prog->name, prog->usage, prog->summary));
    for (int i = 0; i < prog->n_keys; i++) {
        const ds_conf_key *key = &prog->keys[i];
        char usage[2 * DS_CONF_WORD], range[DS_CONF_WORD], text[4 * DS_CONF_WORD];
        usage_of(key, usage);
        ds_conf_range(key, range);
        int has_default =
            key->def && key->def[0] && !(key->type == DS_CONF_BOOL && strcmp(key->def, "false") == 0);
        snprintf(text, sizeof text, "%s%s%s%s%s%s%s", key->help, has_default || range[0] ? " (" : "",
                 has_default ? "default " : "", has_default ? key->def : "",
                 has_default && range[0] ? "; " : "", range, has_default || range[0] ? ")" : "");
        DS_TRY(put_option(out, usage, text));
    }
    DS_TRY(put_option(out, "--config FILE", "read keys from FILE, one \"key = value\" a line"));
    DS_TRY(put_option(out, "--check-config", "check the configuration, print the effective values and exit"));
    DS_TRY(put_option(out, "--help-markdown", "print the reference page of these options and exit"));
    DS_TRY(put_option(out, "--version", "print the version and exit"));
    DS_TRY(put_option(out, "-h, --help", "print this help and exit"));
    DS_TRY(ds_buf_puts(out,
                       "\nEach option is also a key of the config file (kv_pages = 100) and an environment "
                       "variable\n(DSPARK_KV_PAGES=100). A flag wins over the environment, that over the "
                       "file.\n"));
    if (prog->footer)
        DS_TRY(ds_buf_printf(out, "\n%s\n", prog->footer));
    return DS_OK;
}

/* A table cell: '|' would end it. */
static ds_code put_cell(ds_buf *out, const char *text, int code)
{
    DS_TRY(ds_buf_puts(out, code && *text ? " `" : " "));
    for (const char *p = text; *p; p++) {
        if (*p == '|')
            DS_TRY(ds_buf_puts(out, "\\"));
        DS_TRY(ds_buf_append(out, p, 1));
    }
    return ds_buf_puts(out, code && *text ? "` |" : " |");
}

ds_code ds_conf_markdown(const ds_conf_prog *prog, ds_buf *out)
{
    DS_TRY(ds_buf_printf(out,
                         "## %s\n\n%s\n\nUsage: `%s %s`\n\n"
                         "| Key | Type | Default | Range or choices | Meaning |\n|---|---|---|---|---|\n",
                         prog->name, prog->summary, prog->name, prog->usage));
    for (int i = 0; i < prog->n_keys; i++) {
        const ds_conf_key *key = &prog->keys[i];
        char range[DS_CONF_WORD];
        ds_conf_range(key, range);
        if (!range[0] && key->unit)
            snprintf(range, sizeof range, "%s", key->unit);
        DS_TRY(ds_buf_puts(out, "|"));
        DS_TRY(put_cell(out, key->name, 1));
        DS_TRY(put_cell(out, ds_conf_type_name(key), 0));
        DS_TRY(put_cell(out, key->def ? key->def : "", 1));
        DS_TRY(put_cell(out, key->type == DS_CONF_ENUM ? key->choices : range, 0));
        DS_TRY(put_cell(out, key->help, 0));
        DS_TRY(ds_buf_puts(out, "\n"));
    }
    return DS_OK;
}

static ds_code put_quoted(ds_buf *out, const char *text)
{
    DS_TRY(ds_buf_puts(out, "\""));
    for (const char *p = text; *p; p++) {
        const char *escaped = *p == '"' ? "\\\"" : *p == '\\' ? "\\\\" : *p == '\n' ? "\\n" : NULL;
        DS_TRY(escaped ? ds_buf_puts(out, escaped) : ds_buf_append(out, p, 1));
    }
    return ds_buf_puts(out, "\"\n");
}

ds_code ds_conf_dump(const ds_conf_prog *prog, const void *conf, ds_buf *out)
{
    for (int i = 0; i < prog->n_keys; i++) {
        const ds_conf_key *key = &prog->keys[i];
        const void *at = (const char *)conf + key->offset;
        char text[DS_CONF_WORD];
        if (key->type == DS_CONF_STR || key->type == DS_CONF_ENUM) {
            const char *s = *(char *const *)at;
            DS_TRY(ds_buf_printf(out, s ? "%s = " : "# %s is not set\n", key->name));
            if (s)
                DS_TRY(put_quoted(out, s));
            continue;
        }
        if (key->type == DS_CONF_BOOL)
            snprintf(text, sizeof text, "%s", *(const int *)at ? "true" : "false");
        else if (key->type == DS_CONF_FLOAT)
            ds_conf_number(*(const double *)at, text);
        else if (key->type == DS_CONF_BYTES)
            ds_conf_size(*(const int64_t *)at, text);
        else
            snprintf(text, sizeof text, "%lld", (long long)*(const int64_t *)at);
        DS_TRY(ds_buf_printf(out, "%s = %s\n", key->name, text));
    }
    return DS_OK;
}

ds_code ds_conf_show(const ds_conf_prog *prog, const void *conf, ds_conf_action action)
{
    ds_buf out = {0};
    ds_code code = DS_OK;
    switch (action) {
    case DS_CONF_RUN:
        return DS_OK;
    case DS_CONF_HELP:
        code = ds_conf_help(prog, &out);
        break;
    case DS_CONF_VERSION:
        code = ds_buf_printf(&out, "%s %s\n", prog->name, DS_VERSION);
        break;
    case DS_CONF_CHECK:
        code = ds_conf_dump(prog, conf, &out);
        break;
    case DS_CONF_MARKDOWN:
        code = ds_conf_markdown(prog, &out);
        break;
    }
    if (!code && (fwrite(out.data, 1, out.len, stdout) != out.len || fflush(stdout)))
        code = DS_EIO;
    ds_buf_free(&out);
    return code;
}
