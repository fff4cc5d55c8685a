// integer for few rows of x: exact dot products straight from packed lines.
//
//   tile    a panel of W x some rows of x x a piece of K: up to quad_tile rows in quads (integer_quads.h), up to
//           V::integer_rows in lanes (integer_lanes.h), which take whole lines
//   run     the columns whose lines stay in L1 for the next tile of rows
#pragma once

#include "cpu/generic/integer_lanes.h"
#include "cpu/generic/integer_quads.h"

namespace lowbit::cpu {
namespace {

// M rows of x by a panel.
template <class V, int Bits, int M>
class few_tile {
 public:
  // Rows [m, m + M); exact and y are those of the first.
  few_tile(const integer_operands& o, int64_t m, int32_t* exact_sums, float* sums)
      : q(o.x.q + m * o.x.stride),
        stride(o.x.stride),
        q_sums(o.x.sums + m * o.segments.count()),
        segments(o.segments.count()),
        x_zero(o.x.zero_point + m),
        ones(o.ones ? o.p.m - m : M),
        zeros(o.zeros),
        exact(exact_sums),
        y(sums) {}

  // lines_of(column): the lines of the panel that a column is in; shift_of(column): where its nibbles are.
  template <class Lines, class Shift>
  LOWBIT_INLINE void add_piece(const integer_piece& piece, segment_scales& scales, const Lines& lines_of,
                               const Shift& shift_of) const {
    if constexpr (M > quad_tile) {
      lane_sums<V, Bits, M> sums(q, stride);
      for_each([&](int i, int, int64_t at) __attribute__((always_inline)) { sums.at(i) = start(piece, i, at); });
      sums.add_lines(lines_of(piece.begin), piece.begin, (piece.end - piece.begin) / lines_k<Bits>);
      end_piece(piece, scales, [&](int i, int, int64_t) __attribute__((always_inline)) { return sums.at(i); });
    } else {
      typename V::i32 sums[M][panel_registers<V>];
      add_quads(piece, lines_of, shift_of, sums);
      end_piece(piece, scales, [&](int i, int r, int64_t at) __attribute__((always_inline)) {
        const typename V::i32* s = sums[i] + 4 * r / V::lanes;
        return V::add_i32(start(piece, i, at), V::sum_quads(s[0], s[1], s[2], s[3]));
      });
    }
  }

 private:
  template <class Lines, class Shift>
  LOWBIT_INLINE void add_quads(const integer_piece& piece, const Lines& lines_of, const Shift& shift_of,
                               typename V::i32 (&sums)[M][panel_registers<V>]) const {
    constexpr int at_once = registers_at_once<V, Bits, M>;
    const auto keep = [&](const auto& part, int first) __attribute__((always_inline)) {
#pragma GCC unroll 8
      for (int m = 0; m < M; ++m)
#pragma GCC unroll 8
        for (int i = 0; i < at_once; ++i) sums[m][first + i] = part.at(m, i);
    };
    const bool whole = piece.begin % lines_k<Bits> == 0 && piece.end % lines_k<Bits> == 0;
#pragma GCC unroll 1
    for (int first = 0; first < panel_registers<V>; first += at_once) {
      const int64_t offset = first * register_rows<V> * line_bytes;
      quad_sums<V, Bits, M, at_once> part(q, stride);
      if (whole) {  // by itself, so that its sums need no other registers
        part.add_lines(lines_of(piece.begin) + offset, piece.begin, (piece.end - piece.begin) / lines_k<Bits>);
        keep(part, first);
        continue;
      }
      for (int64_t column = piece.begin; column < piece.end;) {
        const int64_t next = column / chunk * chunk + chunk, to = next < piece.end ? next : piece.end;
        part.add_quads(lines_of(column) + offset, shift_of(column), column, to);
        column = to;
      }
      keep(part, first);
    }
  }

  // f(row of x, row of W, where a vector of outputs lies), the last row of x first: that of ones.
  template <class F>
  LOWBIT_INLINE static void for_each(const F& f) {
#pragma GCC unroll 16
    for (int i = M - 1; i >= 0; --i)
#pragma GCC unroll 2
      for (int r = 0; r < static_cast<int>(panel_rows); r += V::lanes) f(i, r, i * panel_rows + r);
  }

  LOWBIT_INLINE typename V::i32 start(const integer_piece& piece, int i, int64_t at) const {
    if (!piece.first) return V::load_bytes(exact + at);
    return zeros ? V::zero_i32() : V::set1_i32(q_sums[i * segments + piece.segment]);
  }

