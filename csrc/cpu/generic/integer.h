// integer, written once for every vector width V: exact int32 dot products of unsigned codes and signed activations,
// one output to a lane. A segment's sums become fp32 with its scales; everything before that is the same bits on any
// level.
//
//   q       rows of int8 as dwords of 4 columns, and last, for asymmetric activations, a row of ones: its products are
//           the column sums of W
//   codes   [dword of K][16 rows of a panel], the lines of a block transposed: a dword of q meets a whole register.
//           Those of 2, 3, 5 and 6 bits are joined to bytes first, with a bit to spare
//   m <= integer_few     each block is transposed and multiplied at once
//   more    V::nr_integer rows of W x a run of K are transposed, then meet all rows of q, V::mr_integer at a time
#pragma once

#include "cpu/generic/quantize.h"

namespace lowbit::cpu {
namespace {

constexpr int64_t integer_few = 4;
constexpr int64_t integer_run = 512;  // columns that are transposed at a time: 32 KB for 64 rows of W

constexpr int64_t chunk_dwords = chunk / 4;

// ---- codes ----

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

// Columns of the 16 lines that are transposed at once.
template <int Bits>
constexpr int64_t lines_k = Bits == 4 ? 2 * chunk : chunk;

// Those lines: where they lie, or joined in `room`.
template <class V, int Bits>
LOWBIT_INLINE const uint8_t* lines_of(const packed_view& w, int64_t panel, int64_t column, uint8_t* room) {
  const packed_shape& s = w.shape;
  if constexpr (Bits != joined) return w.codes + s.block_offset(panel, column / lines_k<Bits>);
  const uint8_t* low = w.codes + s.plane_offset(s.low, panel * panel_rows, column);
  const uint8_t* high = w.codes + s.plane_offset(s.high, panel * panel_rows, column);
  const plane_shifts shifts(s, column, 0);
  for (int64_t i = 0; i < panel_rows * line_bytes; i += line_bytes) {
    prefetch_codes(low + i);
    V::join_planes(low + i, high + i, shifts, room + i);
  }
  return room;
}

// Codes of whole bytes, or of their low or high halves.
template <class V, int Bits>
LOWBIT_INLINE typename V::i32 codes_of(typename V::i32 bytes, bool high) {
  if constexpr (Bits != 4) return bytes;
  return high ? V::high_nibbles(bytes) : V::low_nibbles(bytes);
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
  std::memset(out.weight_sum, 0, sizeof out.weight_sum);
}

// One row of x and V::lanes outputs:   y = fma(float(exact - offset q_sum - weight_sum x_zero), scale, y)
template <class V>
LOWBIT_INLINE void scale_sums(typename V::i32 exact, const segment_scales& s, int64_t r, bool zeros, int32_t q_sum,
                              int32_t x_zero, float* y) {
  if (zeros) {
    exact = V::sub_i32(exact, V::mul_i32(V::load_bytes(s.offset + r), V::set1_i32(q_sum)));
    exact = V::sub_i32(exact, V::mul_i32(V::load_bytes(s.weight_sum + r), V::set1_i32(x_zero)));
  } else {
    exact = V::sub_i32(exact, V::set1_i32(s.offset[0] * q_sum));
  }
  V::store(y + r, V::fma(V::to_f32(exact), V::load(s.scale + r), V::load(y + r)));
}

// ---- multiplication ----

// A run of K inside one segment, as a tile sees it.
struct integer_piece {
  const int32_t* codes;  // [dword][rows of W]
  int64_t dwords;
  bool first, last;  // of its segment
  bool zeros;        // of W or of x
};

// exact[i][r] over a piece for MR rows of q and Panels panels; the last piece of a segment goes on to y.
template <class V, int Bits, int MR, int Panels>
inline void multiply_tile_integer(const integer_piece& w, const int32_t* q, int64_t q_stride,
                                  const segment_scales* scales, const int32_t* q_sums, int64_t q_sums_stride,
                                  const int32_t* x_zero, int32_t* exact, float* y) {
  constexpr int parts = V::template code_parts<Bits>, vectors = Panels * static_cast<int>(panel_rows) / V::lanes;
  constexpr int64_t width = Panels * panel_rows;
  typename V::i32 sums[MR][vectors];
#pragma GCC unroll 8
  for (int i = 0; i < MR; ++i)
#pragma GCC unroll 8
    for (int j = 0; j < vectors; ++j)
      sums[i][j] = w.first ? V::zero_i32() : V::load_bytes(exact + i * width + j * V::lanes);
  const int32_t* codes = w.codes;
  for (int64_t k = 0; k < w.dwords * parts; ++k, codes += width) {
    typename V::i32 c[vectors];
#pragma GCC unroll 8
    for (int j = 0; j < vectors; ++j) c[j] = V::load_bytes(codes + j * V::lanes);
#pragma GCC unroll 8
    for (int i = 0; i < MR; ++i) {
      const typename V::i32 x = V::set1_i32(q[i * q_stride + k]);
#pragma GCC unroll 8
      for (int j = 0; j < vectors; ++j) sums[i][j] = V::template dot_u8s8<Bits>(sums[i][j], c[j], x);
    }
  }
#pragma GCC unroll 8
  for (int i = 0; i < MR; ++i)
#pragma GCC unroll 8
    for (int j = 0; j < vectors; ++j) {
      const int64_t at = j * V::lanes;
      if (!w.last)
        V::store_bytes(exact + i * width + at, sums[i][j]);
      else
        scale_sums<V>(sums[i][j], scales[at / panel_rows], at % panel_rows, w.zeros, q_sums[i * q_sums_stride],
                      x_zero[i], y + i * width + at / panel_rows * panel_rows);
    }
}

template <class V, int Bits>
class integer_call {
 public:
  integer_call(const gemm_problem& problem, const integer_segments& s, const quantized_matrix& activations)
      : p(problem), w(problem.w), segments(s), x(activations), zeros(w.zero_points || x.rows > p.m) {}

