// Rows of x that TMA cannot take: off 16-byte boundaries, or without the padding that groups of W have. They are copied
// to where it can: in packed columns, padding zero.
#pragma once

#include "cuda/common/launch.h"
#include "cuda/common/memory.h"
#include "cuda/contract.h"

namespace lowbit::cuda::sm90 {

struct gather_arguments {
  const uint8_t* x;
  int64_t stride;  // bytes
  int64_t m, k, span, group_k, groups;
  int64_t pieces;  // of 16 bytes in a row that is made
  uint8_t* to;
};

inline constexpr int gather_threads = 256;

// A thread makes 16 bytes; elements are loaded one by one, as their addresses allow no more.
template <int x_bytes>
LOWBIT_KERNEL(gather_threads, 1)
void gather_kernel(const gather_arguments a) {
  const int64_t piece = static_cast<int64_t>(cta_index()) * gather_threads + thread_index();
  const int64_t row = piece / a.pieces, first = piece % a.pieces * (16 / x_bytes);
  if (row >= a.m) return;
  const int64_t group = first / a.span, inside = first % a.span;  // a span is whole pieces
  const uint8_t* const from = a.x + row * a.stride + (group * a.group_k + inside) * x_bytes;
  uint32_t words[4] = {0, 0, 0, 0};
  LOWBIT_UNROLL
  for (int i = 0; i < 16 / x_bytes; ++i) {
    if (group >= a.groups || inside + i >= a.group_k || group * a.group_k + inside + i >= a.k) continue;
    const uint32_t element =
        x_bytes == 1 ? global_load<uint8_t>(from + i) : uint32_t{global_load<uint16_t>(from + i * 2)};
    words[i * x_bytes / 4] |= element << i * x_bytes % 4 * 8;
  }
  global_store<u32x4>(a.to + piece * 16, u32x4{words[0], words[1], words[2], words[3]});
}

inline bool tma_takes(const gemm_problem& p, int x_bytes) {
  return p.w.shape.k_in_order() && reinterpret_cast<uintptr_t>(p.x) % 16 == 0 && p.x_stride * x_bytes % 16 == 0;
}

// Of the workspace's beginning.
template <int x_bytes>
int64_t gather_workspace(const gemm_problem& p, const device_info&) {
  return tma_takes(p, x_bytes) ? 0 : round_up(p.m * p.w.shape.k_packed * x_bytes, 256);
}

template <int x_bytes>
lowbit_status gather(const gemm_problem& p) {
  const fragment_shape& s = p.w.shape;
  gather_arguments a{};
  a.x = static_cast<const uint8_t*>(p.x);
  a.stride = p.x_stride * x_bytes;
  a.m = p.m;
  a.k = s.k;
  a.span = s.span;
  a.group_k = s.groups == 1 ? s.k : s.group_k;
  a.groups = s.groups;
  a.pieces = s.k_packed * x_bytes / 16;
  a.to = static_cast<uint8_t*>(p.workspace);
  launch_shape shape{};
  shape.grid_x = static_cast<int>(ceil_div(p.m * a.pieces, gather_threads));
  shape.threads = gather_threads;
  shape.stream = p.stream;
  return launch<gather_kernel<x_bytes>>(shape, a);
}

}  // namespace lowbit::cuda::sm90
