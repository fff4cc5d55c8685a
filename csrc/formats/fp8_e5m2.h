#pragma once

#include "formats/format.h"

namespace lowbit::formats {

// OCP FP8 v1.0 E5M2: the upper byte of an fp16, infinities and NaN included.
struct fp8_e5m2 : format_defaults {
  static constexpr const char* name = "fp8_e5m2";
  static constexpr int bits = 8;
  static constexpr recipe decode = recipe::minifloat;
  static constexpr int fp16_shift = 8;
  static constexpr float fp16_scale = 1;
  static constexpr float value(unsigned code) { return e5m2.value(code); }
};

LOWBIT_FORMAT(fp8_e5m2)

}  // namespace lowbit::formats
