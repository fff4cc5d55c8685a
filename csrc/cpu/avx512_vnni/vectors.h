// AVX512-VNNI vocabulary of the generic kernels: 16 fp32 lanes, 64 bytes.
#pragma once

#include "cpu/avx512_vnni/simd.h"
#include "cpu/generic/chunks.h"

namespace lowbit::cpu {
namespace {

struct avx512_vectors {
  using f32 = __m512;
  using i32 = __m512i;
  static constexpr int lanes = 16;
  // 24 sums + 6 of x + 1 of W of 32 registers.
  static constexpr int mr = 6, nr = 4, mr_integer = 6, nr_integer = 64;
  template <int Bits>
  static constexpr int integer_few = Bits == 4 ? 24 : 32;
  // Zen 4, 2048 x 4096, one thread, m = 64 and 256: int4 3.0 and 12.4 ms, with lines transposed to memory 3.2 and 12.0;
  // int8 2.8 and 12.1, and 3.2 and 10.8.
  static constexpr int integer_lanes = 128;
  static constexpr int64_t integer_columns = 1024;
  static constexpr int integer_rows = 12;  // 12 sums + 16 transposed lines + 1 decoded of 32 registers
  static constexpr int direct_sums = 24;
  static constexpr int64_t panels_at_once = 4;
  static constexpr bool scales_groups = false;

  static f32 zero() { return _mm512_setzero_ps(); }
  static f32 set1(float x) { return _mm512_set1_ps(x); }
  static f32 load(const float* p) { return _mm512_loadu_ps(p); }
  static f32 load_quad(const float* p) { return _mm512_broadcast_f32x4(_mm_loadu_ps(p)); }
  static f32 load_f16(const uint16_t* p) {
    return _mm512_cvtph_ps(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(p)));
  }
  // 1, 2 or 4 equal parts, part i of p[i * stride]
  template <int Parts>
  static f32 spread(const float* p, int64_t stride) {
    static_assert(Parts == 1 || Parts == 2 || Parts == 4);
    if constexpr (Parts == 1) return set1(*p);
    constexpr int part = 16 / Parts;
    f32 v = set1(p[0]);
    v = _mm512_mask_mov_ps(v, 0xffff << part & 0xffff, set1(p[stride]));
    if constexpr (Parts == 4) {
      v = _mm512_mask_mov_ps(v, 0xff00, set1(p[2 * stride]));
      v = _mm512_mask_mov_ps(v, 0xf000, set1(p[3 * stride]));
    }
    return v;
  }
  // In a register: GCC loads what it multiplies several times at each of them.
  LOWBIT_INLINE static void keep(f32& x) { __asm__("" : "+v"(x)); }
  static void store(float* p, f32 x) { _mm512_storeu_ps(p, x); }
  static f32 mul(f32 a, f32 b) { return _mm512_mul_ps(a, b); }
  static f32 sub(f32 a, f32 b) { return _mm512_sub_ps(a, b); }
  static f32 fma(f32 a, f32 b, f32 c) { return _mm512_fmadd_ps(a, b, c); }
  static f32 fma_at(f32 a, const float* b, f32 c) { return fma(a, load(b), c); }

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

  // ---- codes to numbers, 64 at a time: f(v, vector) in the order that lookup_column and others state ----

  static constexpr int bytes = 64;
  static constexpr int table_bytes = 32;  // the upper halves of 16 fp32

