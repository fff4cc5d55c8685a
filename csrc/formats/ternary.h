#pragma once

#include "formats/format.h"

namespace lowbit::formats {

// -1, 0, 1, stored plus 1 (Ma et al. 2024, The Era of 1-bit LLMs: BitNet b1.58). Code 3 stands for nothing.
struct ternary : format_defaults {
  static constexpr const char* name = "ternary";
  static constexpr int bits = 2;
  static constexpr recipe decode = recipe::lut4;
  static constexpr int integer_offset = 1;
  static constexpr float value(unsigned code) {
    return code < 3 ? static_cast<float>(static_cast<int>(code) - 1) : std::numeric_limits<float>::quiet_NaN();
  }
};

LOWBIT_FORMAT(ternary)

}  // namespace lowbit::formats
