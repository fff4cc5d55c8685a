// integer on AMX int8: weights are A tiles (8-bit codes straight from the packed bytes, 4-bit ones decoded), quantized
// rows the B tiles, exact int32 sums [output][row of x] of one segment of K, scaled into fp32 sums segment by segment.
//
//   m <= 4    weights that need decoding meet AVX512-VNNI instead: the sums are the same bits
//   m <= 64   4 panels x 1 activation tile, 2 x 2, 1 x 3 or 1 x 4: sums stay in L1
//   more      2 panels x 2: 256 rows of x, 4096 columns of them, stay in L2; two panels at a time pass, decoded once
#pragma once

#include "cpu/amx/weight_only.h"

namespace lowbit::cpu::avx512_vnni {
kernel integer;
}

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

// The rows of tiles that had no gaps, 16 numbers apart.
inline void spread_rows(float* sums, int64_t tiles, int64_t width) {
  for (int64_t t = 0; t < tiles; ++t)
    for (int64_t i = panel_rows - 1; i >= 0; --i)
      _mm512_store_ps(sums + t * 256 + i * 16, _mm512_maskz_loadu_ps(first_lanes(width), sums + t * 256 + i * width));
}

// A segment is scaled while the next one is multiplied: its sums have left the tiles by then.
template <int NT, int MT>
void integer_small(const gemm_problem& p, const integer_axis& axis, const quantized_rows& x, int64_t first,
                   int64_t last) {
  constexpr int together = NT > 2 ? NT : 2;  // panels whose outputs are stored at a time: y's lines are of two
  constexpr int64_t most_steps = 4;          // decoded at a time
  alignas(64) uint8_t buffer[2][NT][most_steps * 1024];
  alignas(64) int32_t exact[NT * MT * 256];
  alignas(64) float sums[together * MT * 256];
  segment_scales scales[2][NT];
  const integer_weights weights(p, axis);
  const bool is_signed = p.w.shape.bits == 4;
  const tile_lanes lanes(x.tiles.width);
  const tile_scope tiles(static_cast<int>(x.tiles.width));
  int turn = 0;  // of the two buffers

  const auto multiply_panels = [&](int64_t panel, float* to) {
    const auto at = [&](int i) { return panel + i < last ? panel + i : last - 1; };
    const auto scale_segment = [&](int64_t segment) {
      for (int i = 0; i < NT; ++i)
        for (int j = 0; j < MT; ++j)
          scale_tile(p, !is_signed, x, lanes, segment, j, exact + (i * MT + j) * 256, to + (i * MT + j) * 256,
                     scales[segment % 2][i]);
    };
    const uint8_t* a[NT];
    for (int64_t segment = 0; segment < axis.segments(); ++segment) {
      const int64_t begin = axis.first_step(segment), end = begin + axis.steps_of(segment);
      for (int i = 0; i < NT; ++i) {
        weights.scales(at(i), segment, &scales[segment % 2][i]);
        weights.sums(at(i), segment, &scales[segment % 2][i]);
      }
      zero_sums<NT * MT>();
      for (int64_t step = begin; step < end; turn ^= 1) {
        const int64_t steps = weights.decoded() && end - step > most_steps ? most_steps : end - step;
        for (int i = 0; i < NT; ++i) a[i] = weights.tiles(at(i), step, steps, scales[segment % 2][i], buffer[turn][i]);
        multiply_integer<0, NT, MT>(is_signed, a, x.tiles, 0, step, step + steps);
        step += steps;
      }
      if (segment > 0) scale_segment(segment - 1);
      store_sums<NT * MT>(exact, x.tiles.row_bytes());
    }
    scale_segment(axis.segments() - 1);
  };
  for (int64_t panel = first; panel < last; panel += together) {
    for (int i = 0; i < together && panel + i < last; i += NT) multiply_panels(panel + i, sums + i * MT * 256);
    if (!lanes.full()) spread_rows(sums, together * MT, lanes.width);
    for (int i = 0; i < together && panel + i < last; i += 2)
      for (int j = 0; j < MT; ++j)
        store_outputs(p, sums + (i * MT + j) * 256, sums + ((i + 1) * MT + j) * 256, panel + i, j,
                      _mm512_loadu_ps(x.scale + j * 16));
  }
}

