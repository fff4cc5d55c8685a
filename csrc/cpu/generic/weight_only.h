// weight_only, written once for every arithmetic A (f32_arithmetic<V> below, bf16 in avx512_vnni/): dot products along
// K.
//
//   x       rows of elements in the order that packed codes decode to, zeros for padding
//   W       panels, decoded and multiplied by A::panels
//
// In fp32:
//
//   m <= direct_rows        W is decoded to registers and multiplied there
//   more    block: A::panels_at_once panels x A::depth columns, decoded to elements, in L1 or L2
//           tile: up to A::mr rows of x by A::nr rows of W, one vector of partial sums for each pair
//
// Products of a run of columns are added up lane by lane, a run's lanes to those of four (A::sum4), the runs of a depth
// in ascending order, then these lanes and the depths: the same for every m, so row i of y does not depend on the rows
// beside it. A depth is one run; decoders with `scales_sums` end a run where the scale changes, and scale its sums.
#pragma once

#include "cpu/generic/decode_f32.h"

namespace lowbit::cpu {
namespace {

// Panels [begin, end) of y; false: no memory.
template <class A, class Decoder>
bool direct_or_blocked(const gemm_problem& p, const typename A::element* x, int64_t begin, int64_t end);

// fp32 on vectors V: x and W exact or rounded once, products and sums by fused multiply-add. Of `Recipes`, a mask: the
// files that share them out compile side by side.
template <class V, uint32_t Recipes = all_recipes>
struct f32_arithmetic {
  using element = float;
  using vector = typename V::f32;
  using sum = typename V::f32;
  static constexpr int width = V::lanes;  // elements of a vector
  static constexpr int64_t depth = 512;   // columns summed lane by lane: 16 rows of them are 32 KB
  static constexpr int mr = V::mr, nr = V::nr, direct_sums = V::direct_sums;
  static constexpr int64_t panels_at_once = V::panels_at_once;
  // Rows of x are computed as 1, 2, 4 or 6, as far as their sums and those of four rows fit the registers.
  static constexpr int direct_rows = direct_sums >= 24 ? 6 : 4;

  static int64_t x_rows(int64_t m) { return m < direct_rows ? direct_rows : m; }            // as many as are computed
  static int64_t x_size(const packed_shape& s, int64_t rows) { return rows * s.k_packed; }  // in elements
  template <class Decoder>
  static bool panels(const gemm_problem& p, const element* x, int64_t begin, int64_t end) {
    return direct_or_blocked<f32_arithmetic, Decoder>(p, x, begin, end);
  }

  static constexpr bool decodes(recipe r) { return Recipes & bit(r); }
  static constexpr bool has_unit_128(recipe r) {
    return r == recipe::lut16 || r == recipe::linear || r == recipe::minifloat;
  }
  static constexpr bool scales_groups = V::scales_groups;
  // Units of 64 are two of 32 where a step has no more: as fast, and a third less to compile.
  template <recipe Recipe, int Unit, offset Offset>
  using decoder = f32_decoder<V, Recipe, Unit == 64 && V::bytes == 32 ? 32 : Unit, Offset, depth>;

  static sum zero() { return V::zero(); }
  static vector set1(float value) { return V::set1(value); }
  static vector load(const element* p) { return V::load(p); }
  static void store(element* p, vector v) { V::store(p, v); }
  LOWBIT_INLINE static void keep(vector& v) { V::keep(v); }
  static sum dot(sum s, vector w, vector x) { return V::fma(x, w, s); }
  LOWBIT_INLINE static sum dot_at(sum s, vector w, const element* x) { return V::fma_at(w, x, s); }
  static sum sum4(const sum* s) { return V::sum4(s[0], s[1], s[2], s[3]); }
  static sum add_scaled(sum to, sum four, vector scales) { return V::fma(four, scales, to); }
  static vector load_quad(const float* p) { return V::load_quad(p); }
  static void add_lanes4(float* out, sum four) { V::add_lanes4(out, four); }
  static void add_lanes4(float* out, int64_t stride, sum four) { V::add_lanes4(out, stride, four); }

