#include "cli/memory_speed.h"

#include "base/clock.h"

#include <pthread.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

enum { BYTES = 512 << 20, PASSES = 5, MAX_THREADS = 256 };

typedef uint64_t lanes __attribute__((vector_size(32)));

typedef struct reader {
    pthread_t thread;
    const lanes *p; /* [n] this thread's part */
    size_t n;
    uint64_t sum; /* kept so that the reads are not optimised away */
} reader;

static void *read_part(void *arg)
{
    reader *r = arg;
    lanes s0 = {0}, s1 = {0}, s2 = {0}, s3 = {0};
    for (size_t i = 0; i + 4 <= r->n; i += 4) {
        s0 += r->p[i];
        s1 += r->p[i + 1];
        s2 += r->p[i + 2];
        s3 += r->p[i + 3];
    }
    s0 += s1 + s2 + s3;
    r->sum = s0[0] + s0[1] + s0[2] + s0[3];
    return NULL;
}

/* Seconds of one pass. Making the threads is part of it: microseconds against tens of milliseconds. */
static double one_pass(reader *r, int threads)
{
    uint64_t start = ds_now_ns();
    int made = 1;
    while (made < threads && pthread_create(&r[made].thread, NULL, read_part, &r[made]) == 0)
        made++;
    read_part(&r[0]);
    for (int i = 1; i < made; i++)
        pthread_join(r[i].thread, NULL);
    return made == threads ? (double)(ds_now_ns() - start) / 1e9 : 0;
}

ds_code ds_memory_read_speed(int threads, double *ret, ds_err *err)
{
    threads = threads < 1 ? 1 : threads > MAX_THREADS ? MAX_THREADS : threads;
    reader *r = calloc((size_t)threads, sizeof *r);
    lanes *p = aligned_alloc(4096, BYTES);
    double best = 0, seconds = 1;
    if (r && p) {
        memset(p, 1, BYTES); /* real pages, not the shared zero page */
        size_t part = BYTES / sizeof(lanes) / (size_t)threads;
        for (int i = 0; i < threads; i++)
            r[i] = (reader){.p = p + (size_t)i * part, .n = part};
        for (int pass = 0; pass < PASSES && seconds > 0; pass++) {
            seconds = one_pass(r, threads);
            if (seconds > 0 && BYTES / seconds > best)
                best = BYTES / seconds;
        }
    }
    free(p);
    free(r);
    *ret = best;
    return best > 0
               ? DS_OK
               : ds_err_set(err, DS_ENOMEM, "no memory or threads to measure reading (%d MiB)", BYTES >> 20);
}
