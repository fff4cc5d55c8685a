// fp8: e4m3 x e4m3 (mma.sync m16n8k32), scales by tensor, row or channel, or by 1 x 128 of x and 128 x 128 of W.
//
// The tensor core's sums have fewer bits than fp32 (14 behind the point on sm_89 and sm_90): they are promoted to fp32
// every 128 columns, `fast` every 512, so that no sum depends on how many rows x has. 9.0 and 10.0 have no such
// instruction in mma.sync: there it is two fp16 products, whose sums are fp32.
#include "cuda/generic/bytes_rows.h"

namespace lowbit::cuda::sm89 {
namespace {

int64_t segment(const gemm_problem& p) {
  return p.accumulate == accumulation::fast && !p.x_group && p.w.shape.groups == 1 ? 4 * step_columns : step_columns;
}

const char* fp8_refusal(const gemm_problem& p) {
  if (p.w.format->bits != 8 || p.w.format->fp16_shift != 7) return "codes are not e4m3";
  if (p.w.shape.groups > 1 && p.w.shape.group_k % step_columns != 0) return "scales of W change inside 128 columns";
  if (p.x_group != 0 && p.x_group != step_columns) return "scales of x are not for 128 columns";
  return nullptr;
}

lowbit_status prepare(const gemm_problem& p, byte_arguments* a) {
  *a = make_byte_arguments(p, segment(p));
  return arrange(p.w.shape, p.x, p.m, p.x_stride, p.workspace, p.stream);
}

template <int NT>
constexpr kernel_row skinny(const char* name) {
  using T = bytes_skinny<fp8_products, NT>;
  return {name,
          LOWBIT_FP8,
          89,
          999,
          bit(recipe::minifloat),
          bit(LOWBIT_E4M3),
          T::x_rows,
          T::w_rows,
          step_columns,
          true,
          [](const gemm_problem& p, const device_info& device) {
            const char* reason = fp8_refusal(p);
            return reason ? reason : skinny_refusal<fp8_products, NT>(p, device, segment(p));
          },
          bytes_workspace,
          [](const gemm_problem& p, const device_info& device) {
            byte_arguments a;
            const lowbit_status status = prepare(p, &a);
            return status ? status : run_skinny<fp8_products, NT>(a, device, p.stream);
          }};
}

template <int NT, segments S>
constexpr kernel_row tiled(const char* name) {
  using T = bytes_tile<fp8_products, NT>;
  return {name,
          LOWBIT_FP8,
          89,
          999,
          bit(recipe::minifloat),
          bit(LOWBIT_E4M3),
          T::x_rows,
          T::w_rows,
          step_columns,
          true,
          [](const gemm_problem& p, const device_info& device) {
            const char* reason = fp8_refusal(p);
            return reason ? reason : tiled_refusal<fp8_products, NT, S>(p, device, segment(p));
          },
          bytes_workspace,
          [](const gemm_problem& p, const device_info&) {
            byte_arguments a;
            const lowbit_status status = prepare(p, &a);
            return status ? status : run_tiled<fp8_products, NT, S>(a, p.stream);
          }};
}

}  // namespace

extern const kernel_row fp8_rows[] = {
    skinny<1>("fp8_e4m3_sm89_8x32"),
    skinny<2>("fp8_e4m3_sm89_16x32"),
    skinny<4>("fp8_e4m3_sm89_32x32"),
    tiled<2, segments::whole_steps>("fp8_e4m3_sm89_64x128"),
};
extern const int num_fp8_rows = sizeof fp8_rows / sizeof fp8_rows[0];

}  // namespace lowbit::cuda::sm89
