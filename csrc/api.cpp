// The C API: checks everything once, here at the edge, and hands kernels a problem they can trust.
#include "dispatch/cpu.h"
#include "gemm/contract.h"
#include "layout/packed.h"
#include "lowbit/lowbit.h"

#ifndef LOWBIT_VERSION
#define LOWBIT_VERSION "unversioned"
#endif

using namespace lowbit;

namespace {

lowbit_status bad_format(lowbit_format format) {
  return fail(LOWBIT_INVALID_VALUE, "format %d: there are %d", format, num_formats());
}

lowbit_status check_activations(const gemm_problem& p, lowbit_family family) {
  if (p.m < 0) return fail(LOWBIT_INVALID_VALUE, "m is %lld: it cannot be negative", static_cast<long long>(p.m));
  if (p.x_stride < p.w.shape.k && p.m > 1)
    return fail(LOWBIT_INVALID_VALUE, "rows of x are %lld elements apart: a row has %lld",
                static_cast<long long>(p.x_stride), static_cast<long long>(p.w.shape.k));
  if (p.y_stride < p.w.shape.n && p.m > 1)
    return fail(LOWBIT_INVALID_VALUE, "rows of y are %lld elements apart: a row has %lld",
                static_cast<long long>(p.y_stride), static_cast<long long>(p.w.shape.n));
  const bool quantized = family == LOWBIT_INTEGER && p.activation == LOWBIT_STATIC && p.x_dtype == LOWBIT_I8;
  if (!quantized && !is_float_dtype(p.x_dtype))
    return fail(LOWBIT_INVALID_TYPE, "x is %s: float32, float16 or bfloat16%s", dtype_name(p.x_dtype),
                family == LOWBIT_INTEGER ? ", or int8 with its scales" : "");
  if (!is_float_dtype(p.y_dtype))
    return fail(LOWBIT_INVALID_TYPE, "y is %s: float32, float16 or bfloat16", dtype_name(p.y_dtype));
  if (p.bias && !is_float_dtype(p.bias_dtype))
    return fail(LOWBIT_INVALID_TYPE, "bias is %s: float32, float16 or bfloat16", dtype_name(p.bias_dtype));
  return LOWBIT_OK;
}

lowbit_status check_static_scales(const gemm_problem& p) {
  if (p.num_x_scales != 1 && p.num_x_scales != p.m)
    return fail(LOWBIT_INVALID_VALUE, "%lld activation scales for %lld rows: 1 or one for each row",
                static_cast<long long>(p.num_x_scales), static_cast<long long>(p.m));
  for (int64_t i = 0; i < p.num_x_scales; ++i) {
    if (!(p.x_scale[i] > 0) || !std::isfinite(p.x_scale[i]))
      return fail(LOWBIT_INVALID_VALUE, "activation scale %lld is %g: it must be positive and finite",
                  static_cast<long long>(i), static_cast<double>(p.x_scale[i]));
    if (p.x_zero_point && (p.x_zero_point[i] < -128 || p.x_zero_point[i] > 127))
      return fail(LOWBIT_INVALID_VALUE, "activation zero point %lld is %d: -128 to 127", static_cast<long long>(i),
                  p.x_zero_point[i]);
  }
  return LOWBIT_OK;
}

// Waking a pool takes 5 to 20 us: not worth it for less than about 10 us of one core.
bool worth_threads(const gemm_problem& p) {
  constexpr int64_t decoding = 4;  // decoding a weight costs about as much as multiplying it by 4 rows of x
  return (p.m + decoding) * p.w.shape.n >= (int64_t{1} << 21) / p.w.shape.k;
}

lowbit_problem problem_of(const gemm_problem& p, lowbit_family family) {
  return {family,
          find_format(p.w.format->name),
          p.m,
          p.w.shape.n,
          p.w.shape.k,
          p.w.shape.group_k,
          static_cast<lowbit_dtype>(p.x_dtype)};
}

}  // namespace

const char* lowbit_last_error(void) { return last_error(); }
const char* lowbit_version(void) { return LOWBIT_VERSION; }

// ---- formats ----

int32_t lowbit_num_formats(void) { return num_formats(); }

