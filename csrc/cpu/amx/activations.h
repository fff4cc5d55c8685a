// Activations as AMX B operands. Tile (t, s): 16 rows of x (fewer when m < 16) by 64 bytes of K, each dword of K a
// tile row, each row of x a tile column:   bytes [run of steps][tile t][step s][16][width][4]
// What a slab of weights meets lies together: tiles a power of two apart would fall into the same sets of the cache.
#pragma once

#include "cpu/amx/tile.h"
#include "cpu/amx/tuning.h"
#include "cpu/avx512_vnni/simd.h"
#include "cpu/generic/chunks.h"

namespace lowbit::cpu {
namespace {

struct activation_tiles {
  uint8_t* data;
  int64_t tiles, steps, width;  // width: rows of x in a tile, 16 unless m is smaller
  int64_t run;                  // steps, a power of two

  static activation_tiles of(int64_t m, int64_t steps, int64_t run) {
    return {nullptr, ceil_div(m, 16), steps, m < 16 ? m : 16, run};
  }
  int64_t step_bytes() const { return 64 * width; }
  int64_t row_bytes() const { return 4 * width; }
  int64_t bytes() const { return tiles * steps * step_bytes(); }
  uint8_t* at(int64_t tile, int64_t step) const {
    const int64_t first = step & -run, run_steps = steps - first < run ? steps - first : run;
    return data + (first * tiles + tile * run_steps + step - first) * step_bytes();
  }
  // Steps from `step` on that lie one after another.
  int64_t contiguous(int64_t step) const { return run - (step & (run - 1)); }

  // Part number `part` of `parts` of the `count` tiles from `tile` on, in the run after that of `step`. They come from
  // L3 while those before them are multiplied (10 to 13 % faster than without).
  lookahead next_run(int64_t tile, int64_t count, int64_t step, int64_t part, int64_t parts) const {
    const int64_t next = (step & -run) + run, lines = count * 16 / parts;  // a step
    if (next + run > steps) return {};
    return {at(tile, next) + part * lines * run * 64, lines};
  }