  // Sums to exact or, at the end of a segment, on to y.
  template <class F>
  LOWBIT_INLINE void end_piece(const integer_piece& piece, segment_scales& scales, const F& sum_of) const {
    if (!piece.last)
      return for_each([&](int i, int r, int64_t at)
                          __attribute__((always_inline)) { V::store_bytes(exact + at, sum_of(i, r, at)); });
    if (!zeros)
      return for_each([&](int i, int r, int64_t at) __attribute__((always_inline)) {
        add_scaled<V>(sum_of(i, r, at), V::load(scales.scale + r), y + at);
      });
    for_each([&](int i, int r, int64_t at) __attribute__((always_inline)) {
      const typename V::i32 sum = sum_of(i, r, at);
      const int32_t q_sum = q_sums[i * segments + piece.segment];
      if (i == ones)
        put_weight_sums<V>(sum, q_sum, r, scales);
      else
        add_scaled<V>(subtract_zeros<V>(sum, scales, r, q_sum, x_zero[i]), V::load(scales.scale + r), y + at);
    });
  }

  const int32_t* const q;
  const int64_t stride;
  const int32_t* const q_sums;
  const int64_t segments;
  const int32_t* const x_zero;
  const int64_t ones;  // the row of ones, or M
  const bool zeros;
  int32_t* const exact;
  float* const y;
};

template <class V, int Bits>
class integer_few_call {
 public:
  static bool takes(int64_t m, const integer_segments& s) {
    return m <= V::template integer_few<Bits> || (m <= V::integer_lanes && whole_lines<Bits>(s));
  }

  explicit integer_few_call(const integer_operands& operands)
      : o(operands), tiles(ceil_div(o.x.rows, whole_lines<Bits>(o.segments) ? V::integer_rows : quad_tile)) {
    for (int64_t t = 0; t < tiles; ++t) first_row[t] = round_up(ceil_div(o.x.rows * t, tiles), quad_tile);
    first_row[tiles] = o.x.rows;
  }

  void run(int64_t begin, int64_t end) const {
    for (int64_t panel = begin; panel < end; ++panel) multiply_panel(panel);
  }

 private:
  static constexpr int64_t most_rows =
      V::template integer_few<Bits> > V::integer_lanes ? V::template integer_few<Bits> : V::integer_lanes;

  const integer_operands& o;
  // Rows of x are shared out evenly to tiles, by fours: on Zen 4, 8 and 12 cost least a row.
  const int64_t tiles;
  int64_t first_row[most_rows / quad_tile + 2];

  void multiply_panel(int64_t panel) const {
    alignas(64) int32_t exact[(most_rows + 1) * panel_rows];
    alignas(64) float y[(most_rows + 1) * panel_rows];
    alignas(64) uint8_t room[Bits == joined ? V::integer_columns / chunk * panel_rows * line_bytes : 1];
    segment_scales scales[integer_run::most];
    std::memset(y, 0, static_cast<size_t>(o.x.rows) * sizeof(float) * panel_rows);
    for (int64_t column = 0, segment = 0; column < o.segments.last;) {
      const integer_run run(o.segments, column, segment, V::integer_columns);
      for (int64_t i = 0; i < run.count; ++i)
        if (run.pieces[i].last) begin_segment<V>(o.w, panel, o.segments.group_of(run.pieces[i].segment), scales[i]);
      for (int64_t at = run.begin / chunk * chunk; Bits == joined && at < run.end; at += chunk)
        join_lines<V>(o.w, panel, at, room + (at / chunk - run.begin / chunk) * panel_rows * line_bytes);
      for (int64_t t = tiles; t-- > 0;)  // the last row of x, that of ones, is in the first tile
        with_count<1, V::integer_rows>(first_row[t + 1] - first_row[t], [&](auto count) __attribute__((always_inline)) {
          multiply_rows<count.value>(first_row[t], run, panel, room, scales, exact, y);
        });
      column = run.end, segment = run.next_segment();
    }
    for (int64_t m = 0; m < o.p.m; ++m) store_row(o.p, y + m * panel_rows, m, panel * panel_rows, o.x.scale[m]);
  }

  // Rows [m, m + M) of x by a run. Not inlined: a tile needs all registers.
  template <int M>
  [[gnu::noinline]] void multiply_rows(int64_t m, const integer_run& run, int64_t panel, const uint8_t* room,
                                       segment_scales* scales, int32_t* exact, float* y) const {
    const packed_view& w = o.w;
    const few_tile<V, Bits, M> tile(o, m, exact + m * panel_rows, y + m * panel_rows);
    const auto lines_of = [&](int64_t column) __attribute__((always_inline)) {
      if (Bits == joined) return room + (column / chunk - run.begin / chunk) * panel_rows * line_bytes;
      return w.codes + w.shape.block_offset(panel, column / lines_k<Bits>);
    };
    const auto shift_of = [&](int64_t column) { return Bits == 4 ? w.shape.plane_shift(w.shape.low, column) : 0; };
    for (int64_t i = 0; i < run.count; ++i) tile.add_piece(run.pieces[i], scales[i], lines_of, shift_of);
  }
};

}  // namespace
}  // namespace lowbit::cpu
