// integer for up to 64 rows of x, in as many tiles as there are registers for: sums of a segment never wait.
#pragma once

#include "cpu/amx/integer_operands.h"
#include "cpu/amx/outputs.h"

namespace lowbit::cpu {
namespace {

// The rows of tiles that had no gaps, 16 numbers apart.
inline void spread_rows(float* sums, int64_t tiles, int64_t width) {
  for (int64_t t = 0; t < tiles; ++t)
    for (int64_t i = panel_rows - 1; i >= 0; --i)
      _mm512_store_ps(sums + t * 256 + i * 16, _mm512_maskz_loadu_ps(first_lanes(width), sums + t * 256 + i * width));
}

// A segment is scaled while the next one is multiplied: its sums have left the tiles by then.
template <int NT, int MT>
void integer_few(const gemm_problem& p, const integer_axis& axis, const quantized_rows& x, int64_t first,
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

}  // namespace
}  // namespace lowbit::cpu
