// integer for few rows of x: exact dot products straight from packed lines. V::lanes 32-bit numbers are quads of four,
// each a quarter of a line's 64 bytes.
//
//   quads   V::load_quads collects 16 columns of 2 or 4 rows of W to a register; 16 columns of x meet all of them. Sums
//           stay in quads, which are added up at the end of a segment: half the shuffles that transposing lines takes
//   tile    a panel of W x up to few_rows rows of x x a piece of K. From L1, Zen 4 takes 4.3, 5.9 and 9.4 cycles a line
//           of int4 for 1, 2 and 4 rows, 2.7, 3.6 and 5.0 of int8: 8 and 4 of those are the dot products of 4 rows
//   run     the columns whose lines stay in L1 for the next tile of rows
#pragma once

#include "cpu/generic/integer_operands.h"

namespace lowbit::cpu {
namespace {

constexpr int64_t quad = 16;  // columns
constexpr int few_rows = 4;   // of a tile: 16 sums, 8 registers of codes

// Registers that hold a quad of each row of a panel; those that a tile of M rows of x multiplies at a time, so that
// their sums fit the registers.
template <class V>
constexpr int panel_registers = static_cast<int>(panel_rows) * 4 / V::lanes;
template <class V, int Bits, int M>
constexpr int registers_at_once = V::template integer_sums<Bits> / M >= panel_registers<V> ? panel_registers<V>
                                  : V::template integer_sums<Bits> / M >= 4                ? 4
                                  : V::template integer_sums<Bits> / M >= 2                ? 2
                                                                                           : 1;

// Rows of a register, a quad of each: one after the other, so that lines are read as they lie. Zen 4, 4096 x 4096, two
// threads, m = 1, every fourth row to a register: int8 534 us, now 432; int4 278, now 234.
template <class V>
constexpr int64_t register_rows = V::lanes / 4;

// Sums of M rows of x by Registers of a panel, in quads.
template <class V, int Bits, int M, int Registers>
class quad_sums {
 public:
  static constexpr int parts = V::template code_parts<Bits>;

  quad_sums(const int32_t* activations, int64_t stride) : q_(activations), stride_(stride) {
#pragma GCC unroll 8
    for (int m = 0; m < M; ++m)
#pragma GCC unroll 8
      for (int i = 0; i < Registers; ++i) sums_[m][i] = V::zero_i32();
  }

  // All of the 16 lines of a column, and of those behind. `lines` are from the registers' first row on.
  LOWBIT_INLINE void add_lines(const uint8_t* lines, int64_t column, int64_t count) {
    for (const int32_t* q = q_ + column / 4 * parts; count > 0;
         --count, lines += panel_rows * line_bytes, q += lines_k<Bits> / 4 * parts) {
      begin_words();
#pragma GCC unroll 2
      for (int pair = 0; pair < 2; ++pair) {
        typename V::i32 codes[Registers][2];
        load(lines, pair, codes);
#pragma GCC unroll 2
        for (int half = 0; half < (Bits == 4 ? 2 : 1); ++half)
#pragma GCC unroll 2
          for (int j = 0; j < 2; ++j)
            multiply(codes, j, q + (half * chunk / quad + 2 * pair + j) * 4 * parts,
                     [&](typename V::i32 bytes) __attribute__((always_inline)) {
                       if constexpr (Bits != 4) return bytes;
                       return half ? V::high_nibbles(bytes) : V::low_nibbles(bytes);
                     });
      }
      end_words();
    }
  }

  // Columns [column, end) of one chunk, whole quads.
  LOWBIT_INLINE void add_quads(const uint8_t* lines, int shift, int64_t column, int64_t end) {
    begin_words();
    for (int64_t at = column; at < end;) {
      typename V::i32 codes[Registers][2];
      load(lines, at % chunk / (2 * quad), codes);
      for (int64_t j = at / quad % 2; j < 2 && at < end; ++j, at += quad)
        multiply(codes, j, q_ + at / 4 * parts, [&](typename V::i32 bytes) __attribute__((always_inline)) {
          if constexpr (Bits != 4) return bytes;
          return V::low_nibbles(V::shift_right(bytes, shift));
        });
    }
    end_words();
  }

  const typename V::i32& at(int m, int i) const { return sums_[m][i]; }

