// Rows of activations to int8, for the integer family.
#pragma once

#include <cmath>
#include <cstdint>

#include "formats/numeric.h"

namespace lowbit {

// x = (q - zero_point) * scale. A NaN scale makes every output of the row NaN.
struct row_quantization {
  float scale, inverse;
  int32_t zero_point;
};

inline constexpr float largest_f32 = 3.402823466e38f;

// From a row's extremes; `nan`: the row has one. Inf is no number to scale by either.
//   symmetric    scale = max|x| / 127                      zero_point = 0
//   asymmetric   scale = (high - low) / 255, 0 in range    zero_point = round(-128 - low / scale)
LOWBIT_INLINE row_quantization quantization_of(lowbit_activation activation, float low, float high, bool nan) {
  const bool symmetric = activation == LOWBIT_DYNAMIC_SYMMETRIC;
  low = low < 0 ? low : 0;
  high = high > 0 ? high : 0;
  const float range = symmetric ? (high > -low ? high : -low) : high - low, steps = symmetric ? 127.0f : 255.0f;
  if (nan || !(range <= largest_f32)) return {NAN, 0, 0};
  const float inverse = steps / range;
  if (!(inverse <= largest_f32)) return {0, 0, 0};  // all zero, or too small for its reciprocal
  return {range / steps, inverse, symmetric ? 0 : static_cast<int32_t>(std::nearbyintf(-128.0f - low * inverse))};
}

// clamp(round(x / scale) + zero_point, -128, 127), ties to even; NaN, possible only beside a NaN scale, becomes 0.
LOWBIT_INLINE int8_t quantize_value(float x, const row_quantization& r) {
  const float q = std::nearbyintf(x * r.inverse) + static_cast<float>(r.zero_point);
  return static_cast<int8_t>(q < -128.0f ? -128.0f : q > 127.0f ? 127.0f : q == q ? q : 0.0f);
}

// One row x[offset ... offset + k) to q[k]. `given` holds for LOWBIT_STATIC; int8 rows are copied.
LOWBIT_INLINE row_quantization quantize_row(const void* x, int dtype, int64_t offset, int64_t k,
                                            lowbit_activation activation, const row_quantization& given, int8_t* q) {
  if (dtype == LOWBIT_I8) {
    for (int64_t i = 0; i < k; ++i) q[i] = static_cast<const int8_t*>(x)[offset + i];
    return given;
  }
  float low = 0, high = 0;
  bool nan = false;
  for (int64_t i = 0; i < k; ++i) {
    const float value = load_as_f32(x, offset + i, dtype);
    nan |= value != value;
    low = value < low ? value : low;
    high = value > high ? value : high;
  }
  row_quantization r = activation == LOWBIT_STATIC ? given : quantization_of(activation, low, high, nan);
  if (nan) r.scale = NAN;
  for (int64_t i = 0; i < k; ++i) q[i] = quantize_value(load_as_f32(x, offset + i, dtype), r);
  return r;
}

}  // namespace lowbit
