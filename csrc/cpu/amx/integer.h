// integer on AMX int8: weights are A tiles (8-bit codes straight from the packed bytes, 4-bit ones decoded), quantized
// rows the B tiles, exact int32 sums [output][row of x] of one segment of K, scaled into fp32 sums segment by segment.
#pragma once

#include "cpu/amx/weight_only.h"

namespace lowbit::cpu {
namespace {

// What scaling a segment's sums needs to know of a panel.
struct alignas(64) segment_scales {
  float scale[panel_rows];
  int32_t offset[panel_rows];      // still to subtract from a code: times the sum of q
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
        decode_int4_step(w, axis, panel, step + i, z.offset, buffer + i * 1024);
      else
        decode_int8_step(w, axis, panel, step + i, buffer + i * 1024);
    }
    return buffer;
  }

  void scales(int64_t panel, int64_t segment, segment_scales* out) const {
    const int64_t group = axis.group_of_segment(segment);
    _mm512_store_ps(out->scale, load_scales(w, panel, group));
    _mm512_store_si512(
        out->offset, _mm512_add_epi32(load_zero_points(w, panel, group), _mm512_set1_epi32(w.format->integer_offset)));
    if (asymmetric) sum_weights(panel, segment, out);
  }

 private:
  const packed_view& w;
  const integer_axis& axis;
  bool asymmetric;

