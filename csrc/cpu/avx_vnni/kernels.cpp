#include "gemm/contract.h"

namespace lowbit::cpu::avx_vnni {

kernel integer;  // a file for each

extern const kernel_row kernels[] = {
    {"integer_avx_vnni_6x16", LOWBIT_INTEGER, "", integer_recipes | two_levels, float_dtypes | bit(LOWBIT_I8), 6, 16, 4,
     true, integer},
};
extern const int num_kernels = sizeof kernels / sizeof kernels[0];

}  // namespace lowbit::cpu::avx_vnni
