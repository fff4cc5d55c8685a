// Chunks of a panel: its scales, and its codes where they lie in planes.
#pragma once

#include <arm_neon.h>

#include <cstring>

#include "cpu/generic/columns.h"
#include "cpu/generic/outputs.h"

namespace lowbit::cpu {
namespace {

// How far ahead packed bytes are asked for: beyond the page. A hint may lie past the weight: it reads nothing.
constexpr int64_t prefetch_ahead = 4096;

// Scales and zero points of a panel's 16 rows for one group, as fp32.
inline void panel_scales(const packed_view& w, int64_t panel, int64_t group, float scale[panel_rows],
                         float zero[panel_rows]) {
  const int64_t first = w.shape.scale_index(panel * panel_rows, group);
  if (w.scale_dtype == LOWBIT_F32)
    std::memcpy(scale, static_cast<const float*>(w.scales) + first, panel_rows * sizeof(float));
  else
    for (int r = 0; r < panel_rows; ++r) scale[r] = w.scale(panel * panel_rows + r, group);
  for (int r = 0; r < panel_rows; ++r) zero[r] = w.zero_points ? static_cast<float>(w.zero_points[first + r]) : 0.0f;
}

// Minima of a panel's rows: what W adds to (value - zero) * scale, for formats that have it. -0 where there is none:
// fma(value - zero, scale, -0) is the product.
inline void panel_mins(const packed_view& w, int64_t panel, int64_t group, float min[panel_rows]) {
  for (int r = 0; r < panel_rows; ++r) min[r] = w.min(panel * panel_rows + r, group);
}

// 64 narrow codes to bytes, from the lines of their planes.
inline void join_planes(const uint8_t* low, const uint8_t* high, const plane_shifts& s, uint8_t* out) {
  const auto left = [](uint8x16_t x, int count) { return vshlq_u8(x, vdupq_n_s8(static_cast<int8_t>(count))); };
  for (int i = 0; i < chunk; i += 16) {
    const uint8x16_t a = vandq_u8(left(vld1q_u8(low + i), -s.low), vdupq_n_u8(s.low_mask()));
    const uint8x16_t b = vandq_u8(left(vld1q_u8(high + i), -s.high), vdupq_n_u8(s.high_mask()));
    vst1q_u8(out + i, left(vorrq_u8(a, left(b, s.low_bits)), s.up));
  }
}

// A chunk of narrow codes of a panel.
class narrow_chunk {
 public:
  narrow_chunk(const packed_view& w, int64_t panel, int64_t column, int up)
      : low_(w.codes + w.shape.plane_offset(w.shape.low, panel * panel_rows, column / chunk * chunk)),
        high_(w.codes + w.shape.plane_offset(w.shape.high, panel * panel_rows, column / chunk * chunk)),
        shifts_(w.shape, column, up) {}

  // Row r, a byte for each code.
  void row(int64_t r, uint8_t* out) const {
    __builtin_prefetch(low_ + r * line_bytes + prefetch_ahead);
    __builtin_prefetch(high_ + r * line_bytes + prefetch_ahead);
    join_planes(low_ + r * line_bytes, high_ + r * line_bytes, shifts_, out);
  }

 private:
  const uint8_t *low_, *high_;
  plane_shifts shifts_;
};

}  // namespace
}  // namespace lowbit::cpu
