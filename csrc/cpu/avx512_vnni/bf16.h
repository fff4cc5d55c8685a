// weight_only in bf16: packed codes to pairs of bf16, x rounded to bf16, products and sums by AVX512-BF16.
#pragma once

#include "cpu/avx512_vnni/decode_bf16.h"
#include "cpu/generic/weight_only.h"

namespace lowbit::cpu {
namespace {

struct bf16_arithmetic {
  using element = uint16_t;
  using vector = __m512i;
  using sum = __m512;
  static constexpr int width = 32;
  static constexpr int64_t depth = 1024;
  static constexpr int mr = 6, nr = 4, direct_sums = 24;
  static constexpr int64_t panels_at_once = 4;

  static constexpr bool decodes(recipe r) {
    return r == recipe::lut16 || r == recipe::linear || r == recipe::minifloat;
  }
  static constexpr bool has_unit_128(recipe) { return true; }
  static constexpr bool scales_groups = true, scales_lanes = false;
  template <recipe Recipe, int Unit, offset Offset>
  using decoder = bf16_decoder<Recipe, Unit, Offset, depth>;

  static sum zero() { return _mm512_setzero_ps(); }
  static vector load(const element* p) { return _mm512_loadu_si512(p); }
  static void store(element* p, vector v) { _mm512_storeu_si512(p, v); }
  LOWBIT_INLINE static sum dot(sum s, vector w, vector x) { return dot_bf16(s, w, x); }
  static void add_sum4(float* out, sum a, sum b, sum c, sum d) { avx512_vectors::add_sum4(out, a, b, c, d); }
  static void add_scaled4(sum& lanes4, const float* scales, sum a, sum b, sum c, sum d) {
    const sum scale = _mm512_broadcast_f32x4(_mm_loadu_ps(scales));
    lanes4 = _mm512_fmadd_ps(avx512_vectors::sum4(a, b, c, d), scale, lanes4);
  }
  static void add_lanes4(float* out, sum lanes4) { avx512_vectors::add_lanes4(out, lanes4); }

  static void put_row(const gemm_problem& p, int64_t m, element* out) {
    const packed_shape& s = p.w.shape;
    uint16_t order[chunk];  // where each element comes from
    for (int i = 0; i < chunk; ++i)
      order[i] = static_cast<uint16_t>(s.bits == 4 ? i % 32 * 2 + i / 32 : i % 16 * 4 + i / 16);
    const __m512i first = _mm512_loadu_si512(order), second = _mm512_loadu_si512(order + 32);
    const uint16_t* row = static_cast<const uint16_t*>(p.x) + m * p.x_stride;
    for (int64_t c = 0; c < s.chunks(); ++c, out += chunk) {
      uint16_t padded[chunk];
      const uint16_t* x = chunk_of_row(s, row, c, padded);
      const __m512i low = load_as_bf16(x, p.x_dtype), high = load_as_bf16(x + 32, p.x_dtype);
      _mm512_storeu_si512(out, _mm512_permutex2var_epi16(low, first, high));
      _mm512_storeu_si512(out + 32, _mm512_permutex2var_epi16(low, second, high));
    }
  }

 private:
  static __m512i load_as_bf16(const uint16_t* x, int dtype) {  // 32 of them
    if (dtype == LOWBIT_BF16) return _mm512_loadu_si512(x);
    return round_bf16(load_f32(x, 0, dtype), load_f32(x, 16, dtype));
  }
};

}  // namespace
}  // namespace lowbit::cpu
