#pragma once

#include "formats/format.h"

namespace lowbit::formats {

// -4 .. 3, stored plus 4 (compressed-tensors "pack-quantized").
struct int3 : format_defaults {
  static constexpr const char* name = "int3";
  static constexpr int bits = 3;
  static constexpr recipe decode = recipe::narrow_linear;
  static constexpr bool zero_point = true;
  static constexpr int integer_offset = 4;
  static constexpr float value(unsigned code) { return static_cast<float>(static_cast<int>(code) - 4); }
};

LOWBIT_FORMAT(int3)

}  // namespace lowbit::formats
