// The vocabulary of kernels, part 4: bits and small floats. Two 16-bit floats share a word, the first in the low half.
// Every function gives the same bits on every architecture and in the emulator. Floats contract only where
// multiply_add says so: the kernels are built with --fmad=false.
#pragma once

#include "cuda/common/memory.h"
#include "cuda/common/mma.h"

namespace lowbit::cuda {

// ---- bits ----------------------------------------------------------------------------------------------------

// Byte i of the result is byte (selector >> 4 i) % 8 of {a, b}, a's four first; with bit 3 of the nibble set, its sign
// eight times.  [9.7.9.7: prmt]
LOWBIT_DEVICE uint32_t permute_bytes(uint32_t a, uint32_t b, uint32_t selector) {
  uint32_t d;
  asm("prmt.b32 %0, %1, %2, %3;" : "=r"(d) : "r"(a), "r"(b), "r"(selector));
  return d;
}

// Any function of three bits: bit 4 a + 2 b + c of `table`; it is f(0xf0, 0xcc, 0xaa).  [9.7.8.6: lop3]
template <int table>
LOWBIT_DEVICE uint32_t logic3(uint32_t a, uint32_t b, uint32_t c) {
  static_assert(table >= 0 && table < 256);
  uint32_t d;
  asm("lop3.b32 %0, %1, %2, %3, %4;" : "=r"(d) : "r"(a), "r"(b), "r"(c), "n"(table));
  return d;
}

// The low word of {high, low} >> (shift % 32).  [9.7.8.7: shf.r.wrap]
LOWBIT_DEVICE uint32_t funnel_shift_right(uint32_t low, uint32_t high, int shift) {
  return __funnelshift_r(low, high, static_cast<uint32_t>(shift));
}

// c + sum of the four products of signed bytes.  [9.7.1: dp4a]
LOWBIT_DEVICE int32_t dot4_s8(uint32_t a, uint32_t b, int32_t c) {
  return __dp4a(static_cast<int>(a), static_cast<int>(b), c);
}

// ---- fp32, as IEEE 754 says ------------------------------------------------------------------------------------

LOWBIT_DEVICE float multiply_add(float a, float b, float c) { return __fmaf_rn(a, b, c); }
LOWBIT_DEVICE float divide(float a, float b) { return __fdiv_rn(a, b); }
LOWBIT_DEVICE float square_root(float a) { return __fsqrt_rn(a); }
LOWBIT_DEVICE float minimum(float a, float b) { return fminf(a, b); }  // the number, if the other is NaN
LOWBIT_DEVICE float maximum(float a, float b) { return fmaxf(a, b); }
LOWBIT_DEVICE float absolute(float a) { return fabsf(a); }
// To the nearest, ties to even; NaN becomes 0, what is too large the largest.  [9.7.9.21: cvt.rni.s32.f32]
LOWBIT_DEVICE int32_t round_to_int(float a) { return __float2int_rn(a); }
LOWBIT_DEVICE float round_even(float a) { return rintf(a); }

// ---- pairs of 16-bit floats -----------------------------------------------------------------------------------

// Rounded once, to nearest even; NaN is 0x7fff. For bf16 all are fma: sm_80 has nothing else, and the bits are the
// same. [9.7.4: fma.rn, mul, add, sub .f16x2 and fma.rn.bf16x2]
template <class T>
LOWBIT_DEVICE uint32_t fma2(uint32_t a, uint32_t b, uint32_t c) {
  uint32_t d;
  if constexpr (__is_same(T, bf16_t))
    asm("fma.rn.bf16x2 %0, %1, %2, %3;" : "=r"(d) : "r"(a), "r"(b), "r"(c));
  else
    asm("fma.rn.f16x2 %0, %1, %2, %3;" : "=r"(d) : "r"(a), "r"(b), "r"(c));
  return d;
}
template <class T>
LOWBIT_DEVICE uint32_t mul2(uint32_t a, uint32_t b) {
  if constexpr (__is_same(T, bf16_t)) return fma2<T>(a, b, 0x80008000u);  // a b + -0
  uint32_t d;
  asm("mul.rn.f16x2 %0, %1, %2;" : "=r"(d) : "r"(a), "r"(b));
  return d;
}
template <class T>
LOWBIT_DEVICE uint32_t add2(uint32_t a, uint32_t b) {
  if constexpr (__is_same(T, bf16_t)) return fma2<T>(a, 0x3f803f80u, b);  // a 1 + b
  uint32_t d;
  asm("add.rn.f16x2 %0, %1, %2;" : "=r"(d) : "r"(a), "r"(b));
  return d;
}
template <class T>
LOWBIT_DEVICE uint32_t sub2(uint32_t a, uint32_t b) {
  if constexpr (__is_same(T, bf16_t)) return fma2<T>(b, 0xbf80bf80u, a);  // b -1 + a
  uint32_t d;
  asm("sub.rn.f16x2 %0, %1, %2;" : "=r"(d) : "r"(a), "r"(b));
  return d;
}

// [9.7.9.21: cvt.rn.bf16x2.f32, cvt.rn.f16x2.f32]
template <class T>
LOWBIT_DEVICE uint32_t pack2(float lo, float hi) {
  uint32_t d;
  if constexpr (__is_same(T, bf16_t))
    asm("cvt.rn.bf16x2.f32 %0, %1, %2;" : "=r"(d) : "f"(hi), "f"(lo));
  else
    asm("cvt.rn.f16x2.f32 %0, %1, %2;" : "=r"(d) : "f"(hi), "f"(lo));
  return d;
}

template <class T>
LOWBIT_DEVICE float to_float(uint16_t bits) {
  if constexpr (__is_same(T, bf16_t)) return as_float(static_cast<uint32_t>(bits) << 16);
  float f;
  asm("cvt.f32.f16 %0, %1;" : "=f"(f) : "h"(bits));
  return f;
}
template <class T>
LOWBIT_DEVICE float low(uint32_t pair) {
  return to_float<T>(static_cast<uint16_t>(pair));
}
template <class T>
LOWBIT_DEVICE float high(uint32_t pair) {
  if constexpr (__is_same(T, bf16_t)) return as_float(pair & 0xffff0000u);
  return to_float<T>(static_cast<uint16_t>(pair >> 16));
}

// ---- e4m3 (OCP FP8, finite only) --------------------------------------------------------------------------------

namespace detail {

// To nearest even; |x| > 448 gives 448, NaN 0x7f: what cvt.rn.satfinite does where it exists.
LOWBIT_DEVICE uint32_t f32_to_e4m3(float value) {
  const uint32_t bits = as_u32(value);
  const uint32_t magnitude = bits & 0x7fffffffu, sign = bits >> 24 & 0x80u;
  if (magnitude > 0x7f800000u) return 0x7fu;
  if (magnitude >= 0x43e00000u) return sign | 0x7eu;  // 448
  if (magnitude < 0x3c800000u)                        // 2^-6: fp32 addition rounds at 2^-9
    return sign | (as_u32(as_float(magnitude) + 16384.0f) - 0x46800000u);
  return sign | ((magnitude - (120u << 23) + 0x7ffffu + (magnitude >> 20 & 1u)) >> 20);
}

}  // namespace detail

// [9.7.9.21: cvt.rn.satfinite.e4m3x2.f32, sm_89 and later]
LOWBIT_DEVICE uint32_t pack_e4m3x2(float lo, float hi) {
#if LOWBIT_DEVICE_ARCH >= 890
  uint16_t d;
  asm("cvt.rn.satfinite.e4m3x2.f32 %0, %1, %2;" : "=h"(d) : "f"(hi), "f"(lo));
  return d;
#else
  return detail::f32_to_e4m3(lo) | detail::f32_to_e4m3(hi) << 8;
#endif
}

// Exact; NaN is 0x7fff.  [9.7.9.21: cvt.rn.f16x2.e4m3x2, sm_89 and later]
LOWBIT_DEVICE uint32_t e4m3x2_to_f16x2(uint16_t pair) {
#if LOWBIT_DEVICE_ARCH >= 890
  uint32_t d;
  asm("cvt.rn.f16x2.e4m3x2 %0, %1;" : "=r"(d) : "h"(pair));
  return d;
#else
  // A half is the byte with its exponent 8 too small. Subnormals come right by the product.
  const uint32_t spread = permute_bytes(pair, 0, 0x1404);  // the bytes, each in the top of a half
  const uint32_t magnitude = (spread & 0x7f007f00u) >> 1;
  const uint32_t nan = ((magnitude + 0x00800080u) & 0x40004000u) >> 14;                 // 1 in a half that is NaN
  const uint32_t value = mul2<f16_t>((spread & 0x80008000u) | magnitude, 0x5c005c00u);  // 2^8
  return (value & ~(nan << 15)) | nan * 0x7fffu;
#endif
}

}  // namespace lowbit::cuda
