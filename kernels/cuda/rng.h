/* rng.h - the counter-based noise of base/rng.h on the device, bit for bit. Included by .cu files only. */
#ifndef DS_KERNELS_CUDA_RNG_H
#define DS_KERNELS_CUDA_RNG_H

#include <stdint.h>

/* Philox4x32-10, as base/rng.h. */
__device__ static uint4 philox(uint64_t key, uint32_t c0, uint32_t c1, uint32_t c2, uint32_t c3)
{
    uint32_t k0 = (uint32_t)key, k1 = (uint32_t)(key >> 32);
#pragma unroll
    for (int round = 0; round < 10; round++) {
        uint64_t p0 = (uint64_t)0xD2511F53u * c0, p1 = (uint64_t)0xCD9E8D57u * c2;
        uint32_t n0 = (uint32_t)(p1 >> 32) ^ c1 ^ k0, n2 = (uint32_t)(p0 >> 32) ^ c3 ^ k1;
        c1 = (uint32_t)p1;
        c3 = (uint32_t)p0;
        c0 = n0;
        c2 = n2;
        k0 += 0x9E3779B9u;
        k1 += 0xBB67AE85u;
    }
    return make_uint4(c0, c1, c2, c3);
}

__device__ static float unit(uint32_t u) /* exact in f32: no rounding to differ in */
{
    return ((float)(u >> 9) + 0.5f) * 0x1p-23f;
}

#endif
