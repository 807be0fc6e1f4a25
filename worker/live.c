#include "worker/live.h"

#include <math.h>
#include <string.h>

static const double FADE = 1.0 / 8192;          /* a trial's weight halves after 5,700 more at its position */
static const double ALARM = 0.06, CLEAR = 0.04; /* chance alone gives about 0.02 at ALARM_MIN trials */
static const double ALARM_MIN = 2048;

static double sigmoid(double x)
{
    return 1.0 / (1.0 + exp(-x));
}

void ds_live_init(ds_live *l, int block, const double *T)
{
    memset(l, 0, sizeof *l);
    l->block = block;
    for (int k = 0; k < block; k++)
        l->T[k] = T ? T[k] : 1.0;
}

static int bin_of(double z)
{
    int b = (int)floor((z + 8) * DS_LIVE_BINS / 16);
    return b < 0 ? 0 : b < DS_LIVE_BINS ? b : DS_LIVE_BINS - 1;
}

static double square(double z, double T, int stood)
{
    double e = sigmoid(z / T) - stood;
    return e * e;
}

void ds_live_tell(ds_live *l, const float *z, int verified, int stood)
{
    for (int k = 0; k < verified && k <= stood && k < l->block; k++) {
        double x = (double)z[k];
        if (!isfinite(x))
            return;
        ds_live_bin *b = &l->bin[k][bin_of(x)];
        for (int i = 0; i < DS_LIVE_BINS; i++) {
            l->bin[k][i].n *= 1 - FADE;
            l->bin[k][i].stood *= 1 - FADE;
            l->bin[k][i].z *= 1 - FADE;
        }
        b->n++;
        b->stood += k < stood;
        b->z += x;
        l->trials++;
        if (l->state == DS_LIVE_CANARYING || l->state == DS_LIVE_PROVING) {
            double d = square(x, l->other[k], k < stood) - square(x, l->T[k], k < stood);
            l->ahead += d;
            l->ahead2 += d * d;
            l->judged++;
        }
    }
}

double ds_live_ece(const ds_live *l, const double *T, int k)
{
    double n = 0, sum = 0;
    for (int i = 0; i < DS_LIVE_BINS; i++) { /* positions share the bins: chance evens out */
        double off = 0;
        for (int j = k < 0 ? 0 : k; j < (k < 0 ? l->block : k + 1); j++) {
            const ds_live_bin *b = &l->bin[j][i];
            n += b->n;
            off += b->n > 0 ? b->n * sigmoid(b->z / b->n / T[j]) - b->stood : 0;
        }
        sum += fabs(off);
    }
    return n > 0 ? sum / n : 0;
}

/* The temperature under which the outcomes of a position are the most probable: the grid of calib.h, from 1
 * outwards, so that of equals the nearest to 1 stays. */
static double fit(const ds_live_bin *bin)
{
    double best = -INFINITY, best_T = 1;
    for (int s = 0; s < 97; s++) {
        int i = s % 2 ? -(s + 1) / 2 : s / 2;
        double T = exp2(i / 16.0), sum = 0;
        for (int b = 0; b < DS_LIVE_BINS; b++) {
            if (!(bin[b].n > 0))
                continue;
            double p = fmin(fmax(sigmoid(bin[b].z / bin[b].n / T), 1e-9), 1 - 1e-9);
            sum += bin[b].stood * log(p) + (bin[b].n - bin[b].stood) * log1p(-p);
        }
        if (sum > best) {
            best = sum;
            best_T = T;
        }
    }
    return best_T;
}

static void look(ds_live *l)
{
    double n = 0;
    for (int k = 0; k < l->block; k++) {
        l->ece_at[k] = ds_live_ece(l, l->T, k);
        for (int i = 0; i < DS_LIVE_BINS; i++)
            n += l->bin[k][i].n;
    }
    l->ece = ds_live_ece(l, l->T, -1);
    l->drift = n >= ALARM_MIN && l->ece > (l->drift ? CLEAR : ALARM);
}

static void enter(ds_live *l, ds_live_state s)
{
    look(l);
    l->state = s;
    l->slot = 0;
    l->trials = l->judged = 0;
    l->ahead = l->ahead2 = 0;
}

static void swap(ds_live *l)
{
    for (int k = 0; k < l->block; k++) {
        double t = l->T[k];
        l->T[k] = l->other[k];
        l->other[k] = t;
    }
}

/* The other temperatures predict better, by more than two sigma of chance. */
static int other_wins(const ds_live *l)
{
    return l->ahead < -2 * sqrt(l->ahead2);
}

static void fit_one(ds_live *l)
{
    int k = l->slot;
    double n = 0;
    for (int i = 0; i < DS_LIVE_BINS; i++)
        n += l->bin[k][i].n;
    l->other[k] = n < DS_LIVE_MIN ? l->T[k] : fit(l->bin[k]);
    if (++l->slot < l->block)
        return;
    int changed = memcmp(l->T, l->other, (size_t)l->block * sizeof *l->T) != 0;
    enter(l, changed ? DS_LIVE_CANARYING : DS_LIVE_WATCHING);
}

void ds_live_tick(ds_live *l)
{
    switch (l->state) {
    case DS_LIVE_WATCHING:
        if (l->trials >= DS_LIVE_FIT_EVERY)
            enter(l, DS_LIVE_FITTING);
        break;
    case DS_LIVE_FITTING:
        fit_one(l);
        break;
    case DS_LIVE_CANARYING: /* they must predict trials they were not fitted to better than those in use */
        if (l->judged < DS_LIVE_CANARY)
            break;
        if (other_wins(l)) {
            swap(l);
            l->refits++;
            enter(l, DS_LIVE_PROVING);
        } else {
            enter(l, DS_LIVE_WATCHING);
        }
        break;
    case DS_LIVE_PROVING:
        if (l->judged < DS_LIVE_CANARY)
            break;
        if (other_wins(l)) { /* worse than the old ones after all */
            swap(l);
            l->rollbacks++;
        }
        enter(l, DS_LIVE_WATCHING);
        break;
    }
}
