#include "cpu/neon_bf16/weight_only.h"

namespace lowbit::cpu::neon_bf16 {

extern const kernel_row kernels[] = {
    {"weight_only_bf16_neon_bf16_8x8", LOWBIT_WEIGHT_ONLY, "", all_recipes | every_scale_rule,
     bit(LOWBIT_F16) | bit(LOWBIT_BF16), 8, 8, 4, true, weight_only_bf16},
};
extern const int num_kernels = sizeof kernels / sizeof kernels[0];

}  // namespace lowbit::cpu::neon_bf16
