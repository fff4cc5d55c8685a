#pragma once

#include "formats/format.h"

namespace lowbit::formats {

// -8 .. 7, stored plus 8 (compressed-tensors "pack-quantized").
struct int4 : format_defaults {
  static constexpr const char* name = "int4";
  static constexpr int bits = 4;
  static constexpr recipe decode = recipe::lut16;
  static constexpr bool zero_point = true;
  static constexpr int integer_offset = 8;
  static constexpr float value(unsigned code) { return static_cast<float>(static_cast<int>(code) - 8); }
};

LOWBIT_FORMAT(int4)

}  // namespace lowbit::formats
