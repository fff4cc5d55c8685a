// 4-bit codes to registers of bf16: 32 of them are one permutation of a table of 16 weights.
//
// Order inside a chunk of 64 columns: a shift of words brings down every second column, the even ones, then the odd
// ones.
#pragma once

#include "cpu/avx512_vnni/decode_bf16.h"

namespace lowbit::cpu {
namespace {

// Tables of weights, scaled in fp32 and rounded, one for each group of a row. Those of 64 columns lie side by side: a
// lookup takes the group from bits 4 and 5 of its index.
template <int Unit, offset Offset, int64_t Depth>
class bf16_decoder<recipe::lut16, Unit, Offset, Depth> {
 public:
  static constexpr int64_t block_k = 128;
  static constexpr bool scales_sums = false;
  static constexpr int order(int i) { return i % 32 * 2 + i / 32; }

  explicit bf16_decoder(const packed_view& weights) : w(weights) {
    values = _mm512_loadu_ps(w.format->values);
    if (tables_by_scale())
      for (int i = 0; i < 256; ++i) {
        const uint8_t code = static_cast<uint8_t>(i);
        const __m512 v =
            _mm512_mul_ps(values, _mm512_set1_ps(w.scale_dtype == LOWBIT_E8M0 ? finite_e8m0(code) : finite_e4m3(code)));
        _mm256_store_si256(reinterpret_cast<__m256i*>(table_of_scale[i]), _mm512_castsi512_si256(round_bf16(v, v)));
      }
  }

  int64_t direct_rows() const { return Unit == 16 ? 16 : 32; }

  void begin(int64_t panel, int64_t column, int64_t columns) {
    lines = w.codes + w.shape.block_offset(panel, column / block_k);
    if (tables_by_scale())
      find_tables(panel, column, columns);
    else
      make_tables(panel, column, columns);
  }

  template <class F>
  LOWBIT_INLINE void with_rows(const F& f) const {
    if constexpr (few_scales)
      if (tables_by_scale()) return f(rows<true>{*this});
    f(rows<false>{*this});
  }

 private:
  static constexpr int groups = Unit < chunk ? chunk / Unit : 1;  // of a table
  static constexpr int table_columns = Unit < chunk ? chunk : Unit;
  // Small groups with scales of a byte: the tables of all 256 scales are made once, 8 KB, and a row's groups choose.
  static constexpr bool few_scales = Unit < chunk && Offset == offset::none;

  struct table {  // 16, 2 x 16 or 4 x 16 weights
    __m512i low, high;
  };

  template <bool ByScale>
  struct rows {
    const bf16_decoder& of;

    LOWBIT_INLINE const uint8_t* line(int64_t block, int r) const {
      return of.lines + (block * panel_rows + r) * line_bytes;
    }
    LOWBIT_INLINE void row(int64_t block, int r, __m512i* out) const {
      const __m512i codes = _mm512_loadu_si512(line(block, r));
      const table first = of.template table_at<ByScale>(2 * block, r);
      const table second = Unit == 128 ? first : of.template table_at<ByScale>(2 * block + 1, r);
      if constexpr (groups == 1) {  // a lookup of 16 entries, twice, reads four bits
        out[0] = _mm512_permutexvar_epi16(codes, first.low);
        out[1] = _mm512_permutexvar_epi16(_mm512_srli_epi16(codes, 8), first.low);
        out[2] = _mm512_permutexvar_epi16(_mm512_srli_epi16(codes, 4), second.low);
        out[3] = _mm512_permutexvar_epi16(_mm512_srli_epi16(codes, 12), second.low);
      } else {
        const __m512i low = indices(codes), high = indices(_mm512_srli_epi16(codes, 4));
        out[0] = lookup(low, first);
        out[1] = lookup(_mm512_srli_epi16(low, 8), first);
        out[2] = lookup(high, second);
        out[3] = lookup(_mm512_srli_epi16(high, 8), second);
      }
    }
  };

  const packed_view& w;
  const uint8_t* lines = nullptr;
  __m512 values;
  alignas(64) uint16_t tables[Depth / table_columns][panel_rows][groups * 16];
  alignas(64) uint16_t table_of_scale[few_scales ? 256 : 1][16];
  alignas(32) uint16_t table_offset[few_scales ? Depth / Unit : 1][panel_rows];  // bytes from the first

