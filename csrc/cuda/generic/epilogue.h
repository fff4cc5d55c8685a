// From sums of y^T to y: y[m][n] = to_y(fma(sum, factor(m, n), bias[n])).
//
// Weights are the MMA's A operand, so a warp's accumulators are columns of y: lanes that hold neighbours of a row of y
// are 4 apart. They pass through shared memory as fp32, [rows of x][columns and 4 of padding] (no bank conflict either
// way), and come back as 4 columns a lane: a warp then stores whole sectors.
#pragma once

#include "cuda/common/convert.h"
#include "cuda/contract.h"

namespace lowbit::cuda {

struct output {
  void* y;
  int64_t stride;
  int dtype;
  const void* bias;  // or null
  int bias_dtype;
  int64_t m, n;
};

inline output output_of(const gemm_problem& p) {
  return {p.y, p.y_stride, p.y_dtype, p.bias, p.bias_dtype, p.m, p.w.shape.n};
}

// fp32 of data[i]; dtype F32, F16 or BF16.
LOWBIT_DEVICE float load_float(const void* data, int64_t i, int dtype) {
  if (dtype == LOWBIT_F32) return global_load<float>(static_cast<const float*>(data) + i);
  const uint16_t bits = global_load<uint16_t>(static_cast<const uint16_t*>(data) + i);
  return dtype == LOWBIT_F16 ? to_float<f16_t>(bits) : to_float<bf16_t>(bits);
}

LOWBIT_DEVICE uint32_t pack_pair(float low, float high, int dtype) {
  return dtype == LOWBIT_F16 ? pack2<f16_t>(low, high) : pack2<bf16_t>(low, high);
}

// y[m][n ..] = values, of which those past o.n are dropped.
LOWBIT_DEVICE void store_four(const output& o, int64_t m, int64_t n, const float (&values)[4]) {
  const bool wide = o.dtype == LOWBIT_F32;
  uint8_t* const y = static_cast<uint8_t*>(o.y) + (m * o.stride + n) * (wide ? 4 : 2);
  const bool whole = n + 4 <= o.n && reinterpret_cast<uintptr_t>(y) % (wide ? 16 : 8) == 0;
  if (wide && whole) {
    global_store<u32x4>(y, u32x4{as_u32(values[0]), as_u32(values[1]), as_u32(values[2]), as_u32(values[3])});
  } else if (wide) {
    LOWBIT_UNROLL
    for (int i = 0; i < 4; ++i)
      if (n + i < o.n) global_store<float>(y + 4 * i, values[i]);
  } else {
    const uint32_t pairs[2] = {pack_pair(values[0], values[1], o.dtype), pack_pair(values[2], values[3], o.dtype)};
    if (whole) {
      global_store<u32x2>(y, u32x2{pairs[0], pairs[1]});
    } else {
      LOWBIT_UNROLL
      for (int i = 0; i < 4; ++i)
        if (n + i < o.n) global_store<uint16_t>(y + 2 * i, static_cast<uint16_t>(pairs[i / 2] >> i % 2 * 16));
    }
  }
}

// Where the sum of row m of x and column n lies, from the start of a staging area for `columns` of them.
LOWBIT_DEVICE constexpr int staging_offset(int columns, int m, int n) { return (m * (columns + 4) + n) * 4; }
constexpr int staging_bytes(int columns, int rows) { return (columns + 4) * rows * 4; }

// Stores what is staged, `rows` of x x `columns`, as y[m ..][n ..]; `worker` of `workers` threads, of which `rows` *
// `columns` is a multiple of four times.
template <int columns, int rows, int workers, class Factor>
LOWBIT_DEVICE void store_staged(const output& o, uint32_t staging, int64_t m, int64_t n, int worker,
                                const Factor& factor) {
  static_assert(columns * rows % (4 * workers) == 0);
  LOWBIT_UNROLL
  for (int i = 0; i < columns * rows / (4 * workers); ++i) {
    const int row = (i * workers + worker) / (columns / 4), column = (i * workers + worker) % (columns / 4) * 4;
    if (m + row >= o.m || n + column >= o.n) continue;
    const u32x4 bits = shared_load<u32x4>(staging + staging_offset(columns, row, column));
    float values[4] = {as_float(bits.x), as_float(bits.y), as_float(bits.z), as_float(bits.w)};
    LOWBIT_UNROLL
    for (int j = 0; j < 4; ++j) {
      const int64_t at = n + column + j < o.n ? n + column + j : o.n - 1;
      values[j] = multiply_add(values[j], factor(m + row, at), o.bias ? load_float(o.bias, at, o.bias_dtype) : 0.0f);
    }
    store_four(o, m + row, n + column, values);
  }
}

// A warp stores MT x 16 columns of y from n, 8 rows from m: sum[i] is the accumulator of columns n + 16 i ... `staging`
// is the warp's own, of staging_bytes(16 * MT, 8). factor(m, n) is called inside y only.
template <int MT, class Factor>
LOWBIT_DEVICE void store_tile(const output& o, const float (&sum)[MT][4], int64_t m, int64_t n, uint32_t staging,
                              const Factor& factor) {
  const int g = lane_index() / 4, t = lane_index() % 4;
  LOWBIT_UNROLL
  for (int i = 0; i < MT; ++i) {
    LOWBIT_UNROLL
    for (int j = 0; j < 4; ++j)
      shared_store<float>(staging + staging_offset(16 * MT, 2 * t + j % 2, 16 * i + g + j / 2 * 8), sum[i][j]);
  }
  sync_warp();
  store_staged<16 * MT, 8, warp_threads>(o, staging, m, n, lane_index(), factor);
  sync_warp();  // before the area is used again
}

}  // namespace lowbit::cuda
