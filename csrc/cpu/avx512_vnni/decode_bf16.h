// Packed codes to registers of bf16.
//
// The instructions stand by name: the files of this level are not compiled for AVX512-BF16 and AVX512-VBMI, which the
// kernel's row asks for.
//
// Order inside a chunk of 64 columns. 4-bit: a shift of words brings down every second column: the even ones, then
// the odd ones. 8-bit: as fp32 (generic/decode_f32.h).
#pragma once

#include "cpu/avx512_vnni/vectors.h"

namespace lowbit::cpu {
namespace {

// sums += a[2 i] b[2 i] + a[2 i + 1] b[2 i + 1]; denormals are zero.
LOWBIT_INLINE __m512 dot_bf16(__m512 sums, __m512i a, __m512i b) {
  __asm__("vdpbf16ps %2, %1, %0" : "+v"(sums) : "v"(a), "vm"(b));
  return sums;
}
LOWBIT_INLINE __m512i round_bf16(__m512 low, __m512 high) {  // 32 bf16: those of `low` first
  __m512i out;
  __asm__("vcvtne2ps2bf16 %2, %1, %0" : "=v"(out) : "v"(high), "v"(low));
  return out;
}

// In every byte, that of the 128 in two registers which its low 7 bits name.
LOWBIT_INLINE __m512i bytes_of_two(__m512i low, __m512i which, __m512i high) {
  __asm__("vpermi2b %2, %1, %0" : "+v"(which) : "v"(low), "vm"(high));
  return which;
}

// Four registers of a line of 4-bit codes; lookup(words, half) reads their low four bits.
template <class Lookup, class F>
LOWBIT_INLINE void nibbles(__m512i codes, const Lookup& lookup, const F& f) {
  f(0, lookup(codes, 0));
  f(1, lookup(_mm512_srli_epi16(codes, 8), 0));
  f(2, lookup(_mm512_srli_epi16(codes, 4), 1));
  f(3, lookup(_mm512_srli_epi16(codes, 12), 1));
}

// ---- values ----

// 8-bit codes whose groups end at multiples of 128 columns: value - zero point, which bf16 holds exactly; sums get the
// scales. (VCVTNE2PS2BF16, which a scaled weight needs, takes as long as three multiply-adds. 4-bit codes get their
// scale with the table, one VCVTNE2PS2BF16 for a line, which is less than scaling the sums of a group.)
template <recipe Recipe, int Unit, offset Offset, int64_t Depth,
          bool ScalesSums = Unit == 128 && Recipe != recipe::lut16>
class bf16_decoder {
 public:
  static constexpr int64_t block_k = 64;
  static constexpr bool scales_sums = true;

  explicit bf16_decoder(const packed_view& weights) : w(weights) {
    for (int i = 0; i < 32; ++i) tops[i] = static_cast<uint16_t>(2 * i + 1);
    for (int i = 0; i < 128; ++i) {
      const uint32_t bits = __builtin_bit_cast(uint32_t, w.format->values[i]);
      low_bytes[i] = static_cast<uint8_t>(bits >> 16), high_bytes[i] = static_cast<uint8_t>(bits >> 24);
      // words d and 16 + d of register r: bytes 2 r and 2 r + 1 of dword d, the low and the high one
      pairs[i / 64][i % 64] = static_cast<uint8_t>(i % 2 * 64 + i / 2 % 16 * 4 + i / 32);
    }
  }

  void begin(int64_t panel, int64_t column, int64_t columns) {
    run_scales<avx512_vectors, Unit, Offset>(w, panel, column, columns, scales, offsets);
    lines = w.codes + w.shape.block_offset(panel, column / block_k);
  }

  template <class F>
  LOWBIT_INLINE void row(int64_t block, int r, const F& f) const {
    const uint8_t* line = lines + (block * panel_rows + r) * line_bytes;
    prefetch_codes(line);
    const __m512i codes = _mm512_loadu_si512(line);
    if constexpr (Recipe == recipe::linear)
      integers(codes, _mm512_set1_ps(offsets[block * block_k / Unit][r] + (0x1p15f + 128)), f);
    else
      minifloats(codes, f);
  }