  static void put_table(const float* values, uint8_t* out) {
    uint16_t halves[16];
    for (int i = 0; i < 16; ++i) halves[i] = static_cast<uint16_t>(__builtin_bit_cast(uint32_t, values[i]) >> 16);
    std::memcpy(out, halves, sizeof halves);
  }
  static void put_wide_table(const float* values, uint8_t* out) { std::memcpy(out, values, 16 * sizeof(float)); }
  // The low four bits of each byte choose, those of part i in table of(i): a word's low five or six bits do.
  template <int Tables, class Table, class F>
  LOWBIT_INLINE static void look_up(i32 codes, const Table& of, const F& f) {
    static_assert(Tables == 1 || Tables == 2 || Tables == 4);
    const auto half = [&](int i) __attribute__((always_inline)) {
      return _mm256_load_si256(reinterpret_cast<const __m256i*>(of(i)));
    };
    const auto pair = [&](int i) __attribute__((always_inline)) {
      if constexpr (Tables == 1) return _mm512_broadcast_i64x4(half(0));
      return _mm512_inserti64x4(_mm512_castsi256_si512(half(i)), half(i + 1), 1);
    };
    const auto words = [&](i32 index) __attribute__((always_inline)) {
      if constexpr (Tables == 1) return _mm512_permutexvar_epi16(index, pair(0));
      const i32 part =
          _mm512_set_epi64(tables_of_words<Tables>(7), tables_of_words<Tables>(6), tables_of_words<Tables>(5),
                           tables_of_words<Tables>(4), tables_of_words<Tables>(3), tables_of_words<Tables>(2),
                           tables_of_words<Tables>(1), 0);
      index = _mm512_ternarylogic_epi32(index, _mm512_set1_epi16(15), part, 0xea);  // (index & 15) | part
      if constexpr (Tables == 2) return _mm512_permutexvar_epi16(index, pair(0));
      return _mm512_permutex2var_epi16(pair(0), index, pair(2));
    };
    const i32 odd = _mm512_set1_epi32(static_cast<int>(0xffff0000));
    const i32 first = words(codes), second = words(_mm512_srli_epi16(codes, 8));
    f(0, _mm512_castsi512_ps(_mm512_slli_epi32(first, 16)));
    f(1, _mm512_castsi512_ps(_mm512_and_si512(first, odd)));
    f(2, _mm512_castsi512_ps(_mm512_slli_epi32(second, 16)));
    f(3, _mm512_castsi512_ps(_mm512_and_si512(second, odd)));
  }
  // Four words at a time: 16 times the table that word's code belongs to.
  template <int Tables>
  static constexpr int64_t tables_of_words(int quad) {
    return quad * Tables / 8 * 0x0010001000100010;
  }
  static f32 table_of(const uint8_t* wide) { return _mm512_loadu_ps(wide); }
  template <class F>
  LOWBIT_INLINE static void wide_look_up(i32 codes, const uint8_t* table, const F& f) {
    wide_look_up(codes, table_of(table), f);
  }
  template <class F>
  LOWBIT_INLINE static void wide_look_up(i32 codes, f32 values, const F& f) {
    f(0, _mm512_permutexvar_ps(codes, values));  // reads the low four bits of each lane
    f(1, _mm512_permutexvar_ps(_mm512_srli_epi32(codes, 16), values));
    f(2, _mm512_permutexvar_ps(_mm512_srli_epi32(codes, 8), values));
    f(3, _mm512_permutexvar_ps(_mm512_srli_epi32(codes, 24), values));
  }
  static constexpr int lookup_column(int i, bool) { return i % 16 * 4 + i / 16 % 2 * 2 + i / 32; }

  // A code as the fraction of 2^23 + code, less `zero`.
  template <class F>
  LOWBIT_INLINE static void linear(i32 codes, f32 zero, const F& f) {
#pragma GCC unroll 4
    for (int c = 0; c < 4; ++c) {
      const i32 from = _mm512_add_epi8(_mm512_set4_epi32(12, 8, 4, 0), _mm512_set1_epi32(c));
      const i32 bits = _mm512_mask_shuffle_epi8(_mm512_set1_epi32(0x4b000000), 0x1111111111111111, codes, from);
      f(c, _mm512_sub_ps(_mm512_castsi512_ps(bits), zero));
    }
  }
  static constexpr int linear_column(int i) { return i % 16 * 4 + i / 16; }

  // 64 numbers in the order that these functions state.
  struct arrangement {
    i32 index[4];
    __mmask16 upper[4];  // from the second half

    explicit arrangement(const uint8_t* order) {
      for (int v = 0; v < 4; ++v) {
        index[v] = _mm512_cvtepu8_epi32(_mm_loadu_si128(reinterpret_cast<const __m128i*>(order + 16 * v)));
        upper[v] = _mm512_cmpge_epi32_mask(index[v], _mm512_set1_epi32(32));
      }
    }
    void put(const float* natural, float* out) const {
      const f32 a = load(natural), b = load(natural + 16), c = load(natural + 32), d = load(natural + 48);
      for (int v = 0; v < 4; ++v)  // indices count modulo 32
        store(out + 16 * v, _mm512_mask_mov_ps(_mm512_permutex2var_ps(a, index[v], b), upper[v],
                                               _mm512_permutex2var_ps(c, index[v], d)));
    }
  };

