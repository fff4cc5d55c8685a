// Packed codes to fp32 registers, written once for every vector width V, a register of codes (a step) at a time.
//
// Order: x is laid out as V's conversions put out columns (order_of_step), step after step, so nothing is moved into
// the order of K.
//
// 4-bit and 2-bit codes are looked up. Values whose fp32 is exact in its upper 16 bits (integers, small floats) take
// half the lookups of others. Such tables also take in zero points, and scales of one byte, while that leaves them
// exact: all 256 are made once, and groups choose.
#pragma once

#include "cpu/generic/chunks.h"

namespace lowbit::cpu {
namespace {

LOWBIT_INLINE bool upper_half_exact(float value) { return !(__builtin_bit_cast(uint32_t, value) & 0xffff); }

// Whether the entries of tables, less their zero points, are so.
LOWBIT_INLINE bool exact_tables(const packed_view& w) {
  if (w.zero_points && !w.format->integer()) return false;  // integers: 8 bits and a sign at most
  for (int i = 0; i < 1 << w.shape.bits; ++i)
    if (!upper_half_exact(w.format->values[i])) return false;
  return true;
}

// A table for every zero point.
template <class V>
inline void put_zero_point_tables(const float* values, uint8_t* tables) {
  float table[16];
  for (int zero = -128; zero < 128; ++zero) {
    for (int i = 0; i < 16; ++i) table[i] = values[i] - static_cast<float>(zero);
    V::put_table(table, tables + static_cast<uint8_t>(zero) * V::table_bytes);
  }
}

// A table for every scale of a byte; false, and none, if there is another type of scale or one table is not exact.
template <class V>
inline bool put_scaled_tables(const packed_view& w, const float* values, uint8_t* tables) {
  if (w.scale_dtype != LOWBIT_E8M0 && w.scale_dtype != LOWBIT_E4M3) return false;
  bool exact = true;
  for (int i = 0; i < 256; ++i) {
    const uint8_t code = static_cast<uint8_t>(i);
    const float scale = w.scale_dtype == LOWBIT_E8M0 ? finite_e8m0(code) : finite_e4m3(code);
    float table[16];
    for (int j = 0; j < 16; ++j) {
      table[j] = values[j] * scale;
      exact &= upper_half_exact(table[j]);
    }
    V::put_table(table, tables + i * V::table_bytes);
  }
  if (!exact) V::put_table(values, tables);
  return exact;
}

// The columns of a step in the order they are decoded to.
template <class V>
inline void order_of_step(const packed_view& w, uint8_t* order) {
  const recipe r = w.format->decode;
  const bool lut = r == recipe::lut16 || r == recipe::lut4, exact = lut && exact_tables(w);
  const bool linear = r == recipe::linear || r == recipe::narrow_linear;
  for (int i = 0; i < V::bytes; ++i)
    order[i] = static_cast<uint8_t>(lut      ? V::lookup_column(i, exact)
                                    : linear ? V::linear_column(i)
                                             : V::minifloat_column(i));
}

// What a decoder finds out about a weight before it decodes: tables of whole fp32, tables that have taken in the scale,
// a scale that overflows if it takes in the format's factor.
enum class form { plain, wide_tables, scaled_tables, two_factors };

// Decodes lines of a panel in the order of K. `Unit` columns surely share a scale; 128: both chunks of a line of 4-bit
// codes do, and scales are left to the sums. Narrow codes are joined to bytes first.
template <class V, recipe Recipe, int Unit, offset Offset, int64_t Depth>
class f32_decoder {
 public:
  static constexpr int64_t block_k = Recipe == recipe::lut16 ? 128 : 64;
  static constexpr int steps = static_cast<int>(block_k) / V::bytes;  // of a line
  static constexpr int vectors = V::bytes / V::lanes;                 // of a step
  static constexpr bool scales_sums = Unit == 128 && Offset != offset::min;

  explicit f32_decoder(const packed_view& weights) : w(weights) {
    if constexpr (lut)
      make_tables();
    else if constexpr (!linear)
      layout = V::minifloat_layout(w.format->fp16_shift);
  }

  // `columns` columns of a panel, Depth at most: what step() decodes.
  void begin(int64_t panel, int64_t column, int64_t columns) {
    const packed_shape& s = w.shape;
    if (!tables_scaled) run_scales<V, Unit, Offset>(w, panel, column, columns, scales, offsets);
    if constexpr (many_tables)
      if (tables_scaled || Offset == offset::zero_point)
        choose_tables(
            tables_scaled ? static_cast<const uint8_t*>(w.scales) : reinterpret_cast<const uint8_t*>(w.zero_points),
            panel, column, columns);
    const int64_t units = (columns + Unit - 1) / Unit;
    if constexpr (linear && Offset == offset::zero_point)
      for (int64_t i = 0; i < units; ++i)
        for (int r = 0; r < panel_rows; ++r) offsets[i][r] += integer_zero();
    if constexpr (minifloat) rebias_scales(units);
    if constexpr (narrow) {
      for (int64_t c = 0; c < columns / chunk; ++c) {
        const int64_t at = column + c * chunk;
        planes[c] = {w.codes + s.plane_offset(s.low, panel * panel_rows, at),
                     w.codes + s.plane_offset(s.high, panel * panel_rows, at),
                     plane_shifts(s, at, Recipe == recipe::narrow_minifloat ? 8 - s.bits : 0)};
      }
    } else {
      lines = w.codes + s.block_offset(panel, column / block_k);
    }
  }

