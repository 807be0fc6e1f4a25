/* pool.c - the pool. Items are cut into chunks and each thread owns a contiguous range of chunks, so that it
 * streams its own part of the weights; whoever runs out takes chunks from the end of another's range. A range
 * is one 64-bit word (generation, end, next), claimed by compare-and-swap, so a late worker can never claim
 * from a region that has ended, and the region's fields may be read without a lock once a chunk of it is
 * claimed (the region cannot end before that chunk is done). */
#include "kernels/cpu/pool.h"

#include "base/clock.h"

#include <errno.h>
#include <linux/futex.h>
#include <pthread.h>
#include <sched.h>
#include <stdatomic.h>
#include <stdint.h>
#include <stdlib.h>
#include <sys/syscall.h>
#include <unistd.h>

enum { CHUNK_BITS = 20, CHUNK_MAX = (1 << CHUNK_BITS) - 1, MAX_THREADS = 1024 };
/* How long a thread spins before it sleeps: longer than the serial parts of a step, which are a few
 * microseconds, and than a wake-up from sleep, which takes tens. */
enum { SPIN_NS = 60000, SPIN_CHECK = 32 };

typedef struct worker {
    struct ds_pool *pool;
    pthread_t thread;
    int id;
} worker;

typedef struct range {
    _Alignas(64) _Atomic uint64_t claim; /* generation << 40 | end << 20 | next chunk */
} range;

struct ds_pool {
    _Alignas(64) _Atomic uint32_t done;  /* chunks finished in this region */
    _Atomic uint32_t waiting;            /* 1: the caller sleeps on done */
    _Alignas(64) _Atomic uint32_t epoch; /* bumped when a region is published; futex of idle workers */
    _Atomic uint32_t sleepers;
    _Atomic int stop;
    _Alignas(64) uint64_t generation; /* the caller's */
    ds_pool_fn fn;
    void *ctx;
    int n, grain;
    uint32_t chunks;
    int threads;
    int started;      /* workers to join */
    int pinned;       /* as many threads as CPUs: each has its own */
    pthread_t caller; /* pinned last, with the mask it had */
    cpu_set_t caller_mask;
    int has_caller;
    worker *workers; /* [threads - 1] */
    range *ranges;   /* [threads] */
};

static inline void relax(void)
{
#if defined(__x86_64__)
    __builtin_ia32_pause();
#endif
}

static void futex_wait(_Atomic uint32_t *word, uint32_t seen)
{
    syscall(SYS_futex, word, FUTEX_WAIT_PRIVATE, seen, NULL, NULL, 0);
}

static void futex_wake(_Atomic uint32_t *word, int count)
{
    syscall(SYS_futex, word, FUTEX_WAKE_PRIVATE, count, NULL, NULL, 0);
}

static int claim_chunk(range *r, int from_end, uint32_t *ret)
{
    uint64_t c = atomic_load_explicit(&r->claim, memory_order_acquire);
    for (;;) {
        uint32_t next = (uint32_t)(c & CHUNK_MAX), end = (uint32_t)(c >> CHUNK_BITS & CHUNK_MAX);
        if (next >= end)
            return 0;
        uint64_t taken = from_end ? c - ((uint64_t)1 << CHUNK_BITS) : c + 1;
        if (atomic_compare_exchange_weak_explicit(&r->claim, &c, taken, memory_order_acquire,
                                                  memory_order_acquire)) {
            *ret = from_end ? end - 1 : next;
            return 1;
        }
    }
}

static void run_chunk(ds_pool *p, int id, uint32_t chunk)
{
    uint32_t total = p->chunks;
    int begin = (int)chunk * p->grain, end = chunk + 1 == total ? p->n : begin + p->grain;
    p->fn(p->ctx, id, begin, end);
    if (atomic_fetch_add_explicit(&p->done, 1, memory_order_seq_cst) + 1 == total &&
        atomic_load_explicit(&p->waiting, memory_order_seq_cst))
        futex_wake(&p->done, 1);
}

