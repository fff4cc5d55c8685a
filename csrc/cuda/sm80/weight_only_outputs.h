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

LOWBIT_DEVICE float number_of(uint32_t bits, int dtype) {
  switch (dtype) {
    case LOWBIT_F32:
      return as_float(bits);
    case LOWBIT_F16:
      return to_float<f16_t>(static_cast<uint16_t>(bits));
    case LOWBIT_BF16:
      return to_float<bf16_t>(static_cast<uint16_t>(bits));
    case LOWBIT_E8M0:
      return e8m0_number(bits & 0xff);
    default:
      return e4m3_number(bits & 0xff);
  }
}

// numbers[n .. n + 4), those from `end` on 0. `whole`: the array lies so that four of them are one load.
LOWBIT_DEVICE void load_four(float (&out)[4], const void* numbers, int n, int end, int dtype, bool whole) {
  const int bytes = dtype == LOWBIT_F32 ? 4 : dtype == LOWBIT_F16 || dtype == LOWBIT_BF16 ? 2 : 1;
  const uint8_t* from = static_cast<const uint8_t*>(numbers) + static_cast<int64_t>(n) * bytes;
  uint32_t bits[4] = {0, 0, 0, 0};
  if (whole && n + 4 <= end) {
    if (bytes == 4) {
      const u32x4 v = global_load<u32x4>(from);
      bits[0] = v.x, bits[1] = v.y, bits[2] = v.z, bits[3] = v.w;
    } else if (bytes == 2) {
      const u32x2 v = global_load<u32x2>(from);
      bits[0] = v.x, bits[1] = v.x >> 16, bits[2] = v.y, bits[3] = v.y >> 16;
    } else {
      const uint32_t v = global_load<uint32_t>(from);
      bits[0] = v, bits[1] = v >> 8, bits[2] = v >> 16, bits[3] = v >> 24;
    }
  } else {
    LOWBIT_UNROLL
    for (int i = 0; i < 4; ++i) {
      if (n + i >= end) continue;
      if (bytes == 4)
        bits[i] = global_load<uint32_t>(from + 4 * i);
      else if (bytes == 2)
        bits[i] = global_load<uint16_t>(from + 2 * i);
      else
        bits[i] = global_load<uint8_t>(from + i);
    }
  }
  LOWBIT_UNROLL
  for (int i = 0; i < 4; ++i) out[i] = number_of(bits[i], dtype);
}

// What outputs n .. n + 4 of every row have in common: n is a multiple of 4.
struct output_terms {
  float row_scale[4], bias[4], global;

  LOWBIT_DEVICE output_terms(const arguments& a, int n) : row_scale{1, 1, 1, 1}, bias{0, 0, 0, 0}, global(1) {
    if (!a.plan.grouped) load_four(row_scale, a.scales, n, a.n, a.plan.scale_dtype, true);
    if (a.bias) load_four(bias, a.bias, n, a.n, a.bias_dtype, a.whole_bias);
    if (a.global_scale) global = global_load<float>(a.global_scale);
  }
};

// Four sums of row m of y.
LOWBIT_DEVICE void store_outputs(const arguments& a, const output_terms& terms, int m, int n, const u32x4& four) {
  const float sums[4] = {as_float(four.x), as_float(four.y), as_float(four.z), as_float(four.w)};
  float out[4];
  LOWBIT_UNROLL
  for (int i = 0; i < 4; ++i)
    out[i] = multiply_add(sums[i] * a.unscale * terms.row_scale[i], terms.global, terms.bias[i]);
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
LOWBIT_DEVICE void stage_sums(uint32_t tile, const float (&sums)[C::tiles_n][C::tiles_m][4], bool add, int warp_n,
                              int warp_m) {
  const int g = lane_index() / 4, t = lane_index() % 4;
  LOWBIT_UNROLL
  for (int r = 0; r < C::tiles_n; ++r) LOWBIT_UNROLL
  for (int j = 0; j < C::tiles_m; ++j) LOWBIT_UNROLL
  for (int i = 0; i < 4; ++i) {
    const int row = (warp_n * C::tiles_n + r) * 16 + g + i / 2 * 8;
    const int column = (warp_m * C::tiles_m + j) * 8 + 2 * t + i % 2;
    const uint32_t at = tile + column * sums_pitch<C> + row * 4;
    shared_store<float>(at, add ? shared_load<float>(at) + sums[r][j][i] : sums[r][j][i]);
  }
}

// Adds a slice's sums, which begin anew, to those of the slices before it: a lane's own places in the tile.
template <class C>
LOWBIT_DEVICE void leave_slice(uint32_t tile, float (&total)[C::tiles_n][C::tiles_m][4], int slice, int warp_n,
                               int warp_m) {
  stage_sums<C>(tile, total, slice > 0, warp_n, warp_m);
  LOWBIT_UNROLL
  for (int i = 0; i < C::tiles_n * C::tiles_m * 4; ++i) total[i / 4 / C::tiles_m][i / 4 % C::tiles_m][i % 4] = 0;
}

// A thread's four outputs n .. n + 4 of the tile, the same in every row of x that it takes.
template <class C>
struct own_outputs {
  static constexpr int fours = C::rows / 4, step = C::workers / fours;
  static_assert(C::workers % fours == 0 && C::columns % step == 0);
  int n, first;

  LOWBIT_DEVICE explicit own_outputs(const tile_place& at)
      : n(at.w_block * C::rows + thread_index() % fours * 4), first(thread_index() / fours) {}

  // f(m, four sums)
  template <class F>
  LOWBIT_DEVICE void for_each_row(const arguments& a, uint32_t shared, const tile_place& at, const F& f) const {
    for (int column = first; column < C::columns; column += step) {
      const int m = at.x_block * C::columns + column;
      if (m < a.m) f(m, shared_load<u32x4>(shared + column * sums_pitch<C> + thread_index() % fours * 16));
    }
  }
};

template <class C>
LOWBIT_DEVICE void store_tile(const arguments& a, uint32_t shared, const tile_place& at) {
  const own_outputs<C> own(at);
  if (own.n >= a.n) return;
  const output_terms terms(a, own.n);
  own.for_each_row(a, shared, at, [&](int m, const u32x4& four) { store_outputs(a, terms, m, own.n, four); });
}

template <class C>
LOWBIT_DEVICE void store_partials(const arguments& a, uint32_t shared, const tile_place& at, int slice) {
  const own_outputs<C> own(at);
  if (own.n >= a.rows_packed) return;
  float* partials = a.partials + static_cast<int64_t>(slice) * a.m * a.rows_packed + own.n;
  own.for_each_row(a, shared, at, [&](int m, const u32x4& four) {
    global_store<u32x4>(partials + static_cast<int64_t>(m) * a.rows_packed, four);
  });
}

}  // namespace lowbit::cuda::sm80
