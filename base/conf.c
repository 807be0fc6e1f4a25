/* conf.c - reads a table of keys from defaults, file, environment and flags, in that order of precedence.
 *
 * Every value, the default included, takes the same way through set_value, so each source has the same checks
 * and the same errors. The command line is parsed first (it names the file) and applied last. The file is
 * hostile input: bounded, no NUL bytes, each key at most once. No owner thread: runs once at start. */
#include "base/conf.h"
#include "base/conf_text.h"

#include <ctype.h>
#include <errno.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum { MAX_FILE_BYTES = 1 << 20, MAX_KEY_BYTES = 64 };

static void *field(const ds_conf_key *key, void *conf)
{
    return (char *)conf + key->offset;
}

static const ds_conf_key *find_key(const ds_conf_prog *prog, const char *name)
{
    for (int i = 0; i < prog->n_keys; i++)
        if (strcmp(prog->keys[i].name, name) == 0)
            return &prog->keys[i];
    return NULL;
}

/* Edit distance; names longer than MAX_KEY_BYTES are never near anything. */
static int distance(const char *a, const char *b)
{
    int row[MAX_KEY_BYTES + 1];
    size_t n = strlen(a), m = strlen(b);
    if (n > MAX_KEY_BYTES || m > MAX_KEY_BYTES)
        return MAX_KEY_BYTES;
    for (size_t j = 0; j <= m; j++)
        row[j] = (int)j;
    for (size_t i = 1; i <= n; i++) {
        int diagonal = row[0];
        row[0] = (int)i;
        for (size_t j = 1; j <= m; j++) {
            int change = diagonal + (a[i - 1] != b[j - 1]);
            diagonal = row[j];
            int step = (row[j] < row[j - 1] ? row[j] : row[j - 1]) + 1;
            row[j] = change < step ? change : step;
        }
    }
    return row[m];
}

static ds_code unknown_key(const ds_conf_prog *prog, const char *name, const char *source, ds_err *err)
{
    const char *near = "config";
    int best = distance(name, near);
    for (int i = 0; i < prog->n_keys; i++) {
        int d = distance(name, prog->keys[i].name);
        if (d < best) {
            best = d;
            near = prog->keys[i].name;
        }
    }
    int is_flag = source[0] == '-';
    char hint[DS_CONF_WORD] = "";
    if (best <= 2 || best <= (int)strlen(name) / 3) {
        ds_conf_key k = {.name = near};
        char flag[DS_CONF_WORD];
        ds_conf_flag(&k, flag);
        snprintf(hint, sizeof hint, "; did you mean %.*s?", MAX_KEY_BYTES + 2, is_flag ? flag : near);
    }
    if (is_flag)
        return ds_err_field(err, DS_EINVAL, name, "unknown flag %.100s%s", source, hint);
    return ds_err_field(err, DS_EINVAL, name, "%s: unknown key \"%.100s\"%s", source, name, hint);
}

static ds_code bad_value(const ds_conf_key *key, const char *text, const char *source, const char *want,
                         ds_err *err)
{
    return ds_err_field(err, DS_EINVAL, key->name, "%s: %s is \"%.60s\", must be %s", source, key->name, text,
                        want);
}

static int parse_int(const char *text, int64_t *ret)
{
    char *end;
    errno = 0;
    long long v = strtoll(text, &end, 10);
    if (end == text || *end || errno || isspace((unsigned char)text[0]))
        return 0;
    *ret = v;
    return 1;
}

/* "4096", "64K", "2G", "1GiB": powers of 1024. */
static int parse_bytes(const char *text, int64_t *ret)
{
    static const char units[] = "KMGT";
    char *end;
    errno = 0;
    long long v = strtoll(text, &end, 10);
    if (end == text || errno || isspace((unsigned char)text[0]))
        return 0;
    const char *unit = *end ? strchr(units, toupper((unsigned char)*end)) : NULL;
    int shift = unit ? 10 * (int)(unit - units + 1) : 0;
    if (unit) {
        end++;
        if (strcmp(end, "iB") == 0)
            end += 2;
    }
    if (*end || v > INT64_MAX >> shift || v < -(INT64_MAX >> shift))
        return 0;
    *ret = v * ((int64_t)1 << shift);
    return 1;
}

