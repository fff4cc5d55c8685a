#include "cpu/avx2/simd.h"
#include "cpu/generic/weight_only.h"

namespace lowbit::cpu::avx2 {

lowbit_status weight_only_f32_bytes(const gemm_problem& p) {
  constexpr uint32_t bytes =
      bit(recipe::linear) | bit(recipe::minifloat) | bit(recipe::narrow_linear) | bit(recipe::narrow_minifloat);
  return weight_only<f32_arithmetic<avx2_vectors, bytes>>(p);
}

}  // namespace lowbit::cpu::avx2
