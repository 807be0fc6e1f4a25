/* isa_avx2.c - AVX2 + FMA + F16C. 16 registers: NR * TR accumulators, TR activations or NR weights, two more.
 */
#define ISA_TABLE ds_isa_avx2
#define ISA_NAME "avx2"
#define ISA_PACK_BYTES lin_pack_bytes
#define ISA_PACK lin_pack
#define ISA_LINEAR lin_run
enum {
    LIN_NR1 = 8,
    LIN_NR2 = 4,
    LIN_NR3 = 4,
    LIN_NR4 = 2,
    LIN_NR5 = 2,
    LIN_NR6 = 2
}; /* weight rows of a tile */

#include "kernels/cpu/vec_avx2.h"

#include "kernels/cpu/linear_tile.h"

#include "kernels/cpu/isa_table.h"
