// The C API on CUDA devices: the same checks, less those of values, which stay on the device.
#include "api.h"

#include "cuda/sm80/convert.h"
#include "cuda/sm80/finish.h"
#include "cuda/sm80/quantize.h"
#include "cuda/sm80/weights.h"
#include "dispatch/cuda.h"
#include "layout/fragments.h"

using namespace lowbit;

namespace {

// ---- descriptions ----

lowbit_weight for_device(const lowbit_weight& weight) {
  lowbit_weight w = weight;
  w.packed_for = LOWBIT_CUDA;
  return w;
}

lowbit_status check_usable() {
  cuda::device_info device;
  return cuda::current_device_info(&device);
}

lowbit_status check_packed(const lowbit_weight& w, const void* packed, size_t bytes) {
  size_t needed = 0;
  if (const lowbit_status status = fragments_bytes(w, &needed)) return status;
  if (bytes != needed)
    return fail(LOWBIT_INVALID_VALUE, "packed weight has %zu bytes: a %lld x %lld %s weight for CUDA has %zu", bytes,
                static_cast<long long>(w.n), static_cast<long long>(w.k), format_at(w.format).name, needed);
  if (reinterpret_cast<uintptr_t>(packed) % 16)
    return fail(LOWBIT_INVALID_VALUE, "packed weight is at %p: it must be 16-byte aligned in device memory", packed);
  return LOWBIT_OK;
}

lowbit_status check_float(int dtype, const char* what) {
  if (is_float_dtype(dtype)) return LOWBIT_OK;
  return fail(LOWBIT_INVALID_TYPE, "%s %s: it must be float32, float16 or bfloat16", what, dtype_name(dtype));
}

}  // namespace

// ---- weights ----

lowbit_status lowbit_pack_cuda(const lowbit_weight* weight, void* packed, size_t bytes, void* stream) {
  const lowbit_weight w = for_device(*weight);
  if (const lowbit_status status = check_packed(w, packed, bytes)) return status;
  if (const lowbit_status status = check_usable()) return status;
  if constexpr (cuda::built) return cuda::sm80::pack(w, packed, stream);
  return LOWBIT_UNSUPPORTED;
}

lowbit_status lowbit_unpack_cuda(const lowbit_weight* weight, const void* packed, size_t bytes,
                                 const lowbit_weight_arrays* out, void* stream) {
  const lowbit_weight w = for_device(*weight);
  if (const lowbit_status status = check_packed(w, packed, bytes)) return status;
  if (w.zero_points && !out->zero_points)
    return fail(LOWBIT_INVALID_VALUE, "the packed weight has zero points: pass somewhere to put them");
  if (const lowbit_status status = check_usable()) return status;
  if constexpr (cuda::built) return cuda::sm80::unpack(w, packed, *out, stream);
  return LOWBIT_UNSUPPORTED;
}

lowbit_status lowbit_dequantize_packed_cuda(const lowbit_weight* weight, const void* packed, size_t bytes, void* out,
                                            lowbit_dtype dtype, void* stream) {
  const lowbit_weight w = for_device(*weight);
  if (const lowbit_status status = check_packed(w, packed, bytes)) return status;
  if (const lowbit_status status = check_float(dtype, "cannot dequantize to")) return status;
  if (const lowbit_status status = check_usable()) return status;
  if constexpr (cuda::built) return cuda::sm80::dequantize_packed(w, packed, out, dtype, stream);
  return LOWBIT_UNSUPPORTED;
}

lowbit_status lowbit_dequantize_cuda(const lowbit_weight* weight, void* out, lowbit_dtype dtype, void* stream) {
  size_t packed_bytes = 0;  // what GPUs do not hold they do not decode
  if (const lowbit_status status = fragments_bytes(*weight, &packed_bytes)) return status;
  if (const lowbit_status status = check_float(dtype, "cannot dequantize to")) return status;
  if (const lowbit_status status = check_usable()) return status;
  if constexpr (cuda::built) return cuda::sm80::dequantize(*weight, out, dtype, stream);
  return LOWBIT_UNSUPPORTED;
}

lowbit_status lowbit_encode_cuda(const lowbit_encode_args* args, void* stream) {
  if (const lowbit_status status = check_encode(*args)) return status;
  const int bits = format_at(args->format).bits;
  if (bits != 2 && bits != 4 && bits != 8)
    return fail(LOWBIT_UNSUPPORTED, "%s has codes of %d bits: no kernel for CUDA writes them",
                format_at(args->format).name, bits);
  if (const lowbit_status status = check_usable()) return status;
  if constexpr (cuda::built) return cuda::sm80::encode(*args, stream);
  return LOWBIT_UNSUPPORTED;
}

// ---- multiplication ----

