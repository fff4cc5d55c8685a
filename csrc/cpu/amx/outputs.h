// Sums to outputs: tiles of fp32 sums [output][row of x] become rows of y.   y = fma(sum, factor[row], bias[output])
#pragma once

#include "cpu/avx512_vnni/simd.h"
#include "cpu/generic/outputs.h"

namespace lowbit::cpu {
namespace {

// Two rows of fp32 as 16-bit floats, element by element side by side: one dword of y for each row of x.
template <int Dtype>
inline __m512i pair_16bit(__m512 first, __m512 second) {
  const __m512i interleave = _mm512_set_epi16(31, 15, 30, 14, 29, 13, 28, 12, 27, 11, 26, 10, 25, 9, 24, 8, 23, 7, 22,
                                              6, 21, 5, 20, 4, 19, 3, 18, 2, 17, 1, 16, 0);
  __m512i both;
  if constexpr (Dtype == LOWBIT_BF16)
    both = reinterpret_cast<__m512i>(_mm512_cvtne2ps_pbh(second, first));
  else
    both = _mm512_inserti64x4(
        _mm512_castsi256_si512(_mm512_cvtps_ph(first, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC)),
        _mm512_cvtps_ph(second, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC), 1);
  return _mm512_permutexvar_epi16(interleave, both);
}

// 32 outputs (two panels) x 16 rows of x, 64 bytes of y a row. `sums` points to the tile of each panel.
template <int Dtype>
inline void store_pair_16bit(const gemm_problem& p, const float* const sums[2], const float bias[32], int64_t n,
                             int64_t tile, __m512 factor) {
  __m512i d[16];
  for (int i = 0; i < 16; ++i) {
    const float* rows = sums[i / 8] + i % 8 * 32;
    d[i] = pair_16bit<Dtype>(_mm512_fmadd_ps(_mm512_load_ps(rows), factor, _mm512_set1_ps(bias[2 * i])),
                             _mm512_fmadd_ps(_mm512_load_ps(rows + 16), factor, _mm512_set1_ps(bias[2 * i + 1])));
  }
  transpose_16x16(d);
  const int64_t rows = p.m - tile * 16 < 16 ? p.m - tile * 16 : 16, outputs = p.w.shape.n - n;
  uint16_t* y = static_cast<uint16_t*>(p.y) + tile * 16 * p.y_stride + n;
  if (outputs >= 32) {
    for (int64_t i = 0; i < rows; ++i) _mm512_storeu_si512(y + i * p.y_stride, d[i]);
  } else {
    const __mmask32 mask = (1u << outputs) - 1;
    for (int64_t i = 0; i < rows; ++i) _mm512_mask_storeu_epi16(y + i * p.y_stride, mask, d[i]);
  }
}

// fma(sum, factor, bias) of a tile, a register of 16 outputs for each row of x.
inline void finished_rows(__m512i d[16], const float* sums, const float bias[16], __m512 factor) {
  for (int i = 0; i < 16; ++i)
    d[i] = _mm512_castps_si512(_mm512_fmadd_ps(_mm512_load_ps(sums + 16 * i), factor, _mm512_set1_ps(bias[i])));
  transpose_16x16(d);
}

inline void store_f32_tile(const gemm_problem& p, const float* sums, const float bias[16], int64_t n, int64_t tile,
                           __m512 factor) {
  __m512i d[16];
  finished_rows(d, sums, bias, factor);
  const int64_t rows = p.m - tile * 16 < 16 ? p.m - tile * 16 : 16;
  const __mmask16 mask = first_lanes(p.w.shape.n - n);
  float* y = static_cast<float*>(p.y) + tile * 16 * p.y_stride + n;
  for (int64_t i = 0; i < rows; ++i) _mm512_mask_storeu_epi32(y + i * p.y_stride, mask, d[i]);
}

// With an epilogue: as rows of fp32, which meet `other` as it lies.
inline void finish_tile(const gemm_problem& p, const float* sums, const float bias[16], int64_t n, int64_t tile,
                        __m512 factor) {
  __m512i d[16];
  finished_rows(d, sums, bias, factor);
  alignas(64) float rows[16][panel_rows];
  for (int i = 0; i < 16; ++i) _mm512_store_si512(rows[i], d[i]);
  const int64_t count = p.m - tile * 16 < 16 ? p.m - tile * 16 : 16;
  for (int64_t i = 0; i < count; ++i) finish_row(p, tile * 16 + i, n, rows[i]);
}

// The tiles of one or two panels. With one, `second` is any tile: its outputs lie past n and are masked off.
inline void store_outputs(const gemm_problem& p, const float* first, const float* second, int64_t panel, int64_t tile,
                          __m512 factor) {
  const int64_t n = panel * panel_rows, outputs = p.w.shape.n - n;
  alignas(64) float bias[32];
  for (int i = 0; i < 32; i += 16)
    _mm512_store_ps(bias + i, p.bias && outputs > i ? load_f32(p.bias, n + i, p.bias_dtype, first_lanes(outputs - i))
                                                    : _mm512_setzero_ps());
  const float* const sums[2] = {first, second};
  if (p.epilogue.any()) {
    finish_tile(p, first, bias, n, tile, factor);
    if (outputs > 16) finish_tile(p, second, bias + 16, n + 16, tile, factor);
  } else if (p.y_dtype == LOWBIT_BF16) {
    store_pair_16bit<LOWBIT_BF16>(p, sums, bias, n, tile, factor);
  } else if (p.y_dtype == LOWBIT_F16) {
    store_pair_16bit<LOWBIT_F16>(p, sums, bias, n, tile, factor);
  } else {
    store_f32_tile(p, first, bias, n, tile, factor);
    if (outputs > 16) store_f32_tile(p, second, bias + 16, n + 16, tile, factor);
  }
}

}  // namespace
}  // namespace lowbit::cpu