  // One row of x, as elements in the order of decoded codes; zeros past the last.
  static void put_row(const gemm_problem& p, int64_t m, element* all) {
    const packed_shape& s = p.w.shape;
    element* out = all + m * s.k_packed;
    if (m >= p.m) {
      std::memset(out, 0, static_cast<size_t>(s.k_packed) * sizeof(element));
      return;
    }
    const int64_t columns = s.bits == 4 ? 2 * chunk : chunk;
    uint8_t of_step[V::bytes];
    order_of_step<V>(p.w, of_step);
    const typename V::arrangement order(of_step);
    for (int64_t block = 0; block < s.k_packed; block += columns) {
      float natural[2 * chunk];
      for (int64_t c = 0; c < columns; c += chunk) put_chunk(p, m, (block + c) / chunk, natural + c);
      for (int64_t step = 0; step < chunk; step += V::bytes)
        for (int64_t c = 0; c < columns; c += chunk, out += V::bytes) order.put(natural + c + step, out);
    }
  }

 private:
  static void put_chunk(const gemm_problem& p, int64_t m, int64_t c, float* out) {
    const packed_shape& s = p.w.shape;
    if (p.x_dtype == LOWBIT_F32) {
      float padded[chunk];
      const float* x = chunk_of_row(s, static_cast<const float*>(p.x) + m * p.x_stride, c, padded);
      std::memcpy(out, x, sizeof padded);
    } else {
      uint16_t padded[chunk];
      const uint16_t* x = chunk_of_row(s, static_cast<const uint16_t*>(p.x) + m * p.x_stride, c, padded);
      if (p.x_dtype == LOWBIT_BF16)
        for (int i = 0; i < chunk; ++i) out[i] = bf16_to_f32(x[i]);
      else
        for (int i = 0; i < chunk; i += V::lanes) V::store(out + i, V::load_f16(x + i));
    }
  }
};

// ---- runs ----

constexpr int64_t run_unit = 128;  // columns: a run begins at a multiple

// Of a depth from `column` on, `columns` wide: where the run that begins at `at` ends, in columns from the first.
// Columns of a run share a scale; where scales are not left to sums, there is one run.
LOWBIT_INLINE int64_t end_of_run(const packed_shape& s, int64_t column, int64_t columns, bool scales_sums, int64_t at) {
  const int64_t group = s.group_of_column(column + at), next = (group + 1) * s.span - column;
  return scales_sums && group + 1 < s.groups && next < columns ? next : columns;
}

// The runs of a depth.
template <class A>
struct scale_runs {
  int64_t count = 0, end[A::depth / run_unit];

