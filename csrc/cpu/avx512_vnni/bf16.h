// bf16 dot products of AVX512-BF16: packed codes to pairs of bf16, W rounded to bf16 once more.
//
// The instructions stand by name: the files of this level are not compiled for AVX512-BF16, which the kernel's row asks
// for.
#pragma once

#include "cpu/avx512_vnni/vectors.h"
#include "cpu/generic/weight_only.h"

namespace lowbit::cpu {
namespace {

// sums += a[2 i] b[2 i] + a[2 i + 1] b[2 i + 1]; denormals are zero.
LOWBIT_INLINE __m512 dot_bf16(__m512 sums, __m512i a, __m512i b) {
  __asm__("vdpbf16ps %2, %1, %0" : "+v"(sums) : "v"(a), "vm"(b));
  return sums;
}
LOWBIT_INLINE __m512i round_bf16(__m512 low, __m512 high) {  // 32 bf16: those of `low` first
  __m512i out;
  __asm__("vcvtne2ps2bf16 %2, %1, %0" : "=v"(out) : "v"(high), "v"(low));
  return out;
}

// Order inside a chunk of 64 columns. 4-bit: a shift of words brings down every second column: the even ones, then
// the odd ones. 8-bit: as fp32 (generic/decode_f32.h).
template <recipe Recipe, int Unit, offset Offset, int64_t Depth>
class bf16_decoder {
 public:
  static constexpr int64_t block_k = Recipe == recipe::lut16 ? 128 : 64;

  explicit bf16_decoder(const packed_view& weights) : w(weights) {
    values = _mm512_setzero_ps();
    if (Recipe == recipe::lut16) values = _mm512_loadu_ps(w.format->values);
    if (tables_by_scale()) {
      for (int i = 0; i < 256; ++i) {
        const uint8_t code = static_cast<uint8_t>(i);
        const __m512 v =
            _mm512_mul_ps(values, _mm512_set1_ps(w.scale_dtype == LOWBIT_E8M0 ? finite_e8m0(code) : finite_e4m3(code)));
        _mm256_store_si256(reinterpret_cast<__m256i*>(table_of_scale[i]), _mm512_castsi512_si256(round_bf16(v, v)));
      }
    }
    uint16_t which[32];  // bit 4 (and 5) of an index: which of the groups in 32 words
    for (int i = 0; i < 32; ++i) which[i] = static_cast<uint16_t>(Unit >= 64 ? 0 : i / (Unit / 2) << 4);
    group_bits = _mm512_loadu_si512(which);
    // An 8-bit float as the top bits of an fp32 of far too small an exponent.
    const int shift = 11 - w.format->fp16_shift;
    minifloat_shift = _mm512_set1_epi32(shift);
    minifloat_bits = _mm512_set1_epi32(static_cast<int>(0x80000000u | 0x7f000000u >> shift));
    rebias = _mm512_set1_ps(w.format->fp16_scale * 0x1p112f);
  }

  void begin(int64_t panel, int64_t column, int64_t columns) {
    if (tables_by_scale())
      run_scale_bytes(panel, column, columns);
    else
      run_scales<avx512_vectors, Unit, Offset>(w, panel, column, columns, scales, offsets);
    lines = w.codes + w.shape.block_offset(panel, column / block_k);
    if constexpr (Recipe == recipe::minifloat) {  // one factor for both, unless it overflows: the product is the same
      const __m512 largest = _mm512_set1_ps(largest_f32);
      __mmask16 fits = 0xffff;
      for (int64_t i = 0; i < columns / Unit; ++i)
        fits &=
            _mm512_cmp_ps_mask(_mm512_abs_ps(_mm512_mul_ps(_mm512_load_ps(scales[i]), rebias)), largest, _CMP_LE_OQ);
      one_factor = fits == 0xffff;
      for (int64_t i = 0; one_factor && i < columns / Unit; ++i)
        _mm512_store_ps(scales[i], _mm512_mul_ps(_mm512_load_ps(scales[i]), rebias));
    }
  }