  // Panels [begin, end) of y; false: no memory.
  bool run(int64_t begin, int64_t end) const { return p.m <= integer_few ? few(begin, end) : many(begin, end); }

 private:
  static constexpr int parts = V::template code_parts<Bits>;
  static constexpr int panels_of_tile = static_cast<int>(V::nr_integer / panel_rows);
  static constexpr int64_t width = V::nr_integer;

  const gemm_problem& p;
  const packed_view& w;
  const integer_segments& segments;
  const quantized_matrix& x;
  const bool zeros;

  // Blocks of a panel one by one; pieces of them that lie in one segment.
  bool few(int64_t begin, int64_t end) const {
    for (int64_t panel = begin; panel < end; ++panel) {
      if (p.m == 1)
        few_rows<1>(panel);
      else if (p.m == 2)
        few_rows<2>(panel);
      else
        few_rows<4>(panel);
    }
    return true;
  }

  template <int M>
  void few_rows(int64_t panel) const {
    static_assert(M <= integer_few);
    const packed_shape& s = w.shape;
    const bool ones = x.rows > p.m;
    segment_scales scales;
    alignas(64) int32_t transposed[chunk_dwords * panel_rows], exact[(integer_few + 1) * panel_rows] = {};
    alignas(64) float y[integer_few * panel_rows] = {};
    int64_t segment = 0, segment_end = segments.end(0);
    begin_segment<V>(w, panel, 0, scales);
    const auto end_segment = [&] {
      for (int64_t r = 0; ones && r < panel_rows; ++r)
        scales.weight_sum[r] =
            exact[integer_few * panel_rows + r] - x.sums[p.m * segments.count() + segment] * scales.offset[r];
      for (int64_t m = 0; m < p.m; ++m)
        for (int64_t r = 0; r < panel_rows; r += V::lanes)
          scale_sums<V>(V::load_bytes(exact + m * panel_rows + r), scales, r, zeros,
                        x.sums[m * segments.count() + segment], x.zero_point[m], y + m * panel_rows);
      std::memset(exact, 0, sizeof exact);
      if (++segment == segments.count()) return false;
      segment_end = segments.end(segment);
      begin_segment<V>(w, panel, segments.group_of(segment), scales);
      return true;
    };
    alignas(64) uint8_t room[Bits == joined ? panel_rows * line_bytes : 1];
    for (int64_t column = 0; column < segments.last; column += lines_k<Bits>) {
      transpose_lines<V, Bits>(lines_of<V, Bits>(w, panel, column, room),
                               [&](int64_t dword, int64_t row, typename V::i32 bytes) __attribute__((always_inline)) {
                                 V::store_bytes(transposed + dword * panel_rows + row, bytes);
                               });
      const int64_t last = column + lines_k<Bits> < segments.last ? column + lines_k<Bits> : segments.last;
      for (int64_t at = column; at < last;) {
        const int64_t piece_end = segment_end < last ? segment_end : last;
        while (at < piece_end) {  // a half of the block, or less of it
          const int64_t half_end = at / chunk * chunk + chunk, to = half_end < piece_end ? half_end : piece_end;
          multiply_few<M>(transposed + at % chunk / 4 * panel_rows, s.high_nibble(at), (to - at) / 4, at / 4 * parts,
                          exact, ones);
          at = to;
        }
        if (at == segment_end) end_segment();
      }
    }
    for (int64_t m = 0; m < p.m; ++m) store_row(p, y + m * panel_rows, m, panel * panel_rows, x.scale[m]);
  }

