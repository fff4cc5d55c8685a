// AVX512-VNNI vocabulary of the generic kernels: 16 fp32 lanes, 64 bytes.
#pragma once

#include "cpu/avx512_vnni/simd.h"
#include "cpu/generic/chunks.h"

namespace lowbit::cpu {
namespace {

struct avx512_vectors {
  using f32 = __m512;
  using i32 = __m512i;
  using table = __m512;
  static constexpr int lanes = 16;
  // 24 sums + 6 of x + 1 of W of 32 registers.
  static constexpr int mr = 6, nr = 4, mr_integer = 6, nr_integer = 64, integer_few = 32;
  static constexpr int direct_sums = 24;
  static constexpr int64_t panels_at_once = 4;

  static f32 zero() { return _mm512_setzero_ps(); }
  static f32 set1(float x) { return _mm512_set1_ps(x); }
  static f32 load(const float* p) { return _mm512_loadu_ps(p); }
  static f32 load_f16(const uint16_t* p) {
    return _mm512_cvtph_ps(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(p)));
  }
  // 2 or 4 equal parts, part i of p[i * stride]
  template <int Parts>
  static f32 spread(const float* p, int64_t stride) {
    static_assert(Parts == 2 || Parts == 4);
    constexpr int part = 16 / Parts;
    f32 v = set1(p[0]);
    v = _mm512_mask_mov_ps(v, 0xffff << part & 0xffff, set1(p[stride]));
    if constexpr (Parts == 4) {
      v = _mm512_mask_mov_ps(v, 0xff00, set1(p[2 * stride]));
      v = _mm512_mask_mov_ps(v, 0xf000, set1(p[3 * stride]));
    }
    return v;
  }
  static void store(float* p, f32 x) { _mm512_storeu_ps(p, x); }
  static f32 mul(f32 a, f32 b) { return _mm512_mul_ps(a, b); }
  static f32 sub(f32 a, f32 b) { return _mm512_sub_ps(a, b); }
  static f32 fma(f32 a, f32 b, f32 c) { return _mm512_fmadd_ps(a, b, c); }

  // The sums of the lanes of a, b, c, d: pairs and pairs of pairs, {a, b, c, d} in each 128-bit lane, then those lanes.
  static f32 sum4(f32 a, f32 b, f32 c, f32 d) {
    const f32 ab = _mm512_add_ps(_mm512_unpacklo_ps(a, b), _mm512_unpackhi_ps(a, b));
    const f32 cd = _mm512_add_ps(_mm512_unpacklo_ps(c, d), _mm512_unpackhi_ps(c, d));
    return _mm512_add_ps(_mm512_shuffle_ps(ab, cd, 0x44), _mm512_shuffle_ps(ab, cd, 0xee));
  }
  static void add_lanes4(float* out, f32 lanes4) {
    const __m256 lanes2 = _mm256_add_ps(_mm512_castps512_ps256(lanes4), _mm512_extractf32x8_ps(lanes4, 1));
    const __m128 sums = _mm_add_ps(_mm256_castps256_ps128(lanes2), _mm256_extractf128_ps(lanes2, 1));
    _mm_storeu_ps(out, _mm_add_ps(_mm_loadu_ps(out), sums));
  }
  static void add_sum4(float* out, f32 a, f32 b, f32 c, f32 d) { add_lanes4(out, sum4(a, b, c, d)); }
  static i32 zero_i32() { return _mm512_setzero_si512(); }
  static i32 set1_i32(int32_t x) { return _mm512_set1_epi32(x); }
  static i32 load_bytes(const void* p) { return _mm512_loadu_si512(p); }
  static void store_bytes(void* p, i32 x) { _mm512_storeu_si512(p, x); }
  static i32 add_i32(i32 a, i32 b) { return _mm512_add_epi32(a, b); }
  static i32 sub_i32(i32 a, i32 b) { return _mm512_sub_epi32(a, b); }
  static i32 mul_i32(i32 a, i32 b) { return _mm512_mullo_epi32(a, b); }
  static f32 to_f32(i32 x) { return _mm512_cvtepi32_ps(x); }
  static i32 shift_right(i32 x, int count) { return _mm512_srl_epi32(x, _mm_cvtsi32_si128(count)); }

