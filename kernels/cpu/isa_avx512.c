/* isa_avx512.c - AVX-512 F/BW/VL/DQ with f32 arithmetic. 32 registers. */
#define ISA_TABLE ds_isa_avx512
#define ISA_NAME "avx512"
#define ISA_PACK_BYTES lin_pack_bytes
#define ISA_PACK lin_pack
#define ISA_LINEAR lin_run
enum {
    LIN_NR1 = 8,
    LIN_NR2 = 8,
    LIN_NR3 = 6,
    LIN_NR4 = 6,
    LIN_NR5 = 4,
    LIN_NR6 = 4
}; /* weight rows of a tile */

#include "kernels/cpu/vec_avx512.h"

#include "kernels/cpu/linear_tile.h"

#include "kernels/cpu/isa_table.h"
