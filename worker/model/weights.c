/* weights.c - binding, checking and placing weights. The heavy pass (scan, quantise) runs on a few threads
 * that live only during ds_weights_load; each job writes only its own destination. */
#include "worker/model/weights.h"
#include "base/clock.h"
#include "base/log.h"

#include <pthread.h>
#include <sched.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>

enum { MAX_LOAD_THREADS = 8 };
enum { BOUND = 1, BOUND_STORED = 2 }; /* in memory as stored, not only as int8 */

struct ds_weight_job {
    int tensor; /* index in st.tensor */
    ds_dtype dtype;
    int n, k; /* k = 1 for vectors */
    int quantise;
    int scan;    /* first job on its tensor */
    ds_mat *mat; /* exactly one of mat, vec */
    ds_vec *vec;
    int8_t *q; /* host, while loading */
    float *scale;
};

ds_code ds_weights_open(const char *dir, int int8, ds_weights *ret, ds_err *err)
{
    *ret = (ds_weights){.int8 = int8};
    DS_TRY(ds_st_open(dir, &ret->st, err));
    ret->bound = calloc((size_t)ret->st.n + 1, 1);
    return ret->bound ? DS_OK : ds_err_set(err, DS_ENOMEM, "no memory for %d tensors", ret->st.n);
}

void ds_weights_close(ds_weights *w)
{
    for (int i = 0; i < w->n_owned; i++)
        w->backend->free(w->backend, w->owned[i]);
    free(w->owned);
    free(w->job);
    free(w->bound);
    ds_st_close(&w->st);
    *w = (ds_weights){0};
}

int ds_weights_has(const ds_weights *w, const char *name)
{
    return ds_st_find(&w->st, name) != NULL;
}

int ds_backend_is_host(const ds_backend *b)
{
    return strcmp(b->name, "cpu") == 0;
}

/* --- binding ------------------------------------------------------------------------------------------ */

static ds_code dtype_of(const ds_st_tensor *t, ds_dtype *ret, ds_err *err)
{
    static const struct {
        const char *name;
        ds_dtype dtype;
    } table[] = {{"F32", DS_F32}, {"BF16", DS_BF16}, {"F16", DS_F16}};
    for (size_t i = 0; i < sizeof table / sizeof *table; i++)
        if (strcmp(t->dtype, table[i].name) == 0) {
            *ret = table[i].dtype;
            return DS_OK;
        }
    return ds_err_field(err, DS_EUNSUPPORTED, t->name, "tensor '%s' has dtype %s; F32, BF16 and F16 are read",
                        t->name, t->dtype);
}

static void shape_text(const ds_st_tensor *t, char *out, size_t n)
{
    size_t at = 0;
    out[0] = 0;
    for (int i = 0; i < t->rank && at < n; i++)
        at += (size_t)snprintf(out + at, n - at, "%s%lld", i ? ", " : "", (long long)t->shape[i]);
}

static ds_code bind(ds_weights *w, const char *name, int n, int k, int rank, ds_weight_job *ret, ds_err *err)
{
    const ds_st_tensor *t = ds_st_find(&w->st, name);
    if (!t)
        return ds_err_field(err, DS_ECORRUPT, name, "tensor '%s' is missing from the checkpoint", name);
    if (t->rank != rank || t->shape[0] != n || (rank == 2 && t->shape[1] != k)) {
        char got[96], want[32];
        shape_text(t, got, sizeof got);
        snprintf(want, sizeof want, rank == 2 ? "%d, %d" : "%d", n, k);
        return ds_err_field(err, DS_ECORRUPT, name, "tensor '%s' has shape [%s], config.json asks for [%s]",
                            name, got, want);
    }
    *ret = (ds_weight_job){.tensor = (int)(t - w->st.tensor), .n = n, .k = k};
    DS_TRY(dtype_of(t, &ret->dtype, err));
    return DS_OK;
}

static size_t scale_bytes(const ds_weight_job *j)
{
    return (size_t)j->n * (size_t)(j->k / DS_I8_BLOCK) * sizeof(float);
}

static size_t stored_bytes(const ds_weight_job *j)
{
    return (size_t)j->n * (size_t)j->k * ds_dtype_size(j->dtype);
}

/* Takes the job and counts it; a tensor bound twice (a tied table) is one tensor in memory unless quantised.
 */
