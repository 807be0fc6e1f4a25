/* isa_avx2.c - AVX2 + FMA + F16C. 16 registers. */
#define ISA_TABLE ds_isa_avx2
#define ISA_NAME "avx2"
#define ISA_PACK_BYTES lin_pack_bytes
#define ISA_PACK lin_pack
#define ISA_LINEAR lin_run
#define LIN_UNIT lin_unit
#define LIN_UNIT_K lin_unit_k
#define LIN_X_SCALE lin_x_scale
/* Weight rows of a tile of TR activation rows: divisors of DS_LIN_BLOCK. */
#define LIN_NR(t, TR)                 \
    ((t) == DS_I8 ? ((TR) == 1   ? 6  \
                     : (TR) == 2 ? 4  \
                     : (TR) == 3 ? 3  \
                                 : 2) \
                  : ((TR) == 1   ? 12 \
                     : (TR) == 2 ? 6  \
                     : (TR) == 3 ? 3  \
                                 : 2))

#include "kernels/cpu/vec_avx2.h"

#include "kernels/cpu/linear_tile.h"

#include "kernels/cpu/isa_table.h"
