// The emulator's side of csrc/cuda/common/convert.h.
#pragma once

#include <cmath>

#include "cuda/common/memory.h"
#include "cuda/common/mma.h"
#include "formats/numeric.h"

namespace lowbit::cuda {

inline uint32_t permute_bytes(uint32_t a, uint32_t b, uint32_t selector) {
  const uint64_t bytes = static_cast<uint64_t>(b) << 32 | a;
  uint32_t d = 0;
  for (int i = 0; i < 4; ++i) {
    const uint32_t pick = selector >> 4 * i & 15;
    uint32_t byte = static_cast<uint32_t>(bytes >> 8 * (pick & 7)) & 0xff;
    if (pick & 8) byte = byte & 0x80 ? 0xff : 0;
    d |= byte << 8 * i;
  }
  return d;
}

template <int table>
uint32_t logic3(uint32_t a, uint32_t b, uint32_t c) {
  static_assert(table >= 0 && table < 256);
  uint32_t d = 0;
  if constexpr (table & 0x01) d |= ~a & ~b & ~c;
  if constexpr (table & 0x02) d |= ~a & ~b & c;
  if constexpr (table & 0x04) d |= ~a & b & ~c;
  if constexpr (table & 0x08) d |= ~a & b & c;
  if constexpr (table & 0x10) d |= a & ~b & ~c;
  if constexpr (table & 0x20) d |= a & ~b & c;
  if constexpr (table & 0x40) d |= a & b & ~c;
  if constexpr (table & 0x80) d |= a & b & c;
  return d;
}

inline uint32_t funnel_shift_right(uint32_t low, uint32_t high, int shift) {
  return static_cast<uint32_t>((static_cast<uint64_t>(high) << 32 | low) >> (shift & 31));
}

inline int32_t dot4_s8(uint32_t a, uint32_t b, int32_t c) {
  uint32_t sum = static_cast<uint32_t>(c);
  for (int i = 0; i < 4; ++i)
    sum += static_cast<uint32_t>(static_cast<int8_t>(a >> 8 * i) * static_cast<int8_t>(b >> 8 * i));
  return static_cast<int32_t>(sum);
}

inline float multiply_add(float a, float b, float c) { return std::fma(a, b, c); }
inline float divide(float a, float b) { return a / b; }
inline float square_root(float a) { return std::sqrt(a); }
inline float minimum(float a, float b) { return std::fmin(a, b); }
inline float maximum(float a, float b) { return std::fmax(a, b); }
inline float absolute(float a) { return std::fabs(a); }
inline float round_even(float a) { return std::nearbyint(a); }
inline int32_t round_to_int(float a) {
  if (a != a) return 0;
  const float r = round_even(a);
  if (r >= 0x1p31f) return INT32_MAX;
  if (r < -0x1p31f) return INT32_MIN;
  return static_cast<int32_t>(r);
}

namespace detail {

// x + c, for x and c given exactly, to odd: the last bit says that something was lost, so that rounding again to fewer
// bits is rounding once.
inline double add_to_odd(double x, double c) {
  const double sum = x + c, back = sum - x;
  const double lost = (x - (sum - back)) + (c - back);
  if (lost == 0 || !std::isfinite(sum)) return sum;
  const auto bits = std::bit_cast<uint64_t>(sum);
  if (bits & 1) return sum;
  return std::bit_cast<double>((lost > 0) == (sum > 0) ? bits + 1 : bits - 1);
}
inline float to_odd(double x) {
  const float f = static_cast<float>(x);
  if (static_cast<double>(f) == x || x != x) return f;
  if (std::isinf(f)) return std::copysign(0x1.fffffep127f, f);
  const uint32_t bits = std::bit_cast<uint32_t>(f);
  if (bits & 1) return f;
  if ((bits & 0x7fffffffu) == 0) return std::bit_cast<float>(bits | 1);
  return std::bit_cast<float>(std::fabs(x) > std::fabs(static_cast<double>(f)) ? bits + 1 : bits - 1);
}

// PTX: NaN results are canonical.
template <class T>
uint16_t from_float(float x) {
  if (x != x) return 0x7fff;
  if constexpr (std::is_same_v<T, bf16_t>) return f32_to_bf16(x);
  return f32_to_f16(x);
}

}  // namespace detail

template <class T>
float to_float(uint16_t bits) {
  if constexpr (std::is_same_v<T, bf16_t>) return bf16_to_f32(bits);
  return f16_to_f32(bits);
}
template <class T>
float low(uint32_t pair) {
  return to_float<T>(static_cast<uint16_t>(pair));
}
template <class T>
float high(uint32_t pair) {
  return to_float<T>(static_cast<uint16_t>(pair >> 16));
}
template <class T>
uint32_t pack2(float lo, float hi) {
  return detail::from_float<T>(lo) | static_cast<uint32_t>(detail::from_float<T>(hi)) << 16;
}

namespace detail {

template <class T>
uint16_t fma1(float a, float b, float c) {
  return from_float<T>(to_odd(add_to_odd(static_cast<double>(a) * static_cast<double>(b), static_cast<double>(c))));
}

}  // namespace detail

template <class T>
uint32_t fma2(uint32_t a, uint32_t b, uint32_t c) {
  return detail::fma1<T>(low<T>(a), low<T>(b), low<T>(c)) |
         static_cast<uint32_t>(detail::fma1<T>(high<T>(a), high<T>(b), high<T>(c))) << 16;
}
// Two 16-bit floats have an exact product in fp32 or one whose rounding to 16 bits is the same; sums go by fma.
template <class T>
uint32_t mul2(uint32_t a, uint32_t b) {
  return fma2<T>(a, b, 0x80008000u);
}
template <class T>
uint32_t add2(uint32_t a, uint32_t b) {
  return detail::fma1<T>(low<T>(a), 1, low<T>(b)) | static_cast<uint32_t>(detail::fma1<T>(high<T>(a), 1, high<T>(b)))
                                                        << 16;
}
template <class T>
uint32_t sub2(uint32_t a, uint32_t b) {
  return detail::fma1<T>(low<T>(b), -1, low<T>(a)) | static_cast<uint32_t>(detail::fma1<T>(high<T>(b), -1, high<T>(a)))
                                                         << 16;
}

namespace detail {

inline uint32_t f32_to_e4m3(float value) {
  const float magnitude = std::fabs(value);
  const uint32_t sign = std::signbit(value) ? 0x80u : 0u;
  if (value != value) return 0x7f;
  if (magnitude == 0) return sign;
  if (magnitude >= 448) return sign | 0x7e;
  int exponent = 0;
  std::frexp(magnitude, &exponent);  // magnitude in [2^(exponent - 1), 2^exponent)
  const int step = std::max(exponent - 1, -6) - 3;
  const float steps = std::nearbyint(std::ldexp(magnitude, -step));  // 8 .. 16, or 0 .. 8 below 2^-6
  return sign | static_cast<uint32_t>(steps + static_cast<float>((step + 9) * 8));
}

}  // namespace detail

inline uint32_t pack_e4m3x2(float lo, float hi) { return detail::f32_to_e4m3(lo) | detail::f32_to_e4m3(hi) << 8; }

inline uint32_t e4m3x2_to_f16x2(uint16_t pair) { return pack2<f16_t>(e4m3.value(pair & 0xffu), e4m3.value(pair >> 8)); }

}  // namespace lowbit::cuda
