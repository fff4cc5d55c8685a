// From the sums of a strip of W and a block of x to rows of y:
//
//   y[m][n] = to_y(fma(sum * row_scale[n], column_scale[m] * global, bias[n]))
#pragma once

#include "cuda/generic/epilogue.h"
#include "cuda/sm90/pipeline.h"

namespace lowbit::cuda::sm90 {

struct outputs {
  void* y;
  int y_dtype;
  int64_t y_stride;
  int m, n;
  bool whole_stores;  // 16-byte stores fit y's address and stride
  const void* bias;   // or null
  int bias_dtype;
  const void* row_scale;  // of W, [strips][64], or null: 1
  int row_scale_dtype;
  const float* column_scale;  // of x, [m] or [1], or null: 1
  bool one_column_scale;
  const float* global_scale;  // or null: 1
  float factor;               // of every sum, a power of two
};

// Where a thread's sums lie: d[4 j + 2 h + c] is output `row(h)` and row of x `column(j, c)` (wgmma.h).
struct place {
  int strip, first_column;
  LOWBIT_DEVICE place(int w_strip, int x_row) : strip(w_strip), first_column(x_row + lane_index() % 4 * 2) {}
  LOWBIT_DEVICE int row_in_strip(int h) const { return warp_index() % 4 * 16 + lane_index() / 4 + h * 8; }
  LOWBIT_DEVICE int row(int h) const { return strip * 64 + row_in_strip(h); }
  LOWBIT_DEVICE int column(int j, int c) const { return first_column + 8 * j + c; }
};

// fp32 of a scale of any type.
LOWBIT_DEVICE float load_scale(const void* scales, int64_t i, int dtype) {
  const uint8_t* const bytes = static_cast<const uint8_t*>(scales);
  if (dtype == LOWBIT_E4M3) return low<f16_t>(e4m3x2_to_f16x2(global_load<uint8_t>(bytes + i)));
  if (dtype == LOWBIT_E8M0) {  // 2^-127 is denormal
    const uint32_t exponent = global_load<uint8_t>(bytes + i);
    return as_float(exponent == 0 ? 0x400000u : exponent << 23);
  }
  return load_float(scales, i, dtype);
}

// `sum(j, h, c)` is a thread's sum as fp32.
template <class T, class Sum>
LOWBIT_DEVICE void store_outputs(const outputs& o, const place& at, uint32_t staging, const Sum& sum) {
  float row_scale[2], bias[2];
  LOWBIT_UNROLL
  for (int h = 0; h < 2; ++h) {
    const bool inside = at.row(h) < o.n;
    row_scale[h] = o.row_scale && inside ? load_scale(o.row_scale, at.row(h), o.row_scale_dtype) : 1.0f;
    bias[h] = o.bias && inside ? load_float(o.bias, at.row(h), o.bias_dtype) : 0.0f;
  }
  const float global = (o.global_scale ? global_load<float>(o.global_scale) : 1.0f) * o.factor;
  const auto value = [&](int j, int h, int c) {
    float scale = global;
    if (o.column_scale && at.column(j, c) < o.m)
      scale *= global_load<float>(o.column_scale + (o.one_column_scale ? 0 : at.column(j, c)));
    return multiply_add(sum(j, h, c) * row_scale[h], scale, bias[h]);
  };

  if (o.y_dtype == LOWBIT_F32) {  // eight lanes store a full sector of a row of y
    LOWBIT_UNROLL
    for (int j = 0; j < T::columns / 8; ++j) LOWBIT_UNROLL
    for (int i = 0; i < 4; ++i) {
      const int row = at.row(i / 2), column = at.column(j, i % 2);
      if (row < o.n && column < o.m)
        global_store<float>(static_cast<float*>(o.y) + column * o.y_stride + row, value(j, i / 2, i % 2));
    }
    return;
  }

  constexpr int chunk_columns = T::columns < 32 ? T::columns : 32;
  const int thread = thread_index() % warpgroup, lane = lane_index();
  const int barrier = thread_index() / warpgroup;  // 0 is the CTA's own
  LOWBIT_UNROLL
  for (int first = 0; first < T::columns; first += chunk_columns) {
    // transposed into rows of x: each 8 x 8 block's columns become 16 bytes of a row
    LOWBIT_UNROLL
    for (int i = 0; i < chunk_columns / 8; i += 2) {
      const int j = first / 8 + i;
      uint32_t r[4];
      LOWBIT_UNROLL
      for (int q = 0; q < 4; ++q) r[q] = pack_pair(value(j + q / 2, q % 2, 0), value(j + q / 2, q % 2, 1), o.y_dtype);
      const int block = lane / 8;
      stmatrix_transposed<4>(
          staging + ((i + block / 2) * 8 + lane % 8) * T::out_pitch + (warp_index() % 4 * 16 + block % 2 * 8) * 2, r);
    }
    barrier_sync(barrier, warpgroup);
    LOWBIT_UNROLL
    for (int piece = thread; piece < chunk_columns * 8; piece += warpgroup) {
      const u32x4 v = shared_load<u32x4>(staging + piece / 8 * T::out_pitch + piece % 8 * 16);
      const int column = at.first_column - lane % 4 * 2 + first + piece / 8, row = at.strip * 64 + piece % 8 * 8;
      if (column >= o.m) continue;
      uint16_t* y = static_cast<uint16_t*>(o.y) + column * o.y_stride + row;
      if (o.whole_stores && row + 8 <= o.n) {
        global_store<u32x4>(y, v);
      } else {
        const uint32_t words[4] = {v.x, v.y, v.z, v.w};
        LOWBIT_UNROLL
        for (int i = 0; i < 8; ++i)
          if (row + i < o.n) global_store<uint16_t>(y + i, static_cast<uint16_t>(words[i / 2] >> i % 2 * 16));
      }
    }
    barrier_sync(barrier, warpgroup);
  }
}

// The whole kernel: warpgroup 0 produces, each of the others calls consume(staging, ring, place) for its strip of every
// tile of this CTA.
template <class T, class Consume>
LOWBIT_DEVICE void run_tiles(const operands& in, const Consume& consume) {
  const uint32_t shared = shared_base();
  init_barriers<T>(shared);
  const int group = warp_index() / 4;
  if (group == 0) {
    set_max_registers<40, registers::decrease>();
    if (thread_index() == 0) produce<T>(in, shared);
  } else {
    set_max_registers<T::consumers == 1 ? 248 : 232, registers::increase>();
    ring<T> r(shared);
    const uint32_t staging = shared + T::out_offset + (group - 1) * T::out_bytes;
    const int rank = T::cluster > 1 ? cluster_rank() : 0;
    for (int i = cta_index() / T::cluster; i < in.order.count(); i += num_ctas() / T::cluster) {
      int w_block, x_block;
      in.order.at(i, w_block, x_block);
      consume(staging, r, place((w_block * T::cluster + rank) * T::consumers + group - 1, x_block * T::columns));
    }
  }
  if constexpr (T::cluster > 1) {  // nobody leaves while its barriers are arrived on
    sync_warp();
    cluster_sync();
  }
}

}  // namespace lowbit::cuda::sm90
