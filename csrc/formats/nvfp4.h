#pragma once

#include "formats/fp4_e2m1.h"

namespace lowbit::formats {

// NVFP4: 16 E2M1 share an E4M3 scale, the tensor an fp32 one. e2m1 * e4m3 has at most 6 significant bits, so it
// is exact in bf16.
struct nvfp4 : fp4_e2m1 {
  static constexpr const char* name = "nvfp4";
  static constexpr int block_n = 1;
  static constexpr int block_k = 16;
  static constexpr scale_rule scale = scale_rule::e4m3;
  static constexpr bool global_scale = true;
};

LOWBIT_FORMAT(nvfp4)

}  // namespace lowbit::formats
