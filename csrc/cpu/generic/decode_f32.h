// Packed codes to fp32 registers, written once for every vector width V.
//
// Order inside a chunk of 64 columns: byte c of dword d of a line is column 4 d + c, and a shift by 8 c brings it down,
// so the decoded order is all c = 0, then all c = 1, ...: position 16 c + d.
#pragma once

#include "cpu/generic/chunks.h"

namespace lowbit::cpu {
namespace {

// Decodes lines of a panel, register by register in the order of K. `Unit` columns surely share a scale; 128: both
// chunks of a line of 4-bit codes do. Narrow codes are joined to a line of bytes first.
template <class V, recipe Recipe, int Unit, offset Offset, int64_t Depth>
class f32_decoder {
 public:
  static constexpr int64_t block_k = Recipe == recipe::lut16 ? 128 : 64;

  explicit f32_decoder(const packed_view& weights) : w(weights) {
    // Those of tables of 4 again and again: lookups see the next code's bits, too.
    if (lut)
      for (int i = 0; i < 16; ++i) values[i] = w.format->values[i & ((1 << w.shape.bits) - 1)];
  }

  // `columns` columns of a panel, Depth at most: what row() decodes.
  void begin(int64_t panel, int64_t column, int64_t columns) {
    run_scales<V, Unit, Offset>(w, panel, column, columns, scales, offsets);
    const packed_shape& s = w.shape;
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

  // f(i, register) for every register i of row r of a block.
  template <class F>
  LOWBIT_INLINE void row(int64_t block, int r, const F& f) const {
    const uint8_t* line = narrow ? planes[block].low + r * line_bytes : lines + (block * panel_rows + r) * line_bytes;
    prefetch_codes(line);
    if constexpr (Recipe == recipe::lut16) {
      lookup<0>(2 * block, r, line, 0, f);
      lookup<4>(2 * block + 1, r, line, 0, f);
    } else if constexpr (Recipe == recipe::lut4) {
      lookup<0>(block, r, line, planes[block].shifts.low, f);
    } else if constexpr (narrow) {
      alignas(64) uint8_t joined[chunk];
      V::join_planes(line, planes[block].high + r * line_bytes, planes[block].shifts, joined);
      bytes(block, r, joined, f);
    } else {
      bytes(block, r, line, f);
    }
  }

 private:
  static constexpr bool lut = Recipe == recipe::lut16 || Recipe == recipe::lut4;
  static constexpr bool linear = Recipe == recipe::linear || Recipe == recipe::narrow_linear;
  static constexpr bool narrow =
      Recipe == recipe::lut4 || Recipe == recipe::narrow_linear || Recipe == recipe::narrow_minifloat;
  static constexpr int registers = chunk / V::lanes;  // of a chunk
  // Parts of a register that differ in scale.
  static constexpr int parts = 4 * V::lanes > Unit ? 4 * V::lanes / Unit : 1;

  struct chunk_planes {  // of a chunk's first row
    const uint8_t *low, *high;
    plane_shifts shifts;
  };

  const packed_view& w;
  const uint8_t* lines = nullptr;
  chunk_planes planes[narrow ? Depth / chunk : 1];
  float values[16];
  alignas(64) float scales[Depth / Unit][panel_rows];
  alignas(64) float offsets[Offset == offset::none ? 1 : Depth / Unit][panel_rows];

  // The scale (or zero point, or minimum) of each lane: dwords d ... d + lanes of chunk c in row r.
  LOWBIT_INLINE static typename V::f32 spread(const float (*of)[panel_rows], int64_t c, int d, int r) {
    if constexpr (Unit >= 64)
      return V::set1(of[c * chunk / Unit][r]);
    else
      return V::template spread<parts>(&of[c * (chunk / Unit) + 4 * d / Unit][r], panel_rows);
  }
  LOWBIT_INLINE typename V::f32 scaled(typename V::f32 value, int64_t c, int d, int r) const {
    const typename V::f32 scale = spread(scales, c, d, r);
    if constexpr (Offset == offset::min) return V::fma(value, scale, spread(offsets, c, d, r));
    if constexpr (Offset == offset::zero_point) value = V::sub(value, spread(offsets, c, d, r));
    return V::mul(value, scale);
  }

  // The codes from bit `Shift` of every byte on, or from `down`. One scale goes into the table, several onto what comes
  // out of it.
  template <int Shift, class F>
  LOWBIT_INLINE void lookup(int64_t c, int r, const uint8_t* line, int down, const F& f) const {
    float entries[16];
    for (int i = 0; i < 16; i += V::lanes) {
      const typename V::f32 v = V::load(values + i);
      V::store(entries + i, Unit >= 64 ? scaled(v, c, 0, r) : v);
    }
    const typename V::table t = V::table16(entries);
    const auto quarter = [&](auto shift) {
#pragma GCC unroll 4
      for (int d = 0; d < 16; d += V::lanes) {
        auto dwords = V::load_bytes(line + 4 * d);
        if constexpr (Recipe == recipe::lut4) dwords = V::shift_right(dwords, down);
        const typename V::f32 v = V::template lookup16<8 * shift.value + Shift>(t, dwords);
        f((Shift ? registers : 0) + (16 * shift.value + d) / V::lanes, Unit >= 64 ? v : scaled(v, c, d, r));
      }
    };
    quarter(constant<0>{});
    quarter(constant<1>{});
    quarter(constant<2>{});
    quarter(constant<3>{});
  }

  template <class F>
  LOWBIT_INLINE void bytes(int64_t block, int r, const uint8_t* line, const F& f) const {
#pragma GCC unroll 4
    for (int c = 0; c < 4; ++c) {
#pragma GCC unroll 4
      for (int d = 0; d < 16; d += V::lanes) {
        const auto code = V::bytes_of(V::load_bytes(line + 4 * d), 8 * c);
        f((16 * c + d) / V::lanes, scaled(number(code), block, d, r));
      }
    }
  }
  LOWBIT_INLINE typename V::f32 number(typename V::i32 code) const {
    if constexpr (!linear) return V::minifloat(code, w.format->fp16_shift, w.format->fp16_scale);
    const typename V::f32 value = V::linear(code);  // of bytes that are stored plus 128
    if constexpr (Recipe == recipe::linear) return value;
    return V::sub(value, V::set1(static_cast<float>(w.format->integer_offset - 128)));
  }
};

}  // namespace
}  // namespace lowbit::cpu
