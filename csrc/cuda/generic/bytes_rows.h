// From a problem to the kernels of 8-bit products: arguments, workspace, and which tile takes which m.
#pragma once

#include "cuda/generic/arrange.h"
#include "cuda/generic/bytes_skinny.h"
#include "cuda/generic/bytes_tiled.h"

namespace lowbit::cuda {

// x as fragments.
inline int64_t bytes_workspace(const gemm_problem& p, const device_info&) {
  return activation_fragment_bytes(p.m, p.w.shape.k_packed);
}

// Segments of whole groups, or of `cut` columns of them: a multiple of a step.
inline byte_arguments make_byte_arguments(const gemm_problem& p, int64_t cut) {
  const fragment_shape& s = p.w.shape;
  byte_arguments a{};
  a.out = output_of(p);
  a.w = p.w.codes();
  a.x = static_cast<const uint8_t*>(p.workspace);
  a.w_strip_bytes = s.tile_offset(1, 0, 0);
  a.strips = static_cast<int>(s.strips);
  a.x_tiles = static_cast<int>(ceil_div(p.m, activation_tile_rows));
  a.steps = static_cast<int>(s.k_packed / step_columns);
  a.span = static_cast<int>(s.span);
  a.groups = static_cast<int>(s.groups);
  a.cut = static_cast<int>(cut);
  a.cuts = static_cast<int>(ceil_div(s.span, cut));
  a.k = static_cast<int>(s.k);
  a.group_k = static_cast<int>(s.groups == 1 ? s.k : s.group_k);
  a.whole_steps = s.span % step_columns == 0;
  a.unit = static_cast<int>(cut / step_columns);
  const int span = a.span / 16;  // a step is 8 of these
  a.pieces = a.whole_steps ? 1 : 8 % span == 0 ? 8 / span : (8 + span - 2) / span + 1;
  a.w_scale = p.w.scales();
  a.w_scale_dtype = p.w.scale_dtype;
  a.x_scale = p.x_scale;
  a.x_scale_row = p.x_group ? ceil_div(s.k, p.x_group) : p.num_x_scales == 1 ? 0 : 1;
  a.x_scale_segment = p.x_group ? 1 : 0;
  return a;
}

inline const char* bytes_refusal(const gemm_problem& p) {
  const fragment_shape& s = p.w.shape;
  if (s.k_packed > int64_t{1} << 30) return "K is longer than 2^30";
  if (s.strips > int64_t{1} << 24) return "N is more than 2^30";
  if (ceil_div(p.m, activation_tile_rows) * ceil_div(s.k_packed, activation_tile_columns) > int64_t{1} << 31)
    return "x has more than 2^40 elements";
  if (!is_float_dtype(p.w.scale_dtype)) return "scales are not float32, float16 or bfloat16";
  return nullptr;
}

// The skinny kernel with 8 NT rows of x, up to twice as many CTAs high where the tiles would leave half of the SMs
// idle.
template <class F, int NT>
const char* skinny_refusal(const gemm_problem& p, const device_info& device, int64_t cut) {
  using T = bytes_skinny<F, NT>;
  if (const char* reason = bytes_refusal(p)) return reason;
  if (T::shared_bytes(make_byte_arguments(p, cut).pieces) > device.shared_bytes)
    return "groups are too many for its shared memory";
  const bool idle = ceil_div(p.w.shape.n, 128) * ceil_div(p.m, 64) * 2 < device.sms;
  if (p.m > T::x_rows * (NT == 4 && idle ? 2 : 1)) return "more rows of x than it is for";
  return nullptr;
}

template <class F, int NT, segments S>
const char* tiled_refusal(const gemm_problem& p, const device_info& device, int64_t cut) {
  using T = bytes_tile<F, NT>;
  if (const char* reason = bytes_refusal(p)) return reason;
  if (T::shared_bytes > device.shared_bytes) return "the device has too little shared memory";
  const fragment_shape& s = p.w.shape;
  if (S == segments::one && (s.groups > 1 || s.span > cut)) return "K has more than one segment to scale and add";
  if (S != segments::any && s.span % step_columns) return "groups are not whole steps of 128 columns";
  // More rows of x are fewer reads of W, where that leaves no SM idle.
  if (NT > 2 && ceil_div(s.n, T::w_rows) * ceil_div(p.m, T::x_rows) < device.sms)
    return "tiles of so many rows of x leave the device idle";
  return nullptr;
}

}  // namespace lowbit::cuda
