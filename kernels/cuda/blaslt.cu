/* blaslt.cu - products of many rows through cuBLASLt, which is opened at run time: a worker on a machine
 * without the library serves all the same, with its own kernels. The algorithm of a shape is chosen once and
 * kept, so that a shape gives the same bits always; different row counts may use different ones. */
#include "kernels/cuda/internal.h"

#include <cublasLt.h>
#include <dlfcn.h>
#include <stdlib.h>

enum { WORKSPACE = 64 << 20, CAP = 1024, MOST = CAP * 3 / 4 };

typedef struct plan {
    int n, k, T, y_stride, accumulate; /* n 0: free */
    cublasLtMatrixLayout_t w, x, y;
    cublasLtMatmulAlgo_t algo;
} plan;

struct ds_cuda_blas {
    void *lib;
    decltype(&cublasLtCreate) create;
    decltype(&cublasLtDestroy) destroy;
    decltype(&cublasLtMatmul) matmul;
    decltype(&cublasLtMatmulDescCreate) desc_create;
    decltype(&cublasLtMatmulDescSetAttribute) desc_set;
    decltype(&cublasLtMatmulDescDestroy) desc_destroy;
    decltype(&cublasLtMatrixLayoutCreate) layout_create;
    decltype(&cublasLtMatrixLayoutDestroy) layout_destroy;
    decltype(&cublasLtMatmulPreferenceCreate) pref_create;
    decltype(&cublasLtMatmulPreferenceSetAttribute) pref_set;
    decltype(&cublasLtMatmulPreferenceDestroy) pref_destroy;
    decltype(&cublasLtMatmulAlgoGetHeuristic) heuristic;
    cublasLtHandle_t handle;
    cublasLtMatmulDesc_t desc;
    void *workspace;
    plan plan[CAP];
    int n_plans;
};

static int resolve(ds_cuda_blas *l)
{
    int ok = 1;
    struct {
        void **fn;
        const char *name;
    } all[] = {{(void **)&l->create, "cublasLtCreate"},
               {(void **)&l->destroy, "cublasLtDestroy"},
               {(void **)&l->matmul, "cublasLtMatmul"},
               {(void **)&l->desc_create, "cublasLtMatmulDescCreate"},
               {(void **)&l->desc_set, "cublasLtMatmulDescSetAttribute"},
               {(void **)&l->desc_destroy, "cublasLtMatmulDescDestroy"},
               {(void **)&l->layout_create, "cublasLtMatrixLayoutCreate"},
               {(void **)&l->layout_destroy, "cublasLtMatrixLayoutDestroy"},
               {(void **)&l->pref_create, "cublasLtMatmulPreferenceCreate"},
               {(void **)&l->pref_set, "cublasLtMatmulPreferenceSetAttribute"},
               {(void **)&l->pref_destroy, "cublasLtMatmulPreferenceDestroy"},
               {(void **)&l->heuristic, "cublasLtMatmulAlgoGetHeuristic"}};
    for (auto &one : all) {
        *one.fn = dlsym(l->lib, one.name);
        ok &= *one.fn != NULL;
    }
    return ok;
}

static int start(ds_cuda_blas *l)
{
    cublasOperation_t transposed = CUBLAS_OP_T;
    return l->create(&l->handle) == CUBLAS_STATUS_SUCCESS &&
           l->desc_create(&l->desc, CUBLAS_COMPUTE_32F, CUDA_R_32F) == CUBLAS_STATUS_SUCCESS &&
           l->desc_set(l->desc, CUBLASLT_MATMUL_DESC_TRANSA, &transposed, sizeof transposed) ==
               CUBLAS_STATUS_SUCCESS &&
           cudaMalloc(&l->workspace, WORKSPACE) == cudaSuccess;
}

ds_cuda_blas *ds_cuda_blas_open(void)
{
    ds_cuda_blas *l = (ds_cuda_blas *)calloc(1, sizeof *l);
    if (!l)
        return NULL;
    l->lib = dlopen("libcublasLt.so.13", RTLD_NOW | RTLD_LOCAL);
    if (!l->lib)
        l->lib = dlopen("libcublasLt.so.12", RTLD_NOW | RTLD_LOCAL);
    if (l->lib && resolve(l) && start(l))
        return l;
    ds_cuda_blas_close(l);
    return NULL;
}

