// From sums to y, through shared memory, so that stores are whole sectors of rows of y:
//
//   y[m][n] = to_y(fma(sum * row_scale[n], global, bias[n]))
#pragma once

#include "cuda/sm80/weight_only_stage.h"

namespace lowbit::cuda::sm80 {

LOWBIT_DEVICE float e8m0_number(uint32_t bits) { return as_float(bits ? bits << 23 : 1u << 22); }  // 2^-127 is denormal
LOWBIT_DEVICE float e4m3_number(uint32_t bits) {
  return as_float((bits & 0x80u) << 24 | (bits & 0x7fu) << 20) * 0x1p120f;
}

LOWBIT_DEVICE float global_number(const void* data, int64_t i, int dtype) {
  switch (dtype) {
    case LOWBIT_F32:
      return global_load<float>(static_cast<const float*>(data) + i);
    case LOWBIT_F16:
      return to_float<f16_t>(global_load<uint16_t>(static_cast<const uint16_t*>(data) + i));
    case LOWBIT_BF16:
      return to_float<bf16_t>(global_load<uint16_t>(static_cast<const uint16_t*>(data) + i));
    case LOWBIT_E8M0:
      return e8m0_number(global_load<uint8_t>(static_cast<const uint8_t*>(data) + i));
    default:
      return e4m3_number(global_load<uint8_t>(static_cast<const uint8_t*>(data) + i));
  }
}

// Four sums of row m of y, outputs n ...: n is a multiple of 4.
LOWBIT_DEVICE void store_outputs(const arguments& a, int m, int n, const u32x4& four) {
  const float sums[4] = {as_float(four.x), as_float(four.y), as_float(four.z), as_float(four.w)};
  const float global = a.global_scale ? global_load<float>(a.global_scale) : 1.0f;
  float out[4];
  LOWBIT_UNROLL
  for (int i = 0; i < 4; ++i) {
    out[i] = 0;
    if (n + i >= a.n) continue;
    float sum = sums[i] * a.unscale;
    if (!a.plan.grouped) sum *= global_number(a.scales, n + i, a.plan.scale_dtype);
    out[i] = multiply_add(sum, global, a.bias ? global_number(a.bias, n + i, a.bias_dtype) : 0.0f);
  }
  const bool whole = a.whole_stores && n + 4 <= a.n;
  const int64_t offset = m * a.y_stride + n;
  if (a.y_dtype == LOWBIT_F32) {
    float* y = static_cast<float*>(a.y) + offset;
    if (whole) {
      global_store<u32x4>(y, {as_u32(out[0]), as_u32(out[1]), as_u32(out[2]), as_u32(out[3])});
      return;
    }
    LOWBIT_UNROLL
    for (int i = 0; i < 4; ++i)
      if (n + i < a.n) global_store<float>(y + i, out[i]);
    return;
  }
  const bool f16 = a.y_dtype == LOWBIT_F16;
  const uint32_t pairs[2] = {f16 ? pack2<f16_t>(out[0], out[1]) : pack2<bf16_t>(out[0], out[1]),
                             f16 ? pack2<f16_t>(out[2], out[3]) : pack2<bf16_t>(out[2], out[3])};
  uint16_t* y = static_cast<uint16_t*>(a.y) + offset;
  if (whole) {
    global_store<u32x2>(y, {pairs[0], pairs[1]});
    return;
  }
  LOWBIT_UNROLL
  for (int i = 0; i < 4; ++i)
    if (n + i < a.n) global_store<uint16_t>(y + i, static_cast<uint16_t>(pairs[i / 2] >> i % 2 * 16));
}

// ---- a CTA's tile, [columns][rows] of fp32 in shared memory -----------------------------------------------------

// 4 words more than the rows, a multiple of 32: the lanes of a store meet in no bank.
template <class C>
inline constexpr int sums_pitch = (C::rows + 4) * 4;

template <class C>
LOWBIT_DEVICE void stage_sums(uint32_t shared, const float (&sums)[C::tiles_n][C::tiles_m][4], int warp_n, int warp_m) {
  const int g = lane_index() / 4, t = lane_index() % 4;
  LOWBIT_UNROLL
  for (int r = 0; r < C::tiles_n; ++r)
    LOWBIT_UNROLL
    for (int j = 0; j < C::tiles_m; ++j)
      LOWBIT_UNROLL
      for (int i = 0; i < 4; ++i) {
        const int row = (warp_n * C::tiles_n + r) * 16 + g + i / 2 * 8;
        const int column = (warp_m * C::tiles_m + j) * 8 + 2 * t + i % 2;
        shared_store<float>(shared + column * sums_pitch<C> + row * 4, sums[r][j][i]);
      }
}

// f(m, n, four sums) for the tile's rows of x and fours of outputs, in the order in which they lie in memory.
template <class C, class F>
LOWBIT_DEVICE void for_each_four(const arguments& a, uint32_t shared, const tile_place& at, const F& f) {
  constexpr int fours = C::rows / 4;
  for (int item = thread_index(); item < C::columns * fours; item += C::threads) {
    const int column = item / fours, four = item % fours;
    const int m = at.x_block * C::columns + column, n = at.w_block * C::rows + four * 4;
    if (m < a.m && n < a.rows_packed) f(m, n, shared_load<u32x4>(shared + column * sums_pitch<C> + four * 16));
  }
}

template <class C>
LOWBIT_DEVICE void store_tile(const arguments& a, uint32_t shared, const tile_place& at) {
  for_each_four<C>(a, shared, at, [&](int m, int n, const u32x4& four) {
    if (n < a.n) store_outputs(a, m, n, four);
  });
}

template <class C>
LOWBIT_DEVICE void store_partials(const arguments& a, uint32_t shared, const tile_place& at, int slice) {
  for_each_four<C>(a, shared, at, [&](int m, int n, const u32x4& four) {
    global_store<u32x4>(a.partials + (static_cast<int64_t>(slice) * a.m + m) * a.rows_packed + n, four);
  });
}

}  // namespace lowbit::cuda::sm80