lowbit_status lowbit_format_get(lowbit_format format, lowbit_format_info* info) {
  if (format < 0 || format >= num_formats()) return bad_format(format);
  const format_row& f = format_at(format);
  *info = {f.name, f.bits, f.block_n, f.block_k, static_cast<int32_t>(f.scale), f.zero_point, f.global_scale, f.values};
  return LOWBIT_OK;
}

lowbit_status lowbit_format_find(const char* name, lowbit_format* format) {
  const int found = find_format(name);
  if (found < 0) return fail(LOWBIT_INVALID_VALUE, "there is no format '%s'", name);
  *format = found;
  return LOWBIT_OK;
}

// ---- weights ----

lowbit_status lowbit_packed_bytes(const lowbit_weight* weight, size_t* bytes) { return packed_bytes(*weight, bytes); }

lowbit_status lowbit_pack(const lowbit_weight* weight, void* packed, size_t bytes, const lowbit_parallel* parallel) {
  return pack(*weight, packed, bytes, parallel);
}

lowbit_status lowbit_packed_describe(const void* packed, size_t bytes, lowbit_weight* weight) {
  packed_view v;
  if (const lowbit_status status = view_packed(packed, bytes, &v)) return status;
  *weight = {find_format(v.format->name),
             v.shape.n,
             v.shape.k,
             v.shape.group_n,
             v.shape.group_k,
             nullptr,
             nullptr,
             static_cast<lowbit_dtype>(v.scale_dtype),
             v.zero_points,
             v.global_scale};
  return LOWBIT_OK;
}

lowbit_status lowbit_unpack(const void* packed, size_t bytes, void* codes, void* scales, int8_t* zero_points,
                            const lowbit_parallel* parallel) {
  return unpack(packed, bytes, codes, scales, zero_points, parallel);
}

lowbit_status lowbit_dequantize_packed(const void* packed, size_t bytes, void* out, lowbit_dtype dtype,
                                       const lowbit_parallel* parallel) {
  return dequantize_packed(packed, bytes, out, dtype, parallel);
}

lowbit_status lowbit_dequantize(const lowbit_weight* weight, void* out, lowbit_dtype dtype,
                                const lowbit_parallel* parallel) {
  return dequantize(*weight, out, dtype, parallel);
}

lowbit_status lowbit_encode(const lowbit_encode_args* args, const lowbit_parallel* parallel) {
  return encode(*args, parallel);
}

// ---- multiplication ----

lowbit_status lowbit_gemm(const lowbit_gemm_args* a) {
  gemm_problem p{};
  if (const lowbit_status status = view_packed(a->packed, a->packed_bytes, &p.w)) return status;
  p.m = a->m;
  p.x = a->x;
  p.x_dtype = a->x_dtype;
  p.x_stride = a->x_stride;
  p.bias = a->bias;
  p.bias_dtype = a->bias_dtype;
  p.y = a->y;
  p.y_dtype = a->y_dtype;
  p.y_stride = a->y_stride;
  p.activation = a->activation;
  p.x_scale = a->x_scale;
  p.x_zero_point = a->x_zero_point;
  p.num_x_scales = a->num_x_scales;
  p.parallel = a->parallel;
  if (const lowbit_status status = check_activations(p, a->family)) return status;
  if (a->family == LOWBIT_INTEGER) {
    if (!p.w.format->integer())
      return fail(LOWBIT_INVALID_VALUE, "%s weights have no integer product: only int4 and int8 do", p.w.format->name);
    if (p.activation < LOWBIT_DYNAMIC_SYMMETRIC || p.activation > LOWBIT_STATIC)
      return fail(LOWBIT_INVALID_VALUE, "activation %d: dynamic symmetric, dynamic asymmetric or static (0 to 2)",
                  p.activation);
    if (p.activation == LOWBIT_STATIC)
      if (const lowbit_status status = check_static_scales(p)) return status;
  }
  if (p.m == 0) return LOWBIT_OK;
  if (!worth_threads(p)) p.parallel = nullptr;
  const lowbit_problem problem = problem_of(p, a->family);
  const kernel_row* kernel = select_kernel(problem);
  if (!kernel)
    return fail(LOWBIT_UNSUPPORTED, "no kernel multiplies %s activations by %s weights here", dtype_name(p.x_dtype),
                p.w.format->name);
  return kernel->run(p);
}

