// weight_only in bf16: packed codes to pairs of bf16, x rounded to bf16, products and sums by AVX512-BF16.
//
//   W       a panel x bf16_depth columns of codes: decoded to registers again for every pass over x, or to memory first
//           when there are more than decoder.direct_rows() rows of x
//   pass    rows of x by 16 rows of W, a vector of partial sums for each pair of rows, 16 of them at a time: decoding,
//           up to 8 rows of x by two or more of W; from memory, 4 by 4
//
// Zen 4: products take the floating-point pipes 0 and 1, a cycle each. What decodes a line (shifts, permutations)
// shares pipe 1, so that 4 permutations cost some 4 cycles beside 8 products, 7 beside none. Loads are one a cycle,
// stores take 1.3. A multiplication waits until the older products have gone, so decoders have as few as they can
// between code and weight. From memory, 4 x 4 takes 1.02 cycles a product, 1.10 with a scale for every 128 columns.
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

// Decoders with `scales_sums` leave the scale to the sums, which come in runs (end_of_run). Others have one run.
template <class Decoder>
struct depth_runs {
  struct run {
    int64_t end;          // in blocks from the first of the depth
    const float* scales;  // of a panel's rows
  };
  run runs[bf16_depth / run_unit];
  const run* last = runs;

  depth_runs(const Decoder& decoder, const packed_shape& s, int64_t column, int64_t columns) {
    run* out = runs;
    for (int64_t at = 0; at < columns; ++out) {
      if constexpr (Decoder::scales_sums) out->scales = decoder.scales_at(at);
      at = end_of_run(s, column, columns, Decoder::scales_sums, at);
      out->end = at / Decoder::block_k;
    }
    last = out;
  }
  const run* begin() const { return runs; }
  const run* end() const { return last; }
};

// ---- decoded to memory ----

// A panel's rows of one depth as elements, in L1 or L2.
template <class Decoder>
struct decoded_rows {
  static constexpr int vectors = static_cast<int>(Decoder::block_k) / bf16_width;

  uint16_t* elements;            // [16][bf16_x_pitch]
  const uint16_t* at = nullptr;  // where a pass is

  // `w` is a copy: what lies in memory would be loaded again after every store.
  template <class Lines>
  [[gnu::noinline]] void decode(const Lines w, int64_t columns) const {
    for (int64_t b = 0; b < columns / Decoder::block_k; ++b)
      for (int r = 0; r < panel_rows; ++r) {
        __m512i weights[vectors];
        w.row(b, r, weights);
        uint16_t* out = elements + r * bf16_x_pitch + b * Decoder::block_k;
        for (int v = 0; v < vectors; ++v) _mm512_storeu_si512(out + v * bf16_width, weights[v]);
      }
  }
};

// The same in a pass that asks for half of the lines to be decoded next, a few with each block. Asked for while a panel
// is decoded, they would come no faster than memory gives them (fp8, m = 64: 6 cycles a line).
template <class Decoder>
struct asking_rows : decoded_rows<Decoder> {
  const uint8_t* asked;

