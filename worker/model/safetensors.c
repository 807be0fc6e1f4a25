/* safetensors.c - header and shard index parsing, checks and mapping.
 * Format: u64 little-endian header length, JSON header, data; offsets in the header count from the data.
 * Source: the format section of huggingface/safetensors README; its rules on holes and overlaps are kept. */
#include "worker/model/safetensors.h"
#include "base/limits.h"
#include "worker/model/config.h"

#include <endian.h>
#include <errno.h>
#include <fcntl.h>
#include <jansson.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

enum { MAX_NAME = 255 };
static const char INDEX[] = "model.safetensors.index.json", SINGLE[] = "model.safetensors";

/* Bits of one element; 0: unknown name. Types that no model uses are known so that an extra tensor of such a
 * type is checked like any other and then ignored. */
static unsigned dtype_bits(const char *t)
{
    static const struct {
        const char *name;
        unsigned bits;
    } table[] = {{"F64", 64}, {"F32", 32}, {"F16", 16},    {"BF16", 16},   {"I64", 64},
                 {"I32", 32}, {"I16", 16}, {"I8", 8},      {"U64", 64},    {"U32", 32},
                 {"U16", 16}, {"U8", 8},   {"F8_E4M3", 8}, {"F8_E5M2", 8}, {"F8_E8M0", 8},
                 {"BOOL", 8}, {"C64", 64}, {"F4", 4},      {"F6_E2M3", 6}, {"F6_E3M2", 6}};
    for (size_t i = 0; i < sizeof table / sizeof *table; i++)
        if (strcmp(table[i].name, t) == 0)
            return table[i].bits;
    return 0;
}

static ds_code parse_shape(ds_st_tensor *t, const char *file, const json_t *shape, unsigned bits, ds_err *err)
{
    size_t rank = json_array_size(shape);
    if (!json_is_array(shape) || rank > DS_ST_MAX_RANK)
        return ds_err_field(err, DS_ECORRUPT, t->name,
                            "%s: tensor '%s': 'shape' must be a list of at most %d sizes", file, t->name,
                            DS_ST_MAX_RANK);
    uint64_t total = bits;
    for (size_t i = 0; i < rank; i++) {
        const json_t *d = json_array_get(shape, i);
        json_int_t x = json_is_integer(d) ? json_integer_value(d) : -1;
        if (x < 0 || __builtin_mul_overflow(total, (uint64_t)x, &total))
            return ds_err_field(err, DS_ECORRUPT, t->name,
                                "%s: tensor '%s': 'shape' entry %zu is not a size or overflows", file,
                                t->name, i);
        t->shape[i] = x;
    }
    t->rank = (int)rank;
    if (total % 8 || total / 8 != t->bytes)
        return ds_err_field(err, DS_ECORRUPT, t->name,
                            "%s: tensor '%s': shape and dtype %s need %llu bytes, 'data_offsets' span %llu",
                            file, t->name, t->dtype, (unsigned long long)(total / 8),
                            (unsigned long long)t->bytes);
    return DS_OK;
}

static ds_code parse_tensor(ds_st_tensor *t, const char *file, const json_t *o, uint64_t data_begin,
                            uint64_t file_size, ds_err *err)
{
    const json_t *dtype = json_object_get(o, "dtype"), *off = json_object_get(o, "data_offsets");
    if (!json_is_object(o) || !json_is_string(dtype) || !json_is_array(off) || json_array_size(off) != 2 ||
        !json_is_integer(json_array_get(off, 0)) || !json_is_integer(json_array_get(off, 1)))
        return ds_err_field(err, DS_ECORRUPT, t->name,
                            "%s: tensor '%s': must have dtype, shape and two integer data_offsets", file,
                            t->name);
    unsigned bits = dtype_bits(json_string_value(dtype));
    if (!bits)
        return ds_err_field(err, DS_EUNSUPPORTED, t->name, "%s: tensor '%s': unknown dtype '%.20s'", file,
                            t->name, json_string_value(dtype));
    snprintf(t->dtype, sizeof t->dtype, "%s", json_string_value(dtype));
    json_int_t a = json_integer_value(json_array_get(off, 0)), b = json_integer_value(json_array_get(off, 1));
    uint64_t data_size = file_size - data_begin;
    if (a < 0 || b < a || (uint64_t)b > data_size)
        return ds_err_field(
            err, DS_ECORRUPT, t->name,
            "%s: tensor '%s': data_offsets [%lld, %lld] are outside the %llu data bytes of the "
            "file (truncated?)",
            file, t->name, (long long)a, (long long)b, (unsigned long long)data_size);
    t->begin = data_begin + (uint64_t)a;
    t->bytes = (uint64_t)(b - a);
    return parse_shape(t, file, json_object_get(o, "shape"), bits, err);
}

