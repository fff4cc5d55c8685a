// Advanced SIMD vocabulary: 4 fp32 lanes, 16 bytes. Every AArch64 processor has it.
#pragma once

#include <arm_neon.h>

#include "gemm/contract.h"

namespace lowbit::cpu {
namespace {

struct neon_vectors {
  using f32 = float32x4_t;
  using i32 = int32x4_t;
  static constexpr int lanes = 4, bytes = 16;
  // 24 sums + 6 of x + 1 of W of 32 registers; bytes are widened, which takes some more.
  static constexpr int mr = 6, nr = 4, mr_integer = 4, nr_integer = 4;
  static constexpr int64_t panels_at_once = 4;

  static f32 zero() { return vdupq_n_f32(0); }
  static f32 set1(float x) { return vdupq_n_f32(x); }
  static f32 load(const float* p) { return vld1q_f32(p); }
  static void store(float* p, f32 x) { vst1q_f32(p, x); }
  static f32 mul(f32 a, f32 b) { return vmulq_f32(a, b); }
  static f32 sub(f32 a, f32 b) { return vsubq_f32(a, b); }
  static f32 fma(f32 a, f32 b, f32 c) { return vfmaq_f32(c, a, b); }

  // out[0 .. 4) += the sums of the lanes of a, b, c, d: pairs, then pairs of pairs
  static void add_sum4(float* out, f32 a, f32 b, f32 c, f32 d) {
    vst1q_f32(out, vaddq_f32(vld1q_f32(out), vpaddq_f32(vpaddq_f32(a, b), vpaddq_f32(c, d))));
  }
  static void add_sum4(int32_t* out, i32 a, i32 b, i32 c, i32 d) {
    vst1q_s32(out, vaddq_s32(vld1q_s32(out), vpaddq_s32(vpaddq_s32(a, b), vpaddq_s32(c, d))));
  }

  static i32 zero_i32() { return vdupq_n_s32(0); }
  static i32 load_bytes(const void* p) { return vreinterpretq_s32_u8(vld1q_u8(static_cast<const uint8_t*>(p))); }

  // Both factors of a product are signed here: bytes lose 128, codes of fewer bits are positive as they are.
  template <int Bits>
  static constexpr int code_bias = Bits == 8 ? 128 : 0;
  template <int Bits>
  static i32 load_codes(const uint8_t* p) {
    const uint8x16_t codes = vld1q_u8(p);
    return vreinterpretq_s32_u8(Bits == 8 ? veorq_u8(codes, vdupq_n_u8(0x80)) : codes);
  }

  // The low or high nibbles of 64 bytes.
  static void nibbles(const uint8_t* line, bool high, uint8_t* out) {
    for (int i = 0; i < 64; i += 16) {
      const uint8x16_t x = vld1q_u8(line + i);
      vst1q_u8(out + i, high ? vshrq_n_u8(x, 4) : vandq_u8(x, vdupq_n_u8(15)));
    }
  }

  // sums += code x activation. Two products of a code of 7 bits fit 16 bits, 2 * 127 * 128 < 2^15; of a byte, one does.
  template <int Bits>
  static i32 dot_u8s8(i32 sums, i32 codes, i32 q) {
    const int8x16_t a = vreinterpretq_s8_s32(codes), b = vreinterpretq_s8_s32(q);
    const int16x8_t low = vmull_s8(vget_low_s8(a), vget_low_s8(b));
    if constexpr (Bits < 8) return vpadalq_s16(sums, vmlal_high_s8(low, a, b));
    return vpadalq_s16(vpadalq_s16(sums, low), vmull_high_s8(a, b));
  }
};

// The decoder's vocabulary: a whole line at a time, so that a table is 16 bytes for each byte of its values. Loads part
// the line into four registers: byte c of dword d is byte d of register c.
struct neon_lines {
  using f32 = float32x4x4_t;
  using i32 = uint8x16x4_t;
  struct table {
    uint8x16_t plane[4];  // byte i of each of the 16 values
  };
  static constexpr int lanes = 16, bytes = 64;

  static f32 set1(float x) {
    const float32x4_t v = vdupq_n_f32(x);
    return {{v, v, v, v}};
  }
  static f32 load(const float* p) { return {{vld1q_f32(p), vld1q_f32(p + 4), vld1q_f32(p + 8), vld1q_f32(p + 12)}}; }
  static void store(float* p, f32 x) {
    for (int i = 0; i < 4; ++i) vst1q_f32(p + 4 * i, x.val[i]);
  }
  template <class F>
  static f32 each(const F& f) {
    return {{f(0), f(1), f(2), f(3)}};
  }
  static f32 mul(f32 a, f32 b) {
    return each([&](int i) { return vmulq_f32(a.val[i], b.val[i]); });
  }
  static f32 sub(f32 a, f32 b) {
    return each([&](int i) { return vsubq_f32(a.val[i], b.val[i]); });
  }

