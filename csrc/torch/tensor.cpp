#include "tensor.h"

#include <torch/csrc/stable/library.h>

namespace lowbit_torch {

dtype torch_dtype(lowbit_dtype which) {
  static const dtype types[] = {
      {aoti_torch_dtype_float32()}, {aoti_torch_dtype_float16()}, {aoti_torch_dtype_bfloat16()},
      {aoti_torch_dtype_int8()},    {aoti_torch_dtype_uint8()},   {aoti_torch_dtype_uint8()},
      {aoti_torch_dtype_uint8()},
  };
  return types[which];
}

const char* name_of(dtype which) {
  static const struct {
    int32_t id;
    const char* name;
  } names[] = {
      {aoti_torch_dtype_float32(), "float32"},
      {aoti_torch_dtype_float16(), "float16"},
      {aoti_torch_dtype_bfloat16(), "bfloat16"},
      {aoti_torch_dtype_float64(), "float64"},
      {aoti_torch_dtype_int8(), "int8"},
      {aoti_torch_dtype_uint8(), "uint8"},
      {aoti_torch_dtype_int16(), "int16"},
      {aoti_torch_dtype_int32(), "int32"},
      {aoti_torch_dtype_int64(), "int64"},
      {aoti_torch_dtype_bool(), "bool"},
      {aoti_torch_dtype_complex64(), "complex64"},
      {aoti_torch_dtype_complex128(), "complex128"},
      {aoti_torch_dtype_float8_e4m3fn(), "float8_e4m3fn"},
      {aoti_torch_dtype_float8_e5m2(), "float8_e5m2"},
      {torch_dtype_float8_e8m0fnu(), "float8_e8m0fnu"},
  };
  for (const auto& row : names)
    if (row.id == which.id) return row.name;
  return "of another dtype";
}

std::string shape_text(std::span<const int64_t> sizes) {
  std::string text = "[";
  for (const int64_t size : sizes) text += (text.size() > 1 ? ", " : "") + std::to_string(size);
  return text + "]";
}

bool place::is_cuda() const {
  static const int32_t cuda = aoti_torch_device_type_cuda();
  return type == cuda;
}

tensor tensor::empty(std::span<const int64_t> sizes, dtype of, place at) {
  constexpr size_t usual = 8;
  int64_t buffer[usual];
  std::vector<int64_t> more(sizes.size() > usual ? sizes.size() : 0);
  int64_t* strides = more.empty() ? buffer : more.data();
  int64_t stride = 1;
  for (size_t i = sizes.size(); i-- > 0;) {
    strides[i] = stride;
    stride *= sizes[i] > 1 ? sizes[i] : 1;
  }
  AtenTensorHandle handle;
  TORCH_ERROR_CODE_CHECK(aoti_torch_empty_strided(static_cast<int64_t>(sizes.size()), sizes.data(), strides, of.id,
                                                  at.type, at.index, &handle));
  return tensor(handle);
}

tensor tensor::contiguous() const {
  AtenTensorHandle self;
  TORCH_ERROR_CODE_CHECK(aoti_torch_new_tensor_handle(handle_, &self));
  StableIValue stack[] = {torch::stable::detail::from(self),
                          torch::stable::detail::from(aoti_torch_memory_format_contiguous_format())};
  TORCH_ERROR_CODE_CHECK(torch_call_dispatcher("aten::contiguous", "", stack, TORCH_ABI_VERSION));
  return tensor(torch::stable::detail::to<AtenTensorHandle>(stack[0]));
}

}  // namespace lowbit_torch
