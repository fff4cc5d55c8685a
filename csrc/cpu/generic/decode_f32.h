// Packed codes to fp32 registers, written once for every vector width V.
//
// Order inside a chunk of 64 columns: byte c of dword d of a line is column 4 d + c, and a shift by 8 c brings it down,
// so the decoded order is all c = 0, then all c = 1, ...: position 16 c + d.
#pragma once

#include "cpu/generic/chunks.h"

namespace lowbit::cpu {
namespace {

// Decodes lines of a panel, register by register in the order of K. `Unit` columns surely share a scale; 128: both
// chunks of a line of 4-bit codes do.
template <class V, recipe Recipe, int Unit, bool Zero, int64_t Depth>
class f32_decoder {
 public:
  static constexpr int64_t block_k = Recipe == recipe::lut16 ? 128 : 64;

  explicit f32_decoder(const packed_view& weights) : w(weights) {
    std::memcpy(values, w.format->values, sizeof values);
  }

  // `columns` columns of a panel, Depth at most: what row() decodes.
  void begin(int64_t panel, int64_t column, int64_t columns) {
    run_scales<V, Unit, Zero>(w, panel, column, columns, scales, zeros);
    lines = w.codes + w.shape.block_offset(panel, column / block_k);
  }

  // f(i, register) for every register i of row r of a block.
  template <class F>
  LOWBIT_INLINE void row(int64_t block, int r, const F& f) const {
    const uint8_t* line = lines + (block * panel_rows + r) * line_bytes;
    prefetch_codes(line);
    if constexpr (Recipe == recipe::lut16) {
      nibbles<0>(block, r, line, f);
      nibbles<1>(block, r, line, f);
    } else {
      bytes(block, r, line, f);
    }
  }

 private:
  static constexpr int registers = chunk / V::lanes;  // of a chunk
  // Parts of a register that differ in scale.
  static constexpr int parts = 4 * V::lanes > Unit ? 4 * V::lanes / Unit : 1;

  const packed_view& w;
  const uint8_t* lines = nullptr;
  float values[16];
  alignas(64) float scales[Depth / Unit][panel_rows];
  alignas(64) float zeros[Zero ? Depth / Unit : 1][panel_rows];

  // The scale (or zero point) of each lane: dwords d ... d + lanes of chunk c in row r.
  LOWBIT_INLINE static typename V::f32 spread(const float (*of)[panel_rows], int64_t c, int d, int r) {
    if constexpr (Unit >= 64)
      return V::set1(of[c * chunk / Unit][r]);
    else
      return V::template spread<parts>(&of[c * (chunk / Unit) + 4 * d / Unit][r], panel_rows);
  }
  LOWBIT_INLINE typename V::f32 scaled(typename V::f32 value, int64_t c, int d, int r) const {
    if constexpr (Zero) value = V::sub(value, spread(zeros, c, d, r));
    return V::mul(value, spread(scales, c, d, r));
  }

  // The low (0) or high (1) nibbles of a line. One scale goes into the table, several onto what comes out of it.
  template <int High, class F>
  LOWBIT_INLINE void nibbles(int64_t block, int r, const uint8_t* line, const F& f) const {
    const int64_t c = 2 * block + High;
    float entries[16];
    for (int i = 0; i < 16; i += V::lanes) {
      const typename V::f32 v = V::load(values + i);
      V::store(entries + i, Unit >= 64 ? scaled(v, c, 0, r) : v);
    }
    const typename V::table t = V::table16(entries);
    const auto quarter = [&](auto shift) {
#pragma GCC unroll 4
      for (int d = 0; d < 16; d += V::lanes) {
        typename V::f32 v = V::template lookup16<8 * shift.value + 4 * High>(t, V::load_bytes(line + 4 * d));
        f(High * registers + (16 * shift.value + d) / V::lanes, Unit >= 64 ? v : scaled(v, c, d, r));
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
        f((16 * c + d) / V::lanes,
          scaled(Recipe == recipe::linear ? V::linear(code)
                                          : V::minifloat(code, w.format->fp16_shift, w.format->fp16_scale),
                 block, d, r));
      }
    }
  }
};

}  // namespace
}  // namespace lowbit::cpu
