// weight_only, written once for every arithmetic A (f32_arithmetic<V> below, bf16 in avx512_vnni/): dot products along
// K.
//
//   x       rows of elements in the order that packed codes decode to, zeros for padding
//   m <= A::direct_rows     W is decoded to registers and multiplied there
//   more    block: A::panels_at_once panels x A::depth columns, decoded to elements, in L1 or L2
//           tile: up to A::mr rows of x by A::nr rows of W, one vector of partial sums for each pair
//
// Sums of one depth are added up lane by lane, the lanes by A::add_sum4, the depths in ascending order: the same for
// every m, so row i of y does not depend on the rows beside it.
//
// Decoders with `scales_sums` leave the scale to the sums. Those of a depth then come in runs of columns that share
// one: A::add_scaled4 adds a run's lanes to four of its own, times the scales, and A::add_lanes4 those at the end.
#pragma once

#include "cpu/generic/decode_f32.h"

namespace lowbit::cpu {
namespace {

// fp32 on vectors V: x and W exact or rounded once, products and sums by fused multiply-add.
template <class V>
struct f32_arithmetic {
  using element = float;
  using vector = typename V::f32;
  using sum = typename V::f32;
  static constexpr int width = V::lanes;  // elements of a vector
  static constexpr int64_t depth = 512;   // columns summed lane by lane: 16 rows of them are 32 KB
  static constexpr int mr = V::mr, nr = V::nr, direct_sums = V::direct_sums;
  static constexpr int64_t panels_at_once = V::panels_at_once;

  static constexpr bool decodes(recipe) { return true; }
  // Where a row has one scale, its sums get it. Groups do not leave it to them: a run of 128 columns ends too often for
  // a tile of 3 x 4 sums (a sixth more time), and in registers a scale is one multiplication for 8 columns.
  static constexpr bool has_unit_128(recipe r) {
    return r == recipe::lut16 || r == recipe::linear || r == recipe::minifloat;
  }
  static constexpr bool scales_groups = false, scales_lanes = true;
  template <recipe Recipe, int Unit, offset Offset>
  using decoder = f32_decoder<V, Recipe, Unit, Offset, depth>;

  static sum zero() { return V::zero(); }
  static vector load(const element* p) { return V::load(p); }
  static void store(element* p, vector v) { V::store(p, v); }
  static sum dot(sum s, vector w, vector x) { return V::fma(x, w, s); }
  LOWBIT_INLINE static sum dot_at(sum s, vector w, const element* x) { return V::fma_at(w, x, s); }
  static sum scaled(sum s, float scale) { return V::mul(s, V::set1(scale)); }
  static void add_sum4(float* out, sum a, sum b, sum c, sum d) { V::add_lanes4(out, V::sum4(a, b, c, d)); }
  static void add_sum4(float* out, int64_t stride, sum a, sum b, sum c, sum d) {
    V::add_lanes4(out, stride, V::sum4(a, b, c, d));
  }

