// Rows of 8-bit x to fragments (layout/activation_fragments.h): a warp moves 8 rows x 64 packed columns, through shared
// memory. Padding becomes zeros.
#pragma once

#include "cuda/common/convert.h"
#include "cuda/common/launch.h"
#include "layout/activation_fragments.h"

namespace lowbit::cuda {

struct arrange_arguments {
  const uint8_t* x;
  int64_t m, k, stride;
  int64_t span, group_k, groups;
  int64_t tiles;  // of 64 packed columns
  int bits;       // of W
  bool whole;     // packed columns are columns, and 16-byte loads fit
  uint8_t* to;
};

namespace arranging {
inline constexpr int warps = 8;
}

template <int = 0>  // one copy, however many files launch it
LOWBIT_KERNEL(arranging::warps * 32, 1) void arrange_kernel(const arrange_arguments a) {
  grid_dependency_launch();
  const int lane = lane_index(), g = lane / 4, t = lane % 4;
  const int64_t tile = static_cast<int64_t>(cta_index()) * arranging::warps + warp_index();
  if (tile >= ceil_div(a.m, activation_tile_rows) * a.tiles) return;
  const int64_t row = tile / a.tiles * activation_tile_rows + g;
  const int64_t column = tile % a.tiles * activation_tile_columns + 16 * t;

  u32x4 v{0, 0, 0, 0};
  if (row < a.m && a.whole && column + 16 <= a.k) {
    v = global_load<u32x4>(a.x + row * a.stride + column);
  } else if (row < a.m) {
    uint32_t words[4] = {0, 0, 0, 0};
    LOWBIT_UNROLL
    for (int i = 0; i < 16; ++i) {
      const int64_t group = (column + i) / a.span, inside = (column + i) % a.span, from = group * a.group_k + inside;
      if (group < a.groups && inside < a.group_k && from < a.k)
        words[i / 4] |= static_cast<uint32_t>(global_load<uint8_t>(a.x + row * a.stride + from)) << i % 4 * 8;
    }
    v = {words[0], words[1], words[2], words[3]};
  }
  // Rows of 64 bytes; their 16-byte pieces are exchanged so that equal ones of all rows lie in different banks.
  const uint32_t own = shared_base() + (warp_index() * activation_tile_rows + g) * activation_tile_columns;
  const auto place = [&](int byte) { return own + (byte / 16 ^ g / 2) * 16 + byte % 16; };
  shared_store<u32x4>(place(16 * t), v);
  sync_warp();

  uint32_t words[4];
  LOWBIT_UNROLL
  for (int i = 0; i < 4; ++i) {  // register i % 2 of 32 columns
    if (a.bits == 8) {
      words[i] = shared_load<uint32_t>(place(i * 16 + 4 * t));
    } else {
      const int first = (a.bits == 4 ? i * 16 : i / 2 * 32 + i % 2 * 8) + 2 * t;
      words[i] = permute_bytes(shared_load<uint16_t>(place(first)),
                               shared_load<uint16_t>(place(first + (a.bits == 4 ? 8 : 16))), 0x5140);
    }
  }
  global_store<u32x4>(a.to + tile * activation_tile_bytes + lane * 16, u32x4{words[0], words[1], words[2], words[3]});
}

// x[m][k], bytes `stride` apart, for a W of `shape`.
inline lowbit_status arrange(const fragment_shape& shape, const void* x, int64_t m, int64_t stride, void* to,
                             void* stream) {
  arrange_arguments a{};
  a.x = static_cast<const uint8_t*>(x);
  a.m = m;
  a.k = shape.k;
  a.stride = stride;
  a.span = shape.span;
  a.group_k = shape.groups == 1 ? shape.k : shape.group_k;
  a.groups = shape.groups;
  a.tiles = shape.k_packed / activation_tile_columns;
  a.bits = shape.bits;
  a.whole = shape.k_in_order() && reinterpret_cast<uintptr_t>(x) % 16 == 0 && stride % 16 == 0;
  a.to = static_cast<uint8_t*>(to);
  launch_shape launched{};
  launched.grid_x = static_cast<int>(ceil_div(ceil_div(m, activation_tile_rows) * a.tiles, arranging::warps));
  launched.threads = arranging::warps * 32;
  launched.shared_bytes = arranging::warps * activation_tile_bytes;
  launched.stream = stream;
  return launch<arrange_kernel<>>(launched, a);
}

}  // namespace lowbit::cuda