  // From 64 bytes of K for each of 16 rows: the dword transpose that makes a tile.
  void store(int64_t tile, int64_t step, __m512i rows[16]) const {
    transpose_16x16(rows);
    uint8_t* out = at(tile, step);
    if (width == 16) {
      for (int i = 0; i < 16; ++i) _mm512_store_si512(out + 64 * i, rows[i]);
    } else {
      const __mmask16 mask = first_lanes(width);
      for (int i = 0; i < 16; ++i) _mm512_mask_storeu_epi32(out + row_bytes() * i, mask, rows[i]);
    }
  }
};

// ---- bf16: a chunk of 64 columns is two steps, even columns first, as a 16-bit shift of packed codes leaves them ----

inline __m512i load_bf16(const uint16_t* x, int dtype) {  // 32 values
  const __m512i bits = _mm512_loadu_si512(x);
  if (dtype == LOWBIT_BF16) return bits;
  const __m512 low = _mm512_cvtph_ps(_mm512_castsi512_si256(bits));
  const __m512 high = _mm512_cvtph_ps(_mm512_extracti64x4_epi64(bits, 1));
  return reinterpret_cast<__m512i>(_mm512_cvtne2ps_pbh(high, low));
}

inline void pack_bf16(const gemm_problem& p, const activation_tiles& out, int64_t tile) {
  const __m512i even = _mm512_set_epi16(62, 60, 58, 56, 54, 52, 50, 48, 46, 44, 42, 40, 38, 36, 34, 32, 30, 28, 26, 24,
                                        22, 20, 18, 16, 14, 12, 10, 8, 6, 4, 2, 0);
  const __m512i odd = _mm512_add_epi16(even, _mm512_set1_epi16(1));
  const int64_t rows = p.m - tile * 16 < 16 ? p.m - tile * 16 : 16;
  for (int64_t c = 0; c < p.w.shape.chunks(); ++c) {
    __m512i evens[16], odds[16];
    for (int64_t i = 0; i < 16; ++i) {
      if (i >= rows) {
        evens[i] = odds[i] = _mm512_setzero_si512();
        continue;
      }
      uint16_t padded[chunk];
      const uint16_t* row = static_cast<const uint16_t*>(p.x) + (tile * 16 + i) * p.x_stride;
      const uint16_t* x = chunk_of_row(p.w.shape, row, c, padded);
      const __m512i low = load_bf16(x, p.x_dtype), high = load_bf16(x + 32, p.x_dtype);
      evens[i] = _mm512_permutex2var_epi16(low, even, high);
      odds[i] = _mm512_permutex2var_epi16(low, odd, high);
    }
    out.store(tile, 2 * c, evens);
    out.store(tile, 2 * c + 1, odds);
  }
}

// ---- int8: quantized row by row; sums of every segment ride along for zero points ----

struct quantized_rows {
  activation_tiles tiles;
  float* scale;         // [16 tiles]
  int32_t* zero_point;  // [16 tiles]
  int32_t* sums;        // [segment][16 tiles]: sum of q
};

struct row_extremes {
  float low, high;
  bool nan;
};

// The lowest and highest value of a row; NaN is looked for apart, since min and max drop it.
template <int Dtype>
inline row_extremes extremes_of(const void* x, int64_t offset, int64_t k) {
  __m512 low = _mm512_setzero_ps(), high = _mm512_setzero_ps();
  __mmask16 nan = 0;
  for (int64_t i = 0; i < k; i += 16) {
    const __m512 v = load_f32(x, offset + i, Dtype, first_lanes(k - i));
    nan |= _mm512_cmp_ps_mask(v, v, _CMP_UNORD_Q);
    low = _mm512_min_ps(low, v);
    high = _mm512_max_ps(high, v);
  }
  return {_mm512_reduce_min_ps(low), _mm512_reduce_max_ps(high), nan != 0};
}

// The same for symmetric quantization of 16-bit rows, as +-max|x|: magnitudes order like their bits, NaN above all.
template <int Dtype>
inline row_extremes magnitude_of(const void* x, int64_t offset, int64_t k) {
  const uint16_t* row = static_cast<const uint16_t*>(x) + offset;
  __m512i largest = _mm512_setzero_si512();
  int64_t i = 0;
  for (; i + 32 <= k; i += 32)
    largest = _mm512_max_epu16(largest, _mm512_and_si512(_mm512_loadu_si512(row + i), _mm512_set1_epi16(0x7fff)));
  if (i < k)
    largest = _mm512_max_epu16(
        largest, _mm512_and_si512(_mm512_maskz_loadu_epi16((1u << (k - i)) - 1, row + i), _mm512_set1_epi16(0x7fff)));
  const __m512i words =
      _mm512_max_epu32(_mm512_and_si512(largest, _mm512_set1_epi32(0xffff)), _mm512_srli_epi32(largest, 16));
  const uint16_t bits = static_cast<uint16_t>(_mm512_reduce_max_epu32(words));
  const float magnitude = Dtype == LOWBIT_BF16 ? bf16_to_f32(bits) : f16_to_f32(bits);
  return {-magnitude, magnitude, magnitude != magnitude};
}

template <int Dtype>
inline row_quantization quantization_of_row(const gemm_problem& p, int64_t m) {
  row_quantization given{};
  if (p.activation == LOWBIT_STATIC) given = p.given_quantization(m);
  if constexpr (Dtype == LOWBIT_I8) {
    return given;
  } else {
    const int64_t offset = m * p.x_stride, k = p.w.shape.k;
    const bool by_magnitude = Dtype != LOWBIT_F32 && p.activation == LOWBIT_DYNAMIC_SYMMETRIC;
    const row_extremes e = by_magnitude ? magnitude_of<Dtype>(p.x, offset, k) : extremes_of<Dtype>(p.x, offset, k);
    row_quantization r = given;
    if (p.activation != LOWBIT_STATIC) r = quantization_of(p.activation, e.low, e.high, e.nan);
    if (e.nan) r.scale = NAN;
    return r;
  }
}

// 64 values of a row. What NaN becomes does not matter: the row's scale is NaN.
template <int Dtype>
inline __m512i quantize_64(const void* x, int64_t offset, bool clamp, __m512 inverse, __m512i zero_point) {
  if constexpr (Dtype == LOWBIT_I8) {
    return _mm512_loadu_si512(static_cast<const int8_t*>(x) + offset);
  } else {
    __m512i q[4];
    for (int i = 0; i < 4; ++i) {
      __m512 v = _mm512_mul_ps(load_f32(x, offset + 16 * i, Dtype), inverse);
      // Given scales may send values past int32; 2^20 is far past int8 already.
      if (clamp) v = _mm512_min_ps(_mm512_max_ps(v, _mm512_set1_ps(-0x1p20f)), _mm512_set1_ps(0x1p20f));
      q[i] = _mm512_add_epi32(_mm512_cvtps_epi32(v), zero_point);
    }
    // Saturating packs work in 128-bit lanes: dword 4 l + i of their result is lane l of q[i].
    const __m512i order = _mm512_set_epi32(15, 11, 7, 3, 14, 10, 6, 2, 13, 9, 5, 1, 12, 8, 4, 0);
    return _mm512_permutexvar_epi32(order,
                                    _mm512_packs_epi16(_mm512_packs_epi32(q[0], q[1]), _mm512_packs_epi32(q[2], q[3])));
  }
}

// `count` columns of a row in one step: zeros past them.
template <int Dtype>
inline __m512i quantize_step(const gemm_problem& p, int64_t offset, int64_t count, __m512 inverse, __m512i zero_point) {
  const bool clamp = p.activation == LOWBIT_STATIC;
  if (count == 64) return quantize_64<Dtype>(p.x, offset, clamp, inverse, zero_point);
  alignas(64) uint8_t padded[64 * 4] = {};
  constexpr int64_t size = Dtype == LOWBIT_F32 ? 4 : Dtype == LOWBIT_I8 ? 1 : 2;
  std::memcpy(padded, static_cast<const uint8_t*>(p.x) + offset * size, static_cast<size_t>(count * size));
  return _mm512_maskz_mov_epi8((1ull << count) - 1, quantize_64<Dtype>(padded, 0, clamp, inverse, zero_point));
}

template <int Dtype>
inline void quantize_tile(const gemm_problem& p, const integer_axis& axis, const quantized_rows& out, int64_t tile) {
  const int64_t rows = p.m - tile * 16 < 16 ? p.m - tile * 16 : 16, padded_m = out.tiles.tiles * 16;
  __m512 inverse[16];
  __m512i zero_point[16];
  for (int64_t i = 0; i < 16; ++i) {
    const row_quantization r = i < rows ? quantization_of_row<Dtype>(p, tile * 16 + i) : row_quantization{};
    out.scale[tile * 16 + i] = r.scale;
    out.zero_point[tile * 16 + i] = r.zero_point;
    inverse[i] = _mm512_set1_ps(r.inverse);
    zero_point[i] = _mm512_set1_epi32(r.zero_point);
  }
  for (int64_t segment = 0; segment < axis.segments(); ++segment) {
    __m512i sums = _mm512_setzero_si512();  // (16 rows)
    const int64_t first = axis.first_step(segment), last = first + axis.steps_of(segment);
    for (int64_t step = first; step < last; ++step) {
      const int64_t column = axis.first_column(step), count = axis.columns_of(step);
      __m512i q[16];
      for (int64_t i = 0; i < 16; ++i)
        q[i] = i < rows
                   ? quantize_step<Dtype>(p, (tile * 16 + i) * p.x_stride + column, count, inverse[i], zero_point[i])
                   : _mm512_setzero_si512();
      out.tiles.store(tile, step, q);  // q is now its transpose: row i holds 4 columns of all 16 rows
      for (int i = 0; i < 16; ++i) sums = _mm512_dpbusd_epi32(sums, _mm512_set1_epi8(1), q[i]);
    }
    _mm512_storeu_si512(out.sums + segment * padded_m + tile * 16, sums);
  }
}

inline void quantize_tile(const gemm_problem& p, const integer_axis& axis, const quantized_rows& out, int64_t tile) {
  switch (p.x_dtype) {
    case LOWBIT_F32:
      return quantize_tile<LOWBIT_F32>(p, axis, out, tile);
    case LOWBIT_F16:
      return quantize_tile<LOWBIT_F16>(p, axis, out, tile);
    case LOWBIT_BF16:
      return quantize_tile<LOWBIT_BF16>(p, axis, out, tile);
    default:
      return quantize_tile<LOWBIT_I8>(p, axis, out, tile);
  }
}

}  // namespace
}  // namespace lowbit::cpu
