#include "cpu/avx2/simd.h"
#include "cpu/generic/weight_only.h"

namespace lowbit::cpu::avx2 {

kernel weight_only_f32_bytes;  // of all other recipes, to be compiled beside this file

lowbit_status weight_only_f32(const gemm_problem& p) {
  constexpr uint32_t tables = bit(recipe::lut4) | bit(recipe::lut16);
  if (!(tables & bit(p.w.format->decode))) return weight_only_f32_bytes(p);
  return weight_only<f32_arithmetic<avx2_vectors, tables>>(p);
}

}  // namespace lowbit::cpu::avx2