lowbit_status lowbit_quantize_rows(const void* x, lowbit_dtype dtype, int64_t m, int64_t k, int64_t stride,
                                   lowbit_activation activation, int8_t* q, float* scale, int32_t* zero_point,
                                   const lowbit_parallel* parallel) {
  if (!is_float_dtype(dtype))
    return fail(LOWBIT_INVALID_TYPE, "x is %s: float32, float16 or bfloat16", dtype_name(dtype));
  if (m < 0 || k < 1 || (m > 1 && stride < k))
    return fail(LOWBIT_INVALID_VALUE, "x is %lld x %lld with rows %lld elements apart: m >= 0, k >= 1, stride >= k",
                static_cast<long long>(m), static_cast<long long>(k), static_cast<long long>(stride));
  if (activation != LOWBIT_DYNAMIC_SYMMETRIC && activation != LOWBIT_DYNAMIC_ASYMMETRIC)
    return fail(LOWBIT_INVALID_VALUE, "activation %d: rows are quantized dynamically, symmetric or not", activation);
  parallel_for(parallel, m, [&](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; ++i) {
      const row_quantization r = quantize_row(x, dtype, i * stride, k, activation, {}, q + i * k);
      scale[i] = r.scale;
      zero_point[i] = r.zero_point;
    }
  });
  return LOWBIT_OK;
}

// ---- what is here ----

namespace {

template <class Visit>
void for_each_kernel(const Visit& visit) {
  int32_t index = 0;
  for (int isa = 0; isa < num_cpu_isas(); ++isa)
    for (int i = 0; i < cpu_isa_at(isa).num_kernels; ++i) visit(index++, isa, cpu_isa_at(isa).kernels[i]);
}

}  // namespace

int32_t lowbit_num_kernels(void) {
  int32_t count = 0;
  for_each_kernel([&](int32_t, int, const kernel_row&) { ++count; });
  return count;
}

lowbit_status lowbit_kernel_get(int32_t index, lowbit_kernel_info* info) {
  bool found = false;
  for_each_kernel([&](int32_t i, int isa, const kernel_row& row) {
    if (i != index) return;
    const bool runnable = isa <= current_cpu_isa() && cpu_isa_supported(isa) && cpu_has(row.features);
    *info = {row.name, cpu_isa_at(isa).name, row.family, row.mr, row.nr, row.kr, row.batch_invariant, runnable};
    found = true;
  });
  return found ? LOWBIT_OK : fail(LOWBIT_INVALID_VALUE, "kernel %d: there are %d", index, lowbit_num_kernels());
}

lowbit_status lowbit_explain(const lowbit_problem* problem,
                             void (*visit)(void* context, int32_t kernel, int32_t chosen, const char* reason),
                             void* context) {
  if (problem->format < 0 || problem->format >= num_formats()) return bad_format(problem->format);
  const kernel_row* chosen = select_kernel(*problem);
  int32_t first = lowbit_num_kernels();
  for (int isa = num_cpu_isas() - 1; isa >= 0; --isa) {  // best first, as select_kernel walks
    const cpu_isa& level = cpu_isa_at(isa);
    first -= level.num_kernels;
    for (int i = 0; i < level.num_kernels; ++i) {
      const kernel_row& row = level.kernels[i];
      if (row.family != problem->family) continue;
      const char* reason = refusal(isa, row, *problem);
      visit(context, first + i, &row == chosen, &row == chosen ? "" : reason ? reason : "a better one runs");
    }
  }
  return LOWBIT_OK;
}

int32_t lowbit_num_cpu_isas(void) { return num_cpu_isas(); }
const char* lowbit_cpu_isa_name(int32_t isa) { return isa >= 0 && isa < num_cpu_isas() ? cpu_isa_at(isa).name : ""; }
int32_t lowbit_cpu_isa_supported(int32_t isa) { return isa >= 0 && isa < num_cpu_isas() && cpu_isa_supported(isa); }
int32_t lowbit_cpu_isa(void) { return current_cpu_isa(); }
lowbit_status lowbit_set_cpu_isa(int32_t isa) { return set_cpu_isa(isa); }
const char* lowbit_cpu_features(void) { return cpu_feature_list(); }
