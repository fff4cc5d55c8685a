// integer for many rows of x: lines of W are transposed to memory, so that each lane of a register is an output and 4
// columns of x, a dword, meet all of them.
//
//   run     columns of V::nr_integer rows of W, [dword of K][row], 32 KB for 64 of them
//   tile    those rows of W x up to V::mr_integer rows of x x a run, piece by piece
#pragma once

#include "cpu/generic/integer_operands.h"

namespace lowbit::cpu {
namespace {

constexpr int64_t chunk_dwords = chunk / 4;

// 16 lines, transposed: f(dword, row, register) for V::lanes rows of every dword.
template <class V, int Bits, class F>
LOWBIT_INLINE void transpose_lines(const uint8_t* lines, const F& f) {
  for (int64_t row = 0; row < panel_rows; row += V::lanes)
    for (int64_t dword = 0; dword < chunk_dwords; dword += V::lanes) {
      typename V::i32 r[V::lanes];
#pragma GCC unroll 16
      for (int i = 0; i < V::lanes; ++i) {
        const uint8_t* from = lines + (row + i) * line_bytes + 4 * dword;
        if constexpr (Bits != joined) prefetch_codes(from);  // joined ones lie in a buffer
        r[i] = V::load_bytes(from);
      }
      V::transpose(r);
#pragma GCC unroll 16
      for (int i = 0; i < V::lanes; ++i) f(dword + i, row, r[i]);
    }
}

// Those of a column: where they lie, or joined in `room`.
template <class V, int Bits>
LOWBIT_INLINE const uint8_t* lines_of(const packed_view& w, int64_t panel, int64_t column, uint8_t* room) {
  if constexpr (Bits != joined) return w.codes + w.shape.block_offset(panel, column / lines_k<Bits>);
  join_lines<V>(w, panel, column, room);
  return room;
}

// Codes of whole bytes, or of their low or high halves.
template <class V, int Bits>
LOWBIT_INLINE typename V::i32 codes_of(typename V::i32 bytes, bool high) {
  if constexpr (Bits != 4) return bytes;
  return high ? V::high_nibbles(bytes) : V::low_nibbles(bytes);
}

// ---- multiplication ----

// Exact sums of M rows of x by V::nr_integer rows of W.
template <class V, int Bits, int M>
class transposed_sums {
 public:
  static constexpr int64_t width = V::nr_integer;
  static constexpr int vectors = static_cast<int>(width) / V::lanes;
  static constexpr int64_t parts = V::template code_parts<Bits>;

  // start(row, vector): what a sum begins with.
  template <class F>
  LOWBIT_INLINE explicit transposed_sums(const F& start) {
    for_each([&](int i, int j) __attribute__((always_inline)) { sums_[i][j] = start(i, j); });
  }

  LOWBIT_INLINE void add(const int32_t* codes, int64_t dwords, const int32_t* q, int64_t stride) {
    if constexpr (V::template word_products<Bits> > 0)
      add_words(codes, dwords, q, stride);
    else
      for (int64_t k = 0; k < dwords * parts; ++k, codes += width)
        multiply(codes, q + k, stride,
                 [&](int i, int j, typename V::i32 c, typename V::i32 x)
                     __attribute__((always_inline)) { sums_[i][j] = V::template dot_u8s8<Bits>(sums_[i][j], c, x); });
  }

  // f(row, vector)
  template <class F>
  LOWBIT_INLINE static void for_each(const F& f) {
#pragma GCC unroll 16
    for (int i = M - 1; i >= 0; --i)  // that of ones first
#pragma GCC unroll 4
      for (int j = 0; j < vectors; ++j) f(i, j);
  }
  const typename V::i32& at(int i, int j) const { return sums_[i][j]; }

 private:
  // 4 columns of all rows.
  template <class F>
  LOWBIT_INLINE static void multiply(const int32_t* codes, const int32_t* q, int64_t stride, const F& f) {
    typename V::i32 c[vectors];
#pragma GCC unroll 4
    for (int j = 0; j < vectors; ++j) c[j] = V::load_bytes(codes + j * V::lanes);
#pragma GCC unroll 16
    for (int i = 0; i < M; ++i) {
      const typename V::i32 x = V::set1_i32(q[i * stride]);
#pragma GCC unroll 4
      for (int j = 0; j < vectors; ++j) f(i, j, c[j], x);
    }
  }

  // As many products as words hold, then these to the sums, which have no registers meanwhile.
  LOWBIT_INLINE void add_words(const int32_t* codes, int64_t dwords, const int32_t* q, int64_t stride) {
    constexpr int64_t products = V::template word_products<Bits>;
    for (int64_t k = 0; k < dwords;) {
      typename V::i32 words[M][vectors];
      for_each([&](int i, int j) __attribute__((always_inline)) { words[i][j] = V::zero_i32(); });
      for (const int64_t end = k + products < dwords ? k + products : dwords; k < end; ++k, codes += width)
        multiply(codes, q + k, stride,
                 [&](int i, int j, typename V::i32 c, typename V::i32 x)
                     __attribute__((always_inline)) { words[i][j] = V::dot_words(words[i][j], c, x); });
      for_each([&](int i, int j)
                   __attribute__((always_inline)) { sums_[i][j] = V::add_words(sums_[i][j], words[i][j]); });
    }
  }

  typename V::i32 sums_[M][vectors];
};

template <class V, int Bits>
class integer_many_call {
 public:
  explicit integer_many_call(const integer_operands& operands) : o(operands) {}

