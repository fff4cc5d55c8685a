// What the two ways of the integer family share (cpu/amx/integer.h): A tiles of packed bytes, their products, and what
// turns a segment's exact sums into fp32.
#pragma once

#include "cpu/amx/activations.h"
#include "cpu/amx/decode.h"
#include "cpu/amx/tile.h"

namespace lowbit::cpu {
namespace {

// What scaling a segment's sums needs to know of a panel.
struct alignas(64) segment_scales {
  float scale[panel_rows];
  int32_t offset[panel_rows];      // still to subtract from a code: times the sum of q
  uint32_t offsets[panel_rows];    // the same as four bytes
  int32_t weight_sum[panel_rows];  // of code - zero point: times the zero point of x
};

// The A tiles of one panel and a range of steps, and the scales of its segments.
class integer_weights {
 public:
  integer_weights(const gemm_problem& p, const integer_axis& k_axis)
      : w(p.w), axis(k_axis), asymmetric(p.activation != LOWBIT_DYNAMIC_SYMMETRIC) {}

  bool decoded() const { return w.shape.bits == 4 || w.shape.unit != chunk; }

  const uint8_t* packed_tiles(int64_t panel, int64_t step) const {
    return w.codes + w.shape.code_offset(panel * panel_rows, axis.packed_column(step, w.shape));
  }
  // A tiles of `steps` steps, decoded into `buffer` unless the packed bytes are them.
  const uint8_t* tiles(int64_t panel, int64_t step, int64_t steps, const segment_scales& z, uint8_t* buffer) const {
    if (!decoded()) return packed_tiles(panel, step);
    for (int64_t i = 0; i < steps; ++i) {
      if (w.shape.bits == 4)
        decode_int4_step(w, axis, panel, step + i, z.offsets, buffer + i * 1024);
      else
        decode_int8_step(w, axis, panel, step + i, buffer + i * 1024);
    }
    return buffer;
  }

  void scales(int64_t panel, int64_t segment, segment_scales* out) const {
    const int64_t group = axis.group_of_segment(segment);
    _mm512_store_ps(out->scale, load_scales(w, panel, group));
    const __m512i offset =
        _mm512_add_epi32(load_zero_points(w, panel, group), _mm512_set1_epi32(w.format->integer_offset));
    _mm512_store_si512(out->offset, offset);
    _mm512_store_si512(out->offsets, _mm512_mullo_epi32(_mm512_and_si512(offset, _mm512_set1_epi32(255)),
                                                        _mm512_set1_epi32(0x01010101)));
  }
  // What zero points of x are multiplied by. All of the segment's codes pass.
  void sums(int64_t panel, int64_t segment, segment_scales* out) const {
    if (!asymmetric) return;
    const packed_shape& s = w.shape;
    const int64_t first = axis.first_step(segment), last = first + axis.steps_of(segment);
    for (int r = 0; r < panel_rows; ++r) {
      __m512i sum = _mm512_setzero_si512();
      int64_t columns = 0;
      for (int64_t step = first; step < last; ++step) {
        const int64_t column = axis.packed_column(step, s), count = axis.columns_of(step);
        const __mmask64 keep = count >= 64 ? ~0ull : (1ull << count) - 1;
        __m512i codes = _mm512_maskz_loadu_epi8(keep, w.codes + s.code_offset(panel * panel_rows + r, column));
        if (s.bits == 4) {
          if (s.high_nibble(column)) codes = _mm512_srli_epi16(codes, 4);
          codes = _mm512_and_si512(codes, _mm512_set1_epi8(15));
        }
        sum = _mm512_dpbusd_epi32(sum, codes, _mm512_set1_epi8(1));
        columns += count;
      }
      out->weight_sum[r] = _mm512_reduce_add_epi32(sum) - static_cast<int32_t>(columns) * out->offset[r];
    }
  }

 private:
  const packed_view& w;
  const integer_axis& axis;
  bool asymmetric;
};

// Sums of a tile as registers of 16. A full tile has an output to a register, a row of x to a lane; one of fewer rows
// has no gaps: which output and row a lane is of takes a permutation.
struct tile_lanes {
  int64_t width;  // rows of x, and registers
  __m512i output[16], row[16];

  explicit tile_lanes(int64_t rows) : width(rows) {
    alignas(64) int32_t o[16], r[16];
    for (int64_t i = 0; i < width; ++i) {
      for (int64_t lane = 0; lane < 16; ++lane) {
        o[lane] = static_cast<int32_t>((16 * i + lane) / width);
        r[lane] = static_cast<int32_t>((16 * i + lane) % width);
      }
      output[i] = _mm512_load_si512(o);
      row[i] = _mm512_load_si512(r);
    }
  }
  bool full() const { return width == 16; }

