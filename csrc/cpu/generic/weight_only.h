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
// Sums of one depth are added up lane by lane, the lanes by A::add_sum4, the depths in ascending order: the same for
// every m, so row i of y does not depend on the rows beside it. Decoders with `scales_sums`, of weights with one scale
// for a row, leave it to the sums of a depth.
#pragma once

#include "cpu/generic/decode_f32.h"

namespace lowbit::cpu {
namespace {

// Panels [begin, end) of y; false: no memory.
template <class A, class Decoder>
bool direct_or_blocked(const gemm_problem& p, const typename A::element* x, int64_t begin, int64_t end);

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
  // Rows of x are computed as 1, 2, 4 or 6, as far as their sums and those of four rows fit the registers.
  static constexpr int direct_rows = direct_sums >= 24 ? 6 : 4;

  static int64_t x_rows(int64_t m) { return m < direct_rows ? direct_rows : m; }            // as many as are computed
  static int64_t x_size(const packed_shape& s, int64_t rows) { return rows * s.k_packed; }  // in elements
  template <class Decoder>
  static bool panels(const gemm_problem& p, const element* x, int64_t begin, int64_t end) {
    return direct_or_blocked<f32_arithmetic, Decoder>(p, x, begin, end);
  }

  static constexpr bool decodes(recipe) { return true; }
  // Where a row has one scale, its sums get it. Groups do not leave it to them: a run of 128 columns ends too often for
  // a tile of 3 x 4 sums (a sixth more time), and in registers a scale is one multiplication for 8 columns.
  static constexpr bool has_unit_128(recipe r) {
    return r == recipe::lut16 || r == recipe::linear || r == recipe::minifloat;
  }
  static constexpr bool scales_groups = false;
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

  // One row of x, as elements in the order of decoded codes; zeros past the last.
  static void put_row(const gemm_problem& p, int64_t m, element* all) {
    const packed_shape& s = p.w.shape;
    element* out = all + m * s.k_packed;
    if (m >= p.m) {
      std::memset(out, 0, static_cast<size_t>(s.k_packed) * sizeof(element));
      return;
    }
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

// ---- decoded in registers ----

template <class T>
LOWBIT_INLINE void opaque(T*& pointer) {
  __asm__("" : "+r"(pointer));
}

// sums[i][0 .. 16) += x row i . W rows of the decoder's panel over `blocks` blocks: one step after the other for all
// rows, so that as many chains of sums are under way as there are rows. Where four rows of W are too many, those of
// four rows of x are added up together.
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
        for (int i = 0; i < M; ++i) partial[i][r] = A::scaled(partial[i][r], w.row_scales()[first + r]);
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

template <class A, class Decoder>
inline void multiply_few(int64_t m, const Decoder& w, const typename A::element* x, int64_t x_stride, int64_t columns,
                         float* sums) {
  const int64_t blocks = columns / Decoder::block_k;
  w.with_form([&](auto as) {
    if (m == 1) return multiply_steps<A, 1, as.value>(w, x, x_stride, blocks, sums);
    if (m == 2) return multiply_steps<A, 2, as.value>(w, x, x_stride, blocks, sums);
    if (m <= 4) return multiply_steps<A, 4, as.value>(w, x, x_stride, blocks, sums);
    if constexpr (A::direct_rows >= 6) multiply_steps<A, 6, as.value>(w, x, x_stride, blocks, sums);
  });
}

// ---- decoded to memory ----

// Elements between the rows of a block: a power of two would make loads wait for stores 4 KB away.
template <class A>
constexpr int64_t row_pitch = A::depth + 64 / static_cast<int64_t>(sizeof(typename A::element));

// Decoded rows of W, one depth of each, and, where sums are scaled, their scales.
template <class A>
struct decoded_block {
  typename A::element* elements;  // [rows][row_pitch]
  int64_t rows;
  float scales[A::panels_at_once * panel_rows];
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
  if constexpr (Decoder::scales_sums) std::memcpy(block.scales + first, w.row_scales(), panel_rows * sizeof(float));
}

// sums[i][j] += x row i . W row j, for MR rows of x and A::nr of the block from `first` on.
template <class A, int MR, bool ScalesSums>
[[gnu::noinline]] void multiply_tile(  // inlined, GCC leaves sums in memory
    const typename A::element* x, int64_t x_stride, const decoded_block<A>& block, int64_t first, int64_t columns,
    float* sums, int64_t sums_stride) {
  constexpr int NR = A::nr;
  const typename A::element* rows = block.elements + first * row_pitch<A>;
  typename A::sum partial[MR][NR];
  for (int i = 0; i < MR; ++i)
    for (int j = 0; j < NR; ++j) partial[i][j] = A::zero();
  for (int64_t k = 0; k < columns; k += A::width) {
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
      for (int of = j; ScalesSums && of < j + 4; ++of) p[of] = A::scaled(p[of], block.scales[first + of]);
      A::add_sum4(sums + i * sums_stride + j, p[j], p[j + 1], p[j + 2], p[j + 3]);
    }
}

// All rows of a block by MR rows of x.
template <class A, int MR, bool ScalesSums>
inline void multiply_rows(int64_t m, const typename A::element* x, int64_t x_stride, const decoded_block<A>& block,
                          int64_t columns, float* sums, int64_t sums_stride) {
  if constexpr (MR > 1)
    if (m < MR) return multiply_rows<A, MR - 1, ScalesSums>(m, x, x_stride, block, columns, sums, sums_stride);
  for (int64_t n = 0; n < block.rows; n += A::nr)
    multiply_tile<A, MR, ScalesSums>(x, x_stride, block, n, columns, sums + n, sums_stride);
}

// Rows of x are shared out evenly: 8 are 4 + 4, not 6 + 2.
template <class A, bool ScalesSums>
inline void multiply_block(int64_t m, const typename A::element* x, int64_t x_stride, const decoded_block<A>& block,
                           int64_t columns, float* sums, int64_t sums_stride) {
  const int64_t tiles = ceil_div(m, A::mr);
  for (int64_t t = 0; t < tiles; ++t) {
    const int64_t first = m * t / tiles, count = m * (t + 1) / tiles - first;
    multiply_rows<A, A::mr, ScalesSums>(count, x + first * x_stride, x_stride, block, columns,
                                        sums + first * sums_stride, sums_stride);
  }
}

template <class A, class Decoder>
bool direct_or_blocked(const gemm_problem& p, const typename A::element* x, int64_t begin, int64_t end) {
  const packed_shape& s = p.w.shape;
  const bool few = p.m <= A::direct_rows;
  // More panels share a pass over x when there is much of it.
  const int64_t together = p.m >= 4 * A::mr ? A::panels_at_once : 1, width = together * panel_rows;
  const int64_t m = few ? A::direct_rows : p.m;
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
      for (int64_t i = 0; i < panels; ++i) {
        decoder.begin(panel + i, column, columns);
        if (few)
          multiply_few<A>(p.m, decoder, x + column, s.k_packed, columns, sums);
        else
          decode_panel<A>(decoder, i * panel_rows, columns, block);
      }
      if (!few) multiply_block<A, Decoder::scales_sums>(p.m, x + column, s.k_packed, block, columns, sums, width);
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
