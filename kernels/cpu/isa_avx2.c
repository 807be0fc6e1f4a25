/* isa_avx2.c - AVX2 + FMA + F16C. 16 registers. */
#define ISA_TABLE ds_isa_avx2
#define ISA_NAME "avx2"
#define ISA_PACK_BYTES lin_pack_bytes
#define ISA_PACK lin_pack
#define ISA_LINEAR lin_run
#define LIN_I8_INTEGER 1
#define LIN_UNIT lin_unit
#define LIN_UNIT_K lin_unit_k
#define LIN_X_SCALE lin_x_scale
/* Weight rows of a tile of 1..6 activation rows: divisors of DS_LIN_BLOCK and, for floats, if they can be, of
 * attention's blocks of 16 keys. */
enum { LIN_F1 = 2, LIN_F2 = 4, LIN_F3 = 3, LIN_F4 = 2, LIN_F5 = 2, LIN_F6 = 2 };
enum { LIN_Q1 = 4, LIN_Q2 = 4, LIN_Q3 = 3, LIN_Q4 = 2, LIN_Q5 = 2, LIN_Q6 = 2 };
#define LIN_NR(t, TR) ((t) == DS_I8 ? LIN_Q##TR : LIN_F##TR)

#include "kernels/cpu/vec_avx2.h"

#include "kernels/cpu/linear_tile.h"

#include "kernels/cpu/isa_table.h"