namespace {

constexpr int64_t workspace_alignment = 256;

// What a product runs: a conversion of x where no kernel takes its dtype, a kernel, and what finishes its sums where
// there is an epilogue. The workspace is x converted, its scales and zero points, the sums, then what the kernel wants.
struct plan {
  cuda::device_info device;
  cuda::gemm_problem problem;  // as the kernel gets it, but for pointers into the workspace
  const cuda::kernel_row* kernel;
  bool converts, finishes, sums_apart;  // sums_apart: in the workspace, not in y
  int64_t scales_at, zero_points_at, sums_at, kernel_at, workspace_bytes;
};

cuda::packed_weight weight_of(const lowbit_weight& w, const void* packed) {
  const fragment_offsets o = fragment_offsets_of(w);
  cuda::packed_weight p{};
  p.shape = fragment_shape_of(w);
  p.format = &format_at(w.format);
  p.data = static_cast<const uint8_t*>(packed);
  p.codes_offset = o.codes;
  p.scales_offset = o.scales;
  p.zero_points_offset = o.zero_points;
  p.column_sums_offset = o.column_sums;
  p.scale_dtype = w.scale_dtype;
  return p;
}

// Why the best of the family's kernels does not run it.
lowbit_status none_runs(lowbit_family family, const plan& plan) {
  const char* reason = "this lowbit was built without one";
  for (int i = cuda::num_kernels() - 1; i >= 0; --i) {
    const cuda::kernel_row& row = *cuda::kernel_at(i).row;
    if (row.family != family) continue;
    reason = cuda::refusal(row, family, plan.problem, plan.device);
    break;
  }
  return fail(LOWBIT_UNSUPPORTED, "no kernel multiplies %s activations by %s weights on this device: %s",
              dtype_name(plan.problem.x_dtype), plan.problem.w.format->name, reason);
}

lowbit_status make_plan(const lowbit_gemm_args& a, plan* out) {
  if (!a.weight)
    return fail(LOWBIT_INVALID_VALUE, "weight is NULL: a product on a CUDA device needs the description of its weight");
  const lowbit_weight w = for_device(*a.weight);
  if (const lowbit_status status = check_packed(w, a.packed, a.packed_bytes)) return status;
  if (const lowbit_status status = api::check_gemm(a, format_at(w.format), w.n, w.k)) return status;
  if (a.accumulation != LOWBIT_PROMOTED && a.accumulation != LOWBIT_FAST)
    return fail(LOWBIT_INVALID_VALUE, "accumulation %d: promoted or fast (0 or 1)", a.accumulation);
  plan plan{};
  if (const lowbit_status status = cuda::current_device_info(&plan.device)) return status;
  cuda::gemm_problem& p = plan.problem;
  p.w = weight_of(w, a.packed);
  p.m = a.m;
  p.x = a.x;
  p.x_dtype = cuda::kernel_dtype(a.family, a.x_dtype);
  p.x_stride = a.x_stride;
  p.bias = a.bias;
  p.bias_dtype = a.bias_dtype;
  p.y = a.y;
  p.y_dtype = a.y_dtype;
  p.y_stride = a.y_stride;
  p.activation = a.activation;
  p.x_scale = a.activation == LOWBIT_STATIC ? a.x_scale : nullptr;
  p.x_zero_point = a.activation == LOWBIT_STATIC ? a.x_zero_point : nullptr;
  p.num_x_scales = a.num_x_scales;
  p.x_group = a.x_group;
  p.accumulate = static_cast<cuda::accumulation>(a.accumulation);
  p.stream = a.stream;
  if (a.m > 0) {
    const auto next = [](int64_t at, int64_t bytes) { return round_up(at + bytes, workspace_alignment); };
    plan.converts = p.x_dtype != a.x_dtype;
    if (plan.converts) {
      const bool dynamic = a.activation != LOWBIT_STATIC, integer = a.family == LOWBIT_INTEGER;
      const int64_t scales = a.m * (a.x_group ? ceil_div(w.k, a.x_group) : 1);
      p.x_stride = round_up(w.k, 16);  // rows begin at whole 16 bytes
      plan.scales_at = next(0, a.m * p.x_stride * dtype_bytes(p.x_dtype));
      plan.zero_points_at = plan.kernel_at = plan.scales_at;
      if (integer || (a.family == LOWBIT_FP8 && dynamic)) {
        plan.zero_points_at = plan.kernel_at = next(plan.scales_at, scales * 4);
        if (integer) plan.kernel_at = next(plan.zero_points_at, a.m * 4);
        p.activation = LOWBIT_STATIC;
        p.num_x_scales = scales;
      }
    }
    plan.finishes = epilogue_terms::of(a).any();
    // `other` may be y, which is no place for sums then. (Pointers may be unknown here.)
    plan.sums_apart = plan.finishes && (a.y_dtype != LOWBIT_F32 || a.combination != LOWBIT_ALONE);
    if (plan.sums_apart) {
      p.y_dtype = LOWBIT_F32;
      p.y_stride = round_up(w.n, 4);  // rows begin at whole 16 bytes
      plan.sums_at = plan.kernel_at;
      plan.kernel_at = next(plan.sums_at, a.m * p.y_stride * 4);
    }
    plan.kernel = cuda::select_kernel(a.family, p, plan.device);
    if (!plan.kernel) return none_runs(a.family, plan);
    plan.workspace_bytes = plan.kernel_at;
    if (plan.kernel->workspace) plan.workspace_bytes += plan.kernel->workspace(p, plan.device);
  }
  *out = plan;
  return LOWBIT_OK;
}

// x into the workspace, in the dtype that kernels take; leaves it and its scales in plan.problem.
lowbit_status convert(const lowbit_gemm_args& a, plan& plan, uint8_t* workspace) {
  cuda::gemm_problem& p = plan.problem;
  float* const scales = reinterpret_cast<float*>(workspace + plan.scales_at);
  int32_t* const zero_points = reinterpret_cast<int32_t*>(workspace + plan.zero_points_at);
  const bool integer = a.family == LOWBIT_INTEGER;
  p.x = workspace;
  if (a.family == LOWBIT_WEIGHT_ONLY || a.activation == LOWBIT_STATIC) {
    cuda::sm80::convert_problem c{};
    c.m = a.m;
    c.k = p.w.shape.k;
    c.x = a.x;
    c.x_dtype = a.x_dtype;
    c.x_stride = a.x_stride;
    c.out = workspace;
    c.out_dtype = p.x_dtype;
    c.out_stride = p.x_stride;
    c.scale = a.x_scale;
    c.zero_point = a.x_zero_point;
    c.num_scales = a.num_x_scales;
    c.group = a.x_group;
    if (integer) {
      c.row_scale = scales;
      c.row_zero_point = zero_points;
      p.x_scale = scales;
      p.x_zero_point = a.x_zero_point ? zero_points : nullptr;
    }
    if constexpr (cuda::built) return cuda::sm80::convert(c, a.stream);
    return LOWBIT_UNSUPPORTED;
  }
  const bool asymmetric = a.activation == LOWBIT_DYNAMIC_ASYMMETRIC;
  quantize_problem q{};
  q.format = integer     ? asymmetric ? activation_format::int8_asymmetric : activation_format::int8
             : a.x_group ? activation_format::e4m3_block
                         : activation_format::e4m3;
  q.m = a.m;
  q.k = p.w.shape.k;
  q.x = a.x;
  q.x_dtype = a.x_dtype;
  q.x_stride = a.x_stride;
  q.q = workspace;
  q.q_stride = p.x_stride;
  q.scales = scales;
  q.scale_stride = a.x_group ? ceil_div(q.k, a.x_group) : 0;
  q.zero_points = asymmetric ? zero_points : nullptr;
  p.x_scale = scales;
  p.x_zero_point = q.zero_points;
  if constexpr (cuda::built) return cuda::sm80::quantize(q, a.stream);
  return LOWBIT_UNSUPPORTED;
}

lowbit_status finish(const lowbit_gemm_args& a, const plan& plan) {
  const cuda::gemm_problem& p = plan.problem;
  const cuda::sm80::finish_problem f{a.m,       p.w.shape.n, static_cast<const float*>(p.y), p.y_stride, a.y,
                                     a.y_dtype, a.y_stride,  epilogue_terms::of(a)};
  if constexpr (cuda::built) return cuda::sm80::finish(f, a.stream);
  return LOWBIT_UNSUPPORTED;
}

}  // namespace

