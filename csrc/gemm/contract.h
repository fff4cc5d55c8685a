// What every kernel is given and what it owes. The edge (csrc/api.cpp) has checked all of it.
//
//   weight_only   y[m][n] = to_y( fma(sum_k x[m][k] * W[n][k], global, bias[n]) )
//                 W[n][k] = (value - zero_point) * scale + min in fp32, rounded once; `bf16` kernels round x once
//                 more, to bf16, and W. Or kernels scale sums over value - zero_point, which is exact: `f32` ones of
//                 x86 where a row of W has one scale, those of AVX2 and `bf16` ones in groups of 128 columns or more,
//                 too. Sums are fp32, in one order of K for every m.
//                 |y - exact| <= (K + 2) eps32 sum|x W|, plus the rounding to y; `bf16` kernels add 2^-8 sum|x W| for
//                 the rounding of W, as much again for that of float16 x, and take denormal bf16 for zero. Where sums
//                 are scaled, sum_k |x (value - zero_point)| must be finite, too, and terms of it that are denormal
//                 lose what fp32 does.
//   integer       q[m][k] = x quantized to int8 (gemm/activation.h), exact int32 within a segment of K:
//                 s[m][n][g] = sum_{k in g} (q[m][k] - x_zero[m]) * (code[n][k] - zero_point[n][g])
//                 y[m][n] = to_y( fma(sum_g fma(float(s), scale[n][g], .), x_scale[m], bias[n]) ), g ascending.
//                 A segment is a group, or 32768 columns of it where it is longer. Every kernel gives the same bits.
//
// Where there is an epilogue, what to_y rounds goes through its function and meets `other` first (gemm/epilogue.h).
// Any m >= 1, n >= 1, k >= 1. Kernels read x, packed, bias and other only inside their bounds and write y only inside
// its; an element of other is read before that of y is written, which may be the same.
#pragma once

#include <cmath>
#include <cstdint>

#include "gemm/activation.h"
#include "gemm/epilogue.h"
#include "gemm/status.h"
#include "layout/packed.h"

namespace lowbit {

inline constexpr int64_t integer_segment = 32768;  // 255 * 255 * 32768 < 2^31

struct gemm_problem {
  packed_view w;
  int64_t m;
  const void* x;
  int x_dtype;
  int64_t x_stride;
  const void* bias;  // or null
  int bias_dtype;
  void* y;
  int y_dtype;
  int64_t y_stride;
  lowbit_activation activation;
  const float* x_scale;
  const int32_t* x_zero_point;
  int64_t num_x_scales;
  const lowbit_parallel* parallel;
  epilogue_terms epilogue{};

  LOWBIT_INLINE row_quantization given_quantization(int64_t row) const {  // LOWBIT_STATIC
    const int64_t i = num_x_scales == 1 ? 0 : row;
    return {x_scale[i], 1.0f / x_scale[i], x_zero_point ? x_zero_point[i] : 0};
  }
  LOWBIT_INLINE float bias_at(int64_t n) const { return bias ? load_as_f32(bias, n, bias_dtype) : 0.0f; }
};

using kernel = lowbit_status(const gemm_problem&);

struct kernel_row {
  const char* name;  // family_compute_isa_tile
  lowbit_family family;
  const char* features;  // CPU features it needs beyond its level's, or ""
  uint32_t recipes;      // bit for each recipe it decodes
  uint32_t x_dtypes;     // bit for each lowbit_dtype of x
  int mr, nr, kr;
  bool batch_invariant;
  kernel* run;
};

LOWBIT_INLINE constexpr uint32_t bit(recipe r) { return 1u << static_cast<int>(r); }
LOWBIT_INLINE constexpr uint32_t bit(lowbit_dtype d) { return 1u << static_cast<int>(d); }
inline constexpr uint32_t all_recipes = bit(recipe::lut4) | bit(recipe::lut16) | bit(recipe::linear) |
                                        bit(recipe::minifloat) | bit(recipe::narrow_linear) |
                                        bit(recipe::narrow_minifloat);
inline constexpr uint32_t integer_recipes =
    bit(recipe::lut4) | bit(recipe::lut16) | bit(recipe::linear) | bit(recipe::narrow_linear);
// What a row must state beside recipes, in the same mask, to be given such formats.
inline constexpr uint32_t minima = 1u << 30, two_levels = 1u << 31, every_scale_rule = minima | two_levels;
inline constexpr uint32_t float_dtypes = bit(LOWBIT_F32) | bit(LOWBIT_F16) | bit(LOWBIT_BF16);

// 64-byte aligned memory of the calling thread, kept from call to call; null when there is none. `slot` tells the
// few buffers that one call needs apart.
enum class scratch_slot { activations, panel, sums };
void* scratch(scratch_slot slot, size_t bytes);

}  // namespace lowbit
