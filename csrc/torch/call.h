// Calling the C API from an operator: its status as an exception; its threads, device and stream from torch.
#pragma once

#include <optional>
#include <string>

#include "lowbit/lowbit.h"
#include "tensor.h"

namespace lowbit_torch {

// Throws what Python sees as a ValueError.
[[noreturn]] void invalid(const std::string& sentence);
// Throws lowbit_last_error() if the status is not LOWBIT_OK.
void check(lowbit_status status);

// Where an operator runs. On the CPU: with torch's intra-op threads (torch.set_num_threads() counts, and a call from
// inside a parallel region runs alone). On CUDA: on torch's current stream of the tensors' device, which is the current
// device for as long as this lives.
class execution {
 public:
  explicit execution(const tensor& on);
  execution(const execution&) = delete;
  ~execution();

  place where;
  lowbit_device device;     // of the C API
  lowbit_parallel threads;  // CPU
  void* stream = nullptr;   // CUDA

  bool cuda() const { return device == LOWBIT_CUDA; }
  // Refuses a tensor on another device.
  void expect(const tensor& t, const char* argument) const;
  void expect(const std::optional<tensor>& t, const char* argument) const {
    if (t) expect(*t, argument);
  }

 private:
  DeviceGuardHandle guard_ = nullptr;
};

lowbit_format format_called(const std::string& name);
// float32, float16 or bfloat16 as the C API names it; refuses others.
lowbit_dtype float_dtype(dtype which, const char* argument);

// Refuse a tensor of another dtype or shape, or one whose elements do not lie side by side.
void expect_dtype(const tensor& t, const char* argument, dtype wanted);
void expect_shape(const tensor& t, const char* argument, std::span<const int64_t> sizes);
inline void expect_shape(const tensor& t, const char* argument, std::initializer_list<int64_t> sizes) {
  expect_shape(t, argument, std::span<const int64_t>(sizes.begin(), sizes.size()));
}
void expect_contiguous(const tensor& t, const char* argument);

int64_t ceil_div(int64_t a, int64_t b);

// x [..., k] as m rows, `stride` elements apart.
struct rows {
  tensor x;
  int64_t m, k, stride;
};
rows rows_of(tensor x);  // a copy where one stride does not describe it

// A packed weight and what it is: by its header on the CPU, by the text of lowbit_weight_to_text on CUDA.
struct packed_weight {
  const void* data;
  size_t bytes;
  lowbit_weight description;

  packed_weight(const tensor& packed, const std::optional<std::string>& text, const execution& on);
  void expect_size(int64_t n, int64_t k) const;
};

}  // namespace lowbit_torch
