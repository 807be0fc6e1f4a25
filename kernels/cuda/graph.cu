/* graph.cu - graphs, marks and transfers of the CUDA back end. A graph is a capture of the stream. */
#include "kernels/cuda/internal.h"

#include <stdlib.h>

struct ds_graph {
    cudaGraphExec_t exec;
};

static ds_code pin(ds_backend *b, size_t bytes, void **ret, ds_err *err)
{
    ds_cuda *c = ds_cuda_of(b);
    cudaError_t e = cudaHostAlloc(ret, bytes ? bytes : 1, cudaHostAllocDefault);
    if (e == cudaSuccess)
        return DS_OK;
    *ret = NULL;
    return ds_err_set(err, ds_cuda_code(c, e), "pinned memory of %zu bytes: %s", bytes, cudaGetErrorString(e));
}

static void unpin(ds_backend *b, void *p)
{
    (void)ds_cuda_code(ds_cuda_of(b), cudaFreeHost(p));
}

static ds_code push(ds_backend *b, void *dst, const void *pinned, size_t bytes)
{
    return b->upload(b, dst, pinned, bytes); /* enqueued: from pinned memory it does not wait */
}

static ds_code fetch(ds_backend *b, void *pinned, const void *src, size_t bytes)
{
    ds_cuda *c = ds_cuda_of(b);
    DS_TRY(ds_cuda_flush(c));
    if (bytes == 0)
        return DS_OK;
    return ds_cuda_code(c, cudaMemcpyAsync(pinned, src, bytes, cudaMemcpyDeviceToHost, c->stream));
}

/* Events are made when first used and stay. */
static ds_code mark(ds_backend *b, int i)
{
    ds_cuda *c = ds_cuda_of(b);
    if (i < 0 || i >= DS_MARKS)
        return DS_EINVAL;
    DS_TRY(ds_cuda_flush(c));
    if (!c->mark[i])
        DS_TRY(ds_cuda_code(c, cudaEventCreate(&c->mark[i])));
    return ds_cuda_code(c, cudaEventRecord(c->mark[i], c->stream));
}

static ds_code wait_for(ds_backend *b, int i)
{
    ds_cuda *c = ds_cuda_of(b);
    if (i < 0 || i >= DS_MARKS || !c->mark[i])
        return DS_EINVAL;
    return ds_cuda_code(c, cudaEventSynchronize(c->mark[i]));
}

static ds_code elapsed(ds_backend *b, int from, int to, double *ret_seconds)
{
    ds_cuda *c = ds_cuda_of(b);
    float ms = 0;
    if (from < 0 || from >= DS_MARKS || to < 0 || to >= DS_MARKS || !c->mark[from] || !c->mark[to])
        return DS_EINVAL;
    DS_TRY(ds_cuda_code(c, cudaEventElapsedTime(&ms, c->mark[from], c->mark[to])));
    *ret_seconds = 1e-3 * (double)ms;
    return DS_OK;
}

static ds_code begin(ds_backend *b)
{
    ds_cuda *c = ds_cuda_of(b);
    DS_TRY(ds_cuda_flush(c));
    c->shadow.of = NULL; /* a graph begins without what other work left in xb */
    return ds_cuda_code(c, cudaStreamBeginCapture(c->stream, cudaStreamCaptureModeRelaxed));
}

static ds_code end(ds_backend *b, ds_graph **ret, ds_err *err)
{
    ds_cuda *c = ds_cuda_of(b);
    *ret = NULL;
    ds_code code = ds_cuda_flush(c);
    cudaGraph_t graph = NULL;
    c->shadow.of = NULL;
    cudaError_t e = cudaStreamEndCapture(c->stream, &graph);
    ds_graph *g = e == cudaSuccess && code == DS_OK ? (ds_graph *)calloc(1, sizeof *g) : NULL;
    if (g)
        e = cudaGraphInstantiate(&g->exec, graph, 0);
    if (graph)
        cudaGraphDestroy(graph);
    if (e == cudaSuccess && g) {
        *ret = g;
        return ds_cuda_code(c, cudaGraphUpload(g->exec, c->stream));
    }
    free(g);
    if (e != cudaSuccess)
        code = ds_cuda_code(c, e);
    return ds_err_set(err, code == DS_OK ? DS_ENOMEM : code, "capture of a graph: %s",
                      e != cudaSuccess ? cudaGetErrorString(e) : ds_err_name(code));
}

static ds_code launch(ds_backend *b, ds_graph *g)
{
    ds_cuda *c = ds_cuda_of(b);
    if (c->lost)
        return DS_ELOST;
    DS_TRY(ds_cuda_flush(c));
    c->shadow.of = NULL; /* the graph overwrites xb */
    return ds_cuda_code(c, cudaGraphLaunch(g->exec, c->stream));
}

static void graph_free(ds_backend *b, ds_graph *g)
{
    if (g)
        (void)ds_cuda_code(ds_cuda_of(b), cudaGraphExecDestroy(g->exec));
    free(g);
}

void ds_cuda_graph_open(ds_cuda *c)
{
    ds_backend *b = &c->b;
    b->pin = pin;
    b->unpin = unpin;
    b->push = push;
    b->fetch = fetch;
    b->mark = mark;
    b->wait = wait_for;
    b->elapsed = elapsed;
    b->graph_begin = begin;
    b->graph_end = end;
    b->graph_launch = launch;
    b->graph_free = graph_free;
}

void ds_cuda_graph_close(ds_cuda *c)
{
    for (int i = 0; i < DS_MARKS; i++)
        if (c->mark[i])
            cudaEventDestroy(c->mark[i]);
    cudaFree(c->draws.p);
}
