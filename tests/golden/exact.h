/* exact.h - the level on which golden vectors are compared with bounds of f32 arithmetic: avx512bf16 rounds
 * activations (docs/kernels.md), so a machine that has it runs these tests on avx512. */
#ifndef DS_TESTS_GOLDEN_EXACT_H
#define DS_TESTS_GOLDEN_EXACT_H

#include "kernels/kernels.h"

static inline const char *g_exact_isa(void)
{
    ds_backend *b;
    if (ds_backend_open("cpu", 1, "avx512", &b, NULL) != DS_OK)
        return NULL; /* the best here is f32 already */
    b->destroy(b);
    return "avx512";
}

#endif
