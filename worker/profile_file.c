/* profile_file.c - the profile as a JSON file. What is read may be hostile: sizes, order and range of every
 * number are checked, and an error names the key. */
#include "worker/profile.h"

#include <ctype.h>
#include <errno.h>
#include <fcntl.h>
#include <jansson.h>
#include <math.h>
#include <stdio.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

enum { MAX_BYTES = 1 << 18 };

ds_code ds_profile_path(const char *dir, const ds_profile_key *key, char *ret, size_t cap, ds_err *err)
{
    int n = snprintf(ret, cap, "%s/dspark-profile.", dir), device = n;
    if (n > 0 && (size_t)n < cap)
        n += snprintf(ret + n, cap - (size_t)n, "%s.%d-seqs.json", key->device, key->max_seqs);
    if (n < 0 || (size_t)n >= cap)
        return ds_err_field(err, DS_EINVAL, "profile_dir", "profile_dir is too long");
    for (size_t i = 0; i < strlen(key->device); i++)
        if (!isalnum((unsigned char)ret[device + (int)i]))
            ret[device + (int)i] = '-';
    return DS_OK;
}

/* ---- load ---- */

static ds_code bad(const char *file, const char *key, const char *what, ds_err *err)
{
    return ds_err_field(err, DS_ECORRUPT, key, "%s: '%s' %s", file, key, what);
}

static ds_code read_ints(const char *file, const json_t *o, const char *key, int max, int *ret, int *ret_n,
                         ds_err *err)
{
    const json_t *list = json_object_get(o, key);
    size_t n = json_array_size(list);
    if (!json_is_array(list) || n > (size_t)max)
        return bad(file, key, "must be a list of numbers", err);
    for (size_t i = 0; i < n; i++) {
        json_int_t v = json_integer_value(json_array_get(list, i));
        if (v < (i ? ret[i - 1] + 1 : 0) || v > 1 << 24)
            return bad(file, key, "must rise, from 0 to 16777216", err);
        ret[i] = (int)v;
    }
    *ret_n = (int)n;
    return DS_OK;
}

static ds_code read_reals(const char *file, const json_t *list, const char *key, int n, double min,
                          double max, double *ret, ds_err *err)
{
    if (json_array_size(list) != (size_t)n)
        return bad(file, key, "has another length than its axis", err);
    for (int i = 0; i < n; i++) {
        ret[i] = json_number_value(json_array_get(list, (size_t)i));
        if (!(ret[i] >= min && ret[i] <= max))
            return bad(file, key, "has a number out of range", err);
    }
    return DS_OK;
}

static ds_code read_body(const char *file, const json_t *root, ds_profile *p, ds_err *err)
{
    const double MIN = 1e-9, MAX = 1e4;
    const json_t *verify = json_object_get(root, "verify"), *draft = json_object_get(root, "draft"),
                 *seconds = json_object_get(verify, "seconds"), *T = json_object_get(root, "temperatures");
    DS_TRY(read_ints(file, verify, "rows", DS_PROFILE_POINTS, p->rows, &p->n_rows, err));
    DS_TRY(read_ints(file, verify, "contexts", DS_PROFILE_CONTEXTS, p->ctx, &p->n_ctx, err));
    DS_TRY(read_ints(file, draft, "requests", DS_PROFILE_POINTS, p->reqs, &p->n_reqs, err));
    if (p->n_rows < 1 || p->n_ctx < 1) /* no requests: a model too short for a block */
        return bad(file, "rows", "and 'contexts' must hold a number or more", err);
    if (p->rows[0] < 1 || (p->n_reqs && p->reqs[0] < 1))
        return bad(file, "rows", "and 'requests' must begin with 1 or more", err);
    if (json_array_size(seconds) != (size_t)p->n_ctx)
        return bad(file, "seconds", "must have a list for each context", err);
    for (int k = 0; k < p->n_ctx; k++)
        DS_TRY(read_reals(file, json_array_get(seconds, (size_t)k), "seconds", p->n_rows, MIN, MAX,
                          p->verify[k], err));
    DS_TRY(
        read_reals(file, json_object_get(draft, "seconds"), "seconds", p->n_reqs, MIN, MAX, p->draft, err));
    p->host = json_number_value(json_object_get(root, "host_seconds"));
    if (!(p->host >= 0 && p->host <= MAX))
        return bad(file, "host_seconds", "is out of range", err);
    p->staircase = json_is_true(json_object_get(root, "staircase"));
    json_int_t refined = json_integer_value(json_object_get(root, "refined_steps"));
    p->refined = refined > 0 ? (uint64_t)refined : 0;
    p->n_T = json_array_size(T) <= DS_MAX_BLOCK ? (int)json_array_size(T) : 0;
    return read_reals(file, T, "temperatures", p->n_T, 0.01, 100, p->T, err);
}

