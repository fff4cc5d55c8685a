#include "product.h"

#include "call.h"

namespace lowbit_python {
product::product(const lowbit_weight& w, const product_inputs& given, const reader& read)
    : x(read(given.x, "x", /*rows_only=*/true)) {
  const auto optional = [&](const py::object& object, const char* name, bool rows_only = false) {
    return object.is_none() ? std::nullopt : std::optional(read(object, name, rows_only));
  };
  x.expect_dimensions(2);
  if (x.shape[1] != w.k)
    throw py::value_error("x has k = " + std::to_string(x.shape[1]) + ", but the packed weight is " +
                          std::to_string(w.n) + " x " + std::to_string(w.k));
  args.family = family_called(given.family);
  args.m = x.shape[0];
  args.x = x.data;
  args.x_dtype = x.dtype == "int8" || x.dtype == "float8_e4m3fn" ? dtype_called(x.dtype, "x") : x.float_dtype();
  args.x_stride = x.row_stride;

  if ((bias_ = optional(given.bias, "bias"))) {
    bias_->expect_shape({w.n});
    args.bias = bias_->data;
    args.bias_dtype = bias_->float_dtype();
  }

  args.activation = given.symmetric ? LOWBIT_DYNAMIC_SYMMETRIC : LOWBIT_DYNAMIC_ASYMMETRIC;
  if ((scale_ = optional(given.x_scale, "x_scale"))) {
    scale_->expect_dtype({"float32"});
    args.activation = LOWBIT_STATIC;
    args.x_scale = static_cast<const float*>(scale_->data);
    args.num_x_scales = scale_->size();
  }
  if ((zero_point_ = optional(given.x_zero_point, "x_zero_point"))) {
    if (!scale_) throw py::value_error("x_zero_point is given without x_scale");
    zero_point_->expect_dtype({"int32"});
    if (zero_point_->size() != scale_->size())
      throw py::value_error("x_zero_point has " + std::to_string(zero_point_->size()) + " elements and x_scale " +
                            std::to_string(scale_->size()));
    args.x_zero_point = static_cast<const int32_t*>(zero_point_->data);
  }

  if (given.function) check(lowbit_function_find(given.function->c_str(), &args.function));
  const bool multiplies = !given.multiply.is_none();
  if (multiplies && !given.residual.is_none())
    throw py::value_error("multiply and residual are both given: one of them can be");
  const char* const name = multiplies ? "multiply" : "residual";
  if ((other_ = optional(multiplies ? given.multiply : given.residual, name, /*rows_only=*/true))) {
    other_->expect_shape({x.shape[0], w.n});
    args.combination = multiplies ? LOWBIT_MULTIPLY : LOWBIT_ADD;
    args.other = other_->data;
    args.other_dtype = other_->float_dtype();
    args.other_stride = other_->row_stride;
  }
}

}  // namespace lowbit_python