  // The scales of 16 rows from a column of the depth on.
  const float* scales_at(int64_t column) const { return scales[column / Unit]; }

 private:
  const packed_view& w;
  const uint8_t* lines = nullptr;
  alignas(64) uint8_t low_bytes[128], high_bytes[128];  // of the bf16 of 8-bit floats without their sign
  alignas(64) uint8_t pairs[2][64];
  alignas(64) uint16_t tops[32];
  alignas(64) float scales[Depth / Unit][panel_rows];
  alignas(64) float offsets[Offset == offset::none ? 1 : Depth / Unit][panel_rows];

  // Two tables of bytes, and the sign.
  template <class F>
  LOWBIT_INLINE void minifloats(__m512i codes, const F& f) const {
    const __m512i low = bytes_of_two(_mm512_load_si512(low_bytes), codes, _mm512_load_si512(low_bytes + 64));
    const __m512i magnitude = bytes_of_two(_mm512_load_si512(high_bytes), codes, _mm512_load_si512(high_bytes + 64));
    const __m512i high = _mm512_ternarylogic_epi32(magnitude, codes, _mm512_set1_epi8(-128), 0xf8);
    f(0, bytes_of_two(low, _mm512_load_si512(pairs[0]), high));
    f(1, bytes_of_two(low, _mm512_load_si512(pairs[1]), high));
  }

  // A byte of every dword becomes the fraction of 2^15 + code in fp32. Less the zero, its top 16 bits are all of it.
  template <class F>
  LOWBIT_INLINE void integers(__m512i codes, __m512 zero, const F& f) const {
    const auto value = [&](int c) __attribute__((always_inline)) {
      const __m512i from = _mm512_add_epi8(_mm512_set4_epi32(0x0c00, 0x0800, 0x0400, 0), _mm512_set1_epi32(c << 8));
      const __m512i code = _mm512_mask_shuffle_epi8(_mm512_set1_epi32(0x47000000), 0x2222222222222222, codes, from);
      return _mm512_castps_si512(_mm512_sub_ps(_mm512_castsi512_ps(code), zero));
    };
    const __m512i top_words = _mm512_load_si512(tops);
    f(0, _mm512_permutex2var_epi16(value(0), top_words, value(1)));
    f(1, _mm512_permutex2var_epi16(value(2), top_words, value(3)));
  }
};

// ---- weights ----

// All others: weights, scaled in fp32 and rounded.
template <recipe Recipe, int Unit, offset Offset, int64_t Depth>
class bf16_decoder<Recipe, Unit, Offset, Depth, false> {
 public:
  static constexpr int64_t block_k = Recipe == recipe::lut16 ? 128 : 64;
  static constexpr bool scales_sums = false;

  explicit bf16_decoder(const packed_view& weights) : w(weights) {
    values = _mm512_setzero_ps();
    if (Recipe == recipe::lut16) values = _mm512_loadu_ps(w.format->values);
    if (tables_by_scale()) {
      for (int i = 0; i < 256; ++i) {
        const uint8_t code = static_cast<uint8_t>(i);
        const __m512 v =
            _mm512_mul_ps(values, _mm512_set1_ps(w.scale_dtype == LOWBIT_E8M0 ? finite_e8m0(code) : finite_e4m3(code)));
        _mm256_store_si256(reinterpret_cast<__m256i*>(table_of_scale[i]), _mm512_castsi512_si256(round_bf16(v, v)));
      }
    }
    uint16_t which[32];  // bit 4 (and 5) of an index: which of the groups in 32 words
    for (int i = 0; i < 32; ++i) which[i] = static_cast<uint16_t>(Unit >= 64 ? 0 : i / (Unit / 2) << 4);
    group_bits = _mm512_loadu_si512(which);
    // An 8-bit float as the top bits of an fp32 of far too small an exponent.
    const int shift = 11 - w.format->fp16_shift;
    minifloat_shift = _mm512_set1_epi32(shift);
    minifloat_bits = _mm512_set1_epi32(static_cast<int>(0x80000000u | 0x7f000000u >> shift));
    rebias = _mm512_set1_ps(w.format->fp16_scale * 0x1p112f);
  }