 private:
  // Levels that add up products as words first have as many sums of these. A line has 8 products.
  static constexpr bool words = V::template word_products<Bits> > 0;
  static_assert(!words || V::template word_products<Bits> >= lines_k<Bits> / quad);

  LOWBIT_INLINE static void load(const uint8_t* lines, int64_t pair, typename V::i32 (*codes)[2]) {
#pragma GCC unroll 8
    for (int i = 0; i < Registers; ++i) {
      const uint8_t* line = lines + i * register_rows<V> * line_bytes;
      V::load_quads(line + pair * 2 * quad, codes[i]);
      if (Bits != joined && !pair)  // joined ones lie in a buffer
#pragma GCC unroll 4
        for (int row = 0; row < register_rows<V>; ++row) {
          prefetch_codes(line + row * line_bytes);
          __builtin_prefetch(line + (row + 2 * panel_rows) * line_bytes, 0, 3);
        }
    }
  }

  template <class F>
  LOWBIT_INLINE void multiply(const typename V::i32 (*codes)[2], int64_t j, const int32_t* q, const F& bytes_of) {
#pragma GCC unroll 2
    for (int part = 0; part < parts; ++part, q += 4) {
      typename V::i32 c[Registers];
#pragma GCC unroll 8
      for (int i = 0; i < Registers; ++i) c[i] = V::template code_part<Bits>(bytes_of(codes[i][j]), part);
#pragma GCC unroll 8
      for (int m = 0; m < M; ++m) {
        const typename V::i32 x = V::set1_quad(q + m * stride_);
#pragma GCC unroll 8
        for (int i = 0; i < Registers; ++i) {
          if constexpr (words)
            words_[m][i] = V::dot_words(words_[m][i], c[i], x);
          else
            sums_[m][i] = V::template dot_u8s8<Bits>(sums_[m][i], c[i], x);
        }
      }
    }
  }

  LOWBIT_INLINE void begin_words() {
    if constexpr (words)
#pragma GCC unroll 8
      for (int m = 0; m < M; ++m)
#pragma GCC unroll 8
        for (int i = 0; i < Registers; ++i) words_[m][i] = V::zero_i32();
  }
  LOWBIT_INLINE void end_words() {
    if constexpr (words)
#pragma GCC unroll 8
      for (int m = 0; m < M; ++m)
#pragma GCC unroll 8
        for (int i = 0; i < Registers; ++i) sums_[m][i] = V::add_words(sums_[m][i], words_[m][i]);
  }

  const int32_t* q_;
  const int64_t stride_;
  typename V::i32 sums_[M][Registers], words_[words ? M : 1][words ? Registers : 1];
};

// M rows of x by a panel.
template <class V, int Bits, int M>
class few_tile {
 public:
  // Rows [m, m + M); exact and y are those of the first.
  few_tile(const integer_operands& o, int64_t m, int32_t* exact_sums, float* y)
      : q(o.x.q + m * o.x.stride),
        stride(o.x.stride),
        q_sums(o.x.sums + m * o.segments.count()),
        segments(o.segments.count()),
        x_zero(o.x.zero_point + m),
        ones(o.ones ? o.p.m - m : M),
        zeros(o.zeros),
        exact(exact_sums) {
    for_each([&](int i, int r)
                 __attribute__((always_inline)) { sums_[i][r] = V::load(y + i * panel_rows + r * V::lanes); });
  }

  // lines_of(column): the lines of the panel that a column is in; shift_of(column): where its nibbles are.
  template <class Lines, class Shift>
  LOWBIT_INLINE void add_piece(const integer_piece& piece, segment_scales& scales, const Lines& lines_of,
                               const Shift& shift_of) {
    constexpr int at_once = registers_at_once<V, Bits, M>;
    typename V::i32 sums[M][panel_registers<V>];
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
    end_piece(piece, sums, scales);
  }

  void store(float* y) const {
    for_each([&](int i, int r)
                 __attribute__((always_inline)) { V::store(y + i * panel_rows + r * V::lanes, sums_[i][r]); });
  }

 private:
  static constexpr int vectors = static_cast<int>(panel_rows) / V::lanes;

