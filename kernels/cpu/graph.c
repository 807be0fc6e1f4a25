/* graph.c - graphs, marks and transfers of the CPU back end. Ops run to their end before they return, so a
 * graph is a list of calls: between begin and end the table's ops are replaced by recorders. */
#include "kernels/cpu/cpu.h"
#include "kernels/cpu/mem.h"

#include <stdlib.h>
#include <string.h>
#include <time.h>

/* Every op that may stand in a graph. */
/* clang-format off */
#define OPS(X) \
    X(embed, embed) X(rmsnorm, rmsnorm) X(linear, linear) X(qkv, qkv) X(attention, attn) X(silu_mul, silu_mul) \
    X(gather, gather) X(cell, cell) X(admit, admit) X(draw, draw) X(accept, accept) X(block, block) X(offer, offer)
/* clang-format on */

#define KIND(op, args) OP_##op,
#define ARGS(op, args) ds_##args##_args op;
typedef struct call {
    enum { OPS(KIND) N_OPS } kind;
    union {
        OPS(ARGS)
    } a;
} call;

struct ds_graph {
    call *call; /* [n] */
    int n, cap;
};

static ds_code record(ds_backend *b, const call *what)
{
    ds_graph *g = ((ds_cpu *)b)->recording;
    if (g->n == g->cap) {
        int cap = g->cap ? 2 * g->cap : 256;
        call *more = realloc(g->call, (size_t)cap * sizeof *more);
        if (!more)
            return DS_ENOMEM;
        g->call = more;
        g->cap = cap;
    }
    g->call[g->n++] = *what;
    return DS_OK;
}

#define RECORDER(op, args)                                               \
    static ds_code record_##op(ds_backend *b, const ds_##args##_args *a) \
    {                                                                    \
        return record(b, &(call){.kind = OP_##op, .a = {.op = *a}});     \
    }
OPS(RECORDER)

void ds_graph_destroy(ds_graph *g)
{
    if (g)
        free(g->call);
    free(g);
}

static ds_code begin(ds_backend *b)
{
    ds_cpu *c = (ds_cpu *)b;
    if (c->recording)
        return DS_EINVAL;
    c->recording = calloc(1, sizeof *c->recording);
    if (!c->recording)
        return DS_ENOMEM;
    c->direct = *b;
#define SWAP(op, args) b->op = record_##op;
    OPS(SWAP)
    return DS_OK;
}

static ds_code end(ds_backend *b, ds_graph **ret, ds_err *err)
{
    ds_cpu *c = (ds_cpu *)b;
    *ret = c->recording;
    if (!c->recording)
        return ds_err_set(err, DS_EINVAL, "no graph was begun");
    *b = c->direct;
    c->recording = NULL;
    return DS_OK;
}

#define REPLAY(op_, args)                    \
    case OP_##op_:                           \
        code = b->op_(b, &g->call[i].a.op_); \
        break;

static ds_code launch(ds_backend *b, ds_graph *g)
{
    ds_code code = DS_OK;
    for (int i = 0; i < g->n && code == DS_OK; i++)
        switch (g->call[i].kind) {
            OPS(REPLAY)
        default:
            return DS_EBUG;
        }
    return code;
}

static void graph_free(ds_backend *b, ds_graph *g)
{
    (void)b;
    ds_graph_destroy(g);
}

static ds_code pin(ds_backend *b, size_t bytes, void **ret, ds_err *err)
{
    return b->alloc(b, bytes, ret, err);
}

static ds_code copy(ds_backend *b, void *dst, const void *src, size_t bytes)
{
    (void)b;
    if (bytes)
        memcpy(dst, src, bytes);
    return DS_OK;
}

static ds_code mark(ds_backend *b, int i)
{
    struct timespec t;
    if (i < 0 || i >= DS_MARKS)
        return DS_EINVAL;
    clock_gettime(CLOCK_MONOTONIC, &t);
    ((ds_cpu *)b)->mark[i] = (double)t.tv_sec + 1e-9 * (double)t.tv_nsec;
    return DS_OK;
}

static ds_code wait_for(ds_backend *b, int i)
{
    (void)b;
    return i < 0 || i >= DS_MARKS ? DS_EINVAL : DS_OK;
}

static ds_code elapsed(ds_backend *b, int from, int to, double *ret_seconds)
{
    const ds_cpu *c = (ds_cpu *)b;
    if (from < 0 || from >= DS_MARKS || to < 0 || to >= DS_MARKS)
        return DS_EINVAL;
    *ret_seconds = c->mark[to] - c->mark[from];
    return DS_OK;
}

void ds_cpu_stream(ds_backend *b)
{
    b->pin = pin;
    b->unpin = b->free;
    b->push = b->fetch = copy;
    b->mark = mark;
    b->wait = wait_for;
    b->elapsed = elapsed;
    b->graph_begin = begin;
    b->graph_end = end;
    b->graph_launch = launch;
    b->graph_free = graph_free;
}
