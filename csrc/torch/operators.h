// The operators of torch.ops.lowbit; their schemas, with shapes, are in operators.cpp.
#pragma once

#include <optional>
#include <string>
#include <tuple>

#include "tensor.h"

namespace lowbit_torch {

// multiply.cpp
tensor weight_only(tensor x, const tensor& packed, std::optional<tensor> bias, int64_t n,
                   const std::optional<std::string>& description, const std::optional<std::string>& function,
                   std::optional<tensor> multiply, std::optional<tensor> residual);
tensor integer(tensor x, const tensor& packed, std::optional<tensor> bias, int64_t n, std::optional<tensor> x_scale,
               std::optional<tensor> x_zero_point, bool symmetric, dtype out_dtype,
               const std::optional<std::string>& description, const std::optional<std::string>& function,
               std::optional<tensor> multiply, std::optional<tensor> residual);
tensor fp8(tensor x, const tensor& packed, std::optional<tensor> bias, int64_t n, std::optional<tensor> x_scale,
           int64_t x_group, bool fast, dtype out_dtype, const std::optional<std::string>& description,
           const std::optional<std::string>& function, std::optional<tensor> multiply, std::optional<tensor> residual);

// quantize.cpp
std::tuple<tensor, tensor, tensor> quantize_rows(tensor x, bool symmetric);
std::tuple<tensor, tensor, tensor, tensor> quantize_activation(tensor x, const std::string& format,
                                                               const std::string& source, std::optional<tensor> other,
                                                               std::optional<tensor> weight, double epsilon,
                                                               std::optional<tensor> global_scale, bool power_of_two,
                                                               bool swizzled);

// weights.cpp
tensor pack(const tensor& codes, const tensor& scales, const std::optional<tensor>& zero_points, double global_scale,
            const std::string& format, int64_t n, int64_t k, int64_t group_n, int64_t group_k,
            const std::optional<tensor>& mins, const std::optional<tensor>& super_scales,
            const std::optional<tensor>& super_mins, double scale_offset);
void unpack(const tensor& packed, const tensor& codes, const tensor& scales, const std::optional<tensor>& zero_points,
            const std::optional<tensor>& mins, const std::optional<tensor>& super_scales,
            const std::optional<tensor>& super_mins, const std::optional<std::string>& description);
tensor dequantize_packed(const tensor& packed, int64_t n, int64_t k, dtype type,
                         const std::optional<std::string>& description);
tensor dequantize(const tensor& codes, const tensor& scales, const std::optional<tensor>& zero_points,
                  double global_scale, const std::string& format, int64_t n, int64_t k, int64_t group_n,
                  int64_t group_k, dtype type, const std::optional<tensor>& mins,
                  const std::optional<tensor>& super_scales, const std::optional<tensor>& super_mins,
                  double scale_offset);
tensor encode(const tensor& w, const tensor& divisor, const std::optional<tensor>& zero_points,
              const std::string& format, int64_t group_n, int64_t group_k);

}  // namespace lowbit_torch
