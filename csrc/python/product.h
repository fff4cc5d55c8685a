// What gemm and cuda_gemm are given alike: a product's arrays, read and checked against the packed weight.
#pragma once

#include <functional>
#include <optional>
#include <string>

#include "array.h"
#include "lowbit/lowbit.h"

namespace lowbit_python {

struct product_inputs {
  const py::object &x, &bias, &x_scale, &x_zero_point, &multiply, &residual;  // None where there is none, but x
  const std::string& family;
  const std::optional<std::string>& function;
  bool symmetric;
};

// The arguments of a product but for y and what says where it runs, and the arrays that they point into.
class product {
 public:
  using reader = std::function<array(const py::object& object, const char* name, bool rows_only)>;

  product(const lowbit_weight& w, const product_inputs& given, const reader& read);

  array x;
  lowbit_gemm_args args{};

 private:
  std::optional<array> bias_, scale_, zero_point_, other_;
};

}  // namespace lowbit_python
