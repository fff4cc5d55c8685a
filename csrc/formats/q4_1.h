#pragma once

#include "formats/format.h"

namespace lowbit::formats {

// GGUF Q4_1: 32 codes of 0 .. 15 with a scale and a minimum (ggml-common.h, block_q4_1).
struct q4_1 : format_defaults {
  static constexpr const char* name = "q4_1";
  static constexpr int bits = 4;
  static constexpr recipe decode = recipe::lut16;
  static constexpr int block_n = 1;
  static constexpr int block_k = 32;
  static constexpr scale_rule scale = scale_rule::f16;
  static constexpr bool minimum = true;
  static constexpr float value(unsigned code) { return static_cast<float>(code); }
};

LOWBIT_FORMAT(q4_1)

}  // namespace lowbit::formats
