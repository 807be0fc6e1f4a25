/* bench_forward.h - the arithmetic of `dspark-bench forward` that a test can check. */
#ifndef DS_CLI_BENCH_FORWARD_H
#define DS_CLI_BENCH_FORWARD_H

#include "worker/model/model.h"

/* ds_forward_flops: multiplications and additions of the matrix products of `rows` rows, the head for
 * `logits` of them, and attention over `keys` (row, cached position) pairs. */
double ds_forward_flops(const ds_model_info *m, int rows, int logits, double keys);

#endif
