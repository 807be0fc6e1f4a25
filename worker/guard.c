#include "worker/guard.h"

#include <math.h>

/* Memory of an arm, in steps, and how clear a verdict must be: a loss of 2 % turns off, a trial must win by
 * 1 % to turn on, and more while few plain steps are known (NOISE: of one step on a shared machine). One
 * sample counts as at most OUTLIER times its arm. */
static const double MEMORY = 64, LOSS = 0.02, WIN = 0.01, NOISE = 0.08, OUTLIER = 2;

static int band_of(int R)
{
    int b = 0;
    while (R > 1 && b < DS_GUARD_BANDS - 1) {
        R >>= 1;
        b++;
    }
    return b;
}

static void add(ds_guard_arm *a, double measured, double predicted)
{
    double keep = 1 - 1 / MEMORY;
    if (a->n >= DS_GUARD_PLAIN_FIRST)
        measured = fmin(measured, OUTLIER * predicted * a->measured / a->predicted);
    a->measured = a->measured * keep + measured;
    a->predicted = a->predicted * keep + predicted;
    a->n++;
}

static double regret(const ds_guard_band *b)
{
    if (b->plain.n < DS_GUARD_PLAIN_FIRST || b->drafted.n < DS_GUARD_TRIAL)
        return 0;
    double drafted = b->drafted.measured / b->drafted.predicted,
           plain = b->plain.measured / b->plain.predicted;
    return 1 - plain / drafted;
}

double ds_guard_regret(const ds_guard *g, int R)
{
    return regret(&g->band[band_of(R)]);
}

int ds_guard_allows(const ds_guard *g, int R)
{
    const ds_guard_band *b = &g->band[band_of(R)];
    int at = b->in_state - DS_GUARD_TRIAL;
    if (b->state == DS_GUARD_ON)
        return at % DS_GUARD_PLAIN_EVERY != 0 && (at < 0 || at >= DS_GUARD_PLAIN_FIRST);
    return b->state == DS_GUARD_TRYING;
}

static void enter(ds_guard_band *b, ds_guard_state s)
{
    b->state = s;
    b->in_state = 0;
    if (s == DS_GUARD_TRYING) /* judged by the trial alone */
        b->drafted = (ds_guard_arm){0, 0, 0};
}

void ds_guard_tell(ds_guard *g, int R, int drafted, int tokens, double measured_s, double plain_s)
{
    ds_guard_band *b = &g->band[band_of(R)];
    if (R < 1 || !(measured_s > 0) || !(plain_s > 0))
        return;
    double predicted = plain_s * tokens / R; /* so many plain steps give as many tokens */
    if (drafted) {
        g->measured_s += measured_s;
        g->plain_s += predicted * (b->plain.n ? b->plain.measured / b->plain.predicted : 1);
    }
    if (tokens > 0)
        add(drafted ? &b->drafted : &b->plain, measured_s, predicted);
    b->in_state++;
    double lost = regret(b), doubt = NOISE / sqrt(fmin((double)b->plain.n + 1, MEMORY));
    switch (b->state) {
    case DS_GUARD_ON:
        if (lost > LOSS + doubt) {
            b->rest = DS_GUARD_REST_MIN;
            g->turned_off++;
            enter(b, DS_GUARD_OFF);
        }
        break;
    case DS_GUARD_OFF:
        if (b->in_state >= b->rest)
            enter(b, DS_GUARD_TRYING);
        break;
    case DS_GUARD_TRYING:
        if (b->drafted.n < DS_GUARD_TRIAL && b->in_state < 8 * DS_GUARD_TRIAL)
            break;
        if (b->drafted.n >= DS_GUARD_TRIAL && lost < -WIN) {
            enter(b, DS_GUARD_ON);
        } else {
            b->rest = 2 * b->rest < DS_GUARD_REST_MAX ? 2 * b->rest : DS_GUARD_REST_MAX;
            enter(b, DS_GUARD_OFF);
        }
        break;
    }
}
