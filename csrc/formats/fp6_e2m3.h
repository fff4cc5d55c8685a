#pragma once

#include "formats/format.h"

namespace lowbit::formats {

// OCP MX v1.0 E2M3: +-7.5, no infinity, no NaN.
struct fp6_e2m3 : format_defaults {
  static constexpr const char* name = "fp6_e2m3";
  static constexpr int bits = 6;
  static constexpr recipe decode = recipe::narrow_minifloat;
  static constexpr int fp16_shift = 5;          // 3 mantissa bits, 2 above the bottom of a byte, to fp16's 10
  static constexpr float fp16_scale = 0x1p14f;  // exponent bias 1 to fp16's 15
  static constexpr float value(unsigned code) { return e2m3.value(code); }
};

LOWBIT_FORMAT(fp6_e2m3)

}  // namespace lowbit::formats
