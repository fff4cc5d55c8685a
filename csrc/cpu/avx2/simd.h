// AVX2 + FMA vocabulary: 8 fp32 lanes, 32 bytes.
#pragma once

#include <immintrin.h>

#include "cpu/generic/chunks.h"

namespace lowbit::cpu {
namespace {

struct avx2_vectors {
  using f32 = __m256;
  using i32 = __m256i;
  struct table {
    __m256 low, high;  // entries 0-7, 8-15
  };
  static constexpr int lanes = 8;
  // 12 sums + 3 of x + 1 of W are the 16 registers.
  static constexpr int mr = 3, nr = 4, mr_integer = 6, nr_integer = 16, integer_few = 4;
  static constexpr int direct_sums = 8;
  static constexpr int64_t panels_at_once = 4;

  static f32 zero() { return _mm256_setzero_ps(); }
  static f32 set1(float x) { return _mm256_set1_ps(x); }
  static f32 load(const float* p) { return _mm256_loadu_ps(p); }
  static f32 load_f16(const uint16_t* p) {
    return _mm256_cvtph_ps(_mm_loadu_si128(reinterpret_cast<const __m128i*>(p)));
  }
  // 1 or 2 equal parts, part i of p[i * stride]
  template <int Parts>
  static f32 spread(const float* p, int64_t stride) {
    static_assert(Parts == 1 || Parts == 2);
    if constexpr (Parts == 1) return set1(*p);
    return _mm256_blend_ps(set1(p[0]), set1(p[stride]), 0xf0);
  }
  static void store(float* p, f32 x) { _mm256_storeu_ps(p, x); }
  static f32 mul(f32 a, f32 b) { return _mm256_mul_ps(a, b); }
  static f32 sub(f32 a, f32 b) { return _mm256_sub_ps(a, b); }
  static f32 fma(f32 a, f32 b, f32 c) { return _mm256_fmadd_ps(a, b, c); }

  // out[0 .. 4) += the sums of the lanes of a, b, c, d, in a fixed tree
  static void add_sum4(float* out, f32 a, f32 b, f32 c, f32 d) {
    const __m256 pairs = _mm256_hadd_ps(_mm256_hadd_ps(a, b), _mm256_hadd_ps(c, d));
    const __m128 sums = _mm_add_ps(_mm256_castps256_ps128(pairs), _mm256_extractf128_ps(pairs, 1));
    _mm_storeu_ps(out, _mm_add_ps(_mm_loadu_ps(out), sums));
  }
  static i32 zero_i32() { return _mm256_setzero_si256(); }
  static i32 set1_i32(int32_t x) { return _mm256_set1_epi32(x); }
  static i32 load_bytes(const void* p) { return _mm256_loadu_si256(static_cast<const __m256i*>(p)); }
  static void store_bytes(void* p, i32 x) { _mm256_storeu_si256(static_cast<__m256i*>(p), x); }
  static i32 add_i32(i32 a, i32 b) { return _mm256_add_epi32(a, b); }
  static i32 sub_i32(i32 a, i32 b) { return _mm256_sub_epi32(a, b); }
  static i32 mul_i32(i32 a, i32 b) { return _mm256_mullo_epi32(a, b); }
  static f32 to_f32(i32 x) { return _mm256_cvtepi32_ps(x); }
  static i32 shift_right(i32 x, int count) { return _mm256_srl_epi32(x, _mm_cvtsi32_si128(count)); }

