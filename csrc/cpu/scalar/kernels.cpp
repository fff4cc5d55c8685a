// The plain reference of every family: the contract's equations, written down. It stays, and tests lean on it.
#include "gemm/contract.h"

namespace lowbit::cpu::scalar {
namespace {

void store(const gemm_problem& p, int64_t m, int64_t n, float sum, float factor) {
  const epilogue_terms& e = p.epilogue;
  const float value = apply(e.function, std::fma(sum, factor, p.bias_at(n)));
  const float other = e.combination ? load_as_f32(e.other, m * e.other_stride + n, e.other_dtype) : 0.0f;
  store_from_f32(p.y, m * p.y_stride + n, p.y_dtype, combine(e.combination, value, other));
}

lowbit_status weight_only(const gemm_problem& p) {
  const packed_shape& s = p.w.shape;
  parallel_for(p.parallel, s.n, [&](int64_t begin, int64_t end) {
    for (int64_t n = begin; n < end; ++n) {
      for (int64_t m = 0; m < p.m; ++m) {
        float sum = 0;
        for (int64_t k = 0; k < s.k; ++k)
          sum = std::fma(load_as_f32(p.x, m * p.x_stride + k, p.x_dtype), p.w.value(n, s.column(k)), sum);
        store(p, m, n, sum, p.w.global_scale);
      }
    }
  });
  return LOWBIT_OK;
}

lowbit_status integer(const gemm_problem& p) {
  const packed_shape& s = p.w.shape;
  int8_t* q = static_cast<int8_t*>(scratch(scratch_slot::activations, static_cast<size_t>(s.k)));
  if (!q) return fail(LOWBIT_OUT_OF_MEMORY, "no memory for a row of %lld", static_cast<long long>(s.k));
  for (int64_t m = 0; m < p.m; ++m) {
    const row_quantization given = p.activation == LOWBIT_STATIC ? p.given_quantization(m) : row_quantization{};
    const row_quantization r = quantize_row(p.x, p.x_dtype, m * p.x_stride, s.k, p.activation, given, q);
    parallel_for(p.parallel, s.n, [&](int64_t begin, int64_t end) {
      for (int64_t n = begin; n < end; ++n) {
        float y = 0;
        for (int64_t g = 0; g < s.groups; ++g) {
          const int64_t group_end = (g + 1) * s.group_k < s.k ? (g + 1) * s.group_k : s.k;
          const int zero = static_cast<int>(p.w.zero_point(n, g));
          for (int64_t first = g * s.group_k; first < group_end; first += integer_segment) {
            const int64_t last = first + integer_segment < group_end ? first + integer_segment : group_end;
            int32_t sum = 0;
            for (int64_t k = first; k < last; ++k)
              sum += (q[k] - r.zero_point) * (static_cast<int>(p.w.format->values[p.w.code(n, s.column(k))]) - zero);
            y = std::fma(static_cast<float>(sum), p.w.scale(n, g), y);
          }
        }
        store(p, m, n, y, r.scale);
      }
    });
  }
  return LOWBIT_OK;
}

}  // namespace

extern const kernel_row kernels[] = {
    {"weight_only_f32_scalar_1x1", LOWBIT_WEIGHT_ONLY, "", all_recipes | every_scale_rule, float_dtypes, 1, 1, 1, true,
     weight_only},
    {"integer_scalar_1x1", LOWBIT_INTEGER, "", integer_recipes | two_levels, float_dtypes | bit(LOWBIT_I8), 1, 1, 1,
     true, integer},
};
extern const int num_kernels = sizeof kernels / sizeof kernels[0];

}  // namespace lowbit::cpu::scalar
