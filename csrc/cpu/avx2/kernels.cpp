#include "cpu/avx2/simd.h"
#include "cpu/generic/integer.h"
#include "cpu/generic/weight_only.h"

namespace lowbit::cpu::avx2 {

extern const kernel_row kernels[] = {
    {"weight_only_f32_avx2_3x4", LOWBIT_WEIGHT_ONLY, "", all_recipes | every_scale_rule, float_dtypes, 3, 4, 8, true,
     weight_only_f32<avx2_vectors>},
    {"integer_avx2_2x4", LOWBIT_INTEGER, "", integer_recipes | two_levels, float_dtypes | bit(LOWBIT_I8), 2, 4, 32,
     true, integer<avx2_vectors>},
};
extern const int num_kernels = sizeof kernels / sizeof kernels[0];

}  // namespace lowbit::cpu::avx2
