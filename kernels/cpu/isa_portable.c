/* isa_portable.c - Any CPU: 4 lanes, built at the base level of the architecture. */
#define ISA_TABLE ds_isa_portable
#define ISA_NAME "portable"
#define ISA_PACK_BYTES lin_pack_bytes
#define ISA_PACK lin_pack
#define ISA_LINEAR lin_run
#define LIN_UNIT lin_unit
#define LIN_UNIT_K lin_unit_k
#define LIN_X_SCALE lin_x_scale
/* Weight rows of a tile of TR activation rows: divisors of DS_LIN_BLOCK. */
#define LIN_NR(t, TR) ((TR) == 1 ? 4 : (TR) == 2 ? 2 : 1)

#include "kernels/cpu/vec_portable.h"

#include "kernels/cpu/linear_tile.h"

#include "kernels/cpu/isa_table.h"
