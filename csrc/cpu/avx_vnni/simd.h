// AVX-VNNI vocabulary: AVX2 with the four-way byte dot product.
#pragma once

#include "cpu/avx2/simd.h"
#include "cpu/avx_vnni/instructions.h"

namespace lowbit::cpu {
namespace {

struct avx_vnni_vectors : avx2_vectors {
  template <int Bits>
  static constexpr int integer_few = 16;  // a product costs half of AVX2's, transposing lines the same
  template <int Bits>
  static constexpr int code_parts = 1;
  template <int Bits>
  static constexpr int integer_sums = 8;
  template <int Bits>
  static constexpr int64_t word_products = 0;
  template <int Bits>
  static i32 code_part(i32 codes, int) {
    return codes;
  }
  template <int Bits>
  static i32 dot_u8s8(i32 sums, i32 codes, i32 q) {
    return dot_bytes(sums, codes, q);
  }
};

}  // namespace
}  // namespace lowbit::cpu
