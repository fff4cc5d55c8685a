// weight_only, integer, quantize_rows: x as rows of a matrix, whatever its strides and leading dimensions.
#include <vector>

#include "call.h"
#include "operators.h"

namespace lowbit_torch {
namespace {

// x [..., k] as m rows, `stride` elements apart.
struct rows {
  tensor x;
  int64_t m, k, stride;
};

// The distance of the rows, if one distance serves them all and the elements of a row lie side by side; else -1.
int64_t row_stride(const tensor& x, int64_t k) {
  const auto sizes = x.sizes(), strides = x.strides();
  const size_t last = sizes.size() - 1;
  if (k > 1 && strides[last] != 1) return -1;
  int64_t stride = k, next = -1;  // next: what the stride of the dimension before must be
  for (size_t i = last; i-- > 0;) {
    if (sizes[i] == 1) continue;
    if (next < 0)
      stride = strides[i];
    else if (strides[i] != next)
      return -1;
    next = strides[i] * sizes[i];
  }
  return stride < k ? -1 : stride;
}

rows rows_of(tensor x) {
  if (x.dim() == 0) invalid("x has shape []: it must have at least the dimension k");
  const int64_t k = x.sizes().back(), numel = x.numel();
  int64_t m = 1;
  for (const int64_t size : x.sizes().first(x.sizes().size() - 1)) m *= size;
  if (numel == 0) return {std::move(x), m, k, k};
  const int64_t stride = row_stride(x, k);
  if (stride < 0) return {x.contiguous(), m, k, k};
  return {std::move(x), m, k, stride};
}

// [..., n] for x [..., k].
tensor result_for(const tensor& x, int64_t n, dtype type) {
  std::vector<int64_t> sizes(x.sizes().begin(), x.sizes().end());
  sizes.back() = n;
  return tensor::empty(sizes, type);
}

// The arguments that both families share. Pointers live as long as their tensors.
struct call {
  rows x;
  packed_weight w;
  std::optional<tensor> bias;
  tensor y;
  lowbit_parallel threads;
  lowbit_gemm_args args;

  call(lowbit_family family, rows given, lowbit_dtype x_dtype, const tensor& packed, std::optional<tensor> given_bias,
       int64_t n, dtype y_type)
      : x(std::move(given)),
        w(packed),
        y((w.expect_size(n, x.k), result_for(x.x, n, y_type))),
        threads(parallel()),
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
    args.parallel = &threads;
    if (given_bias) {
      expect_shape(*given_bias, "bias", {n});
      args.bias_dtype = float_dtype(given_bias->type(), "bias");
      bias = given_bias->is_contiguous() ? std::move(given_bias) : given_bias->contiguous();
      args.bias = bias->data();
    }
  }
};

}  // namespace

tensor weight_only(tensor x, const tensor& packed, std::optional<tensor> bias, int64_t n) {
  const dtype type = x.type();
  const lowbit_dtype x_dtype = float_dtype(type, "x");
  call c(LOWBIT_WEIGHT_ONLY, rows_of(std::move(x)), x_dtype, packed, std::move(bias), n, type);
  check(lowbit_gemm(&c.args));
  return std::move(c.y);
}

tensor integer(tensor x, const tensor& packed, std::optional<tensor> bias, int64_t n, std::optional<tensor> x_scale,
               std::optional<tensor> x_zero_point, bool symmetric, dtype out_dtype) {
  const dtype type = x.type();
  if (type == int8_type() && !x_scale) invalid("x has dtype int8: it must come with x_scale");
  const lowbit_dtype x_dtype = type == int8_type() ? LOWBIT_I8 : float_dtype(type, "x");
  float_dtype(out_dtype, "out_dtype");
  call c(LOWBIT_INTEGER, rows_of(std::move(x)), x_dtype, packed, std::move(bias), n, out_dtype);
  c.args.activation = symmetric ? LOWBIT_DYNAMIC_SYMMETRIC : LOWBIT_DYNAMIC_ASYMMETRIC;
  if (x_scale) {
    expect_dtype(*x_scale, "x_scale", float32_type());
    expect_contiguous(*x_scale, "x_scale");
    c.args.activation = LOWBIT_STATIC;
    c.args.x_scale = static_cast<const float*>(x_scale->data());
    c.args.num_x_scales = x_scale->numel();
  }
  if (x_zero_point) {
    if (!x_scale) invalid("x_zero_point is given without x_scale");
    expect_dtype(*x_zero_point, "x_zero_point", int32_type());
    expect_contiguous(*x_zero_point, "x_zero_point");
    if (x_zero_point->numel() != x_scale->numel())
      invalid("x_zero_point has " + std::to_string(x_zero_point->numel()) + " elements and x_scale " +
              std::to_string(x_scale->numel()));
    c.args.x_zero_point = static_cast<const int32_t*>(x_zero_point->data());
  }
  check(lowbit_gemm(&c.args));
  return std::move(c.y);
}

std::tuple<tensor, tensor, tensor> quantize_rows(tensor x, bool symmetric) {
  if (x.dim() != 2) invalid("x has shape " + shape_text(x.sizes()) + ": it must have two dimensions");
  const lowbit_dtype x_dtype = float_dtype(x.type(), "x");
  const rows r = rows_of(std::move(x));
  const int64_t sizes[] = {r.m, r.k}, m[] = {r.m};
  tensor q = tensor::empty(sizes, int8_type()), scale = tensor::empty(m, float32_type()),
         zero_point = tensor::empty(m, int32_type());
  const lowbit_parallel threads = parallel();
  check(lowbit_quantize_rows(r.x.data(), x_dtype, r.m, r.k, r.stride,
                             symmetric ? LOWBIT_DYNAMIC_SYMMETRIC : LOWBIT_DYNAMIC_ASYMMETRIC,
                             static_cast<int8_t*>(q.mutable_data()), static_cast<float*>(scale.mutable_data()),
                             static_cast<int32_t*>(zero_point.mutable_data()), &threads));
  return {std::move(q), std::move(scale), std::move(zero_point)};
}

}  // namespace lowbit_torch
