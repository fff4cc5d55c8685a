// What a product may do to its sums before they are rounded to y: an activation function, then one more tensor.
//
//   y[m][n] = to_y( combine( f( fma(sum, factor, bias[n]) ), other[m][n] ) )
//
//   f        none; silu  x / (1 + e^-x); gelu  x Phi(x), Phi the normal distribution; gelu_tanh  x / (1 + e^-2u),
//            u = sqrt(2 / pi) (x + 0.044715 x^3); relu  max(x, 0)
//   combine  none; add  f + other; multiply  f * other
//
// In fp32, rounded to y once. Functions are written of IEEE operations alone, without branches: loops of them become
// vectors, and every level and device has the same bits. Errors against exact arithmetic, x any float, denormal results
// included (tests/cpp/epilogue_test.cpp):
//
//   silu 3 ulp, gelu 6 ulp, gelu_tanh 4 + 2.5 |2u| ulp (e^-2u feels the rounding of 2u; |2u| < 104 where y is not 0)
//
// NaN stays NaN, +inf stays inf, -inf becomes the limit, -0. (torch's own silu and gelu say NaN there.)
#pragma once

#include <bit>
#include <cstdint>

#include "formats/numeric.h"

namespace lowbit {

inline constexpr const char* function_names[] = {"identity", "silu", "gelu", "gelu_tanh", "relu"};  // lowbit_function

struct epilogue_terms {
  lowbit_function function;
  lowbit_combination combination;
  const void* other;  // [m][n], where there is a combination
  int other_dtype;    // F32, F16, BF16
  int64_t other_stride;

  LOWBIT_INLINE static epilogue_terms of(const lowbit_gemm_args& a) {
    return {a.function, a.combination, a.other, a.other_dtype, a.other_stride};
  }
  LOWBIT_INLINE constexpr bool any() const { return function != LOWBIT_IDENTITY || combination != LOWBIT_ALONE; }
};

// e^v = normal * rest; rest is 1 unless e^v is denormal.
struct exponential {
  float normal, rest;
};

// e^(v + low) within 1.5 ulp, for v in [-120, 0] and |low| < 2^-17.
LOWBIT_INLINE constexpr exponential exp_of_negative(float v, float low) {
  const float to_integer = 0x1.8p23f;
  const float shifted = __builtin_fmaf(v, 0x1.715476p0f, to_integer), n = shifted - to_integer;   // log2(e)
  const float r = __builtin_fmaf(n, 0x1.05c61p-29f, __builtin_fmaf(n, -0x1.62e43p-1f, v)) + low;  // ln(2) in two parts
  float p = 0x1.6a2258p-10f;  // (e^r - 1 - r) / r^2, minimax in |r| <= ln(2) / 2, relative error of e^r 2^-28
  p = __builtin_fmaf(p, r, 0x1.123b02p-7f);
  p = __builtin_fmaf(p, r, 0x1.5558f8p-5f);
  p = __builtin_fmaf(p, r, 0x1.555490p-3f);
  p = __builtin_fmaf(p, r, 0x1.fffffcp-2f);
  p = __builtin_fmaf(__builtin_fmaf(p, r, 1.0f), r, 1.0f);
  const int32_t exponent = static_cast<int32_t>(std::bit_cast<uint32_t>(shifted) - std::bit_cast<uint32_t>(to_integer));
  const int32_t normal = exponent < -126 ? -126 : exponent;
  return {p * std::bit_cast<float>(static_cast<uint32_t>(normal + 127) << 23),
          std::bit_cast<float>(static_cast<uint32_t>(exponent - normal + 127) << 23)};
}

// `yes` or `no`, as masks choose: where GCC sees a branch it makes no vectors.
LOWBIT_INLINE constexpr float choose(bool condition, float yes, float no) {
  const uint32_t mask = 0u - static_cast<uint32_t>(condition);
  return std::bit_cast<float>((std::bit_cast<uint32_t>(yes) & mask) | (std::bit_cast<uint32_t>(no) & ~mask));
}
LOWBIT_INLINE constexpr bool has_sign(float x) { return std::bit_cast<uint32_t>(x) >> 31; }

// -|x|, not below -most; NaN stays.
LOWBIT_INLINE constexpr float minus_magnitude(float x, float most) {
  const float minus = std::bit_cast<float>(std::bit_cast<uint32_t>(x) | 0x80000000u);
  return choose(minus < -most, -most, minus);
}

// x / (1 + e^-v), v of the sign of x, from e^-|v|.
LOWBIT_INLINE constexpr float gated(float x, float minus_t, const exponential& e) {
  return choose(has_sign(x), minus_t * e.normal * e.rest, x) / (1.0f + e.normal);
}

LOWBIT_INLINE constexpr float silu(float x) {
  const float minus_t = minus_magnitude(x, 110);
  return gated(x, minus_t, exp_of_negative(minus_t, 0));
}

LOWBIT_INLINE constexpr float gelu_tanh(float x) {
  const float minus_t = minus_magnitude(x, 11);
  const float slope = __builtin_fmaf(minus_t * minus_t, 0x1.2444f2p-4f, 0x1.988454p0f);  // 2u / x
  return gated(x, minus_t, exp_of_negative(minus_t * slope, 0));
}

// x Phi(x) = x - x Phi(-x); Phi(-t) = e^(-t^2/2) R(t), t >= 0; (t + 3.5) R(t) is smooth in z = (t - 3.5) / (t + 3.5).
LOWBIT_INLINE constexpr float gelu(float x) {
  const float minus_t = minus_magnitude(x, 15);
  const float square = minus_t * minus_t, square_low = __builtin_fmaf(minus_t, minus_t, -square);
  const exponential e = exp_of_negative(-0.5f * square, -0.5f * square_low);
  const float d = 1.0f / (3.5f - minus_t), z = (-3.5f - minus_t) * d;
  float q = 0x1.cce2d2p-14f;  // minimax up to t = 14.7, relative error 2^-27
  q = __builtin_fmaf(q, z, 0x1.b8de28p-12f);
  q = __builtin_fmaf(q, z, -0x1.038644p-11f);
  q = __builtin_fmaf(q, z, -0x1.a01058p-9f);
  q = __builtin_fmaf(q, z, 0x1.a98cb2p-8f);
  q = __builtin_fmaf(q, z, 0x1.1d2eb8p-6f);
  q = __builtin_fmaf(q, z, -0x1.db5a7ep-4f);
  q = __builtin_fmaf(q, z, 0x1.42feca0p-2f);
  q = __builtin_fmaf(q, z, -0x1.219150p-1f);
  q = __builtin_fmaf(q, z, 0x1.7d241ap-1f);
  const float tail = minus_t * (d * q) * e.normal * e.rest;
  return choose(has_sign(x), tail, x + tail);
}

LOWBIT_INLINE constexpr float relu(float x) { return x < 0 ? 0 : x; }

LOWBIT_INLINE constexpr float apply(lowbit_function function, float x) {
  switch (function) {
    case LOWBIT_SILU:
      return silu(x);
    case LOWBIT_GELU:
      return gelu(x);
    case LOWBIT_GELU_TANH:
      return gelu_tanh(x);
    case LOWBIT_RELU:
      return relu(x);
    default:
      return x;
  }
}

LOWBIT_INLINE constexpr float combine(lowbit_combination combination, float value, float other) {
  return combination == LOWBIT_ADD ? value + other : combination == LOWBIT_MULTIPLY ? value * other : value;
}

}  // namespace lowbit
