// integer on sm_90: s8 x s8 in exact int32, W8A8 with scales by token and channel, or by groups of W.
#include "cuda/sm90/eight_bit.h"
#include "cuda/sm90/host.h"

namespace lowbit::cuda::sm90 {
namespace {

template <int Consumers, int Columns, int Stages, int Cluster>
using integer_tile = tile<s8_t, 1, 8, Consumers, Columns, Stages, Cluster>;

using whole_16 = integer_tile<1, 16, 16, 1>;
using whole_64 = integer_tile<1, 64, 12, 1>;
using whole_128 = integer_tile<2, 128, 6, 2>;
using whole_256 = integer_tile<2, 256, 4, 2>;
using grouped_16 = whole_16;
using grouped_64 = whole_64;
using grouped_128 = whole_128;

const char* common_refusal(const gemm_problem& p) {
  if (p.x_dtype != LOWBIT_I8) return "x is not int8";
  if (p.w.zero_points()) return "W has zero points: they need row sums of x";
  return tma_refusal(p, 1);
}

template <class T, bool grouped>
lowbit_status run(const gemm_problem& p, const device_info& device) {
  eight_bit_arguments a{};
  if (const lowbit_status status = make_operands<T>(p, &a.in)) return status;
  a.out = make_outputs(p);
  const fragment_shape& s = p.w.shape;
  a.out.column_scale = p.x_scale;
  a.out.one_column_scale = p.num_x_scales == 1;
  a.x_zero = p.x_zero_point;
  a.code_sums = p.w.column_sums();
  if (grouped) {
    a.w_scale = p.w.scales();
    a.w_scale_dtype = p.w.scale_dtype;
    a.block = static_cast<int>(s.group_k / T::stage_k);
    a.groups = static_cast<int>(s.groups);
    a.group = a.block;
  } else {
    a.out.row_scale = p.w.scales();
    a.out.row_scale_dtype = p.w.scale_dtype;
  }
  return launch<eight_bit_kernel<T, int32_t, grouped>>(shape_of_launch<T>(a.in, p, device), a);
}

template <class T>
const char* refuses_whole(const gemm_problem& p, const device_info& device) {
  if (const char* reason = common_refusal(p)) return reason;
  if (p.w.shape.groups > 1) return "scales change along K";
  if (p.w.shape.k > integer_segment) return "k is longer than a segment of 32768 columns";
  return model_refusal<T, whole_16, whole_64, whole_128, whole_256>(p, device);
}

template <class T>
const char* refuses_grouped(const gemm_problem& p, const device_info& device) {
  if (const char* reason = common_refusal(p)) return reason;
  if (p.w.shape.groups == 1) return "W has one scale for all of K";
  if (p.w.shape.group_k % T::stage_k != 0) return "groups are not whole steps of 128 columns";
  if (p.w.shape.group_k > integer_segment) return "a group is longer than a segment of 32768 columns";
  return model_refusal<T, grouped_16, grouped_64, grouped_128>(p, device);
}

int64_t no_workspace(const gemm_problem&, const device_info&) { return 0; }

template <class T, bool grouped>
constexpr kernel_row row(const char* name) {
  return {name,       LOWBIT_INTEGER,    90,         90,   bit(recipe::linear), bit(LOWBIT_I8),
          T::columns, T::consumers * 64, T::stage_k, true, grouped ? refuses_grouped<T> : refuses_whole<T>,
          no_workspace, run<T, grouped>};
}

}  // namespace

extern const kernel_row integer_rows[] = {
    row<whole_16, false>("integer_sm90_16x64"),           row<whole_64, false>("integer_sm90_64x64"),
    row<whole_128, false>("integer_sm90_128x128"),        row<whole_256, false>("integer_sm90_256x128"),
    row<grouped_16, true>("integer_grouped_sm90_16x64"),  row<grouped_64, true>("integer_grouped_sm90_64x64"),
    row<grouped_128, true>("integer_grouped_sm90_128x128"),
};
extern const int num_integer_rows = sizeof integer_rows / sizeof integer_rows[0];

}  // namespace lowbit::cuda::sm90