  static int64_t half(int64_t columns) { return columns / Decoder::block_k * panel_rows / 2 * line_bytes; }
  template <int Rows>
  LOWBIT_INLINE void ask() {
#pragma GCC unroll 8
    for (int r = 0; r < Rows / 2; ++r) prefetch_codes(asked + r * line_bytes, 0);
    asked += Rows / 2 * line_bytes;
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

// From a line to that of the next depth: a pass that takes a few rows of W asks for what it reads in the next one.
template <class Decoder>
constexpr int64_t depth_bytes = bf16_depth / Decoder::block_k * panel_rows * line_bytes;

// partial[M][Rows] += x . W rows from `first` on over a block, decoded two by two; x goes on behind it ...
template <int M, int Rows, class Decoder, class Lines>
LOWBIT_INLINE void add_products(__m512* partial, Lines& w, int64_t block, int first, const uint16_t*& x) {
  constexpr int vectors = static_cast<int>(Decoder::block_k) / bf16_width;
#pragma GCC unroll 8
  for (int r = 0; r < Rows; r += 2) {
    opaque(x);  // loaded again for every two rows, else GCC keeps it and leaves sums in memory
    __m512i even[vectors], odd[vectors];
    prefetch_codes(w.line(block, first + r), depth_bytes<Decoder>);
    prefetch_codes(w.line(block, first + r + 1), depth_bytes<Decoder>);
    w.row(block, first + r, even);
    w.row(block, first + r + 1, odd);
#pragma GCC unroll 4
    for (int v = 0; v < vectors; ++v)
#pragma GCC unroll 8
      for (int i = 0; i < M; ++i) {
        const __m512i a = _mm512_loadu_si512(x + i * bf16_x_pitch + v * bf16_width);
        partial[i * Rows + r] = dot_bf16(partial[i * Rows + r], even[v], a);
        partial[i * Rows + r + 1] = dot_bf16(partial[i * Rows + r + 1], odd[v], a);
      }
  }
  x += Decoder::block_k;
}
// ... or loaded, all of them for one vector of columns after the other.
template <int M, int Rows, class Decoder>
LOWBIT_INLINE void add_products(__m512* partial, decoded_rows<Decoder>& w, int64_t, int, const uint16_t*& x) {
  opaque(w.at), opaque(x);  // one register for each, else GCC takes one for each row
#pragma GCC unroll 4
  for (int v = 0; v < decoded_rows<Decoder>::vectors; ++v) {
    __m512i b[Rows];
#pragma GCC unroll 16
    for (int r = 0; r < Rows; ++r) b[r] = _mm512_loadu_si512(w.at + r * bf16_x_pitch + v * bf16_width);
#pragma GCC unroll 8
    for (int i = 0; i < M; ++i) {
      const __m512i a = _mm512_loadu_si512(x + i * bf16_x_pitch + v * bf16_width);
#pragma GCC unroll 16
      for (int r = 0; r < Rows; ++r) partial[i * Rows + r] = dot_bf16(partial[i * Rows + r], b[r], a);
    }
  }
  w.at += Decoder::block_k, x += Decoder::block_k;
}
template <int M, int Rows, class Decoder>
LOWBIT_INLINE void add_products(__m512* partial, asking_rows<Decoder>& w, int64_t block, int first,
                                const uint16_t*& x) {
  w.template ask<Rows>();
  add_products<M, Rows, Decoder>(partial, static_cast<decoded_rows<Decoder>&>(w), block, first, x);
}

// sums[16 / rows][M][rows] += x row i . W rows of a panel over a depth. Not inlined, and with little to keep at hand:
// it needs all registers, and GCC would put pointers into vectors, where they wait behind the products.
template <int M, class Decoder, class Lines>
[[gnu::noinline]] void multiply_pass(const Lines& lines, const uint16_t* x, const depth_runs<Decoder>& runs,
                                     float* sums) {
  constexpr int rows = rows_at_once<M>, count = M * rows;
  Lines w = lines;
#pragma GCC unroll 1
  for (int first = 0; first < panel_rows; first += rows, sums += count) {
    __m512 partial[count], lanes[count / 4];  // [M][rows], and what is left of four of them
#pragma GCC unroll 4
    for (int i = 0; Decoder::scales_sums && i < count / 4; ++i) lanes[i] = _mm512_setzero_ps();
    const uint16_t* columns = x;
    if constexpr (requires { w.at; }) w.at = w.elements + first * bf16_x_pitch;
    int64_t b = 0;
    for (const auto& run : runs) {
#pragma GCC unroll 16
      for (int i = 0; i < count; ++i) partial[i] = _mm512_setzero_ps();
      for (; b < run.end; ++b) add_products<M, rows, Decoder>(partial, w, b, first, columns);
#pragma GCC unroll 4
      for (int i = 0; i < count; i += 4) {
        const __m512 four = avx512_vectors::sum4(partial[i], partial[i + 1], partial[i + 2], partial[i + 3]);
        if constexpr (Decoder::scales_sums)
          lanes[i / 4] = _mm512_fmadd_ps(four, scales_of_four<rows>(run.scales + first + i % rows), lanes[i / 4]);
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

// Those of row i, in the order of W's rows: by pairs, into one register. A load waits for all the stores that it spans.
template <int M>
LOWBIT_INLINE void gather_sums(const float* sums, int i, float out[panel_rows]) {
  constexpr int rows = rows_at_once<M>;
  const auto pair = [&](int r) {
    double two;
    std::memcpy(&two, sums + r / rows * rows * M + i * rows + r % rows, sizeof two);
    return two;
  };
  _mm512_storeu_ps(
      out, _mm512_castpd_ps(_mm512_setr_pd(pair(0), pair(2), pair(4), pair(6), pair(8), pair(10), pair(12), pair(14))));
}

// f(first row, rows as a constant) for each pass: 1, 2, 4, 6 or 8 rows of x, up to Most, shared out evenly (10 are 4
// and 6).
template <int Most, class F>
LOWBIT_INLINE void for_each_pass(int64_t m, const F& f) {
  if constexpr (Most > 4)
    if (m == 1) return f(0, constant<1>{});
  const int64_t pairs = ceil_div(m, 2), passes = ceil_div(pairs, Most / 2);
  for (int64_t pass = 0; pass < passes; ++pass) {
    const int64_t first = pairs * pass / passes, count = pairs * (pass + 1) / passes - first;
    if (count == 1) f(2 * first, constant<2>{});
    if (count == 2) f(2 * first, constant<4>{});
    if constexpr (Most > 4) {
      if (count == 3) f(2 * first, constant<6>{});
      if (count == 4) f(2 * first, constant<8>{});
    }
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
    Decoder decoder(p.w);
    if (p.m <= decoder.direct_rows()) return panels<8>(p, x, 0, p.m, begin, end, decoder);
    for (int64_t m = 0; m < p.m; m += rows_in_l2)
      if (!panels<4>(p, x, m, p.m - m < rows_in_l2 ? p.m - m : rows_in_l2, begin, end, decoder)) return false;
    return true;
  }

 private:
  // Of x, whose depth then stays in L2 while all panels meet it. W is decoded again for the next ones: m = 1024 takes
  // 86 ms instead of 94 (fp8, 4096 x 4096, two threads).
  static constexpr int64_t rows_in_l2 = 256;

  // Rows [m, m + count_m) by passes of up to Most: 8 where every pass decodes W, 4 where it is decoded to memory. Of
  // these, more panels share a depth of x, in L2, and lines of y.
  template <int Most, class Decoder>
  static bool panels(const gemm_problem& p, const element* x, int64_t m, int64_t count_m, int64_t begin, int64_t end,
                     Decoder& decoder) {
    constexpr bool direct = Most == 8;
    constexpr int64_t together = direct ? 1 : 8;
    const packed_shape& s = p.w.shape;
    const int64_t rows = x_rows(p.m), panel_sums = round_up(count_m, 2) * panel_rows;
    const size_t bytes = static_cast<size_t>(together * panel_sums) * sizeof(float);
    auto* sums = static_cast<float*>(scratch(scratch_slot::sums, bytes));
    const decoded_rows<Decoder> decoded{static_cast<uint16_t*>(
        scratch(scratch_slot::panel, direct ? 0 : panel_rows * bf16_x_pitch * sizeof(uint16_t)))};
    if (!sums || (!decoded.elements && !direct)) return false;
    for (int64_t panel = begin; panel < end; panel += together) {
      const int64_t count = end - panel < together ? end - panel : together;
      std::memset(sums, 0, bytes);
      for (int64_t column = 0; column < s.k_packed; column += bf16_depth) {
        const int64_t columns = s.k_packed - column < bf16_depth ? s.k_packed - column : bf16_depth;
        const element* x_of_depth = x + (column / bf16_depth * rows + m) * bf16_x_pitch;
        const depth_runs runs(decoder, s, column, columns);
        for (int64_t i = 0; i < count; ++i) {
          const bool last = i + 1 == count, ends = last && column + bf16_depth >= s.k_packed;
          const int64_t next_panel = ends ? panel + count : last ? panel : panel + i + 1;
          const int64_t next_column = ends ? 0 : last ? column + bf16_depth : column;
          decoder.begin(panel + i, column, columns);
          prefetch_scales(p.w, next_panel, next_column, columns);
          const auto multiply = [&](const auto& w, int64_t first, auto of_pass) {
            multiply_pass<of_pass.value, Decoder>(w, x_of_depth + first * bf16_x_pitch, runs,
                                                  sums + i * panel_sums + first * panel_rows);
          };
          if constexpr (direct) {
            decoder.with_rows([&](const auto& w) {
              for_each_pass<Most>(count_m, [&](int64_t first, auto of_pass) { multiply(w, first, of_pass); });
            });
          } else {
            decoder.with_rows([&](const auto& w) { decoded.decode(w, columns); });
            asking_rows<Decoder> asking{decoded,
                                        p.w.codes + s.block_offset(next_panel, next_column / Decoder::block_k)};
            int64_t halves = 2;
            for_each_pass<Most>(count_m, [&](int64_t first, auto of_pass) {
              if (!halves) return multiply(decoded, first, of_pass);
              multiply(asking, first, of_pass);
              asking.asked += asking.half(columns), --halves;
            });
          }
        }
      }
      for_each_pass<Most>(count_m, [&](int64_t first, auto of_pass) {
        for (int64_t row = first; row < first + of_pass.value && row < count_m; ++row)
          for (int64_t i = 0; i < count; ++i) {
            float of_row[panel_rows];
            gather_sums<of_pass.value>(sums + i * panel_sums + first * panel_rows, static_cast<int>(row - first),
                                       of_row);
            store_row(p, of_row, m + row, (panel + i) * panel_rows, p.w.global_scale);
          }
      });
    }
    return true;
  }

  static __m512i load_as_bf16(const uint16_t* x, int dtype) {  // 32 of them
    if (dtype == LOWBIT_BF16) return _mm512_loadu_si512(x);
    return round_bf16(load_f32(x, 0, dtype), load_f32(x, 16, dtype));
  }
};

}  // namespace
}  // namespace lowbit::cpu
