#pragma once

#include "formats/format.h"

namespace lowbit::formats {

// -32 .. 31, stored plus 32 (compressed-tensors "pack-quantized").
struct int6 : format_defaults {
  static constexpr const char* name = "int6";
  static constexpr int bits = 6;
  static constexpr recipe decode = recipe::narrow_linear;
  static constexpr bool zero_point = true;
  static constexpr int integer_offset = 32;
  static constexpr float value(unsigned code) { return static_cast<float>(static_cast<int>(code) - 32); }
};

LOWBIT_FORMAT(int6)

}  // namespace lowbit::formats
