/* registry.c - the one place that chooses a back end. */
#include "kernels/kernels.h"

#include "kernels/cpu/cpu.h"
#ifdef DS_HAVE_CUDA
#include "kernels/cuda/cuda.h"
#endif

#include <string.h>

ds_code ds_backend_open(const char *name, int threads, const char *isa, ds_backend **ret, ds_err *err)
{
    *ret = NULL;
    if (strcmp(name, "cpu") == 0)
        return ds_cpu_open(threads, isa, ret, err);
#ifdef DS_HAVE_CUDA
    if (strcmp(name, "cuda") == 0)
        return ds_cuda_open(isa, ret, err);
#endif
    if (strcmp(name, "cuda") == 0)
        return ds_err_field(err, DS_EUNSUPPORTED, "device", "this build has no CUDA back end");
    return ds_err_field(err, DS_EINVAL, "device", "device \"%s\" is unknown: cpu or cuda", name);
}