  template <int M>
  LOWBIT_INLINE void multiply_few(const int32_t* transposed, bool high, int64_t dwords, int64_t q_at, int32_t* exact,
                                  bool ones) const {
    if (Bits == 4 && high)
      multiply_few<M, true>(transposed, dwords, q_at, exact, ones);
    else
      multiply_few<M, false>(transposed, dwords, q_at, exact, ones);
  }

  template <int M, bool High>
  LOWBIT_INLINE void multiply_few(const int32_t* transposed, int64_t dwords, int64_t q_at, int32_t* exact,
                                  bool ones) const {
    const int32_t* q[M];
    for (int m = 0; m < M; ++m) q[m] = x.q + (m < p.m ? m : p.m - 1) * x.stride + q_at;
    add_products<M, High>(transposed, dwords, q, exact);
    if (ones) {
      const int32_t* row_of_ones[1] = {x.q + p.m * x.stride + q_at};
      add_products<1, High>(transposed, dwords, row_of_ones, exact + integer_few * panel_rows);
    }
  }

  // exact[m][r] += q[m] . codes, two sums for each so that their latency is hidden.
  template <int M, bool High>
  LOWBIT_INLINE static void add_products(const int32_t* transposed, int64_t dwords, const int32_t* const* q,
                                         int32_t* exact) {
#pragma GCC unroll 4
    for (int64_t r = 0; r < panel_rows; r += V::lanes) {
      typename V::i32 sums[2][M];
#pragma GCC unroll 4
      for (int m = 0; m < M; ++m) {
        sums[0][m] = V::load_bytes(exact + m * panel_rows + r);
        sums[1][m] = V::zero_i32();
      }
#pragma GCC unroll 4
      for (int64_t d = 0; d < dwords; d += 2)
#pragma GCC unroll 2
        for (int i = 0; i < 2; ++i) {
          const typename V::i32 codes = codes_of<V, Bits>(V::load_bytes(transposed + (d + i) * panel_rows + r), High);
#pragma GCC unroll 2
          for (int part = 0; part < parts; ++part) {
            const typename V::i32 c = V::template code_part<Bits>(codes, part);
#pragma GCC unroll 4
            for (int m = 0; m < M; ++m)
              sums[i][m] = V::template dot_u8s8<Bits>(sums[i][m], c, V::set1_i32(q[m][(d + i) * parts + part]));
          }
        }
#pragma GCC unroll 4
      for (int m = 0; m < M; ++m) V::store_bytes(exact + m * panel_rows + r, V::add_i32(sums[0][m], sums[1][m]));
    }
  }