lowbit_status lowbit_gemm_workspace(const lowbit_gemm_args* args, size_t* bytes) {
  *bytes = 0;
  if (args->device != LOWBIT_CUDA) return LOWBIT_OK;
  plan plan;
  if (const lowbit_status status = make_plan(*args, &plan)) return status;
  *bytes = static_cast<size_t>(plan.workspace_bytes);
  return LOWBIT_OK;
}

lowbit_status api::gemm_cuda(const lowbit_gemm_args& a) {
  plan plan;
  if (const lowbit_status status = make_plan(a, &plan)) return status;
  if (a.m == 0) return LOWBIT_OK;
  if (const lowbit_status status = check_other(a, plan.problem.w.shape.n)) return status;
  if (a.workspace_bytes < static_cast<size_t>(plan.workspace_bytes))
    return fail(LOWBIT_INVALID_VALUE, "workspace has %zu bytes: %lld are needed (lowbit_gemm_workspace)",
                a.workspace_bytes, static_cast<long long>(plan.workspace_bytes));
  if (plan.workspace_bytes && reinterpret_cast<uintptr_t>(a.workspace) % workspace_alignment)
    return fail(LOWBIT_INVALID_VALUE, "workspace is at %p: it must be %lld-byte aligned", a.workspace,
                static_cast<long long>(workspace_alignment));
  uint8_t* const workspace = static_cast<uint8_t*>(a.workspace);
  if (plan.converts)
    if (const lowbit_status status = convert(a, plan, workspace)) return status;
  plan.problem.workspace = workspace + plan.kernel_at;
  if (plan.sums_apart) plan.problem.y = workspace + plan.sums_at;
  if (const lowbit_status status = plan.kernel->run(plan.problem, plan.device)) return status;
  return plan.finishes ? finish(a, plan) : LOWBIT_OK;
}

lowbit_status api::quantize_cuda(const quantize_problem& problem, void* stream) {
  if (const lowbit_status status = check_usable()) return status;
  if (problem.m == 0) return LOWBIT_OK;
  if constexpr (cuda::built) return cuda::sm80::quantize(problem, stream);
  return LOWBIT_UNSUPPORTED;
}
