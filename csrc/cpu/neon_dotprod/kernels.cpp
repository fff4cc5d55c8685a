#include "cpu/neon/integer.h"
#include "cpu/neon_dotprod/simd.h"

namespace lowbit::cpu::neon_dotprod {

extern const kernel_row kernels[] = {
    {"integer_neon_dotprod_3x8", LOWBIT_INTEGER, "", integer_recipes | two_levels, float_dtypes | bit(LOWBIT_I8), 3, 8,
     16, true, integer<neon_dotprod_vectors>},
};
extern const int num_kernels = sizeof kernels / sizeof kernels[0];

}  // namespace lowbit::cpu::neon_dotprod
