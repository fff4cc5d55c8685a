// What the host asks of the CUDA runtime besides launches. tests/cuda_emulator/cuda/common/host.h: the same names.
#pragma once

#include <cuda_runtime.h>
#include <dlfcn.h>

#include <cstdio>

#include "cuda/device.h"

namespace lowbit::cuda {

// Why the runtime has no device, or null. The driver is not loaded before the first call.
inline const char* runtime_problem(int* num_devices) {
  *num_devices = 0;
  void* driver = dlopen("libcuda.so.1", RTLD_LAZY | RTLD_LOCAL);
  if (!driver) return "there is no NVIDIA driver here (libcuda.so.1)";
  dlclose(driver);
  const cudaError_t error = cudaGetDeviceCount(num_devices);
  if (error == cudaSuccess && *num_devices > 0) return nullptr;
  *num_devices = 0;
  cudaGetLastError();  // forgets it
  if (error == cudaSuccess || error == cudaErrorNoDevice) return "the NVIDIA driver sees no GPU";
  return cudaGetErrorString(error);
}

inline bool read_device(int index, device* d) {
  int major = 0, minor = 0, sms = 0, shared = 0, l2 = 0;
  const auto get = [&](int* value, cudaDeviceAttr attribute) {
    return cudaDeviceGetAttribute(value, attribute, index) == cudaSuccess;
  };
  if (!get(&major, cudaDevAttrComputeCapabilityMajor) || !get(&minor, cudaDevAttrComputeCapabilityMinor) ||
      !get(&sms, cudaDevAttrMultiProcessorCount) || !get(&shared, cudaDevAttrMaxSharedMemoryPerBlockOptin) ||
      !get(&l2, cudaDevAttrL2CacheSize))
    return false;
  cudaDeviceProp properties;
  if (cudaGetDeviceProperties(&properties, index) != cudaSuccess) return false;
  std::snprintf(d->name, sizeof d->name, "%s", properties.name);
  d->info = {major * 10 + minor, sms, shared, l2};
  d->memory_bytes = static_cast<int64_t>(properties.totalGlobalMem);
  return true;
}

inline int current_device_index() {
  int index = 0;
  return cudaGetDevice(&index) == cudaSuccess ? index : -1;
}

}  // namespace lowbit::cuda
