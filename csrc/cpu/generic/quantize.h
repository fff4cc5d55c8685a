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
  int64_t group_of(int64_t segment) const { return segment / per_group; }
  int64_t begin(int64_t segment) const { return segment / per_group * span + segment % per_group * integer_segment; }
  int64_t end(int64_t segment) const {
    const int64_t of_group = (segment / per_group + 1) * span, next = begin(segment) + integer_segment;
    return next < of_group ? next : of_group;
  }
};

// `dwords` of 4 columns: one of 4 int8, or two of 2 int16, (columns 0, 2) and (1, 3), for levels that multiply words.
struct quantized_matrix {
  int32_t* q;            // [rows][stride]
  int64_t rows, stride;  // the row of ones included
  float* scale;          // [m]
  int32_t* zero_point;   // [m]
  int32_t* sums;         // [rows][segments]: sum of q
};

inline row_quantization extremes_to_quantization(const gemm_problem& p, int64_t m, const float* row) {
  constexpr int lanes = 16;
  float low[lanes] = {}, high[lanes] = {};
  uint32_t nan[lanes] = {};
  const int64_t k = p.w.shape.k, whole = k / lanes * lanes;
  const auto look_at = [&](float x, int i) {
    nan[i] |= x != x;
    low[i] = x < low[i] ? x : low[i];
    high[i] = x > high[i] ? x : high[i];
  };
  for (int64_t at = 0; at < whole; at += lanes)
    for (int i = 0; i < lanes; ++i) look_at(row[at + i], i);
  for (int64_t at = whole; at < k; ++at) look_at(row[at], 0);
  for (int i = 1; i < lanes; ++i) {
    nan[0] |= nan[i];
    low[0] = low[i] < low[0] ? low[i] : low[0];
    high[0] = high[i] > high[0] ? high[i] : high[0];
  }
  row_quantization r =
      p.activation == LOWBIT_STATIC ? p.given_quantization(m) : quantization_of(p.activation, low[0], high[0], nan[0]);
  if (nan[0]) r.scale = NAN;
  return r;
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

// int8 in the order of K to dwords in the order of packed columns; sums of the segments.
template <class V, int Bits>
inline void put_row(const packed_shape& s, const integer_segments& segments, const int8_t* natural, int32_t* q,
                    int32_t* sums) {
  std::memset(sums, 0, static_cast<size_t>(segments.count()) * sizeof(int32_t));
  int64_t segment = 0, end = segments.end(0);
  for (int64_t c = 0; c < s.chunks(); ++c) {
    int8_t padded[chunk];
    const int8_t* x = chunk_of_row(s, natural, c, padded);
    for (int64_t i = 0; i < chunk; i += s.unit) {
      while (c * chunk + i >= end && segment + 1 < segments.count()) end = segments.end(++segment);
      int32_t sum = 0;
      for (int64_t j = i; j < i + s.unit; ++j) sum += x[j];
      sums[segment] += sum;
    }
    if constexpr (V::template code_parts<Bits> == 1) {
      std::memcpy(q + c * 16, x, chunk);
    } else {
      int16_t* words = reinterpret_cast<int16_t*>(q + c * 32);
      for (int d = 0; d < 16; ++d)
        for (int i = 0; i < 4; ++i) words[4 * d + i % 2 * 2 + i / 2] = x[4 * d + i];
    }
  }
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
    for (int64_t i = 0; i < k; ++i) natural[i] = quantize_value(row[i], r);
  }
  out.scale[m] = r.scale;
  out.zero_point[m] = r.zero_point;
  put_row<V, Bits>(p.w.shape, segments, natural, out.q + m * out.stride, out.sums + m * segments.count());
}

}  // namespace
}  // namespace lowbit::cpu
