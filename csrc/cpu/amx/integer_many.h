// integer for many rows of x, 2 x 2 tiles: a slab of x stays in L2, and panels pass two at a time, decoded once.
#pragma once

#include "cpu/amx/integer_operands.h"
#include "cpu/amx/outputs.h"
#include "cpu/amx/tuning.h"

namespace lowbit::cpu {
namespace {

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

// The panels of a thread by all of x.
class integer_many {
 public:
  integer_many(const gemm_problem& problem, const integer_axis& k_axis, const quantized_rows& activations)
      : p(problem),
        axis(k_axis),
        x(activations),
        weights(problem, k_axis),
        lanes(16),
        slabs(axis.steps > integer_slab_steps),
        pieces(axis.steps_of(0) > integer_slab_steps),
        segments_at_once(pieces ? 1 : integer_slab_steps / axis.steps_of(0)) {
    const int64_t tile_steps = axis.steps < integer_slab_steps ? axis.steps : integer_slab_steps;
    const int64_t tiles = integer_slab_bytes / 1024 / tile_steps;
    m_tiles = x.tiles.tiles < tiles ? x.tiles.tiles : tiles / 2 * 2;
  }

  bool run(int64_t first, int64_t last) {
    if (!allocate()) return false;
    const tile_scope tiles(16);
    const int64_t panels_at_once = slabs ? waiting_sums / round_up(m_tiles, 2) / 2 * 2 : last - first;
    for (int64_t tile = 0; tile < x.tiles.tiles; tile += m_tiles) {
      const int64_t last_tile = tile + m_tiles < x.tiles.tiles ? tile + m_tiles : x.tiles.tiles;
      for (int64_t panel = first; panel < last; panel += panels_at_once) {
        const int64_t last_panel = panel + panels_at_once < last ? panel + panels_at_once : last;
        for (int64_t segment = 0; segment < axis.segments(); segment += segments_at_once)
          multiply_segments(segment, {panel, last_panel, last, tile, last_tile});
      }
    }
    return true;
  }

 private:
  // Panels and tiles of x whose sums wait together; end: of the panels that the thread has.
  struct range {
    int64_t panel, last_panel, end, tile, last_tile;
  };

  bool allocate() {
    const size_t tile_bytes = weights.decoded() ? 2 * integer_slab_steps * 1024 : 0;
    const size_t scale_bytes = sizeof(segment_scales) * static_cast<size_t>(2 * segments_at_once);
    const size_t sum_bytes = static_cast<size_t>(waiting_sums) * 1024;
    decoded = static_cast<uint8_t*>(scratch(scratch_slot::panel, tile_bytes + scale_bytes));
    carried = slabs ? static_cast<uint8_t*>(scratch(scratch_slot::sums, 2 * sum_bytes)) : nullptr;
    if (!decoded || (slabs && !carried)) return false;
    scales = reinterpret_cast<segment_scales*>(decoded + tile_bytes);
    return true;
  }

  // As many whole segments as a slab holds, or one that is longer, slab by slab.
  void multiply_segments(int64_t segment, const range& r) {
    const int64_t left = axis.segments() - segment, segments = left < segments_at_once ? left : segments_at_once;
    const int64_t last_segment = segment + segments - 1;
    const int64_t begin = axis.first_step(segment), end = axis.first_step(last_segment) + axis.steps_of(last_segment);
    for (int64_t step = begin; step < end; step += integer_slab_steps) {
      const int64_t steps = end - step < integer_slab_steps ? end - step : integer_slab_steps;
      int64_t sums = 0;
      for (int64_t panel = r.panel; panel < r.last_panel; panel += 2) {
        integer_pair w{{}, scales, panel, step, steps, segment, segments, panel + 1 < r.last_panel};
        prepare(w, step + steps == end);
        sums = multiply_pair(w, r, sums);
      }
    }
  }

  // Scales and tiles of a pair for a slab. The sums of codes are asked for where a segment ends.
  void prepare(integer_pair& w, bool last_of_segment) {
    for (int64_t q = 0; q <= w.two; ++q)
      for (int64_t i = 0; i < w.segments; ++i) {
        segment_scales& s = scales[q * w.segments + i];
        weights.scales(w.panel + q, w.first_segment + i, &s);
        if (last_of_segment) weights.sums(w.panel + q, w.first_segment + i, &s);
      }
    prepare_tiles(weights, axis, decoded, w);
  }

  // By the tiles of x, two at a time, asking for a share of the two panels that follow. `sums` counts the tiles of sums
  // that wait before these; returns those before the next pair's.
  int64_t multiply_pair(const integer_pair& w, const range& r, int64_t sums) {
    const int64_t rounds = ceil_div(r.last_tile - r.tile, 2);
    for (int64_t round = 0; round < rounds; ++round, sums += 4) {
      const int64_t tile = r.tile + 2 * round;
      int32_t* exact = pieces ? reinterpret_cast<int32_t*>(carried) + sums * 256 : nullptr;
      float* scaled =
          slabs && axis.segments() > 1 ? reinterpret_cast<float*>(carried) + (waiting_sums + sums) * 256 : nullptr;
      pair_lookahead next{};
      if (!weights.decoded() && w.panel + 2 < r.end)
        next = {{weights.packed_tiles(w.panel + 2, w.step), weights.packed_tiles(w.panel + 3, w.step)},
                round * 32 / rounds,
                (round + 1) * 32 / rounds};
      if (tile + 1 < r.last_tile)
        multiply_integer_pair<2>(p, axis, x, lanes, w, tile, next, exact, scaled);
      else
        multiply_integer_pair<1>(p, axis, x, lanes, w, tile, next, exact, scaled);
    }
    return sums;
  }

  const gemm_problem& p;
  const integer_axis& axis;
  const quantized_rows& x;
  const integer_weights weights;
  const tile_lanes lanes;
  const bool slabs;   // K takes several
  const bool pieces;  // a segment does
  const int64_t segments_at_once;
  int64_t m_tiles;             // of a slab of x
  uint8_t* decoded = nullptr;  // tiles of two panels
  segment_scales* scales = nullptr;
  uint8_t* carried = nullptr;  // exact sums of segments that go on; behind them, scaled ones
};

}  // namespace
}  // namespace lowbit::cpu