static int parse_float(const char *text, double *ret)
{
    char *end;
    double v = strtod(text, &end);
    if (end == text || *end || !isfinite(v) || isspace((unsigned char)text[0]))
        return 0;
    *ret = v;
    return 1;
}

static int parse_bool(const char *text, int *ret)
{
    static const char *const words[][2] = {{"false", "true"}, {"no", "yes"}, {"off", "on"}, {"0", "1"}};
    for (size_t i = 0; i < sizeof words / sizeof *words; i++)
        for (int v = 0; v < 2; v++)
            if (strcasecmp(text, words[i][v]) == 0) {
                *ret = v;
                return 1;
            }
    return 0;
}

static int in_choices(const char *choices, const char *text)
{
    size_t n = strlen(text);
    if (n == 0 || strchr(text, '|'))
        return 0;
    for (const char *p = choices; p; p = strchr(p, '|'), p = p ? p + 1 : NULL)
        if (strncmp(p, text, n) == 0 && (p[n] == '|' || p[n] == 0))
            return 1;
    return 0;
}

static ds_code set_string(const ds_conf_key *key, char **at, const char *text, ds_err *err)
{
    char *copy = strdup(text);
    if (!copy)
        return ds_err_field(err, DS_ENOMEM, key->name, "no memory for the value of %s", key->name);
    free(*at);
    *at = copy;
    return DS_OK;
}

static ds_code set_number(const ds_conf_key *key, void *at, const char *text, const char *source, ds_err *err)
{
    int64_t n = 0;
    double v = 0;
    char range[DS_CONF_WORD], want[2 * DS_CONF_WORD];
    ds_conf_range(key, range);
    int good = key->type == DS_CONF_FLOAT   ? parse_float(text, &v)
               : key->type == DS_CONF_BYTES ? parse_bytes(text, &n)
                                            : parse_int(text, &n);
    if (!good) {
        const char *kind = key->type == DS_CONF_FLOAT   ? "a number"
                           : key->type == DS_CONF_BYTES ? "a size such as 4096, 64M or 2G"
                                                        : "an integer";
        snprintf(want, sizeof want, "%s%s%s", kind, range[0] ? ", " : "", range);
        return bad_value(key, text, source, want, err);
    }
    double compared = key->type == DS_CONF_FLOAT ? v : (double)n;
    if (key->min != key->max && (compared < key->min || compared > key->max))
        return bad_value(key, text, source, range, err);
    if (key->type == DS_CONF_FLOAT)
        *(double *)at = v;
    else
        *(int64_t *)at = n;
    return DS_OK;
}

static ds_code set_value(const ds_conf_key *key, void *conf, const char *text, const char *source,
                         ds_err *err)
{
    void *at = field(key, conf);
    char want[DS_CONF_WORD];
    switch (key->type) {
    case DS_CONF_STR:
        return set_string(key, at, text, err);
    case DS_CONF_ENUM:
        if (!in_choices(key->choices, text)) {
            snprintf(want, sizeof want, "one of %s", key->choices);
            return bad_value(key, text, source, want, err);
        }
        return set_string(key, at, text, err);
    case DS_CONF_BOOL:
        if (!parse_bool(text, at))
            return bad_value(key, text, source, "true or false", err);
        return DS_OK;
    case DS_CONF_INT:
    case DS_CONF_BYTES:
    case DS_CONF_FLOAT:
        return set_number(key, at, text, source, err);
    }
    return ds_err_field(err, DS_EBUG, key->name, "key %s has no known type", key->name);
}

/* ---- file ---- */

static char *trim(char *s)
{
    while (isspace((unsigned char)*s))
        s++;
    size_t n = strlen(s);
    while (n && isspace((unsigned char)s[n - 1]))
        s[--n] = 0;
    return s;
}