  static table table16(const float* values) { return {_mm256_loadu_ps(values), _mm256_loadu_ps(values + 8)}; }
  // Bits Shift .. Shift + 3 of each dword choose: three of them the lane of both halves, the fourth the half.
  template <int Shift>
  static f32 lookup16(const table& t, i32 dwords) {
    const i32 index = _mm256_srli_epi32(dwords, Shift);
    return _mm256_blendv_ps(_mm256_permutevar8x32_ps(t.low, index), _mm256_permutevar8x32_ps(t.high, index),
                            _mm256_castsi256_ps(_mm256_slli_epi32(dwords, 28 - Shift)));
  }
  static i32 bytes_of(i32 dwords, int shift) {
    return _mm256_and_si256(shift_right(dwords, shift), _mm256_set1_epi32(255));
  }
  static f32 linear(i32 bytes) { return _mm256_cvtepi32_ps(_mm256_sub_epi32(bytes, _mm256_set1_epi32(128))); }
  // Magnitude bits moved to fp32's place with exponent e0 = 1 more than a denormal's: subtracting 2^e0 leaves denormals
  // exact, the others only need their exponent.
  static f32 minifloat(i32 bytes, int fp16_shift, float fp16_scale) {
    const __m128i shift = _mm_cvtsi32_si128(fp16_shift + 13);
    const i32 magnitude = _mm256_sll_epi32(_mm256_and_si256(bytes, _mm256_set1_epi32(0x7f)), shift);
    const i32 exponent = _mm256_and_si256(magnitude, _mm256_set1_epi32(0x7f800000));
    const i32 denormal = _mm256_cmpeq_epi32(exponent, _mm256_setzero_si256());
    const f32 rebias = _mm256_set1_ps(fp16_scale);  // 2^(15 - bias): the exponent still lacks 2^112
    const f32 one = _mm256_castsi256_ps(_mm256_set1_epi32(113 << 23));
    const f32 small =
        _mm256_sub_ps(_mm256_castsi256_ps(_mm256_add_epi32(magnitude, _mm256_set1_epi32(113 << 23))), one);
    const f32 normal = _mm256_castsi256_ps(_mm256_add_epi32(magnitude, _mm256_set1_epi32(112 << 23)));
    const f32 value = _mm256_mul_ps(_mm256_blendv_ps(normal, small, _mm256_castsi256_ps(denormal)), rebias);
    const i32 sign = _mm256_slli_epi32(_mm256_and_si256(bytes, _mm256_set1_epi32(0x80)), 24);
    return _mm256_or_ps(value, _mm256_castsi256_ps(sign));
  }

  // Rows to columns of an 8 x 8 block of dwords, in place.
  LOWBIT_INLINE static void transpose(i32 r[8]) {
    i32 t[8];
    for (int i = 0; i < 8; i += 2) {  // pairs of dwords
      t[i] = _mm256_unpacklo_epi32(r[i], r[i + 1]);
      t[i + 1] = _mm256_unpackhi_epi32(r[i], r[i + 1]);
    }
    for (int i = 0; i < 8; i += 4) {  // four rows' dwords
      r[i] = _mm256_unpacklo_epi64(t[i], t[i + 2]);
      r[i + 1] = _mm256_unpackhi_epi64(t[i], t[i + 2]);
      r[i + 2] = _mm256_unpacklo_epi64(t[i + 1], t[i + 3]);
      r[i + 3] = _mm256_unpackhi_epi64(t[i + 1], t[i + 3]);
    }
    for (int i = 0; i < 4; ++i) {
      t[i] = _mm256_permute2x128_si256(r[i], r[i + 4], 0x20);
      t[i + 4] = _mm256_permute2x128_si256(r[i], r[i + 4], 0x31);
    }
    for (int i = 0; i < 8; ++i) r[i] = t[i];
  }
  // Two quads of 2 rows, 4 lines apart: 16 bytes of each of them to a register, then the next 16.
  LOWBIT_INLINE static void load_quads(const uint8_t* p, i32 q[2]) {
    const i32 a = load_bytes(p), b = load_bytes(p + 4 * line_bytes);
    q[0] = _mm256_permute2x128_si256(a, b, 0x20);
    q[1] = _mm256_permute2x128_si256(a, b, 0x31);
  }
  static i32 set1_quad(const int32_t* p) {
    return _mm256_broadcastsi128_si256(_mm_loadu_si128(reinterpret_cast<const __m128i*>(p)));
  }
  // Lane 4 i + j is the sum of quad i of the j-th.
  static i32 sum_quads(i32 a, i32 b, i32 c, i32 d) {
    const i32 ab = _mm256_add_epi32(_mm256_unpacklo_epi32(a, b), _mm256_unpackhi_epi32(a, b));
    const i32 cd = _mm256_add_epi32(_mm256_unpacklo_epi32(c, d), _mm256_unpackhi_epi32(c, d));
    return _mm256_add_epi32(_mm256_unpacklo_epi64(ab, cd), _mm256_unpackhi_epi64(ab, cd));
  }
  static i32 low_nibbles(i32 x) { return _mm256_and_si256(x, _mm256_set1_epi8(15)); }
  static i32 high_nibbles(i32 x) { return low_nibbles(_mm256_srli_epi16(x, 4)); }

