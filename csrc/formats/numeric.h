// Small floats as numbers: conversions between the storage dtypes and fp32, exact or rounded once.
// Plain integer code, so that every translation unit and constant expression gets the same bits.
#pragma once

#include <bit>
#include <cstdint>
#include <limits>

#include "lowbit/lowbit.h"

// Kernels are compiled per instruction set. A function in a shared header must leave no out-of-line copy in their
// objects: the linker would keep one of them for everybody, whatever instructions it uses.
#define LOWBIT_INLINE [[gnu::always_inline]] inline

namespace lowbit {

LOWBIT_INLINE constexpr float ldexp2(float x, int e) {
  for (; e > 0; --e) x *= 2.0f;
  for (; e < 0; ++e) x *= 0.5f;
  return x;
}

// A minifloat with `exponent` and `mantissa` bits below the sign, as OCP FP8 v1.0 section 5 and OCP MX v1.0
// section 5.3 define them. `ieee`: the top exponent holds inf and NaN (e5m2); else only all-ones is NaN
// (`has_nan`, e4m3) or nothing is (e2m1).
struct minifloat {
  int exponent, mantissa, bias;
  bool ieee, has_nan;

  LOWBIT_INLINE constexpr float value(unsigned code) const {
    const unsigned m = code & ((1u << mantissa) - 1);
    const unsigned e = (code >> mantissa) & ((1u << exponent) - 1);
    const bool negative = (code >> (mantissa + exponent)) & 1;
    const unsigned top = (1u << exponent) - 1;
    float magnitude = 0;
    if (ieee && e == top)
      magnitude = m ? std::numeric_limits<float>::quiet_NaN() : std::numeric_limits<float>::infinity();
    else if (has_nan && e == top && m == (1u << mantissa) - 1)
      magnitude = std::numeric_limits<float>::quiet_NaN();
    else if (e == 0)
      magnitude = ldexp2(static_cast<float>(m), 1 - bias - mantissa);
    else
      magnitude = ldexp2(static_cast<float>(m + (1u << mantissa)), static_cast<int>(e) - bias - mantissa);
    return negative ? -magnitude : magnitude;
  }
};

inline constexpr minifloat e2m1{2, 1, 1, false, false};
inline constexpr minifloat e2m3{2, 3, 1, false, false};
inline constexpr minifloat e3m2{3, 2, 3, false, false};
inline constexpr minifloat e4m3{4, 3, 7, false, true};
inline constexpr minifloat e5m2{5, 2, 15, true, false};

LOWBIT_INLINE constexpr float bf16_to_f32(uint16_t bits) {
  return std::bit_cast<float>(static_cast<uint32_t>(bits) << 16);
}

// Round to nearest even; NaN stays NaN.
LOWBIT_INLINE constexpr uint16_t f32_to_bf16(float value) {
  const uint32_t bits = std::bit_cast<uint32_t>(value);
  if ((bits & 0x7fffffffu) > 0x7f800000u) return static_cast<uint16_t>((bits >> 16) | 0x40u);
  return static_cast<uint16_t>((bits + 0x7fffu + ((bits >> 16) & 1u)) >> 16);
}

LOWBIT_INLINE constexpr float f16_to_f32(uint16_t half) {
  const uint32_t sign = static_cast<uint32_t>(half & 0x8000u) << 16;
  const uint32_t exponent = (half >> 10) & 0x1fu;
  const uint32_t mantissa = half & 0x3ffu;
  if (exponent == 31) return std::bit_cast<float>(sign | 0x7f800000u | (mantissa << 13));
  if (exponent != 0) return std::bit_cast<float>(sign | ((exponent + 112) << 23) | (mantissa << 13));
  const float magnitude = static_cast<float>(mantissa) * 0x1p-24f;
  return sign ? -magnitude : magnitude;
}

// The same for finite numbers, without a branch: loops of it become vectors.
LOWBIT_INLINE constexpr float finite_f16_to_f32(uint16_t half) {
  const uint32_t sign = static_cast<uint32_t>(half & 0x8000u) << 16, magnitude = static_cast<uint32_t>(half & 0x7fffu)
                                                                                 << 13;
  const float denormal = std::bit_cast<float>(magnitude + (113u << 23)) - 0x1p-14f;
  const uint32_t is_denormal = 0u - (magnitude < (1u << 23));
  const uint32_t bits = (std::bit_cast<uint32_t>(denormal) & is_denormal) | ((magnitude + (112u << 23)) & ~is_denormal);
  return std::bit_cast<float>(bits | sign);
}

LOWBIT_INLINE constexpr uint16_t f32_to_f16(float value) {
  const uint32_t bits = std::bit_cast<uint32_t>(value);
  const uint32_t sign = (bits >> 16) & 0x8000u;
  const uint32_t magnitude = bits & 0x7fffffffu;
  if (magnitude > 0x7f800000u) return static_cast<uint16_t>(sign | 0x7e00u | ((magnitude >> 13) & 0x3ffu));
  if (magnitude >= 0x47800000u) return static_cast<uint16_t>(sign | 0x7c00u);  // 2^16 and up; 65520 below rounds there
  if (magnitude < 0x38800000u) {  // below 2^-14: let fp32 addition round at 2^-24
    const float shifted = std::bit_cast<float>(magnitude) + 0.5f;
    return static_cast<uint16_t>(sign | (std::bit_cast<uint32_t>(shifted) - 0x3f000000u));
  }
  const uint32_t rounded = magnitude - 0x38000000u + 0xfffu + ((magnitude >> 13) & 1u);
  return static_cast<uint16_t>(sign | (rounded >> 13));
}

// OCP MX v1.0 section 5.4.1: a power of two, 255 is NaN.
LOWBIT_INLINE constexpr float e8m0_to_f32(uint8_t bits) {
  if (bits == 255) return std::numeric_limits<float>::quiet_NaN();
  return bits == 0 ? 0x1p-127f : std::bit_cast<float>(static_cast<uint32_t>(bits) << 23);
}

LOWBIT_INLINE constexpr int dtype_bytes(int dtype) {
  switch (dtype) {
    case LOWBIT_F32:
      return 4;
    case LOWBIT_F16:
    case LOWBIT_BF16:
      return 2;
    default:
      return 1;
  }
}

LOWBIT_INLINE constexpr bool is_float_dtype(int dtype) {
  return dtype == LOWBIT_F32 || dtype == LOWBIT_F16 || dtype == LOWBIT_BF16;
}

const char* dtype_name(int dtype);

LOWBIT_INLINE float load_as_f32(const void* data, int64_t i, int dtype) {
  switch (dtype) {
    case LOWBIT_F32:
      return static_cast<const float*>(data)[i];
    case LOWBIT_F16:
      return f16_to_f32(static_cast<const uint16_t*>(data)[i]);
    case LOWBIT_BF16:
      return bf16_to_f32(static_cast<const uint16_t*>(data)[i]);
    case LOWBIT_E8M0:
      return e8m0_to_f32(static_cast<const uint8_t*>(data)[i]);
    case LOWBIT_E4M3:
      return e4m3.value(static_cast<const uint8_t*>(data)[i]);
    case LOWBIT_U8:
      return static_cast<float>(static_cast<const uint8_t*>(data)[i]);
    default:
      return static_cast<float>(static_cast<const int8_t*>(data)[i]);
  }
}

// To F32, F16 or BF16, rounded to nearest even.
LOWBIT_INLINE void store_from_f32(void* data, int64_t i, int dtype, float value) {
  switch (dtype) {
    case LOWBIT_F32:
      static_cast<float*>(data)[i] = value;
      break;
    case LOWBIT_F16:
      static_cast<uint16_t*>(data)[i] = f32_to_f16(value);
      break;
    default:
      static_cast<uint16_t*>(data)[i] = f32_to_bf16(value);
      break;
  }
}

}  // namespace lowbit
