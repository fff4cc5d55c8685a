#pragma once

#include "formats/q4_1.h"

namespace lowbit::formats {

// GGUF Q4_K: Q4_1 whose 8 scales and minima of 6 bits share two f16 (ggml-common.h, block_q4_K).
struct q4_k : q4_1 {
  static constexpr const char* name = "q4_k";
  static constexpr scale_rule scale = scale_rule::i8;
  static constexpr int super_groups = 8;
};

LOWBIT_FORMAT(q4_k)

}  // namespace lowbit::formats
