/* cell.c - the gates of a draft's serial head. A few hundred values a slot: plain code, one thread. */
#include "kernels/cpu/cpu.h"

#include <math.h>

static float sigmoid(float x)
{
    return 1.0f / (1.0f + expf(-x));
}

ds_code ds_cpu_cell(ds_backend *b, const ds_cell_args *a)
{
    (void)b;
    if (a->R < 0 || a->N <= 0)
        return DS_EINVAL;
    const size_t n = (size_t)a->N;
    for (size_t r = 0; r < (size_t)a->R; r++) {
        const float *t = a->t + r * (a->kind == DS_CELL_RNN ? 3 * n : n);
        for (size_t i = 0; i < n; i++) {
            float g = sigmoid(t[i]), *y = a->y + r * n + i;
            if (a->kind == DS_CELL_GATED) {
                *y = g * a->e[r * n + i];
                continue;
            }
            float *s = a->state + r * n + i;
            *y = tanhf(t[2 * n + i]);
            *s = g * *s + (1.0f - g) * tanhf(t[n + i]);
        }
    }
    return DS_OK;
}
