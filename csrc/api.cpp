// The C API on the host: checks everything once, here at the edge, and hands kernels a problem they can trust.
#include "api.h"

#include <cstring>

#include "dispatch/cpu.h"
#include "gemm/contract.h"
#include "layout/canonical.h"
#include "layout/description.h"
#include "layout/fragments.h"
#include "layout/packed.h"

#ifndef LOWBIT_VERSION
#define LOWBIT_VERSION "unversioned"
#endif

using namespace lowbit;

namespace lowbit::api {

lowbit_status bad_format(lowbit_format format) {
  return fail(LOWBIT_INVALID_VALUE, "format %d: there are %d", format, num_formats());
}

namespace {

lowbit_status check_epilogue(const lowbit_gemm_args& a, int64_t n) {
  if (a.function < LOWBIT_IDENTITY || a.function > LOWBIT_RELU)
    return fail(LOWBIT_INVALID_VALUE, "function %d: identity, silu, gelu, gelu_tanh or relu (0 to 4)", a.function);
  if (a.combination < LOWBIT_ALONE || a.combination > LOWBIT_MULTIPLY)
    return fail(LOWBIT_INVALID_VALUE, "combination %d: alone, add or multiply (0 to 2)", a.combination);
  if (a.combination == LOWBIT_ALONE) {
    if (a.other) return fail(LOWBIT_INVALID_VALUE, "other is given: say whether to add it or to multiply by it");
    return LOWBIT_OK;
  }
  if (!is_float_dtype(a.other_dtype))
    return fail(LOWBIT_INVALID_TYPE, "other is %s: float32, float16 or bfloat16", dtype_name(a.other_dtype));
  if (a.other_stride < n && a.m > 1)
    return fail(LOWBIT_INVALID_VALUE, "rows of other are %lld elements apart: a row has %lld",
                static_cast<long long>(a.other_stride), static_cast<long long>(n));
  return LOWBIT_OK;
}

// Whether some element of other shares bytes with another one of y.
bool overlap(const lowbit_gemm_args& a, int64_t n) {
  const int64_t y_size = dtype_bytes(a.y_dtype), other_size = dtype_bytes(a.other_dtype);
  const int64_t y_row = a.y_stride * y_size, other_row = a.other_stride * other_size;
  const bool same_rows = a.m == 1 || y_row == other_row;
  if (a.other == a.y && y_size == other_size && same_rows) return false;
  const int64_t distance = static_cast<int64_t>(reinterpret_cast<uintptr_t>(a.other)) -
                           static_cast<int64_t>(reinterpret_cast<uintptr_t>(a.y));
  if (distance >= (a.m - 1) * y_row + n * y_size || -distance >= (a.m - 1) * other_row + n * other_size) return false;
  if (a.m == 1 || !same_rows) return true;
  const int64_t across = (distance % y_row + y_row) % y_row;  // columns of one matrix, side by side, do not
  return across < n * y_size || across + n * other_size > y_row;
}

}  // namespace

lowbit_status check_other(const lowbit_gemm_args& a, int64_t n) {
  if (a.combination == LOWBIT_ALONE || a.m == 0) return LOWBIT_OK;
  if (!a.other) return fail(LOWBIT_INVALID_VALUE, "other is NULL: combination %d needs it", a.combination);
  if (overlap(a, n))
    return fail(LOWBIT_INVALID_VALUE,
                "other at %p overlaps y at %p (%lld rows of %lld, %lld and %lld elements apart): it must be y, element "
                "for element, or share nothing with it",
                a.other, a.y, static_cast<long long>(a.m), static_cast<long long>(n),
                static_cast<long long>(a.other_stride), static_cast<long long>(a.y_stride));
  return LOWBIT_OK;
}

lowbit_status check_gemm(const lowbit_gemm_args& a, const format_row& format, int64_t n, int64_t k) {
  if (a.family < LOWBIT_WEIGHT_ONLY || a.family > LOWBIT_FP8)
    return fail(LOWBIT_INVALID_VALUE, "family %d: weight_only, integer or fp8 (0 to 2)", a.family);
  if (a.m < 0) return fail(LOWBIT_INVALID_VALUE, "m is %lld: it cannot be negative", static_cast<long long>(a.m));
  if (a.x_stride < k && a.m > 1)
    return fail(LOWBIT_INVALID_VALUE, "rows of x are %lld elements apart: a row has %lld",
                static_cast<long long>(a.x_stride), static_cast<long long>(k));
  if (a.y_stride < n && a.m > 1)
    return fail(LOWBIT_INVALID_VALUE, "rows of y are %lld elements apart: a row has %lld",
                static_cast<long long>(a.y_stride), static_cast<long long>(n));
  const bool given = a.activation == LOWBIT_STATIC;
  const bool quantized = given && ((a.family == LOWBIT_INTEGER && a.x_dtype == LOWBIT_I8) ||
                                   (a.family == LOWBIT_FP8 && a.x_dtype == LOWBIT_E4M3));
  if (!quantized && !is_float_dtype(a.x_dtype))
    return fail(LOWBIT_INVALID_TYPE, "x is %s: float32, float16 or bfloat16%s", dtype_name(a.x_dtype),
                a.family == LOWBIT_INTEGER ? ", or int8 with its scales"
                : a.family == LOWBIT_FP8   ? ", or float8_e4m3fn with its scales"
                                           : "");
  if (!is_float_dtype(a.y_dtype))
    return fail(LOWBIT_INVALID_TYPE, "y is %s: float32, float16 or bfloat16", dtype_name(a.y_dtype));
  if (a.bias && !is_float_dtype(a.bias_dtype))
    return fail(LOWBIT_INVALID_TYPE, "bias is %s: float32, float16 or bfloat16", dtype_name(a.bias_dtype));
  if (const lowbit_status status = check_epilogue(a, n)) return status;
  if (a.family == LOWBIT_WEIGHT_ONLY) return LOWBIT_OK;
  if (a.family == LOWBIT_INTEGER && !format.integer())
    return fail(LOWBIT_INVALID_VALUE, "%s weights have no integer product: those of integer formats do", format.name);
  if (a.activation < LOWBIT_DYNAMIC_SYMMETRIC || a.activation > LOWBIT_STATIC)
    return fail(LOWBIT_INVALID_VALUE, "activation %d: dynamic symmetric, dynamic asymmetric or static (0 to 2)",
                a.activation);
  if (a.family == LOWBIT_FP8 && (a.activation == LOWBIT_DYNAMIC_ASYMMETRIC || a.x_zero_point))
    return fail(LOWBIT_INVALID_VALUE, "fp8 activations have no zero points");
  if (a.x_group != 0 && (a.family != LOWBIT_FP8 || a.x_group != 128))
    return fail(LOWBIT_INVALID_VALUE, "x_group is %lld: 0, or 128 with the fp8 family",
                static_cast<long long>(a.x_group));
  if (!given) return LOWBIT_OK;
  const int64_t groups = a.x_group ? ceil_div(k, a.x_group) : 1;
  if (a.num_x_scales != a.m * groups && (a.num_x_scales != 1 || a.x_group))
    return fail(LOWBIT_INVALID_VALUE, "%lld activation scales for %lld rows: %s%lld",
                static_cast<long long>(a.num_x_scales), static_cast<long long>(a.m),
                a.x_group ? "" : "1 or one for each row, ", static_cast<long long>(a.m * groups));
  return LOWBIT_OK;
}

}  // namespace lowbit::api