/* The value right of '=', in place: quotes and escapes resolved, comment removed. NULL: the quotes are wrong.
 */
static char *unquote(char *s)
{
    s = trim(s);
    if (*s != '"' && *s != '\'') {
        for (char *p = s; *p; p++)
            if (*p == '#' && (p == s || isspace((unsigned char)p[-1]))) {
                *p = 0;
                break;
            }
        return trim(s);
    }
    char quote = *s, *out = s, *p = s + 1;
    for (; *p && *p != quote; p++) {
        if (*p == '\\' && quote == '"') {
            static const char from[] = "nt\\\"", to[] = "\n\t\\\"";
            const char *escape = p[1] ? strchr(from, p[1]) : NULL;
            if (!escape)
                return NULL;
            *out++ = to[escape - from];
            p++;
        } else {
            *out++ = *p;
        }
    }
    if (*p != quote)
        return NULL;
    p = trim(p + 1);
    if (*p && *p != '#')
        return NULL;
    *out = 0;
    return s;
}

static ds_code apply_line(const ds_conf_prog *prog, void *conf, char *line, const char *source, int line_no,
                          int *seen_line, ds_err *err)
{
    line = trim(line);
    if (!*line || *line == '#')
        return DS_OK;
    char *equals = strchr(line, '=');
    if (!equals)
        return ds_err_set(err, DS_EINVAL, "%s: \"%.60s\" is not of the form key = value", source, line);
    *equals = 0;
    char *name = trim(line);
    for (char *p = name; *p; p++)
        if (*p == '-')
            *p = '_';
    const ds_conf_key *key = find_key(prog, name);
    if (!key)
        return unknown_key(prog, name, source, err);
    int *seen = &seen_line[key - prog->keys];
    if (*seen)
        return ds_err_field(err, DS_EINVAL, name, "%s: key %s was already set in line %d", source, name,
                            *seen);
    *seen = line_no;
    char *value = unquote(equals + 1);
    if (!value)
        return ds_err_field(
            err, DS_EINVAL, name,
            "%s: the value of %s has an open quote, an unknown escape, or text after its quotes", source,
            name);
    return set_value(key, conf, value, source, err);
}

static ds_code read_file(const char *path, char **ret, size_t *ret_len, ds_err *err)
{
    FILE *f = fopen(path, "rb");
    if (!f)
        return ds_err_field(err, errno == ENOENT ? DS_ENOTFOUND : DS_EIO, "config", "config file %s: %s",
                            path, strerror(errno));
    char *text = malloc(MAX_FILE_BYTES + 2);
    size_t n = text ? fread(text, 1, MAX_FILE_BYTES + 1, f) : 0;
    int failed = ferror(f) ? errno : 0;
    fclose(f);
    ds_code code = DS_OK;
    if (!text)
        code = ds_err_field(err, DS_ENOMEM, "config", "no memory to read config file %s", path);
    else if (failed)
        code = ds_err_field(err, DS_EIO, "config", "config file %s: %s", path, strerror(failed));
    else if (n > MAX_FILE_BYTES)
        code = ds_err_field(err, DS_EINVAL, "config", "config file %s is larger than %d bytes", path,
                            MAX_FILE_BYTES);
    else if (memchr(text, 0, n))
        code = ds_err_field(err, DS_EINVAL, "config", "config file %s holds a NUL byte", path);
    if (code) {
        free(text);
        return code;
    }
    text[n] = 0;
    *ret = text;
    *ret_len = n;
    return DS_OK;
}

static ds_code apply_file(const ds_conf_prog *prog, void *conf, const char *path, ds_err *err)
{
    char *text = NULL;
    size_t len = 0;
    DS_TRY(read_file(path, &text, &len, err));
    int *seen_line = calloc((size_t)prog->n_keys + 1, sizeof *seen_line);
    ds_code code = seen_line ? DS_OK : ds_err_set(err, DS_ENOMEM, "no memory to read config file %s", path);
    int line_no = 1;
    for (char *line = text, *next; !code && line; line = next, line_no++) {
        next = strchr(line, '\n');
        if (next)
            *next++ = 0;
        char source[DS_CONF_WORD];
        snprintf(source, sizeof source, "%.200s:%d", path, line_no);
        code = apply_line(prog, conf, line, source, line_no, seen_line, err);
    }
    free(seen_line);
    free(text);
    return code;
}

