#include "call.h"

#include <algorithm>
#include <new>
#include <stdexcept>

namespace lowbit_torch {

void invalid(const std::string& sentence) { throw std::invalid_argument(sentence); }

void check(lowbit_status status) {
  switch (status) {
    case LOWBIT_OK:
      return;
    case LOWBIT_OUT_OF_MEMORY:
    case LOWBIT_UNSUPPORTED:
      throw std::runtime_error(lowbit_last_error());
    default:
      invalid(lowbit_last_error());
  }
}

lowbit_parallel parallel() {
  uint32_t num_threads;
  TORCH_ERROR_CODE_CHECK(torch_get_num_threads(&num_threads));
  struct job {
    void (*body)(void*, int64_t, int64_t);
    void* arg;
  };
  const auto run = [](void*, int64_t count, void (*body)(void*, int64_t, int64_t), void* arg) {
    job j{body, arg};
    torch_parallel_for(
        0, count, 1,
        [](int64_t begin, int64_t end, void* context) {
          const job& todo = *static_cast<job*>(context);
          todo.body(todo.arg, begin, end);
        },
        &j);
  };
  return {run, nullptr, static_cast<int32_t>(num_threads)};
}

lowbit_format format_called(const std::string& name) {
  lowbit_format format;
  check(lowbit_format_find(name.c_str(), &format));
  return format;
}

lowbit_dtype float_dtype(dtype which, const char* argument) {
  for (const lowbit_dtype d : {LOWBIT_F32, LOWBIT_BF16, LOWBIT_F16})
    if (which == torch_dtype(d)) return d;
  invalid(std::string(argument) + " has dtype " + name_of(which) + ": it must be float32, float16 or bfloat16");
}

void expect_dtype(const tensor& t, const char* argument, dtype wanted) {
  if (!(t.type() == wanted))
    invalid(std::string(argument) + " has dtype " + name_of(t.type()) + ": it must be " + name_of(wanted));
}

void expect_shape(const tensor& t, const char* argument, std::span<const int64_t> sizes) {
  if (!std::ranges::equal(t.sizes(), sizes))
    invalid(std::string(argument) + " has shape " + shape_text(t.sizes()) + ": it must be " + shape_text(sizes));
}

void expect_contiguous(const tensor& t, const char* argument) {
  if (!t.is_contiguous()) invalid(std::string(argument) + " is not contiguous: it must be");
}

int64_t ceil_div(int64_t a, int64_t b) { return a / b + (a % b != 0); }

packed_weight::packed_weight(const tensor& packed) {
  expect_dtype(packed, "packed", uint8_type());
  if (packed.dim() != 1) invalid("packed has shape " + shape_text(packed.sizes()) + ": it must have one dimension");
  expect_contiguous(packed, "packed");
  data = packed.data();
  bytes = static_cast<size_t>(packed.numel());
  check(lowbit_packed_describe(data, bytes, &description));
}

void packed_weight::expect_size(int64_t n, int64_t k) const {
  if (n == description.n && k == description.k) return;
  invalid("n = " + std::to_string(n) + ", k = " + std::to_string(k) + ", but the packed weight is " +
          std::to_string(description.n) + " x " + std::to_string(description.k));
}

}  // namespace lowbit_torch