namespace {

lowbit_status check_static_scales(const gemm_problem& p) {
  if (!p.x_scale && p.num_x_scales) return fail(LOWBIT_INVALID_VALUE, "x_scale is NULL: static activations need it");
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

lowbit_status check_device(lowbit_device device, const char* what) {
  if (device == LOWBIT_CPU || device == LOWBIT_CUDA) return LOWBIT_OK;
  return fail(LOWBIT_INVALID_VALUE, "%s is %d: LOWBIT_CPU or LOWBIT_CUDA (0 or 1)", what, device);
}

lowbit_status check_activation_format(lowbit_activation_format format) {
  if (format >= 0 && format < num_activation_formats) return LOWBIT_OK;
  return fail(LOWBIT_INVALID_VALUE, "activation format %d: there are %d", format, num_activation_formats);
}

template <class View>
lowbit_weight description_of(const View& v, lowbit_device packed_for) {
  lowbit_weight w{};
  w.format = index_of(*v.format);
  w.n = v.shape.n;
  w.k = v.shape.k;
  w.group_n = v.shape.group_n;
  w.group_k = v.shape.group_k;
  w.scale_dtype = static_cast<lowbit_dtype>(v.scale_dtype);
  w.zero_points = v.zero_points;
  w.global_scale = v.global_scale;
  w.scale_offset = v.scale_offset;
  w.packed_for = packed_for;
  return w;
}

// Waking a pool takes 5 to 20 us: not worth it for less than about 10 us of one core.
bool worth_threads(const gemm_problem& p, lowbit_family family) {
  constexpr int64_t decoding = 4;  // decoding a weight costs about as much as multiplying it by 4 rows of x
  const int64_t enough = family == LOWBIT_INTEGER ? int64_t{1} << 21 : int64_t{1} << 20;
  return (p.m + decoding) * p.w.shape.n >= enough / p.w.shape.k;
}

lowbit_problem problem_of(const gemm_problem& p, lowbit_family family) {
  lowbit_problem problem{};
  problem.family = family;
  problem.format = index_of(*p.w.format);
  problem.m = p.m;
  problem.n = p.w.shape.n;
  problem.k = p.w.shape.k;
  problem.group_k = p.w.shape.group_k;
  problem.x_dtype = static_cast<lowbit_dtype>(p.x_dtype);
  return problem;
}

}  // namespace

const char* lowbit_last_error(void) { return last_error(); }
const char* lowbit_version(void) { return LOWBIT_VERSION; }

// ---- formats ----

int32_t lowbit_num_formats(void) { return num_formats(); }

lowbit_status lowbit_format_get(lowbit_format format, lowbit_format_info* info) {
  if (format < 0 || format >= num_formats()) return api::bad_format(format);
  const format_row& f = format_at(format);
  *info = {f.name,       f.bits,         f.block_n,       f.block_k,      static_cast<int32_t>(f.scale),
           f.zero_point, f.global_scale, f.values,        f.integer(),    f.signed_scales(),
           f.minimum,    f.super_groups, f.super_dtype(), f.super_flat(), f.scale_values};
  return LOWBIT_OK;
}

lowbit_status lowbit_format_find(const char* name, lowbit_format* format) {
  const int found = find_format(name);
  if (found < 0) return fail(LOWBIT_INVALID_VALUE, "there is no format '%s'", name);
  *format = found;
  return LOWBIT_OK;
}

// ---- weights ----

lowbit_status lowbit_weight_shapes(const lowbit_weight* weight, lowbit_array_shapes* shapes) {
  return weight_shapes(*weight, shapes);
}

lowbit_status lowbit_packed_bytes(const lowbit_weight* weight, size_t* bytes) {
  if (const lowbit_status status = check_device(weight->packed_for, "packed_for")) return status;
  return (weight->packed_for == LOWBIT_CPU ? packed_bytes : fragments_bytes)(*weight, bytes);
}

lowbit_status lowbit_pack(const lowbit_weight* weight, void* packed, size_t bytes, const lowbit_parallel* parallel) {
  if (const lowbit_status status = check_device(weight->packed_for, "packed_for")) return status;
  return (weight->packed_for == LOWBIT_CPU ? pack : pack_fragments)(*weight, packed, bytes, parallel);
}

lowbit_status lowbit_packed_describe(const void* packed, size_t bytes, lowbit_weight* weight) {
  if (layout_of(packed, bytes) == packed_layout::fragments) {
    fragment_view v;
    if (const lowbit_status status = view_fragments(packed, bytes, &v)) return status;
    *weight = description_of(v, LOWBIT_CUDA);
  } else {
    packed_view v;
    if (const lowbit_status status = view_packed(packed, bytes, &v)) return status;
    *weight = description_of(v, LOWBIT_CPU);
  }
  return LOWBIT_OK;
}

lowbit_status lowbit_unpack(const void* packed, size_t bytes, const lowbit_weight_arrays* out,
                            const lowbit_parallel* parallel) {
  const bool fragments = layout_of(packed, bytes) == packed_layout::fragments;
  return (fragments ? unpack_fragments : unpack)(packed, bytes, *out, parallel);
}

lowbit_status lowbit_dequantize_packed(const void* packed, size_t bytes, void* out, lowbit_dtype dtype,
                                       const lowbit_parallel* parallel) {
  const bool fragments = layout_of(packed, bytes) == packed_layout::fragments;
  return (fragments ? dequantize_fragments : dequantize_packed)(packed, bytes, out, dtype, parallel);
}

lowbit_status lowbit_dequantize(const lowbit_weight* weight, void* out, lowbit_dtype dtype,
                                const lowbit_parallel* parallel) {
  return dequantize(*weight, out, dtype, parallel);
}

lowbit_status lowbit_encode(const lowbit_encode_args* args, const lowbit_parallel* parallel) {
  return encode(*args, parallel);
}

lowbit_status lowbit_weight_to_text(const lowbit_weight* weight, char* text, size_t bytes) {
  return weight_to_text(*weight, text, bytes);
}

lowbit_status lowbit_weight_from_text(const char* text, lowbit_weight* weight) {
  return weight_from_text(text, weight);
}

// ---- multiplication ----

lowbit_status lowbit_function_find(const char* name, lowbit_function* function) {
  for (int f = LOWBIT_SILU; f <= LOWBIT_RELU; ++f)
    if (!std::strcmp(name, function_names[f])) {
      *function = static_cast<lowbit_function>(f);
      return LOWBIT_OK;
    }
  return fail(LOWBIT_INVALID_VALUE, "function is '%s': it must be silu, gelu, gelu_tanh or relu", name);
}

lowbit_status lowbit_gemm(const lowbit_gemm_args* a) {
  if (const lowbit_status status = check_device(a->device, "device")) return status;
  if (a->device == LOWBIT_CUDA) return api::gemm_cuda(*a);
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
  p.epilogue = epilogue_terms::of(*a);
  if (const lowbit_status status = api::check_gemm(*a, *p.w.format, p.w.shape.n, p.w.shape.k)) return status;
  if (const lowbit_status status = api::check_other(*a, p.w.shape.n)) return status;
  if (a->family == LOWBIT_FP8) return fail(LOWBIT_UNSUPPORTED, "fp8 products run on CUDA devices alone");
  if (a->family == LOWBIT_INTEGER && p.activation == LOWBIT_STATIC)
    if (const lowbit_status status = check_static_scales(p)) return status;
  if (p.m == 0) return LOWBIT_OK;
  if (!worth_threads(p, a->family)) p.parallel = nullptr;
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

int32_t lowbit_num_activation_formats(void) { return num_activation_formats; }

lowbit_status lowbit_activation_format_get(lowbit_activation_format format, lowbit_activation_format_info* info) {
  if (const lowbit_status status = check_activation_format(format)) return status;
  const activation_format_row& f = activation_formats[format];
  *info = {f.name, f.bits, f.block, static_cast<lowbit_dtype>(f.scale_dtype)};
  return LOWBIT_OK;
}

lowbit_status lowbit_quantize(const lowbit_quantize_args* a) {
  if (const lowbit_status status = check_device(a->device, "device")) return status;
  if (const lowbit_status status = check_activation_format(a->format)) return status;
  if (a->source < LOWBIT_PLAIN || a->source > LOWBIT_SILU_MUL)
    return fail(LOWBIT_INVALID_VALUE, "activation source %d: plain, rms_norm or silu_mul (0 to 2)", a->source);
  quantize_problem p{};
  p.format = static_cast<activation_format>(a->format);
  p.source = static_cast<activation_source>(a->source);
  p.power_of_two = a->power_of_two;
  p.swizzled = a->swizzled;
  p.m = a->m;
  p.k = a->k;
  p.x = a->x;
  p.x_dtype = a->x_dtype;
  p.x_stride = a->x_stride;
  p.other = a->other;
  p.other_stride = a->other_stride;
  p.weight = a->weight;
  p.weight_dtype = a->weight_dtype;
  p.epsilon = a->epsilon;
  p.sum = a->sum;
  p.sum_stride = a->sum_stride;
  p.global_scale = a->global_scale;
  p.q = a->q;
  p.q_stride = a->q_stride;
  p.scales = a->scales;
  p.scale_stride = a->scale_stride;
  p.zero_points = a->zero_points;
  if (const lowbit_status status = check_quantize(p)) return status;
  return a->device == LOWBIT_CUDA ? api::quantize_cuda(p, a->stream) : quantize(p, a->parallel);
}
