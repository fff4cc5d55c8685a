// integer on sm_90: s8 x s8 in exact int32, W8A8 and W4A8, scales by token and channel or by groups of W.
#include "cuda/sm90/byte_x.h"
#include "cuda/sm90/host.h"

namespace lowbit::cuda::sm90 {
namespace {

template <class Load, int Consumers, int Columns, int Stages, int Cluster, schedule Schedule = schedule::together>
struct integer_tile
    : tile<s8_t, 1, __is_same(Load, load_int4) ? 4 : 8, Consumers, Columns, Stages, Cluster, 0, Schedule> {
  using load = Load;
};

template <class Load>
using rows_16 = integer_tile<Load, 1, 16, 16, 1>;
template <class Load>
using rows_64 = integer_tile<Load, 1, 64, 12, 1>;
template <class Load>
using rows_128_64 = integer_tile<Load, 1, 128, 8, 2>;
template <class Load>
using rows_128 = integer_tile<Load, 2, 128, 6, 2>;
template <class Load>
using rows_256 = integer_tile<Load, 2, 256, 4, 2>;
template <class Load>
using rows_256_in_turns = integer_tile<Load, 2, 256, 5, 2, schedule::in_turns>;

template <class T>
const char* common_refusal(const gemm_problem& p) {
  if (p.w.format->bits != T::w_bits) return "decodes codes of other bits";
  if (p.x_dtype != LOWBIT_I8) return "x is not int8";
  if (!p.w.format->integer()) return "is no integer format";
  if (p.w.zero_points()) return "W has zero points: they need row sums of x";
  return nullptr;
}

template <class T, bool grouped>
lowbit_status run(const gemm_problem& p, const device_info& device) {
  byte_x_arguments a{};
  if (const lowbit_status status = make_operands<T>(p, &a.in)) return status;
  a.out = make_outputs(p);
  const fragment_shape& s = p.w.shape;
  a.out.column_scale = p.x_scale;
  a.out.one_column_scale = p.num_x_scales == 1;
  a.out.x_zero = p.x_zero_point;
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
  return launch<byte_x_kernel<T, typename T::load, int32_t, grouped>>(shape_of_launch<T>(a.in, p, device), a);
}

template <class T>
const char* refuses_whole(const gemm_problem& p, const device_info& device) {
  if (const char* reason = common_refusal<T>(p)) return reason;
  if (p.w.shape.groups > 1) return "scales change along K";
  if (p.w.shape.k > integer_segment) return "k is longer than a segment of 32768 columns";
  return model_refusal<T, rows_16<typename T::load>, rows_64<typename T::load>, rows_128_64<typename T::load>,
                       rows_128<typename T::load>, rows_256<typename T::load>, rows_256_in_turns<typename T::load>>(
      p, device);
}

template <class T>
const char* refuses_grouped(const gemm_problem& p, const device_info& device) {
  if (const char* reason = common_refusal<T>(p)) return reason;
  if (p.w.shape.groups == 1) return "W has one scale for all of K";
  if (p.w.shape.group_k % T::stage_k != 0) return "groups are not whole steps of 128 columns";
  if (p.w.shape.group_k > integer_segment) return "a group is longer than a segment of 32768 columns";
  return model_refusal<T, rows_16<typename T::load>, rows_64<typename T::load>, rows_128<typename T::load>>(p, device,
                                                                                                            2);
}

template <class T, bool grouped>
constexpr kernel_row row(const char* name) {
  return {name,
          LOWBIT_INTEGER,
          90,
          90,
          bit(recipe::linear),
          bit(LOWBIT_I8),
          T::columns,
          T::strips * 64,
          T::stage_k,
          true,
          grouped ? refuses_grouped<T> : refuses_whole<T>,
          gather_workspace<1>,
          run<T, grouped>};
}

}  // namespace

extern const kernel_row integer_rows[] = {
    row<rows_16<load_bytes>, false>("integer_int8_sm90_16x64"),
    row<rows_64<load_bytes>, false>("integer_int8_sm90_64x64"),
    row<rows_128_64<load_bytes>, false>("integer_int8_sm90_128x64"),
    row<rows_128<load_bytes>, false>("integer_int8_sm90_128x128"),
    row<rows_256<load_bytes>, false>("integer_int8_sm90_256x128"),
    row<rows_256_in_turns<load_bytes>, false>("integer_int8_sm90_256x64_in_turns"),
    row<rows_16<load_bytes>, true>("integer_int8_grouped_sm90_16x64"),
    row<rows_64<load_bytes>, true>("integer_int8_grouped_sm90_64x64"),
    row<rows_128<load_bytes>, true>("integer_int8_grouped_sm90_128x128"),
    row<rows_16<load_int4>, false>("integer_int4_sm90_16x64"),
    row<rows_64<load_int4>, false>("integer_int4_sm90_64x64"),
    row<rows_128_64<load_int4>, false>("integer_int4_sm90_128x64"),
    row<rows_128<load_int4>, false>("integer_int4_sm90_128x128"),
    row<rows_256<load_int4>, false>("integer_int4_sm90_256x128"),
    row<rows_256_in_turns<load_int4>, false>("integer_int4_sm90_256x64_in_turns"),
    row<rows_16<load_int4>, true>("integer_int4_grouped_sm90_16x64"),
    row<rows_64<load_int4>, true>("integer_int4_grouped_sm90_64x64"),
    row<rows_128<load_int4>, true>("integer_int4_grouped_sm90_128x128"),
};
extern const int num_integer_rows = sizeof integer_rows / sizeof integer_rows[0];

}  // namespace lowbit::cuda::sm90
