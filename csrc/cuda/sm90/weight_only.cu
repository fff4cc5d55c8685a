// weight_only on sm_90: bf16 and fp16 x by int2, int4, int8, fp8, e2m1 and any table of 16.
#include "cuda/sm90/weight_only.h"

#include "cuda/generic/codes.h"
#include "cuda/sm90/host.h"

namespace lowbit::cuda::sm90 {
namespace {

// A shape of tile for any type of x and codes. `Stages` of the widest codes fit; 2-bit stages are twice as deep.
template <int Consumers, int Columns, int Stages, int TwoBitStages, int Cluster, schedule Schedule>
struct shape {
  template <class X, class Codes>
  using tile =
      weight_only_tile<X, Codes, Consumers, Columns, Codes::bits == 2 ? TwoBitStages : Stages, Cluster, Schedule>;
  using any = tile<bf16_t, int4_to_bf16>;
};

// Decoding costs a small tile the most: one warpgroup for each slice of K. Sums of a slice and of all of K take a tile
// of 128 rows of x 128 registers, and leave none for a wider one.
using rows_16 = shape<k_slices, 16, 4, 4, 1, schedule::slices>;
using rows_64 = shape<k_slices, 64, 2, 2, 1, schedule::slices>;
using rows_128 = shape<2, 128, 6, 3, 2, schedule::together>;

template <class T>
lowbit_status start(const gemm_problem& p, const device_info& device) {
  using X = typename T::x_type;
  const format_row& f = *p.w.format;
  const power_debt debt = debt_of<X>(f, p.w.shape.groups > 1);
  weight_only_arguments a{};
  if (const lowbit_status status = make_operands<T>(p, &a.in)) return status;
  a.out = make_outputs(p);
  a.out.factor = ldexp2(1, debt.all - debt.in_scale);
  if (p.w.shape.groups == 1) {
    a.out.row_scale = p.w.scales();
    a.out.row_scale_dtype = p.w.scale_dtype;
  }
  a.constants = decode_constants_of<X>(f);
  a.scale_dtype = p.w.scale_dtype;
  for (int h = 0; h < 2; ++h) a.scale_factor[h] = ldexp2(1, debt.in_scale) / unit_of<typename T::codes>(h);
  a.bias = T::codes::template bias<X>;
  if (T::codes::bits < 8) a.bias += static_cast<float>(f.integer_offset);
  a.zero_points = p.w.zero_points();
  return launch<weight_only_kernel<T>>(shape_of_launch<T>(a.in, p, device), a);
}

template <class Shape>
lowbit_status run(const gemm_problem& p, const device_info& device) {
  const auto as = [&]<class X>(X) {
    switch (kind_of(*p.w.format)) {
      case code_kind::int2:
        if constexpr (Shape::any::columns < 128)
          return start<typename Shape::template tile<X, integer_codes<2>>>(p, device);
        else
          return LOWBIT_UNSUPPORTED;  // refused
      case code_kind::int4:
        if constexpr (is_bf16<X>)
          return start<typename Shape::template tile<X, int4_to_bf16>>(p, device);
        else
          return start<typename Shape::template tile<X, integer_codes<4>>>(p, device);
      case code_kind::int8:
        return start<typename Shape::template tile<X, int8_codes>>(p, device);
      case code_kind::minifloat:
        return start<typename Shape::template tile<X, minifloat_codes>>(p, device);
      case code_kind::e2m1:
        return start<typename Shape::template tile<X, e2m1_codes>>(p, device);
      default:
        return start<typename Shape::template tile<X, table_codes>>(p, device);
    }
  };
  return p.x_dtype == LOWBIT_BF16 ? as(bf16_t{}) : as(f16_t{});
}

const char* codes_refusal(const gemm_problem& p) {
  const format_row& f = *p.w.format;
  if (f.minimum || f.two_levels()) return "the format has minima or scales of two levels";
  if (kind_of(f) == code_kind::none) return "no decoder takes the format's codes";
  const int scales = p.w.scale_dtype;
  if (p.x_dtype == LOWBIT_F16 && p.w.shape.groups > 1 && scales != LOWBIT_F16 && scales != LOWBIT_E4M3)
    return "fp16 does not hold every weight with scales of this type";
  return nullptr;
}

template <class Shape>
const char* refuses(const gemm_problem& p, const device_info& device) {
  if (const char* reason = codes_refusal(p)) return reason;
  if (kind_of(*p.w.format) == code_kind::int2) {
    if constexpr (Shape::any::columns >= 128)
      return "two stages' fragments of 2-bit codes and the sums need more registers";
    return model_refusal<typename Shape::any, rows_16::any, rows_64::any>(p, device);
  }
  return model_refusal<typename Shape::any, rows_16::any, rows_64::any, rows_128::any>(p, device);
}

template <class Shape>
constexpr kernel_row row(const char* name) {
  using T = typename Shape::any;
  return {name,       LOWBIT_WEIGHT_ONLY, 90,         90,   all_recipes,    bit(LOWBIT_F16) | bit(LOWBIT_BF16),
          T::columns, T::strips * 64,     T::stage_k, true, refuses<Shape>, gather_workspace<2>,
          run<Shape>};
}

}  // namespace

extern const kernel_row weight_only_rows[] = {
    row<rows_16>("weight_only_wgmma_sm90_16x64"),
    row<rows_64>("weight_only_wgmma_sm90_64x64"),
    row<rows_128>("weight_only_wgmma_sm90_128x128"),
};
extern const int num_weight_only_rows = sizeof weight_only_rows / sizeof weight_only_rows[0];

}  // namespace lowbit::cuda::sm90
