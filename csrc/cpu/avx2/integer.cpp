#include "cpu/generic/integer.h"
#include "cpu/avx2/simd.h"

namespace lowbit::cpu::avx2 {

lowbit_status integer(const gemm_problem& p) { return cpu::integer<avx2_vectors>(p); }

}  // namespace lowbit::cpu::avx2
