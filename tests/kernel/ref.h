/* ref.h - plain float64 references of the ops, and helpers of the kernel tests. Everything is written for
 * reading: one loop nest per formula of kernels/kernels.h, nothing shared with the code under test. */
#ifndef DS_TESTS_KERNEL_REF_H
#define DS_TESTS_KERNEL_REF_H

#include "base/rng.h"
#include "kernels/kernels.h"
#include "tests/kernel/mirror.h"
#include "tests/lib/test.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>

#define REF_FN __attribute__((unused)) static

/* The level a case is about ("avx2", "cuda_auto", ...); the case is skipped, counted, where the machine has
 * none. */
REF_FN ds_backend *ref_open(const char *isa, int threads)
{
    ds_backend *b;
    ds_err err;
    int cuda = isa && strncmp(isa, "cuda_", 5) == 0;
    ds_code c = ds_backend_open(cuda ? "cuda" : "cpu", threads, cuda ? isa + 5 : isa, &b, &err);
    if (c == DS_EUNSUPPORTED)
        ds_test_skip(err.msg);
    CHECK_OK(c, err);
    return cuda ? mirror_open(b, 64 << 20) : b;
}

/* Products of bf16 weights round the activations to bf16. */
REF_FN int ref_rounds_bf16(const ds_backend *b)
{
    return strcmp(b->name, "cuda") == 0 ? strstr(b->detail, "portable") == NULL
                                        : strncmp(b->detail, "avx512bf16", 10) == 0;
}

/* Uniform in (-1, 1), by counter: the same on every machine. */
REF_FN float ref_random(uint64_t seed, uint32_t i)
{
    return 2 * ds_rng_unit(ds_rng_u32(seed, DS_RNG_INIT, 0, i)) - 1;
}

REF_FN float *ref_floats(size_t n, uint64_t seed)
{
    float *p = malloc((n ? n : 1) * sizeof *p);
    for (size_t i = 0; i < n; i++)
        p[i] = ref_random(seed, (uint32_t)i);
    return p;
}

REF_FN uint16_t ref_to_bf16(float x)
{
    uint32_t u;
    memcpy(&u, &x, 4);
    return (uint16_t)((u + 0x7fff + (u >> 16 & 1)) >> 16);
}

REF_FN double ref_from_bf16(uint16_t h)
{
    uint32_t u = (uint32_t)h << 16;
    float f;
    memcpy(&f, &u, 4);
    return (double)f;
}

REF_FN double ref_from_f16(uint16_t h)
{
    int e = h >> 10 & 31, m = h & 1023;
    double v = e == 0    ? ldexp(m, -24)
               : e == 31 ? (m ? (double)NAN : (double)INFINITY)
                         : ldexp(1024 + m, e - 25);
    return h & 0x8000 ? -v : v;
}

/* A block of memory that ends at an unreadable page: reading beyond the last byte faults. */
typedef struct ref_guarded {
    char *map, *p;
    size_t mapped;
} ref_guarded;

REF_FN ref_guarded ref_guard(size_t bytes)
{
    size_t page = 4096, mapped = (bytes + page - 1) / page * page + page;
    char *m = mmap(NULL, mapped, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    CHECK(m != MAP_FAILED);
    CHECK(mprotect(m + mapped - page, page, PROT_NONE) == 0);
    return (ref_guarded){m, m + mapped - page - bytes, mapped};
}

REF_FN void ref_unguard(ref_guarded g)
{
    munmap(g.map, g.mapped);
}

/* A random matrix of any dtype, guarded at its end, and its exact values. */
typedef struct ref_mat {
    ds_mat m;
    ref_guarded mem;
    float *scale;
    double *exact; /* [n, k] */
} ref_mat;

REF_FN ref_mat ref_mat_make(int n, int k, ds_dtype t, uint64_t seed)
{
    size_t count = (size_t)n * (size_t)k;
    ref_mat r = {.mem = ref_guard(count * ds_dtype_size(t)), .exact = malloc(count * sizeof(double))};
    r.m = (ds_mat){r.mem.p, NULL, n, k, t};
    if (t == DS_I8) {
        r.scale = malloc(count / DS_I8_BLOCK * sizeof(float));
        for (size_t i = 0; i < count / DS_I8_BLOCK; i++)
            r.scale[i] = 0.01f + fabsf(ref_random(seed + 77, (uint32_t)i)) * 0.01f;
        r.m.scale = r.scale;
    }
    for (size_t i = 0; i < count; i++) {
        float x = ref_random(seed, (uint32_t)i);
        uint16_t h = ref_to_bf16(x);
        int8_t q = (int8_t)lrintf(x * 127);
        if (t == DS_F16)
            h = (uint16_t)((x < 0 ? 0x8000 : 0) | (uint16_t)lrintf(fabsf(x) * 0x3bff));
        if (t == DS_F32)
            memcpy(r.mem.p + i * 4, &x, 4);
        else if (t == DS_I8)
            memcpy(r.mem.p + i, &q, 1);
        else
            memcpy(r.mem.p + i * 2, &h, 2);
        r.exact[i] = t == DS_F32   ? (double)x
                     : t == DS_I8  ? (double)q * (double)r.scale[i / DS_I8_BLOCK]
                     : t == DS_F16 ? ref_from_f16(h)
                                   : ref_from_bf16(h);
    }
    return r;
}

REF_FN void ref_mat_free(ref_mat *r)
{
    ref_unguard(r->mem);
    free(r->scale);
    free(r->exact);
}

/* y = x W^T and, for the bound, sum |w x|. */
REF_FN void ref_dot(const double *w, const float *x, int k, double *ret_sum, double *ret_abs)
{
    double s = 0, a = 0;
    for (int i = 0; i < k; i++) {
        s += w[i] * (double)x[i];
        a += fabs(w[i] * (double)x[i]);
    }
    *ret_sum = s;
    *ret_abs = a;
}

/* Unit roundoffs. */
#define REF_U32 0x1p-24
#define REF_UBF16 0x1p-8 /* of rounding to nearest bf16: half of 2^-7 */

#endif
