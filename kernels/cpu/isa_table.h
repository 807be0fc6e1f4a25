/* isa_table.h - the table of one instruction-set level: define ISA_TABLE and ISA_NAME, then include this
 * last. */
#include "kernels/cpu/row_tile.h"

#include "kernels/cpu/attn_tile.h"

const ds_isa ISA_TABLE = {
    .name = ISA_NAME,
    .pack_bytes = ISA_PACK_BYTES,
    .pack = ISA_PACK,
    .linear = ISA_LINEAR,
    .expand = row_expand,
    .to_bf16 = row_to_bf16,
    .rmsnorm = row_rmsnorm,
    .rope = row_rope,
    .silu_mul = row_silu_mul,
    .attention = attn_run,
    .max = row_max,
    .sum_exp = row_sum_exp,
    .exp_all = row_exp_all,
};
