#pragma once

#include "formats/format.h"

namespace lowbit::formats {

// GGUF TQ2_0, and TQ1_0 at two bits: codes of -1, 0, 1, in the file 256 with a scale (ggml-common.h, block_tq2_0). Code
// 3 is 2.
struct tq2_0 : format_defaults {
  static constexpr const char* name = "tq2_0";
  static constexpr int bits = 2;
  static constexpr recipe decode = recipe::lut4;
  static constexpr scale_rule scale = scale_rule::f16;
  static constexpr int integer_offset = 1;
  static constexpr float value(unsigned code) { return static_cast<float>(static_cast<int>(code) - 1); }
};

LOWBIT_FORMAT(tq2_0)

}  // namespace lowbit::formats