  LOWBIT_INLINE bool tables_by_scale() const {
    return few_scales && (w.scale_dtype == LOWBIT_E8M0 || w.scale_dtype == LOWBIT_E4M3);
  }

  void find_tables(int64_t panel, int64_t column, int64_t columns) {
    const packed_shape& s = w.shape;
    const int64_t first = s.group_of_column(column);
    for (int64_t i = 0; i < columns / Unit; ++i) {
      const int64_t group = first + i < s.groups ? first + i : s.groups - 1;  // past K
      const uint8_t* scales = static_cast<const uint8_t*>(w.scales) + s.scale_index(panel * panel_rows, group);
      const __m128i codes = _mm_loadu_si128(reinterpret_cast<const __m128i*>(scales));
      _mm256_store_si256(reinterpret_cast<__m256i*>(table_offset[i]),
                         _mm256_slli_epi16(_mm256_cvtepu8_epi16(codes), 5));
    }
  }

  void make_tables(int64_t panel, int64_t column, int64_t columns) {
    alignas(64) float scales[Depth / Unit][panel_rows];
    alignas(64) float offsets[Offset == offset::none ? 1 : Depth / Unit][panel_rows];
    run_scales<avx512_vectors, Unit, Offset>(w, panel, column, columns, scales, offsets);
    const auto scaled_values = [&](int64_t i, int r) __attribute__((always_inline)) {
      __m512 v = values;
      const __m512 scale = _mm512_set1_ps(scales[i][r]);
      if constexpr (Offset == offset::min) return _mm512_fmadd_ps(v, scale, _mm512_set1_ps(offsets[i][r]));
      if constexpr (Offset == offset::zero_point) v = _mm512_sub_ps(v, _mm512_set1_ps(offsets[i][r]));
      return _mm512_mul_ps(v, scale);
    };
    uint16_t* out = tables[0][0];
    for (int64_t i = 0; i < columns / Unit; i += groups)
      for (int j = 0; j < groups * panel_rows; j += 2, out += 32) {  // two tables of 16 at a time
        const __m512 low = scaled_values(i + j % groups, j / groups);
        const __m512 high = scaled_values(i + (j + 1) % groups, (j + 1) / groups);
        _mm512_store_si512(out, round_bf16(low, high));
      }
  }

  // That of row r for chunk c of the depth.
  template <bool ByScale>
  LOWBIT_INLINE table table_at(int64_t c, int r) const {
    if constexpr (ByScale) {
      const auto of = [&](int64_t i) __attribute__((always_inline)) {
        const uint8_t* first = reinterpret_cast<const uint8_t*>(table_of_scale[0]);
        return _mm256_load_si256(reinterpret_cast<const __m256i*>(first + table_offset[c * groups + i][r]));
      };
      const auto two = [&](int64_t i) __attribute__((always_inline)) {
        return _mm512_inserti64x4(_mm512_castsi256_si512(of(i)), of(i + 1), 1);
      };
      const __m512i low = two(0);
      return {low, groups == 4 ? two(2) : low};
    }
    const uint16_t* entries = tables[c * chunk / table_columns][r];
    if constexpr (groups == 1) {
      const __m512i t = _mm512_broadcast_i64x4(_mm256_load_si256(reinterpret_cast<const __m256i*>(entries)));
      return {t, t};
    }
    const __m512i low = _mm512_load_si512(entries);
    return {low, groups == 4 ? _mm512_load_si512(entries + 32) : low};
  }

  // In every byte, the low four bits and above them which of the table's groups its word belongs to.
  LOWBIT_INLINE static __m512i indices(__m512i codes) {
    alignas(64) static constexpr struct group_bytes {
      uint8_t of[64];
      constexpr group_bytes() : of() {
        for (int i = 0; i < 64; ++i) of[i] = static_cast<uint8_t>(i / Unit << 4);
      }
    } group_bits;
    return _mm512_ternarylogic_epi32(codes, _mm512_set1_epi8(15), _mm512_load_si512(group_bits.of), 0xea);
  }
  LOWBIT_INLINE static __m512i lookup(__m512i index, const table& t) {
    if constexpr (groups == 2) return _mm512_permutexvar_epi16(index, t.low);
    return _mm512_permutex2var_epi16(t.low, index, t.high);
  }
};

}  // namespace
}  // namespace lowbit::cpu
