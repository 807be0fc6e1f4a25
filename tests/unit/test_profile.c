/* Step costs: interpolation, refinement, and the file, with every kind of damage. */
#include "worker/profile.h"

#include "tests/lib/test.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

static ds_profile sample(void)
{
    return (ds_profile){.n_rows = 4,
                        .rows = {1, 4, 16, 64},
                        .n_ctx = 2,
                        .ctx = {100, 1100},
                        .verify = {{.010, .012, .020, .060}, {.012, .020, .052, .188}},
                        .n_reqs = 2,
                        .reqs = {1, 8},
                        .draft = {.004, .007},
                        .host = .0001};
}

static double at(const ds_profile *p, int rows, double ctx)
{
    ds_profile_curve c;
    ds_profile_at(p, ctx, &c);
    return ds_profile_verify(&c, rows);
}

static int close_to(double a, double b)
{
    return fabs(a - b) < 1e-9 + 1e-6 * fabs(b);
}

DS_TEST(rows_and_contexts_are_interpolated)
{
    ds_profile p = sample();
    CHECK(close_to(at(&p, 1, 100), .010) && close_to(at(&p, 64, 1100), .188));
    CHECK(close_to(at(&p, 10, 100), .016));        /* between rows */
    CHECK(close_to(at(&p, 16, 600), .036));        /* between contexts */
    CHECK(close_to(at(&p, 16, 2100), .084));       /* beyond the longest: its slope */
    CHECK(close_to(at(&p, 16, 0), .020));          /* below the shortest: as that */
    CHECK(close_to(at(&p, 112, 100), .060 + .04)); /* beyond the most rows: their slope */
    CHECK(close_to(ds_profile_draft(&p, 1), .004) && ds_profile_draft(&p, 0) == 0);
    p.staircase = 1;
    CHECK(close_to(at(&p, 10, 100), .020)); /* a pass of 10 rows runs as one of 16 */
    p.verify[0][2] = .001;                  /* more rows never cost less */
    CHECK(close_to(at(&p, 16, 100), .012));
}

DS_TEST(measured_steps_mend_a_wrong_table)
{
    ds_profile p = sample();
    for (int i = 0; i < 400; i++) { /* this machine is 1.5 times slower, and 30 rows are worse than that */
        ds_profile_tell_verify(&p, 1, 100, .015);
        ds_profile_tell_verify(&p, 30, 100, .060);
        ds_profile_tell_draft(&p, 3, .010);
        ds_profile_tell_host(&p, .0002);
    }
    CHECK(fabs(at(&p, 1, 100) / .015 - 1) < .01);
    CHECK(fabs(at(&p, 30, 100) / .060 - 1) < .01);
    CHECK(at(&p, 1, 1100) > .0165); /* the same factor at the other context */
    CHECK(fabs(ds_profile_draft(&p, 3) / .010 - 1) < .01);
    CHECK(fabs(p.host / .0002 - 1) < .01);
    CHECK_EQ(p.refined, 800);
    double before = at(&p, 30, 100), far = at(&p, 200, 1100) / at(&p, 200, 100);
    ds_profile_tell_verify(&p, 90, 100, .5); /* not far beyond the table */
    CHECK_EQ(p.n_rows, 4);
    ds_profile_tell_verify(&p, 200, 100, .5); /* what was extrapolated is known now */
    ds_profile_tell_draft(&p, 20, .09);
    CHECK(p.n_rows == 5 && p.n_reqs == 3 && close_to(at(&p, 200, 100), .5) &&
          close_to(ds_profile_draft(&p, 20), .09));
    CHECK(at(&p, 200, 1100) > .9 * far * .5);
    ds_profile_tell_verify(&p, 30, 100, 100.0); /* one wild step moves it by a sixteenth at most */
    CHECK(at(&p, 30, 100) < before * 1.07);
    ds_profile q = p;
    ds_profile_tell_verify(&p, 0, 100, .1);
    ds_profile_tell_verify(&p, 5, 100, NAN);
    ds_profile_tell_verify(&p, 5, 100, -1);
    ds_profile_tell_draft(&p, 0, .1);
    CHECK(memcmp(&p, &q, sizeof p) == 0);
}

static ds_profile_key key(void)
{
    return (ds_profile_key){.device = "cpu: avx2, 2 threads",
                            .kv_dtype = "bf16",
                            .weights = "bf16",
                            .model = 0x1234567890abcdefu,
                            .draft = 2,
                            .block = 7,
                            .max_seqs = 64};
}

static void file_of(char *path, char *dir)
{
    ds_err err = {0};
    ds_profile_key k = key();
    snprintf(dir, 64, "/tmp/dspark-profile-XXXXXX");
    CHECK(mkdtemp(dir) != NULL);
    CHECK_OK(ds_profile_path(dir, &k, path, 256, &err), err);
}