  // f(row, vector of outputs), the last row first: that of ones.
  template <class F>
  LOWBIT_INLINE static void for_each(const F& f) {
#pragma GCC unroll 8
    for (int i = M - 1; i >= 0; --i)
#pragma GCC unroll 2
      for (int r = 0; r < vectors; ++r) f(i, r);
  }

  // Sums to exact or, at the end of a segment, on to y.
  LOWBIT_INLINE void end_piece(const integer_piece& piece, const typename V::i32 (&sums)[M][panel_registers<V>],
                               segment_scales& scales) {
    for_each([&](int i, int r) __attribute__((always_inline)) {
      const typename V::i32* s = sums[i] + 4 * r;
      typename V::i32 sum = V::sum_quads(s[0], s[1], s[2], s[3]);
      int32_t* const so_far = exact + i * panel_rows + r * V::lanes;
      if (!piece.first) sum = V::add_i32(sum, V::load_bytes(so_far));
      if (!piece.last) return V::store_bytes(so_far, sum);
      const int32_t q_sum = q_sums[i * segments + piece.segment];
      if (i == ones)
        put_weight_sums<V>(sum, q_sum, r * V::lanes, scales);
      else
        sums_[i][r] = scale_sums<V>(sum, scales, r * V::lanes, zeros, q_sum, x_zero[i], sums_[i][r]);
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
  typename V::f32 sums_[M][vectors];
};

template <class V, int Bits>
class integer_few_call {
 public:
  explicit integer_few_call(const integer_operands& operands) : o(operands) {}

  void multiply_panel(int64_t panel) const {
    alignas(64) int32_t exact[(V::template integer_few<Bits> + 1) * panel_rows];
    alignas(64) float y[(V::template integer_few<Bits> + 1) * panel_rows];
    alignas(64) uint8_t room[Bits == joined ? integer_run::columns / chunk * panel_rows * line_bytes : 1];
    segment_scales scales[integer_run::most];
    std::memset(y, 0, static_cast<size_t>(o.x.rows) * sizeof(float) * panel_rows);
    for (int64_t column = 0, segment = 0; column < o.segments.last;) {
      const integer_run run(o.segments, column, segment);
      for (int64_t i = 0; i < run.count; ++i)
        if (run.pieces[i].last) begin_segment<V>(o.w, panel, o.segments.group_of(run.pieces[i].segment), scales[i]);
      for (int64_t at = run.begin / chunk * chunk; Bits == joined && at < run.end; at += chunk)
        join_lines<V>(o.w, panel, at, room + (at / chunk - run.begin / chunk) * panel_rows * line_bytes);
      for (int64_t left = o.x.rows; left > 0;) {  // from the last row, that of ones
        const int64_t count = left % few_rows ? left % few_rows : few_rows;
        left -= count;
        multiply_rows<few_rows>(count, left, run, panel, room, scales, exact, y);
      }
      column = run.end, segment = run.next_segment();
    }
    for (int64_t m = 0; m < o.p.m; ++m) store_row(o.p, y + m * panel_rows, m, panel * panel_rows, o.x.scale[m]);
  }

 private:
  const integer_operands& o;

  // Rows [m, m + count) of x by a run. Not inlined: a tile needs all registers.
  template <int M>
  [[gnu::noinline]] void multiply_rows(int64_t count, int64_t m, const integer_run& run, int64_t panel,
                                       const uint8_t* room, segment_scales* scales, int32_t* exact, float* y) const {
    if constexpr (M > 1)
      if (count < M) return multiply_rows<M - 1>(count, m, run, panel, room, scales, exact, y);
    const packed_view& w = o.w;
    few_tile<V, Bits, M> tile(o, m, exact + m * panel_rows, y + m * panel_rows);
    const auto lines_of = [&](int64_t column) __attribute__((always_inline)) {
      if (Bits == joined) return room + (column / chunk - run.begin / chunk) * panel_rows * line_bytes;
      return w.codes + w.shape.block_offset(panel, column / lines_k<Bits>);
    };
    const auto shift_of = [&](int64_t column) { return Bits == 4 ? w.shape.plane_shift(w.shape.low, column) : 0; };
    for (int64_t i = 0; i < run.count; ++i) tile.add_piece(run.pieces[i], scales[i], lines_of, shift_of);
    tile.store(y + m * panel_rows);
  }
};

}  // namespace
}  // namespace lowbit::cpu
