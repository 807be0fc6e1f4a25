/* The guard by a fake clock: whole servings are simulated step by step, with the times that a machine would
 * give. */
#include "worker/guard.h"

#include "base/rng.h"
#include "tests/lib/test.h"

#include <math.h>
#include <string.h>

/* A machine: seconds of a plain step and of a drafted one, tokens a request emits in the latter, noise of
 * every time; the predictions of plain steps are off by a factor. */
typedef struct machine {
    double plain, drafted, tokens, noise, off;
    uint32_t draws;
} machine;

typedef struct tally {
    int drafted, steps;
    double seconds, tokens;
} tally;

static double noisy(machine *m, double t)
{
    double u = (double)ds_rng_unit(ds_rng_u32(7, DS_RNG_INIT, 3, m->draws++));
    return t * (1 + m->noise * (2 * u - 1));
}

static tally serve(ds_guard *g, machine *m, int R, int steps)
{
    tally t = {0};
    for (int i = 0; i < steps; i++) {
        int drafted = ds_guard_allows(g, R);
        double s = noisy(m, drafted ? m->drafted : m->plain), per = drafted ? m->tokens : 1;
        int tokens = (int)(per * R + 0.5);
        ds_guard_tell(g, R, drafted, tokens, s, m->plain * m->off);
        t.drafted += drafted;
        t.steps++;
        t.seconds += s;
        t.tokens += tokens;
    }
    return t;
}

DS_TEST(a_win_stays_on_and_costs_little)
{
    static ds_guard g;
    machine m = {.plain = .01, .drafted = .015, .tokens = 3, .noise = .2, .off = 1};
    tally t = serve(&g, &m, 4, 20000);
    CHECK_EQ(g.turned_off, 0);
    CHECK(t.drafted > t.steps * 98 / 100);
    CHECK(fabs(ds_guard_regret(&g, 4) - (1 - 3 / 1.5)) < 0.15); /* twice as fast */
    CHECK(g.plain_s / g.measured_s > 1.8 && g.plain_s / g.measured_s < 2.2);
}

/* Whatever the profile predicts: a loss is seen by the clock, and from then on costs next to nothing. */
DS_TEST(a_loss_is_turned_off_even_when_predictions_are_wrong)
{
    static const double off[] = {1, 0.3, 3};
    for (int i = 0; i < 3; i++) {
        ds_guard g = {0};
        machine m = {.plain = .01, .drafted = .025, .tokens = 2, .noise = .1, .off = off[i]};
        serve(&g, &m, 8, 200);
        CHECK_EQ(g.turned_off, 1);
        CHECK_EQ(g.band[3].state, DS_GUARD_OFF);
        tally t = serve(&g, &m, 8, 50000);
        double best = t.tokens * m.plain / 8;
        CHECK_MSG(best / t.seconds > 0.99, "%g of plain decoding", best / t.seconds);
    }
}

DS_TEST(drafting_comes_back_when_it_pays_again)
{
    ds_guard g = {0};
    machine m = {.plain = .01, .drafted = .02, .tokens = 1.5, .noise = .1, .off = 1};
    serve(&g, &m, 2, 100);
    CHECK_EQ(g.band[1].state, DS_GUARD_OFF);
    m.tokens = 3.5; /* other texts */
    tally t = serve(&g, &m, 2, DS_GUARD_REST_MIN + 2 * DS_GUARD_TRIAL + 300);
    CHECK_EQ(g.band[1].state, DS_GUARD_ON);
    CHECK(t.drafted > 250);
}

/* A loss at 32 requests says nothing about one. */
DS_TEST(loads_are_judged_apart)
{
    ds_guard g = {0};
    machine busy = {.plain = .05, .drafted = .12, .tokens = 2, .noise = .1, .off = 1};
    machine calm = {.plain = .01, .drafted = .012, .tokens = 3, .noise = .1, .off = 1};
    serve(&g, &busy, 32, 400);
    tally t = serve(&g, &calm, 1, 400);
    CHECK_EQ(g.band[5].state, DS_GUARD_OFF);
    CHECK_EQ(g.band[0].state, DS_GUARD_ON);
    CHECK(t.drafted > 380);
}

/* A spell in which everything takes twice as long is no loss of drafting: both ways are slow. */
DS_TEST(a_slow_spell_is_not_mistaken_for_a_loss)
{
    ds_guard g = {0};
    machine m = {.plain = .01, .drafted = .016, .tokens = 2, .noise = .1, .off = 1};
    for (int spell = 0; spell < 40; spell++) {
        double f = spell % 2 ? 2 : 0.5;
        m.plain *= f;
        m.drafted *= f;
        serve(&g, &m, 4, 1000);
    }
    CHECK(g.turned_off <= 2);
    CHECK(ds_guard_regret(&g, 4) < 0);
}

/* About even, with noise: whatever the guard decides, it costs at most 2 %. */
DS_TEST(about_even_costs_at_most_two_percent)
{
    for (int i = 0; i <= 20; i++) {
        ds_guard g = {0};
        machine m = {.plain = .01, .drafted = .02, .tokens = 1.5 + 0.05 * i, .noise = .2, .off = 1};
        m.draws = (uint32_t)i << 20;
        tally t = serve(&g, &m, 20, 40000);
        double plain = t.tokens * m.plain / 20, best = fmin(plain, t.tokens * m.drafted / (20 * m.tokens));
        CHECK_MSG(t.seconds < 1.02 * plain, "%g tokens: %g of plain decoding", m.tokens, plain / t.seconds);
        CHECK_MSG(t.seconds < 1.12 * best, "%g tokens: %g of the better way", m.tokens, best / t.seconds);
    }
}

DS_TEST(nonsense_changes_nothing)
{
    ds_guard g = {0}, before = g;
    ds_guard_tell(&g, 0, 1, 3, .01, .01);
    ds_guard_tell(&g, 4, 1, 3, 0, .01);
    ds_guard_tell(&g, 4, 1, 3, NAN, .01);
    ds_guard_tell(&g, 4, 1, 3, .01, -1);
    CHECK(memcmp(&g, &before, sizeof g) == 0);
    CHECK_EQ(ds_guard_allows(&g, 1 << 20), 1);
}
