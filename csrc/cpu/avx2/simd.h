// AVX2 + FMA vocabulary: 8 fp32 lanes, 32 bytes.
#pragma once

#include <immintrin.h>

#include "cpu/generic/chunks.h"

namespace lowbit::cpu {
namespace {

struct avx2_vectors {
  using f32 = __m256;
  using i32 = __m256i;
  static constexpr int lanes = 8;
  // 12 sums + 3 of x + 1 of W are the 16 registers.
  static constexpr int mr = 3, nr = 4, mr_integer = 6, nr_integer = 16;
  template <int Bits>
  static constexpr int integer_few = 4;
  static constexpr int integer_lanes = 0, integer_rows = 4;
  // Some rows of W after the others: 8 KB of int8, so that prefetch_codes asks for a line one pass before its use.
  static constexpr int64_t integer_columns = 512;
  static constexpr int direct_sums = 8;
  static constexpr int64_t panels_at_once = 4;
  static constexpr bool scales_groups = true;

  static f32 zero() { return _mm256_setzero_ps(); }
  static f32 set1(float x) { return _mm256_set1_ps(x); }
  static f32 load(const float* p) { return _mm256_loadu_ps(p); }
  static f32 load_quad(const float* p) { return _mm256_broadcast_ps(reinterpret_cast<const __m128*>(p)); }
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
  // In a register: GCC loads what it multiplies several times at each of them.
  LOWBIT_INLINE static void keep(f32& x) { __asm__("" : "+x"(x)); }
  static void store(float* p, f32 x) { _mm256_storeu_ps(p, x); }
  static f32 mul(f32 a, f32 b) { return _mm256_mul_ps(a, b); }
  static f32 sub(f32 a, f32 b) { return _mm256_sub_ps(a, b); }
  static f32 fma(f32 a, f32 b, f32 c) { return _mm256_fmadd_ps(a, b, c); }
  // The factor from memory at each use: GCC loads it once for several rows and spills it.
  LOWBIT_INLINE static f32 fma_at(f32 a, const float* b, f32 c) {
    __asm__("vfmadd231ps %2, %1, %0" : "+x"(c) : "x"(a), "m"(*reinterpret_cast<const __m256_u*>(b)));
    return c;
  }

