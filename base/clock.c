#include "base/clock.h"

#include <time.h>

uint64_t ds_now_ns(void)
{
    struct timespec ts;
    clock_gettime(CLOCK_MONOTONIC, &ts);
    return (uint64_t)ts.tv_sec * 1000000000u + (uint64_t)ts.tv_nsec;
}

static uint64_t system_now(void *ctx)
{
    (void)ctx;
    return ds_now_ns();
}

ds_clock ds_clock_system(void)
{
    return (ds_clock){system_now, 0};
}
