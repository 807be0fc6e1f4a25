/* level.h - which of this machine's CPU levels keeps activations in f32. Products of bf16 weights round them
 * to bf16 on avx512bf16, and int8 products round them to int8 there (docs/kernels.md): exact comparisons run
 * on the level below. Included by tests only. */
#ifndef DS_TESTS_LIB_LEVEL_H
#define DS_TESTS_LIB_LEVEL_H

#include "kernels/kernels.h"
#include "tests/lib/test.h"

#include <string.h>

/* 1: the best level of this machine rounds activations. */
static inline int level_rounds(void)
{
    ds_backend *b;
    ds_err err = {0};
    CHECK_OK(ds_backend_open("cpu", 1, NULL, &b, &err), err);
    int rounds = strncmp(b->detail, "avx512bf16", 10) == 0;
    b->destroy(b);
    return rounds;
}

/* The best level that does not: an isa for ds_backend_open. */
static inline const char *level_exact(void)
{
    return level_rounds() ? "avx512" : NULL;
}

#endif