/* ---- environment ---- */

/* Variables of other programs share the prefix, so an unknown DSPARK_X is not an error. */
static ds_code apply_environment(const ds_conf_prog *prog, void *conf, char **envp, ds_err *err)
{
    for (int i = 0; envp && i < prog->n_keys; i++) {
        char name[DS_CONF_WORD], source[2 * DS_CONF_WORD];
        ds_conf_env(&prog->keys[i], name);
        size_t n = strlen(name);
        for (char **e = envp; *e; e++) {
            if (strncmp(*e, name, n) != 0 || (*e)[n] != '=')
                continue;
            snprintf(source, sizeof source, "environment %s", name);
            DS_TRY(set_value(&prog->keys[i], conf, *e + n + 1, source, err));
            break;
        }
    }
    return DS_OK;
}

/* ---- flags ---- */

typedef struct flag_value { /* one flag as given, applied after file and environment */
    const ds_conf_key *key;
    const char *text;
} flag_value;

typedef struct command_line {
    flag_value *flags; /* [n] */
    int n;
    char **words; /* [n_words] positional */
    int n_words;
    const char *config;
    ds_conf_action action;
} command_line;

static int reserved_flag(const char *name, ds_conf_action *ret)
{
    static const struct {
        const char *name;
        ds_conf_action action;
    } reserved[] = {{"help", DS_CONF_HELP},
                    {"version", DS_CONF_VERSION},
                    {"check_config", DS_CONF_CHECK},
                    {"help_markdown", DS_CONF_MARKDOWN}};
    for (size_t i = 0; i < sizeof reserved / sizeof *reserved; i++)
        if (strcmp(name, reserved[i].name) == 0) {
            *ret = reserved[i].action;
            return 1;
        }
    return 0;
}

/* One "--name[=value]" at argv[*i]; *i advances over a value that stands apart. */
static ds_code parse_flag(const ds_conf_prog *prog, int argc, char **argv, int *i, command_line *cl,
                          ds_err *err)
{
    const char *arg = argv[*i], *equals = strchr(arg, '='), *text = equals ? equals + 1 : NULL;
    char name[2 * MAX_KEY_BYTES], shown[2 * MAX_KEY_BYTES + 2];
    int n = equals ? (int)(equals - arg) : (int)strlen(arg);
    snprintf(shown, sizeof shown, "%.*s", n, arg);
    snprintf(name, sizeof name, "%s", shown + 2);
    for (char *p = name; *p; p++)
        if (*p == '-')
            *p = '_';
    if (!text && reserved_flag(name, &cl->action))
        return DS_OK;
    const ds_conf_key *key = find_key(prog, name);
    const ds_conf_key *negated = strncmp(name, "no_", 3) == 0 ? find_key(prog, name + 3) : NULL;
    int is_config = strcmp(name, "config") == 0;
    if (!key && !text && negated && negated->type == DS_CONF_BOOL) {
        key = negated;
        text = "false";
    }
    if (!key && !is_config)
        return unknown_key(prog, name, shown, err);
    if (!text && key && key->type == DS_CONF_BOOL)
        text = "true";
    if (!text) {
        if (*i + 1 >= argc || strncmp(argv[*i + 1], "--", 2) == 0)
            return ds_err_field(err, DS_EINVAL, name, "flag %s needs a value", shown);
        text = argv[++*i];
    }
    if (is_config)
        cl->config = text;
    else
        cl->flags[cl->n++] = (flag_value){key, text};
    return DS_OK;
}

