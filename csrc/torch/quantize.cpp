// quantize_rows, quantize_activation: activations to low precision.
#include "call.h"
#include "operators.h"

namespace lowbit_torch {
namespace {

[[noreturn]] void unknown(const char* argument, const std::string& given, const std::string& list) {
  invalid(std::string(argument) + " is '" + given + "': it must be one of " + list);
}

lowbit_activation_format activation_format_called(const std::string& name, lowbit_activation_format_info* info) {
  std::string list;
  for (int32_t i = 0; i < lowbit_num_activation_formats(); ++i) {
    const auto format = static_cast<lowbit_activation_format>(i);
    check(lowbit_activation_format_get(format, info));
    if (name == info->name) return format;
    list += (i ? ", " : "") + std::string(info->name);
  }
  unknown("format", name, list);
}

lowbit_activation_source source_called(const std::string& name) {
  if (name == "plain") return LOWBIT_PLAIN;
  if (name == "rms_norm") return LOWBIT_RMS_NORM;
  if (name == "silu_mul") return LOWBIT_SILU_MUL;
  unknown("source", name, "plain, rms_norm, silu_mul");
}

// A matrix of the shape of x [m, k].
rows matrix(tensor t, const char* argument, int64_t m, int64_t k) {
  expect_shape(t, argument, {m, k});
  return rows_of(std::move(t));
}

}  // namespace

std::tuple<tensor, tensor, tensor> quantize_rows(tensor x, bool symmetric) {
  if (x.dim() != 2) invalid("x has shape " + shape_text(x.sizes()) + ": it must have two dimensions");
  const lowbit_dtype x_dtype = float_dtype(x.type(), "x");
  const execution on(x);
  const rows r = rows_of(std::move(x));
  const int64_t sizes[] = {r.m, r.k}, m[] = {r.m};
  tensor q = tensor::empty(sizes, int8_type(), on.where), scale = tensor::empty(m, float32_type(), on.where),
         zero_point = tensor::empty(m, int32_type(), on.where);
  if (!on.cuda()) {
    check(lowbit_quantize_rows(r.x.data(), x_dtype, r.m, r.k, r.stride,
                               symmetric ? LOWBIT_DYNAMIC_SYMMETRIC : LOWBIT_DYNAMIC_ASYMMETRIC,
                               static_cast<int8_t*>(q.mutable_data()), static_cast<float*>(scale.mutable_data()),
                               static_cast<int32_t*>(zero_point.mutable_data()), &on.threads));
    return {std::move(q), std::move(scale), std::move(zero_point)};
  }
  lowbit_quantize_args args{};
  args.device = on.device;
  args.format = symmetric ? LOWBIT_ACTIVATION_INT8 : LOWBIT_ACTIVATION_INT8_ASYMMETRIC;
  args.m = r.m;
  args.k = r.k;
  args.x = r.x.data();
  args.x_dtype = x_dtype;
  args.x_stride = r.stride;
  args.q = q.mutable_data();
  args.q_stride = r.k;
  args.scales = scale.mutable_data();
  args.stream = on.stream;
  if (symmetric)
    zero_point.zero();
  else
    args.zero_points = static_cast<int32_t*>(zero_point.mutable_data());
  check(lowbit_quantize(&args));
  return {std::move(q), std::move(scale), std::move(zero_point)};
}

std::tuple<tensor, tensor, tensor, tensor> quantize_activation(tensor x, const std::string& format,
                                                               const std::string& source, std::optional<tensor> other,
                                                               std::optional<tensor> weight, double epsilon,
                                                               std::optional<tensor> global_scale, bool power_of_two,
                                                               bool swizzled) {
  if (x.dim() != 2) invalid("x has shape " + shape_text(x.sizes()) + ": it must have two dimensions");
  lowbit_quantize_args args{};
  lowbit_activation_format_info f;
  args.format = activation_format_called(format, &f);
  args.source = source_called(source);
  const dtype type = x.type();
  const execution on(x);
  on.expect(other, "other");
  on.expect(weight, "weight");
  on.expect(global_scale, "global_scale");
  args.x_dtype = float_dtype(type, "x");
  const rows r = rows_of(std::move(x));
  const int64_t blocks = f.block ? ceil_div(r.k, f.block) : 1;
  args.device = on.device;
  args.power_of_two = power_of_two;
  args.swizzled = swizzled;
  args.m = r.m;
  args.k = r.k;
  args.x = r.x.data();
  args.x_stride = r.stride;
  args.epsilon = static_cast<float>(epsilon);
  std::optional<rows> second;
  std::optional<tensor> norm_weight, sum;
  if (other) {
    expect_dtype(*other, "other", type);
    second = matrix(std::move(*other), "other", r.m, r.k);
    args.other = second->x.data();
    args.other_stride = second->stride;
  }
  if (weight) {
    expect_shape(*weight, "weight", {r.k});
    args.weight_dtype = float_dtype(weight->type(), "weight");
    norm_weight = weight->contiguous();
    args.weight = norm_weight->data();
  }
  if (global_scale) {
    expect_dtype(*global_scale, "global_scale", float32_type());
    if (global_scale->numel() != 1) invalid("global_scale has more than one element");
    args.global_scale = static_cast<const float*>(global_scale->data());
  }
  const int64_t row_bytes = ceil_div(r.k * f.bits, 8), q_sizes[] = {r.m, row_bytes};
  const bool int8 = args.format <= LOWBIT_ACTIVATION_INT8_ASYMMETRIC;
  tensor q = tensor::empty(q_sizes, int8 ? int8_type() : uint8_type(), on.where);
  std::vector<int64_t> scale_sizes{r.m};
  if (swizzled)
    scale_sizes = {ceil_div(r.m, 128) * ceil_div(blocks, 4) * 512};
  else if (f.block)
    scale_sizes = {r.m, blocks};
  tensor scales = tensor::empty(scale_sizes, torch_dtype(f.scale_dtype), on.where);
  const bool zeros = args.format == LOWBIT_ACTIVATION_INT8_ASYMMETRIC;
  const bool sums = args.source == LOWBIT_RMS_NORM && second;
  const int64_t zero_sizes[] = {zeros ? r.m : 0}, sum_sizes[] = {sums ? r.m : 0, r.k};
  tensor zero_points = tensor::empty(zero_sizes, int32_type(), on.where),
         total = tensor::empty(sum_sizes, type, on.where);
  args.q = q.mutable_data();
  args.q_stride = row_bytes;
  args.scales = scales.mutable_data();
  args.scale_stride = f.block && !swizzled ? blocks : 0;
  if (zeros) args.zero_points = static_cast<int32_t*>(zero_points.mutable_data());
  if (sums) {
    args.sum = total.mutable_data();
    args.sum_stride = r.k;
  }
  args.parallel = &on.threads;
  args.stream = on.stream;
  check(lowbit_quantize(&args));
  return {std::move(q), std::move(scales), std::move(zero_points), std::move(total)};
}

}  // namespace lowbit_torch
