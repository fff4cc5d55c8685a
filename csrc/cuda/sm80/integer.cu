// integer: s8 x s8 in exact int32 (mma.sync m16n8k32), W8A8, W4A8 and W2A8 with any scales and zero points.
#include "cuda/generic/bytes_rows.h"

namespace lowbit::cuda::sm80 {
namespace {

const char* integer_refusal(const gemm_problem& p) {
  const int bits = p.w.format->bits;
  if (!p.w.format->integer() || (bits != 2 && bits != 4 && bits != 8)) return "codes are not int2, int4 or int8";
  const int64_t group = p.w.shape.groups == 1 ? p.w.shape.k : p.w.shape.group_k;
  if (p.x_zero_point && group > integer_segment)
    return "x has zero points and a group of W more than 32768 columns: their column sums are not packed";
  return nullptr;
}

byte_arguments arguments(const gemm_problem& p) {
  byte_arguments a = make_byte_arguments(p, integer_segment);
  a.w_zero = p.w.zero_points();
  a.x_zero = p.x_zero_point;
  a.x_zero_row = p.num_x_scales == 1 ? 0 : 1;
  a.column_sums = p.w.column_sums();
  return a;
}

// launch(products of W's bits, arguments)
template <class Launch>
lowbit_status run(const gemm_problem& p, const Launch& launch) {
  if (const lowbit_status status = arrange(p.w.shape, p.x, p.m, p.x_stride, p.workspace, p.stream)) return status;
  const byte_arguments a = arguments(p);
  switch (p.w.format->bits) {
    case 2:
      return launch(integer_products<2>(), a);
    case 4:
      return launch(integer_products<4>(), a);
    default:
      return launch(integer_products<8>(), a);
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
          bytes_workspace,
          [](const gemm_problem& p, const device_info& device) {
            return run(p, [&](auto products, const byte_arguments& a) {
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
          bytes_workspace,
          [](const gemm_problem& p, const device_info&) {
            return run(p, [&](auto products, const byte_arguments& a) {
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
