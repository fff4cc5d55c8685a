// integer: s8 x s8 in exact int32 (mma.sync m16n8k32), W8A8, W4A8 and W2A8 with any scales and zero points.
#include "cuda/generic/bytes_rows.h"
#include "cuda/generic/segment_sums.h"

namespace lowbit::cuda::sm80 {
namespace {

const char* integer_refusal(const gemm_problem& p) {
  const int bits = p.w.format->bits;
  if (!p.w.format->integer() || (bits != 2 && bits != 4 && bits != 8)) return "codes are not int2, int4 or int8";
  if (p.w.shape.groups * ceil_div(p.w.shape.span, integer_segment) > int64_t{1} << 30) return "more than 2^30 segments";
  return nullptr;
}

// x as fragments, and where a group has several segments their column sums.
int64_t workspace(const gemm_problem& p, const device_info& device) {
  const fragment_shape& s = p.w.shape;
  const int64_t cuts = ceil_div(s.span, integer_segment);
  return bytes_workspace(p, device) + (cuts > 1 ? s.strips * s.groups * cuts * strip_rows * 4 : 0);
}

// launch(products of W's bits, arguments)
template <class Launch>
lowbit_status run(const gemm_problem& p, const device_info& device, const Launch& launch) {
  if (const lowbit_status status = arrange(p.w.shape, p.x, p.m, p.x_stride, p.workspace, p.stream)) return status;
  byte_arguments a = make_byte_arguments(p, integer_segment);
  a.w_zero = p.w.zero_points();
  a.x_zero = p.x_zero_point;
  a.x_zero_row = p.num_x_scales == 1 ? 0 : 1;
  a.column_sums = p.w.column_sums();
  const auto as = [&](auto products) {
    if (a.x_zero && a.cuts > 1) {
      const auto sums = reinterpret_cast<int32_t*>(static_cast<uint8_t*>(p.workspace) + bytes_workspace(p, device));
      if (const lowbit_status status = sum_segments<decltype(products)::bits>(a, sums, p.stream)) return status;
      a.column_sums = sums;
    }
    return launch(products, a);
  };
  switch (p.w.format->bits) {
    case 2:
      return as(integer_products<2>());
    case 4:
      return as(integer_products<4>());
    default:
      return as(integer_products<8>());
  }
}

template <int NT>
constexpr kernel_row skinny(const char* name) {
  using T = bytes_skinny<integer_products<8>, NT>;
  return {name,
          LOWBIT_INTEGER,
          80,
          999,
          all_recipes,
          bit(LOWBIT_I8),
          T::x_rows,
          T::w_rows,
          step_columns,
          true,
          [](const gemm_problem& p, const device_info& device) {
            const char* reason = integer_refusal(p);
            return reason ? reason : skinny_refusal<integer_products<8>, NT>(p, device, integer_segment);
          },
          workspace,
          [](const gemm_problem& p, const device_info& device) {
            return run(p, device, [&](auto products, const byte_arguments& a) {
              return run_skinny<decltype(products), NT>(a, device, p.stream);
            });
          }};
}

template <int NT, segments S>
constexpr kernel_row tiled(const char* name) {
  using T = bytes_tile<integer_products<8>, NT>;
  return {name,
          LOWBIT_INTEGER,
          80,
          999,
          all_recipes,
          bit(LOWBIT_I8),
          T::x_rows,
          T::w_rows,
          step_columns,
          true,
          [](const gemm_problem& p, const device_info& device) {
            const char* reason = integer_refusal(p);
            return reason ? reason : tiled_refusal<integer_products<8>, NT, S>(p, device, integer_segment);
          },
          workspace,
          [](const gemm_problem& p, const device_info& device) {
            return run(p, device, [&](auto products, const byte_arguments& a) {
              return run_tiled<decltype(products), NT, S>(a, p.stream);
            });
          }};
}

}  // namespace

extern const kernel_row integer_rows[] = {
    skinny<1>("integer_s8_sm80_8x32"),
    skinny<2>("integer_s8_sm80_16x32"),
    skinny<4>("integer_s8_sm80_32x32"),
    tiled<4, segments::one>("integer_s8_sm80_128x128"),
    tiled<3, segments::whole_steps>("integer_s8_sm80_96x128"),
    tiled<2, segments::any>("integer_s8_sm80_64x128"),
};
extern const int num_integer_rows = sizeof integer_rows / sizeof integer_rows[0];

}  // namespace lowbit::cuda::sm80
