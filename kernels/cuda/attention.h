/* attention.h - the tensor-core attention kernels, chosen in attention.cu. C++ only.
 *
 * Rows go in blocks of 128 / (H / G). A block whose rows all belong to one sequence, in order, is dense: a
 * part of a prompt. With many rows in the step the kernel of attention_prefill.cu takes the dense blocks and
 * the one of attention_mma.cu the other rows; which is which is decided on the device, from the rows. */
#ifndef DS_CUDA_ATTENTION_H
#define DS_CUDA_ATTENTION_H

#include "kernels/cuda/internal.h"

enum { DS_ATTN_PAGE = 16, DS_ATTN_DENSE = 128, DS_ATTN_DENSE_ROWS = 8 /* fewer rows are no prompt */ };

int ds_cuda_attention_mma_fits(const ds_attn_args *a);
/* rounded: the bf16 copy of a->out, or NULL. dense: rows per dense block, which this kernel leaves out; 0:
 * takes all. */
ds_code ds_cuda_attention_mma(ds_cuda *c, const ds_attn_args *a, __nv_bfloat16 *rounded, int dense);
/* ds_cuda_attention_prefill: the dense blocks of `dense` rows. */
ds_code ds_cuda_attention_prefill(ds_cuda *c, const ds_attn_args *a, __nv_bfloat16 *rounded, int dense);

#ifdef __CUDACC__
__device__ __forceinline__ int ds_attn_is_dense(const ds_rows *r, int t, int dense)
{
    const int first = t / dense * dense, last = first + dense < r->T ? first + dense - 1 : r->T - 1;
    return last - first + 1 >= DS_ATTN_DENSE_ROWS && r->slot[first] == r->slot[last] &&
           r->pos[last] - r->pos[first] == last - first;
}
#endif

#endif
