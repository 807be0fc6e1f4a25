/* isa_avx512.c - AVX-512 F/BW/VL/DQ with f32 arithmetic. 32 registers. */
#define ISA_TABLE ds_isa_avx512
#define ISA_NAME "avx512"
#define ISA_PACK_BYTES lin_pack_bytes
#define ISA_PACK lin_pack
#define ISA_LINEAR lin_run
#define LIN_I8_INTEGER 0
#define LIN_UNIT lin_unit
#define LIN_UNIT_K lin_unit_k
#define LIN_X_SCALE lin_x_scale
/* Weight rows of a tile of 1..6 activation rows: divisors of DS_LIN_BLOCK and, for floats, if they can be, of
 * attention's blocks of 16 keys. */
enum { LIN_F1 = 2, LIN_F2 = 4, LIN_F3 = 4, LIN_F4 = 4, LIN_F5 = 4, LIN_F6 = 4 };
#define LIN_NR(t, TR) LIN_F##TR

#include "kernels/cpu/vec_avx512.h"

#include "kernels/cpu/linear_tile.h"

#include "kernels/cpu/isa_table.h"