// Two panels over a slab of K: whole segments, or a piece of one that is longer than a slab.
struct integer_pair {
  const uint8_t* tiles[2];       // the first step of each
  const segment_scales* scales;  // [panel][segment of the slab]
  int64_t panel, step, steps, first_segment, segments;
  bool two;  // panels, not one twice
};

// ... x MT activation tiles. `carried` keeps the exact sums of a segment that goes on in the next slab, `waiting` (or
// null) the scaled ones. Where segments are short, the panels take turns: while the tiles multiply one, the other's
// sums of the segment before are scaled.
template <int MT>
void multiply_integer_pair(const gemm_problem& p, const integer_axis& axis, const quantized_rows& x,
                           const tile_lanes& lanes, const integer_pair& w, int64_t tile, pair_lookahead next,
                           int32_t* carried, float* waiting) {
  alignas(64) int32_t exact[2 * MT * 256];
  alignas(64) float only_sums[2 * MT * 256];
  const bool is_signed = p.w.shape.bits == 4;
  float* sums = waiting ? waiting : only_sums;
  const auto scale = [&](int q, int64_t i) {
    for (int j = 0; j < MT; ++j)
      scale_tile(p, !is_signed, x, lanes, w.first_segment + i, tile + j, exact + (q * MT + j) * 256,
                 sums + (q * MT + j) * 256, w.scales[(w.two ? q : 0) * w.segments + i]);
  };
  for (int64_t i = 0; i < w.segments; ++i) {
    const int64_t segment = w.first_segment + i, steps = axis.steps_of(segment);
    const int64_t segment_first = axis.first_step(segment), segment_last = segment_first + steps;
    const int64_t first = segment_first > w.step ? segment_first : w.step;
    const int64_t last = segment_last < w.step + w.steps ? segment_last : w.step + w.steps;
    const uint8_t* const a[2] = {w.tiles[0] + (first - w.step) * 1024, w.tiles[1] + (first - w.step) * 1024};
    if (steps > short_segment) {
      if (first == segment_first)
        zero_sums<2 * MT>();
      else
        load_sums<2 * MT>(carried);
      multiply_integer<0, 2, MT>(is_signed, a, x.tiles, tile, first, last, next.from(first - w.step));
      if (last < segment_last) return store_sums<2 * MT>(carried);
    }
    for_tiles<2>([&](auto q) {
      if (steps <= short_segment) {
        zero_sums<MT, q.value * MT>();
        multiply_integer<q.value * MT, 1, MT>(is_signed, a + q.value, x.tiles, tile, first, last,
                                              q.value == 0 ? next.from(first - w.step) : pair_lookahead{});
      }
      if (i > 0) scale(q.value, i - 1);
      store_sums<MT, q.value * MT>(exact + q.value * MT * 256);
    });
  }
  for (int q = 0; q < 2; ++q) scale(q, w.segments - 1);
  if (w.step + w.steps < axis.steps) return;
  for (int j = 0; j < MT; ++j)
    store_outputs(p, sums + j * 256, sums + (MT + j) * 256, w.panel, tile + j,
                  _mm512_loadu_ps(x.scale + (tile + j) * 16));
}

