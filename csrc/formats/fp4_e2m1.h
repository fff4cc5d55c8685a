#pragma once

#include "formats/format.h"

namespace lowbit::formats {

// OCP MX v1.0 E2M1: 0, 0.5, 1, 1.5, 2, 3, 4, 6 and their negatives.
struct fp4_e2m1 : format_defaults {
  static constexpr const char* name = "fp4_e2m1";
  static constexpr int bits = 4;
  static constexpr recipe decode = recipe::lut16;
  static constexpr float value(unsigned code) { return e2m1.value(code); }
};

LOWBIT_FORMAT(fp4_e2m1)

}  // namespace lowbit::formats
