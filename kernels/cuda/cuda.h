/* cuda.h - opens the CUDA back end (docs/cuda.md). The rest of the program sees it through kernels/kernels.h.
 */
#ifndef DS_CUDA_CUDA_H
#define DS_CUDA_CUDA_H

#include "kernels/kernels.h"

/* ds_cuda_open: device 0 of the visible ones. level (the `isa` of ds_backend_open):
 *   NULL, "", "auto"  the fastest: bf16 activations, tensor cores, cuBLASLt for many rows where it is found;
 *   "invariant"       the same kernels for every row count and no cuBLASLt: a row's bits never depend on the
 * others; "portable"        f32 activations on any card from sm_80 on; invariant too; slow. Errors:
 * DS_EUNSUPPORTED no device, driver or code for this card; DS_EINVAL level; DS_ENOMEM; DS_EDEVICE. */
ds_code ds_cuda_open(const char *level, ds_backend **ret, ds_err *err);

#endif
