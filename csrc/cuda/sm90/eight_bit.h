// fp8 and integer on sm_90: 8-bit x by TMA, 8-bit weights that are fragments already.
#pragma once

#include "cuda/sm90/outputs.h"

namespace lowbit::cuda::sm90 {

struct eight_bit_arguments {
  operands in;
  outputs out;
  // integer: x's zero points, as many as column scales, and W's column sums [strips][64]
  const int32_t* x_zero;  // or null: 0
  const int32_t* code_sums;
  // blocks of K with scales of their own: x_scale[m * x_scale_row + block * x_scale_block], w_scale[strips][groups][64]
  int block;   // stages
  int groups;  // of W
  int group;   // stages of one
  const float* x_scale;  // or null: W's alone
  int64_t x_scale_row, x_scale_block;
  const void* w_scale;
  int w_scale_dtype;
};

// A stage of a strip is 4 tiles of 16 x 32 bytes for each warp.
struct load_bytes {
  LOWBIT_DEVICE void operator()(uint32_t (&a)[4][4], uint32_t strip, int) const {
    LOWBIT_UNROLL
    for (int i = 0; i < 4; ++i) {
      const u32x4 v = shared_load<u32x4>(strip + i * 2048 + warp_index() % 4 * 512 + lane_index() * 16);
      a[i][0] = v.x;
      a[i][1] = v.y;
      a[i][2] = v.z;
      a[i][3] = v.w;
    }
  }
};

// All of K in one sum: fp8 "fast" and integer without groups.
template <class T, class Sum>
LOWBIT_DEVICE void consume_whole(const eight_bit_arguments& a, uint32_t shared, ring<T>& r, const place& at) {
  Sum sums[T::columns / 2];
  multiply_all<T>(sums, r, a.in.steps, load_bytes{});

  int32_t code_sum[2] = {0, 0};
  if (a.x_zero)
    LOWBIT_UNROLL
    for (int h = 0; h < 2; ++h) if (at.row(h) < a.out.n) code_sum[h] = static_cast<int32_t>(global_load<uint32_t>(a.code_sums + at.row(h)));
  store_outputs<T>(a.out, at, shared, [&](int j, int h, int c) {
    const Sum sum = sums[4 * j + 2 * h + c];
    if (!a.x_zero || at.column(j, c) >= a.out.m) return static_cast<float>(sum);
    const auto zero =
        static_cast<int32_t>(global_load<uint32_t>(a.x_zero + (a.out.one_column_scale ? 0 : at.column(j, c))));
    return static_cast<float>(static_cast<int32_t>(sum) - zero * code_sum[h]);
  });
}

// K in blocks, scaled and added in fp32: fp8 "promoted", fp8 with blocks of 1 x 128 and 128 x 128, integer with groups.
template <class T, class Part>
LOWBIT_DEVICE void consume_blocks(const eight_bit_arguments& a, uint32_t shared, ring<T>& r, const place& at) {
  float sums[T::columns / 2];
  LOWBIT_UNROLL
  for (int i = 0; i < T::columns / 2; ++i) sums[i] = 0;
  float x_scale[T::columns / 4], w_scale[2];
  int32_t code_sum[2];

  const auto prepare = [&](int block) {  // in flight while the block is multiplied
    if (a.w_scale)
      LOWBIT_UNROLL
      for (int h = 0; h < 2; ++h) {
        const int strip = at.strip < a.in.strips ? at.strip : a.in.strips - 1;
        const int64_t i = (int64_t{strip} * a.groups + block * a.block / a.group) * 64 + at.row_in_strip(h);
        w_scale[h] = load_float(a.w_scale, i, a.w_scale_dtype);
        if (a.x_zero) code_sum[h] = static_cast<int32_t>(global_load<uint32_t>(a.code_sums + i));
      }
    if (a.x_scale)
      LOWBIT_UNROLL
      for (int i = 0; i < T::columns / 4; ++i) {
        const int m = at.column(i / 2, i % 2);
        x_scale[i] = m < a.out.m ? global_load<float>(a.x_scale + m * a.x_scale_row + block * a.x_scale_block) : 0.0f;
      }
  };
  const auto add = [&](float(&to)[T::columns / 2], const Part(&part)[T::columns / 2]) {
    LOWBIT_UNROLL
    for (int i = 0; i < T::columns / 2; ++i) {
      const int j = i / 4, h = i / 2 % 2, c = i % 2;
      Part sum = part[i];
      if (a.x_zero && at.column(j, c) < a.out.m)
        sum -= static_cast<Part>(
            static_cast<int32_t>(global_load<uint32_t>(a.x_zero + (a.out.one_column_scale ? 0 : at.column(j, c)))) *
            code_sum[h]);
      if (a.x_scale)
        to[i] = multiply_add(static_cast<float>(sum), w_scale[h] * x_scale[2 * j + c], to[i]);
      else
        to[i] = a.w_scale ? multiply_add(static_cast<float>(sum), w_scale[h], to[i]) : to[i] + static_cast<float>(sum);
    }
  };
  multiply_blocks<T, Part>(sums, r, a.in.steps, a.block, load_bytes{}, prepare, add);
  store_outputs<T>(a.out, at, shared, [&](int j, int h, int c) { return sums[4 * j + 2 * h + c]; });
}

template <class T, class Sum, bool blocks>
LOWBIT_KERNEL(T::threads, 1)
void eight_bit_kernel(const LOWBIT_GRID_CONSTANT eight_bit_arguments a) {
  const uint32_t shared = shared_base();
  init_barriers<T>(shared);
  const int group = thread_index() / warpgroup;
  if (group == 0) {
    set_max_registers<40, registers::decrease>();
    if (thread_index() == 0) produce<T>(a.in, shared);
  } else {
    set_max_registers<T::consumers == 1 ? 248 : 232, registers::increase>();
    ring<T> r(shared);
    const uint32_t staging = shared + T::out_offset + (group - 1) * T::out_bytes;
    const int rank = T::cluster > 1 ? cluster_rank() : 0;
    for (int i = cta_index() / T::cluster; i < a.in.order.count(); i += num_ctas() / T::cluster) {
      int w_block, x_block;
      a.in.order.at(i, w_block, x_block);
      const place at((w_block * T::cluster + rank) * T::consumers + group - 1, x_block * T::columns);
      if constexpr (blocks)
        consume_blocks<T, Sum>(a, staging, r, at);
      else
        consume_whole<T, Sum>(a, staging, r, at);
    }
  }
  if constexpr (T::cluster > 1) {  // nobody leaves while its barriers are arrived on
    sync_warp();
    cluster_sync();
  }
}

}  // namespace lowbit::cuda::sm90
