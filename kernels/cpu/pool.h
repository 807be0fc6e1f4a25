/* pool.h - a fork-join thread pool for the engine thread. One parallel region per op; the caller takes part.
 * Regions come from one thread at a time. Idle workers sleep on a futex after a spin of some tens of
 * microseconds. */
#ifndef DS_CPU_POOL_H
#define DS_CPU_POOL_H

#include "base/err.h"

typedef struct ds_pool ds_pool;

/* Work on items [begin, end); thread is 0 (the caller) .. threads-1 and names the private scratch to use. */
typedef void (*ds_pool_fn)(void *ctx, int thread, int begin, int end);

/* ds_pool_create: threads >= 1; workers, and the caller from its first region on, are pinned to the CPUs of
 * the process's affinity mask when the pool has as many threads as the mask has CPUs. Errors: DS_ENOMEM. */
ds_code ds_pool_create(int threads, ds_pool **ret, ds_err *err);
void ds_pool_destroy(ds_pool *p); /* by the caller: it gets its mask back */
int ds_pool_threads(const ds_pool *p);
int ds_pool_cpus(void); /* CPUs of the process's affinity mask, >= 1 */
/* ds_pool_for: fn over [0, n) in chunks of `grain` items; each thread begins with a contiguous part of them,
 * and helps others when it is done. Returns when all are done. */
void ds_pool_for(ds_pool *p, int n, int grain, ds_pool_fn fn, void *ctx);

#endif
