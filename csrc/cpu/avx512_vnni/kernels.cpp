#include "cpu/avx512_vnni/vectors.h"
#include "cpu/generic/integer.h"
#include "cpu/generic/weight_only.h"

namespace lowbit::cpu::avx512_vnni {

extern const kernel_row kernels[] = {
    {"weight_only_f32_avx512_vnni_6x4", LOWBIT_WEIGHT_ONLY, "", all_recipes | every_scale_rule, float_dtypes, 6, 4, 16,
     true, weight_only_f32<avx512_vectors>},
    {"integer_avx512_vnni_6x4", LOWBIT_INTEGER, "", integer_recipes | two_levels, float_dtypes | bit(LOWBIT_I8), 6, 4,
     64, true, integer<avx512_vectors>},
};
extern const int num_kernels = sizeof kernels / sizeof kernels[0];

}  // namespace lowbit::cpu::avx512_vnni
