// 8-bit codes to registers of bf16.
//
// Order inside a chunk of 64 columns: as fp32 (generic/decode_f32.h), byte 0 of all dwords, then byte 1, ...
// Below 128 columns a group, dwords may stand in an order of their own.
#pragma once

#include "cpu/avx512_vnni/decode_bf16.h"

namespace lowbit::cpu {
namespace {

// The bf16 of 8-bit floats without their sign, as two tables of bytes, and how the bytes of 64 are put together: in
// registers, where a copy of it is local.
struct byte_tables {
  __m512i low[2], high[2], pairs[2];

  // bits(i): those of code i. Dword `d` of a line is the dword_order(d)-th.
  template <class Bits, class Order>
  byte_tables(const Bits& bits, const Order& dword_order) {
    uint8_t bytes[6][64];
    for (int i = 0; i < 128; ++i) {
      const uint16_t word = bits(i);
      bytes[i / 64][i % 64] = static_cast<uint8_t>(word), bytes[2 + i / 64][i % 64] = static_cast<uint8_t>(word >> 8);
      // words d and 16 + d of register r: bytes 2 r and 2 r + 1 of dword d, the low and the high one
      bytes[4 + i / 64][i % 64] = static_cast<uint8_t>(i % 2 * 64 + dword_order(i / 2 % 16) * 4 + i / 32);
    }
    for (int i = 0; i < 2; ++i) {
      low[i] = _mm512_loadu_si512(bytes[i]);
      high[i] = _mm512_loadu_si512(bytes[2 + i]);
      pairs[i] = _mm512_loadu_si512(bytes[4 + i]);
    }
  }

  // Signs are the top bits of `signs`.
  LOWBIT_INLINE void look_up(__m512i codes, __m512i signs, __m512i out[2]) const {
    put_together(codes, bytes_of_two(high[0], codes, high[1]), signs, out);
  }
  // Magnitudes 0 .. 128: entry 0 is that of 128, and 0 is zero.
  LOWBIT_INLINE void look_up_129(__m512i codes, __m512i signs, __m512i out[2]) const {
    put_together(codes, bytes_of_two(_mm512_test_epi8_mask(codes, codes), high[0], codes, high[1]), signs, out);
  }

 private:
  LOWBIT_INLINE void put_together(__m512i codes, __m512i magnitude, __m512i signs, __m512i out[2]) const {
    const __m512i bottom = bytes_of_two(low[0], codes, low[1]);
    const __m512i top = _mm512_ternarylogic_epi32(magnitude, signs, _mm512_set1_epi8(-128), 0xf8);
    out[0] = bytes_of_two(bottom, pairs[0], top);
    out[1] = bytes_of_two(bottom, pairs[1], top);
  }
};

LOWBIT_INLINE uint16_t bf16_bits(float value) {
  return static_cast<uint16_t>(__builtin_bit_cast(uint32_t, value) >> 16);
}

// ---- values ----

// Groups that end at multiples of 128 columns: value - zero point, which bf16 holds exactly; sums get the scales.
// (Weights would take a multiplication for 16 codes. 4-bit codes get their scale with the table.) Integers without zero
// points are magnitudes by table, too: 8.8 cycles a line at m = 1, by arithmetic 11.3.
template <recipe Recipe, int Unit, offset Offset, int64_t Depth>
  requires(Unit == 128 && Recipe != recipe::lut16)
class bf16_decoder<Recipe, Unit, Offset, Depth> {
 public:
  static constexpr int64_t block_k = 64;
  static constexpr bool scales_sums = true;
  static constexpr int order(int i) { return i % 16 * 4 + i / 16; }

  explicit bf16_decoder(const packed_view& weights)
      : w(weights), magnitudes([&](int i) { return bf16_bits(magnitude(i)); }, [](int d) { return d; }) {}

  int64_t direct_rows() const { return Recipe == recipe::linear ? 4 : w.shape.groups == 1 ? 16 : 8; }

