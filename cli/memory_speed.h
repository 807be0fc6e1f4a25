/* memory_speed.h - how fast this machine reads memory: the ceiling of a forward pass that is bound by it. */
#ifndef DS_CLI_MEMORY_SPEED_H
#define DS_CLI_MEMORY_SPEED_H

#include "base/err.h"

/* ds_memory_read_speed: the best of several passes of `threads` threads (at least 1) over one buffer far
 * larger than any cache, in bytes per second. DS_ENOMEM. */
ds_code ds_memory_read_speed(int threads, double *ret, ds_err *err);

#endif