  // 64 narrow codes to bytes, from the lines of their planes.
  static void join_planes(const uint8_t* low, const uint8_t* high, const plane_shifts& s, uint8_t* out) {
    const __m128i low_shift = _mm_cvtsi32_si128(s.low), high_shift = _mm_cvtsi32_si128(s.high);
    const i32 low_mask = _mm256_set1_epi8(static_cast<char>(s.low_mask()));
    const i32 high_mask = _mm256_set1_epi8(static_cast<char>(s.high_mask()));
    for (int i = 0; i < 64; i += 32) {
      const i32 a = _mm256_and_si256(_mm256_srl_epi16(load_bytes(low + i), low_shift), low_mask);
      const i32 b = _mm256_and_si256(_mm256_srl_epi16(load_bytes(high + i), high_shift), high_mask);
      const i32 code = _mm256_or_si256(a, _mm256_sll_epi16(b, _mm_cvtsi32_si128(s.low_bits)));
      _mm256_storeu_si256(reinterpret_cast<i32*>(out + i), _mm256_sll_epi16(code, _mm_cvtsi32_si128(s.up)));
    }
  }

  // Codes below 8 bits fit pmaddubsw: 2 * 127 * 128 < 2^15. 8-bit ones do not: they are multiplied as words, bytes 0
  // and 2 of a dword, then 1 and 3.
  template <int Bits>
  static constexpr int code_parts = Bits < 8 ? 1 : 2;
  template <int Bits>
  static constexpr int integer_sums = Bits == 4 ? 4 : 8;
  template <int Bits>
  static i32 code_part(i32 codes, int part) {
    if (Bits < 8) return codes;
    return part ? _mm256_srli_epi16(codes, 8) : _mm256_and_si256(codes, _mm256_set1_epi16(255));
  }
  template <int Bits>
  static i32 dot_u8s8(i32 sums, i32 codes, i32 q) {
    if (Bits < 8) return add_to(sums, _mm256_madd_epi16(_mm256_maddubs_epi16(codes, q), _mm256_set1_epi16(1)));
    return add_to(sums, _mm256_madd_epi16(codes, q));
  }
  // Those of 4 bits add up as words: 8 pairs of them are at most 16 * 15 * 128 < 2^15.
  template <int Bits>
  static constexpr int64_t word_products = Bits == 4 ? 8 : 0;
  static i32 dot_words(i32 words, i32 codes, i32 q) {
    words = _mm256_add_epi16(words, _mm256_maddubs_epi16(codes, q));
    in_order(words);
    return words;
  }
  static i32 add_words(i32 sums, i32 words) { return add_to(sums, _mm256_madd_epi16(words, _mm256_set1_epi16(1))); }

 private:
  // Compilers know that integers may be added in any order: gcc 12 makes trees of sums and spills their products.
  static void in_order(i32& sums) { __asm__("" : "+x"(sums)); }
  static i32 add_to(i32 sums, i32 products) {
    sums = _mm256_add_epi32(sums, products);
    in_order(sums);
    return sums;
  }
};

}  // namespace
}  // namespace lowbit::cpu
