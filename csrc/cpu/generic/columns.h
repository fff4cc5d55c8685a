// Columns in the order that packed weights ask for: of x by chunks of 64 packed columns, of narrow codes by planes, and
// of the integer family by steps.
#pragma once

#include <cstring>

#include "gemm/contract.h"

namespace lowbit::cpu {
namespace {

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

// Where in the bytes of its lines a chunk of narrow codes is, and how far up the byte of each code it goes.
struct plane_shifts {
  int low, low_bits, high, high_bits, up;

  plane_shifts() = default;
  plane_shifts(const packed_shape& s, int64_t column, int to)
      : low(s.plane_shift(s.low, column)),
        low_bits(s.low.bits),
        high(s.plane_shift(s.high, column)),
        high_bits(s.high.bits),
        up(to) {}
  uint8_t low_mask() const { return static_cast<uint8_t>((1u << low_bits) - 1); }
  uint8_t high_mask() const { return static_cast<uint8_t>((1u << high_bits) - 1); }
  uint8_t code(uint8_t low_byte, uint8_t high_byte) const {
    return static_cast<uint8_t>(((low_byte >> low & low_mask()) | (high_byte >> high & high_mask()) << low_bits) << up);
  }
};

// Bits that a code joined from its planes has at most: two products with int8 fit 16 bits.
constexpr int joined = 7;

// The K axis of the integer family in steps of 64, for levels that multiply whole steps: segments of at most 32768
// columns, each inside one group. Groups of 16 and 32 take a whole step each.
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