// The A tiles of both panels for a slab, decoded segment by segment unless the packed bytes are them.
inline void prepare_tiles(const integer_weights& weights, const integer_axis& axis, uint8_t* memory, integer_pair& w) {
  for (int64_t q = 0; q < 2; ++q) {
    const int64_t panel = w.panel + (w.two ? q : 0);
    w.tiles[q] = weights.decoded() ? memory + (w.two ? q : 0) * w.steps * 1024 : weights.packed_tiles(panel, w.step);
    if (!weights.decoded() || q > w.two) continue;
    for (int64_t i = 0; i < w.segments; ++i) {
      const int64_t segment_first = axis.first_step(w.first_segment + i);
      const int64_t segment_last = segment_first + axis.steps_of(w.first_segment + i);
      const int64_t from = segment_first > w.step ? segment_first : w.step;
      const int64_t to = segment_last < w.step + w.steps ? segment_last : w.step + w.steps;
      weights.tiles(panel, from, to - from, w.scales[q * w.segments + i],
                    memory + (q * w.steps + from - w.step) * 1024);
    }
  }
}

bool integer_large(const gemm_problem& p, const integer_axis& axis, const quantized_rows& x, int64_t first,
                   int64_t last) {
  const integer_weights weights(p, axis);
  const tile_lanes lanes(16);
  const int64_t tiles_of_slab =
      integer_slab_bytes / 1024 / (axis.steps < integer_slab_steps ? axis.steps : integer_slab_steps);
  const int64_t m_tiles = x.tiles.tiles < tiles_of_slab ? x.tiles.tiles : tiles_of_slab / 2 * 2;
  // A slab takes as many whole segments as it holds, or a piece of one.
  const int64_t segment_steps = axis.steps_of(0);
  const bool pieces = segment_steps > integer_slab_steps, slabs = axis.steps > integer_slab_steps;
  const int64_t segments_at_once = pieces ? 1 : integer_slab_steps / segment_steps;
  const int64_t panels_at_once = slabs ? waiting_sums / round_up(m_tiles, 2) / 2 * 2 : last - first;
  const int64_t tile_bytes = weights.decoded() ? 2 * integer_slab_steps * 1024 : 0;
  const int64_t sums_bytes = waiting_sums * 1024;
  uint8_t* memory = static_cast<uint8_t*>(
      scratch(scratch_slot::panel,
              static_cast<size_t>(tile_bytes) + sizeof(segment_scales) * static_cast<size_t>(2 * segments_at_once)));
  uint8_t* sums =
      slabs ? static_cast<uint8_t*>(scratch(scratch_slot::sums, static_cast<size_t>(2 * sums_bytes))) : nullptr;
  if (!memory || (slabs && !sums)) return false;
  segment_scales* scales = reinterpret_cast<segment_scales*>(memory + tile_bytes);
  const tile_scope tiles(16);

  // One slab of K of one pair, by all activation tiles of the slab. `c` counts the tiles of sums that wait.
  const auto multiply_pair = [&](integer_pair& w, bool last_of_segment, int64_t tile, int64_t last_tile, int64_t& c) {
    for (int64_t q = 0; q <= w.two; ++q)
      for (int64_t i = 0; i < w.segments; ++i) {
        weights.scales(w.panel + q, w.first_segment + i, &scales[q * w.segments + i]);
        if (last_of_segment) weights.sums(w.panel + q, w.first_segment + i, &scales[q * w.segments + i]);
      }
    w.scales = scales;
    prepare_tiles(weights, axis, memory, w);
    const int64_t rounds = ceil_div(last_tile - tile, 2);
    for (int64_t t = tile; t < last_tile; t += 2, c += 4) {
      int32_t* carried = pieces ? reinterpret_cast<int32_t*>(sums) + c * 256 : nullptr;
      float* waiting = slabs && axis.segments() > 1 ? reinterpret_cast<float*>(sums + sums_bytes) + c * 256 : nullptr;
      pair_lookahead next{};
      if (!weights.decoded() && w.panel + 2 < last)  // a share of the two panels that follow
        next = {{weights.packed_tiles(w.panel + 2, w.step), weights.packed_tiles(w.panel + 3, w.step)},
                (t - tile) / 2 * 32 / rounds,
                ((t - tile) / 2 + 1) * 32 / rounds};
      if (t + 1 < last_tile)
        multiply_integer_pair<2>(p, axis, x, lanes, w, t, next, carried, waiting);
      else
        multiply_integer_pair<1>(p, axis, x, lanes, w, t, next, carried, waiting);
    }
  };

  for (int64_t tile = 0; tile < x.tiles.tiles; tile += m_tiles) {
    const int64_t last_tile = tile + m_tiles < x.tiles.tiles ? tile + m_tiles : x.tiles.tiles;
    for (int64_t panels = first; panels < last; panels += panels_at_once) {
      const int64_t last_panel = panels + panels_at_once < last ? panels + panels_at_once : last;
      for (int64_t segment = 0; segment < axis.segments(); segment += segments_at_once) {
        const int64_t left = axis.segments() - segment, segments = left < segments_at_once ? left : segments_at_once;
        const int64_t begin = axis.first_step(segment);
        const int64_t end = axis.first_step(segment + segments - 1) + axis.steps_of(segment + segments - 1);
        for (int64_t step = begin; step < end; step += integer_slab_steps) {
          const int64_t steps = end - step < integer_slab_steps ? end - step : integer_slab_steps;
          int64_t c = 0;
          for (int64_t panel = panels; panel < last_panel; panel += 2) {
            integer_pair w{{}, nullptr, panel, step, steps, segment, segments, panel + 1 < last_panel};
            multiply_pair(w, step + steps == end, tile, last_tile, c);
          }
        }
      }
    }
  }
  return true;
}

