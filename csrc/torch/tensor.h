// What the operators need of torch's tensors, through the C functions of its stable ABI: cheaper than
// torch::stable::Tensor, which shares its handle.
#pragma once

#include <torch/csrc/inductor/aoti_torch/c/shim.h>
#include <torch/csrc/stable/c/shim.h>
#include <torch/headeronly/util/shim_utils.h>

#include <cstdint>
#include <span>
#include <string>
#include <utility>
#include <vector>

#include "lowbit/lowbit.h"

namespace lowbit_torch {

// torch's number of a dtype: what ScalarType arguments hold and tensors answer.
struct dtype {
  int32_t id;
  bool operator==(const dtype&) const = default;
};

// A device: what kind it is and which of them.
struct place {
  int32_t type, index;
  bool operator==(const place&) const = default;
  bool is_cuda() const;
};

dtype torch_dtype(lowbit_dtype which);  // float8 scales are uint8 tensors
inline dtype float32_type() { return {aoti_torch_dtype_float32()}; }
inline dtype int8_type() { return {aoti_torch_dtype_int8()}; }
inline dtype uint8_type() { return {aoti_torch_dtype_uint8()}; }
inline dtype int32_type() { return {aoti_torch_dtype_int32()}; }
const char* name_of(dtype which);
std::string shape_text(std::span<const int64_t> sizes);  // "[4096, 11008]"

// An owned reference to a tensor.
class tensor {
 public:
  explicit tensor(AtenTensorHandle handle) : handle_(handle) {}
  tensor(tensor&& other) noexcept : handle_(std::exchange(other.handle_, nullptr)) {}
  tensor& operator=(tensor&& other) noexcept {
    std::swap(handle_, other.handle_);
    return *this;
  }
  ~tensor() {
    if (handle_) aoti_torch_delete_tensor_object(handle_);
  }
  AtenTensorHandle release() { return std::exchange(handle_, nullptr); }

  // Uninitialised, contiguous.
  static tensor empty(std::span<const int64_t> sizes, dtype of, place at);

  dtype type() const {
    dtype d;
    TORCH_ERROR_CODE_CHECK(aoti_torch_get_dtype(handle_, &d.id));
    return d;
  }
  place device() const {
    place p;
    TORCH_ERROR_CODE_CHECK(aoti_torch_get_device_type(handle_, &p.type));
    TORCH_ERROR_CODE_CHECK(aoti_torch_get_device_index(handle_, &p.index));
    return p;
  }
  int64_t dim() const {
    int64_t dim;
    TORCH_ERROR_CODE_CHECK(aoti_torch_get_dim(handle_, &dim));
    return dim;
  }
  int64_t numel() const {
    int64_t numel;
    TORCH_ERROR_CODE_CHECK(aoti_torch_get_numel(handle_, &numel));
    return numel;
  }
  std::span<const int64_t> sizes() const {
    int64_t* sizes;
    TORCH_ERROR_CODE_CHECK(aoti_torch_get_sizes(handle_, &sizes));
    return {sizes, static_cast<size_t>(dim())};
  }
  std::span<const int64_t> strides() const {
    int64_t* strides;
    TORCH_ERROR_CODE_CHECK(aoti_torch_get_strides(handle_, &strides));
    return {strides, static_cast<size_t>(dim())};
  }
  bool is_contiguous() const {
    bool contiguous;
    TORCH_ERROR_CODE_CHECK(aoti_torch_is_contiguous(handle_, &contiguous));
    return contiguous;
  }
  void zero() { TORCH_ERROR_CODE_CHECK(aoti_torch_zero_(handle_)); }
  tensor contiguous() const;  // a copy, unless it is contiguous already

  const void* data() const {
    const void* data;
    TORCH_ERROR_CODE_CHECK(torch_get_const_data_ptr(handle_, &data));
    return data;
  }
  void* mutable_data() const {
    void* data;
    TORCH_ERROR_CODE_CHECK(torch_get_mutable_data_ptr(handle_, &data));
    return data;
  }

 private:
  AtenTensorHandle handle_;
};

}  // namespace lowbit_torch
