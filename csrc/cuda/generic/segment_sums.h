// Sums of W's values over segments, where groups are longer than one: the packed column sums are those of groups. A
// warp sums 16 rows of a segment from the fragments, 16 bytes a lane.
#pragma once

#include "cuda/common/launch.h"
#include "cuda/generic/bytes.h"

namespace lowbit::cuda {

struct segment_sum_arguments {
  byte_arguments product;
  int32_t* sums;  // [strips][groups][cuts][64]
};

namespace segment_sums {

inline constexpr int warps = 8;

// The column that byte `b` of register `i` of a k32 is of (weight_words), of the lane's.
template <int bits>
LOWBIT_DEVICE int column_of(int i, int b) {
  const int t = lane_index() % 4;
  if constexpr (bits == 8) return i / 2 * 16 + 4 * t + b;
  const int within = 2 * t + b / 2;
  return bits == 4 ? i / 2 * 16 + b % 2 * 8 + within : b % 2 * 16 + i / 2 * 8 + within;
}

}  // namespace segment_sums

template <int bits>
LOWBIT_KERNEL(segment_sums::warps * 32, 1)
void segment_sums_kernel(const segment_sum_arguments given) {
  const byte_arguments& a = given.product;
  constexpr int tile_k = 256 / bits, tiles = static_cast<int>(strip_rows / fragment_rows);
  const int64_t index = static_cast<int64_t>(cta_index()) * segment_sums::warps + warp_index();
  const int segments = a.groups * a.cuts, segment = static_cast<int>(index % segments);
  const int64_t row_tile = index / segments, strip = row_tile / tiles;
  if (strip >= a.strips) return;  // the warp as a whole
  const segment_walk at{segment / a.cuts, segment % a.cuts, 0};
  const int begin = at.group * a.span + at.cut * a.cut, end = begin + at.columns(a);

  int32_t sums[2] = {0, 0};  // of rows g and g + 8, times 2^(8 - bits)
  const uint8_t* const rows = a.w + strip * a.w_strip_bytes + row_tile % tiles * fragment_bytes + lane_index() * 16;
  for (int tile = begin / tile_k; tile * tile_k < end; ++tile) {
    const u32x4 v = global_load<u32x4>(rows + static_cast<int64_t>(tile) * (tiles * fragment_bytes));
    const uint32_t words[4] = {v.x, v.y, v.z, v.w};
    const bool whole = tile * tile_k >= begin && (tile + 1) * tile_k <= end;
    LOWBIT_UNROLL
    for (int k32 = 0; k32 < tile_k / 32; ++k32) {
      uint32_t operand[4];
      weight_words<bits>::decode(&words[k32 * k32_words<bits>], operand);
      LOWBIT_UNROLL
      for (int i = 0; i < 4; ++i) {
        uint32_t ones = 0x01010101u;
        if (!whole) {
          LOWBIT_UNROLL
          for (int b = 0; b < 4; ++b) {
            const int column = tile * tile_k + k32 * 32 + segment_sums::column_of<bits>(i, b);
            if (column < begin || column >= end) ones &= ~(1u << b * 8);
          }
        }
        sums[i % 2] = dot4_s8(operand[i], ones, sums[i % 2]);
      }
    }
  }
  LOWBIT_UNROLL
  for (int h = 0; h < 2; ++h) {
    sums[h] += shuffle_xor(sums[h], 1);
    sums[h] += shuffle_xor(sums[h], 2);
    const int64_t row = row_tile % tiles * fragment_rows + lane_index() / 4 + 8 * h;
    if (lane_index() % 4 == 0)
      global_store<int32_t>(given.sums + (strip * segments + segment) * strip_rows + row, sums[h] >> (8 - bits));
  }
}

template <int bits>
lowbit_status sum_segments(const byte_arguments& a, int32_t* sums, void* stream) {
  launch_shape shape{};
  const int64_t tiles = int64_t{a.strips} * (strip_rows / fragment_rows) * a.groups * a.cuts;
  shape.grid_x = static_cast<int>(ceil_div(tiles, segment_sums::warps));
  shape.threads = segment_sums::warps * 32;
  shape.stream = stream;
  return launch<segment_sums_kernel<bits>>(shape, segment_sum_arguments{a, sums});
}

}  // namespace lowbit::cuda
