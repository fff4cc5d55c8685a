#include "cpu/neon/integer.h"
#include "cpu/neon/simd.h"
#include "cpu/neon/weight_only.h"

namespace lowbit::cpu::neon {

extern const kernel_row kernels[] = {
    {"weight_only_f32_neon_6x4", LOWBIT_WEIGHT_ONLY, "", all_recipes | every_scale_rule, float_dtypes, 6, 4, 4, true,
     weight_only_f32<neon_vectors, neon_lines>},
    {"integer_neon_4x4", LOWBIT_INTEGER, "", integer_recipes | two_levels, float_dtypes | bit(LOWBIT_I8), 4, 4, 16,
     true, integer<neon_vectors>},
};
extern const int num_kernels = sizeof kernels / sizeof kernels[0];

}  // namespace lowbit::cpu::neon
