// weight_only, integer, fp8: x as rows of a matrix, whatever its strides and leading dimensions.
#include <vector>

#include "call.h"
#include "operators.h"

namespace lowbit_torch {
namespace {

// [..., n] for x [..., k].
tensor result_for(const tensor& x, int64_t n, dtype type, place where) {
  std::vector<int64_t> sizes(x.sizes().begin(), x.sizes().end());
  sizes.back() = n;
  return tensor::empty(sizes, type, where);
}

// The arguments that all families share. Pointers live as long as their tensors.
struct call {
  execution on;
  rows x;
  packed_weight w;
  std::optional<tensor> bias;
  tensor y;
  std::optional<rows> other;
  lowbit_gemm_args args;

  call(lowbit_family family, tensor given, lowbit_dtype x_dtype, const tensor& packed, std::optional<tensor> given_bias,
       int64_t n, dtype y_type, const std::optional<std::string>& description)
      : on(given),
        x(rows_of(std::move(given))),
        w(packed, description, on),
        y((w.expect_size(n, x.k), result_for(x.x, n, y_type, on.where))),
        args{} {
    args.family = family;
    args.m = x.m;
    args.x = x.x.data();
    args.x_dtype = x_dtype;
    args.x_stride = x.stride;
    args.packed = w.data;
    args.packed_bytes = w.bytes;
    args.y = y.mutable_data();
    args.y_dtype = float_dtype(y_type, "out_dtype");
    args.y_stride = n;
    args.parallel = &on.threads;
    args.device = on.device;
    args.weight = &w.description;
    args.stream = on.stream;
    on.expect(given_bias, "bias");
    if (given_bias) {
      expect_shape(*given_bias, "bias", {n});
      args.bias_dtype = float_dtype(given_bias->type(), "bias");
      bias = given_bias->is_contiguous() ? std::move(given_bias) : given_bias->contiguous();
      args.bias = bias->data();
    }
  }

  // x_scale float32 [1], [rows] or by groups of columns; x_zero_point int32, as many.
  void static_scale(const std::optional<tensor>& scale, const std::optional<tensor>& zero_point) {
    on.expect(scale, "x_scale");
    on.expect(zero_point, "x_zero_point");
    if (scale) {
      expect_dtype(*scale, "x_scale", float32_type());
      expect_contiguous(*scale, "x_scale");
      args.activation = LOWBIT_STATIC;
      args.x_scale = static_cast<const float*>(scale->data());
      args.num_x_scales = scale->numel();
    }
    if (zero_point) {
      if (!scale) invalid("x_zero_point is given without x_scale");
      expect_dtype(*zero_point, "x_zero_point", int32_type());
      expect_contiguous(*zero_point, "x_zero_point");
      if (zero_point->numel() != scale->numel())
        invalid("x_zero_point has " + std::to_string(zero_point->numel()) + " elements and x_scale " +
                std::to_string(scale->numel()));
      args.x_zero_point = static_cast<const int32_t*>(zero_point->data());
    }
  }

  void epilogue(const std::optional<std::string>& function, std::optional<tensor> multiply,
                std::optional<tensor> residual) {
    if (function) check(lowbit_function_find(function->c_str(), &args.function));
    if (multiply && residual) invalid("multiply and residual are both given: one of them can be");
    if (!multiply && !residual) return;
    const char* const name = multiply ? "multiply" : "residual";
    tensor& given = multiply ? *multiply : *residual;
    on.expect(given, name);
    expect_shape(given, name, y.sizes());
    args.combination = multiply ? LOWBIT_MULTIPLY : LOWBIT_ADD;
    args.other_dtype = float_dtype(given.type(), name);
    other = rows_of(std::move(given));
    args.other = other->x.data();
    args.other_stride = other->stride;
  }

  // The workspace is torch's memory: it is taken again only by work behind this on the same stream.
  tensor run() {
    std::optional<tensor> workspace;
    if (on.cuda()) {
      check(lowbit_gemm_workspace(&args, &args.workspace_bytes));
      if (args.workspace_bytes) {
        constexpr uintptr_t alignment = 256;  // torch's own on CUDA, but less where that is emulated
        const int64_t sizes[] = {static_cast<int64_t>(args.workspace_bytes + alignment)};
        workspace = tensor::empty(sizes, uint8_type(), on.where);
        const uintptr_t begin = reinterpret_cast<uintptr_t>(workspace->mutable_data());
        args.workspace = reinterpret_cast<void*>((begin + alignment - 1) / alignment * alignment);
      }
    }
    check(lowbit_gemm(&args));
    return std::move(y);
  }
};

}  // namespace

tensor weight_only(tensor x, const tensor& packed, std::optional<tensor> bias, int64_t n,
                   const std::optional<std::string>& description, const std::optional<std::string>& function,
                   std::optional<tensor> multiply, std::optional<tensor> residual) {
  const dtype type = x.type();
  const lowbit_dtype x_dtype = float_dtype(type, "x");
  call c(LOWBIT_WEIGHT_ONLY, std::move(x), x_dtype, packed, std::move(bias), n, type, description);
  c.epilogue(function, std::move(multiply), std::move(residual));
  return c.run();
}

tensor integer(tensor x, const tensor& packed, std::optional<tensor> bias, int64_t n, std::optional<tensor> x_scale,
               std::optional<tensor> x_zero_point, bool symmetric, dtype out_dtype,
               const std::optional<std::string>& description, const std::optional<std::string>& function,
               std::optional<tensor> multiply, std::optional<tensor> residual) {
  const dtype type = x.type();
  if (type == int8_type() && !x_scale) invalid("x has dtype int8: it must come with x_scale");
  const lowbit_dtype x_dtype = type == int8_type() ? LOWBIT_I8 : float_dtype(type, "x");
  float_dtype(out_dtype, "out_dtype");
  call c(LOWBIT_INTEGER, std::move(x), x_dtype, packed, std::move(bias), n, out_dtype, description);
  c.args.activation = symmetric ? LOWBIT_DYNAMIC_SYMMETRIC : LOWBIT_DYNAMIC_ASYMMETRIC;
  c.static_scale(x_scale, x_zero_point);
  c.epilogue(function, std::move(multiply), std::move(residual));
  return c.run();
}

tensor fp8(tensor x, const tensor& packed, std::optional<tensor> bias, int64_t n, std::optional<tensor> x_scale,
           int64_t x_group, bool fast, dtype out_dtype, const std::optional<std::string>& description,
           const std::optional<std::string>& function, std::optional<tensor> multiply, std::optional<tensor> residual) {
  const dtype type = x.type();
  const bool quantized = type.id == aoti_torch_dtype_float8_e4m3fn();
  if (quantized && !x_scale) invalid("x has dtype float8_e4m3fn: it must come with x_scale");
  const lowbit_dtype x_dtype = quantized ? LOWBIT_E4M3 : float_dtype(type, "x");
  float_dtype(out_dtype, "out_dtype");
  call c(LOWBIT_FP8, std::move(x), x_dtype, packed, std::move(bias), n, out_dtype, description);
  c.args.x_group = x_group;
  c.args.accumulation = fast ? LOWBIT_FAST : LOWBIT_PROMOTED;
  c.static_scale(x_scale, std::nullopt);
  c.epilogue(function, std::move(multiply), std::move(residual));
  return c.run();
}

}  // namespace lowbit_torch