  // Whether registers are decoded to at all: tables of whole fp32 beside offsets, which no format has, are not compiled
  // for it.
  bool direct() const { return wide_is_direct || exact; }

  // f(form) as a constant, one for all of a panel's depth.
  template <bool Direct, class F>
  LOWBIT_INLINE void with_form(const F& f) const {
    if constexpr (lut) {
      if constexpr (!scales_table && (!Direct || wide_is_direct))
        if (!exact) return f(constant<form::wide_tables>{});
      if constexpr (Offset == offset::none && many_tables)
        if (tables_scaled) return f(constant<form::scaled_tables>{});
    }
    if constexpr (minifloat)
      if (!rebiased) return f(constant<form::two_factors>{});
    f(constant<form::plain>{});
  }

  // f(i, register) for every register i of step `s` of row r of a block.
  template <form Form, class F>
  LOWBIT_INLINE void step(int64_t block, int r, int s, const F& f) const {
    if constexpr (narrow) {
      const chunk_planes& of = planes[block];
      const int64_t column = block * block_k + s * V::bytes, at = r * line_bytes + s * V::bytes;
      if (s == 0) prefetch_codes(of.low + at);
      if constexpr (lut)
        look_up<Form>(V::shift_right(V::load_bytes(of.low + at), of.shifts.low), column, r, f);
      else
        bytes<Form>(V::join(of.low + at, of.high + at, of.shifts), column, r, f);
    } else {
      const uint8_t* line = lines + (block * panel_rows + r) * line_bytes;
      if (s == 0) prefetch_codes(line);
      if constexpr (lut) {  // low nibbles, then high ones
        const typename V::i32 codes = V::load_bytes(line + s / 2 * V::bytes);
        look_up<Form>(s % 2 ? V::upper_nibbles(codes) : codes, block * block_k + s % 2 * chunk + s / 2 * V::bytes, r,
                      f);
      } else {
        bytes<Form>(V::load_bytes(line + s * V::bytes), block * block_k + s * V::bytes, r, f);
      }
    }
  }
  template <class F>
  LOWBIT_INLINE void row(int64_t block, int r, const F& f) const {
    with_form<false>([&](auto as) __attribute__((always_inline)) {
#pragma GCC unroll 4
      for (int s = 0; s < steps; ++s)
        step<as.value>(block, r, s, [&](int v, typename V::f32 weights) __attribute__((always_inline)) {
          f(s * vectors + v, weights);
        });
    });
  }

  // Of the 16 rows, where they are left to the sums.
  const float* scales_at(int64_t column) const { return scales[unit_of(column)]; }

 private:
  static constexpr bool lut = Recipe == recipe::lut16 || Recipe == recipe::lut4;
  static constexpr bool linear = Recipe == recipe::linear || Recipe == recipe::narrow_linear;
  static constexpr bool minifloat = !lut && !linear;
  static constexpr bool narrow =
      Recipe == recipe::lut4 || Recipe == recipe::narrow_linear || Recipe == recipe::narrow_minifloat;
  static constexpr int units_of_step = V::bytes > Unit ? V::bytes / Unit : 1;
  // One multiplication scales a table that fits a register.
  static constexpr bool scales_table = lut && V::lanes == 16 && Unit >= 64 && !scales_sums;
  static constexpr bool wide_is_direct = !lut || scales_table || Offset == offset::none;
  static constexpr bool many_tables =
      lut && !scales_table && (Offset == offset::zero_point || (Offset == offset::none && Unit < 64));

  LOWBIT_INLINE static int64_t unit_of(int64_t column) {
    return static_cast<int64_t>(static_cast<uint64_t>(column) / Unit);
  }

  struct chunk_planes {  // of a chunk's first row
    const uint8_t *low, *high;
    plane_shifts shifts;
  };

  const packed_view& w;
  const uint8_t* lines = nullptr;
  chunk_planes planes[narrow ? Depth / chunk : 1];
  bool exact = false, tables_scaled = false, rebiased = true;
  typename V::minifloat_bits layout;
  alignas(64) uint8_t tables[many_tables ? 256 : 2][V::table_bytes];  // one that is not exact takes two
  uint8_t chosen[many_tables ? Depth / Unit : 1][panel_rows];
  alignas(64) float scales[Depth / Unit][panel_rows];
  alignas(64) float offsets[Offset == offset::none ? 1 : Depth / Unit][panel_rows];

  // ---- tables ----

