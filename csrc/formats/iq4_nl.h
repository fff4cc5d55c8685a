#pragma once

#include "formats/format.h"

namespace lowbit::formats {

// GGUF IQ4_NL: 32 codes of a table that is denser around 0 (ggml-common.h, kvalues_iq4nl).
struct iq4_nl : format_defaults {
  static constexpr const char* name = "iq4_nl";
  static constexpr int bits = 4;
  static constexpr recipe decode = recipe::lut16;
  static constexpr int block_n = 1;
  static constexpr int block_k = 32;
  static constexpr scale_rule scale = scale_rule::f16;
  static constexpr float value(unsigned code) {
    constexpr float table[16] = {-127, -104, -83, -65, -49, -35, -22, -10, 1, 13, 25, 38, 53, 69, 89, 113};
    return table[code];
  }
};

LOWBIT_FORMAT(iq4_nl)

}  // namespace lowbit::formats