  void begin(int64_t panel, int64_t column, int64_t columns) {
    run_scales<avx512_vectors, Unit, Offset>(w, panel, column, columns, scales, offsets);
    lines = w.codes + w.shape.block_offset(panel, column / block_k);
    for (int64_t i = 0; Recipe == recipe::linear && w.zero_points && i * Unit < columns; ++i)
      _mm512_store_ps(offsets[i], _mm512_add_ps(_mm512_load_ps(offsets[i]), _mm512_set1_ps(0x1p15f + 128)));
  }

  template <class F>
  LOWBIT_INLINE void with_rows(const F& f) const {
    if constexpr (Recipe == recipe::linear)
      if (w.zero_points) return f(rows<true>{lines, magnitudes, offsets});
    f(rows<false>{lines, magnitudes, offsets});
  }

  // The scales of 16 rows from a column of the depth on.
  const float* scales_at(int64_t column) const { return scales[column / Unit]; }

 private:
  float magnitude(int i) const {
    if (Recipe == recipe::linear) return static_cast<float>(i ? i : 128);
    return w.format->values[i];
  }

  template <bool ZeroPoints>
  struct rows {
    const uint8_t* lines;
    byte_tables magnitudes;
    const float (*offsets)[panel_rows];

    LOWBIT_INLINE const uint8_t* line(int64_t block, int r) const {
      return lines + (block * panel_rows + r) * line_bytes;
    }
    LOWBIT_INLINE void row(int64_t block, int r, __m512i* out) const {
      const __m512i codes = _mm512_loadu_si512(line(block, r));
      if constexpr (ZeroPoints) {
        integers(codes, _mm512_set1_ps(offsets[block * block_k / Unit][r]), out);
      } else if constexpr (Recipe == recipe::linear) {
        const __m512i value = _mm512_xor_si512(codes, _mm512_set1_epi8(-128));
        magnitudes.look_up_129(_mm512_abs_epi8(value), value, out);
      } else {
        magnitudes.look_up(codes, codes, out);
      }
    }
  };

  const packed_view& w;
  const uint8_t* lines = nullptr;
  byte_tables magnitudes;
  alignas(64) float scales[Depth / Unit][panel_rows];
  alignas(64) float offsets[Offset == offset::none ? 1 : Depth / Unit][panel_rows];

  // A byte of every dword becomes the fraction of 2^15 + code in fp32. Less 2^15 + 128 + zero point, its top 16 bits
  // are all of it.
  LOWBIT_INLINE static void integers(__m512i codes, __m512 zero, __m512i* out) {
    alignas(64) static constexpr struct top_words {
      uint16_t of[32];
      constexpr top_words() : of() {
        for (int i = 0; i < 32; ++i) of[i] = static_cast<uint16_t>(2 * i + 1);
      }
    } tops;
    const auto value = [&](int c) __attribute__((always_inline)) {
      const __m512i from = _mm512_add_epi8(_mm512_set4_epi32(0x0c00, 0x0800, 0x0400, 0), _mm512_set1_epi32(c << 8));
      const __m512i code = _mm512_mask_shuffle_epi8(_mm512_set1_epi32(0x47000000), 0x2222222222222222, codes, from);
      return _mm512_castps_si512(_mm512_sub_ps(_mm512_castsi512_ps(code), zero));
    };
    const __m512i top_words = _mm512_load_si512(tops.of);
    out[0] = _mm512_permutex2var_epi16(value(0), top_words, value(1));
    out[1] = _mm512_permutex2var_epi16(value(2), top_words, value(3));
  }
};

// ---- weights ----

// Smaller groups: weights, scaled in fp32 and rounded. Floats in groups of 32 (MXFP8) have their dwords of both groups
// in turns, two by two, so that a scale for each is a broadcast of two dwords. Where the scale is a power of two and no
// weight leaves the range of bf16's normal numbers, it is a subtraction from the exponents of a table.
template <recipe Recipe, int Unit, offset Offset, int64_t Depth>
  requires(Unit < 128 && Recipe != recipe::lut16)
class bf16_decoder<Recipe, Unit, Offset, Depth> {
 public:
  static constexpr int64_t block_k = 64;
  static constexpr bool scales_sums = false;
  static constexpr int order(int i) { return dword_order(i % 16) * 4 + i / 16; }

