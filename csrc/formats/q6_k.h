#pragma once

#include "formats/int6.h"

namespace lowbit::formats {

// GGUF Q6_K: 16 codes of -32 .. 31 with a scale of 8 bits, and 16 of those with an f16 (ggml-common.h, block_q6_K).
struct q6_k : int6 {
  static constexpr const char* name = "q6_k";
  static constexpr int block_n = 1;
  static constexpr int block_k = 16;
  static constexpr scale_rule scale = scale_rule::i8;
  static constexpr int super_groups = 16;
  static constexpr bool zero_point = false;
};

LOWBIT_FORMAT(q6_k)

}  // namespace lowbit::formats