  void begin(int64_t panel, int64_t column, int64_t columns) {
    if (tables_by_scale())
      run_scale_bytes(panel, column, columns);
    else
      run_scales<avx512_vectors, Unit, Offset>(w, panel, column, columns, scales, offsets);
    lines = w.codes + w.shape.block_offset(panel, column / block_k);
    if constexpr (Recipe == recipe::minifloat) {  // one factor for both, unless it overflows: the product is the same
      const __m512 largest = _mm512_set1_ps(largest_f32);
      __mmask16 fits = 0xffff;
      for (int64_t i = 0; i < columns / Unit; ++i)
        fits &=
            _mm512_cmp_ps_mask(_mm512_abs_ps(_mm512_mul_ps(_mm512_load_ps(scales[i]), rebias)), largest, _CMP_LE_OQ);
      one_factor = fits == 0xffff;
      for (int64_t i = 0; one_factor && i < columns / Unit; ++i)
        _mm512_store_ps(scales[i], _mm512_mul_ps(_mm512_load_ps(scales[i]), rebias));
    }
  }

  template <class F>
  LOWBIT_INLINE void row(int64_t block, int r, const F& f) const {
    const uint8_t* line = lines + (block * panel_rows + r) * line_bytes;
    prefetch_codes(line);
    const __m512i codes = _mm512_loadu_si512(line);
    if constexpr (may_have_tables) {
      if (tables_by_scale())
        look_up(codes, {ready_table(2 * block, r), ready_table(2 * block + 1, r)}, f);
      else
        look_up(codes, {table(2 * block, r), table(2 * block + 1, r)}, f);
    } else if constexpr (Recipe == recipe::lut16) {
      const row_table low = table(2 * block, r);
      look_up(codes, {low, Unit == 128 ? low : table(2 * block + 1, r)}, f);
    } else if (Recipe == recipe::minifloat && !one_factor) {
      bytes<false>(codes, block, r, f);
    } else {
      bytes<true>(codes, block, r, f);
    }
  }

 private:
  struct row_table {  // 16, 2 x 16 or 4 x 16 scaled values
    __m512i low, high;
  };

  const packed_view& w;
  const uint8_t* lines = nullptr;
  bool one_factor = true;  // scales have taken in `rebias`
  __m512 values, rebias;
  __m512i group_bits, minifloat_shift, minifloat_bits;
  // Small groups with scales of a byte: the tables of all 256 scales are made once, 8 KB, and a row's groups choose.
  static constexpr bool may_have_tables = Recipe == recipe::lut16 && Unit < 64 && Offset == offset::none;
  alignas(64) uint16_t table_of_scale[may_have_tables ? 256 : 1][16];
  uint8_t scale_bytes[may_have_tables ? Depth / Unit : 1][panel_rows];
  alignas(64) float scales[Depth / Unit][panel_rows];
  alignas(64) float offsets[Offset == offset::none ? 1 : Depth / Unit][panel_rows];

  LOWBIT_INLINE bool tables_by_scale() const {
    return may_have_tables && (w.scale_dtype == LOWBIT_E8M0 || w.scale_dtype == LOWBIT_E4M3);
  }
  void run_scale_bytes(int64_t panel, int64_t column, int64_t columns) {
    const packed_shape& s = w.shape;
    const int64_t first = s.group_of_column(column), units = columns / Unit;
    for (int64_t i = 0; i < units; ++i) {
      const int64_t group = first + i < s.groups ? first + i : s.groups - 1;
      std::memcpy(scale_bytes[i], static_cast<const uint8_t*>(w.scales) + s.scale_index(panel * panel_rows, group),
                  panel_rows);
    }
  }
  LOWBIT_INLINE __m512i two_tables(int64_t unit, int r) const {
    const auto of = [&](int64_t i) {
      return _mm256_load_si256(reinterpret_cast<const __m256i*>(table_of_scale[scale_bytes[i][r]]));
    };
    return _mm512_inserti64x4(_mm512_castsi256_si512(of(unit)), of(unit + 1), 1);
  }