  explicit bf16_decoder(const packed_view& weights)
      : w(weights),
        exponents(weights),
        magnitudes([&](int i) { return exponents.raised(w.format->values[i]); }, dword_order) {
    for (int i = 0; i < 16; ++i) dwords[i] = dword_order(i);
    // An 8-bit float as the top bits of an fp32 of far too small an exponent.
    const int shift = 11 - w.format->fp16_shift;
    minifloat_shift = _mm512_set1_epi32(shift);
    minifloat_bits = _mm512_set1_epi32(static_cast<int>(0x80000000u | 0x7f000000u >> shift));
    rebias = _mm512_set1_ps(w.format->fp16_scale * 0x1p112f);
  }

  int64_t direct_rows() const { return in_turns ? 8 : 6; }

  void begin(int64_t panel, int64_t column, int64_t columns) {
    lines = w.codes + w.shape.block_offset(panel, column / block_k);
    if constexpr (in_turns)
      if ((by_exponent = w.scale_dtype == LOWBIT_E8M0 && lower_exponents(panel, column, columns))) return;
    run_scales<avx512_vectors, Unit, Offset>(w, panel, column, columns, scales, offsets);
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
  LOWBIT_INLINE void with_rows(const F& f) const {
    if constexpr (in_turns)
      if (by_exponent) return f(rows<way::exponent>{*this, magnitudes});
    if constexpr (Recipe == recipe::minifloat)
      if (!one_factor) return f(rows<way::two_factors>{*this, magnitudes});
    f(rows<way::factor>{*this, magnitudes});
  }

 private:
  static constexpr bool in_turns = Recipe == recipe::minifloat && Unit == 32;
  static constexpr int dword_order(int d) {  // 0, 1, 8, 9, 2, 3, 10, 11, ...
    return in_turns ? d / 4 * 2 + d % 2 + d / 2 % 2 * 8 : d;
  }
  enum class way { exponent, factor, two_factors };

  template <way Way>
  struct rows {
    const bf16_decoder& of;
    byte_tables magnitudes;

    LOWBIT_INLINE const uint8_t* line(int64_t block, int r) const {
      return of.lines + (block * panel_rows + r) * line_bytes;
    }
    LOWBIT_INLINE void row(int64_t block, int r, __m512i* out) const {
      __m512i codes = _mm512_loadu_si512(line(block, r));
      if constexpr (Way == way::exponent) {
        // -0 has no sign: the subtraction leaves zeros alone, not the sign above one.
        magnitudes.look_up(codes, _mm512_subs_epu8(codes, _mm512_set1_epi8(1)), out);
        const __m512i by = _mm512_set1_epi64(of.lowered[block][r]);
        out[0] = _mm512_subs_epu16(out[0], by);
        out[1] = _mm512_subs_epu16(out[1], by);
      } else {
        if constexpr (in_turns) codes = _mm512_permutexvar_epi32(_mm512_load_si512(of.dwords), codes);
        of.template bytes<Way == way::factor>(codes, block, r, out);
      }
    }
  };

  // The range of exponents: tables are raised as far as bf16 reaches, so that every scale lowers them.
  struct exponent_range {
    int lowest = 255, highest = 0;  // of the values

    explicit exponent_range(const packed_view& weights) {
      for (int i = 0; i < 128; ++i) {
        const int e = bf16_bits(weights.format->values[i]) >> 7;
        if (e == 0 || e == 255) continue;  // zero, and codes that packing refuses
        if (e < lowest) lowest = e;
        if (e > highest) highest = e;
      }
    }
    int raise() const { return 255 - highest; }
    uint16_t raised(float value) const {
      const int bits = bf16_bits(value), e = bits >> 7;
      return static_cast<uint16_t>(e == 0 || e == 255 ? 0 : bits + (raise() << 7));
    }
    // Scales 2^(e - 127) for which all weights are normal numbers.
    int first_scale() const { return 128 - lowest; }
    int last_scale() const { return 254 - highest + 127; }
    int lower(int e) const { return raise() + 127 - e; }
  };

  const packed_view& w;
  const uint8_t* lines = nullptr;
  bool by_exponent = false, one_factor = true;  // scales have taken in `rebias`
  exponent_range exponents;
  byte_tables magnitudes;
  alignas(64) int32_t dwords[16];
  __m512 rebias;
  __m512i minifloat_shift, minifloat_bits;
  alignas(64) int64_t lowered[in_turns ? Depth / chunk : 1][panel_rows];  // by how much, for two words of each group
  alignas(64) float scales[Depth / Unit][panel_rows];
  alignas(64) float offsets[Offset == offset::none ? 1 : Depth / Unit][panel_rows];

  // False: some weight is out of range.
  bool lower_exponents(int64_t panel, int64_t column, int64_t columns) {
    const packed_shape& s = w.shape;
    const int64_t first = s.group_of_column(column);
    __mmask16 in_range = 0xffff;
    const auto words = [&](int64_t unit) {                                          // twice that of each row
      const int64_t group = first + unit < s.groups ? first + unit : s.groups - 1;  // past K
      const uint8_t* scales = static_cast<const uint8_t*>(w.scales) + s.scale_index(panel * panel_rows, group);
      const __m512i e = _mm512_cvtepu8_epi32(_mm_loadu_si128(reinterpret_cast<const __m128i*>(scales)));
      in_range &= _mm512_cmpge_epi32_mask(e, _mm512_set1_epi32(exponents.first_scale())) &
                  _mm512_cmple_epi32_mask(e, _mm512_set1_epi32(exponents.last_scale()));
      const __m512i word = _mm512_slli_epi32(_mm512_sub_epi32(_mm512_set1_epi32(exponents.lower(0)), e), 7);
      return _mm512_or_si512(word, _mm512_slli_epi32(word, 16));
    };
    for (int64_t c = 0; c < columns / chunk; ++c) {
      const __m512i even = words(2 * c), odd = words(2 * c + 1);
      for (int half = 0; half < 2; ++half) {
        const auto wide = [&](__m512i v) {
          return _mm512_cvtepu32_epi64(half ? _mm512_extracti64x4_epi64(v, 1) : _mm512_castsi512_si256(v));
        };
        _mm512_store_si512(lowered[c] + 8 * half, _mm512_or_si512(wide(even), _mm512_slli_epi64(wide(odd), 32)));
      }
    }
    return in_range == 0xffff;
  }

  LOWBIT_INLINE static __m512 spread(const float (*of)[panel_rows], int64_t c, int r) {
    if constexpr (Unit == 64)
      return _mm512_set1_ps(of[c][r]);
    else if constexpr (in_turns)
      return _mm512_mask_mov_ps(_mm512_set1_ps(of[2 * c][r]), 0xcccc, _mm512_set1_ps(of[2 * c + 1][r]));
    else
      return avx512_vectors::spread<chunk / Unit>(&of[c * (chunk / Unit)][r], panel_rows);
  }
  template <bool OneFactor>
  LOWBIT_INLINE void bytes(__m512i codes, int64_t c, int r, __m512i* out) const {
    const __m512 scale = spread(scales, c, r);
    out[0] = round_bf16(scaled<0, OneFactor>(codes, scale, c, r), scaled<1, OneFactor>(codes, scale, c, r));
    out[1] = round_bf16(scaled<2, OneFactor>(codes, scale, c, r), scaled<3, OneFactor>(codes, scale, c, r));
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
