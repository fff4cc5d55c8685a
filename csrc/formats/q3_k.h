#pragma once

#include "formats/int3.h"

namespace lowbit::formats {

// GGUF Q3_K: 16 codes of -4 .. 3 with a scale of 6 bits, and 16 of those with an f16 (ggml-common.h, block_q3_K).
struct q3_k : int3 {
  static constexpr const char* name = "q3_k";
  static constexpr int block_n = 1;
  static constexpr int block_k = 16;
  static constexpr scale_rule scale = scale_rule::i8;
  static constexpr int super_groups = 16;
  static constexpr bool zero_point = false;
};

LOWBIT_FORMAT(q3_k)

}  // namespace lowbit::formats