  // The sums of the lanes of a, b, c, d: pairs of pairs, {a, b, c, d} in each half, then the halves.
  static f32 sum4(f32 a, f32 b, f32 c, f32 d) {
    const f32 ab = _mm256_add_ps(_mm256_unpacklo_ps(a, b), _mm256_unpackhi_ps(a, b));
    const f32 cd = _mm256_add_ps(_mm256_unpacklo_ps(c, d), _mm256_unpackhi_ps(c, d));
    return _mm256_add_ps(_mm256_shuffle_ps(ab, cd, 0x44), _mm256_shuffle_ps(ab, cd, 0xee));
  }
  static __m128 sum_halves(f32 lanes4) {
    return _mm_add_ps(_mm256_castps256_ps128(lanes4), _mm256_extractf128_ps(lanes4, 1));
  }
  static void add_lanes4(float* out, f32 lanes4) {
    _mm_storeu_ps(out, _mm_add_ps(_mm_loadu_ps(out), sum_halves(lanes4)));
  }
  static void add_lanes4(float* out, int64_t stride, f32 lanes4) {
    alignas(16) float sums[4];
    _mm_store_ps(sums, sum_halves(lanes4));
    for (int i = 0; i < 4; ++i) out[i * stride] += sums[i];
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

  // ---- codes to numbers, 32 at a time: f(v, vector) in the order that lookup_column and others state ----

  static constexpr int bytes = 32;
  static constexpr int table_bytes = 32;  // bytes 2 of 16 fp32, then bytes 3

  static void put_table(const float* values, uint8_t* out) {
    for (int i = 0; i < 16; ++i) {
      const uint32_t bits = __builtin_bit_cast(uint32_t, values[i]);
      out[i] = static_cast<uint8_t>(bits >> 16), out[16 + i] = static_cast<uint8_t>(bits >> 24);
    }
  }
  static void put_wide_table(const float* values, uint8_t* out) {  // all four bytes
    for (int i = 0; i < 64; ++i)
      out[i] = static_cast<uint8_t>(__builtin_bit_cast(uint32_t, values[i % 16]) >> i / 16 * 8);
  }
  LOWBIT_INLINE static i32 both_halves(const uint8_t* p) {
    return _mm256_broadcastsi128_si256(_mm_loadu_si128(reinterpret_cast<const __m128i*>(p)));
  }
  // The low four bits of each byte choose, those of half i in table of(i).
  template <int Tables, class Table, class F>
  LOWBIT_INLINE static void look_up(i32 codes, const Table& of, const F& f) {
    const auto plane = [&](int at) __attribute__((always_inline)) {
      if constexpr (Tables == 1) return both_halves(of(0) + at);
      return _mm256_loadu2_m128i(reinterpret_cast<const __m128i*>(of(1) + at),
                                 reinterpret_cast<const __m128i*>(of(0) + at));
    };
    const i32 index = low_nibbles(codes);
    const i32 low = _mm256_shuffle_epi8(plane(0), index), high = _mm256_shuffle_epi8(plane(16), index);
    const i32 first = _mm256_unpacklo_epi8(low, high), second = _mm256_unpackhi_epi8(low, high);
    const i32 odd = _mm256_set1_epi32(static_cast<int>(0xffff0000));
    f(0, _mm256_castsi256_ps(_mm256_slli_epi32(first, 16)));
    f(1, _mm256_castsi256_ps(_mm256_and_si256(first, odd)));
    f(2, _mm256_castsi256_ps(_mm256_slli_epi32(second, 16)));
    f(3, _mm256_castsi256_ps(_mm256_and_si256(second, odd)));
  }
  template <class F>
  LOWBIT_INLINE static void wide_look_up(i32 codes, const uint8_t* table, const F& f) {
    const i32 index = low_nibbles(codes);
    const auto plane = [&](int i) { return _mm256_shuffle_epi8(both_halves(table + 16 * i), index); };
    const i32 b0 = plane(0), b1 = plane(1), b2 = plane(2), b3 = plane(3);
    const i32 low0 = _mm256_unpacklo_epi8(b0, b1), low1 = _mm256_unpackhi_epi8(b0, b1);
    const i32 high0 = _mm256_unpacklo_epi8(b2, b3), high1 = _mm256_unpackhi_epi8(b2, b3);
    f(0, _mm256_castsi256_ps(_mm256_unpacklo_epi16(low0, high0)));
    f(1, _mm256_castsi256_ps(_mm256_unpackhi_epi16(low0, high0)));
    f(2, _mm256_castsi256_ps(_mm256_unpacklo_epi16(low1, high1)));
    f(3, _mm256_castsi256_ps(_mm256_unpackhi_epi16(low1, high1)));
  }
  static constexpr int lookup_column(int i, bool exact) {  // words are parted into even and odd ones, or not
    return exact ? i / 16 * 8 + i / 8 % 2 + i % 8 / 4 * 16 + i % 4 * 2 : linear_column(i);
  }

  // Codes under the exponent of 2^23, less `zero`.
  template <class F>
  LOWBIT_INLINE static void linear(i32 codes, f32 zero, const F& f) {
    const i32 none = _mm256_setzero_si256(), exponent = _mm256_set1_epi16(0x4b00);
    const auto number = [&](i32 bits) { return _mm256_sub_ps(_mm256_castsi256_ps(bits), zero); };
    const i32 first = _mm256_unpacklo_epi8(codes, none), second = _mm256_unpackhi_epi8(codes, none);
    f(0, number(_mm256_unpacklo_epi16(first, exponent)));
    f(1, number(_mm256_unpackhi_epi16(first, exponent)));
    f(2, number(_mm256_unpacklo_epi16(second, exponent)));
    f(3, number(_mm256_unpackhi_epi16(second, exponent)));
  }
  static constexpr int linear_column(int i) { return i / 8 * 4 + i % 8 / 4 * 16 + i % 4; }

  // 32 numbers in the order that these functions state: of two vectors, each of eight.
  struct arrangement {
    i32 lane[4];
    f32 second[4];
    int from[4][2];

    explicit arrangement(const uint8_t* order) {
      for (int v = 0; v < 4; ++v, order += 8) {
        int32_t lanes_of[8], mask[8];
        from[v][0] = from[v][1] = order[0] & ~7;
        for (int i = 1; i < 8; ++i)
          if ((order[i] & ~7) != from[v][0]) from[v][1] = order[i] & ~7;
        for (int i = 0; i < 8; ++i) lanes_of[i] = order[i] & 7, mask[i] = (order[i] & ~7) != from[v][0] ? -1 : 0;
        lane[v] = load_bytes(lanes_of), second[v] = _mm256_castsi256_ps(load_bytes(mask));
      }
    }
    void put(const float* natural, float* out) const {
      for (int v = 0; v < 4; ++v)
        store(out + 8 * v, _mm256_blendv_ps(_mm256_permutevar8x32_ps(load(natural + from[v][0]), lane[v]),
                                            _mm256_permutevar8x32_ps(load(natural + from[v][1]), lane[v]), second[v]));
    }
  };

  // A byte at the top of a word, shifted, is an fp16 whose conversion leaves denormals exact.
  struct minifloat_bits {
    __m128i shift;
    i32 kept;
  };
  static minifloat_bits minifloat_layout(int fp16_shift) {
    const int down = 8 - fp16_shift;
    return {_mm_cvtsi32_si128(down), _mm256_set1_epi16(static_cast<int16_t>(0x8000 | 0x7f00 >> down))};
  }
  template <class F>
  LOWBIT_INLINE static void minifloat(i32 codes, const minifloat_bits& bits, const F& f) {
    const auto half = [&](i32 words) { return _mm256_and_si256(_mm256_sra_epi16(words, bits.shift), bits.kept); };
    const i32 even = half(_mm256_slli_epi16(codes, 8)), odd = half(codes);
    f(0, _mm256_cvtph_ps(_mm256_castsi256_si128(even)));
    f(1, _mm256_cvtph_ps(_mm256_castsi256_si128(odd)));
    f(2, _mm256_cvtph_ps(_mm256_extracti128_si256(even, 1)));
    f(3, _mm256_cvtph_ps(_mm256_extracti128_si256(odd, 1)));
  }
  static constexpr int minifloat_column(int i) { return i / 16 * 16 + i / 8 % 2 + i % 8 * 2; }

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
  // Two quads of 2 lines: 16 bytes of each of them to a register, then the next 16.
  LOWBIT_INLINE static void load_quads(const uint8_t* p, i32 q[2]) {
    const i32 a = load_bytes(p), b = load_bytes(p + line_bytes);
    q[0] = _mm256_permute2x128_si256(a, b, 0x20);
    q[1] = _mm256_permute2x128_si256(a, b, 0x31);
  }
  static i32 set1_quad(const int32_t* p) {
    return _mm256_broadcastsi128_si256(_mm_loadu_si128(reinterpret_cast<const __m128i*>(p)));
  }
  // The sums of the quads of a, then of b, c and d. Lane 4 i + j has that of quad i of the j-th, before they change
  // places.
  static i32 sum_quads(i32 a, i32 b, i32 c, i32 d) {
    const i32 ab = _mm256_add_epi32(_mm256_unpacklo_epi32(a, b), _mm256_unpackhi_epi32(a, b));
    const i32 cd = _mm256_add_epi32(_mm256_unpacklo_epi32(c, d), _mm256_unpackhi_epi32(c, d));
    const i32 sums = _mm256_add_epi32(_mm256_unpacklo_epi64(ab, cd), _mm256_unpackhi_epi64(ab, cd));
    return _mm256_permutevar8x32_epi32(sums, _mm256_setr_epi32(0, 4, 1, 5, 2, 6, 3, 7));
  }
  static i32 low_nibbles(i32 x) { return _mm256_and_si256(x, _mm256_set1_epi8(15)); }
  static i32 upper_nibbles(i32 x) { return _mm256_srli_epi16(x, 4); }  // above them, others
  static i32 high_nibbles(i32 x) { return low_nibbles(upper_nibbles(x)); }

  // Narrow codes to bytes, from the lines of their planes: 32, and 64.
  LOWBIT_INLINE static i32 join(const uint8_t* low, const uint8_t* high, const plane_shifts& s) {
    const i32 low_mask = _mm256_set1_epi8(static_cast<char>(s.low_mask()));
    const i32 high_mask = _mm256_set1_epi8(static_cast<char>(s.high_mask()));
    const i32 a = _mm256_and_si256(_mm256_srl_epi16(load_bytes(low), _mm_cvtsi32_si128(s.low)), low_mask);
    const i32 b = _mm256_and_si256(_mm256_srl_epi16(load_bytes(high), _mm_cvtsi32_si128(s.high)), high_mask);
    const i32 code = _mm256_or_si256(a, _mm256_sll_epi16(b, _mm_cvtsi32_si128(s.low_bits)));
    return _mm256_sll_epi16(code, _mm_cvtsi32_si128(s.up));
  }
  static void join_planes(const uint8_t* low, const uint8_t* high, const plane_shifts& s, uint8_t* out) {
    for (int i = 0; i < 64; i += 32) store_bytes(out + i, join(low + i, high + i, s));
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