static int by_place(const void *a, const void *b)
{
    const ds_st_tensor *x = a, *y = b;
    if (x->begin != y->begin)
        return x->begin < y->begin ? -1 : 1;
    return x->bytes < y->bytes ? -1 : x->bytes > y->bytes;
}

/* Tensors [first, n) of one file must follow each other without overlap or hole, up to the end of the file.
 */
static ds_code check_layout(const ds_st *st, int first, const char *file, uint64_t begin, uint64_t end,
                            ds_err *err)
{
    uint64_t at = begin;
    for (int i = first; i < st->n; i++) {
        const ds_st_tensor *t = &st->tensor[i];
        if (t->begin < at)
            return ds_err_field(err, DS_ECORRUPT, t->name, "%s: tensor '%s' overlaps tensor '%s'", file,
                                t->name, st->tensor[i - 1].name);
        if (t->begin > at)
            return ds_err_field(err, DS_ECORRUPT, t->name,
                                "%s: %llu bytes before tensor '%s' belong to no tensor", file,
                                (unsigned long long)(t->begin - at), t->name);
        at = t->begin + t->bytes;
    }
    if (at != end)
        return ds_err_set(err, DS_ECORRUPT, "%s: %llu bytes at the end belong to no tensor", file,
                          (unsigned long long)(end - at));
    return DS_OK;
}

static ds_code parse_object(ds_st *st, int file, const char *name, const json_t *o, uint64_t data_begin,
                            uint64_t file_size, ds_err *err)
{
    size_t count = json_object_size(o);
    ds_st_tensor *grown = realloc(st->tensor, ((size_t)st->n + count + 1) * sizeof *grown);
    if (!grown)
        return ds_err_set(err, DS_ENOMEM, "%s: no memory for %zu tensors", name, count);
    st->tensor = grown;
    int first = st->n;
    const char *key;
    json_t *v;
    json_object_foreach((json_t *)o, key, v)
    {
        if (strcmp(key, "__metadata__") == 0)
            continue;
        if (!*key || strlen(key) > MAX_NAME)
            return ds_err_set(err, DS_ECORRUPT, "%s: tensor name '%.60s' must have 1..%d bytes", name, key,
                              MAX_NAME);
        ds_st_tensor *t = &st->tensor[st->n];
        *t = (ds_st_tensor){.name = strdup(key), .file = file};
        if (!t->name)
            return ds_err_set(err, DS_ENOMEM, "%s: no memory for tensor names", name);
        st->n++; /* from here on ds_st_close frees the name */
        DS_TRY(parse_tensor(t, name, v, data_begin, file_size, err));
    }
    qsort(st->tensor + first, (size_t)(st->n - first), sizeof *st->tensor, by_place);
    return check_layout(st, first, name, data_begin, file_size, err);
}

ds_code ds_st_parse(ds_st *st, int file, const char *name, const char *json, size_t n, uint64_t data_begin,
                    uint64_t file_size, ds_err *err)
{
    json_error_t je;
    if (data_begin > file_size)
        return ds_err_set(err, DS_ECORRUPT, "%s: the header is longer than the file", name);
    json_t *o = json_loadb(json, n, JSON_REJECT_DUPLICATES, &je);
    if (!o)
        return ds_err_set(err, DS_ECORRUPT, "%s: header is not valid JSON: %s", name, je.text);
    ds_code code = json_is_object(o)
                       ? parse_object(st, file, name, o, data_begin, file_size, err)
                       : ds_err_set(err, DS_ECORRUPT, "%s: header must be one JSON object", name);
    json_decref(o);
    return code;
}

static int by_name(const void *a, const void *b)
{
    return strcmp(((const ds_st_tensor *)a)->name, ((const ds_st_tensor *)b)->name);
}