  static f32 fma(f32 a, f32 b, f32 c) {
    return each([&](int i) { return vfmaq_f32(c.val[i], a.val[i], b.val[i]); });
  }

  static i32 load_bytes(const void* p) { return vld4q_u8(static_cast<const uint8_t*>(p)); }
  // Each byte on its own: what a dword's shift would bring in from the next one is ignored by all that follows.
  static i32 shift_right(i32 x, int count) {
    const int8x16_t left = vdupq_n_s8(static_cast<int8_t>(-count));
    return {{vshlq_u8(x.val[0], left), vshlq_u8(x.val[1], left), vshlq_u8(x.val[2], left), vshlq_u8(x.val[3], left)}};
  }

  static table table16(const float* values) {
    const uint8x16x4_t planes = vld4q_u8(reinterpret_cast<const uint8_t*>(values));
    return {{planes.val[0], planes.val[1], planes.val[2], planes.val[3]}};
  }
  template <int Shift>
  static f32 lookup16(const table& t, const i32& bytes) {
    const uint8x16_t index = vandq_u8(bytes.val[Shift / 8], vdupq_n_u8(15));
    const uint8x16_t b0 = vqtbl1q_u8(t.plane[0], index), b1 = vqtbl1q_u8(t.plane[1], index);
    const uint8x16_t b2 = vqtbl1q_u8(t.plane[2], index), b3 = vqtbl1q_u8(t.plane[3], index);
    const uint16x8_t low0 = vreinterpretq_u16_u8(vzip1q_u8(b0, b1)), low1 = vreinterpretq_u16_u8(vzip2q_u8(b0, b1));
    const uint16x8_t high0 = vreinterpretq_u16_u8(vzip1q_u8(b2, b3)), high1 = vreinterpretq_u16_u8(vzip2q_u8(b2, b3));
    return {{vreinterpretq_f32_u16(vzip1q_u16(low0, high0)), vreinterpretq_f32_u16(vzip2q_u16(low0, high0)),
             vreinterpretq_f32_u16(vzip1q_u16(low1, high1)), vreinterpretq_f32_u16(vzip2q_u16(low1, high1))}};
  }

  static uint8x16_t bytes_of(const i32& line, int shift) { return line.val[shift / 8]; }
  static f32 linear(uint8x16_t bytes) {
    const int8x16_t x = vreinterpretq_s8_u8(veorq_u8(bytes, vdupq_n_u8(0x80)));
    const int16x8_t low = vmovl_s8(vget_low_s8(x)), high = vmovl_high_s8(x);
    return {{vcvtq_f32_s32(vmovl_s16(vget_low_s16(low))), vcvtq_f32_s32(vmovl_high_s16(low)),
             vcvtq_f32_s32(vmovl_s16(vget_low_s16(high))), vcvtq_f32_s32(vmovl_high_s16(high))}};
  }
  // The magnitude, shifted, is an fp16: its conversion leaves denormals exact.
  static f32 minifloat(uint8x16_t bytes, int fp16_shift, float fp16_scale) {
    const int16x8_t shift = vdupq_n_s16(static_cast<int16_t>(fp16_shift));
    const uint8x16_t magnitude = vandq_u8(bytes, vdupq_n_u8(0x7f)), sign = vandq_u8(bytes, vdupq_n_u8(0x80));
    const auto half = [&](uint8x8_t m, uint8x8_t s) {
      return vreinterpretq_f16_u16(vorrq_u16(vshlq_u16(vmovl_u8(m), shift), vshll_n_u8(s, 8)));
    };
    const float16x8_t low = half(vget_low_u8(magnitude), vget_low_u8(sign));
    const float16x8_t high = half(vget_high_u8(magnitude), vget_high_u8(sign));
    return {{vmulq_n_f32(vcvt_f32_f16(vget_low_f16(low)), fp16_scale), vmulq_n_f32(vcvt_high_f32_f16(low), fp16_scale),
             vmulq_n_f32(vcvt_f32_f16(vget_low_f16(high)), fp16_scale),
             vmulq_n_f32(vcvt_high_f32_f16(high), fp16_scale)}};
  }
};

}  // namespace
}  // namespace lowbit::cpu
