/* pool.c - the pool. One 64-bit word holds (generation, chunks, next chunk): a thread claims a chunk by
 * compare-and-swap on it, so a late worker can never claim from a region that has ended, and the region's
 * fields may be read without a lock once a chunk of it is claimed (the region cannot end before that chunk is
 * done). */
#include "kernels/cpu/pool.h"

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
/* Pauses before sleeping; one is 40-140 cycles on current x86, so this bounds the spin to about 10 us. */
enum { SPIN = 400 };

typedef struct worker {
    struct ds_pool *pool;
    pthread_t thread;
    int id;
} worker;

struct ds_pool {
    _Alignas(64) _Atomic uint64_t claim; /* generation << 40 | chunks << 20 | next chunk */
    _Alignas(64) _Atomic uint32_t done;  /* chunks finished in this region */
    _Atomic uint32_t waiting;            /* 1: the caller sleeps on done */
    _Alignas(64) _Atomic uint32_t epoch; /* futex of idle workers; bumped on publish */
    _Atomic uint32_t sleepers;
    _Atomic int stop;
    uint64_t generation; /* the caller's */
    ds_pool_fn fn;
    void *ctx;
    int n, grain;
    int threads;
    worker *workers; /* [threads - 1] */
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

static int has_work(uint64_t claim)
{
    return (claim & CHUNK_MAX) < (claim >> CHUNK_BITS & CHUNK_MAX);
}

/* Claim and run chunks until none is left; returns how many this thread ran. */
static uint32_t run_chunks(ds_pool *p, int id)
{
    uint32_t ran = 0;
    uint64_t c = atomic_load_explicit(&p->claim, memory_order_acquire);
    while (has_work(c)) {
        if (!atomic_compare_exchange_weak_explicit(&p->claim, &c, c + 1, memory_order_acquire,
                                                   memory_order_acquire))
            continue;
        int chunk = (int)(c & CHUNK_MAX), total = (int)(c >> CHUNK_BITS & CHUNK_MAX);
        int begin = chunk * p->grain, end = chunk + 1 == total ? p->n : begin + p->grain;
        p->fn(p->ctx, id, begin, end);
        ran++;
        if (atomic_fetch_add_explicit(&p->done, 1, memory_order_seq_cst) + 1 == (uint32_t)total &&
            atomic_load_explicit(&p->waiting, memory_order_seq_cst))
            futex_wake(&p->done, 1);
        c = atomic_load_explicit(&p->claim, memory_order_acquire);
    }
    return ran;
}

static int idle_spin(ds_pool *p)
{
    for (int i = 0; i < SPIN; i++) {
        if (has_work(atomic_load_explicit(&p->claim, memory_order_relaxed)))
            return 1;
        relax();
    }
    return 0;
}

static void *worker_main(void *arg)
{
    worker *w = arg;
    ds_pool *p = w->pool;
    while (!atomic_load_explicit(&p->stop, memory_order_acquire)) {
        run_chunks(p, w->id);
        if (idle_spin(p))
            continue;
        /* The publisher sets claim, then reads sleepers; we set sleepers, then read claim: one of us sees. */
        uint32_t seen = atomic_load_explicit(&p->epoch, memory_order_seq_cst);
        atomic_fetch_add_explicit(&p->sleepers, 1, memory_order_seq_cst);
        if (!has_work(atomic_load_explicit(&p->claim, memory_order_seq_cst)) &&
            !atomic_load_explicit(&p->stop, memory_order_seq_cst))
            futex_wait(&p->epoch, seen);
        atomic_fetch_sub_explicit(&p->sleepers, 1, memory_order_seq_cst);
    }
    return NULL;
}

static void wake_workers(ds_pool *p, int count)
{
    if (atomic_load_explicit(&p->sleepers, memory_order_seq_cst)) {
        atomic_fetch_add_explicit(&p->epoch, 1, memory_order_seq_cst);
        futex_wake(&p->epoch, count);
    }
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
    p->fn = fn;
    p->ctx = ctx;
    p->n = n;
    p->grain = grain;
    atomic_store_explicit(&p->done, 0, memory_order_relaxed);
    uint64_t word = (++p->generation & 0xffffff) << 2 * CHUNK_BITS | (uint64_t)chunks << CHUNK_BITS;
    atomic_store_explicit(&p->claim, word, memory_order_seq_cst);
    wake_workers(p, p->threads - 1 < (int)chunks - 1 ? p->threads - 1 : (int)chunks - 1);
    run_chunks(p, 0);
    for (int i = 0; i < SPIN; i++) {
        if (atomic_load_explicit(&p->done, memory_order_acquire) == chunks)
            return;
        relax();
    }
    atomic_store_explicit(&p->waiting, 1, memory_order_seq_cst);
    for (;;) {
        uint32_t seen = atomic_load_explicit(&p->done, memory_order_seq_cst);
        if (seen == chunks)
            break;
        futex_wait(&p->done, seen);
    }
    atomic_store_explicit(&p->waiting, 0, memory_order_seq_cst);
}

/* The mask of the process's first thread: a thread's own mask may have been narrowed by whoever made it. */
static int process_mask(cpu_set_t *set)
{
    CPU_ZERO(set);
    if (sched_getaffinity(getpid(), sizeof *set, set) != 0)
        return 0;
    return CPU_COUNT(set);
}

int ds_pool_cpus(void)
{
    cpu_set_t set;
    int n = process_mask(&set);
    if (n > 0)
        return n;
    long online = sysconf(_SC_NPROCESSORS_ONLN);
    return online > 0 ? (int)online : 1;
}

/* Pin worker i to the i-th CPU of the mask, the first being left to the caller. A smaller pool shares its
 * CPUs with others and is left to the system's scheduler. */
static void pin(ds_pool *p)
{
    cpu_set_t mask;
    if (process_mask(&mask) != p->threads)
        return;
    int cpu = -1;
    for (int i = 0; i < p->threads; i++) {
        do
            cpu++;
        while (!CPU_ISSET(cpu, &mask));
        cpu_set_t one;
        CPU_ZERO(&one);
        CPU_SET(cpu, &one);
        if (i > 0)
            pthread_setaffinity_np(p->workers[i - 1].thread, sizeof one, &one);
    }
}

ds_code ds_pool_create(int threads, ds_pool **ret, ds_err *err)
{
    if (threads < 1 || threads > MAX_THREADS)
        return ds_err_field(err, DS_EINVAL, "threads", "threads is %d, must be 1..%d", threads, MAX_THREADS);
    ds_pool *p = aligned_alloc(_Alignof(ds_pool), sizeof *p);
    worker *workers = calloc((size_t)threads, sizeof *workers);
    if (!p || !workers) {
        free(p);
        free(workers);
        return ds_err_set(err, DS_ENOMEM, "no memory for a pool of %d threads", threads);
    }
    *p = (ds_pool){.threads = 1, .workers = workers};
    for (int i = 1; i < threads; i++) {
        worker *w = &workers[i - 1];
        *w = (worker){.pool = p, .id = i};
        if (pthread_create(&w->thread, NULL, worker_main, w) != 0) {
            ds_pool_destroy(p);
            return ds_err_set(err, DS_ENOMEM, "thread %d of %d could not be started", i, threads);
        }
        p->threads = i + 1;
    }
    pin(p);
    *ret = p;
    return DS_OK;
}

void ds_pool_destroy(ds_pool *p)
{
    if (!p)
        return;
    atomic_store_explicit(&p->stop, 1, memory_order_seq_cst);
    atomic_fetch_add_explicit(&p->epoch, 1, memory_order_seq_cst);
    futex_wake(&p->epoch, p->threads);
    for (int i = 1; i < p->threads; i++)
        pthread_join(p->workers[i - 1].thread, NULL);
    free(p->workers);
    free(p);
}

int ds_pool_threads(const ds_pool *p)
{
    return p->threads;
}
