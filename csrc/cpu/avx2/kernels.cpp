#include "gemm/contract.h"

namespace lowbit::cpu::avx2 {

kernel weight_only_f32, integer;  // a file for each

extern const kernel_row kernels[] = {
    {"weight_only_f32_avx2_3x4", LOWBIT_WEIGHT_ONLY, "", all_recipes | every_scale_rule, float_dtypes, 3, 4, 8, true,
     weight_only_f32},
    {"integer_avx2_6x16", LOWBIT_INTEGER, "", integer_recipes | two_levels, float_dtypes | bit(LOWBIT_I8), 6, 16, 4,
     true, integer},
};
extern const int num_kernels = sizeof kernels / sizeof kernels[0];

}  // namespace lowbit::cpu::avx2