/* Claim and run chunks, the thread's own first, until none is left. */
static void run_chunks(ds_pool *p, int id)
{
    uint32_t chunk;
    for (int i = 0; i < p->threads; i++) {
        int owner = (id + i) % p->threads;
        while (claim_chunk(&p->ranges[owner], i > 0, &chunk))
            run_chunk(p, id, chunk);
    }
}

/* Spin while *word is `seen` (equal = 1) or is not (equal = 0); returns 0 when the time is over. */
static int spin_while(_Atomic uint32_t *word, uint32_t seen, int equal)
{
    uint64_t start = ds_now_ns();
    do {
        for (int i = 0; i < SPIN_CHECK; i++) {
            if ((atomic_load_explicit(word, memory_order_acquire) == seen) != equal)
                return 1;
            relax();
        }
    } while (ds_now_ns() - start < SPIN_NS);
    return 0;
}

static void *worker_main(void *arg)
{
    worker *w = arg;
    ds_pool *p = w->pool;
    while (!atomic_load_explicit(&p->stop, memory_order_acquire)) {
        uint32_t seen = atomic_load_explicit(&p->epoch, memory_order_acquire);
        run_chunks(p, w->id);
        if (spin_while(&p->epoch, seen, 1))
            continue;
        /* The publisher bumps epoch, then reads sleepers; we bump sleepers, then the kernel compares epoch.
         */
        atomic_fetch_add_explicit(&p->sleepers, 1, memory_order_seq_cst);
        futex_wait(&p->epoch, seen);
        atomic_fetch_sub_explicit(&p->sleepers, 1, memory_order_seq_cst);
    }
    return NULL;
}

static void publish(ds_pool *p)
{
    const uint64_t generation = (++p->generation & 0xffffff) << 2 * CHUNK_BITS;
    uint64_t chunks = p->chunks, begin = 0;
    for (int i = 0; i < p->threads; i++) {
        uint64_t end = chunks * (uint64_t)(i + 1) / (uint64_t)p->threads;
        atomic_store_explicit(&p->ranges[i].claim, generation | end << CHUNK_BITS | begin,
                              memory_order_release);
        begin = end;
    }
    atomic_fetch_add_explicit(&p->epoch, 1, memory_order_seq_cst);
    if (atomic_load_explicit(&p->sleepers, memory_order_seq_cst))
        futex_wake(&p->epoch, p->threads - 1 < (int)chunks - 1 ? p->threads - 1 : (int)chunks - 1);
}

static void wait_done(ds_pool *p)
{
    if (spin_while(&p->done, p->chunks, 0))
        return;
    atomic_store_explicit(&p->waiting, 1, memory_order_seq_cst);
    for (;;) {
        uint32_t seen = atomic_load_explicit(&p->done, memory_order_seq_cst);
        if (seen == p->chunks)
            break;
        futex_wait(&p->done, seen);
    }
    atomic_store_explicit(&p->waiting, 0, memory_order_seq_cst);
}

static cpu_set_t g_mask; /* of the process's first thread, before any pinning: constant from then on */

static void read_mask(void)
{
    if (sched_getaffinity(getpid(), sizeof g_mask, &g_mask) != 0)
        CPU_ZERO(&g_mask);
}

static const cpu_set_t *process_mask(void)
{
    static pthread_once_t once = PTHREAD_ONCE_INIT;
    pthread_once(&once, read_mask);
    return &g_mask;
}

/* The i-th CPU of the process's mask. */
static cpu_set_t one_cpu(int i)
{
    cpu_set_t one;
    CPU_ZERO(&one);
    for (int cpu = 0; cpu < CPU_SETSIZE; cpu++)
        if (CPU_ISSET(cpu, process_mask()) && i-- == 0)
            CPU_SET(cpu, &one);
    return one;
}

/* The caller gets the first CPU: left to roam, it may sit on that of a worker, which then cannot wake. A pool
 * smaller than the mask shares its CPUs with others and is left to the system's scheduler. */
static void pin_caller(ds_pool *p)
{
    if (!p->pinned || (p->has_caller && pthread_equal(p->caller, pthread_self())))
        return;
    p->caller = pthread_self();
    p->has_caller = 1;
    pthread_getaffinity_np(p->caller, sizeof p->caller_mask, &p->caller_mask);
    cpu_set_t own = one_cpu(0);
    pthread_setaffinity_np(p->caller, sizeof own, &own);
}

