// AVX-512 vocabulary: 16 fp32 lanes, conversions, transposes. Internal linkage: each folder gets its own copy.
#pragma once

#include <immintrin.h>

#include "gemm/contract.h"

namespace lowbit::cpu {
namespace {

inline __mmask16 first_lanes(int64_t count) {
  return count >= 16 ? 0xffff : count <= 0 ? 0 : static_cast<__mmask16>((1u << count) - 1);
}

// 16 values of a float dtype at element `i`, as fp32; lanes outside the mask are zero and are not read.
inline __m512 load_f32(const void* data, int64_t i, int dtype, __mmask16 mask = 0xffff) {
  switch (dtype) {
    case LOWBIT_F32:
      return _mm512_maskz_loadu_ps(mask, static_cast<const float*>(data) + i);
    case LOWBIT_F16:
      return _mm512_cvtph_ps(_mm256_maskz_loadu_epi16(mask, static_cast<const uint16_t*>(data) + i));
    default:
      return _mm512_castsi512_ps(_mm512_slli_epi32(
          _mm512_cvtepu16_epi32(_mm256_maskz_loadu_epi16(mask, static_cast<const uint16_t*>(data) + i)), 16));
  }
}

// 16 e4m3 bytes: the magnitude, shifted, is an fp16 of 2^-8 the value. NaN codes never get here.
inline __m512 minifloat_to_f32(__m128i bytes, int fp16_shift, float fp16_scale) {
  const __m256i words = _mm256_cvtepu8_epi16(bytes);
  const __m256i magnitude =
      _mm256_sll_epi16(_mm256_and_si256(words, _mm256_set1_epi16(0x7f)), _mm_cvtsi32_si128(fp16_shift));
  const __m256i sign = _mm256_slli_epi16(_mm256_and_si256(words, _mm256_set1_epi16(0x80)), 8);
  return _mm512_mul_ps(_mm512_cvtph_ps(_mm256_or_si256(magnitude, sign)), _mm512_set1_ps(fp16_scale));
}

// Scales, or minima, of a panel's rows for one group, as fp32: 16 numbers of w.scale_dtype, times `super` where the
// rule has two levels.
inline __m512 load_numbers(const packed_view& w, const void* data, const void* super, int64_t panel, int64_t group) {
  const int64_t i = (panel * w.shape.groups + group) * panel_rows;
  const __m128i* bytes = reinterpret_cast<const __m128i*>(static_cast<const uint8_t*>(data) + i);
  switch (w.scale_dtype) {
    case LOWBIT_I8:
      return _mm512_mul_ps(_mm512_cvtepi32_ps(_mm512_cvtepi8_epi32(_mm_loadu_si128(bytes))),
                           load_f32(super, w.super_index(panel * panel_rows, group), LOWBIT_F16));
    case LOWBIT_U8: {
      float of_row[panel_rows];
      for (int r = 0; r < panel_rows; ++r)
        of_row[r] = static_cast<const float*>(super)[w.super_index(panel * panel_rows + r, group)];
      const __m512 values =
          _mm512_i32gather_ps(_mm512_cvtepu8_epi32(_mm_loadu_si128(bytes)), w.format->scale_values, sizeof(float));
      return _mm512_add_ps(_mm512_mul_ps(values, _mm512_loadu_ps(of_row)), _mm512_set1_ps(w.scale_offset));
    }
    case LOWBIT_E8M0: {
      const __m512i exponent = _mm512_cvtepu8_epi32(_mm_loadu_si128(bytes));
      const __mmask16 zero = _mm512_testn_epi32_mask(exponent, exponent);  // 2^-127 is denormal
      return _mm512_castsi512_ps(
          _mm512_mask_mov_epi32(_mm512_slli_epi32(exponent, 23), zero, _mm512_set1_epi32(0x400000)));
    }
    case LOWBIT_E4M3:
      return minifloat_to_f32(_mm_loadu_si128(bytes), 7, 0x1p8f);
    default:
      return load_f32(data, i, w.scale_dtype);
  }
}

inline __m512 load_scales(const packed_view& w, int64_t panel, int64_t group) {
  return load_numbers(w, w.scales, w.super_scales, panel, group);
}

inline __m512i load_zero_points(const packed_view& w, int64_t panel, int64_t group) {
  if (!w.zero_points) return _mm512_setzero_si512();
  const int64_t i = (panel * w.shape.groups + group) * panel_rows;
  return _mm512_cvtepi8_epi32(_mm_loadu_si128(reinterpret_cast<const __m128i*>(w.zero_points + i)));
}

// Rows to columns of a 16 x 16 block of dwords, in place.
LOWBIT_INLINE void transpose_16x16(__m512i r[16]) {  // a call would send 16 registers through memory
  __m512i t[16];
  for (int i = 0; i < 16; i += 2) {  // pairs of dwords
    t[i] = _mm512_unpacklo_epi32(r[i], r[i + 1]);
    t[i + 1] = _mm512_unpackhi_epi32(r[i], r[i + 1]);
  }
  for (int i = 0; i < 16; i += 4) {  // quads: column 4 q + j of rows i .. i + 3, q the 128-bit lane
    r[i] = _mm512_unpacklo_epi64(t[i], t[i + 2]);
    r[i + 1] = _mm512_unpackhi_epi64(t[i], t[i + 2]);
    r[i + 2] = _mm512_unpacklo_epi64(t[i + 1], t[i + 3]);
    r[i + 3] = _mm512_unpackhi_epi64(t[i + 1], t[i + 3]);
  }
  for (int j = 0; j < 4; ++j) {  // 4 x 4 blocks of 128-bit lanes
    const __m512i a = _mm512_shuffle_i32x4(r[j], r[4 + j], 0x88), b = _mm512_shuffle_i32x4(r[j], r[4 + j], 0xdd);
    const __m512i c = _mm512_shuffle_i32x4(r[8 + j], r[12 + j], 0x88),
                  d = _mm512_shuffle_i32x4(r[8 + j], r[12 + j], 0xdd);
    t[j] = _mm512_shuffle_i32x4(a, c, 0x88);
    t[8 + j] = _mm512_shuffle_i32x4(a, c, 0xdd);
    t[4 + j] = _mm512_shuffle_i32x4(b, d, 0x88);
    t[12 + j] = _mm512_shuffle_i32x4(b, d, 0xdd);
  }
  for (int i = 0; i < 16; ++i) r[i] = t[i];
}

}  // namespace
}  // namespace lowbit::cpu