static ds_code add_job(ds_weights *w, const ds_weight_job *job, int every_step, ds_err *err)
{
    size_t bytes = job->quantise ? (size_t)job->n * (size_t)job->k + scale_bytes(job) : stored_bytes(job);
    int first = !(w->bound[job->tensor] & BOUND), held = !(w->bound[job->tensor] & BOUND_STORED);
    if (w->n_jobs == w->cap_jobs) {
        int cap = w->cap_jobs ? 2 * w->cap_jobs : 64;
        ds_weight_job *grown = realloc(w->job, (size_t)cap * sizeof *grown);
        if (!grown)
            return ds_err_set(err, DS_ENOMEM, "no memory for %d tensors", cap);
        w->job = grown;
        w->cap_jobs = cap;
    }
    w->job[w->n_jobs] = *job;
    w->job[w->n_jobs++].scan = first;
    w->params += first ? (uint64_t)job->n * (uint64_t)job->k : 0;
    w->mem_bytes += job->quantise || held ? bytes : 0;
    w->step_bytes += every_step ? bytes : 0;
    w->bound[job->tensor] |= job->quantise ? BOUND : BOUND | BOUND_STORED;
    return DS_OK;
}

ds_code ds_weights_mat(ds_weights *w, const char *name, int n, int k, ds_weight_use use, ds_mat *dst,
                       ds_err *err)
{
    ds_weight_job j;
    DS_TRY(bind(w, name, n, k, 2, &j, err));
    j.mat = dst;
    j.quantise = w->int8 && use == DS_WEIGHT_LINEAR && k % DS_I8_BLOCK == 0;
    *dst = (ds_mat){.n = n, .k = k, .dtype = j.quantise ? DS_I8 : j.dtype};
    return add_job(w, &j, use == DS_WEIGHT_LINEAR, err);
}

ds_code ds_weights_column(ds_weights *w, const char *name, int n, ds_mat *dst, ds_err *err)
{
    ds_weight_job j;
    DS_TRY(bind(w, name, n, 1, 1, &j, err));
    j.mat = dst;
    *dst = (ds_mat){.n = n, .k = 1, .dtype = j.dtype};
    return add_job(w, &j, 1, err);
}

ds_code ds_weights_vec(ds_weights *w, const char *name, int n, ds_vec *dst, ds_err *err)
{
    ds_weight_job j;
    DS_TRY(bind(w, name, n, 1, 1, &j, err));
    j.vec = dst;
    *dst = (ds_vec){.n = n, .dtype = j.dtype};
    return add_job(w, &j, 1, err);
}

void ds_weights_warn_extra(const ds_weights *w)
{
    int extra = 0, first = 0;
    for (int i = 0; i < w->st.n; i++)
        if (!w->bound[i] && !extra++)
            first = i;
    if (extra)
        ds_log(DS_LOG_WARN, "model", "%d tensors of the checkpoint are not used, the first is '%s'", extra,
               w->st.tensor[first].name);
}

/* --- the scan ----------------------------------------------------------------------------------------- */

/* A float is NaN or infinite when all its exponent bits are set. Eight bytes at a time: with only the
 * exponent bits e left in each lane, e ^ mask is 0 in a bad lane, and adding `fill` (all bits below the top
 * one) carries into the lane's top bit unless it was 0. No carry crosses lanes: (e ^ mask) + fill < 2^width.
 */
int64_t ds_weights_scan(const void *p, size_t n, ds_dtype dtype)
{
    static const struct {
        uint64_t mask, fill, top;
    } lanes[] = {[DS_F32] = {0x7f8000007f800000u, 0x7fffffff7fffffffu, 0x8000000080000000u},
                 [DS_BF16] = {0x7f807f807f807f80u, 0x7fff7fff7fff7fffu, 0x8000800080008000u},
                 [DS_F16] = {0x7c007c007c007c00u, 0x7fff7fff7fff7fffu, 0x8000800080008000u}};
    const uint64_t mask = lanes[dtype].mask, fill = lanes[dtype].fill, top = lanes[dtype].top;
    const unsigned char *c = p;
    size_t size = ds_dtype_size(dtype), bytes = n * size;
    for (size_t at = 0; at < bytes;) {
        size_t block = bytes - at < 4096 ? bytes - at : 4096, i = 0;
        uint64_t good = ~0ull, v;
        for (; i + 8 <= block; i += 8) {
            memcpy(&v, c + at + i, 8);
            good &= ((v & mask) ^ mask) + fill;
        }
        if (i < block) {
            v = 0;
            memcpy(&v, c + at + i, block - i);
            good &= ((v & mask) ^ mask) + fill;
        }
        for (size_t e = 0; (good & top) != top && e < block; e += size) {
            v = 0;
            memcpy(&v, c + at + e, size);
            if (((((v & mask) ^ mask) + fill) & top) != top)
                return (int64_t)((at + e) / size);
        }
        at += block;
    }
    return -1;
}