  LOWBIT_INLINE void make_tables() {
    float values[16];
    // Those of tables of 4 again and again: lookups see the next code's bits, too.
    for (int i = 0; i < 16; ++i) values[i] = w.format->values[i & ((1 << w.shape.bits) - 1)];
    exact = !scales_table && exact_tables(w);
    if (!exact) return V::put_wide_table(values, tables[0]);
    V::put_table(values, tables[0]);
    if constexpr (many_tables) {
      if (Offset == offset::zero_point && w.zero_points) put_zero_point_tables<V>(values, tables[0]);
      if (Offset == offset::none) tables_scaled = put_scaled_tables<V>(w, values, tables[0]);
    }
  }
  LOWBIT_INLINE void choose_tables(const uint8_t* by, int64_t panel, int64_t column, int64_t columns) {
    const packed_shape& s = w.shape;
    int64_t group = s.group_of_column(column), end = (group + 1) * s.span - column;
    for (int64_t i = 0; i * Unit < columns; ++i) {
      if (i * Unit >= end && group + 1 < s.groups) ++group, end += s.span;
      if (by)
        std::memcpy(chosen[i], by + s.scale_index(panel * panel_rows, group), panel_rows);
      else
        std::memset(chosen[i], 0, panel_rows);
    }
  }

  // The codes in the low four bits of each byte.
  template <form Form, class F>
  LOWBIT_INLINE void look_up(typename V::i32 codes, int64_t column, int r, const F& f) const {
    const auto chosen_table = [&](int i)
                                  __attribute__((always_inline)) { return tables[chosen[unit_of(column) + i][r]]; };
    const auto only_table = [&](int) __attribute__((always_inline)) { return tables[0]; };
    const auto weigh = [&](int v, typename V::f32 value)
                           __attribute__((always_inline)) { f(v, scaled<units_of_step>(value, column, r)); };
    if constexpr (scales_table) {
      typename V::f32 table = V::table_of(tables[0]);
      if constexpr (Offset == offset::zero_point) table = V::sub(table, spread<1>(offsets, column, r));
      V::wide_look_up(codes, scaled<1>(table, column, r), f);
    } else if constexpr (Form == form::wide_tables)
      V::wide_look_up(codes, tables[0], [&](int v, typename V::f32 value) __attribute__((always_inline)) {
        if constexpr (Offset == offset::zero_point) value = V::sub(value, spread<units_of_step>(offsets, column, r));
        weigh(v, value);
      });
    else if constexpr (Form == form::scaled_tables)
      V::template look_up<units_of_step>(codes, chosen_table, f);
    else if constexpr (Offset == offset::zero_point)
      V::template look_up<units_of_step>(codes, chosen_table, weigh);
    else
      V::template look_up<1>(codes, only_table, weigh);
  }

  // ---- bytes ----

  // Added to a code as the fraction of an fp32, whose value then is the sum of both.
  LOWBIT_INLINE float integer_zero() const { return 0x1p23f + static_cast<float>(w.format->integer_offset); }

  template <form Form, class F>
  LOWBIT_INLINE void bytes(typename V::i32 codes, int64_t column, int r, const F& f) const {
    if constexpr (linear) {
      const typename V::f32 zero =
          Offset == offset::zero_point ? spread<units_of_step>(offsets, column, r) : V::set1(integer_zero());
      V::linear(codes, zero, [&](int v, typename V::f32 value) __attribute__((always_inline)) {
        f(v, scaled<units_of_step>(value, column, r));
      });
    } else {
      constexpr int half = V::bytes / 2;  // of the step, for each half of the registers
      V::minifloat(codes, layout, [&](int v, typename V::f32 value) __attribute__((always_inline)) {
        if constexpr (Form == form::two_factors) value = V::mul(value, V::set1(w.format->fp16_scale));
        f(v, scaled<(half > Unit ? half / Unit : 1)>(value, column + v / 2 * half, r));
      });
    }
  }
  // One factor for fp16_scale and the scale, unless it overflows: the product is the same.
  void rebias_scales(int64_t units) {
    rebiased = true;
    for (int64_t i = 0; i < units; ++i)
      for (int r = 0; r < panel_rows; ++r)
        rebiased &= __builtin_fabsf(scales[i][r] * w.format->fp16_scale) <= largest_f32;
    for (int64_t i = 0; rebiased && i < units; ++i)
      for (int r = 0; r < panel_rows; ++r) scales[i][r] *= w.format->fp16_scale;
  }

  // ---- scales ----

  // The scale (or zero point, or minimum) of each lane, in equal parts.
  template <int Parts>
  LOWBIT_INLINE static typename V::f32 spread(const float (*of)[panel_rows], int64_t column, int r) {
    return V::template spread<Parts>(&of[unit_of(column)][r], panel_rows);
  }
  template <int Parts>
  LOWBIT_INLINE typename V::f32 scaled(typename V::f32 value, int64_t column, int r) const {
    if constexpr (scales_sums) return value;
    const typename V::f32 scale = spread<Parts>(scales, column, r);
    if constexpr (Offset == offset::min) return V::fma(value, scale, spread<Parts>(offsets, column, r));
    return V::mul(value, scale);
  }
};

}  // namespace
}  // namespace lowbit::cpu
