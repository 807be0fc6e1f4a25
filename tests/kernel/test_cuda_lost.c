/* test_cuda_lost.c - a sticky device fault is reported as "lost", by the call that meets it and by all after
 * it. Alone in its program: the fault ends the process's use of the device. */
#include "tests/kernel/ref.h"

DS_TEST(cuda_sticky_fault_is_lost)
{
    ds_backend *b;
    ds_err err;
    ds_code code = ds_backend_open("cuda", 0, NULL, &b, &err);
    if (code == DS_EUNSUPPORTED)
        ds_test_skip(err.msg);
    CHECK_OK(code, err);
    float *x;
    CHECK_OK(b->alloc(b, 4096, (void **)&x, &err), err);
    ds_silu_mul_args a = {x, (float *)(uintptr_t)0x1000, 1, 512};
    code = b->silu_mul(b, &a);
    if (code == DS_OK)
        code = b->sync(b);
    CHECK_EQ(code, DS_ELOST);
    a.y = x;
    CHECK_EQ(b->silu_mul(b, &a), DS_ELOST);
    CHECK_EQ(b->sync(b), DS_ELOST);
    void *p;
    CHECK_EQ(b->alloc(b, 64, &p, &err), DS_ELOST);
    b->destroy(b);
}