static ds_code parse_command_line(const ds_conf_prog *prog, int argc, char **argv, int words_allowed,
                                  command_line *cl, ds_err *err)
{
    int only_words = 0;
    for (int i = 1; i < argc; i++) {
        if (!only_words && strcmp(argv[i], "--") == 0) {
            only_words = 1;
        } else if (!only_words && strcmp(argv[i], "-h") == 0) {
            cl->action = DS_CONF_HELP;
        } else if (!only_words && strncmp(argv[i], "--", 2) == 0) {
            DS_TRY(parse_flag(prog, argc, argv, &i, cl, err));
        } else if (words_allowed) {
            cl->words[cl->n_words++] = argv[i];
        } else {
            return ds_err_set(err, DS_EINVAL, "unexpected word \"%.100s\"; values are given as --key value",
                              argv[i]);
        }
    }
    return DS_OK;
}

static ds_code apply_flags(const command_line *cl, void *conf, ds_err *err)
{
    for (int i = 0; i < cl->n; i++) {
        char flag[DS_CONF_WORD], source[DS_CONF_WORD + 8];
        ds_conf_flag(cl->flags[i].key, flag);
        snprintf(source, sizeof source, "flag %s", flag);
        DS_TRY(set_value(cl->flags[i].key, conf, cl->flags[i].text, source, err));
    }
    return DS_OK;
}

static ds_code load(const ds_conf_prog *prog, void *out, int argc, char **argv, char **envp,
                    int words_allowed, command_line *cl, ds_err *err)
{
    for (int i = 0; i < prog->n_keys; i++)
        if (prog->keys[i].def)
            DS_TRY(set_value(&prog->keys[i], out, prog->keys[i].def, "default", err));
    DS_TRY(parse_command_line(prog, argc, argv, words_allowed, cl, err));
    if (cl->action == DS_CONF_HELP || cl->action == DS_CONF_VERSION || cl->action == DS_CONF_MARKDOWN)
        return DS_OK; /* help must work beside a broken file */
    if (cl->config)
        DS_TRY(apply_file(prog, out, cl->config, err));
    DS_TRY(apply_environment(prog, out, envp, err));
    return apply_flags(cl, out, err);
}

ds_code ds_conf_load(const ds_conf_prog *prog, void *out, int argc, char **argv, char **envp,
                     ds_conf_action *ret_action, int *ret_rest, ds_err *err)
{
    command_line cl = {.action = DS_CONF_RUN};
    cl.flags = calloc((size_t)argc + 1, sizeof *cl.flags);
    cl.words = calloc((size_t)argc + 1, sizeof *cl.words);
    ds_code code =
        cl.flags && cl.words ? DS_OK : ds_err_set(err, DS_ENOMEM, "no memory for the command line");
    if (!code)
        code = load(prog, out, argc, argv, envp, ret_rest != NULL, &cl, err);
    if (!code) {
        *ret_action = cl.action;
        if (ret_rest) { /* words may stand between flags: gather them at the end of argv, in order */
            *ret_rest = argc - cl.n_words;
            if (cl.n_words)
                memcpy(argv + *ret_rest, cl.words, (size_t)cl.n_words * sizeof *argv);
        }
    } else {
        ds_conf_free(prog, out);
    }
    free(cl.flags);
    free(cl.words);
    return code;
}

void ds_conf_free(const ds_conf_prog *prog, void *out)
{
    for (int i = 0; i < prog->n_keys; i++) {
        if (prog->keys[i].type != DS_CONF_STR && prog->keys[i].type != DS_CONF_ENUM)
            continue;
        char **at = field(&prog->keys[i], out);
        free(*at);
        *at = NULL;
    }
}

int ds_conf_has_colors(char **envp)
{
    int term = 0, none = 0;
    for (; *envp; envp++) {
        none |= !strncmp(*envp, "NO_COLOR=", 9) && (*envp)[9];
        if (!strncmp(*envp, "TERM=", 5))
            term = (*envp)[5] && strcmp(*envp + 5, "dumb") != 0;
    }
    return term && !none;
}
