/* clock.h - monotonic time, injected where behaviour depends on it so that tests can turn the hands. */
#ifndef DS_BASE_CLOCK_H
#define DS_BASE_CLOCK_H

#include <stdint.h>

typedef struct ds_clock {
    uint64_t (*now_ns)(void *ctx);
    void *ctx;
} ds_clock;

uint64_t ds_now_ns(void); /* CLOCK_MONOTONIC */
ds_clock ds_clock_system(void);
static inline uint64_t ds_clock_ns(ds_clock c)
{
    return c.now_ns(c.ctx);
}

#endif
