// Calling the C API from an operator: its status as an exception, its threads from torch.
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

// torch's intra-op threads: torch.set_num_threads() counts, and a call from inside a parallel region runs alone.
lowbit_parallel parallel();

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

// A packed weight, its header read and checked.
struct packed_weight {
  const void* data;
  size_t bytes;
  lowbit_weight description;

  explicit packed_weight(const tensor& packed);
  void expect_size(int64_t n, int64_t k) const;
};

}  // namespace lowbit_torch