DS_TEST(file_keeps_everything)
{
    char path[256], dir[64], again[32];
    ds_err err = {0};
    ds_profile p = sample(), q;
    ds_profile_key k = key();
    file_of(path, dir);
    CHECK(strstr(path, "/dspark-profile.cpu--avx2--2-threads.64-seqs.json") != NULL);
    CHECK_EQ(ds_profile_load(path, &k, &q, &err), DS_ENOTFOUND);
    p.refined = 12;
    p.n_T = 7;
    for (int i = 0; i < 7; i++)
        p.T[i] = 1 + .125 * i;
    CHECK_OK(ds_profile_save(path, &k, &p, &err), err);
    CHECK_OK(ds_profile_load(path, &k, &q, &err), err);
    CHECK_EQ(q.n_rows, 4);
    CHECK(q.rows[3] == 64 && q.ctx[1] == 1100 && q.reqs[1] == 8 && q.refined == 12 && q.n_T == 7);
    CHECK(close_to(q.verify[1][2], .052) && close_to(q.draft[1], .007) && close_to(q.host, .0001));
    CHECK(q.T[6] == 1.75 && !q.staircase);
    CHECK_EQ(ds_profile_path("a folder", &k, again, sizeof again, &err), DS_EINVAL);
    CHECK(ds_profile_save("/nowhere/at/all.json", &k, &p, &err) == DS_EIO);
    unlink(path);
    rmdir(dir);
}

DS_TEST(another_key_is_refused_by_name)
{
    char path[256], dir[64];
    ds_err err = {0};
    ds_profile p = sample(), q;
    ds_profile_key k = key(), o;
    file_of(path, dir);
    CHECK_OK(ds_profile_save(path, &k, &p, &err), err);
#define REFUSED(name, change)                                     \
    do {                                                          \
        o = key();                                                \
        change;                                                   \
        CHECK_EQ(ds_profile_load(path, &o, &q, &err), DS_EINVAL); \
        CHECK_STR(err.field, name);                               \
    } while (0)
    REFUSED("device", strcpy(o.device, "cpu: avx512, 2 threads"));
    REFUSED("model", o.model++);
    REFUSED("draft", o.draft++);
    REFUSED("weights", strcpy(o.weights, "int8"));
    REFUSED("kv_dtype", strcpy(o.kv_dtype, "f32"));
    REFUSED("block", o.block++);
    REFUSED("max_seqs", o.max_seqs++);
    unlink(path);
    rmdir(dir);
}

/* Replace one text in a good file by another; the loader must refuse it, naming the key where there is one.
 */
static void damaged(const char *from, const char *to, ds_code want, const char *field)
{
    char path[256], dir[64];
    static char text[1 << 16], out[1 << 16];
    ds_err err = {0};
    ds_profile p = sample(), q;
    ds_profile_key k = key();
    file_of(path, dir);
    CHECK_OK(ds_profile_save(path, &k, &p, &err), err);
    FILE *f = fopen(path, "r");
    size_t n = fread(text, 1, sizeof text - 1, f);
    fclose(f);
    text[n] = 0;
    char *hit = strstr(text, from);
    CHECK_MSG(hit != NULL, "%s is not in the file", from);
    snprintf(out, sizeof out, "%.*s%s%s", (int)(hit - text), text, to, hit + strlen(from));
    f = fopen(path, "w");
    CHECK(fputs(out, f) >= 0 && fclose(f) == 0);
    ds_code code = ds_profile_load(path, &k, &q, &err);
    CHECK_MSG(code == want, "%s for %s: %s", to, from, ds_err_name(code));
    CHECK_STR(err.field, field);
    unlink(path);
    rmdir(dir);
}

DS_TEST(damaged_files_are_refused)
{
    damaged("\"version\": 1", "\"version\": 2", DS_EINVAL, "version");
    damaged("{", "", DS_ECORRUPT, "");
    damaged("\"rows\"", "\"rowz\"", DS_ECORRUPT, "rows");
    damaged("\"contexts\": [", "\"contexts\": [500,", DS_ECORRUPT, "contexts");
    damaged("\"requests\": [", "\"requests\": [0,", DS_ECORRUPT, "rows");
    damaged("0.052", "-0.052", DS_ECORRUPT, "seconds");
    damaged("0.052", "1e300", DS_ECORRUPT, "seconds");
    damaged("0.052", "\"x\"", DS_ECORRUPT, "seconds");
    damaged("0.052,", "", DS_ECORRUPT, "seconds");
    damaged("\"host_seconds\": ", "\"host_seconds\": -", DS_ECORRUPT, "host_seconds");
    damaged("\"temperatures\": [", "\"temperatures\": [0.0", DS_ECORRUPT, "temperatures");
}

DS_TEST(only_regular_files_are_read)
{
    char path[256], dir[64];
    ds_err err = {0};
    ds_profile q;
    ds_profile_key k = key();
    file_of(path, dir);
    CHECK(mkfifo(path, 0600) == 0);
    CHECK(ds_profile_load(path, &k, &q, &err) == DS_ECORRUPT); /* and does not wait for a writer */
    unlink(path);
    rmdir(dir);
}
