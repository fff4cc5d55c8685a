// From a problem to the arguments of a launch.
#pragma once

#include <cstdio>

#include "cuda/sm90/byte_x.h"
#include "cuda/sm90/gather.h"
#include "cuda/sm90/model.h"

namespace lowbit::cuda::sm90 {

// Of weights that are decoded to 16 bits, for every m and tile: so a sum never depends on m.
inline constexpr int k_slices = 3;

// Also brings x to where TMA takes it.
template <class T>
lowbit_status make_operands(const gemm_problem& p, operands* in) {
  const fragment_shape& s = p.w.shape;
  in->codes = p.w.codes();
  in->strip_bytes = s.tile_offset(1, 0, 0);
  in->strips = static_cast<int>(s.strips);
  in->steps = static_cast<int>(s.k_packed / T::stage_k);
  in->slice = static_cast<int>(ceil_div(s.k_packed / fragment_step, k_slices) * fragment_step / T::stage_k);
  in->order = {static_cast<int>(ceil_div(s.strips, T::strips * T::cluster)),
               static_cast<int>(ceil_div(p.m, T::columns))};
  in->axis = {static_cast<int>(s.span), static_cast<int>(s.groups), static_cast<int>(T::stage_k / s.span),
              static_cast<int>(T::stage_k % s.span)};
  if (T::scale_stage > 0 && s.groups > 1) {
    in->scales = static_cast<const uint8_t*>(p.w.scales());
    in->scale_line = static_cast<int>(64 * dtype_bytes(p.w.scale_dtype));
    in->zero_points = reinterpret_cast<const uint8_t*>(p.w.zero_points());
  }
  const int box_rows = T::columns / T::cluster;
  if (tma_takes(p, T::x_bytes))
    return make_tensor_map(&in->x, T::x_bytes, p.x, s.k, p.m, p.x_stride * T::x_bytes, box_rows);
  if (const lowbit_status status = gather<T::x_bytes>(p)) return status;
  return make_tensor_map(&in->x, T::x_bytes, p.workspace, s.k_packed, p.m, s.k_packed * T::x_bytes, box_rows);
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
  o.x_zero = nullptr;
  o.global_scale = p.w.global_scale();
  o.factor = 1;
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

// ---- fp8 ----

// Instructions that promotion takes for each sum and stage: an addition, or with scales of x one multiply-add, half a
// multiplication, and an eighth of a load.
inline double fp8_promotion(const gemm_problem& p) { return p.x_group ? 2 : 1.2; }
inline bool fp8_in_blocks(const gemm_problem& p) { return p.x_group != 0 || p.w.shape.groups > 1; }

inline const char* fp8_blocks_refusal(const gemm_problem& p) {
  if (p.accumulate == accumulation::fast && !fp8_in_blocks(p)) return "sums are asked for in the tensor core alone";
  if (p.w.shape.groups > 1 && p.w.shape.group_k % 128 != 0) return "scales of W change inside 128 columns";
  if (p.x_group != 0 && p.x_group != 128) return "scales of x are not for 128 columns";
  return nullptr;
}

template <class T>
void fp8_scales(const gemm_problem& p, byte_x_arguments* a) {
  const fragment_shape& s = p.w.shape;
  a->out = make_outputs(p);
  a->block = 1;
  if (s.groups == 1) {
    a->out.row_scale = p.w.scales();
    a->out.row_scale_dtype = p.w.scale_dtype;
    a->group = a->in.steps;
  } else {
    a->w_scale = p.w.scales();
    a->w_scale_dtype = p.w.scale_dtype;
    a->group = static_cast<int>(s.group_k / T::stage_k);
    a->one_w_scale = s.group_n % 64 == 0;
  }
  a->groups = static_cast<int>(s.groups);
  if (p.x_group) {
    a->x_scale = p.x_scale;
    a->x_scale_row = ceil_div(s.k, p.x_group);
    a->x_scale_block = 1;
  } else {
    a->out.column_scale = p.x_scale;
    a->out.one_column_scale = p.num_x_scales == 1;
  }
}

// ---- choice ----

// Is `T` the tile that the model picks among `Tiles`? The reason why not is a sentence of this thread. `promotion`:
// instructions for each sum and stage.
template <class T, class... Tiles>
const char* model_refusal(const gemm_problem& p, const device_info& device, double promotion = 0) {
  const auto of = [&](const tile_traits& t) {
    return predict(t, p.m, p.w.shape.strips, p.w.shape.k_packed, device.sms);
  };
  const prediction own = of(traits_of<T>(promotion));
  prediction best = own;
  tile_traits other{};
  const auto consider = [&](const tile_traits& t) {
    if (of(t).clocks >= best.clocks) return;
    best = of(t);
    other = t;
  };
  (consider(traits_of<Tiles>(promotion)), ...);
  if (best.clocks == own.clocks) return nullptr;
  static thread_local char reason[160];
  std::snprintf(reason, sizeof reason,
                "predicted to take %.0f clocks, %s bound; %d rows of x by %d of W at a time%s take %.0f, %s bound",
                own.clocks, own.bound, other.columns, other.strips * 64, other.in_turns ? ", in turns," : "",
                best.clocks, best.bound);
  return reason;
}

}  // namespace lowbit::cuda::sm90
