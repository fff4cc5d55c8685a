#include "cpu/avx512_vnni/vectors.h"
#include "cpu/generic/weight_only.h"

namespace lowbit::cpu::avx512_vnni {

lowbit_status weight_only_f32(const gemm_problem& p) { return weight_only<f32_arithmetic<avx512_vectors>>(p); }

}  // namespace lowbit::cpu::avx512_vnni