static json_t *key_json(const ds_profile_key *k)
{
    char model[24], draft[24];
    snprintf(model, sizeof model, "%016llx", (unsigned long long)k->model);
    snprintf(draft, sizeof draft, "%016llx", (unsigned long long)k->draft);
    return json_pack("{s:i, s:s, s:s, s:s, s:s, s:s, s:i, s:i}", "version", DS_PROFILE_VERSION, "device",
                     k->device, "model", model, "draft", draft, "weights", k->weights, "kv_dtype",
                     k->kv_dtype, "block", k->block, "max_seqs", k->max_seqs);
}

/* The first part of the key that differs. */
static ds_code check_key(const char *file, const json_t *root, const ds_profile_key *key, ds_err *err)
{
    json_t *want = key_json(key), *v;
    const json_t *have = json_object_get(root, "key");
    const char *name;
    ds_code code = want ? DS_OK : ds_err_set(err, DS_ENOMEM, "no memory for the profile");
    json_object_foreach(want, name, v)
    {
        if (code == DS_OK && !json_equal(v, (json_t *)json_object_get(have, name)))
            code = ds_err_field(err, DS_EINVAL, name, "%s: is of another %s", file, name);
    }
    json_decref(want);
    return code;
}

ds_code ds_profile_load(const char *file, const ds_profile_key *key, ds_profile *ret, ds_err *err)
{
    static const ds_profile empty;
    int fd = open(file, O_RDONLY | O_CLOEXEC | O_NONBLOCK); /* a FIFO must not hang the start */
    if (fd < 0)
        return ds_err_set(err, errno == ENOENT ? DS_ENOTFOUND : DS_EIO, "%s: %s", file, strerror(errno));
    struct stat st;
    FILE *f = fstat(fd, &st) == 0 && S_ISREG(st.st_mode) ? fdopen(fd, "rb") : NULL;
    if (!f) {
        close(fd);
        return ds_err_set(err, DS_ECORRUPT, "%s: is not a regular file", file);
    }
    static char text[MAX_BYTES];
    size_t n = fread(text, 1, sizeof text, f);
    int failed = ferror(f);
    fclose(f);
    if (failed || n == sizeof text)
        return ds_err_set(err, DS_ECORRUPT, "%s: cannot be read, or is larger than %d bytes", file,
                          MAX_BYTES);
    json_error_t je;
    json_t *root = json_loadb(text, n, JSON_REJECT_DUPLICATES, &je);
    if (!root)
        return ds_err_set(err, DS_ECORRUPT, "%s: line %d: %.100s", file, je.line, je.text);
    *ret = empty;
    ds_code code = check_key(file, root, key, err);
    if (code == DS_OK)
        code = read_body(file, root, ret, err);
    json_decref(root);
    return code;
}

/* ---- save ---- */

static json_t *ints(const int *v, int n)
{
    json_t *list = json_array();
    for (int i = 0; i < n; i++)
        json_array_append_new(list, json_integer(v[i]));
    return list;
}

static json_t *reals(const double *v, int n)
{
    json_t *list = json_array();
    for (int i = 0; i < n; i++)
        json_array_append_new(list, json_real(v[i]));
    return list;
}

ds_code ds_profile_save(const char *file, const ds_profile_key *key, const ds_profile *p, ds_err *err)
{
    char tmp[1024];
    json_t *seconds = json_array();
    for (int k = 0; k < p->n_ctx; k++)
        json_array_append_new(seconds, reals(p->verify[k], p->n_rows));
    json_t *root = json_pack(
        "{s:o, s:{s:o, s:o, s:o}, s:{s:o, s:o}, s:f, s:b, s:I, s:o}", "key", key_json(key), "verify", "rows",
        ints(p->rows, p->n_rows), "contexts", ints(p->ctx, p->n_ctx), "seconds", seconds, "draft", "requests",
        ints(p->reqs, p->n_reqs), "seconds", reals(p->draft, p->n_reqs), "host_seconds", p->host, "staircase",
        p->staircase, "refined_steps", (json_int_t)p->refined, "temperatures", reals(p->T, p->n_T));
    if (!root)
        return ds_err_set(err, DS_ENOMEM, "no memory for the profile");
    int n = snprintf(tmp, sizeof tmp, "%s.%ld", file, (long)getpid());
    FILE *f = n > 0 && (size_t)n < sizeof tmp ? fopen(tmp, "w") : NULL;
    int failed = !f || json_dumpf(root, f, JSON_INDENT(1) | JSON_PRESERVE_ORDER | JSON_REAL_PRECISION(6)) ||
                 fputc('\n', f) == EOF;
    failed |= f && fclose(f);
    json_decref(root);
    if (failed || rename(tmp, file) != 0) {
        ds_code code = ds_err_set(err, DS_EIO, "%s: %s", file, strerror(errno));
        if (f)
            unlink(tmp);
        return code;
    }
    return DS_OK;
}
