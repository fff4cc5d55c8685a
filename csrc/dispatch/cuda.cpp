#include "dispatch/cuda.h"

#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <cstring>

#include "cuda/device.h"
#include "gemm/quantize.h"
#include "gemm/status.h"

namespace lowbit::cuda {

#ifdef LOWBIT_CUDA_ARCHS_BUILT
#define LOWBIT_CUDA_KERNELS(folder, family) \
  namespace folder {                        \
  extern const kernel_row family##_rows[];  \
  extern const int num_##family##_rows;     \
  }
#include <cuda_kernels_built.inc>  // written by csrc/cuda/kernels.cmake
#undef LOWBIT_CUDA_KERNELS
#endif

namespace {

struct kernel_file {
  const char* compute;
  const kernel_row* rows;
  const int* count;
};

// The list ends with a file of no rows, so that it is never empty.
constexpr int none = 0;
constexpr kernel_file files[] = {
#ifdef LOWBIT_CUDA_ARCHS_BUILT
#define LOWBIT_CUDA_KERNELS(folder, family) {#folder, folder::family##_rows, &folder::num_##family##_rows},
#include <cuda_kernels_built.inc>  // written by csrc/cuda/kernels.cmake
#undef LOWBIT_CUDA_KERNELS
#endif
    {"", nullptr, &none},
};

constexpr int max_kernels = 256;

struct kernel_table {
  built_kernel rows[max_kernels];
  int count = 0;
  kernel_table() {
    for (const kernel_file& file : files)
      for (int i = *file.count - 1; i >= 0 && count < max_kernels; --i) rows[count++] = {file.compute, &file.rows[i]};
  }
};

const kernel_table& kernels() {
  static const kernel_table table;
  return table;
}

// Code for `arch` itself, or what its chip runs as well: PTX of less, of which kernels that need `minimum` have none
// below.
bool is_built_for(int arch, int minimum) {
  for (const char* p = architectures(); *p;) {
    char* end;
    const long built_arch = std::strtol(p, &end, 10);
    const bool exact = *end == 'a' || *end == 'f';  // no other chip runs it
    if (exact ? built_arch == arch : built_arch >= minimum && built_arch <= arch) return true;
    p = end + std::strcspn(end, " ");
    p += *p == ' ';
  }
  return false;
}

// What the fp8 family multiplies: weights of which every finite value is one of e4m3's.
bool fits_e4m3(const format_row& format) {
  for (int c = 0; c < 1 << format.bits; ++c) {
    const float value = format.values[c];
    if (std::isfinite(value) && e4m3.value(f32_to_e4m3(value)) != value) return false;
  }
  return true;
}

}  // namespace

int num_kernels() { return kernels().count; }
const built_kernel& kernel_at(int index) { return kernels().rows[index]; }

#ifdef LOWBIT_CUDA_ARCHS_BUILT
const char* architectures() { return LOWBIT_CUDA_ARCHS_BUILT; }
#else
const char* architectures() { return ""; }
#endif

const char* why_none_runs() {
  if constexpr (built) return problem();
  return "this lowbit was built without CUDA kernels";
}

int num_usable_devices() {
  if constexpr (built) return num_devices();
  return 0;
}

const device& usable_device(int index) {
  if constexpr (built) return device_at(index);
  static const device nothing{};
  return nothing;
}

lowbit_status current_device_info(device_info* info) {
  if (const char* why = why_none_runs()) return fail(LOWBIT_UNSUPPORTED, "no CUDA kernel runs here: %s", why);
  int index = -1;
  if constexpr (built) index = current_device();
  if (index < 0) return fail(LOWBIT_UNSUPPORTED, "no CUDA kernel runs here: the calling thread has no current device");
  *info = usable_device(index).info;
  return LOWBIT_OK;
}

int kernel_dtype(lowbit_family family, int x_dtype) {
  if (!is_float_dtype(x_dtype)) return x_dtype;
  if (family == LOWBIT_INTEGER) return LOWBIT_I8;
  if (family == LOWBIT_FP8) return LOWBIT_E4M3;
  return x_dtype == LOWBIT_F32 ? LOWBIT_BF16 : x_dtype;
}

lowbit_status typical_device(int arch, device_info* info) {
  // SMs and L2 of the data center chip of each kind; shared memory: CUDA C++ Programming Guide, "Technical
  // specifications per compute capability".
  static constexpr device_info known[] = {
      {80, 108, 163 << 10, 40 << 20},   {86, 84, 99 << 10, 6 << 20},     {87, 16, 163 << 10, 4 << 20},
      {89, 142, 99 << 10, 96 << 20},    {90, 132, 227 << 10, 50 << 20},  {100, 148, 227 << 10, 126 << 20},
      {103, 148, 227 << 10, 126 << 20}, {120, 188, 99 << 10, 128 << 20}, {121, 48, 99 << 10, 24 << 20},
  };
  char list[160] = "";
  size_t used = 0;
  for (const device_info& d : known) {
    if (d.arch == arch) {
      *info = d;
      return LOWBIT_OK;
    }
    used += static_cast<size_t>(
        std::snprintf(list + used, sizeof list - used, "%s%d.%d", used ? ", " : "", d.arch / 10, d.arch % 10));
  }
  return fail(LOWBIT_INVALID_VALUE, "nothing is known of devices of compute capability %d.%d: it must be one of %s",
              arch / 10, arch % 10, list);
}

const char* arch_refusal(const kernel_row& row, const device_info& device) {
  static thread_local char reason[160];
  if (device.arch < row.min_arch || device.arch > row.max_arch) {
    const char* more = row.min_arch == row.max_arch ? "" : row.max_arch >= 999 ? " or more" : " or of its kind";
    std::snprintf(reason, sizeof reason, "needs compute capability %d.%d%s; the device has %d.%d", row.min_arch / 10,
                  row.min_arch % 10, more, device.arch / 10, device.arch % 10);
    return reason;
  }
  if (!is_built_for(device.arch, row.min_arch)) {
    std::snprintf(reason, sizeof reason, "built for %s: a device of compute capability %d.%d runs none of them",
                  architectures(), device.arch / 10, device.arch % 10);
    return reason;
  }
  return nullptr;
}

const char* refusal(const kernel_row& row, lowbit_family family, const gemm_problem& p, const device_info& device) {
  static thread_local char reason[160];
  if (row.family != family) return "another family";
  if (const char* why = arch_refusal(row, device)) return why;
  if (family == LOWBIT_INTEGER && !p.w.format->integer()) {
    std::snprintf(reason, sizeof reason, "%s is no integer format", p.w.format->name);
    return reason;
  }
  if (!(row.recipes & bit(p.w.format->decode))) {
    std::snprintf(reason, sizeof reason, "does not decode %s", p.w.format->name);
    return reason;
  }
  if (!(row.x_dtypes & bit(static_cast<lowbit_dtype>(p.x_dtype)))) {
    std::snprintf(reason, sizeof reason, "does not take %s activations", dtype_name(p.x_dtype));
    return reason;
  }
  if (const char* why = row.refuses ? row.refuses(p, device) : nullptr) return why;
  if (family == LOWBIT_FP8 && !fits_e4m3(*p.w.format)) {  // last: it looks at 256 values
    std::snprintf(reason, sizeof reason, "e4m3 has not every value of %s", p.w.format->name);
    return reason;
  }
  return nullptr;
}

const kernel_row* select_kernel(lowbit_family family, const gemm_problem& problem, const device_info& device) {
  for (int i = num_kernels() - 1; i >= 0; --i)
    if (!refusal(*kernel_at(i).row, family, problem, device)) return kernel_at(i).row;
  return nullptr;
}

}  // namespace lowbit::cuda
