/* bench_http.h - one load for three HTTP libraries: STREAMS answers are held open; every ROUND_US each of
 * them gets one event, as a decoding step of a full batch would give it; after ROUNDS they end. Reports CPU
 * time per event. */
#ifndef DS_TESTS_BENCH_HTTP_H
#define DS_TESTS_BENCH_HTTP_H

#include <stdio.h>
#include <string.h>
#include <sys/resource.h>

enum { STREAMS = 256, ROUNDS = 1000, ROUND_US = 4000, EVENT_BYTES = 220 };

static char bench_event[EVENT_BYTES + 1];

static inline void bench_init(void)
{
    memset(bench_event, 'x', EVENT_BYTES);
    memcpy(bench_event, "data: ", 6);
    memcpy(bench_event + EVENT_BYTES - 2, "\n\n", 2);
}

static inline double bench_cpu(void)
{
    struct rusage u;
    getrusage(RUSAGE_SELF, &u);
    return (double)(u.ru_utime.tv_sec + u.ru_stime.tv_sec) +
           1e-6 * (double)(u.ru_utime.tv_usec + u.ru_stime.tv_usec);
}

static inline void bench_report(const char *name, double cpu0)
{
    struct rusage u;
    getrusage(RUSAGE_SELF, &u);
    double cpu = bench_cpu() - cpu0, events = (double)STREAMS * ROUNDS;
    printf("%-22s %.2f us of CPU per event, %.0f events/s per core, peak RSS %.1f MiB\n", name,
           cpu / events * 1e6, events / cpu, (double)u.ru_maxrss / 1024);
    fflush(stdout);
}

#endif