/* --- the load pass ------------------------------------------------------------------------------------ */

typedef struct ds_load {
    ds_weights *w;
    atomic_int next, done;
    atomic_int failed;
    int quantised;        /* jobs with quantise */
    uint64_t reported_ns; /* under lock */
    pthread_mutex_t lock;
    ds_err err; /* first failure, under lock */
} ds_load;

static void load_fail(ds_load *l, const ds_err *e)
{
    pthread_mutex_lock(&l->lock);
    if (!atomic_exchange(&l->failed, 1))
        l->err = *e;
    pthread_mutex_unlock(&l->lock);
}

/* One line every two seconds and one at the end: a 32B model takes minutes, a small one says one line. */
static void report(ds_load *l, int done)
{
    uint64_t now = ds_now_ns();
    pthread_mutex_lock(&l->lock);
    int due = done == l->quantised || now - l->reported_ns >= 2000000000u;
    if (due)
        l->reported_ns = now;
    pthread_mutex_unlock(&l->lock);
    if (due)
        ds_log(DS_LOG_INFO, "model", "int8: %d of %d matrices", done, l->quantised);
}

static ds_code run_job(ds_load *l, ds_weight_job *j, ds_err *err)
{
    const ds_st_tensor *t = &l->w->st.tensor[j->tensor];
    int64_t bad = j->scan ? ds_weights_scan(t->data, (size_t)j->n * (size_t)j->k, j->dtype) : -1;
    if (bad >= 0)
        return ds_err_field(err, DS_ECORRUPT, t->name, "tensor '%s' holds a NaN or infinity at [%lld, %lld]",
                            t->name, (long long)(bad / j->k), (long long)(bad % j->k));
    if (!j->quantise)
        return DS_OK;
    ds_mat src = {.data = t->data, .n = j->n, .k = j->k, .dtype = j->dtype};
    DS_TRY(ds_quantize_i8(src, j->q, j->scale, err));
    /* The stored form is not needed again: give the pages that lie wholly inside back to the cache. */
    uintptr_t from = ((uintptr_t)t->data + 4095) & ~(uintptr_t)4095;
    uintptr_t to = ((uintptr_t)t->data + t->bytes) & ~(uintptr_t)4095;
    if (to > from)
        (void)madvise((void *)from, to - from, MADV_DONTNEED);
    report(l, 1 + atomic_fetch_add(&l->done, 1));
    return DS_OK;
}

static void *load_thread(void *arg)
{
    ds_load *l = arg;
    for (;;) {
        int i = atomic_fetch_add(&l->next, 1);
        if (i >= l->w->n_jobs || atomic_load(&l->failed))
            return NULL;
        ds_err e;
        if (run_job(l, &l->w->job[i], &e) != DS_OK)
            load_fail(l, &e);
    }
}

static int load_threads(void)
{
    cpu_set_t set;
    int n = sched_getaffinity(0, sizeof set, &set) == 0 ? CPU_COUNT(&set) : 1;
    return n < 1 ? 1 : n > MAX_LOAD_THREADS ? MAX_LOAD_THREADS : n;
}

/* Threads beyond the first are a gain, not a need: one that cannot start is left out. */
static ds_code run_jobs(ds_weights *w, ds_err *err)
{
    ds_load l = {.w = w, .reported_ns = ds_now_ns(), .lock = PTHREAD_MUTEX_INITIALIZER};
    for (int i = 0; i < w->n_jobs; i++)
        l.quantised += w->job[i].quantise;
    pthread_t thread[MAX_LOAD_THREADS];
    int n = load_threads(), started = 0;
    while (started < n - 1 && pthread_create(&thread[started], NULL, load_thread, &l) == 0)
        started++;
    load_thread(&l);
    for (int i = 0; i < started; i++)
        pthread_join(thread[i], NULL);
    pthread_mutex_destroy(&l.lock);
    if (atomic_load(&l.failed)) {
        if (err)
            *err = l.err;
        return l.err.code;
    }
    return DS_OK;
}

