// Scales that come with a stage: [groups of its columns][64 rows of the strip], in the type of the packed weight.
#pragma once

#include "cuda/sm90/outputs.h"

namespace lowbit::cuda::sm90 {

LOWBIT_DEVICE float shared_scale(uint32_t line, int row, int dtype) {
  switch (dtype) {
    case LOWBIT_F32:
      return shared_load<float>(line + row * 4);
    case LOWBIT_F16:
      return to_float<f16_t>(shared_load<uint16_t>(line + row * 2));
    case LOWBIT_BF16:
      return to_float<bf16_t>(shared_load<uint16_t>(line + row * 2));
    case LOWBIT_E4M3:
      return low<f16_t>(e4m3x2_to_f16x2(shared_load<uint8_t>(line + row)));
    default: {  // e8m0: 2^-127 is denormal
      const uint32_t exponent = shared_load<uint8_t>(line + row);
      return as_float(exponent == 0 ? 0x400000u : exponent << 23);
    }
  }
}

// Of rows `row` and `row + 8`: a type is asked for once.
LOWBIT_DEVICE void shared_scales(float (&scale)[2], uint32_t line, int row, int dtype) {
  if (dtype == LOWBIT_BF16) {
    LOWBIT_UNROLL
    for (int h = 0; h < 2; ++h) scale[h] = to_float<bf16_t>(shared_load<uint16_t>(line + row * 2 + h * 16));
  } else if (dtype == LOWBIT_F16) {
    LOWBIT_UNROLL
    for (int h = 0; h < 2; ++h) scale[h] = to_float<f16_t>(shared_load<uint16_t>(line + row * 2 + h * 16));
  } else {
    LOWBIT_UNROLL
    for (int h = 0; h < 2; ++h) scale[h] = shared_scale(line, row + h * 8, dtype);
  }
}

}  // namespace lowbit::cuda::sm90
