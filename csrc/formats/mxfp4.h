#pragma once

#include "formats/fp4_e2m1.h"

namespace lowbit::formats {

// OCP MX v1.0 MXFP4: 32 E2M1 share a power of two.
struct mxfp4 : fp4_e2m1 {
  static constexpr const char* name = "mxfp4";
  static constexpr int block_n = 1;
  static constexpr int block_k = 32;
  static constexpr scale_rule scale = scale_rule::e8m0;
};

LOWBIT_FORMAT(mxfp4)

}  // namespace lowbit::formats
