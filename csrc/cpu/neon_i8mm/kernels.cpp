#include "cpu/neon_i8mm/integer.h"

namespace lowbit::cpu::neon_i8mm {

extern const kernel_row kernels[] = {
    {"integer_neon_i8mm_8x8", LOWBIT_INTEGER, "", integer_recipes | two_levels, float_dtypes | bit(LOWBIT_I8), 8, 8, 8,
     true, integer_pairs},
};
extern const int num_kernels = sizeof kernels / sizeof kernels[0];

}  // namespace lowbit::cpu::neon_i8mm