  // A byte at the top of a word, shifted, is an fp16 whose conversion leaves denormals exact.
  struct minifloat_bits {
    __m128i shift;
    i32 kept;
  };
  static minifloat_bits minifloat_layout(int fp16_shift) {
    const int down = 8 - fp16_shift;
    return {_mm_cvtsi32_si128(down), _mm512_set1_epi16(static_cast<int16_t>(0x8000 | 0x7f00 >> down))};
  }
  template <class F>
  LOWBIT_INLINE static void minifloat(i32 codes, const minifloat_bits& bits, const F& f) {
    const auto half = [&](i32 words) { return _mm512_and_si512(_mm512_sra_epi16(words, bits.shift), bits.kept); };
    const i32 even = half(_mm512_slli_epi16(codes, 8)), odd = half(codes);
    f(0, _mm512_cvtph_ps(_mm512_castsi512_si256(even)));
    f(1, _mm512_cvtph_ps(_mm512_castsi512_si256(odd)));
    f(2, _mm512_cvtph_ps(_mm512_extracti64x4_epi64(even, 1)));
    f(3, _mm512_cvtph_ps(_mm512_extracti64x4_epi64(odd, 1)));
  }
  static constexpr int minifloat_column(int i) { return i / 32 * 32 + i / 16 % 2 + i % 16 * 2; }

  LOWBIT_INLINE static void transpose(i32 rows[16]) { transpose_16x16(rows); }
  // Two quads of 4 lines: 16 bytes of each of them to a register, then the next 16.
  LOWBIT_INLINE static void load_quads(const uint8_t* p, i32 q[2]) {
    const auto rows = [&](int row) {
      const __m256i* from = reinterpret_cast<const __m256i*>(p + row * line_bytes);
      return _mm512_inserti64x4(_mm512_castsi256_si512(_mm256_loadu_si256(from)),
                                _mm256_loadu_si256(from + line_bytes / 32), 1);
    };
    const i32 a = rows(0), b = rows(2);
    q[0] = _mm512_shuffle_i32x4(a, b, 0x88);
    q[1] = _mm512_shuffle_i32x4(a, b, 0xdd);
  }
  static i32 set1_quad(const int32_t* p) {
    return _mm512_broadcast_i32x4(_mm_loadu_si128(reinterpret_cast<const __m128i*>(p)));
  }
  // The sums of the quads of a, then of b, c and d. Lane 4 i + j has that of quad i of the j-th, before they change
  // places.
  static i32 sum_quads(i32 a, i32 b, i32 c, i32 d) {
    const i32 ab = _mm512_add_epi32(_mm512_unpacklo_epi32(a, b), _mm512_unpackhi_epi32(a, b));
    const i32 cd = _mm512_add_epi32(_mm512_unpacklo_epi32(c, d), _mm512_unpackhi_epi32(c, d));
    const i32 sums = _mm512_add_epi32(_mm512_unpacklo_epi64(ab, cd), _mm512_unpackhi_epi64(ab, cd));
    return _mm512_permutexvar_epi32(_mm512_setr_epi32(0, 4, 8, 12, 1, 5, 9, 13, 2, 6, 10, 14, 3, 7, 11, 15), sums);
  }
  static i32 low_nibbles(i32 x) { return _mm512_and_si512(x, _mm512_set1_epi8(15)); }
  static i32 upper_nibbles(i32 x) { return _mm512_srli_epi16(x, 4); }  // above them, others
  static i32 high_nibbles(i32 x) { return low_nibbles(upper_nibbles(x)); }

  // 64 narrow codes to bytes, from the lines of their planes.
  LOWBIT_INLINE static i32 join(const uint8_t* low, const uint8_t* high, const plane_shifts& s) {
    const i32 a = _mm512_and_si512(_mm512_srl_epi16(load_bytes(low), _mm_cvtsi32_si128(s.low)),
                                   _mm512_set1_epi8(static_cast<char>(s.low_mask())));
    const i32 b = _mm512_and_si512(_mm512_srl_epi16(load_bytes(high), _mm_cvtsi32_si128(s.high)),
                                   _mm512_set1_epi8(static_cast<char>(s.high_mask())));
    const i32 code = _mm512_or_si512(a, _mm512_sll_epi16(b, _mm_cvtsi32_si128(s.low_bits)));
    return _mm512_sll_epi16(code, _mm_cvtsi32_si128(s.up));
  }
  static void join_planes(const uint8_t* low, const uint8_t* high, const plane_shifts& s, uint8_t* out) {
    store_bytes(out, join(low, high, s));
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
  static i32 dot_dword(i32 sums, i32 codes, const int32_t* q) {
    __asm__("vpdpbusd %2%{1to16%}, %1, %0" : "+v"(sums) : "v"(codes), "m"(*q));
    return sums;
  }
};

}  // namespace
}  // namespace lowbit::cpu