static void free_plan(ds_cuda_blas *l, plan *p)
{
    if (p->w)
        l->layout_destroy(p->w);
    if (p->x)
        l->layout_destroy(p->x);
    if (p->y)
        l->layout_destroy(p->y);
    *p = {};
}

/* The library stays mapped: closing it saves nothing. */
void ds_cuda_blas_close(ds_cuda_blas *l)
{
    if (!l)
        return;
    for (plan &p : l->plan)
        free_plan(l, &p);
    if (l->desc)
        l->desc_destroy(l->desc);
    if (l->handle)
        l->destroy(l->handle);
    cudaFree(l->workspace);
    free(l);
}

/* Column-major: y [n, T] = w^T [n, k] x [k, T]. */
static int make_plan(ds_cuda_blas *l, plan *p)
{
    size_t room = WORKSPACE;
    cublasLtMatmulPreference_t pref = NULL;
    cublasLtMatmulHeuristicResult_t found = {};
    int n = 0, made = l->layout_create(&p->w, CUDA_R_16BF, (uint64_t)p->k, (uint64_t)p->n, p->k) ==
                      CUBLAS_STATUS_SUCCESS;
    made &=
        l->layout_create(&p->x, CUDA_R_16BF, (uint64_t)p->k, (uint64_t)p->T, p->k) == CUBLAS_STATUS_SUCCESS;
    made &= l->layout_create(&p->y, CUDA_R_32F, (uint64_t)p->n, (uint64_t)p->T, p->y_stride) ==
            CUBLAS_STATUS_SUCCESS;
    if (made && l->pref_create(&pref) == CUBLAS_STATUS_SUCCESS) {
        l->pref_set(pref, CUBLASLT_MATMUL_PREF_MAX_WORKSPACE_BYTES, &room, sizeof room);
        if (l->heuristic(l->handle, l->desc, p->w, p->x, p->y, p->y, pref, 1, &found, &n) !=
            CUBLAS_STATUS_SUCCESS)
            n = 0;
        l->pref_destroy(pref);
    }
    p->algo = found.algo;
    return n > 0;
}

/* Prompts come in chunks of any length: when the table fills up it starts anew. */
static plan *find_plan(ds_cuda_blas *l, const ds_linear_args *a)
{
    for (int i = 0; i < CAP && l->n_plans >= MOST; i++)
        free_plan(l, &l->plan[i]);
    l->n_plans = l->n_plans >= MOST ? 0 : l->n_plans;
    unsigned h = (unsigned)a->w.n * 2654435761u ^ (unsigned)a->w.k * 40503u ^ (unsigned)a->T * 2246822519u ^
                 (unsigned)a->y_stride * 97u ^ (unsigned)a->accumulate;
    for (unsigned i = 0; i < CAP; i++) {
        plan *p = &l->plan[(h + i) % CAP];
        if (p->n == a->w.n && p->k == a->w.k && p->T == a->T && p->y_stride == a->y_stride &&
            p->accumulate == a->accumulate)
            return p;
        if (p->n)
            continue;
        *p = {a->w.n, a->w.k, a->T, a->y_stride, a->accumulate, NULL, NULL, NULL, {}};
        if (make_plan(l, p)) {
            l->n_plans++;
            return p;
        }
        free_plan(l, p);
        return NULL;
    }
    return NULL;
}

/* x is in c->xb, rounded, rows of k. A shape that the library has nothing for goes to our own kernel. */
ds_code ds_cuda_blas_linear(ds_cuda *c, const ds_linear_args *a)
{
    ds_cuda_blas *l = c->blas;
    plan *p = find_plan(l, a);
    if (!p)
        return ds_cuda_linear_simt(c, a);
    const float one = 1, beta = a->accumulate ? 1.0f : 0.0f;
    cublasStatus_t s = l->matmul(l->handle, l->desc, &one, a->w.data, p->w, c->xb.p, p->x, &beta, a->y, p->y,
                                 a->y, p->y, &p->algo, l->workspace, WORKSPACE, c->stream);
    if (s == CUBLAS_STATUS_SUCCESS)
        return ds_cuda_code(c, cudaSuccess);
    cudaError_t e = cudaPeekAtLastError();
    return ds_cuda_code(c, e != cudaSuccess ? e : cudaErrorLaunchOutOfResources);
}
