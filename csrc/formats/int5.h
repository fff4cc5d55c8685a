#pragma once

#include "formats/format.h"

namespace lowbit::formats {

// -16 .. 15, stored plus 16 (compressed-tensors "pack-quantized").
struct int5 : format_defaults {
  static constexpr const char* name = "int5";
  static constexpr int bits = 5;
  static constexpr recipe decode = recipe::narrow_linear;
  static constexpr bool zero_point = true;
  static constexpr int integer_offset = 16;
  static constexpr float value(unsigned code) { return static_cast<float>(static_cast<int>(code) - 16); }
};

LOWBIT_FORMAT(int5)

}  // namespace lowbit::formats
