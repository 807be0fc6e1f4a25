/* safetensors headers and shard indexes: what a hostile or damaged folder must be refused for, by name. */
#include "base/limits.h"
#include "tests/lib/test.h"
#include "worker/model/safetensors.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

static char g_dir[2048];

static void fresh_dir(void)
{
    snprintf(g_dir, sizeof g_dir, "%s/ds_st_XXXXXX", DS_BIN_DIR);
    CHECK(mkdtemp(g_dir) != NULL);
}

static void remove_dir(void)
{
    static const char *const names[] = {"model.safetensors", "a.safetensors", "b.safetensors",
                                        "model.safetensors.index.json"};
    char path[4096];
    for (size_t i = 0; i < sizeof names / sizeof *names; i++) {
        snprintf(path, sizeof path, "%s/%s", g_dir, names[i]);
        unlink(path);
    }
    rmdir(g_dir);
}

static void write_file(const char *name, const void *p, size_t n)
{
    char path[4096];
    snprintf(path, sizeof path, "%s/%s", g_dir, name);
    FILE *f = fopen(path, "wb");
    CHECK(f != NULL && fwrite(p, 1, n, f) == n);
    fclose(f);
}

/* header, padded as real writers do, and n_data bytes 0, 1, 2, ... */
static void write_st(const char *name, const char *header, size_t n_data)
{
    unsigned char buf[8192] = {0};
    uint64_t len = (strlen(header) + 7) / 8 * 8;
    CHECK(8 + len + n_data <= sizeof buf);
    memcpy(buf, &len, 8);
    memset(buf + 8, ' ', len);
    memcpy(buf + 8, header, strlen(header));
    for (size_t i = 0; i < n_data; i++)
        buf[8 + len + i] = (unsigned char)i;
    write_file(name, buf, 8 + len + n_data);
}

/* The header must fail with this code; the message must hold `says`. */
static void refused(const char *header, size_t n_data, ds_code code, const char *says)
{
    ds_st st;
    ds_err err = {0};
    fresh_dir();
    write_st("model.safetensors", header, n_data);
    ds_code got = ds_st_open(g_dir, &st, &err);
    if (got == DS_OK)
        ds_st_close(&st);
    remove_dir();
    CHECK_MSG(got == code && strstr(err.msg, says), "%s: %s '%s', want '%s'", header, ds_err_name(got),
              err.msg, says);
}

#define T(name, dtype, shape, a, b) \
    "\"" name "\":{\"dtype\":\"" dtype "\",\"shape\":[" shape "],\"data_offsets\":[" a "," b "]}"

DS_TEST(single_file)
{
    ds_st st;
    ds_err err;
    fresh_dir();
    write_st("model.safetensors",
             "{\"__metadata__\":{\"format\":\"pt\"}," T("b", "BF16", "2,3", "4", "16") "," T(
                 "a", "F32", "", "0", "4") "," T("none", "F32", "0,5", "4", "4") "}",
             16);
    ds_code code = ds_st_open(g_dir, &st, &err);
    remove_dir(); /* the open descriptors keep the file */
    CHECK_OK(code, err);
    CHECK_EQ(st.n, 3);
    const ds_st_tensor *b = ds_st_find(&st, "b");
    CHECK(b && b->rank == 2 && b->shape[0] == 2 && b->shape[1] == 3 && b->bytes == 12 && !b->data);
    CHECK(ds_st_find(&st, "c") == NULL);
    CHECK_OK(ds_st_map(&st, &err), err);
    CHECK_EQ(((const unsigned char *)b->data)[0], 4);
    CHECK_EQ(((const unsigned char *)ds_st_find(&st, "a")->data)[3], 3);
    ds_st_close(&st);
}

DS_TEST(offsets_shapes_and_dtypes)
{
    refused("{" T("w", "F32", "2,2", "0", "16") "}", 12, DS_ECORRUPT, "'w'"); /* truncated */
    refused("{" T("w", "F32", "2,2", "0", "16") "}", 20, DS_ECORRUPT, "4 bytes at the end");
    refused("{" T("w", "F32", "2,2", "4", "20") "}", 20, DS_ECORRUPT, "before tensor 'w'");
    refused("{" T("v", "F32", "4", "0", "16") "," T("w", "F32", "4", "8", "24") "}", 24, DS_ECORRUPT,
            "'w' overlaps tensor 'v'");
    refused("{" T("w", "F32", "3", "0", "16") "}", 16, DS_ECORRUPT, "'w'");
    refused("{" T("w", "F32", "-4", "0", "16") "}", 16, DS_ECORRUPT, "'w'");
    refused("{" T("w", "F32", "4611686018427387904,4,4", "0", "16") "}", 16, DS_ECORRUPT, "overflows");
    refused("{" T("w", "F32", "1,1,1,1,1,1,1,1,4", "0", "16") "}", 16, DS_ECORRUPT, "'w'");
    refused("{" T("w", "F32", "4", "-16", "0") "}", 16, DS_ECORRUPT, "'w'");
    refused("{" T("w", "F32", "4", "16", "0") "}", 16, DS_ECORRUPT, "'w'");
    refused("{" T("w", "F32", "4.0", "0", "16") "}", 16, DS_ECORRUPT, "'w'");
    refused("{" T("w", "F32", "4", "0", "9223372036854775807") "}", 16, DS_ECORRUPT, "truncated");
    refused("{" T("w", "Q4", "4", "0", "16") "}", 16, DS_EUNSUPPORTED, "'w': unknown dtype");
    refused("{" T("w", "F4", "3", "0", "2") "}", 2, DS_ECORRUPT, "'w'");
    refused("{\"w\":3}", 0, DS_ECORRUPT, "'w'");
    refused("{\"w\":{}}", 0, DS_ECORRUPT, "'w'");
    refused("{" T("w", "F32", "1", "0", "4") "," T("w", "F32", "1", "0", "4") "}", 4, DS_ECORRUPT, "JSON");
    refused("{" T("", "F32", "1", "0", "4") "}", 4, DS_ECORRUPT, "name");
    refused("[]", 0, DS_ECORRUPT, "object");
    refused("{", 0, DS_ECORRUPT, "JSON");
}

