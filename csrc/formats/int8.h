#pragma once

#include "formats/format.h"

namespace lowbit::formats {

// -128 .. 127 in two's complement. Panels store it plus 128: the unsigned operand of vpdpbusd and tdpbusd.
struct int8 : format_defaults {
  static constexpr const char* name = "int8";
  static constexpr int bits = 8;
  static constexpr recipe decode = recipe::linear;
  static constexpr bool zero_point = true;
  static constexpr int integer_offset = 128;
  static constexpr float value(unsigned code) { return static_cast<float>(static_cast<int8_t>(code)); }
};

LOWBIT_FORMAT(int8)

}  // namespace lowbit::formats