  scale_runs(const packed_shape& s, int64_t column, int64_t columns, bool scales_sums) {
    for (int64_t at = 0; at < columns; ++count) end[count] = at = end_of_run(s, column, columns, scales_sums, at);
  }
  int64_t begin(int64_t run) const { return run ? end[run - 1] : 0; }
};

// ---- decoded in registers ----

template <class T>
LOWBIT_INLINE void opaque(T*& pointer) {
  __asm__("" : "+r"(pointer));
}

// sums[i][0 .. 16) += x row i . W rows of the decoder's panel over a depth: one step after the other for all rows, so
// that as many chains of sums are under way as there are rows. Where four rows of W are too many, those of four rows
// of x are added up together.
template <class A, int M, form Form, class Decoder>
inline void multiply_steps(const Decoder& w, const typename A::element* x, int64_t x_stride, const scale_runs<A>& runs,
                           float* sums) {
  constexpr int fit = A::direct_sums / M, rows = fit >= 16 ? 16 : fit >= 8 ? 8 : fit >= 4 ? 4 : 2;
  constexpr bool across_x = rows < 4;  // four sums are of one row of W, not of one row of x
  for (int first = 0; first < panel_rows; first += rows) {
    const typename A::element* rows_of_x[M];
    typename A::sum partial[M * rows], total[M * rows / 4];
    const auto of = [](int i, int r) { return across_x ? r * M + i : i * rows + r; };
#pragma GCC unroll 16
    for (int i = 0; i < M; ++i) {
      rows_of_x[i] = x + i * x_stride;
      opaque(rows_of_x[i]);  // one register for each, else GCC takes one for each distance from the first
    }
#pragma GCC unroll 16
    for (int four = 0; four < M * rows / 4; ++four) total[four] = A::zero();
    int64_t run = 0, b = 0;
    do {
#pragma GCC unroll 32
      for (int i = 0; i < M * rows; ++i) partial[i] = A::zero();
      const int64_t end = runs.end[run] / Decoder::block_k;
      do {
#pragma GCC unroll 4
        for (int s = 0; s < Decoder::steps; ++s)
#pragma GCC unroll 16
          for (int r = 0; r < rows; ++r)
            w.template step<Form>(
                b, first + r, s, [&](int v, typename A::vector weights) __attribute__((always_inline)) {
#pragma GCC unroll 16
                  for (int i = 0; i < M; ++i)
                    partial[of(i, r)] =
                        A::dot_at(partial[of(i, r)], weights, rows_of_x[i] + (s * Decoder::vectors + v) * A::width);
                });
#pragma GCC unroll 16
        for (int i = 0; i < M; ++i) rows_of_x[i] += Decoder::block_k;
      } while (++b < end);
#pragma GCC unroll 16
      for (int four = 0; four < M * rows / 4; ++four) {
        const typename A::sum sums4 = A::sum4(partial + 4 * four);
        if constexpr (Decoder::scales_sums) {
          const float* scales = w.scales_at(runs.begin(run)) + first;
          total[four] = A::add_scaled(total[four], sums4,
                                      across_x ? A::set1(scales[four]) : A::load_quad(scales + 4 * four % rows));
        } else {
          total[four] = sums4;
        }
      }
    } while (++run < runs.count);
#pragma GCC unroll 16
    for (int four = 0; four < M * rows / 4; ++four)
      if constexpr (across_x)
        A::add_lanes4(sums + first + four, panel_rows, total[four]);
      else
        A::add_lanes4(sums + 4 * four / rows * panel_rows + first + 4 * four % rows, total[four]);
  }
}

template <class A, class Decoder>
inline void multiply_few(int64_t m, const Decoder& w, const typename A::element* x, int64_t x_stride,
                         const scale_runs<A>& runs, float* sums) {
  w.template with_form<true>([&](auto as) {
    if (m == 1) return multiply_steps<A, 1, as.value>(w, x, x_stride, runs, sums);
    if (m == 2) return multiply_steps<A, 2, as.value>(w, x, x_stride, runs, sums);
    if (m <= 4) return multiply_steps<A, 4, as.value>(w, x, x_stride, runs, sums);
    if constexpr (A::direct_rows >= 6) multiply_steps<A, 6, as.value>(w, x, x_stride, runs, sums);
  });
}

// ---- decoded to memory ----

// Elements between the rows of a block: a power of two would make loads wait for stores 4 KB away.
template <class A>
constexpr int64_t row_pitch = A::depth + 64 / static_cast<int64_t>(sizeof(typename A::element));

// Decoded rows of W, one depth of each, and, where sums are scaled, the scales of their runs.
template <class A>
struct decoded_block {
  typename A::element* elements;  // [rows][row_pitch]
  int64_t rows;
  float scales[A::depth / run_unit][A::panels_at_once * panel_rows];
};

// The decoder's panel to 16 rows of the block, `first` and up.
template <class A, class Decoder>
inline void decode_panel(const Decoder& w, int64_t first, int64_t columns, const scale_runs<A>& runs,
                         decoded_block<A>& block) {
  for (int64_t b = 0; b < columns / Decoder::block_k; ++b)
    for (int r = 0; r < panel_rows; ++r) {
      typename A::element* row = block.elements + (first + r) * row_pitch<A> + b * Decoder::block_k;
      w.row(b, r, [&](int v, typename A::vector weights) __attribute__((always_inline)) {
        A::store(row + v * A::width, weights);
      });
    }
  if constexpr (Decoder::scales_sums)
    for (int64_t run = 0; run < runs.count; ++run)
      std::memcpy(block.scales[run] + first, w.scales_at(runs.begin(run)), panel_rows * sizeof(float));
}

// sums[i][j] += x row i . W row j, for MR rows of x and A::nr of the block from `first` on.
template <class A, int MR, bool ScalesSums>
[[gnu::noinline]] void multiply_tile(  // inlined, GCC leaves sums in memory
    const typename A::element* x, int64_t x_stride, const decoded_block<A>& block, int64_t first,
    const scale_runs<A>& runs, float* sums, int64_t sums_stride) {
  constexpr int NR = A::nr;
  static_assert(NR == 4);
  const typename A::element* rows = block.elements + first * row_pitch<A>;
  typename A::sum partial[MR][NR], total[MR];
  for (int i = 0; i < MR; ++i) total[i] = A::zero();
  int64_t run = 0, k = 0;
  do {
    for (int i = 0; i < MR; ++i)
      for (int j = 0; j < NR; ++j) partial[i][j] = A::zero();
    const int64_t end = runs.end[run];
    do {
#pragma GCC unroll 2
      for (int64_t at = k; at < k + 2 * A::width; at += A::width) {  // 8 sums: 86 % of the peak, 72 % one by one
        typename A::vector a[MR];
        for (int i = 0; i < MR; ++i) a[i] = A::load(x + i * x_stride + at), A::keep(a[i]);
        for (int j = 0; j < NR; ++j) {
          const typename A::vector b = A::load(rows + j * row_pitch<A> + at);
          for (int i = 0; i < MR; ++i) partial[i][j] = A::dot(partial[i][j], b, a[i]);
        }
      }
    } while ((k += 2 * A::width) < end);
    for (int i = 0; i < MR; ++i)
      if constexpr (ScalesSums)
        total[i] = A::add_scaled(total[i], A::sum4(partial[i]), A::load_quad(block.scales[run] + first));
      else
        total[i] = A::sum4(partial[i]);
  } while (++run < runs.count);
  for (int i = 0; i < MR; ++i) A::add_lanes4(sums + i * sums_stride, total[i]);
}

// All rows of a block by m rows of x, MR at most.
template <class A, int MR, bool ScalesSums>
inline void multiply_rows(int64_t m, const typename A::element* x, int64_t x_stride, const decoded_block<A>& block,
                          const scale_runs<A>& runs, float* sums, int64_t sums_stride) {
  constexpr int more = A::direct_rows + 1, fewest = more / ((more + A::mr - 1) / A::mr);  // of those shared out
  if constexpr (MR > fewest)
    if (m < MR) return multiply_rows<A, MR - 1, ScalesSums>(m, x, x_stride, block, runs, sums, sums_stride);
  for (int64_t n = 0; n < block.rows; n += A::nr)
    multiply_tile<A, MR, ScalesSums>(x, x_stride, block, n, runs, sums + n, sums_stride);
}

// Rows of x are shared out evenly: 8 are 4 + 4, not 6 + 2.
template <class A, bool ScalesSums>
inline void multiply_block(int64_t m, const typename A::element* x, int64_t x_stride, const decoded_block<A>& block,
                           const scale_runs<A>& runs, float* sums, int64_t sums_stride) {
  const int64_t tiles = ceil_div(m, A::mr);
  for (int64_t t = 0; t < tiles; ++t) {
    const int64_t first = m * t / tiles, count = m * (t + 1) / tiles - first;
    multiply_rows<A, A::mr, ScalesSums>(count, x + first * x_stride, x_stride, block, runs, sums + first * sums_stride,
                                        sums_stride);
  }
}

template <class A, class Decoder>
bool direct_or_blocked(const gemm_problem& p, const typename A::element* x, int64_t begin, int64_t end) {
  const packed_shape& s = p.w.shape;
  Decoder decoder(p.w);
  const bool few = p.m <= A::direct_rows && decoder.direct();
  // More panels share a pass over x when there is much of it.
  const int64_t together = p.m >= 4 * A::mr ? A::panels_at_once : 1, width = together * panel_rows;
  const int64_t m = A::x_rows(p.m);
  decoded_block<A> block;
  block.elements = static_cast<typename A::element*>(
      scratch(scratch_slot::panel, few ? 0 : static_cast<size_t>(width * row_pitch<A>) * sizeof(typename A::element)));
  auto* sums = static_cast<float*>(scratch(scratch_slot::sums, static_cast<size_t>(m * width) * sizeof(float)));
  if ((!block.elements && !few) || !sums) return false;
  for (int64_t panel = begin; panel < end; panel += together) {
    const int64_t panels = end - panel < together ? end - panel : together;
    std::memset(sums, 0, static_cast<size_t>(m * width) * sizeof(float));
    block.rows = panels * panel_rows;
    for (int64_t column = 0; column < s.k_packed; column += A::depth) {
      const int64_t columns = s.k_packed - column < A::depth ? s.k_packed - column : A::depth;
      const scale_runs<A> runs(s, column, columns, Decoder::scales_sums);
      for (int64_t i = 0; i < panels; ++i) {
        decoder.begin(panel + i, column, columns);
        if (few)
          multiply_few<A>(p.m, decoder, x + column, s.k_packed, runs, sums);
        else
          decode_panel<A>(decoder, i * panel_rows, columns, runs, block);
      }
      if (!few) multiply_block<A, Decoder::scales_sums>(p.m, x + column, s.k_packed, block, runs, sums, width);
    }
    for (int64_t i = 0; i < panels; ++i)
      for (int64_t row = 0; row < p.m; ++row)
        store_row(p, sums + row * width + i * panel_rows, row, (panel + i) * panel_rows, p.w.global_scale);
  }
  return true;
}

// ---- the whole ----

// All panels, decoded in one of the ways of with_decoding; those that A's rows do not state are not compiled.
template <class A, recipe Recipe, int Unit, offset Offset>
bool weight_only_as(const gemm_problem& p, const typename A::element* x) {
  bool out_of_memory = false;
  if constexpr (A::decodes(Recipe))
    parallel_for(p.parallel, p.w.shape.panels, [&](int64_t begin, int64_t end) {
      if (!A::template panels<typename A::template decoder<Recipe, Unit, Offset>>(p, x, begin, end))
        __atomic_store_n(&out_of_memory, true, __ATOMIC_RELAXED);
    });
  return !out_of_memory;
}

template <class A>
lowbit_status weight_only(const gemm_problem& p) {
  using element = typename A::element;
  const packed_shape& s = p.w.shape;
  const int64_t rows = A::x_rows(p.m), size = A::x_size(s, rows);
  auto* x = static_cast<element*>(scratch(scratch_slot::activations, static_cast<size_t>(size) * sizeof(element)));
  if (!x) return fail(LOWBIT_OUT_OF_MEMORY, "no memory for %lld activations", static_cast<long long>(size));
  parallel_for(p.m < 8 ? nullptr : p.parallel, rows, [&](int64_t begin, int64_t end) {
    for (int64_t m = begin; m < end; ++m) A::put_row(p, m, x);
  });

  bool done = false;
  with_decoding<A>(p.w, [&](auto decode, auto unit, auto of) {
    done = weight_only_as<A, decode.value, unit.value, of.value>(p, x);
  });
  if (!done) return fail(LOWBIT_OUT_OF_MEMORY, "no memory for a block of decoded weights");
  return LOWBIT_OK;
}

}  // namespace
}  // namespace lowbit::cpu
