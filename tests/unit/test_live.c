/* Calibration while serving, against confidences whose true reliability is known. */
#include "worker/live.h"

#include "base/rng.h"
#include "tests/lib/test.h"

#include <math.h>

enum { BLOCK = 5 };

typedef struct stream {
    uint32_t n;
    double T[BLOCK]; /* the true temperatures */
} stream;

static double unit(stream *s)
{
    return (double)ds_rng_unit(ds_rng_u32(3, DS_RNG_INIT, 9, s->n++));
}

/* Rounds with logits of a wide spread; draft k stands with probability sigmoid(z / T_k); a scheduler
 * verifies some of them. */
static void rounds(ds_live *l, stream *s, int n)
{
    for (int i = 0; i < n; i++) {
        float z[BLOCK];
        int stood = 0, verified = 1 + (int)(unit(s) * BLOCK);
        for (int k = 0; k < BLOCK; k++)
            z[k] = (float)(unit(s) * 8 - 2);
        while (stood < verified && unit(s) < 1 / (1 + exp(-(double)z[stood] / s->T[stood])))
            stood++;
        ds_live_tell(l, z, verified, stood);
        ds_live_tick(l);
    }
}

DS_TEST(temperatures_are_found_from_verified_prefixes)
{
    static ds_live l;
    stream s = {0, {1.5, 2, 3, .7, 1}};
    ds_live_init(&l, BLOCK, NULL);
    double before[BLOCK] = {1, 1, 1, 1, 1};
    rounds(&l, &s, 40000);
    CHECK(l.refits >= 1);
    CHECK_EQ(l.rollbacks, 0);
    for (int k = 0; k < 3; k++) /* grid 2^(1/16); the last positions are reached rarely */
        CHECK_MSG(fabs(log2(l.T[k] / s.T[k])) < 0.2, "T_%d is %g, true %g", k + 1, l.T[k], s.T[k]);
    CHECK(ds_live_ece(&l, before, 1) > 0.08);
    CHECK_MSG(ds_live_ece(&l, l.T, -1) < 0.02, "ECE %g", ds_live_ece(&l, l.T, -1));
    CHECK_EQ(l.drift, 0);
}

DS_TEST(drift_raises_the_alarm_and_is_followed)
{
    static ds_live l;
    stream s = {0, {1, 1, 1, 1, 1}};
    ds_live_init(&l, BLOCK, NULL);
    rounds(&l, &s, 20000);
    CHECK_EQ(l.drift, 0);
    CHECK(l.ece < 0.03);
    for (int k = 0; k < BLOCK; k++)
        s.T[k] = 5; /* other texts: confidences mean little */
    int alarmed = 0;
    for (int i = 0; i < 60; i++) {
        rounds(&l, &s, 500);
        alarmed |= l.drift;
    }
    CHECK(alarmed);
    CHECK(l.refits >= 1 && l.T[0] > 3.5);
    rounds(&l, &s, 30000);
    CHECK_EQ(l.drift, 0); /* fitted again: the alarm is over */
}

/* Temperatures that turn out worse are taken back. */
DS_TEST(worse_temperatures_are_rolled_back)
{
    static ds_live l;
    stream s = {0, {3, 3, 3, 3, 3}};
    ds_live_init(&l, BLOCK, NULL);
    while (l.state != DS_LIVE_PROVING)
        rounds(&l, &s, 1);
    CHECK(l.T[0] > 2);
    for (int k = 0; k < BLOCK; k++)
        s.T[k] = .9; /* the texts that they were fitted to are over */
    while (l.state == DS_LIVE_PROVING)
        rounds(&l, &s, 1);
    CHECK_EQ(l.rollbacks, 1);
    CHECK(l.T[0] == 1.0);
}

/* A canary that does not predict better is never used. */
DS_TEST(canary_needs_to_win)
{
    static ds_live l;
    stream s = {0, {3, 3, 3, 3, 3}};
    ds_live_init(&l, BLOCK, NULL);
    while (l.state != DS_LIVE_CANARYING)
        rounds(&l, &s, 1);
    for (int k = 0; k < BLOCK; k++)
        s.T[k] = .9;
    while (l.state == DS_LIVE_CANARYING)
        rounds(&l, &s, 1);
    CHECK_EQ(l.refits, 0);
    CHECK(l.T[0] == 1.0);
}

DS_TEST(only_prefixes_count_and_bad_logits_do_not)
{
    static ds_live l;
    float z[BLOCK] = {1, 1, NAN, 1, 1};
    ds_live_init(&l, BLOCK, NULL);
    ds_live_tell(&l, z, 5, 1); /* trials: slot 1 stood, slot 2 did not; the others say nothing */
    CHECK_EQ(l.trials, 2);
    ds_live_tell(&l, z, 5, 5);
    CHECK_EQ(l.trials, 4);
    ds_live_tell(&l, z, 0, 0);
    CHECK_EQ(l.trials, 4);
    CHECK(isfinite(ds_live_ece(&l, l.T, -1)) && ds_live_ece(&l, l.T, 3) == 0);
}
