// The plain reference of the activation quantizers.
#include "gemm/quantize.h"

#include <memory>
#include <new>

namespace lowbit {
namespace {

using ll = long long;

float sum_of_squares(const float* s, int64_t k) {
  float lanes[norm_lanes] = {};
  for (int64_t i = 0; i < k; ++i) {
    float& lane = lanes[i / norm_vector % norm_lanes];
    lane = std::fmaf(s[i], s[i], lane);
  }
  for (int apart = 16; apart > 0; apart /= 2)
    for (int lane = 0; lane < norm_lanes; ++lane)
      if (lane % 32 < apart) lanes[lane] += lanes[lane + apart];
  float sum = 0;
  for (int warp = 0; warp < norm_lanes / 32; ++warp) sum += lanes[warp * 32];
  return sum;
}

void make_values(const quantize_problem& p, int64_t row, float* v) {
  const bool residual = p.source == activation_source::rms_norm && p.other;
  for (int64_t i = 0; i < p.k; ++i) {
    v[i] = load_as_f32(p.x, row * p.x_stride + i, p.x_dtype);
    const float other = p.other ? load_as_f32(p.other, row * p.other_stride + i, p.x_dtype) : 0;
    if (p.source == activation_source::silu_mul) v[i] = silu_mul(v[i], other);
    if (residual) {
      uint32_t rounded = 0;
      store_from_f32(&rounded, 0, p.x_dtype, v[i] + other);
      v[i] = load_as_f32(&rounded, 0, p.x_dtype);
      if (p.sum) store_from_f32(p.sum, row * p.sum_stride + i, p.x_dtype, v[i]);
    }
  }
  if (p.source != activation_source::rms_norm) return;
  const float mean = sum_of_squares(v, p.k) / static_cast<float>(p.k);
  const float inverse = 1.0f / std::sqrt(mean + p.epsilon);
  for (int64_t i = 0; i < p.k; ++i)
    v[i] = v[i] * inverse * (p.weight ? load_as_f32(p.weight, i, p.weight_dtype) : 1.0f);
}

void quantize_to_int8(const quantize_problem& p, int64_t row, const float* v) {
  const lowbit_activation activation =
      p.format == activation_format::int8 ? LOWBIT_DYNAMIC_SYMMETRIC : LOWBIT_DYNAMIC_ASYMMETRIC;
  const row_quantization r =
      quantize_row(v, LOWBIT_F32, 0, p.k, activation, {}, static_cast<int8_t*>(p.q) + row * p.q_stride);
  static_cast<float*>(p.scales)[row] = r.scale;
  if (p.zero_points) p.zero_points[row] = r.zero_point;
}

block_quantization quantization_of_block(const quantize_problem& p, const float* v, int64_t count) {
  float max = 0;
  bool good = true;
  for (int64_t i = 0; i < count; ++i) {
    good &= std::isfinite(v[i]);
    max = std::fmax(max, std::fabs(v[i]));
  }
  switch (p.format) {
    case activation_format::mxfp8:
      return mx_quantization(max, good, 8);
    case activation_format::mxfp4:
      return mx_quantization(max, good, 2);
    case activation_format::nvfp4:
      return nvfp4_quantization(max, good, p.global_scale ? *p.global_scale : 1.0f);
    default:
      return e4m3_quantization(max, good, p.power_of_two);
  }
}

void quantize_to_float(const quantize_problem& p, int64_t row, const float* v) {
  const activation_format_row& format = describe(p.format);
  const int64_t block = format.block ? format.block : p.k, blocks = ceil_div(p.k, block);
  uint8_t* const q = static_cast<uint8_t*>(p.q) + row * p.q_stride;
  for (int64_t b = 0; b < blocks; ++b) {
    const int64_t first = b * block, last = first + block < p.k ? first + block : p.k;
    const block_quantization r = quantization_of_block(p, v + first, last - first);
    for (int64_t i = first; i < last; ++i) {
      const float value = r.inverse != 0 ? v[i] * r.inverse : 0;
      if (format.bits == 8)
        q[i] = f32_to_e4m3(value);
      else
        q[i / 2] = static_cast<uint8_t>(i % 2 ? q[i / 2] | f32_to_e2m1(value) << 4 : f32_to_e2m1(value));
    }
    const int64_t at = p.swizzled ? swizzled_scale(row, b, blocks) : format.block ? row * p.scale_stride + b : row;
    if (format.scale_dtype == LOWBIT_F32)
      static_cast<float*>(p.scales)[at] = r.scale;
    else
      static_cast<uint8_t*>(p.scales)[at] = r.bits;
  }
}

}  // namespace

lowbit_status check_quantize(const quantize_problem& p) {
  if (static_cast<int>(p.format) < 0 || static_cast<int>(p.format) >= num_activation_formats)
    return fail(LOWBIT_INVALID_VALUE, "activation format %d: there are %d", static_cast<int>(p.format),
                num_activation_formats);
  const activation_format_row& format = describe(p.format);
  const auto check_dtype = [](int dtype, const char* what) {
    if (is_float_dtype(dtype)) return LOWBIT_OK;
    return fail(LOWBIT_INVALID_TYPE, "%s is %s: it must be float32, float16 or bfloat16", what, dtype_name(dtype));
  };
  const auto check_stride = [&](int64_t stride, int64_t width, const char* what) {
    if (p.m < 2 || stride >= width) return LOWBIT_OK;
    return fail(LOWBIT_INVALID_VALUE, "rows of %s are %lld apart: they have %lld", what, static_cast<ll>(stride),
                static_cast<ll>(width));
  };
  if (const lowbit_status status = check_dtype(p.x_dtype, "x")) return status;
  if (p.m < 0 || p.k < 1 || p.m > int64_t{1} << 40 || p.k > int64_t{1} << 40)
    return fail(LOWBIT_INVALID_VALUE, "x is %lld x %lld: m is from 0 and k from 1 to 2^40", static_cast<ll>(p.m),
                static_cast<ll>(p.k));
  if (const lowbit_status status = check_stride(p.x_stride, p.k, "x")) return status;
  if (const lowbit_status status = check_stride(p.q_stride, ceil_div(p.k * format.bits, 8), "q")) return status;
  if (format.block && !p.swizzled)
    if (const lowbit_status status = check_stride(p.scale_stride, ceil_div(p.k, format.block), "scales")) return status;
  if (p.swizzled && format.scale_dtype == LOWBIT_F32)
    return fail(LOWBIT_INVALID_VALUE, "scales of %s cannot be swizzled: those of mxfp8, mxfp4 and nvfp4 can",
                format.name);
  if (p.power_of_two && p.format != activation_format::e4m3_block)
    return fail(LOWBIT_INVALID_VALUE, "scales of %s are what they are: those of fp8_e4m3_block may be powers of two",
                format.name);
  if (p.source == activation_source::silu_mul && !p.other)
    return fail(LOWBIT_INVALID_VALUE, "silu_mul has no `other`: it is what silu(x) is multiplied by");
  if (p.source == activation_source::plain && p.other)
    return fail(LOWBIT_INVALID_VALUE, "`other` is for rms_norm and silu_mul");
  if (p.other)
    if (const lowbit_status status = check_stride(p.other_stride, p.k, "other")) return status;
  if (p.source != activation_source::rms_norm && (p.weight || p.sum))
    return fail(LOWBIT_INVALID_VALUE, "weight and sum are for rms_norm");
  if (p.sum && !p.other) return fail(LOWBIT_INVALID_VALUE, "sum is for rms_norm with a residual (`other`)");
  if (p.sum)
    if (const lowbit_status status = check_stride(p.sum_stride, p.k, "sum")) return status;
  if (p.weight)
    if (const lowbit_status status = check_dtype(p.weight_dtype, "weight")) return status;
  if (p.source == activation_source::rms_norm && !(p.epsilon >= 0))
    return fail(LOWBIT_INVALID_VALUE, "epsilon is %g: it must be 0 or more", static_cast<double>(p.epsilon));
  if (p.global_scale && p.format != activation_format::nvfp4)
    return fail(LOWBIT_INVALID_VALUE, "%s has no global scale", format.name);
  if (p.m > 0 && (!p.x || !p.q || !p.scales || (p.format == activation_format::int8_asymmetric && !p.zero_points)))
    return fail(LOWBIT_INVALID_VALUE, "x, q, scales%s must not be NULL",
                p.format == activation_format::int8_asymmetric ? " and zero_points" : "");
  return LOWBIT_OK;
}

lowbit_status quantize(const quantize_problem& p, const lowbit_parallel* parallel) {
  const activation_format_row& format = describe(p.format);
  if (p.swizzled) {
    const int64_t bytes = swizzled_scale_bytes(p.m, ceil_div(p.k, format.block));
    for (int64_t i = 0; i < bytes; ++i) static_cast<uint8_t*>(p.scales)[i] = 0;
  }
  bool out_of_memory = false;
  parallel_for(parallel, p.m, [&](int64_t begin, int64_t end) {
    const std::unique_ptr<float[]> v(new (std::nothrow) float[static_cast<size_t>(p.k)]);
    if (!v) {
      __atomic_store_n(&out_of_memory, true, __ATOMIC_RELAXED);
      return;
    }
    for (int64_t row = begin; row < end; ++row) {
      make_values(p, row, v.get());
      if (p.format == activation_format::int8 || p.format == activation_format::int8_asymmetric)
        quantize_to_int8(p, row, v.get());
      else
        quantize_to_float(p, row, v.get());
    }
  });
  if (out_of_memory) return fail(LOWBIT_OUT_OF_MEMORY, "no memory for a row of %lld values", static_cast<ll>(p.k));
  return LOWBIT_OK;
}

}  // namespace lowbit
