#include "cpu/avx2/simd.h"
#include "cpu/generic/weight_only.h"

namespace lowbit::cpu::avx2 {

lowbit_status weight_only_f32(const gemm_problem& p) { return weight_only<f32_arithmetic<avx2_vectors>>(p); }

}  // namespace lowbit::cpu::avx2
