#include "cpu/amx/integer.h"
#include "cpu/amx/weight_only.h"

namespace lowbit::cpu::amx {

extern const kernel_row kernels[] = {
    {"weight_only_bf16_amx_16x16x32", LOWBIT_WEIGHT_ONLY, "",
     bit(recipe::lut16) | bit(recipe::linear) | bit(recipe::minifloat) | every_scale_rule,
     bit(LOWBIT_BF16) | bit(LOWBIT_F16), 16, 16, 32, true, weight_only_bf16},
    {"integer_amx_16x16x64", LOWBIT_INTEGER, "", bit(recipe::lut16) | bit(recipe::linear),
     float_dtypes | bit(LOWBIT_I8), 16, 16, 64, true, integer},
};
extern const int num_kernels = sizeof kernels / sizeof kernels[0];

}  // namespace lowbit::cpu::amx
