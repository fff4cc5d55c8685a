// weight_only in bf16: packed codes to pairs of bf16, x rounded to bf16, products and sums by AVX512-BF16.
//
//   W       a panel x bf16_depth columns of codes: decoded to registers again for every pass over x, or to memory first
//           when there are more than decoder.direct_rows() rows of x
//   pass    up to 8 rows of x by 16 rows of W; two of W at a time, one vector of partial sums for each pair of rows
//
// Zen 4: products take the floating-point pipes 0 and 1, a cycle each, and what decodes a line (shifts, permutations,
// loads of tables) goes beside them for nothing. A store costs 1.3 cycles even there. A multiplication waits until the
// older products have gone, so decoders have as few as they can between code and weight.
//
// Sums of a depth are added up lane by lane, then the lanes, the depths in ascending order: the same for every m, so
// row i of y does not depend on the rows beside it.
#pragma once

#include "cpu/avx512_vnni/decode_bf16_bytes.h"
#include "cpu/avx512_vnni/decode_bf16_nibbles.h"
#include "cpu/generic/weight_only.h"

namespace lowbit::cpu {
namespace {

constexpr int64_t bf16_depth = 1024;  // columns summed lane by lane: 8 rows of them are half of L1
constexpr int bf16_width = 32;        // elements of a vector
constexpr int64_t bf16_x_pitch = bf16_depth + bf16_width;

// ---- runs ----

constexpr int64_t run_unit = 128;  // columns: a run begins at a multiple

// Decoders with `scales_sums` leave the scale to the sums. Those of a depth then come in runs of columns that share
// one: where each ends, in columns from the first of the depth. Other decoders have one run.
struct depth_runs {
  int64_t count = 0, end[bf16_depth / run_unit];

  depth_runs(const packed_shape& s, int64_t column, int64_t columns, bool scales_sums) {
    for (int64_t at = 0; at < columns; ++count) {
      const int64_t group = s.group_of_column(column + at), next = (group + 1) * s.span - column;
      at = scales_sums && group + 1 < s.groups && next < columns ? next : columns;
      end[count] = at;
    }
  }
  int64_t begin(int64_t run) const { return run ? end[run - 1] : 0; }
};

// ---- decoded to memory ----

// A panel's rows of one depth as elements, in L1 or L2, to be loaded where others are decoded.
template <class Decoder>
struct decoded_rows {
  static constexpr int vectors = static_cast<int>(Decoder::block_k) / bf16_width;

  uint16_t* elements;  // [16][bf16_x_pitch]

  template <class Rows>
  void decode(const Rows& w, int64_t columns) {
    for (int64_t b = 0; b < columns / Decoder::block_k; ++b)
      for (int r = 0; r < panel_rows; ++r) {
        __m512i weights[vectors];
        w.row(b, r, weights);
        for (int v = 0; v < vectors; ++v) _mm512_storeu_si512(at(b, r) + v * bf16_width, weights[v]);
      }
  }
  LOWBIT_INLINE void row(int64_t block, int r, __m512i* out) const {
    for (int v = 0; v < vectors; ++v) out[v] = _mm512_loadu_si512(at(block, r) + v * bf16_width);
  }

