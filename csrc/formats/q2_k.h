#pragma once

#include "formats/format.h"

namespace lowbit::formats {

// GGUF Q2_K: 16 codes of 0 .. 3 with a scale and a minimum of 4 bits; 16 of each share two f16 (ggml-common.h,
// block_q2_K).
struct q2_k : format_defaults {
  static constexpr const char* name = "q2_k";
  static constexpr int bits = 2;
  static constexpr recipe decode = recipe::lut4;
  static constexpr int block_n = 1;
  static constexpr int block_k = 16;
  static constexpr scale_rule scale = scale_rule::i8;
  static constexpr int super_groups = 16;
  static constexpr bool minimum = true;
  static constexpr float value(unsigned code) { return static_cast<float>(code); }
};

LOWBIT_FORMAT(q2_k)

}  // namespace lowbit::formats
