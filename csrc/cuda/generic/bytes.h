// Products of 8-bit x and W, for the integer and fp8 families: what their kernels share. Both operands lie in memory as
// lanes hold them (layout/fragments.h, layout/activation_fragments.h), so all loads are 16 bytes a lane, side by side.
//
// K is summed in segments, each by the tensor core alone; the chain that joins them is fp32 and in the order of K:
//
//   integer   s = sum (q - x_zero) (code - zero) exactly;   y = fma(float(s), w_scale, y)
//   fp8       s = sum q code;                               y = fma(s, w_scale x_scale, y) where scales change, or y +
//   s
//
// Both kernels, bytes_skinny.h and bytes_tiled.h, do these operations in this order: their results are the same bits.
#pragma once

#include "cuda/generic/epilogue.h"
#include "layout/activation_fragments.h"

namespace lowbit::cuda {

inline constexpr int step_columns = fragment_step;  // packed columns that a warp brings at a time

struct byte_arguments {
  output out;
  const uint8_t* w;
  const uint8_t* x;  // fragments
  int64_t w_strip_bytes;
  int strips, x_tiles;  // of 64 rows of W, of 8 rows of x
  int steps;
  // Segments: of a group, at most `cut` columns.
  int span, groups, cut, cuts;  // cuts of a group
  int k, group_k;
  bool whole_steps;  // segments are steps
  int unit;          // skinny: steps of a segment that one warp multiplies
  int pieces;        // skinny: segments that a unit may touch
  // W's
  const void* w_scale;  // [strips][groups][64]
  int w_scale_dtype;
  const int8_t* w_zero;        // like them, or null
  const int32_t* column_sums;  // like them, or where a group has several segments theirs, [strips][groups][cuts][64]
  // x's
  const float* x_scale;
  int64_t x_scale_row, x_scale_segment;  // strides: 0 where there is one scale
  const int32_t* x_zero;                 // as many as rows, or null
  int64_t x_zero_row;
};

// A walk over segments.
struct segment_walk {
  int group, cut, end;  // `end`: its last packed column, and one

  LOWBIT_DEVICE static int end_of(const byte_arguments& a, int group, int cut) {
    if (cut + 1 < a.cuts) return group * a.span + (cut + 1) * a.cut;
    return group + 1 < a.groups ? (group + 1) * a.span : a.steps * step_columns;
  }
  LOWBIT_DEVICE static segment_walk at(const byte_arguments& a, int column) {
    const int group = column / a.span < a.groups ? column / a.span : a.groups - 1;
    const int cut = (column - group * a.span) / a.cut < a.cuts ? (column - group * a.span) / a.cut : a.cuts - 1;
    return {group, cut, end_of(a, group, cut)};
  }
  LOWBIT_DEVICE void advance(const byte_arguments& a) {
    if (++cut == a.cuts) {
      cut = 0;
      ++group;
    }
    end = end_of(a, group, cut);
  }
  // Columns of W, padding not counted; a group's last cuts may have none.
  LOWBIT_DEVICE int columns(const byte_arguments& a) const {
    const int first = cut * a.cut, in_group = group + 1 < a.groups ? a.group_k : a.k - group * a.group_k;
    const int last = first + a.cut < in_group && cut + 1 < a.cuts ? first + a.cut : in_group;
    return last > first ? last - first : 0;
  }
  LOWBIT_DEVICE int64_t scale_index(const byte_arguments& a, int n) const {
    return (static_cast<int64_t>(n / strip_rows) * a.groups + group) * strip_rows + n % strip_rows;
  }
  LOWBIT_DEVICE int64_t sum_index(const byte_arguments& a, int n) const {
    return ((static_cast<int64_t>(n / strip_rows) * a.groups + group) * a.cuts + cut) * strip_rows + n % strip_rows;
  }
};

// Registers of W for one step and one tile of 16 rows: bits / 2 words of which each k32 takes 4, 2 or 1.
template <int bits>
struct weight_words {
  uint32_t word[2 * bits];

