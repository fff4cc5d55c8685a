#pragma once

#include "formats/format.h"

namespace lowbit::formats {

// -2 .. 1, stored plus 2 (compressed-tensors "pack-quantized").
struct int2 : format_defaults {
  static constexpr const char* name = "int2";
  static constexpr int bits = 2;
  static constexpr recipe decode = recipe::lut4;
  static constexpr bool zero_point = true;
  static constexpr int integer_offset = 2;
  static constexpr float value(unsigned code) { return static_cast<float>(static_cast<int>(code) - 2); }
};

LOWBIT_FORMAT(int2)

}  // namespace lowbit::formats