ds_code ds_st_sort(ds_st *st, ds_err *err)
{
    if (st->n)
        qsort(st->tensor, (size_t)st->n, sizeof *st->tensor, by_name);
    for (int i = 1; i < st->n; i++)
        if (by_name(&st->tensor[i - 1], &st->tensor[i]) == 0)
            return ds_err_field(err, DS_ECORRUPT, st->tensor[i].name, "tensor '%s' is in more than one shard",
                                st->tensor[i].name);
    return DS_OK;
}

const ds_st_tensor *ds_st_find(const ds_st *st, const char *name)
{
    ds_st_tensor key = {.name = name};
    return st->n ? bsearch(&key, st->tensor, (size_t)st->n, sizeof key, by_name) : NULL;
}

/* --- files -------------------------------------------------------------------------------------------- */

static ds_code read_at(int fd, void *p, size_t n, uint64_t at, const char *name, ds_err *err)
{
    for (size_t got = 0; got < n;) {
        ssize_t k = pread(fd, (char *)p + got, n - got, (off_t)(at + got));
        if (k < 0 && errno == EINTR)
            continue;
        if (k <= 0)
            return ds_err_set(err, DS_EIO, "%s: %s", name,
                              k < 0 ? strerror(errno) : "file shrank while read");
        got += (size_t)k;
    }
    return DS_OK;
}

static ds_code read_header(ds_st *st, int index, ds_err *err)
{
    ds_st_file *f = &st->file[index];
    uint64_t len = 0;
    if (f->size < sizeof len)
        return ds_err_set(err, DS_ECORRUPT, "%s: %llu bytes are too few for a header", f->name,
                          (unsigned long long)f->size);
    DS_TRY(read_at(f->fd, &len, sizeof len, 0, f->name, err));
    len = le64toh(len);
    if (len > DS_MAX_ST_HEADER_BYTES)
        return ds_err_set(err, DS_ECORRUPT, "%s: header of %llu bytes, at most %d are read", f->name,
                          (unsigned long long)len, DS_MAX_ST_HEADER_BYTES);
    if (len > f->size - sizeof len)
        return ds_err_set(err, DS_ECORRUPT, "%s: header of %llu bytes in a file of %llu (truncated?)",
                          f->name, (unsigned long long)len, (unsigned long long)f->size);
    char *json = malloc((size_t)len + 1);
    if (!json)
        return ds_err_set(err, DS_ENOMEM, "%s: no memory for the header", f->name);
    ds_code code = read_at(f->fd, json, (size_t)len, sizeof len, f->name, err);
    if (code == DS_OK)
        code = ds_st_parse(st, index, f->name, json, (size_t)len, sizeof len + len, f->size, err);
    free(json);
    return code;
}

/* add_file: open one shard and read its header; a shard already open is left alone. */
static ds_code add_file(ds_st *st, const char *dir, const char *name, int *ret, ds_err *err)
{
    char path[4096];
    struct stat s;
    for (int i = 0; i < st->n_files; i++)
        if (strcmp(st->file[i].name, name) == 0) {
            *ret = i;
            return DS_OK;
        }
    if (st->n_files >= DS_MAX_SHARDS)
        return ds_err_set(err, DS_ECORRUPT, "%s: more than %d shards", INDEX, DS_MAX_SHARDS);
    if ((size_t)snprintf(path, sizeof path, "%s/%s", dir, name) >= sizeof path)
        return ds_err_set(err, DS_EINVAL, "%.200s...: path is too long", path);
    ds_st_file *grown = realloc(st->file, (size_t)(st->n_files + 1) * sizeof *grown);
    if (!grown)
        return ds_err_set(err, DS_ENOMEM, "no memory for %d shards", st->n_files + 1);
    st->file = grown;
    ds_st_file *f = &st->file[st->n_files];
    *f = (ds_st_file){.name = strdup(name), .fd = open(path, O_RDONLY | O_CLOEXEC | O_NONBLOCK)};
    int why = errno;
    st->n_files++;
    if (!f->name)
        return ds_err_set(err, DS_ENOMEM, "no memory for file names");
    if (f->fd < 0)
        return ds_err_set(err, why == ENOENT ? DS_ENOTFOUND : DS_EIO, "%s: %s", path, strerror(why));
    if (fstat(f->fd, &s) != 0 || !S_ISREG(s.st_mode))
        return ds_err_set(err, DS_EIO, "%s: not a regular file", path);
    f->size = (uint64_t)s.st_size;
    *ret = st->n_files - 1;
    return read_header(st, *ret, err);
}

