/* mma.h - the tensor-core product of one warp (16 x 8 x 16, bf16 in, f32 sums) for the attention kernels. */
#ifndef DS_KERNELS_CUDA_MMA_H
#define DS_KERNELS_CUDA_MMA_H

#include <cuda_bf16.h>
#include <stdint.h>

__device__ static void mma(float d[4], const uint32_t *a, uint32_t b0, uint32_t b1)
{
    asm volatile("mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, "
                 "{%0,%1,%2,%3};"
                 : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
                 : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));
}

__device__ static uint32_t pack(float lo, float hi)
{
    __nv_bfloat162 v = __floats2bfloat162_rn(lo, hi);
    return *(uint32_t *)&v;
}

#endif
