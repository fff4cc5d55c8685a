// Activations in the order that packed weights ask for: columns of x by chunks of 64 packed columns.
#pragma once

#include <cstring>

#include "cpu/generic/outputs.h"

namespace lowbit::cpu {
namespace {

// How far ahead packed bytes are asked for: beyond the page. A hint may lie past the weight: it reads nothing.
constexpr int64_t prefetch_ahead = 4096;

// 64 activations of one row for packed columns [64 c, 64 c + 64): where they lie, or, when groups are padded or the
// row ends, a copy in `padded` with zeros between.
template <class T>
inline const T* chunk_of_row(const packed_shape& s, const T* row, int64_t c, T* padded) {
  const int64_t column = c * chunk;
  if (s.k_in_order()) {
    if (column + chunk <= s.k) return row + column;
    std::memset(padded, 0, chunk * sizeof(T));
    if (column < s.k) std::memcpy(padded, row + column, static_cast<size_t>(s.k - column) * sizeof(T));
    return padded;
  }
  std::memset(padded, 0, chunk * sizeof(T));
  for (int64_t i = 0; i < chunk; i += s.unit) {
    const int64_t g = (column + i) / s.span, inside = (column + i) % s.span, first = g * s.group_k + inside;
    int64_t count = s.unit;
    if (count > s.group_k - inside) count = s.group_k - inside;
    if (count > s.k - first) count = s.k - first;
    if (g < s.groups && count > 0) std::memcpy(padded + i, row + first, static_cast<size_t>(count) * sizeof(T));
  }
  return padded;
}

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
template <class View>
inline void panel_mins(const View& w, int64_t panel, int64_t group, float min[panel_rows]) {
  for (int r = 0; r < panel_rows; ++r) {
    if constexpr (requires { w.min(int64_t{0}, int64_t{0}); })
      min[r] = w.min(panel * panel_rows + r, group);
    else
      min[r] = -0.0f;
  }
}

// The K axis of the integer family: segments of at most 32768 columns, each inside one group, in steps of 64.
// Groups of 16 and 32 take a whole step each.
struct integer_axis {
  int64_t groups, group_k, k;
  int64_t segments_per_group;
  int64_t segment_steps;  // of a whole segment
  int64_t group_steps;
  int64_t steps;  // in all

  explicit integer_axis(const packed_shape& s)
      : groups(s.groups),
        group_k(s.groups == 1 ? s.k : s.group_k),
        k(s.k),
        segments_per_group(ceil_div(group_k, integer_segment)),
        segment_steps(segments_per_group == 1 ? ceil_div(group_k, chunk) : integer_segment / chunk),
        group_steps(ceil_div(group_k, chunk)),
        steps(groups * group_steps) {}

  int64_t segments() const { return groups * segments_per_group; }
  int64_t group_of_segment(int64_t segment) const { return segment / segments_per_group; }
  int64_t first_step(int64_t segment) const {
    return group_of_segment(segment) * group_steps + segment % segments_per_group * segment_steps;
  }
  int64_t steps_of(int64_t segment) const {
    const int64_t first = segment % segments_per_group * segment_steps, left = group_steps - first;
    return left < segment_steps ? left : segment_steps;
  }
  // Columns of x in a step: the first, and how many.
  int64_t first_column(int64_t step) const { return step / group_steps * group_k + step % group_steps * chunk; }
  int64_t columns_of(int64_t step) const {
    const int64_t inside = step % group_steps * chunk, first = first_column(step);
    int64_t count = group_k - inside < chunk ? group_k - inside : chunk;
    if (count > k - first) count = k - first;
    return count > 0 ? count : 0;
  }
  // The packed column where a step begins.
  int64_t packed_column(int64_t step, const packed_shape& s) const {
    return step / group_steps * (s.groups == 1 ? 0 : s.span) + step % group_steps * chunk;
  }
  int64_t packed_columns(int64_t step, const packed_shape& s) const {  // 64, or a unit of a narrower group
    const int64_t left = s.span - step % group_steps * chunk;
    return left < chunk ? left : chunk;
  }
};

}  // namespace
}  // namespace lowbit::cpu