lowbit_status integer(const gemm_problem& p) {
  const integer_axis axis(p.w.shape);
  if (p.m <= vector_rows && integer_weights(p, axis).decoded()) return avx512_vnni::integer(p);
  quantized_rows x{};
  x.tiles = activation_tiles::of(p.m, axis.steps, integer_slab_steps);
  const int64_t padded_m = x.tiles.tiles * 16;
  const size_t bytes = static_cast<size_t>(x.tiles.bytes() + padded_m * 4 * (2 + axis.segments()));
  uint8_t* memory = static_cast<uint8_t*>(scratch(scratch_slot::activations, bytes));
  if (!memory) return fail(LOWBIT_OUT_OF_MEMORY, "no memory for %zu bytes of quantized activations", bytes);
  x.tiles.data = memory;
  x.scale = reinterpret_cast<float*>(memory + x.tiles.bytes());
  x.zero_point = reinterpret_cast<int32_t*>(x.scale + padded_m);
  x.sums = x.zero_point + padded_m;
  parallel_for(p.parallel, x.tiles.tiles, [&](int64_t begin, int64_t end) {
    for (int64_t t = begin; t < end; ++t) quantize_tile(p, axis, x, t);
  });
  bool out_of_memory = false;
  const int64_t together = x.tiles.tiles == 1 ? 4 : 2;
  parallel_for(p.parallel, ceil_div(p.w.shape.panels, together), [&](int64_t begin, int64_t end) {
    const int64_t first = begin * together,
                  last = end * together < p.w.shape.panels ? end * together : p.w.shape.panels;
    if (x.tiles.tiles == 1)
      integer_small<4, 1>(p, axis, x, first, last);
    else if (x.tiles.tiles == 2)
      integer_small<2, 2>(p, axis, x, first, last);
    else if (x.tiles.tiles == 3 && x.tiles.bytes() <= small_bytes)
      integer_small<1, 3>(p, axis, x, first, last);
    else if (x.tiles.tiles == 4 && x.tiles.bytes() <= small_bytes)
      integer_small<1, 4>(p, axis, x, first, last);
    else if (!integer_large(p, axis, x, first, last))
      __atomic_store_n(&out_of_memory, true, __ATOMIC_RELAXED);
  });
  if (out_of_memory) return fail(LOWBIT_OUT_OF_MEMORY, "no memory for a slab of weights and its sums");
  return LOWBIT_OK;
}

}  // namespace
}  // namespace lowbit::cpu
