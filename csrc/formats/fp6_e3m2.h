#pragma once

#include "formats/format.h"

namespace lowbit::formats {

// OCP MX v1.0 E3M2: +-28, no infinity, no NaN.
struct fp6_e3m2 : format_defaults {
  static constexpr const char* name = "fp6_e3m2";
  static constexpr int bits = 6;
  static constexpr recipe decode = recipe::narrow_minifloat;
  static constexpr int fp16_shift = 6;          // 2 mantissa bits, 2 above the bottom of a byte, to fp16's 10
  static constexpr float fp16_scale = 0x1p12f;  // exponent bias 3 to fp16's 15
  static constexpr float value(unsigned code) { return e3m2.value(code); }
};

LOWBIT_FORMAT(fp6_e3m2)

}  // namespace lowbit::formats
