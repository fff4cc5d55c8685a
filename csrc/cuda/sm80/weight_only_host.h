// From a problem to the arguments of a weight_only kernel.
#pragma once

#include "cuda/generic/codes.h"
#include "cuda/sm80/weight_only_model.h"
#include "cuda/sm80/weight_only_outputs.h"

namespace lowbit::cuda::sm80 {

inline bool scales_belong_to_steps(const fragment_shape& s) { return s.groups > 1; }

template <class C>
stage_plan plan_of(const packed_weight& w) {
  const fragment_shape& s = w.shape;
  constexpr int strips = C::rows / 64;
  stage_plan p{};
  p.grouped = scales_belong_to_steps(s);
  p.zero_points = w.zero_points_offset != 0;
  p.scale_dtype = w.scale_dtype;
  p.scale_shift = dtype_bytes(w.scale_dtype) / 2;  // of 1, 2 and 4
  p.scale_pitch = slot_pitch(1 << p.scale_shift);
  p.bias = C::codes::template bias<typename C::T>;
  if (C::codes::bits < 8) p.bias += static_cast<float>(w.format->integer_offset);
  p.span = static_cast<int>(s.span);
  p.groups = static_cast<int>(s.groups);
  p.slots = p.span % step_columns == 0 ? 1 : 128 % p.span == 0 ? 128 / p.span : 1 + (112 + p.span - 1) / p.span;
  p.step_groups = step_columns / p.span;
  p.step_rest = step_columns % p.span;
  if (p.span % step_columns == 0) p.begins = 1;
  if (step_columns % p.span == 0)
    for (int column = 0; column < step_columns; column += p.span) p.begins |= 1u << column / 16;
  p.strip_step = 1024 * C::codes::bits;
  p.codes_at = C::columns * x_pitch;
  p.scales_at = p.codes_at + strips * p.strip_step;
  p.zeros_at = p.scales_at + (p.grouped ? strips * p.slots * p.scale_pitch : 0);
  p.bytes = p.zeros_at + (p.grouped && C::codes::offset && p.zero_points ? strips * p.slots * slot_pitch(1) : 0);
  p.bytes = static_cast<int>(round_up(p.bytes, 128));
  return p;
}

template <class C>
arguments make_arguments(const gemm_problem& p) {
  const fragment_shape& s = p.w.shape;
  arguments a{};
  a.codes = p.w.codes();
  a.strip_bytes = static_cast<uint32_t>(s.tile_offset(1, 0, 0));
  a.scales = static_cast<const uint8_t*>(p.w.scales());
  a.zero_points = p.w.zero_points();
  a.strips = static_cast<int>(s.strips);
  a.rows_packed = static_cast<int>(s.strips * strip_rows);
  a.plan = plan_of<C>(p.w);
  a.decode = decode_constants_of<typename C::T>(*p.w.format);
  a.x = static_cast<const uint16_t*>(p.x);
  a.x_stride = p.m > 1 ? p.x_stride : 0;  // no row's address is off the 16 bytes that copies need
  a.m = static_cast<int>(p.m);
  a.k = static_cast<int>(s.k);
  a.gather = !s.k_in_order() || reinterpret_cast<uintptr_t>(p.x) % 16 != 0 || (p.m > 1 && p.x_stride % 8 != 0);
  a.group_k = static_cast<int>(s.groups == 1 ? s.k : s.group_k);
  a.order = {static_cast<int>(ceil_div(s.n, C::rows)), static_cast<int>(ceil_div(p.m, C::columns))};
  a.steps = static_cast<int>(s.k_packed / step_columns);
  a.slices = slices_of(s);
  a.n = static_cast<int>(s.n);
  a.partials = static_cast<float*>(p.workspace);
  a.y = p.y;
  a.y_dtype = p.y_dtype;
  a.y_stride = p.y_stride;
  const int y_bytes = dtype_bytes(p.y_dtype) * 4;
  a.whole_stores = reinterpret_cast<uintptr_t>(p.y) % static_cast<uintptr_t>(y_bytes) == 0 && p.y_stride % 4 == 0;
  a.bias = p.bias;
  a.bias_dtype = p.bias_dtype;
  a.whole_bias = reinterpret_cast<uintptr_t>(p.bias) % static_cast<uintptr_t>(dtype_bytes(p.bias_dtype) * 4) == 0;
  a.unscale = ldexp2(1, value_debt(*p.w.format));
  a.global_scale = p.w.global_scale();
  return a;
}

template <class C>
constexpr int64_t sums_bytes = int64_t{C::columns} * sums_pitch<C>;

struct launch_sizes {
  int stages;
  int64_t shared_bytes;
};

// Slices of groups are added in shared memory, where a CTA does all of them: registers hold a group's sums and a
// slice's.
inline bool sums_wait(const fragment_shape& s, bool split) {
  return scales_belong_to_steps(s) && !split && slices_of(s) > 1;
}

// As many stages as fit, so that loads in flight cover the memory's latency (32 KB and more an SM); where CTAs share an
// SM, in their part of it. Sums follow them or, where they do not wait, take their place.
template <class C>
launch_sizes sizes_of(const arguments& a, const device_info& device, bool wait) {
  const int64_t beside = wait ? sums_bytes<C> : 0;
  const int64_t part = device.shared_bytes / C::min_ctas - (C::min_ctas > 1 ? 1024 : 0);
  const bool shares = (part - beside) / a.plan.bytes >= 3 && part >= sums_bytes<C>;
  int64_t stages = ((shares ? part : device.shared_bytes) - beside) / a.plan.bytes;
  if (stages > max_stages) stages = max_stages;
  if (stages < 2) stages = 2;
  const int64_t bytes = stages * a.plan.bytes + beside;
  return {static_cast<int>(stages), bytes > sums_bytes<C> ? bytes : sums_bytes<C>};
}

// Of any codes in a tile: two stages and sums that wait, or the sums.
template <class C>
int64_t smallest_shared_bytes(const gemm_problem& p, bool wait) {
  const stage_plan plan = plan_of<C>(p.w);
  const int64_t spare = C::rows * 16 * (C::codes::bits - p.w.shape.bits);  // C's codes are not the format's own
  const int64_t stages = 2 * (plan.bytes - spare) + (wait ? sums_bytes<C> : 0);
  return stages > sums_bytes<C> ? stages : sums_bytes<C>;
}

inline bool fits_a_grid(const gemm_problem& p, const tile_traits& t) {
  return ceil_div(p.w.shape.n, t.rows) * ceil_div(p.m, t.columns) < int64_t{1} << 31 &&
         p.m * p.w.shape.strips * (strip_rows / 4) < int64_t{1} << 38;
}

inline const char* refused_by_every_tile(const gemm_problem& p) {
  const format_row& f = *p.w.format;
  if (f.minimum || f.two_levels()) return "the format has minima or scales of two levels";
  if (kind_of(f) == code_kind::none) return "no decoder takes the format's codes";
  if (p.m >= int64_t{1} << 31) return "more than 2^31 rows of x";
  if (p.w.shape.tile_offset(1, 0, 0) >= int64_t{1} << 32) return "64 rows of codes take 4 GB or more";
  if (p.w.shape.strips * strip_rows >= int64_t{1} << 31) return "W has 2^31 padded rows or more";
  return nullptr;
}

}  // namespace lowbit::cuda::sm80