  template <class F>
  LOWBIT_INLINE void row(int64_t block, int r, const F& f) const {
    const uint8_t* line = lines + (block * panel_rows + r) * line_bytes;
    prefetch_codes(line);
    const __m512i codes = _mm512_loadu_si512(line);
    if constexpr (may_have_tables) {
      if (tables_by_scale())
        nibbles(codes, ready_table(2 * block, r), ready_table(2 * block + 1, r), f);
      else
        nibbles(codes, table(2 * block, r), table(2 * block + 1, r), f);
    } else if constexpr (Recipe == recipe::lut16) {
      const row_table low = table(2 * block, r);
      nibbles(codes, low, Unit == 128 ? low : table(2 * block + 1, r), f);
    } else if (Recipe == recipe::minifloat && !one_factor) {
      bytes<false>(codes, block, r, f);
    } else {
      bytes<true>(codes, block, r, f);
    }
  }

 private:
  struct row_table {  // 16, 2 x 16 or 4 x 16 scaled values
    __m512i low, high;
  };

  const packed_view& w;
  const uint8_t* lines = nullptr;
  bool one_factor = true;  // scales have taken in `rebias`
  __m512 values, rebias;
  __m512i group_bits, minifloat_shift, minifloat_bits;
  // Small groups with scales of a byte: the tables of all 256 scales are made once, 8 KB, and a row's groups choose.
  static constexpr bool may_have_tables = Recipe == recipe::lut16 && Unit < 64 && Offset == offset::none;
  alignas(64) uint16_t table_of_scale[may_have_tables ? 256 : 1][16];
  uint8_t scale_bytes[may_have_tables ? Depth / Unit : 1][panel_rows];
  alignas(64) float scales[Depth / Unit][panel_rows];
  alignas(64) float offsets[Offset == offset::none ? 1 : Depth / Unit][panel_rows];

  LOWBIT_INLINE bool tables_by_scale() const {
    return may_have_tables && (w.scale_dtype == LOWBIT_E8M0 || w.scale_dtype == LOWBIT_E4M3);
  }
  void run_scale_bytes(int64_t panel, int64_t column, int64_t columns) {
    const packed_shape& s = w.shape;
    const int64_t first = s.group_of_column(column), units = columns / Unit;
    for (int64_t i = 0; i < units; ++i) {
      const int64_t group = first + i < s.groups ? first + i : s.groups - 1;
      std::memcpy(scale_bytes[i], static_cast<const uint8_t*>(w.scales) + s.scale_index(panel * panel_rows, group),
                  panel_rows);
    }
  }
  LOWBIT_INLINE __m512i two_tables(int64_t unit, int r) const {
    const auto of = [&](int64_t i) {
      return _mm256_load_si256(reinterpret_cast<const __m256i*>(table_of_scale[scale_bytes[i][r]]));
    };
    return _mm512_inserti64x4(_mm512_castsi256_si512(of(unit)), of(unit + 1), 1);
  }

