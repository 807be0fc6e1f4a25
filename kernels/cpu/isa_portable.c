/* isa_portable.c - Any CPU: 4 lanes, built at the base level of the architecture. */
#define ISA_TABLE ds_isa_portable
#define ISA_NAME "portable"
#define ISA_PACK_BYTES lin_pack_bytes
#define ISA_PACK lin_pack
#define ISA_LINEAR lin_run
#define LIN_I8_INTEGER 1
#define LIN_UNIT lin_unit
#define LIN_UNIT_K lin_unit_k
#define LIN_X_SCALE lin_x_scale
/* Weight rows of a tile of 1..6 activation rows: divisors of DS_LIN_BLOCK and, for floats, if they can be, of
 * attention's blocks of 16 keys. */
enum { LIN_F1 = 4, LIN_F2 = 2, LIN_F3 = 1, LIN_F4 = 1, LIN_F5 = 1, LIN_F6 = 1 };
#define LIN_NR(t, TR) LIN_F##TR

#include "kernels/cpu/vec_portable.h"

#include "kernels/cpu/linear_tile.h"

#include "kernels/cpu/isa_table.h"
