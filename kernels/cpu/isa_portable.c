/* isa_portable.c - Any CPU: 4 lanes, built at the base level of the architecture. */
#define ISA_TABLE ds_isa_portable
#define ISA_NAME "portable"
#define ISA_PACK_BYTES lin_pack_bytes
#define ISA_PACK lin_pack
#define ISA_LINEAR lin_run
enum {
    LIN_NR1 = 4,
    LIN_NR2 = 2,
    LIN_NR3 = 1,
    LIN_NR4 = 1,
    LIN_NR5 = 1,
    LIN_NR6 = 1
}; /* weight rows of a tile */

#include "kernels/cpu/vec_portable.h"

#include "kernels/cpu/linear_tile.h"

#include "kernels/cpu/isa_table.h"