  LOWBIT_INLINE __m512 scaled_values(int64_t i, int r) const {
    __m512 v = values;
    const __m512 scale = _mm512_set1_ps(scales[i][r]);
    if constexpr (Offset == offset::min) return _mm512_fmadd_ps(v, scale, _mm512_set1_ps(offsets[i][r]));
    if constexpr (Offset == offset::zero_point) v = _mm512_sub_ps(v, _mm512_set1_ps(offsets[i][r]));
    return _mm512_mul_ps(v, scale);
  }
  LOWBIT_INLINE row_table table(int64_t c, int r) const {
    const int64_t i = c * chunk / Unit;
    const __m512 first = scaled_values(i, r);
    if constexpr (Unit >= 64) {
      const __m512i t = round_bf16(first, first);
      return {t, t};
    } else {
      const __m512i low = round_bf16(first, scaled_values(i + 1, r));
      if constexpr (Unit == 32) return {low, low};
      return {low, round_bf16(scaled_values(i + 2, r), scaled_values(i + 3, r))};
    }
  }
  LOWBIT_INLINE row_table ready_table(int64_t c, int r) const {
    const int64_t i = c * chunk / Unit;
    const __m512i low = two_tables(i, r);
    return {low, Unit == 16 ? two_tables(i + 2, r) : low};
  }
  struct line_tables {
    row_table halves[2];
  };
  template <class F>
  LOWBIT_INLINE void look_up(__m512i codes, const line_tables& t, const F& f) const {
    nibbles(
        codes, [&](__m512i words, int half) __attribute__((always_inline)) { return lookup(words, t.halves[half]); },
        f);
  }
  LOWBIT_INLINE __m512i lookup(__m512i index, const row_table& t) const {
    if constexpr (Unit >= 64) return _mm512_permutexvar_epi16(index, t.low);
    index = _mm512_ternarylogic_epi32(index, _mm512_set1_epi16(15), group_bits, 0xea);  // (index & 15) | group
    if constexpr (Unit == 32) return _mm512_permutexvar_epi16(index, t.low);
    return _mm512_permutex2var_epi16(t.low, index, t.high);
  }

  LOWBIT_INLINE static __m512 spread(const float (*of)[panel_rows], int64_t c, int r) {
    if constexpr (Unit >= 64)
      return _mm512_set1_ps(of[c][r]);
    else
      return avx512_vectors::spread<chunk / Unit>(&of[c * (chunk / Unit)][r], panel_rows);
  }
  template <bool OneFactor, class F>
  LOWBIT_INLINE void bytes(__m512i codes, int64_t c, int r, const F& f) const {
    const __m512 scale = spread(scales, c, r);
    f(0, round_bf16(scaled<0, OneFactor>(codes, scale, c, r), scaled<1, OneFactor>(codes, scale, c, r)));
    f(1, round_bf16(scaled<2, OneFactor>(codes, scale, c, r), scaled<3, OneFactor>(codes, scale, c, r)));
  }
  // Byte C of every dword, as fp32.
  template <int C, bool OneFactor>
  LOWBIT_INLINE __m512 scaled(__m512i codes, __m512 scale, int64_t c, int r) const {
    if constexpr (Recipe == recipe::linear) {
      const __m512i byte = _mm512_ternarylogic_epi32(_mm512_srli_epi32(codes, 8 * C), _mm512_set1_epi32(255),
                                                     _mm512_set1_epi32(0x4b000000), 0xea);  // 2^23 + code
      const __m512 zero = _mm512_add_ps(spread(offsets, c, r), _mm512_set1_ps(0x1p23f + 128));
      return _mm512_mul_ps(_mm512_sub_ps(_mm512_castsi512_ps(byte), zero), scale);
    } else {
      const __m512i top = _mm512_srav_epi32(_mm512_slli_epi32(codes, 24 - 8 * C), minifloat_shift);
      const __m512 small = _mm512_castsi512_ps(_mm512_and_si512(top, minifloat_bits));
      return _mm512_mul_ps(OneFactor ? small : _mm512_mul_ps(small, rebias), scale);
    }
  }
};

}  // namespace
}  // namespace lowbit::cpu