  // One row of x, as elements in the order of decoded codes.
  static void put_row(const gemm_problem& p, int64_t m, element* out) {
    const packed_shape& s = p.w.shape;
    const int64_t columns = s.bits == 4 ? 2 * chunk : chunk;
    uint8_t order[2 * chunk];
    order_of_columns<V>(p.w, columns, order);
    for (int64_t block = 0; block < s.k_packed; block += columns, out += columns) {
      float natural[2 * chunk];
      for (int64_t c = 0; c < columns; c += chunk) put_chunk(p, m, (block + c) / chunk, natural + c);
      for (int64_t i = 0; i < columns; ++i) out[i] = natural[order[i]];
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

// The runs of one depth: where each ends, in columns from its first. One, unless the decoder scales sums.
template <class A>
struct depth_runs {
  int64_t count = 0, end[A::depth / run_unit];

  template <class Decoder>
  static depth_runs of(const packed_shape& s, int64_t column, int64_t columns, Decoder*) {
    depth_runs runs;
    for (int64_t at = 0; at < columns; ++runs.count) {
      const int64_t group = s.group_of_column(column + at), next = (group + 1) * s.span - column;
      at = Decoder::scales_sums && group + 1 < s.groups && next < columns ? next : columns;
      runs.end[runs.count] = at;
    }
    return runs;
  }
  int64_t begin(int64_t run) const { return run ? end[run - 1] : 0; }
};

// ---- decoded in registers ----

// sums[i][0 .. 16) += x row i . W rows of the decoder's panel over a depth.
template <class A, int M, class Decoder>
inline void multiply_direct(const Decoder& w, const typename A::element* x, int64_t x_stride, const depth_runs<A>& runs,
                            float* sums) {
  constexpr int rows = A::direct_sums / M >= 16 ? 16 : A::direct_sums / M >= 8 ? 8 : 4;
  for (int first = 0; first < panel_rows; first += rows) {
    typename A::sum partial[M][rows], scaled[M][rows / 4];
    if constexpr (Decoder::scales_sums)
#pragma GCC unroll 16
      for (int i = 0; i < M; ++i)
#pragma GCC unroll 4
        for (int r = 0; r < rows / 4; ++r) scaled[i][r] = A::zero();
    for (int64_t run = 0, b = 0; run < runs.count; ++run) {
#pragma GCC unroll 16
      for (int i = 0; i < M; ++i)
#pragma GCC unroll 16
        for (int r = 0; r < rows; ++r) partial[i][r] = A::zero();
      for (const int64_t end = runs.end[run] / Decoder::block_k; b < end; ++b) {
        const typename A::element* columns = x + b * Decoder::block_k;
#pragma GCC unroll 16
        for (int r = 0; r < rows; ++r)
          w.row(b, first + r, [&](int v, typename A::vector weights) __attribute__((always_inline)) {
#pragma GCC unroll 16
            for (int i = 0; i < M; ++i)
              partial[i][r] = A::dot(partial[i][r], weights, A::load(columns + i * x_stride + v * A::width));
          });
      }
#pragma GCC unroll 16
      for (int i = 0; i < M; ++i)
#pragma GCC unroll 16
        for (int r = 0; r < rows; r += 4) {
          const auto& p = partial[i];
          if constexpr (Decoder::scales_sums)
            A::add_scaled4(scaled[i][r / 4], w.scales_at(runs.begin(run)) + first + r, p[r], p[r + 1], p[r + 2],
                           p[r + 3]);
          else
            A::add_sum4(sums + i * panel_rows + first + r, p[r], p[r + 1], p[r + 2], p[r + 3]);
        }
    }
    if constexpr (Decoder::scales_sums)
      for (int i = 0; i < M; ++i)
        for (int r = 0; r < rows / 4; ++r) A::add_lanes4(sums + i * panel_rows + first + 4 * r, scaled[i][r]);
  }
}

template <class T>
LOWBIT_INLINE void opaque(T*& pointer) {
  __asm__("" : "+r"(pointer));
}

// The same for decoders that offer the steps of a line, `blocks` of them: one step after the other for all rows, so
// that as many chains of sums are under way as there are rows. Where four rows of W are too many, those of four rows of
// x are added up together.
template <class A, int M, form Form, class Decoder>
inline void multiply_steps(const Decoder& w, const typename A::element* x, int64_t x_stride, int64_t blocks,
                           float* sums) {
  constexpr int fit = A::direct_sums / M, rows = fit >= 16 ? 16 : fit >= 8 ? 8 : fit >= 4 ? 4 : 2;
  for (int first = 0; first < panel_rows; first += rows) {
    const typename A::element* rows_of_x[M];
    typename A::sum partial[M][rows];
#pragma GCC unroll 16
    for (int i = 0; i < M; ++i) {
      rows_of_x[i] = x + i * x_stride;
      opaque(rows_of_x[i]);  // one register for each, else GCC takes one for each distance from the first
#pragma GCC unroll 16
      for (int r = 0; r < rows; ++r) partial[i][r] = A::zero();
    }
    for (int64_t b = 0; b < blocks; ++b) {
#pragma GCC unroll 4
      for (int s = 0; s < Decoder::steps; ++s)
#pragma GCC unroll 16
        for (int r = 0; r < rows; ++r)
          w.template step<Form>(b, first + r, s, [&](int v, typename A::vector weights) __attribute__((always_inline)) {
#pragma GCC unroll 16
            for (int i = 0; i < M; ++i)
              partial[i][r] = A::dot_at(partial[i][r], weights, rows_of_x[i] + (s * Decoder::vectors + v) * A::width);
          });
#pragma GCC unroll 16
      for (int i = 0; i < M; ++i) rows_of_x[i] += Decoder::block_k;
    }
    if constexpr (Decoder::scales_sums)
#pragma GCC unroll 16
      for (int r = 0; r < rows; ++r)
#pragma GCC unroll 16
        for (int i = 0; i < M; ++i) partial[i][r] = A::scaled(partial[i][r], w.scales_at(0)[first + r]);
    const auto& p = partial;
    if constexpr (rows >= 4) {
#pragma GCC unroll 16
      for (int i = 0; i < M; ++i)
#pragma GCC unroll 16
        for (int r = 0; r < rows; r += 4)
          A::add_sum4(sums + i * panel_rows + first + r, p[i][r], p[i][r + 1], p[i][r + 2], p[i][r + 3]);
    } else {
#pragma GCC unroll 16
      for (int r = 0; r < rows; ++r) A::add_sum4(sums + first + r, panel_rows, p[0][r], p[1][r], p[2][r], p[3][r]);
    }
  }
}

// Rows of x are computed as 1, 2, 4 or 6, as far as their sums and those of four rows fit the registers.
template <class A>
constexpr int direct_rows = A::direct_sums >= 24 ? 6 : 4;

template <class A, class Decoder>
inline void multiply_few(int64_t m, const Decoder& w, const typename A::element* x, int64_t x_stride,
                         const depth_runs<A>& runs, float* sums) {
  if constexpr (requires { Decoder::steps; }) {
    const int64_t blocks = runs.end[0] / Decoder::block_k;
    w.with_form([&](auto as) {
      if (m == 1) return multiply_steps<A, 1, as.value>(w, x, x_stride, blocks, sums);
      if (m == 2) return multiply_steps<A, 2, as.value>(w, x, x_stride, blocks, sums);
      if (m <= 4) return multiply_steps<A, 4, as.value>(w, x, x_stride, blocks, sums);
      if constexpr (direct_rows<A> >= 6) multiply_steps<A, 6, as.value>(w, x, x_stride, blocks, sums);
    });
  } else {
    if (m == 1) return multiply_direct<A, 1>(w, x, x_stride, runs, sums);
    if (m == 2) return multiply_direct<A, 2>(w, x, x_stride, runs, sums);
    if (m <= 4) return multiply_direct<A, 4>(w, x, x_stride, runs, sums);
    multiply_direct<A, 6>(w, x, x_stride, runs, sums);
  }
}

// ---- decoded to memory ----

// Elements between the rows of a block: a power of two would make loads wait for stores 4 KB away.
template <class A>
constexpr int64_t row_pitch = A::depth + 64 / static_cast<int64_t>(sizeof(typename A::element));

// Decoded rows of W, one depth of each, and, where sums are scaled, the scales of each run.
template <class A>
struct decoded_block {
  static constexpr int64_t max_rows = A::panels_at_once * panel_rows;

  typename A::element* elements;  // [rows][row_pitch]
  int64_t rows;
  depth_runs<A> runs;
  alignas(64) float scales[A::depth / run_unit][max_rows];
};

// The decoder's panel to 16 rows of the block, `first` and up.
template <class A, class Decoder>
inline void decode_panel(const Decoder& w, int64_t first, int64_t columns, decoded_block<A>& block) {
  for (int64_t b = 0; b < columns / Decoder::block_k; ++b)
    for (int r = 0; r < panel_rows; ++r) {
      typename A::element* row = block.elements + (first + r) * row_pitch<A> + b * Decoder::block_k;
      w.row(b, r, [&](int v, typename A::vector weights) __attribute__((always_inline)) {
        A::store(row + v * A::width, weights);
      });
    }
  if constexpr (Decoder::scales_sums)
    for (int64_t run = 0; run < block.runs.count; ++run)
      std::memcpy(block.scales[run] + first, w.scales_at(block.runs.begin(run)), panel_rows * sizeof(float));
}

// sums[i][j] += x row i . W row j, for MR rows of x and A::nr of the block from `first` on.
template <class A, int MR, bool ScalesSums>
[[gnu::noinline]] void multiply_tile(  // inlined, GCC leaves sums in memory
    const typename A::element* x, int64_t x_stride, const decoded_block<A>& block, int64_t first, float* sums,
    int64_t sums_stride) {
  constexpr int NR = A::nr;
  const typename A::element* rows = block.elements + first * row_pitch<A>;
  constexpr bool scales_lanes = ScalesSums && A::scales_lanes;
  typename A::sum partial[MR][NR], scaled[MR][NR / 4];
  for (int i = 0; ScalesSums && !scales_lanes && i < MR; ++i)
    for (int j = 0; j < NR / 4; ++j) scaled[i][j] = A::zero();
  for (int64_t run = 0, k = 0; run < block.runs.count; ++run) {
    for (int i = 0; i < MR; ++i)
      for (int j = 0; j < NR; ++j) partial[i][j] = A::zero();
    for (const int64_t end = block.runs.end[run]; k < end; k += A::width) {
      typename A::vector a[MR];
      for (int i = 0; i < MR; ++i) a[i] = A::load(x + i * x_stride + k);
      for (int j = 0; j < NR; ++j) {
        const typename A::vector b = A::load(rows + j * row_pitch<A> + k);
        for (int i = 0; i < MR; ++i) partial[i][j] = A::dot(partial[i][j], b, a[i]);
      }
    }
    for (int i = 0; i < MR; ++i)
      for (int j = 0; j < NR; j += 4) {
        auto& p = partial[i];
        if constexpr (scales_lanes)
          for (int of = j; of < j + 4; ++of) p[of] = A::scaled(p[of], block.scales[run][first + of]);
        if constexpr (ScalesSums && !scales_lanes)
          A::add_scaled4(scaled[i][j / 4], block.scales[run] + first + j, p[j], p[j + 1], p[j + 2], p[j + 3]);
        else
          A::add_sum4(sums + i * sums_stride + j, p[j], p[j + 1], p[j + 2], p[j + 3]);
      }
  }
  if constexpr (ScalesSums && !scales_lanes)
    for (int i = 0; i < MR; ++i)
      for (int j = 0; j < NR / 4; ++j) A::add_lanes4(sums + i * sums_stride + 4 * j, scaled[i][j]);
}

// All rows of a block by MR rows of x.
template <class A, int MR, bool ScalesSums>
inline void multiply_rows(int64_t m, const typename A::element* x, int64_t x_stride, const decoded_block<A>& block,
                          float* sums, int64_t sums_stride) {
  if constexpr (MR > 1)
    if (m < MR) return multiply_rows<A, MR - 1, ScalesSums>(m, x, x_stride, block, sums, sums_stride);
  for (int64_t n = 0; n < block.rows; n += A::nr)
    multiply_tile<A, MR, ScalesSums>(x, x_stride, block, n, sums + n, sums_stride);
}

// Rows of x are shared out evenly: 8 are 4 + 4, not 6 + 2.
template <class A, bool ScalesSums>
inline void multiply_block(int64_t m, const typename A::element* x, int64_t x_stride, const decoded_block<A>& block,
                           float* sums, int64_t sums_stride) {
  const int64_t tiles = ceil_div(m, A::mr);
  for (int64_t t = 0; t < tiles; ++t) {
    const int64_t first = m * t / tiles, count = m * (t + 1) / tiles - first;
    multiply_rows<A, A::mr, ScalesSums>(count, x + first * x_stride, x_stride, block, sums + first * sums_stride,
                                        sums_stride);
  }
}

// ---- the whole ----

// Panels [begin, end) of y; false: no memory.
template <class A, class Decoder>
bool weight_only_panels(const gemm_problem& p, const typename A::element* x, int64_t begin, int64_t end) {
  const packed_shape& s = p.w.shape;
  const bool few = p.m <= direct_rows<A>;
  // More panels share a pass over x when there is much of it.
  const int64_t together = p.m >= 4 * A::mr ? A::panels_at_once : 1, width = together * panel_rows;
  const int64_t m = few ? direct_rows<A> : p.m;
  decoded_block<A> block;
  block.elements = static_cast<typename A::element*>(
      scratch(scratch_slot::panel, few ? 0 : static_cast<size_t>(width * row_pitch<A>) * sizeof(typename A::element)));
  auto* sums = static_cast<float*>(scratch(scratch_slot::sums, static_cast<size_t>(m * width) * sizeof(float)));
  if ((!block.elements && !few) || !sums) return false;
  Decoder decoder(p.w);
  for (int64_t panel = begin; panel < end; panel += together) {
    const int64_t panels = end - panel < together ? end - panel : together;
    std::memset(sums, 0, static_cast<size_t>(m * width) * sizeof(float));
    block.rows = panels * panel_rows;
    for (int64_t column = 0; column < s.k_packed; column += A::depth) {
      const int64_t columns = s.k_packed - column < A::depth ? s.k_packed - column : A::depth;
      block.runs = depth_runs<A>::of(s, column, columns, &decoder);
      for (int64_t i = 0; i < panels; ++i) {
        decoder.begin(panel + i, column, columns);
        if (few)
          multiply_few<A>(p.m, decoder, x + column, s.k_packed, block.runs, sums);
        else
          decode_panel<A>(decoder, i * panel_rows, columns, block);
      }
      if (!few) multiply_block<A, Decoder::scales_sums>(p.m, x + column, s.k_packed, block, sums, width);
    }
    for (int64_t i = 0; i < panels; ++i)
      for (int64_t row = 0; row < p.m; ++row)
        store_row(p, sums + row * width + i * panel_rows, row, (panel + i) * panel_rows, p.w.global_scale);
  }
  return true;
}

// All panels, decoded in one of the ways of with_decoding; those that A's rows do not state are not compiled.
template <class A, recipe Recipe, int Unit, offset Offset>
bool weight_only_as(const gemm_problem& p, const typename A::element* x) {
  bool out_of_memory = false;
  if constexpr (A::decodes(Recipe))
    parallel_for(p.parallel, p.w.shape.panels, [&](int64_t begin, int64_t end) {
      if (!weight_only_panels<A, typename A::template decoder<Recipe, Unit, Offset>>(p, x, begin, end))
        __atomic_store_n(&out_of_memory, true, __ATOMIC_RELAXED);
    });
  return !out_of_memory;
}

template <class A>
lowbit_status weight_only(const gemm_problem& p) {
  using element = typename A::element;
  const packed_shape& s = p.w.shape;
  const int64_t rows = p.m < direct_rows<A> ? direct_rows<A> : p.m;  // at least as many as are computed
  element* x = static_cast<element*>(
      scratch(scratch_slot::activations, static_cast<size_t>(rows * s.k_packed) * sizeof(element)));
  if (!x)
    return fail(LOWBIT_OUT_OF_MEMORY, "no memory for %lld activations", static_cast<long long>(rows * s.k_packed));
  parallel_for(p.m < 8 ? nullptr : p.parallel, p.m, [&](int64_t begin, int64_t end) {
    for (int64_t m = begin; m < end; ++m) A::put_row(p, m, x + m * s.k_packed);
  });
  std::memset(x + p.m * s.k_packed, 0, static_cast<size_t>((rows - p.m) * s.k_packed) * sizeof(element));

  bool done = false;
  with_decoding<A>(p.w, [&](auto decode, auto unit, auto of) {
    done = weight_only_as<A, decode.value, unit.value, of.value>(p, x);
  });
  if (!done) return fail(LOWBIT_OUT_OF_MEMORY, "no memory for a block of decoded weights");
  return LOWBIT_OK;
}

}  // namespace
}  // namespace lowbit::cpu
