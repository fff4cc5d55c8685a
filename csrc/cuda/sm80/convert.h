// Activations as kernels take them, where they come otherwise and no range has to be found first: fp32 in bf16, floats
// in int8 or e4m3 by scales that are given. (By the rows' own ranges: quantize.h.)
#pragma once

#include <cstdint>

#include "gemm/status.h"

namespace lowbit::cuda::sm80 {

struct convert_problem {
  int64_t m, k;
  const void* x;  // [m][k]
  int x_dtype;    // F32, F16, BF16
  int64_t x_stride;
  void* out;      // [m][k]
  int out_dtype;  // BF16, I8, E4M3
  int64_t out_stride;
  // I8 as quantize_row of gemm/activation.h; E4M3: to_e4m3(x * (1 / scale)).
  const float* scale;         // [num_scales]; with a group, [m][ceil(k / group)]
  const int32_t* zero_point;  // or null: 0
  int64_t num_scales;         // 1 or m, or those of groups
  int64_t group;              // E4M3: columns that share a scale; 0: all
  // I8: what the scales and zero points of the rows are now, [m]: NaN where the row has a NaN.
  float* row_scale;
  int32_t* row_zero_point;
};

lowbit_status convert(const convert_problem& problem, void* stream);

}  // namespace lowbit::cuda::sm80
