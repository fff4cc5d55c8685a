// The CUDA kernels that were built, and which of them runs a problem on a device.
#pragma once

#include "cuda/contract.h"
#include "cuda/device.h"

namespace lowbit::cuda {

struct built_kernel {
  const char* compute;  // "sm80": what it needs at least, or of "sm90", "sm100", "sm120" exactly
  const kernel_row* row;
};

int num_kernels();
const built_kernel& kernel_at(int index);  // worst first, in the order of csrc/cuda/kernels.inc

#ifdef LOWBIT_CUDA_ARCHS_BUILT
inline constexpr bool built = true;  // else nothing of csrc/cuda is there to be called
#else
inline constexpr bool built = false;
#endif

const char* architectures();  // "80 89 90a": built for these; "" without CUDA kernels
const char* why_none_runs();  // a sentence; null: there is a device to run on
int num_usable_devices();
const device& usable_device(int index);

// The calling thread's current device; null and a sentence where there is none.
lowbit_status current_device_info(device_info* info);
// What is known of a device of compute capability `arch` without having one: to explain choices.
lowbit_status typical_device(int arch, device_info* info);

// The dtype in which activations reach the kernels of a family; others are rounded or quantized first.
int kernel_dtype(lowbit_family family, int x_dtype);

// Why no kernel of this row runs on such a device, or null.
const char* arch_refusal(const kernel_row& row, const device_info& device);
// Why the kernel does not run this problem on this device, or null if it does.
const char* refusal(const kernel_row& row, lowbit_family family, const gemm_problem& problem,
                    const device_info& device);
// The best kernel, or null.
const kernel_row* select_kernel(lowbit_family family, const gemm_problem& problem, const device_info& device);

}  // namespace lowbit::cuda
