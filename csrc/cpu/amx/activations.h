// Activations as AMX B operands. Tile (t, s): 16 rows of x (fewer when m < 16) by 64 bytes of K, each dword of K a
// tile row, each row of x a tile column:   bytes [run of 8 steps][tile t][step s][16][width][4]
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

  static activation_tiles of(int64_t m, int64_t steps) {
    return {nullptr, ceil_div(m, 16), steps, m < 16 ? m : 16};
  }
  int64_t step_bytes() const { return 64 * width; }
  int64_t row_bytes() const { return 4 * width; }
  int64_t bytes() const { return tiles * steps * step_bytes(); }
  uint8_t* at(int64_t tile, int64_t step) const {
    const int64_t run = step / slab_steps, run_steps = steps - run * slab_steps < slab_steps ? steps - run * slab_steps : slab_steps;
    return data + (run * slab_steps * tiles + tile * run_steps + step % slab_steps) * step_bytes();
  }
  // Steps from `step` on that lie one after another.
  int64_t contiguous(int64_t step) const { return slab_steps - step % slab_steps; }

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

// ---- bf16: a chunk of 64 columns is two steps, even columns first (as a 16-bit shift of packed codes leaves them) ----

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

// Extremes of a row. NaN is looked for apart, since min and max drop it.
inline row_quantization quantization_of_row(const gemm_problem& p, int64_t m) {
  row_quantization given{};
  if (p.activation == LOWBIT_STATIC) given = p.given_quantization(m);
  if (p.x_dtype == LOWBIT_I8) return given;
  __m512 low = _mm512_setzero_ps(), high = _mm512_setzero_ps();
  __mmask16 nan = 0;
  for (int64_t k = 0; k < p.w.shape.k; k += 16) {
    const __m512 x = load_f32(p.x, m * p.x_stride + k, p.x_dtype, first_lanes(p.w.shape.k - k));
    nan |= _mm512_cmp_ps_mask(x, x, _CMP_UNORD_Q);
    low = _mm512_min_ps(low, x);
    high = _mm512_max_ps(high, x);
  }
  row_quantization r = given;
  if (p.activation != LOWBIT_STATIC)
    r = quantization_of(p.activation, _mm512_reduce_min_ps(low), _mm512_reduce_max_ps(high), nan != 0);
  if (nan) r.scale = NAN;
  return r;
}

inline __m128i quantize_16(__m512 x, __m512 inverse, __m512 zero_point) {
  __m512 q = _mm512_add_ps(_mm512_roundscale_ps(_mm512_mul_ps(x, inverse), _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC),
                           zero_point);
  q = _mm512_maskz_mov_ps(_mm512_cmp_ps_mask(q, q, _CMP_ORD_Q), q);
  q = _mm512_min_ps(_mm512_max_ps(q, _mm512_set1_ps(-128.0f)), _mm512_set1_ps(127.0f));
  return _mm512_cvtepi32_epi8(_mm512_cvtps_epi32(q));
}

// 64 columns of a row in one step: zeros past `count`.
inline __m512i quantize_step(const gemm_problem& p, int64_t offset, int64_t count, __m512 inverse, __m512 zero_point) {
  if (p.x_dtype == LOWBIT_I8)
    return _mm512_maskz_loadu_epi8(count >= 64 ? ~0ull : (1ull << count) - 1,
                                   static_cast<const int8_t*>(p.x) + offset);
  __m128i q[4];
  for (int i = 0; i < 4; ++i) {
    const __mmask16 mask = first_lanes(count - 16 * i);
    q[i] = _mm_maskz_mov_epi8(mask, quantize_16(load_f32(p.x, offset + 16 * i, p.x_dtype, mask), inverse, zero_point));
  }
  const __m256i low = _mm256_inserti128_si256(_mm256_castsi128_si256(q[0]), q[1], 1);
  const __m256i high = _mm256_inserti128_si256(_mm256_castsi128_si256(q[2]), q[3], 1);
  return _mm512_inserti64x4(_mm512_castsi256_si512(low), high, 1);
}

inline void quantize_tile(const gemm_problem& p, const integer_axis& axis, const quantized_rows& out, int64_t tile) {
  const int64_t rows = p.m - tile * 16 < 16 ? p.m - tile * 16 : 16, padded_m = out.tiles.tiles * 16;
  __m512 inverse[16], zero_point[16];
  for (int64_t i = 0; i < 16; ++i) {
    const row_quantization r = i < rows ? quantization_of_row(p, tile * 16 + i) : row_quantization{};
    out.scale[tile * 16 + i] = r.scale;
    out.zero_point[tile * 16 + i] = r.zero_point;
    inverse[i] = _mm512_set1_ps(r.inverse);
    zero_point[i] = _mm512_set1_ps(static_cast<float>(r.zero_point));
  }
  for (int64_t segment = 0; segment < axis.segments(); ++segment) {
    __m512i sums = _mm512_setzero_si512();  // (16 rows)
    const int64_t first = axis.first_step(segment), last = first + axis.steps_of(segment);
    for (int64_t step = first; step < last; ++step) {
      __m512i q[16];
      for (int64_t i = 0; i < 16; ++i)
        q[i] = i < rows ? quantize_step(p, (tile * 16 + i) * p.x_stride + axis.first_column(step),
                                        axis.columns_of(step), inverse[i], zero_point[i])
                        : _mm512_setzero_si512();
      out.tiles.store(tile, step, q);  // q is now its transpose: row i holds 4 columns of all 16 rows
      for (int i = 0; i < 16; ++i) sums = _mm512_dpbusd_epi32(sums, _mm512_set1_epi8(1), q[i]);
    }
    _mm512_storeu_si512(out.sums + segment * padded_m + tile * 16, sums);
  }
}

}  // namespace
}  // namespace lowbit::cpu