  // Columns [column, column + columns) of a panel to rows of `width`.
  void spread(int64_t panel, int64_t column, int64_t columns, int32_t* out) const {
    alignas(64) uint8_t room[Bits == joined ? panel_rows * line_bytes : 1];
    for (int64_t at = 0; at < columns; at += lines_k<Bits>, out += lines_k<Bits> / 4 * parts * width)
      transpose_lines<V, Bits>(lines_of<V, Bits>(w, panel, column + at, room),
                               [&](int64_t dword, int64_t row, typename V::i32 bytes) __attribute__((always_inline)) {
#pragma GCC unroll 2
                                 for (int half = 0; half < (Bits == 4 ? 2 : 1); ++half)
#pragma GCC unroll 2
                                   for (int part = 0; part < parts; ++part)
                                     V::store_bytes(out + ((half * chunk_dwords + dword) * parts + part) * width + row,
                                                    V::template code_part<Bits>(codes_of<V, Bits>(bytes, half), part));
                               });
  }

  bool many(int64_t begin, int64_t end) const {
    constexpr int64_t run_dwords = integer_run / 4 * parts * width;
    auto* codes = static_cast<int32_t*>(scratch(scratch_slot::panel, run_dwords * sizeof(int32_t)));
    auto* exact =
        static_cast<int32_t*>(scratch(scratch_slot::sums, static_cast<size_t>(2 * p.m * width) * sizeof(int32_t)));
    if (!codes || !exact) return false;
    float* y = reinterpret_cast<float*>(exact + p.m * width);
    for (int64_t panel = begin; panel < end; panel += panels_of_tile) {
      const int64_t panels = end - panel < panels_of_tile ? end - panel : panels_of_tile;
      std::memset(y, 0, static_cast<size_t>(p.m * width) * sizeof(float));
      segment_scales scales[panels_of_tile] = {};
      int64_t segment = 0;
      for (int64_t column = 0; column < segments.last; column += integer_run) {
        const int64_t columns = segments.last - column < integer_run ? segments.last - column : integer_run;
        for (int64_t i = 0; i < panels; ++i) spread(panel + i, column, columns, codes + i * panel_rows);
        for (int64_t at = column; at < column + columns;) {
          const int64_t first = segments.begin(segment), segment_end = segments.end(segment);
          const int64_t to = segment_end < column + columns ? segment_end : column + columns;
          const integer_piece piece{codes + (at - column) / 4 * parts * width, (to - at) / 4, at == first,
                                    to == segment_end, zeros};
          if (piece.first)
            for (int64_t i = 0; i < panels; ++i) begin_segment<V>(w, panel + i, segments.group_of(segment), scales[i]);
          if (x.rows > p.m) add_weight_sums(piece, panels, at, segment, scales);
          multiply_all(piece, at, segment, scales, exact, y);
          at = to;
          if (piece.last) ++segment;
        }
      }
      for (int64_t m = 0; m < p.m; ++m)
        for (int64_t i = 0; i < panels; ++i)
          store_row(p, y + m * width + i * panel_rows, m, (panel + i) * panel_rows, x.scale[m]);
    }
    return true;
  }

  void add_weight_sums(const integer_piece& piece, int64_t panels, int64_t column, int64_t segment,
                       segment_scales* scales) const {
    const int32_t* ones = x.q + p.m * x.stride + column / 4 * parts;
    const int32_t columns = x.sums[p.m * segments.count() + segment];
    for (int64_t i = 0; i < panels; ++i)
      for (int64_t r = 0; r < panel_rows; r += V::lanes) {
        typename V::i32 sum = V::load_bytes(scales[i].weight_sum + r);
        for (int64_t k = 0; k < piece.dwords * parts; ++k)
          sum = V::template dot_u8s8<Bits>(sum, V::load_bytes(piece.codes + k * width + i * panel_rows + r),
                                           V::set1_i32(ones[k]));
        V::store_bytes(scales[i].weight_sum + r, sum);
      }
    for (int64_t i = 0; piece.last && i < panels; ++i)
      for (int64_t r = 0; r < panel_rows; ++r) scales[i].weight_sum[r] -= columns * scales[i].offset[r];
  }

