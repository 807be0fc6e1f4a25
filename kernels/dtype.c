/* dtype.c - sizes and names of element types, and block quantisation of weights on the host. */
#include "kernels/kernels.h"

#include "kernels/cpu/cpu.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

size_t ds_dtype_size(ds_dtype t)
{
    return t == DS_F32 ? 4 : t == DS_I8 ? 1 : 2;
}

const char *ds_dtype_name(ds_dtype t)
{
    static const char *const names[] = {"f32", "bf16", "f16", "i8"};
    return (unsigned)t < 4 ? names[t] : "?";
}

/* One block. A scale below the normal range would round weights to nothing that matters: such a block is 0.
 */
static ds_code quantize_block(const float *w, int8_t *q, float *ret_scale)
{
    float most = 0;
    for (int i = 0; i < DS_I8_BLOCK; i++) {
        if (!isfinite(w[i]))
            return DS_ENUMERIC;
        most = fmaxf(most, fabsf(w[i]));
    }
    float scale = most / 127;
    if (scale < 0x1p-126f)
        scale = 0;
    *ret_scale = scale;
    for (int i = 0; i < DS_I8_BLOCK; i++)
        q[i] = (int8_t)(scale > 0 ? lrintf(w[i] / scale) : 0);
    return DS_OK;
}

ds_code ds_quantize_i8(ds_mat src, int8_t *q, float *scale, ds_err *err)
{
    if (src.n <= 0 || src.k <= 0 || src.k % DS_I8_BLOCK != 0 || src.dtype == DS_I8 || !src.data)
        return ds_err_set(err, DS_EINVAL,
                          "int8 blocks need a float matrix with k a multiple of %d, not [%d, %d] %s",
                          DS_I8_BLOCK, src.n, src.k, ds_dtype_name(src.dtype));
    float *row = malloc((size_t)src.k * sizeof *row);
    if (!row)
        return ds_err_set(err, DS_ENOMEM, "no memory for one row of %d weights", src.k);
    ds_code code = DS_OK;
    for (int n = 0; n < src.n && code == DS_OK; n++) {
        size_t at = (size_t)n * (size_t)src.k;
        const char *p = (const char *)src.data + at * ds_dtype_size(src.dtype);
        ds_isa_portable.expand(src.dtype, p, NULL, src.k, row);
        for (int k = 0; k < src.k && code == DS_OK; k += DS_I8_BLOCK) {
            code = quantize_block(row + k, q + at + k, scale + (at + k) / DS_I8_BLOCK);
            if (code != DS_OK)
                ds_err_set(err, code, "weight [%d, %d..%d] holds a NaN or infinity", n, k,
                           k + DS_I8_BLOCK - 1);
        }
    }
    free(row);
    return code;
}