  template <bool Full>
  __m512i of_output(const int32_t* values, int64_t i) const {
    return Full ? _mm512_set1_epi32(values[i]) : _mm512_permutexvar_epi32(output[i], _mm512_load_si512(values));
  }
  template <bool Full>
  __m512 of_output(const float* values, int64_t i) const {
    return Full ? _mm512_set1_ps(values[i]) : _mm512_permutexvar_ps(output[i], _mm512_load_ps(values));
  }
  template <bool Full>
  __m512i of_row(__m512i values, int64_t i) const {
    return Full ? values : _mm512_permutexvar_epi32(row[i], values);
  }
};

// Adds one segment's int32 tile, scaled, to fp32 sums:   sums = fma(float(exact), scale, sums)
template <bool Full, bool Offset, bool Asymmetric>
inline void scale_tile(const tile_lanes& lanes, const int32_t* exact, float* sums, bool first, const segment_scales& z,
                       __m512i q_sums, __m512i x_zero) {
#pragma GCC unroll 4
  for (int64_t i = 0; i < (Full ? 16 : lanes.width); ++i) {
    __m512i v = _mm512_load_si512(exact + 16 * i);
    if (Offset)
      v = _mm512_sub_epi32(v, _mm512_mullo_epi32(lanes.of_output<Full>(z.offset, i), lanes.of_row<Full>(q_sums, i)));
    if (Asymmetric)
      v = _mm512_sub_epi32(v,
                           _mm512_mullo_epi32(lanes.of_output<Full>(z.weight_sum, i), lanes.of_row<Full>(x_zero, i)));
    const __m512 before = first ? _mm512_setzero_ps() : _mm512_load_ps(sums + 16 * i);
    _mm512_store_ps(sums + 16 * i, _mm512_fmadd_ps(_mm512_cvtepi32_ps(v), lanes.of_output<Full>(z.scale, i), before));
  }
}

inline void scale_tile(const gemm_problem& p, bool offset, const quantized_rows& x, const tile_lanes& lanes,
                       int64_t segment, int64_t tile, const int32_t* exact, float* sums, const segment_scales& z) {
  const __m512i q_sums = _mm512_loadu_si512(x.sums + segment * x.tiles.tiles * 16 + tile * 16);
  const __m512i x_zero = _mm512_loadu_si512(x.zero_point + tile * 16);
  const bool first = segment == 0, asymmetric = p.activation != LOWBIT_DYNAMIC_SYMMETRIC;
  const auto scale = [&](auto full) {
    if (offset && asymmetric)
      scale_tile<full.value, true, true>(lanes, exact, sums, first, z, q_sums, x_zero);
    else if (offset)
      scale_tile<full.value, true, false>(lanes, exact, sums, first, z, q_sums, x_zero);
    else if (asymmetric)
      scale_tile<full.value, false, true>(lanes, exact, sums, first, z, q_sums, x_zero);
    else
      scale_tile<full.value, false, false>(lanes, exact, sums, first, z, q_sums, x_zero);
  };
  lanes.full() ? scale(constant<true>{}) : scale(constant<false>{});
}

// Adds steps [first, last) of NT panels, whose A tiles begin at a[i], and MT activation tiles from `tile` on, to the
// tiles C and up.
template <int C, int NT, int MT, class Ahead = lookahead>
void multiply_integer(bool is_signed, const uint8_t* const a[NT], const activation_tiles& x, int64_t tile,
                      int64_t first, int64_t last, Ahead next = {}) {
  for (int64_t step = first; step < last;) {
    const int64_t steps = last - step < x.contiguous(step) ? last - step : x.contiguous(step);
    const uint8_t *weights[NT], *activations[MT];
    for (int i = 0; i < NT; ++i) weights[i] = a[i] + (step - first) * 1024;
    for (int j = 0; j < MT; ++j) activations[j] = x.at(tile + j, step);
    // Decoded 4-bit codes are signed; stored bytes are value + 128, unsigned.
    if (is_signed)
      multiply<dot_s8s8, C, NT, MT>(weights, activations, x.step_bytes(), x.row_bytes(), steps, next);
    else
      multiply<dot_u8s8, C, NT, MT>(weights, activations, x.step_bytes(), x.row_bytes(), steps, next);
    step += steps;
    next = next.from(steps);
  }
}

}  // namespace
}  // namespace lowbit::cpu
