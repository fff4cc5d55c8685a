#pragma once

#include "formats/q4_1.h"

namespace lowbit::formats {

// GGUF Q5_1: 32 codes of 0 .. 31 with a scale and a minimum (ggml-common.h, block_q5_1).
struct q5_1 : q4_1 {
  static constexpr const char* name = "q5_1";
  static constexpr int bits = 5;
  static constexpr recipe decode = recipe::narrow_linear;
  static constexpr float value(unsigned code) { return static_cast<float>(code); }
};

LOWBIT_FORMAT(q5_1)

}  // namespace lowbit::formats