  void sum_weights(int64_t panel, int64_t segment, segment_scales* out) const {
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
};

// Adds one segment's int32 tile, scaled, to fp32 sums:   sums = fma(float(exact), scale, sums)
template <bool Offset, bool Asymmetric>
inline void scale_tile(const int32_t* exact, float* sums, bool first, const segment_scales& z, __m512i q_sums,
                       __m512i x_zero) {
  for (int r = 0; r < panel_rows; ++r) {
    __m512i v = _mm512_load_si512(exact + 16 * r);  // (16 rows of x)
    if (Offset) v = _mm512_sub_epi32(v, _mm512_mullo_epi32(_mm512_set1_epi32(z.offset[r]), q_sums));
    if (Asymmetric) v = _mm512_sub_epi32(v, _mm512_mullo_epi32(_mm512_set1_epi32(z.weight_sum[r]), x_zero));
    const __m512 before = first ? _mm512_setzero_ps() : _mm512_load_ps(sums + 16 * r);
    _mm512_store_ps(sums + 16 * r, _mm512_fmadd_ps(_mm512_cvtepi32_ps(v), _mm512_set1_ps(z.scale[r]), before));
  }
}

inline void scale_tile(const gemm_problem& p, bool offset, const quantized_rows& x, int64_t segment, int64_t tile,
                       const int32_t* exact, float* sums, const segment_scales& z) {
  const __m512i q_sums = _mm512_loadu_si512(x.sums + segment * x.tiles.tiles * 16 + tile * 16);
  const __m512i x_zero = _mm512_loadu_si512(x.zero_point + tile * 16);
  const bool first = segment == 0, asymmetric = p.activation != LOWBIT_DYNAMIC_SYMMETRIC;
  if (offset && asymmetric)
    scale_tile<true, true>(exact, sums, first, z, q_sums, x_zero);
  else if (offset)
    scale_tile<true, false>(exact, sums, first, z, q_sums, x_zero);
  else if (asymmetric)
    scale_tile<false, true>(exact, sums, first, z, q_sums, x_zero);
  else
    scale_tile<false, false>(exact, sums, first, z, q_sums, x_zero);
}

// Adds steps [first, last) of NT panels, whose A tiles begin at a[i], and MT activation tiles from `tile` on.
template <int NT, int MT>
void multiply_integer(bool is_signed, const uint8_t* const a[NT], const activation_tiles& x, int64_t tile,
                      int64_t first, int64_t last, lookahead next = {}) {
  for (int64_t step = first; step < last;) {
    const int64_t steps = last - step < x.contiguous(step) ? last - step : x.contiguous(step);
    const uint8_t *weights[NT], *activations[MT];
    for (int i = 0; i < NT; ++i) weights[i] = a[i] + (step - first) * 1024;
    for (int j = 0; j < MT; ++j) activations[j] = x.at(tile + j, step);
    // Decoded 4-bit codes are signed; stored bytes are value + 128, unsigned.
    if (is_signed)
      multiply<dot_s8s8, NT, MT>(weights, 1024, activations, x.step_bytes(), x.row_bytes(), steps, next);
    else
      multiply<dot_u8s8, NT, MT>(weights, 1024, activations, x.step_bytes(), x.row_bytes(), steps, next);
    step += steps;
  }
}

// A segment is scaled while the next one is multiplied: its sums have left the tiles by then.
template <int NT, int MT>
void integer_small(const gemm_problem& p, const integer_axis& axis, const quantized_rows& x, int64_t first,
                   int64_t last) {
  constexpr int64_t most_steps = 4;  // decoded at a time
  alignas(64) uint8_t buffer[2][NT][most_steps * 1024];
  alignas(64) int32_t exact[2][NT * MT * 256];
  alignas(64) float sums[NT * MT * 256];
  segment_scales scales[2][NT];
  const integer_weights weights(p, axis);
  const bool is_signed = p.w.shape.bits == 4;
  const tile_scope tiles(static_cast<int>(x.tiles.width));
  const uint8_t* a[NT];
  int turn = 0;  // of the two buffers

  for (int64_t panel = first; panel < last; panel += NT) {
    const auto at = [&](int i) { return panel + i < last ? panel + i : last - 1; };
    const auto scale_segment = [&](int64_t segment) {
      for (int i = 0; i < NT; ++i)
        for (int j = 0; j < MT; ++j)
          scale_tile(p, !is_signed, x, segment, j, exact[segment % 2] + (i * MT + j) * 256, sums + (i * MT + j) * 256,
                     scales[segment % 2][i]);
    };
    for (int64_t segment = 0; segment < axis.segments(); ++segment) {
      const int64_t begin = axis.first_step(segment), end = begin + axis.steps_of(segment);
      for (int i = 0; i < NT; ++i) weights.scales(at(i), segment, &scales[segment % 2][i]);
      zero_sums<NT * MT>();
      for (int64_t step = begin; step < end; turn ^= 1) {
        const int64_t steps = weights.decoded() && end - step > most_steps ? most_steps : end - step;
        for (int i = 0; i < NT; ++i) a[i] = weights.tiles(at(i), step, steps, scales[segment % 2][i], buffer[turn][i]);
        multiply_integer<NT, MT>(is_signed, a, x.tiles, 0, step, step + steps);
        step += steps;
      }
      store_sums<NT * MT>(exact[segment % 2]);
      if (segment > 0) scale_segment(segment - 1);
    }
    scale_segment(axis.segments() - 1);
    for (int i = 0; i < NT && panel + i < last; i += 2)
      for (int j = 0; j < MT; ++j)
        store_outputs(p, sums + (i * MT + j) * 256, sums + ((i + 1) * MT + j) * 256, panel + i, j,
                      _mm512_loadu_ps(x.scale + j * 16));
  }
}

// Steps [step, step + steps) of a slab of panels: whole segments, or a piece of one that is longer than a slab.
struct integer_slab {
  const uint8_t* tiles;          // [panel][step], unless the packed bytes serve
  const segment_scales* scales;  // [panel][segment]
  int64_t first, panels, step, steps, first_segment, segments;
};

// Two panels x MT activation tiles over a slab. `carried` keeps the exact sums of a segment that goes on in the next
// slab, `sums` the scaled ones.
template <int MT>
void multiply_integer_slab(const gemm_problem& p, const integer_axis& axis, const quantized_rows& x,
                           const integer_weights& weights, const integer_slab& slab, int64_t panel, int64_t tile,
                           int32_t* carried, float* sums) {
  const bool pair = panel + 1 < slab.first + slab.panels, is_signed = p.w.shape.bits == 4;
  const int64_t panels[2] = {panel - slab.first, panel - slab.first + pair};
  alignas(64) int32_t exact[2 * MT * 256];
  alignas(64) float only_sums[2 * MT * 256];
  if (axis.segments() == 1) sums = only_sums;  // nothing to keep from slab to slab: L1 will do
  const lookahead next = x.tiles.next_tiles(tile, MT, slab.step, panels[0] / 2, ceil_div(slab.panels, 2));
  for (int64_t i = 0; i < slab.segments; ++i) {
    const int64_t segment = slab.first_segment + i;
    const int64_t segment_first = axis.first_step(segment), segment_last = segment_first + axis.steps_of(segment);
    const int64_t first = segment_first > slab.step ? segment_first : slab.step;
    const int64_t last = segment_last < slab.step + slab.steps ? segment_last : slab.step + slab.steps;
    const uint8_t* a[2];
    for (int q = 0; q < 2; ++q)
      a[q] = weights.decoded() ? slab.tiles + (panels[q] * slab.steps + first - slab.step) * 1024
                               : weights.packed_tiles(slab.first + panels[q], first);
    if (first == segment_first)
      zero_sums<2 * MT>();
    else
      load_sums<2 * MT>(carried);
    multiply_integer<2, MT>(is_signed, a, x.tiles, tile, first, last, next);
    if (last < segment_last) {
      store_sums<2 * MT>(carried);
      return;
    }
    store_sums<2 * MT>(exact);
    for (int q = 0; q < 2; ++q)
      for (int j = 0; j < MT; ++j)
        scale_tile(p, !is_signed, x, segment, tile + j, exact + (q * MT + j) * 256, sums + (q * MT + j) * 256,
                   slab.scales[panels[q] * slab.segments + i]);
  }
  if (slab.step + slab.steps < axis.steps) return;
  for (int j = 0; j < MT; ++j)
    store_outputs(p, sums + j * 256, sums + (MT + j) * 256, panel, tile + j,
                  _mm512_loadu_ps(x.scale + (tile + j) * 16));
}

// Decodes the steps [step, step + steps) of a slab's panels, segment by segment.
void decode_slab(const integer_weights& weights, const integer_axis& axis, const integer_slab& slab, uint8_t* tiles) {
  for (int64_t i = 0; i < slab.panels; ++i) {
    for (int64_t g = 0; g < slab.segments; ++g) {
      const int64_t segment_first = axis.first_step(slab.first_segment + g);
      const int64_t segment_last = segment_first + axis.steps_of(slab.first_segment + g);
      const int64_t from = segment_first > slab.step ? segment_first : slab.step;
      const int64_t to = segment_last < slab.step + slab.steps ? segment_last : slab.step + slab.steps;
      weights.tiles(slab.first + i, from, to - from, slab.scales[i * slab.segments + g],
                    tiles + (i * slab.steps + from - slab.step) * 1024);
    }
  }
}

bool integer_large(const gemm_problem& p, const integer_axis& axis, const quantized_rows& x, int64_t first,
                   int64_t last) {
  const integer_weights weights(p, axis);
  const int64_t slab_pairs = slab_panels / 2;
  // A slab takes as many whole segments as it holds, or a piece of one.
  const int64_t segment_steps = axis.steps_of(0);
  const int64_t segments_at_once = segment_steps >= slab_steps ? 1 : slab_steps / segment_steps;
  const int64_t steps_at_once = segment_steps >= slab_steps ? slab_steps : segments_at_once * segment_steps;
  const int64_t tile_bytes = weights.decoded() ? slab_panels * steps_at_once * 1024 : 0;
  const int64_t sums_bytes = slab_panels * slab_tiles * 1024;
  uint8_t* slab_memory = static_cast<uint8_t*>(scratch(
      scratch_slot::panel,
      static_cast<size_t>(tile_bytes) + sizeof(segment_scales) * static_cast<size_t>(slab_panels * segments_at_once)));
  uint8_t* sums_memory = static_cast<uint8_t*>(scratch(scratch_slot::sums, static_cast<size_t>(2 * sums_bytes)));
  if (!slab_memory || !sums_memory) return false;
  segment_scales* scales = reinterpret_cast<segment_scales*>(slab_memory + tile_bytes);
  float* sums = reinterpret_cast<float*>(sums_memory);
  int32_t* carried = reinterpret_cast<int32_t*>(sums_memory + sums_bytes);
  const tile_scope tiles(16);

  for (int64_t tile = 0; tile < x.tiles.tiles; tile += slab_tiles) {
    const int64_t last_tile = tile + slab_tiles < x.tiles.tiles ? tile + slab_tiles : x.tiles.tiles;
    for (int64_t panel = first; panel < last; panel += slab_panels) {
      const int64_t panels = last - panel < slab_panels ? last - panel : slab_panels;
      for (int64_t segment = 0; segment < axis.segments(); segment += segments_at_once) {
        const int64_t left = axis.segments() - segment, segments = left < segments_at_once ? left : segments_at_once;
        for (int64_t i = 0; i < panels; ++i)
          for (int64_t g = 0; g < segments; ++g) weights.scales(panel + i, segment + g, &scales[i * segments + g]);
        const int64_t begin = axis.first_step(segment);
        const int64_t end = axis.first_step(segment + segments - 1) + axis.steps_of(segment + segments - 1);
        for (int64_t step = begin; step < end; step += steps_at_once) {
          const int64_t steps = end - step < steps_at_once ? end - step : steps_at_once;
          const integer_slab slab{slab_memory, scales, panel, panels, step, steps, segment, segments};
          if (weights.decoded()) decode_slab(weights, axis, slab, slab_memory);
          for (int64_t t = tile; t < last_tile; t += 2) {
            for (int64_t i = 0; i < panels; i += 2) {
              const int64_t c = ((t - tile) / 2 * slab_pairs + i / 2) * 1024;
              if (t + 1 < last_tile)
                multiply_integer_slab<2>(p, axis, x, weights, slab, panel + i, t, carried + c, sums + c);
              else
                multiply_integer_slab<1>(p, axis, x, weights, slab, panel + i, t, carried + c, sums + c);
            }
          }
        }
      }
    }
  }
  return true;
}

lowbit_status integer(const gemm_problem& p) {
  const integer_axis axis(p.w.shape);
  quantized_rows x{};
  x.tiles = activation_tiles::of(p.m, axis.steps);
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
    else if (!integer_large(p, axis, x, first, last))
      __atomic_store_n(&out_of_memory, true, __ATOMIC_RELAXED);
  });
  if (out_of_memory) return fail(LOWBIT_OUT_OF_MEMORY, "no memory for a slab of weights and its sums");
  return LOWBIT_OK;
}

}  // namespace
}  // namespace lowbit::cpu