void ds_pool_for(ds_pool *p, int n, int grain, ds_pool_fn fn, void *ctx)
{
    if (n <= 0)
        return;
    if (grain < 1)
        grain = 1;
    if (n / grain >= CHUNK_MAX)
        grain = n / (CHUNK_MAX / 2);
    uint32_t chunks = (uint32_t)((n - 1) / grain + 1);
    if (p->threads == 1 || chunks == 1) {
        fn(ctx, 0, 0, n);
        return;
    }
    pin_caller(p);
    p->fn = fn;
    p->ctx = ctx;
    p->n = n;
    p->grain = grain;
    p->chunks = chunks;
    atomic_store_explicit(&p->done, 0, memory_order_relaxed);
    publish(p);
    run_chunks(p, 0);
    wait_done(p);
}

int ds_pool_cpus(void)
{
    int n = CPU_COUNT(process_mask());
    if (n > 0)
        return n;
    long online = sysconf(_SC_NPROCESSORS_ONLN);
    return online > 0 ? (int)online : 1;
}

static void stop_workers(ds_pool *p)
{
    atomic_store_explicit(&p->stop, 1, memory_order_seq_cst);
    atomic_fetch_add_explicit(&p->epoch, 1, memory_order_seq_cst);
    futex_wake(&p->epoch, p->threads);
    for (int i = 0; i < p->started; i++)
        pthread_join(p->workers[i].thread, NULL);
}

static void free_pool(ds_pool *p)
{
    free(p->workers);
    free(p->ranges);
    free(p);
}

static ds_code start_workers(ds_pool *p, ds_err *err)
{
    for (int i = 1; i < p->threads; i++) {
        worker *w = &p->workers[i - 1];
        *w = (worker){.pool = p, .id = i};
        if (pthread_create(&w->thread, NULL, worker_main, w) != 0)
            return ds_err_set(err, DS_ENOMEM, "thread %d of %d could not be started", i, p->threads);
        p->started = i;
        cpu_set_t own =
            *process_mask(); /* the creator may be a pinned caller, whose mask a thread inherits */
        if (p->pinned)
            own = one_cpu(i);
        if (CPU_COUNT(&own) > 0)
            pthread_setaffinity_np(w->thread, sizeof own, &own);
    }
    return DS_OK;
}

ds_code ds_pool_create(int threads, ds_pool **ret, ds_err *err)
{
    if (threads < 1 || threads > MAX_THREADS)
        return ds_err_field(err, DS_EINVAL, "threads", "threads is %d, must be 1..%d", threads, MAX_THREADS);
    ds_pool *p = aligned_alloc(_Alignof(ds_pool), sizeof *p);
    if (!p)
        return ds_err_set(err, DS_ENOMEM, "no memory for a pool of %d threads", threads);
    *p = (ds_pool){.threads = threads, .pinned = threads > 1 && CPU_COUNT(process_mask()) == threads};
    p->workers = calloc((size_t)threads, sizeof *p->workers);
    p->ranges = aligned_alloc(_Alignof(range), (size_t)threads * sizeof *p->ranges);
    if (!p->workers || !p->ranges) {
        free_pool(p);
        return ds_err_set(err, DS_ENOMEM, "no memory for a pool of %d threads", threads);
    }
    for (int i = 0; i < threads; i++)
        p->ranges[i] = (range){0};
    ds_code code = start_workers(p, err);
    if (code) {
        stop_workers(p);
        free_pool(p);
        return code;
    }
    *ret = p;
    return DS_OK;
}

void ds_pool_destroy(ds_pool *p)
{
    if (!p)
        return;
    stop_workers(p);
    if (p->has_caller && pthread_equal(p->caller, pthread_self()))
        pthread_setaffinity_np(p->caller, sizeof p->caller_mask, &p->caller_mask);
    free_pool(p);
}

int ds_pool_threads(const ds_pool *p)
{
    return p->threads;
}
