/* Sequential temperature scaling against the published tiny vectors (`sts` of tests/golden/dspark/tiny.json).
 */
#include "worker/calib.h"

#include "tests/lib/test.h"
#include "tests/lib/tiny_stream.h"

#include <math.h>

enum { N = 400, GAMMA = 3 };
static float g_z[N * GAMMA];
static unsigned char g_y[N * GAMMA];

static ds_calib_data vectors(void)
{
    uint64_t z = ds_tiny_seed("sts.logit"), u = ds_tiny_seed("sts.uniform");
    for (int i = 0; i < N * GAMMA; i++)
        g_z[i] = (float)(ds_tiny_next(&z) * 4.0 + 1.0);
    for (int i = 0; i < N; i++) {
        int ok = 1;
        for (int k = 0; k < GAMMA; k++) {
            double p = 1.0 / (1.0 + exp(-(0.5 * (double)g_z[i * GAMMA + k] - 0.25)));
            int below = ds_tiny_next(&u) + 0.5 < p; /* every slot takes its number */
            ok = ok && below;
            g_y[i * GAMMA + k] = (unsigned char)ok;
        }
    }
    return (ds_calib_data){.z = g_z, .y = g_y, .n = N, .gamma = GAMMA};
}

DS_TEST(sts_vectors)
{
    static const double before[] = {.1261693, .1598276, .1510511}, after[] = {.0377701, .0172655, .0074964};
    static const int steps[] = {19, 42, 33};
    ds_calib_data d = vectors();
    ds_err err = {0};
    double one[GAMMA] = {1, 1, 1}, T[GAMMA];
    CHECK(g_z[0] == -0.09375f && g_z[1] == 0.3125f && g_z[2] == 1.9375f);
    CHECK_OK(ds_calib_fit(&d, T, &err), err);
    for (int k = 0; k < GAMMA; k++) {
        CHECK(fabs(ds_calib_ece(&d, one, k) - before[k]) < 1e-6);
        CHECK_EQ(lround(log2(T[k]) * 16), steps[k]);
        CHECK(fabs(ds_calib_ece(&d, T, k) - after[k]) < 1e-6);
    }
}

DS_TEST(too_few_records_keep_one)
{
    ds_calib_data d = vectors();
    int m[N];
    for (int i = 0; i < N; i++)
        m[i] = i < DS_CALIB_MIN_RECORDS - 1 ? GAMMA : 1;
    d.m = m;
    double T[GAMMA];
    ds_err err = {0};
    CHECK_OK(ds_calib_fit(&d, T, &err), err);
    CHECK(T[0] != 1.0);
    CHECK(T[1] == 1.0 && T[2] == 1.0);
}

DS_TEST(bad_logit_is_named)
{
    ds_calib_data d = vectors();
    g_z[7] = NAN;
    double T[GAMMA];
    ds_err err = {0};
    CHECK_EQ(ds_calib_fit(&d, T, &err), DS_EINVAL);
    CHECK_STR(err.field, "z");
}

DS_TEST(survival_never_rises)
{
    float z[4] = {3, -80, 80, 0}, a[4];
    ds_calib_survival(z, NULL, 4, a);
    CHECK(a[0] > 0.95f && a[0] < 1.0f);
    for (int k = 1; k < 4; k++)
        CHECK(a[k] <= a[k - 1] && a[k] >= 0.0f);
}