static void refused_bytes(const void *p, size_t n, const char *says)
{
    ds_st st;
    ds_err err = {0};
    fresh_dir();
    write_file("model.safetensors", p, n);
    ds_code got = ds_st_open(g_dir, &st, &err);
    remove_dir();
    CHECK_MSG(got == DS_ECORRUPT && strstr(err.msg, says), "%s '%s', want '%s'", ds_err_name(got), err.msg,
              says);
}

DS_TEST(header_length)
{
    unsigned char p[64] = {0};
    refused_bytes(p, 0, "too few");
    refused_bytes(p, 7, "too few");
    refused_bytes(p, 8, "JSON");
    uint64_t len = 57;
    memcpy(p, &len, 8);
    refused_bytes(p, sizeof p, "truncated");
    len = ~0ull;
    memcpy(p, &len, 8);
    refused_bytes(p, sizeof p, "at most");
    len = (uint64_t)DS_MAX_ST_HEADER_BYTES + 1;
    memcpy(p, &len, 8);
    refused_bytes(p, sizeof p, "at most");
}

static void shards(const char *index, ds_code code, const char *says)
{
    ds_st st;
    ds_err err = {0};
    fresh_dir();
    write_st("a.safetensors", "{" T("x", "F32", "1", "0", "4") "}", 4);
    write_st("b.safetensors", "{" T("y", "F16", "2", "0", "4") "}", 4);
    if (index)
        write_file("model.safetensors.index.json", index, strlen(index));
    ds_code got = ds_st_open(g_dir, &st, &err);
    int n = st.n, files = st.n_files;
    ds_st_close(&st);
    remove_dir();
    CHECK_MSG(got == code && strstr(err.msg, says), "%s: %s '%s', want '%s'", index, ds_err_name(got),
              err.msg, says);
    if (code == DS_OK)
        CHECK(n == 2 && files == 2);
}

DS_TEST(shard_index)
{
    shards("{\"weight_map\":{\"x\":\"a.safetensors\",\"y\":\"b.safetensors\"}}", DS_OK, "");
    shards(NULL, DS_ENOTFOUND, "neither");
    shards("{\"weight_map\":{\"x\":\"b.safetensors\"}}", DS_ECORRUPT, "'x' is not in b.safetensors");
    shards("{\"weight_map\":{\"z\":\"a.safetensors\"}}", DS_ECORRUPT, "'z'");
    shards("{\"weight_map\":{\"x\":\"c.safetensors\"}}", DS_ENOTFOUND, "c.safetensors");
    shards("{\"weight_map\":{\"x\":\"../a.safetensors\"}}", DS_ECORRUPT, "'x'");
    shards("{\"weight_map\":{\"x\":\"/etc/a.safetensors\"}}", DS_ECORRUPT, "'x'");
    shards("{\"weight_map\":{\"x\":\"a.bin\"}}", DS_ECORRUPT, "'x'");
    shards("{\"weight_map\":{\"x\":7}}", DS_ECORRUPT, "'x'");
    shards("{\"weight_map\":{}}", DS_ECORRUPT, "weight_map");
    shards("{\"weight_map\":[]}", DS_ECORRUPT, "weight_map");
    shards("[]", DS_ECORRUPT, "weight_map");
    shards("nope", DS_ECORRUPT, "JSON");
}

DS_TEST(same_name_in_two_shards)
{
    ds_st st;
    ds_err err = {0};
    static const char index[] = "{\"weight_map\":{\"x\":\"a.safetensors\",\"y\":\"b.safetensors\"}}";
    fresh_dir();
    write_st("a.safetensors", "{" T("x", "F32", "1", "0", "4") "}", 4);
    write_st("b.safetensors", "{" T("y", "F32", "1", "0", "4") "," T("x", "F32", "1", "4", "8") "}", 8);
    write_file("model.safetensors.index.json", index, strlen(index));
    ds_code got = ds_st_open(g_dir, &st, &err);
    remove_dir();
    CHECK_EQ(got, DS_ECORRUPT);
    CHECK_STR(err.field, "x");
}
