#include "cpu/avx_vnni/simd.h"
#include "cpu/generic/integer.h"

namespace lowbit::cpu::avx_vnni {

extern const kernel_row kernels[] = {
    {"integer_avx_vnni_2x4", LOWBIT_INTEGER, "", integer_recipes | two_levels, float_dtypes | bit(LOWBIT_I8), 2, 4, 32,
     true, integer<avx_vnni_vectors>},
};
extern const int num_kernels = sizeof kernels / sizeof kernels[0];

}  // namespace lowbit::cpu::avx_vnni