  LOWBIT_INLINE __m512 scaled_values(int64_t i, int r) const {
    __m512 v = values;
    const __m512 scale = _mm512_set1_ps(scales[i][r]);
    if constexpr (Offset == offset::min) return _mm512_fmadd_ps(v, scale, _mm512_set1_ps(offsets[i][r]));
    if constexpr (Offset == offset::zero_point) v = _mm512_sub_ps(v, _mm512_set1_ps(offsets[i][r]));
    return _mm512_mul_ps(v, scale);
  }
  LOWBIT_INLINE row_table table(int64_t c, int r) const {
    const int64_t i = c * chunk / Unit;
    const __m512 first = scaled_values(i, r);
    if constexpr (Unit >= 64) {
      const __m512i t = round_bf16(first, first);
      return {t, t};
    } else {
      const __m512i low = round_bf16(first, scaled_values(i + 1, r));
      if constexpr (Unit == 32) return {low, low};
      return {low, round_bf16(scaled_values(i + 2, r), scaled_values(i + 3, r))};
    }
  }
  LOWBIT_INLINE row_table ready_table(int64_t c, int r) const {
    const int64_t i = c * chunk / Unit;
    const __m512i low = two_tables(i, r);
    return {low, Unit == 16 ? two_tables(i + 2, r) : low};
  }
  template <class F>
  LOWBIT_INLINE void nibbles(__m512i codes, const row_table& low, const row_table& high, const F& f) const {
    f(0, lookup(codes, low));
    f(1, lookup(_mm512_srli_epi16(codes, 8), low));
    f(2, lookup(_mm512_srli_epi16(codes, 4), high));
    f(3, lookup(_mm512_srli_epi16(codes, 12), high));
  }
  LOWBIT_INLINE __m512i lookup(__m512i index, const row_table& t) const {
    if constexpr (Unit >= 64) return _mm512_permutexvar_epi16(index, t.low);
    index = _mm512_ternarylogic_epi32(index, _mm512_set1_epi16(15), group_bits, 0xea);  // (index & 15) | group
    if constexpr (Unit == 32) return _mm512_permutexvar_epi16(index, t.low);
    return _mm512_permutex2var_epi16(t.low, index, t.high);
  }

  LOWBIT_INLINE static __m512 spread(const float (*of)[panel_rows], int64_t c, int r) {
    if constexpr (Unit >= 64)
      return _mm512_set1_ps(of[c][r]);
    else
      return avx512_vectors::spread<chunk / Unit>(&of[c * (chunk / Unit)][r], panel_rows);
  }
  template <bool OneFactor, class F>
  LOWBIT_INLINE void bytes(__m512i codes, int64_t c, int r, const F& f) const {
    const __m512 scale = spread(scales, c, r);
    f(0, round_bf16(scaled<0, OneFactor>(codes, scale, c, r), scaled<1, OneFactor>(codes, scale, c, r)));
    f(1, round_bf16(scaled<2, OneFactor>(codes, scale, c, r), scaled<3, OneFactor>(codes, scale, c, r)));
  }
  // Byte C of every dword, as fp32.
  template <int C, bool OneFactor>
  LOWBIT_INLINE __m512 scaled(__m512i codes, __m512 scale, int64_t c, int r) const {
    if constexpr (Recipe == recipe::linear) {
      const __m512i byte = _mm512_ternarylogic_epi32(_mm512_srli_epi32(codes, 8 * C), _mm512_set1_epi32(255),
                                                     _mm512_set1_epi32(0x4b000000), 0xea);  // 2^23 + code
      const __m512 zero = _mm512_add_ps(spread(offsets, c, r), _mm512_set1_ps(0x1p23f + 128));
      return _mm512_mul_ps(_mm512_sub_ps(_mm512_castsi512_ps(byte), zero), scale);
    } else {
      const __m512i top = _mm512_srav_epi32(_mm512_slli_epi32(codes, 24 - 8 * C), minifloat_shift);
      const __m512 small = _mm512_castsi512_ps(_mm512_and_si512(top, minifloat_bits));
      return _mm512_mul_ps(OneFactor ? small : _mm512_mul_ps(small, rebias), scale);
    }
  }
};

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
  template <recipe Recipe, int Unit, offset Offset>
  using decoder = bf16_decoder<Recipe, Unit, Offset, depth>;

  static sum zero() { return _mm512_setzero_ps(); }
  static vector load(const element* p) { return _mm512_loadu_si512(p); }
  static void store(element* p, vector v) { _mm512_storeu_si512(p, v); }
  LOWBIT_INLINE static sum dot(sum s, vector w, vector x) { return dot_bf16(s, w, x); }
  static void add_sum4(float* out, sum a, sum b, sum c, sum d) { avx512_vectors::add_sum4(out, a, b, c, d); }

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
