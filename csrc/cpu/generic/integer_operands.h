// What the two ways of the integer family share (cpu/generic/integer.h): their operands, and what turns exact sums into
// fp32.
#pragma once

#include "cpu/generic/quantize.h"

namespace lowbit::cpu {
namespace {

struct integer_operands {
  const gemm_problem& p;
  const packed_view& w;
  const integer_segments segments;
  const quantized_matrix x;
  const bool ones;   // the last row of x
  const bool zeros;  // of W or of x

  integer_operands(const gemm_problem& problem, const integer_segments& s, const quantized_matrix& activations)
      : p(problem), w(problem.w), segments(s), x(activations), ones(x.rows > p.m), zeros(has_zeros(p)) {}

  static bool has_zeros(const gemm_problem& p) { return p.w.zero_points || p.activation != LOWBIT_DYNAMIC_SYMMETRIC; }
};

// ---- pieces of K ----

// A part of a segment.
struct integer_piece {
  int64_t begin, end, segment;  // packed columns
  bool first, last;             // of its segment
};

// Pieces, one after the other. A run begins with a line: 8 groups of 16, 32 or 48 are 128, 256 or 384 columns, and
// wider ones fill it.
struct integer_run {
  static constexpr int most = 8;
  int64_t begin, end, count;
  integer_piece pieces[most];

  // At most `columns` of them.
  integer_run(const integer_segments& segments, int64_t column, int64_t segment, int64_t columns)
      : begin(column), end(column), count(0) {
    const int64_t to = segments.last - column < columns ? segments.last : column + columns;
    for (; end < to && count < most; ++segment, ++count) {
      const int64_t segment_end = segments.end(segment), piece_end = segment_end < to ? segment_end : to;
      pieces[count] = {end, piece_end, segment, end == segments.begin(segment), piece_end == segment_end};
      end = piece_end;
    }
  }
  int64_t next_segment() const { return pieces[count - 1].segment + pieces[count - 1].last; }
};

// f(count as a constant), Low <= count <= High.
template <int Low, int High, class F>
LOWBIT_INLINE void with_count(int64_t count, const F& f) {
  constexpr int middle = (Low + High) / 2;
  if constexpr (Low == High)
    f(constant<Low>{});
  else if (count <= middle)
    with_count<Low, middle>(count, f);
  else
    with_count<middle + 1, High>(count, f);
}

// ---- codes ----

// Columns of the 16 lines of a panel that lie side by side.
template <int Bits>
constexpr int64_t lines_k = Bits == 4 ? 2 * chunk : chunk;

// Whether segments end where lines do.
template <int Bits>
LOWBIT_INLINE bool whole_lines(const integer_segments& s) {
  return s.span % lines_k<Bits> == 0;
}

// Narrow codes of a chunk of a panel to 16 lines of bytes.
template <class V>
LOWBIT_INLINE void join_lines(const packed_view& w, int64_t panel, int64_t column, uint8_t* out) {
  const packed_shape& s = w.shape;
  const uint8_t* low = w.codes + s.plane_offset(s.low, panel * panel_rows, column);
  const uint8_t* high = w.codes + s.plane_offset(s.high, panel * panel_rows, column);
  const plane_shifts shifts(s, column, 0);
  for (int64_t i = 0; i < panel_rows * line_bytes; i += line_bytes) {
    prefetch_codes(low + i);
    V::join_planes(low + i, high + i, shifts, out + i);
  }
}

// ---- scales ----

// What turns the sums of one segment and panel into fp32.
struct segment_scales {
  alignas(64) float scale[panel_rows];
  alignas(64) int32_t offset[panel_rows];      // of a code, zero point included
  alignas(64) int32_t weight_sum[panel_rows];  // sum of code - offset, where x has zero points
};

template <class V>
inline void begin_segment(const packed_view& w, int64_t panel, int64_t group, segment_scales& out) {
  panel_scales<V>(w, panel, group, 1, &out.scale);
  const int64_t first = w.shape.scale_index(panel * panel_rows, group);
  for (int r = 0; r < panel_rows; ++r)
    out.offset[r] = w.format->integer_offset + (w.zero_points ? w.zero_points[first + r] : 0);
}

// From the products of the row of ones and V::lanes rows of W, from r on.
template <class V>
LOWBIT_INLINE void put_weight_sums(typename V::i32 exact, int32_t columns, int64_t r, segment_scales& s) {
  const typename V::i32 offsets = V::mul_i32(V::load_bytes(s.offset + r), V::set1_i32(columns));
  V::store_bytes(s.weight_sum + r, V::sub_i32(exact, offsets));
}

// Where W or x has zero points: exact sums of one row of x and V::lanes outputs without them.
//   exact - offset q_sum - weight_sum x_zero
template <class V>
LOWBIT_INLINE typename V::i32 subtract_zeros(typename V::i32 exact, const segment_scales& s, int64_t r, int32_t q_sum,
                                             int32_t x_zero) {
  exact = V::sub_i32(exact, V::mul_i32(V::load_bytes(s.offset + r), V::set1_i32(q_sum)));
  return V::sub_i32(exact, V::mul_i32(V::load_bytes(s.weight_sum + r), V::set1_i32(x_zero)));
}

// One row of x and V::lanes outputs.
template <class V>
LOWBIT_INLINE void add_scaled(typename V::i32 exact, typename V::f32 scale, float* y) {
  V::store(y, V::fma(V::to_f32(exact), scale, V::load(y)));
}

}  // namespace
}  // namespace lowbit::cpu
