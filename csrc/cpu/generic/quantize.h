// Activations of the integer family: rows of int8 in the order of packed columns, their scales and their sums.
#pragma once

#include "cpu/generic/chunks.h"

namespace lowbit::cpu {
namespace {

// K of the integer family in packed columns: segments of at most 32768 columns, each inside one group.
struct integer_segments {
  int64_t span, per_group, groups, last;  // last: columns of the last group end here

  explicit integer_segments(const packed_shape& s)
      : span(s.groups == 1 ? s.k_packed : s.span),
        per_group(ceil_div(span, integer_segment)),
        groups(s.groups),
        last(groups * span) {}

  int64_t count() const { return groups * per_group; }
  int64_t group_of(int64_t segment) const { return per_group == 1 ? segment : segment / per_group; }
  int64_t begin(int64_t segment) const {
    return per_group == 1 ? segment * span : segment / per_group * span + segment % per_group * integer_segment;
  }
  int64_t end(int64_t segment) const {
    const int64_t of_group = (group_of(segment) + 1) * span, next = begin(segment) + integer_segment;
    return next < of_group ? next : of_group;
  }
};

// Columns as int8 or, for levels that multiply words, as int16: 16 columns are those with even numbers, then the odd
// ones.
struct quantized_matrix {
  int32_t* q;            // [rows][stride]
  int64_t rows, stride;  // the row of ones included
  float* scale;          // [m]
  int32_t* zero_point;   // [m]
  int32_t* sums;         // [rows][segments]: sum of q; without zero points, what exact sums start from
};

inline row_quantization extremes_to_quantization(const gemm_problem& p, int64_t m, const float* row) {
  constexpr int lanes = 32;  // two vectors of 16, so that their latency is hidden
  constexpr uint32_t infinity = 0x7f800000;
  float low[lanes] = {}, high[lanes] = {};
  uint32_t magnitude[lanes] = {};  // above infinity: NaN
  const int64_t k = p.w.shape.k, whole = k / lanes * lanes;
  const auto look_at = [&](float x, int i) {
    const uint32_t bits = __builtin_bit_cast(uint32_t, x) & 0x7fffffff;
    magnitude[i] = bits > magnitude[i] ? bits : magnitude[i];
    low[i] = x < low[i] ? x : low[i];
    high[i] = x > high[i] ? x : high[i];
  };
  for (int64_t at = 0; at < whole; at += lanes)
    for (int i = 0; i < lanes; ++i) look_at(row[at + i], i);
  for (int64_t at = whole; at < k; ++at) look_at(row[at], 0);
  for (int i = 1; i < lanes; ++i) {
    magnitude[0] = magnitude[i] > magnitude[0] ? magnitude[i] : magnitude[0];
    low[0] = low[i] < low[0] ? low[i] : low[0];
    high[0] = high[i] > high[0] ? high[i] : high[0];
  }
  const bool nan = magnitude[0] > infinity;
  row_quantization r =
      p.activation == LOWBIT_STATIC ? p.given_quantization(m) : quantization_of(p.activation, low[0], high[0], nan);
  if (nan) r.scale = NAN;
  return r;
}

// quantize_value (gemm/activation.h) for all of a row without NaN: clamped before it is rounded, which is the same, as
// the limits are integers.
inline void quantize_values(const float* x, int64_t k, const row_quantization& r, int8_t* q) {
  const float low = static_cast<float>(-128 - r.zero_point), high = static_cast<float>(127 - r.zero_point);
  for (int64_t i = 0; i < k; ++i) {
    const float scaled = x[i] * r.inverse, above = scaled > low ? scaled : low, value = above < high ? above : high;
    q[i] = static_cast<int8_t>(static_cast<int32_t>(std::nearbyintf(value)) + r.zero_point);
  }
}

// A row of x in fp32; `row` is room for it.
template <class V>
inline void row_as_f32(const gemm_problem& p, int64_t m, float* row) {
  const int64_t k = p.w.shape.k;
  if (p.x_dtype == LOWBIT_F32) {
    std::memcpy(row, static_cast<const float*>(p.x) + m * p.x_stride, static_cast<size_t>(k) * sizeof(float));
    return;
  }
  const uint16_t* x = static_cast<const uint16_t*>(p.x) + m * p.x_stride;
  if (p.x_dtype == LOWBIT_BF16) {
    for (int64_t i = 0; i < k; ++i) row[i] = bf16_to_f32(x[i]);
    return;
  }
  int64_t i = 0;
  for (; i + V::lanes <= k; i += V::lanes) V::store(row + i, V::load_f16(x + i));
  for (; i < k; ++i) row[i] = f16_to_f32(x[i]);
}

// The sum of quantized columns, as their dwords are.
template <class V, int Bits>
inline int32_t sum_of_columns(const int32_t* q, int64_t dwords) {
  constexpr bool words = V::template code_parts<Bits> == 2;
  const typename V::i32 ones = V::set1_i32(words ? 0x00010001 : 0x01010101);
  typename V::i32 sums = V::zero_i32();
  int64_t i = 0;
  for (; i + V::lanes <= dwords; i += V::lanes) sums = V::template dot_u8s8<Bits>(sums, ones, V::load_bytes(q + i));
  int32_t lanes[V::lanes], sum = 0;
  V::store_bytes(lanes, sums);
  for (const int32_t lane : lanes) sum += lane;
  for (; i < dwords; ++i)
    for (int bits = 0; bits < 32; bits += words ? 16 : 8)
      sum += words ? static_cast<int16_t>(q[i] >> bits) : static_cast<int8_t>(q[i] >> bits);
  return sum;
}

// int8 in the order of K to dwords in the order of packed columns; sums of the segments.
template <class V, int Bits>
inline void put_row(const packed_shape& s, const integer_segments& segments, const int8_t* natural, int32_t* q,
                    int32_t* sums) {
  constexpr int64_t parts = V::template code_parts<Bits>;
  for (int64_t c = 0; c < s.chunks(); ++c) {
    int8_t padded[chunk];
    const int8_t* x = chunk_of_row(s, natural, c, padded);
    if constexpr (parts == 1) {
      std::memcpy(q + c * 16, x, chunk);
    } else {
      int16_t pairs[chunk / 2], *words = reinterpret_cast<int16_t*>(q + c * 32);
      std::memcpy(pairs, x, sizeof pairs);
      for (int i = 0; i < chunk / 2; i += 8)
        for (int j = 0; j < 8; ++j) {
          words[2 * i + j] = static_cast<int8_t>(pairs[i + j]);
          words[2 * i + 8 + j] = static_cast<int16_t>(pairs[i + j] >> 8);
        }
    }
  }
  for (int64_t i = 0; i < segments.count(); ++i)
    sums[i] =
        sum_of_columns<V, Bits>(q + segments.begin(i) / 4 * parts, (segments.end(i) - segments.begin(i)) / 4 * parts);
}

// Row m of x; `row` is room for k floats and k int8.
template <class V, int Bits>
inline void quantize_into(const gemm_problem& p, const integer_segments& segments, const quantized_matrix& out,
                          int64_t m, float* row) {
  const int64_t k = p.w.shape.k;
  int8_t* natural = reinterpret_cast<int8_t*>(row + k);
  row_quantization r;
  if (p.x_dtype == LOWBIT_I8) {
    r = p.given_quantization(m);
    std::memcpy(natural, static_cast<const int8_t*>(p.x) + m * p.x_stride, static_cast<size_t>(k));
  } else {
    row_as_f32<V>(p, m, row);
    r = extremes_to_quantization(p, m, row);
    quantize_values(row, k, r, natural);
  }
  out.scale[m] = r.scale;
  out.zero_point[m] = r.zero_point;
  put_row<V, Bits>(p.w.shape, segments, natural, out.q + m * out.stride, out.sums + m * segments.count());
}

}  // namespace
}  // namespace lowbit::cpu