/* --- placing ------------------------------------------------------------------------------------------ */

static ds_code own(ds_weights *w, size_t bytes, void **ret, ds_err *err)
{
    DS_TRY(w->backend->alloc(w->backend, bytes, ret, err));
    w->owned[w->n_owned++] = *ret;
    return DS_OK;
}

static ds_code push(ds_weights *w, const void *src, size_t bytes, const void **ret, ds_err *err)
{
    void *p = NULL;
    DS_TRY(own(w, bytes, &p, err));
    ds_code code = w->backend->upload(w->backend, p, src, bytes);
    if (code != DS_OK)
        return ds_err_set(err, code, "upload of %zu weight bytes failed", bytes);
    *ret = p;
    return DS_OK;
}

/* On a host back end the quantised form is made in place; else in host memory that is freed after the upload.
 */
static ds_code room_for_int8(ds_weights *w, ds_weight_job *j, int host, ds_err *err)
{
    size_t q_bytes = (size_t)j->n * (size_t)j->k, s_bytes = scale_bytes(j);
    void *q = NULL, *s = NULL;
    if (host) {
        DS_TRY(own(w, q_bytes, &q, err));
        DS_TRY(own(w, s_bytes, &s, err));
    } else {
        q = malloc(q_bytes);
        s = malloc(s_bytes);
    }
    j->q = q;
    j->scale = s;
    return q && s ? DS_OK : ds_err_set(err, DS_ENOMEM, "no memory for %zu bytes of int8 weights", q_bytes);
}

/* Back-end memory that already holds j's tensor as stored: a tied table is bound twice and kept once. */
static const void *placed(const ds_weights *w, const ds_weight_job *j)
{
    for (const ds_weight_job *i = w->job; i < j; i++)
        if (i->tensor == j->tensor && !i->quantise)
            return i->vec ? i->vec->data : i->mat->data;
    return NULL;
}

static ds_code place(ds_weights *w, ds_weight_job *j, int host, ds_err *err)
{
    const ds_st_tensor *t = &w->st.tensor[j->tensor];
    const void *data = t->data, *scale = NULL;
    if (j->quantise) {
        data = j->q;
        scale = j->scale;
        if (!host) {
            DS_TRY(push(w, j->q, (size_t)j->n * (size_t)j->k, &data, err));
            DS_TRY(push(w, j->scale, scale_bytes(j), &scale, err));
        }
    } else if (!host || (uintptr_t)data % ds_dtype_size(j->dtype)) {
        data = placed(w, j);
        if (!data)
            DS_TRY(push(w, t->data, stored_bytes(j), &data, err));
    }
    if (j->vec) {
        j->vec->data = data;
    } else {
        j->mat->data = data;
        j->mat->scale = scale;
    }
    return DS_OK;
}

static ds_code load_all(ds_weights *w, int host, ds_err *err)
{
    for (int i = 0; i < w->n_jobs; i++)
        if (w->job[i].quantise)
            DS_TRY(room_for_int8(w, &w->job[i], host, err));
    DS_TRY(run_jobs(w, err));
    for (int i = 0; i < w->n_jobs; i++)
        DS_TRY(place(w, &w->job[i], host, err));
    return DS_OK;
}

ds_code ds_weights_load(ds_weights *w, ds_backend *b, ds_err *err)
{
    int host = ds_backend_is_host(b);
    w->backend = b;
    DS_TRY(ds_st_map(&w->st, err));
    w->owned = calloc(2 * (size_t)w->n_jobs + 1, sizeof *w->owned);
    if (!w->owned)
        return ds_err_set(err, DS_ENOMEM, "no memory for %d tensors", w->n_jobs);
    ds_code code = load_all(w, host, err);
    for (int i = 0; i < w->n_jobs && !host; i++) {
        free(w->job[i].q);
        free(w->job[i].scale);
        w->job[i].q = NULL;
        w->job[i].scale = NULL;
    }
    return code;
}
