/* maps.h - tensor maps for the tiles of the sm_90a kernels. C++ only. */
#ifndef DS_CUDA_SM90_MAPS_H
#define DS_CUDA_SM90_MAPS_H

#include "kernels/cuda/internal.h"

#include <cuda.h>

enum {
    DS_SM90_N = 128,
    DS_SM90_K = 64
}; /* a tile of weights: 128 rows of 64 inputs, 128 bytes a row, swizzled */

/* ds_cuda_map_make: rows of k bf16 (k % 8 == 0, data 16-byte aligned) in boxes of box_rows x 64; reads beyond
 * give 0. */
ds_code ds_cuda_map_make(ds_cuda *c, const void *data, int rows, int k, int box_rows, CUtensorMap *ret);
/* ds_cuda_map_weights: the same for a weight matrix, kept from call to call. */
ds_code ds_cuda_map_weights(ds_cuda *c, const ds_mat *w, CUtensorMap *ret);

#endif
