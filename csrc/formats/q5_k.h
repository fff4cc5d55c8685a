#pragma once

#include "formats/q5_1.h"

namespace lowbit::formats {

// GGUF Q5_K: Q5_1 whose 8 scales and minima of 6 bits share two f16 (ggml-common.h, block_q5_K).
struct q5_k : q5_1 {
  static constexpr const char* name = "q5_k";
  static constexpr scale_rule scale = scale_rule::i8;
  static constexpr int super_groups = 8;
};

LOWBIT_FORMAT(q5_k)

}  // namespace lowbit::formats
