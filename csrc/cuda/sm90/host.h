// From a problem to the arguments of a launch.
#pragma once

#include <cstdio>

#include "cuda/common/launch.h"
#include "cuda/sm90/model.h"
#include "cuda/sm90/outputs.h"

namespace lowbit::cuda::sm90 {

// Why TMA cannot bring x, or null.
inline const char* tma_refusal(const gemm_problem& p, int x_bytes) {
  if (!p.w.shape.k_in_order()) return "groups are padded: x would have to be gathered";
  if (reinterpret_cast<uintptr_t>(p.x) % 16 != 0) return "x does not lie on a 16-byte boundary, as TMA needs";
  if (p.x_stride * x_bytes % 16 != 0) return "rows of x are not a multiple of 16 bytes apart, as TMA needs";
  return nullptr;
}

template <class T>
lowbit_status make_operands(const gemm_problem& p, operands* in) {
  const fragment_shape& s = p.w.shape;
  in->codes = p.w.codes();
  in->strip_bytes = s.tile_offset(1, 0, 0);
  in->strips = static_cast<int>(s.strips);
  in->steps = static_cast<int>(s.k_packed / T::stage_k);
  in->order = {static_cast<int>(ceil_div(s.strips, T::consumers * T::cluster)),
               static_cast<int>(ceil_div(p.m, T::columns))};
  return make_tensor_map(&in->x, T::x_bytes, p.x, s.k, p.m, p.x_stride * T::x_bytes, T::columns / T::cluster);
}

inline outputs make_outputs(const gemm_problem& p) {
  outputs o{};
  o.y = p.y;
  o.y_dtype = p.y_dtype;
  o.y_stride = p.y_stride;
  o.m = static_cast<int>(p.m);
  o.n = static_cast<int>(p.w.shape.n);
  o.whole_stores = reinterpret_cast<uintptr_t>(p.y) % 16 == 0 && p.y_stride % 8 == 0;
  o.bias = p.bias;
  o.bias_dtype = p.bias_dtype;
  o.global_scale = p.w.global_scale();
  return o;
}

template <class T>
launch_shape shape_of_launch(const operands& in, const gemm_problem& p, const device_info& device) {
  const int tiles = in.order.w_blocks * in.order.x_blocks, clusters = device.sms / T::cluster;
  launch_shape shape{};
  shape.grid_x = (tiles < clusters ? tiles : clusters) * T::cluster;
  shape.grid_y = shape.grid_z = 1;
  shape.threads = T::threads;
  shape.cluster = T::cluster;
  shape.shared_bytes = T::shared_bytes;
  shape.stream = p.stream;
  return shape;
}

// Is `T` the tile that the model picks among `Tiles`? The reason why not is a sentence of this thread.
template <class T, class... Tiles>
const char* model_refusal(const gemm_problem& p, const device_info& device) {
  const auto clocks = [&](const tile_traits& t) {
    return predicted_clocks(t, p.m, p.w.shape.strips, p.w.shape.k_packed, device.sms);
  };
  const double own = clocks(traits_of<T>());
  double best = own;
  int columns = T::columns, rows = T::consumers * 64;
  const auto consider = [&](const tile_traits& t) {
    if (clocks(t) >= best) return;
    best = clocks(t);
    columns = t.columns;
    rows = t.consumers * 64;
  };
  (consider(traits_of<Tiles>()), ...);
  if (best == own) return nullptr;
  static thread_local char reason[160];
  std::snprintf(reason, sizeof reason, "predicted to take %.0f clocks, the tile of %d x %d %.0f", own, columns, rows, best);
  return reason;
}

}  // namespace lowbit::cuda::sm90
