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
  const int32_t* x_zero;      // zero points of x, as many as column scales, or null: 0
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

// Numbers of 4 bytes, one for each column of a tile, from lanes that loaded them to threads that want their own: column
// 8 j + 2 t + c is c + 2 j of lane t's line. A warp's own, in two buffers.
template <class T>
struct column_numbers {
  uint32_t warp;

  LOWBIT_DEVICE explicit column_numbers(uint32_t staging)
      : warp(staging + 2 * T::out_buffer + warp_index() % 4 * 2 * T::number_bytes) {}
  static constexpr int loads = (T::columns + 31) / 32;

  // load(column of the tile) for each column, asked for long before they are stored.
  template <class Number, class Load>
  LOWBIT_DEVICE static void fetch(Number (&to)[loads], const Load& load) {
    LOWBIT_UNROLL
    for (int i = 0; i < loads; ++i) to[i] = load(i * 32 + lane_index());
  }
  template <class Number>
  LOWBIT_DEVICE void store(int buffer, const Number (&from)[loads]) const {
    LOWBIT_UNROLL
    for (int i = 0; i < loads; ++i) {
      const int column = i * 32 + lane_index();
      if (column < T::columns)
        shared_store<Number>(line(buffer, column % 8 / 2) + (column / 8 * 2 + column % 2) * 4, from[i]);
    }
    sync_warp();
  }
  // Of columns 8 j + 2 t, + 1, and of the same eight further on; j is even.
  LOWBIT_DEVICE u32x4 load(int buffer, int j) const {
    return shared_load<u32x4>(line(buffer, lane_index() % 4) + j * 8);
  }

 private:
  LOWBIT_DEVICE uint32_t line(int buffer, int t) const { return warp + buffer * T::number_bytes + t * T::number_pitch; }
};

// A row of x that is there, to load its scale from.
LOWBIT_DEVICE int inside_x(const outputs& o, int column) { return column < o.m ? column : o.m - 1; }

