#pragma once

#include "formats/fp8_e4m3.h"

namespace lowbit::formats {

// OCP MX v1.0 MXFP8 with E4M3 elements: 32 share a power of two.
struct mxfp8 : fp8_e4m3 {
  static constexpr const char* name = "mxfp8";
  static constexpr int block_n = 1;
  static constexpr int block_k = 32;
  static constexpr scale_rule scale = scale_rule::e8m0;
};

LOWBIT_FORMAT(mxfp8)

}  // namespace lowbit::formats
