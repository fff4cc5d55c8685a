// Advanced SIMD with the four-way byte dot product. SDOT takes signed bytes on both sides, as neon_vectors loads them.
#pragma once

#include "cpu/neon/simd.h"

namespace lowbit::cpu {
namespace {

struct neon_dotprod_vectors : neon_vectors {
  static constexpr int mr_integer = 3, nr_integer = 8;  // 24 sums + 3 of q + 1 of W of 32 registers; 6 x 4 spilled

  template <int Bits>
  static i32 dot_u8s8(i32 sums, i32 codes, i32 q) {
    return vdotq_s32(sums, vreinterpretq_s8_s32(codes), vreinterpretq_s8_s32(q));
  }
};

}  // namespace
}  // namespace lowbit::cpu