 private:
  LOWBIT_INLINE uint16_t* at(int64_t block, int r) const {
    return elements + r * bf16_x_pitch + block * Decoder::block_k;
  }
};

// ---- a pass ----

// Rows of W whose sums with M rows of x fit the registers, beside two rows of weights.
template <int M>
constexpr int rows_at_once = M <= 4 ? 16 / M : 2;

// The scales of four sums that follow one another, [M][Rows], from row `first` of W on: in every 128-bit lane.
template <int Rows>
LOWBIT_INLINE __m512 scales_of_four(const float* scales) {
  if constexpr (Rows >= 4) return _mm512_broadcast_f32x4(_mm_loadu_ps(scales));
  return _mm512_castpd_ps(
      _mm512_broadcastsd_pd(_mm_castps_pd(_mm_loadl_pi(_mm_setzero_ps(), reinterpret_cast<const __m64*>(scales)))));
}

// out[0 .. 16) += the sums of the lanes of what sum4 made of four vectors each.
LOWBIT_INLINE void add_lanes16(float* out, __m512 a, __m512 b, __m512 c, __m512 d) {
  const auto halves = [](__m512 v, __m512 u) {
    return _mm512_add_ps(_mm512_shuffle_f32x4(v, u, 0x44), _mm512_shuffle_f32x4(v, u, 0xee));
  };
  const __m512 ab = halves(a, b), cd = halves(c, d);
  const __m512 sums = _mm512_add_ps(_mm512_shuffle_f32x4(ab, cd, 0x88), _mm512_shuffle_f32x4(ab, cd, 0xdd));
  _mm512_storeu_ps(out, _mm512_add_ps(_mm512_loadu_ps(out), sums));
}

// sums[16 / rows][M][rows] += x row i . W rows of the decoder's panel over a depth.
template <int M, class Decoder, class Rows>
inline void multiply_pass(const Decoder& decoder, const Rows& w, const uint16_t* x, const depth_runs& runs,
                          float* sums) {
  constexpr int rows = rows_at_once<M>, count = M * rows, vectors = static_cast<int>(Decoder::block_k) / bf16_width;
  for (int first = 0; first < panel_rows; first += rows, sums += count) {
    __m512 partial[count], lanes[count / 4];  // [M][rows], and what is left of four of them
#pragma GCC unroll 4
    for (int i = 0; Decoder::scales_sums && i < count / 4; ++i) lanes[i] = _mm512_setzero_ps();
    for (int64_t run = 0, b = 0; run < runs.count; ++run) {
#pragma GCC unroll 16
      for (int i = 0; i < count; ++i) partial[i] = _mm512_setzero_ps();
      for (const int64_t end = runs.end[run] / Decoder::block_k; b < end; ++b) {
        const uint16_t* columns = x + b * Decoder::block_k;
#pragma GCC unroll 8
        for (int r = 0; r < rows; r += 2) {
          __m512i even[vectors], odd[vectors];
          w.row(b, first + r, even);
          w.row(b, first + r + 1, odd);
#pragma GCC unroll 4
          for (int v = 0; v < vectors; ++v)
#pragma GCC unroll 8
            for (int i = 0; i < M; ++i) {
              const __m512i a = _mm512_loadu_si512(columns + i * bf16_x_pitch + v * bf16_width);
              partial[i * rows + r] = dot_bf16(partial[i * rows + r], even[v], a);
              partial[i * rows + r + 1] = dot_bf16(partial[i * rows + r + 1], odd[v], a);
            }
        }
      }
#pragma GCC unroll 4
      for (int i = 0; i < count; i += 4) {
        const __m512 four = avx512_vectors::sum4(partial[i], partial[i + 1], partial[i + 2], partial[i + 3]);
        if constexpr (Decoder::scales_sums)
          lanes[i / 4] = _mm512_fmadd_ps(
              four, scales_of_four<rows>(decoder.scales_at(runs.begin(run)) + first + i % rows), lanes[i / 4]);
        else
          lanes[i / 4] = four;
      }
    }
    if constexpr (count == 16)
      add_lanes16(sums, lanes[0], lanes[1], lanes[2], lanes[3]);
    else
      for (int i = 0; i < count; i += 4) avx512_vectors::add_lanes4(sums + i, lanes[i / 4]);
  }
}

// Those of row i, in the order of W's rows.
template <int M>
inline void gather_sums(const float* sums, int i, float out[panel_rows]) {
  constexpr int rows = rows_at_once<M>;
  for (int first = 0; first < panel_rows; first += rows)
    std::memcpy(out + first, sums + first * M + i * rows, rows * sizeof(float));
}

// f(first row, rows as a constant) for each pass: 1, 2, 4, 6 or 8 rows of x, shared out evenly. 10 are 4 + 6.
template <class F>
LOWBIT_INLINE void for_each_pass(int64_t m, const F& f) {
  if (m == 1) return f(0, constant<1>{});
  const int64_t pairs = ceil_div(m, 2), passes = ceil_div(pairs, 4);
  for (int64_t pass = 0; pass < passes; ++pass) {
    const int64_t first = pairs * pass / passes, count = pairs * (pass + 1) / passes - first;
    if (count == 4)
      f(2 * first, constant<8>{});
    else if (count == 3)
      f(2 * first, constant<6>{});
    else if (count == 2)
      f(2 * first, constant<4>{});
    else
      f(2 * first, constant<2>{});
  }
}

// ---- the whole ----

struct bf16_arithmetic {
  using element = uint16_t;

  static constexpr bool decodes(recipe r) {
    return r == recipe::lut16 || r == recipe::linear || r == recipe::minifloat;
  }
  static constexpr bool has_unit_128(recipe) { return true; }
  static constexpr bool scales_groups = true;
  template <recipe Recipe, int Unit, offset Offset>
  using decoder = bf16_decoder<Recipe, Unit, Offset, bf16_depth>;

