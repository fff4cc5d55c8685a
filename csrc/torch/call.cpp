#include "call.h"

#include <dlfcn.h>

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

namespace {

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

// In an emulated build, for tests, "device memory" is memory and kernels run in the calling thread.
#ifdef LOWBIT_CUDA_EMULATED
constexpr bool emulated = true;
#else
constexpr bool emulated = false;
#endif

// torch's current stream. The stable ABI has it from torch 2.13 on; before that there is a function of libtorch_cuda,
// which this library does not name, so that it loads beside a torch without CUDA.
void* current_stream(int32_t device) {
  using get = AOTITorchError (*)(int32_t, void**);
  static const get function = [] {
    void* symbol = dlsym(RTLD_DEFAULT, "aoti_torch_get_current_cuda_stream");
    if (!symbol) {  // torch loads its libraries for itself alone
      if (void* library = dlopen("libtorch_cuda.so", RTLD_LAZY | RTLD_NOLOAD))
        symbol = dlsym(library, "aoti_torch_get_current_cuda_stream");
    }
    return reinterpret_cast<get>(symbol);
  }();
  if (!function) throw std::runtime_error("this torch has no CUDA: lowbit finds no libtorch_cuda.so");
  void* stream;
  TORCH_ERROR_CODE_CHECK(function(device, &stream));
  return stream;
}

}  // namespace

execution::execution(const tensor& on)
    : where(on.device()), device(where.is_cuda() || emulated ? LOWBIT_CUDA : LOWBIT_CPU), threads{} {
  if (device == LOWBIT_CPU) {
    threads = parallel();
  } else if (!emulated) {
    int32_t current;
    TORCH_ERROR_CODE_CHECK(aoti_torch_get_current_device_index(&current));
    if (current != where.index) TORCH_ERROR_CODE_CHECK(aoti_torch_create_device_guard(where.index, &guard_));
    stream = current_stream(where.index);
  }
}

execution::~execution() {
  if (guard_) aoti_torch_delete_device_guard(guard_);
}

void execution::expect(const tensor& t, const char* argument) const {
  const place at = t.device();
  if (at == where) return;
  const auto text = [](place p) {
    return p.is_cuda()                              ? "cuda:" + std::to_string(p.index)
           : p.type == aoti_torch_device_type_cpu() ? "the CPU"
                                                    : "another device";
  };
  invalid(std::string(argument) + " is on " + text(at) + " and the operator runs on " + text(where) +
          ": all tensors must be on one device");
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

namespace {

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

}  // namespace

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

packed_weight::packed_weight(const tensor& packed, const std::optional<std::string>& text, const execution& on) {
  on.expect(packed, "packed");
  expect_dtype(packed, "packed", uint8_type());
  if (packed.dim() != 1) invalid("packed has shape " + shape_text(packed.sizes()) + ": it must have one dimension");
  expect_contiguous(packed, "packed");
  data = packed.data();
  bytes = static_cast<size_t>(packed.numel());
  if (packed.device().is_cuda()) {
    if (!text) invalid("description is None: on a CUDA device the packed weight's own cannot be read");
    check(lowbit_weight_from_text(text->c_str(), &description));
    return;
  }
  check(lowbit_packed_describe(data, bytes, &description));
  if (!text) return;
  char own[160];
  check(lowbit_weight_to_text(&description, own, sizeof own));
  if (*text != own) invalid("description is '" + *text + "', but the packed weight is '" + own + "'");
}

void packed_weight::expect_size(int64_t n, int64_t k) const {
  if (n == description.n && k == description.k) return;
  invalid("n = " + std::to_string(n) + ", k = " + std::to_string(k) + ", but the packed weight is " +
          std::to_string(description.n) + " x " + std::to_string(description.k));
}

}  // namespace lowbit_torch
