#pragma once

#include "formats/format.h"

namespace lowbit::formats {

// OCP FP8 v1.0 E4M3: +-448, no infinity, NaN is all ones ("e4m3fn").
struct fp8_e4m3 : format_defaults {
  static constexpr const char* name = "fp8_e4m3";
  static constexpr int bits = 8;
  static constexpr recipe decode = recipe::minifloat;
  static constexpr int fp16_shift = 7;         // 3 mantissa bits to fp16's 10
  static constexpr float fp16_scale = 0x1p8f;  // exponent bias 7 to fp16's 15
  static constexpr float value(unsigned code) { return e4m3.value(code); }
};

LOWBIT_FORMAT(fp8_e4m3)

}  // namespace lowbit::formats