  static table table16(const float* values) { return _mm512_loadu_ps(values); }
  template <int Shift>
  static f32 lookup16(table t, i32 dwords) {  // vpermps reads the low four bits of each lane
    return _mm512_permutexvar_ps(_mm512_srli_epi32(dwords, Shift), t);
  }
  static i32 bytes_of(i32 dwords, int shift) {
    return _mm512_and_si512(shift_right(dwords, shift), _mm512_set1_epi32(255));
  }
  static f32 linear(i32 bytes) { return _mm512_cvtepi32_ps(_mm512_sub_epi32(bytes, _mm512_set1_epi32(128))); }
  static f32 minifloat(i32 bytes, int fp16_shift, float fp16_scale) {
    return minifloat_to_f32(_mm512_cvtepi32_epi8(bytes), fp16_shift, fp16_scale);
  }

  LOWBIT_INLINE static void transpose(i32 rows[16]) { transpose_16x16(rows); }
  // Two quads of 4 rows, 4 lines apart: 16 bytes of each of them to a register, then the next 16.
  LOWBIT_INLINE static void load_quads(const uint8_t* p, i32 q[2]) {
    const auto rows = [&](int row) {
      const __m256i* from = reinterpret_cast<const __m256i*>(p + row * line_bytes);
      return _mm512_inserti64x4(_mm512_castsi256_si512(_mm256_loadu_si256(from)),
                                _mm256_loadu_si256(from + 4 * line_bytes / 32), 1);
    };
    const i32 a = rows(0), b = rows(8);
    q[0] = _mm512_shuffle_i32x4(a, b, 0x88);
    q[1] = _mm512_shuffle_i32x4(a, b, 0xdd);
  }
  static i32 set1_quad(const int32_t* p) {
    return _mm512_broadcast_i32x4(_mm_loadu_si128(reinterpret_cast<const __m128i*>(p)));
  }
  // Lane 4 i + j is the sum of quad i of the j-th.
  static i32 sum_quads(i32 a, i32 b, i32 c, i32 d) {
    const i32 ab = _mm512_add_epi32(_mm512_unpacklo_epi32(a, b), _mm512_unpackhi_epi32(a, b));
    const i32 cd = _mm512_add_epi32(_mm512_unpacklo_epi32(c, d), _mm512_unpackhi_epi32(c, d));
    return _mm512_add_epi32(_mm512_unpacklo_epi64(ab, cd), _mm512_unpackhi_epi64(ab, cd));
  }
  static i32 low_nibbles(i32 x) { return _mm512_and_si512(x, _mm512_set1_epi8(15)); }
  static i32 high_nibbles(i32 x) { return low_nibbles(_mm512_srli_epi16(x, 4)); }

  static void join_planes(const uint8_t* low, const uint8_t* high, const plane_shifts& s, uint8_t* out) {
    const i32 a = _mm512_and_si512(_mm512_srl_epi16(load_bytes(low), _mm_cvtsi32_si128(s.low)),
                                   _mm512_set1_epi8(static_cast<char>(s.low_mask())));
    const i32 b = _mm512_and_si512(_mm512_srl_epi16(load_bytes(high), _mm_cvtsi32_si128(s.high)),
                                   _mm512_set1_epi8(static_cast<char>(s.high_mask())));
    const i32 code = _mm512_or_si512(a, _mm512_sll_epi16(b, _mm_cvtsi32_si128(s.low_bits)));
    _mm512_storeu_si512(out, _mm512_sll_epi16(code, _mm_cvtsi32_si128(s.up)));
  }

  template <int Bits>
  static constexpr int code_parts = 1;
  template <int Bits>
  static constexpr int integer_sums = 16;
  template <int Bits>
  static constexpr int64_t word_products = 0;
  template <int Bits>
  static i32 code_part(i32 codes, int) {
    return codes;
  }
  template <int Bits>
  static i32 dot_u8s8(i32 sums, i32 codes, i32 q) {
    __asm__("vpdpbusd %2, %1, %0" : "+v"(sums) : "v"(codes), "v"(q));  // gcc 12 copies the intrinsic's sums
    return sums;
  }
};

}  // namespace
}  // namespace lowbit::cpu
