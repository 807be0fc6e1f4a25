/* attention.h - the tensor-core attention kernels (attention_mma.cu), chosen in attention.cu. C++ only. */
#ifndef DS_CUDA_ATTENTION_H
#define DS_CUDA_ATTENTION_H

#include "kernels/cuda/internal.h"

int ds_cuda_attention_mma_fits(const ds_cuda *c, const ds_attn_args *a);
/* rounded: the bf16 copy of a->out, or NULL. */
ds_code ds_cuda_attention_mma(ds_cuda *c, const ds_attn_args *a, __nv_bfloat16 *rounded);

#endif