// `sum(j, h, c, x_zero)` is a thread's sum as fp32.
template <class T, class Sum>
LOWBIT_DEVICE void store_outputs(const outputs& o, const place& at, uint32_t staging, const Sum& sum) {
  const int own_row = at.row(0);  // and + 8
  float row_scale[2], bias[2];
  LOWBIT_UNROLL
  for (int h = 0; h < 2; ++h) {
    const bool inside = own_row + 8 * h < o.n;
    row_scale[h] = o.row_scale && inside ? load_scale(o.row_scale, own_row + 8 * h, o.row_scale_dtype) : 1.0f;
    bias[h] = o.bias && inside ? load_float(o.bias, own_row + 8 * h, o.bias_dtype) : 0.0f;
  }
  const float global = (o.global_scale ? global_load<float>(o.global_scale) : 1.0f) * o.factor;

  constexpr int pieces = T::out_columns;  // rows of x at a time
  const int thread = thread_index() % warpgroup, lane = lane_index(), t = lane % 4;
  const int barrier = warp_index() / 4;  // 0 is the CTA's own
  const int first_row = at.strip * 64, first_column = at.first_column - t * 2;
  LOWBIT_UNROLL
  for (int first = 0; first < T::columns; first += pieces) {
    const int own = inside_x(o, first_column + first + lane);  // each lane loads one column's numbers for all
    float own_scale = global;
    if (o.column_scale) own_scale *= global_load<float>(o.column_scale + (o.one_column_scale ? 0 : own));
    int32_t own_zero = 0;
    if (o.x_zero) own_zero = global_load<int32_t>(o.x_zero + (o.one_column_scale ? 0 : own));
    float value[pieces / 8][4];
    LOWBIT_UNROLL
    for (int i = 0; i < pieces / 8; ++i) LOWBIT_UNROLL
    for (int c = 0; c < 2; ++c) {
      const int source = 8 * i + 2 * t + c;
      const float scale = shuffle(own_scale, source);
      const int32_t zero = o.x_zero ? shuffle(own_zero, source) : 0;
      LOWBIT_UNROLL
      for (int h = 0; h < 2; ++h)
        value[i][2 * h + c] = multiply_add(sum(first / 8 + i, h, c, zero) * row_scale[h], scale, bias[h]);
    }

    if (o.y_dtype == LOWBIT_F32) {  // eight lanes store a full sector of a row of y
      float* const y = static_cast<float*>(o.y) + (at.first_column + first) * o.y_stride;
      LOWBIT_UNROLL
      for (int i = 0; i < pieces / 8; ++i) LOWBIT_UNROLL
      for (int q = 0; q < 4; ++q)
        if (own_row + q / 2 * 8 < o.n && at.first_column + first + 8 * i + q % 2 < o.m)
          global_store<float>(y + (8 * i + q % 2) * o.y_stride + own_row + q / 2 * 8, value[i][q]);
      continue;
    }
    // transposed into rows of x: each 8 x 8 block's columns become 16 bytes of a row
    const uint32_t buffer = staging + first / pieces % 2 * T::out_buffer;
    const auto transpose = [&]<class Y>(Y) {
      LOWBIT_UNROLL
      for (int i = 0; i < pieces / 8; i += 2) {
        uint32_t r[4];
        LOWBIT_UNROLL
        for (int q = 0; q < 4; ++q) r[q] = pack2<Y>(value[i + q / 2][q % 2 * 2], value[i + q / 2][q % 2 * 2 + 1]);
        const int block = lane / 8;
        stmatrix_transposed<4>(
            buffer + ((i + block / 2) * 8 + lane % 8) * T::out_pitch + (warp_index() % 4 * 16 + block % 2 * 8) * 2, r);
      }
    };
    o.y_dtype == LOWBIT_F16 ? transpose(f16_t{}) : transpose(bf16_t{});
    barrier_sync(barrier, warpgroup);  // also: what was read two pieces ago has been read by all
    LOWBIT_UNROLL
    for (int line = thread / 8; line < pieces; line += warpgroup / 8) {  // 8 lanes store 128 bytes of a row of y
      const int column = first_column + first + line, row = first_row + thread % 8 * 8;
      if (column >= o.m) continue;
      const uint32_t from = buffer + line * T::out_pitch + thread % 8 * 16;
      uint16_t* const y = static_cast<uint16_t*>(o.y) + column * o.y_stride + row;
      if (o.whole_stores && row + 8 <= o.n) {
        global_store<u32x4>(y, shared_load<u32x4>(from));
      } else {
        LOWBIT_UNROLL_N(1)
        for (int i = 0; i < 8 && row + i < o.n; ++i) global_store<uint16_t>(y + i, shared_load<uint16_t>(from + 2 * i));
      }
    }
  }
  // The next tile's first buffer is the one that was read last, or it has been read by all.
  if constexpr (T::columns / pieces % 2) barrier_sync(barrier, warpgroup);
}

// The whole kernel: warpgroup 0 produces, each of the others calls consume(staging, ring, place) for its strip of every
// tile of this CTA, or for every tile that is its turn.
template <class T, class Consume>
LOWBIT_DEVICE void run_tiles(const operands& in, const Consume& consume) {
  const uint32_t shared = shared_base();
  init_barriers<T>(shared);
  const int group = warp_index() / 4;
  if (group == 0) {
    set_max_registers<T::consumers == 2 ? 48 : 56, registers::decrease>();
    if (lane_index() == 0 && warp_index() < T::lots) produce<T>(in, shared, warp_index());
  } else {
    set_max_registers<T::consumers == 1 ? 248 : T::consumers == 2 ? 232 : 152, registers::increase>();
    ring<T> r(shared);
    const uint32_t staging = shared + T::out_offset + (T::in_slices ? 0 : group - 1) * T::out_bytes;
    const int rank = T::cluster > 1 ? cluster_rank() : 0;
    const int clusters = num_ctas() / T::cluster;
    for (int i = cta_index() / T::cluster; i < in.order.count(); i += clusters, ++r.turn) {
      if (T::in_turns && r.turn % 2 != group - 1) {
        r.skip(in.steps);
        continue;
      }
      r.more = i + clusters < in.order.count();
      int w_block, x_block;
      in.order.at(i, w_block, x_block);
      const int strip = T::strips == 1 ? 0 : group - 1;
      consume(staging, r, place((w_block * T::cluster + rank) * T::strips + strip, x_block * T::columns));
    }
  }
  if constexpr (T::cluster > 1) {  // nobody leaves while its barriers are arrived on
    sync_warp();
    cluster_sync();
  }
}

}  // namespace lowbit::cuda::sm90
