#include "gemm/contract.h"

namespace lowbit::cpu::avx512_vnni {

kernel weight_only_bf16, weight_only_f32, integer;  // a file for each

extern const kernel_row kernels[] = {
    {"weight_only_bf16_avx512_vnni_8x2", LOWBIT_WEIGHT_ONLY, "avx512_bf16 fast_avx512_bf16 avx512_vbmi",
     bit(recipe::lut16) | bit(recipe::linear) | bit(recipe::minifloat) | every_scale_rule,
     bit(LOWBIT_F16) | bit(LOWBIT_BF16), 8, 2, 32, true, weight_only_bf16},
    {"weight_only_f32_avx512_vnni_6x4", LOWBIT_WEIGHT_ONLY, "", all_recipes | every_scale_rule, float_dtypes, 6, 4, 16,
     true, weight_only_f32},
    {"integer_avx512_vnni_6x64", LOWBIT_INTEGER, "", integer_recipes | two_levels, float_dtypes | bit(LOWBIT_I8), 6, 64,
     4, true, integer},
};
extern const int num_kernels = sizeof kernels / sizeof kernels[0];

}  // namespace lowbit::cpu::avx512_vnni