static int shard_name_ok(const char *s)
{
    size_t n = strlen(s), tail = strlen(".safetensors");
    return n > tail && n <= MAX_NAME && !strchr(s, '/') && s[0] != '.' &&
           strcmp(s + n - tail, ".safetensors") == 0;
}

static ds_code open_shards(ds_st *st, const char *dir, const json_t *index, ds_err *err)
{
    const json_t *map = json_object_get(index, "weight_map");
    const char *key;
    json_t *v;
    int file;
    if (!json_is_object(map) || json_object_size(map) == 0)
        return ds_err_field(err, DS_ECORRUPT, "weight_map", "%s: 'weight_map' must be a non-empty object",
                            INDEX);
    json_object_foreach((json_t *)map, key, v)
    {
        const char *name = json_string_value(v);
        if (!name || !shard_name_ok(name))
            return ds_err_field(
                err, DS_ECORRUPT, "weight_map",
                "%s: tensor '%.100s': '%.100s' is not the name of a .safetensors file beside it", INDEX, key,
                name ? name : "(not a string)");
        DS_TRY(add_file(st, dir, name, &file, err));
    }
    DS_TRY(ds_st_sort(st, err));
    json_object_foreach((json_t *)map, key, v)
    {
        const ds_st_tensor *t = ds_st_find(st, key);
        if (!t || strcmp(st->file[t->file].name, json_string_value(v)) != 0)
            return ds_err_field(err, DS_ECORRUPT, key, "%s: tensor '%.200s' is not in %.200s", INDEX, key,
                                json_string_value(v));
    }
    return DS_OK;
}

static ds_code open_all(ds_st *st, const char *dir, ds_err *err)
{
    char *text = NULL;
    size_t n = 0;
    int file;
    json_error_t je;
    ds_err first;
    ds_code code = add_file(st, dir, SINGLE, &file, &first);
    if (code == DS_OK)
        return ds_st_sort(st, err);
    if (code != DS_ENOTFOUND) {
        if (err)
            *err = first;
        return code;
    }
    ds_st_close(st);
    code = ds_file_read(dir, INDEX, DS_MAX_ST_HEADER_BYTES, &text, &n, err);
    if (code == DS_ENOTFOUND)
        return ds_err_set(err, code, "%.300s: neither %s nor %s is there", dir, SINGLE, INDEX);
    if (code != DS_OK)
        return code;
    json_t *index = json_loadb(text, n, JSON_REJECT_DUPLICATES, &je);
    free(text);
    if (!index)
        return ds_err_set(err, DS_ECORRUPT, "%s: not valid JSON at line %d: %s", INDEX, je.line, je.text);
    code = open_shards(st, dir, index, err);
    json_decref(index);
    return code;
}

ds_code ds_st_open(const char *dir, ds_st *ret, ds_err *err)
{
    *ret = (ds_st){0};
    ds_code code = open_all(ret, dir, err);
    if (code != DS_OK)
        ds_st_close(ret);
    return code;
}

ds_code ds_st_map(ds_st *st, ds_err *err)
{
    for (int i = 0; i < st->n_files; i++) {
        ds_st_file *f = &st->file[i];
        void *p = mmap(NULL, f->size, PROT_READ, MAP_SHARED, f->fd, 0);
        if (p == MAP_FAILED)
            return ds_err_set(err, errno == ENOMEM ? DS_ENOMEM : DS_EIO, "%s: mmap: %s", f->name,
                              strerror(errno));
        f->map = p;
        /* Hints only: the scan at load touches every page anyway; huge pages where the file system has them.
         */
        (void)madvise(p, f->size, MADV_WILLNEED);
        (void)madvise(p, f->size, MADV_HUGEPAGE);
    }
    for (int i = 0; i < st->n; i++)
        st->tensor[i].data = (const char *)st->file[st->tensor[i].file].map + st->tensor[i].begin;
    return DS_OK;
}

void ds_st_close(ds_st *st)
{
    for (int i = 0; i < st->n; i++)
        free((char *)st->tensor[i].name);
    for (int i = 0; i < st->n_files; i++) {
        if (st->file[i].map)
            munmap(st->file[i].map, st->file[i].size);
        if (st->file[i].fd >= 0)
            close(st->file[i].fd);
        free(st->file[i].name);
    }
    free(st->tensor);
    free(st->file);
    *st = (ds_st){0};
}
