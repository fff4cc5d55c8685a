// Sums to rows of y, 16 outputs at a time, for every level: its compiler makes vectors of the loops.
#pragma once

#include <cstring>

#include "gemm/contract.h"

namespace lowbit::cpu {
namespace {

// data[i ... i + count) as fp32, zeros behind them.
inline void load_floats(const void* data, int64_t i, int dtype, int64_t count, float out[panel_rows]) {
  const size_t size = dtype == LOWBIT_F32 ? 4 : 2;
  alignas(64) uint8_t room[panel_rows * 4];
  const uint8_t* from = static_cast<const uint8_t*>(data) + i * static_cast<int64_t>(size);
  if (count < panel_rows) {
    std::memset(room, 0, sizeof room);
    std::memcpy(room, from, static_cast<size_t>(count) * size);
    from = room;
  }
  if (dtype == LOWBIT_F32) {
    std::memcpy(out, from, panel_rows * sizeof(float));
    return;
  }
  uint16_t bits[panel_rows];
  std::memcpy(bits, from, sizeof bits);
  if (dtype == LOWBIT_BF16)
    for (int r = 0; r < panel_rows; ++r) out[r] = bf16_to_f32(bits[r]);
  else
    for (int r = 0; r < panel_rows; ++r) out[r] = f16_to_f32(bits[r]);
}

inline void store_floats(void* data, int64_t i, int dtype, int64_t count, const float y[panel_rows]) {
  if (dtype == LOWBIT_F32) {
    std::memcpy(static_cast<float*>(data) + i, y, static_cast<size_t>(count) * sizeof(float));
    return;
  }
  uint16_t bits[panel_rows];
  if (dtype == LOWBIT_BF16)
    for (int r = 0; r < panel_rows; ++r) bits[r] = f32_to_bf16(y[r]);
  else
    for (int r = 0; r < panel_rows; ++r) bits[r] = f32_to_f16(y[r]);
  uint16_t* const to = static_cast<uint16_t*>(data) + i;
  if (count == panel_rows)
    std::memcpy(to, bits, sizeof bits);
  else
    std::memcpy(to, bits, static_cast<size_t>(count) * sizeof bits[0]);
}

inline void apply_function(lowbit_function function, float y[panel_rows]) {
  switch (function) {
    case LOWBIT_SILU:
      for (int r = 0; r < panel_rows; ++r) y[r] = silu(y[r]);
      break;
    case LOWBIT_GELU:
      for (int r = 0; r < panel_rows; ++r) y[r] = gelu(y[r]);
      break;
    case LOWBIT_GELU_TANH:
      for (int r = 0; r < panel_rows; ++r) y[r] = gelu_tanh(y[r]);
      break;
    case LOWBIT_RELU:
      for (int r = 0; r < panel_rows; ++r) y[r] = relu(y[r]);
      break;
    case LOWBIT_IDENTITY:
      break;
  }
}

// Outputs n ... n + 16 of row m, in fp32 and with their bias, through the epilogue and to y.
inline void finish_row(const gemm_problem& p, int64_t m, int64_t n, float y[panel_rows]) {
  const int64_t outputs = p.w.shape.n - n < panel_rows ? p.w.shape.n - n : panel_rows;
  const epilogue_terms& e = p.epilogue;
  if (e.function) apply_function(e.function, y);
  if (e.combination) {
    // Rows are pages apart, so the processor's own prefetchers see no stream.
    constexpr int64_t rows_ahead = 8;
    const int64_t ahead = (m + rows_ahead) * e.other_stride + n;
    __builtin_prefetch(static_cast<const uint8_t*>(e.other) + ahead * dtype_bytes(e.other_dtype));
    float other[panel_rows];
    load_floats(e.other, m * e.other_stride + n, e.other_dtype, outputs, other);
    if (e.combination == LOWBIT_ADD)
      for (int r = 0; r < panel_rows; ++r) y[r] += other[r];
    else
      for (int r = 0; r < panel_rows; ++r) y[r] *= other[r];
  }
  store_floats(p.y, m * p.y_stride + n, p.y_dtype, outputs, y);
}

// The same from sums:   fma(sum, factor, bias)
inline void store_row(const gemm_problem& p, const float sums[panel_rows], int64_t m, int64_t n, float factor) {
  const int64_t outputs = p.w.shape.n - n < panel_rows ? p.w.shape.n - n : panel_rows;
  float y[panel_rows] = {};
  if (p.bias) load_floats(p.bias, n, p.bias_dtype, outputs, y);
  for (int r = 0; r < panel_rows; ++r) y[r] = __builtin_fmaf(sums[r], factor, y[r]);
  finish_row(p, m, n, y);
}

}  // namespace
}  // namespace lowbit::cpu