  static int64_t x_rows(int64_t m) { return m == 1 ? 1 : round_up(m, 2); }
  // Elements in the order of decoded codes, one depth of all rows after the other: [depth][rows][bf16_x_pitch]. Rows
  // whose distance is a multiple of 4 KB would share a few sets of L1.
  static int64_t x_size(const packed_shape& s, int64_t rows) {
    return ceil_div(s.k_packed, bf16_depth) * rows * bf16_x_pitch;
  }

  static void put_row(const gemm_problem& p, int64_t m, element* x) {  // zeros past the last
    const packed_shape& s = p.w.shape;
    uint16_t order[chunk];  // where each element comes from
    with_decoding<bf16_arithmetic>(p.w, [&](auto decode, auto unit, auto of) {
      if constexpr (decodes(decode.value))
        for (int i = 0; i < chunk; ++i)
          order[i] = static_cast<uint16_t>(decoder<decode.value, unit.value, of.value>::order(i));
    });
    const __m512i first = _mm512_loadu_si512(order), second = _mm512_loadu_si512(order + 32);
    const uint16_t* row = static_cast<const uint16_t*>(p.x) + (m < p.m ? m * p.x_stride : 0);
    for (int64_t c = 0; c < s.chunks(); ++c) {
      uint16_t padded[chunk] = {};
      const uint16_t* from = m < p.m ? chunk_of_row(s, row, c, padded) : padded;
      const __m512i low = load_as_bf16(from, p.x_dtype), high = load_as_bf16(from + 32, p.x_dtype);
      element* out = x + (c * chunk / bf16_depth * x_rows(p.m) + m) * bf16_x_pitch + c * chunk % bf16_depth;
      _mm512_storeu_si512(out, _mm512_permutex2var_epi16(low, first, high));
      _mm512_storeu_si512(out + 32, _mm512_permutex2var_epi16(low, second, high));
    }
  }

  // Panels [begin, end) of y; false: no memory.
  template <class Decoder>
  static bool panels(const gemm_problem& p, const element* x, int64_t begin, int64_t end) {
    const packed_shape& s = p.w.shape;
    // More panels share a depth of x, in L2, when there is much of it.
    const int64_t together = p.m >= 24 ? 4 : 1, rows = x_rows(p.m), panel_sums = rows * panel_rows;
    const size_t bytes = static_cast<size_t>(together * panel_sums) * sizeof(float);
    auto* sums = static_cast<float*>(scratch(scratch_slot::sums, bytes));
    Decoder decoder(p.w);
    const bool direct = p.m <= decoder.direct_rows();
    decoded_rows<Decoder> decoded{static_cast<uint16_t*>(
        scratch(scratch_slot::panel, direct ? 0 : panel_rows * bf16_x_pitch * sizeof(uint16_t)))};
    if (!sums || (!decoded.elements && !direct)) return false;
    for (int64_t panel = begin; panel < end; panel += together) {
      const int64_t count = end - panel < together ? end - panel : together;
      std::memset(sums, 0, bytes);
      for (int64_t column = 0; column < s.k_packed; column += bf16_depth) {
        const int64_t columns = s.k_packed - column < bf16_depth ? s.k_packed - column : bf16_depth;
        const element* x_of_depth = x + column / bf16_depth * rows * bf16_x_pitch;
        const depth_runs runs(s, column, columns, Decoder::scales_sums);
        for (int64_t i = 0; i < count; ++i) {
          decoder.begin(panel + i, column, columns);
          const auto multiply = [&](const auto& w) {
            for_each_pass(p.m, [&](int64_t first, auto of_pass) {
              multiply_pass<of_pass.value>(decoder, w, x_of_depth + first * bf16_x_pitch, runs,
                                           sums + i * panel_sums + first * panel_rows);
            });
          };
          if (direct) {
            decoder.with_rows(multiply);
          } else {
            decoder.with_rows([&](const auto& w) { decoded.decode(w, columns); });
            multiply(decoded);
          }
        }
      }
      for (int64_t i = 0; i < count; ++i)
        for_each_pass(p.m, [&](int64_t first, auto of_pass) {
          for (int row = 0; row < of_pass.value && first + row < p.m; ++row) {
            float of_row[panel_rows];
            gather_sums<of_pass.value>(sums + i * panel_sums + first * panel_rows, row, of_row);
            store_row(p, of_row, first + row, (panel + i) * panel_rows, p.w.global_scale);
          }
        });
    }
    return true;
  }

 private:
  static __m512i load_as_bf16(const uint16_t* x, int dtype) {  // 32 of them
    if (dtype == LOWBIT_BF16) return _mm512_loadu_si512(x);
    return round_bf16(load_f32(x, 0, dtype), load_f32(x, 16, dtype));
  }
};

}  // namespace
}  // namespace lowbit::cpu
