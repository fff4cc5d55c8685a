#pragma once

#include "formats/fp6_e2m3.h"

namespace lowbit::formats {

// OCP MX v1.0 MXFP6 with E2M3 elements: 32 share a power of two.
struct mxfp6_e2m3 : fp6_e2m3 {
  static constexpr const char* name = "mxfp6_e2m3";
  static constexpr int block_n = 1;
  static constexpr int block_k = 32;
  static constexpr scale_rule scale = scale_rule::e8m0;
};

LOWBIT_FORMAT(mxfp6_e2m3)

}  // namespace lowbit::formats