  // Rows of q are shared out evenly: 8 are 4 + 4, not 6 + 2.
  void multiply_all(const integer_piece& piece, int64_t column, int64_t segment, const segment_scales* scales,
                    int32_t* exact, float* y) const {
    const int64_t tiles = ceil_div(p.m, V::mr_integer);
    for (int64_t t = 0; t < tiles; ++t) {
      const int64_t first = p.m * t / tiles, count = p.m * (t + 1) / tiles - first;
      multiply_rows_integer<V::mr_integer>(count, piece, first, column, segment, scales, exact, y);
    }
  }
  template <int MR>
  void multiply_rows_integer(int64_t count, const integer_piece& piece, int64_t m, int64_t column, int64_t segment,
                             const segment_scales* scales, int32_t* exact, float* y) const {
    if constexpr (MR > 1)
      if (count < MR) return multiply_rows_integer<MR - 1>(count, piece, m, column, segment, scales, exact, y);
    multiply_tile_integer<V, Bits, MR, panels_of_tile>(piece, x.q + m * x.stride + column / 4 * parts, x.stride, scales,
                                                       x.sums + m * segments.count() + segment, segments.count(),
                                                       x.zero_point + m, exact + m * width, y + m * width);
  }
};

template <class V, int Bits>
lowbit_status integer_of(const gemm_problem& p) {
  const packed_shape& s = p.w.shape;
  const integer_segments segments(s);
  quantized_matrix x{};
  x.rows = p.m + (p.activation != LOWBIT_DYNAMIC_SYMMETRIC);
  x.stride = s.k_packed / 4 * V::template code_parts<Bits>;
  const int64_t dwords = x.rows * (x.stride + segments.count()) + 2 * p.m;
  x.q = static_cast<int32_t*>(scratch(scratch_slot::activations, static_cast<size_t>(dwords) * sizeof(int32_t)));
  if (!x.q)
    return fail(LOWBIT_OUT_OF_MEMORY, "no memory for %lld bytes of quantized activations",
                static_cast<long long>(dwords * 4));
  x.scale = reinterpret_cast<float*>(x.q + x.rows * x.stride);
  x.zero_point = reinterpret_cast<int32_t*>(x.scale + p.m);
  x.sums = x.zero_point + p.m;
  bool out_of_memory = false;
  parallel_for(p.m < 2 * num_threads(p.parallel) ? nullptr : p.parallel, x.rows, [&](int64_t begin, int64_t end) {
    float* row = static_cast<float*>(scratch(scratch_slot::panel, static_cast<size_t>(s.k) * (sizeof(float) + 1)));
    if (!row) {
      __atomic_store_n(&out_of_memory, true, __ATOMIC_RELAXED);
      return;
    }
    for (int64_t m = begin; m < end; ++m) {
      if (m < p.m) {
        quantize_into<V, Bits>(p, segments, x, m, row);
      } else {
        std::memset(row, 1, static_cast<size_t>(s.k));
        put_row<V, Bits>(s, segments, reinterpret_cast<const int8_t*>(row), x.q + m * x.stride,
                         x.sums + m * segments.count());
      }
    }
  });
  if (out_of_memory) return fail(LOWBIT_OUT_OF_MEMORY, "no memory for a row of activations");
  const integer_call<V, Bits> call(p, segments, x);
  parallel_for(p.parallel, s.panels, [&](int64_t begin, int64_t end) {
    if (!call.run(begin, end)) __atomic_store_n(&out_of_memory, true, __ATOMIC_RELAXED);
  });
  if (out_of_memory) return fail(LOWBIT_OUT_OF_MEMORY, "no memory for a panel of codes and its sums");
  return LOWBIT_OK;
}

template <class V>
lowbit_status integer(const gemm_problem& p) {
  switch (p.w.shape.bits) {
    case 4:
      return integer_of<V, 4>(p);
    case 8:
      return integer_of<V, 8>(p);
    default:
      return integer_of<V, joined>(p);
  }
}

}  // namespace
}  // namespace lowbit::cpu