  // Panels [begin, end) of y; false: no memory.
  bool run(int64_t begin, int64_t end) const {
    auto* codes = static_cast<int32_t*>(scratch(scratch_slot::panel, V::integer_columns * parts * width));
    auto* exact =
        static_cast<int32_t*>(scratch(scratch_slot::sums, static_cast<size_t>(2 * o.x.rows * width) * sizeof(int32_t)));
    if (!codes || !exact) return false;
    float* y = reinterpret_cast<float*>(exact + o.x.rows * width);
    segment_scales scales[panels_of_tile][integer_run::most] = {};
    for (int64_t panel = begin; panel < end; panel += panels_of_tile) {
      const int64_t panels = end - panel < panels_of_tile ? end - panel : panels_of_tile;
      std::memset(y, 0, static_cast<size_t>(o.p.m * width) * sizeof(float));
      for (int64_t column = 0, segment = 0; column < o.segments.last;) {
        const integer_run run(o.segments, column, segment, V::integer_columns);
        for (int64_t i = 0; i < panels; ++i) {
          spread(panel + i, column, run.end - column, codes + i * panel_rows);
          for (int64_t s = 0; s < run.count; ++s)
            if (run.pieces[s].last)
              begin_segment<V>(o.w, panel + i, o.segments.group_of(run.pieces[s].segment), scales[i][s]);
        }
        // Rows of x are shared out evenly: 8 are 4 + 4, not 6 + 2. The last, that of ones, is in the first tile.
        for (int64_t tiles = ceil_div(o.x.rows, V::mr_integer), t = tiles; t-- > 0;) {
          const int64_t m = o.x.rows * t / tiles, count = o.x.rows * (t + 1) / tiles - m;
          with_count<1, V::mr_integer>(count, [&](auto rows) __attribute__((always_inline)) {
            multiply_rows<rows.value>(m, run, codes, scales, exact + m * width, y + m * width);
          });
        }
        column = run.end, segment = run.next_segment();
      }
      for (int64_t m = 0; m < o.p.m; ++m)
        for (int64_t i = 0; i < panels; ++i)
          store_row(o.p, y + m * width + i * panel_rows, m, (panel + i) * panel_rows, o.x.scale[m]);
    }
    return true;
  }

 private:
  static constexpr int64_t parts = V::template code_parts<Bits>;
  static constexpr int panels_of_tile = static_cast<int>(V::nr_integer / panel_rows);
  static constexpr int64_t width = V::nr_integer;

  const integer_operands& o;

  // Where x has a part of 4 columns: parts of 16 columns lie side by side.
  static int64_t position(int64_t dword, int part) { return (dword / 4 * parts + part) * 4 + dword % 4; }

  // Columns [column, column + columns) of a panel to rows of `width`.
  void spread(int64_t panel, int64_t column, int64_t columns, int32_t* out) const {
    alignas(64) uint8_t room[Bits == joined ? panel_rows * line_bytes : 1];
    for (int64_t at = 0; at < columns; at += lines_k<Bits>, out += lines_k<Bits> / 4 * parts * width)
      transpose_lines<V, Bits>(lines_of<V, Bits>(o.w, panel, column + at, room),
                               [&](int64_t dword, int64_t row, typename V::i32 bytes) __attribute__((always_inline)) {
#pragma GCC unroll 2
                                 for (int half = 0; half < (Bits == 4 ? 2 : 1); ++half)
#pragma GCC unroll 2
                                   for (int part = 0; part < parts; ++part)
                                     V::store_bytes(
                                         out + (half * chunk_dwords * parts + position(dword, part)) * width + row,
                                         V::template code_part<Bits>(codes_of<V, Bits>(bytes, half), part));
                               });
  }

  // Rows [m, m + M) of x by a run. Not inlined: a tile needs all registers.
  template <int M>
  [[gnu::noinline]] void multiply_rows(int64_t m, const integer_run& run, const int32_t* codes,
                                       segment_scales (*scales)[integer_run::most], int32_t* exact, float* y) const {
    const quantized_matrix x = o.x;
    const int64_t ones = o.ones ? o.p.m - m : M, segments = o.segments.count();
    const bool zeros = o.zeros;
    for (int64_t s = 0; s < run.count; ++s) {
      const integer_piece& piece = run.pieces[s];
      using tile = transposed_sums<V, Bits, M>;
      const int32_t* q_sums = x.sums + m * segments + piece.segment;
      tile sums([&](int i, int j) __attribute__((always_inline)) {
        if (!piece.first) return V::load_bytes(exact + i * width + j * V::lanes);
        return zeros ? V::zero_i32() : V::set1_i32(q_sums[i * segments]);
      });
      sums.add(codes + (piece.begin - run.begin) / 4 * parts * width, (piece.end - piece.begin) / 4,
               x.q + m * x.stride + piece.begin / 4 * parts, x.stride);
      tile::for_each([&](int i, int j) __attribute__((always_inline)) {
        const int64_t at = i * width + j * V::lanes, r = j * V::lanes % panel_rows;
        segment_scales& scale = scales[j * V::lanes / panel_rows][s];
        typename V::i32 sum = sums.at(i, j);
        if (!piece.last) return V::store_bytes(exact + at, sum);
        if (i == ones) return put_weight_sums<V>(sum, q_sums[i * segments], r, scale);
        if (zeros) sum = subtract_zeros<V>(sum, scale, r, q_sums[i * segments], x.zero_point[m + i]);
        add_scaled<V>(sum, V::load(scale.scale + r), y + at);
      });
    }
  }
};

}  // namespace
}  // namespace lowbit::cpu