  LOWBIT_DEVICE void set(int i, const u32x4& v) {
    word[4 * i] = v.x;
    word[4 * i + 1] = v.y;
    word[4 * i + 2] = v.z;
    word[4 * i + 3] = v.w;
  }
  // Codes of the k32 at `first` (a word) as signed bytes, times 2^(8 - bits): 3 integer instructions for 8 codes of 4
  // bits, 7 for 16 of 2. Stored codes are the values and 2^(bits - 1): that bit flipped is two's complement.
  LOWBIT_DEVICE void operands(int first, uint32_t (&a)[4]) const { decode(&word[first], a); }
  // Of a k32 that is not known when the code is made.
  LOWBIT_DEVICE void operands_at(int k32, uint32_t (&a)[4]) const {
    constexpr int words = bits / 2;
    uint32_t w[words];
    LOWBIT_UNROLL
    for (int i = 0; i < words; ++i)
      w[i] = k32 < 2 ? (k32 == 0 ? word[i] : word[words + i]) : (k32 == 2 ? word[2 * words + i] : word[3 * words + i]);
    decode(w, a);
  }

  LOWBIT_DEVICE static void decode(const uint32_t* w, uint32_t (&a)[4]) {
    constexpr int mask_and_flip = (0xf0 & 0xcc) ^ 0xaa;
    if constexpr (bits == 8) {
      LOWBIT_UNROLL
      for (int i = 0; i < 4; ++i) a[i] = w[i];
    } else if constexpr (bits == 4) {
      LOWBIT_UNROLL
      for (int i = 0; i < 4; ++i)
        a[i] = logic3<mask_and_flip>(i % 2 ? w[i / 2] : w[i / 2] << 4, 0xf0f0f0f0u, 0x80808080u);
    } else {
      LOWBIT_UNROLL
      for (int i = 0; i < 4; ++i) a[i] = logic3<mask_and_flip>(w[0] << (6 - 2 * i), 0xc0c0c0c0u, 0x80808080u);
    }
  }
};

template <int bits>
inline constexpr int step_loads = bits / 2;  // of 16 bytes a lane, for a step of 16 rows
template <int bits>
inline constexpr int k32_words = bits / 2;  // of a lane, for 16 rows

// The bytes of a B register that belong to the first 16 columns of a k32, and those of the second.
template <int bits>
LOWBIT_DEVICE void half_of(uint32_t (&to)[2], const uint32_t (&from)[2], int half) {
  if constexpr (bits == 2) {
    const uint32_t mask = half ? 0xff00ff00u : 0x00ff00ffu;
    to[0] = from[0] & mask;
    to[1] = from[1] & mask;
  } else {
    to[0] = half ? 0 : from[0];
    to[1] = half ? from[1] : 0;
  }
}

// ---- the families ----------------------------------------------------------------------------------------------

template <int Bits>
struct integer_products {
  static constexpr int bits = Bits;
  using sum = int32_t;
  static constexpr bool zeros = true;  // of x and W

  LOWBIT_DEVICE static void multiply(int32_t (&c)[4], const uint32_t (&a)[4], const uint32_t (&b)[2]) {
    mma_m16n8k32_s8(c, a, b);
  }
  LOWBIT_DEVICE static int32_t value(int32_t c) { return c >> (8 - bits); }
};

struct fp8_products {
  static constexpr int bits = 8;
  using sum = float;
  static constexpr bool zeros = false;

#if LOWBIT_DEVICE_ARCH == 0 || LOWBIT_DEVICE_ARCH >= 890
  LOWBIT_DEVICE static void multiply(float (&c)[4], const uint32_t (&a)[4], const uint32_t (&b)[2]) {
    mma_m16n8k32_e4m3(c, a, b);
  }
#endif
  LOWBIT_DEVICE static float value(float c) { return c; }
};

// s - w_zero sum(q) - x_zero (sum(code) - columns w_zero), modulo 2^32: the result fits.
LOWBIT_DEVICE int32_t without_zeros(int32_t sum, int32_t w_zero, int32_t q_sum, int32_t x_zero, int32_t code_sum,
                                    int32_t columns) {
  const auto u = [](int32_t v) { return static_cast<uint32_t>(v); };
  return static_cast<int32_t>(u(sum) - u(w_zero) * u(q_sum) - u(x_zero) * (u(code_sum) - u(columns) * u(w_zero)));
}

// What the chain's sums are multiplied by at the end.
template <class F>
struct final_factor {
  const byte_arguments& a;
  LOWBIT_DEVICE float operator()(int64_t m, int64_t n) const {
    const float x = a.x_scale_segment ? 1.0f : global_load<float>(a.x_scale + m * a.x_scale_row);
    if (F::zeros || a.groups > 1) return x;
    return x * load_float(a.w_scale, segment_walk{0, 0, 0}.scale_index(a, static_cast<int>(n)), a.w_scale_dtype);
  }
};

}  // namespace lowbit::cuda
