// The vocabulary of kernels, part 5: the host starts them.
#pragma once

#include <cuda_runtime.h>

#include <atomic>

#include "cuda/common/device.h"
#include "gemm/status.h"

namespace lowbit::cuda {

struct launch_shape {
  int grid_x, grid_y = 1, grid_z = 1;
  int threads;
  int cluster = 1;           // CTAs along x that form one: sm_90 and later
  int64_t shared_bytes = 0;  // dynamic, a CTA
  void* stream = nullptr;
  bool dependent = false;  // may start before the kernel ahead has ended: see grid_dependency_wait (sm_90 and later)
};

inline lowbit_status cuda_failed(cudaError_t error, const char* what) {
  (void)cudaGetLastError();  // not for the next call to find
  return fail(error == cudaErrorMemoryAllocation ? LOWBIT_OUT_OF_MEMORY : LOWBIT_UNSUPPORTED, "%s: %s", what,
              cudaGetErrorString(error));
}

// Shared memory beyond 48 KB has to be asked for, once for each kernel and device.
template <auto kernel>
cudaError_t allow_shared_memory() {
  constexpr int max_devices = 64;
  static std::atomic<bool> allowed[max_devices];
  int device = 0;
  if (const cudaError_t error = cudaGetDevice(&device)) return error;
  if (device < max_devices && allowed[device].load(std::memory_order_acquire)) return cudaSuccess;
  int bytes = 0;
  if (const cudaError_t error = cudaDeviceGetAttribute(&bytes, cudaDevAttrMaxSharedMemoryPerBlockOptin, device))
    return error;
  if (const cudaError_t error = cudaFuncSetAttribute(reinterpret_cast<const void*>(kernel),
                                                     cudaFuncAttributeMaxDynamicSharedMemorySize, bytes))
    return error;
  if (device < max_devices) allowed[device].store(true, std::memory_order_release);
  return cudaSuccess;
}

// kernel(arguments) on shape.stream. Errors of the launch are returned; those of the kernel come out where the stream
// is waited for.
template <auto kernel, class Arguments>
lowbit_status launch(const launch_shape& shape, const Arguments& arguments) {
  if (shape.shared_bytes > 48 * 1024)
    if (const cudaError_t error = allow_shared_memory<kernel>()) return cuda_failed(error, "shared memory");
  cudaLaunchAttribute attributes[2];
  unsigned num_attributes = 0;
  if (shape.cluster > 1) {
    cudaLaunchAttribute& cluster = attributes[num_attributes++];
    cluster.id = cudaLaunchAttributeClusterDimension;
    cluster.val.clusterDim.x = static_cast<unsigned>(shape.cluster);
    cluster.val.clusterDim.y = 1;
    cluster.val.clusterDim.z = 1;
  }
  if (shape.dependent) {
    cudaLaunchAttribute& dependent = attributes[num_attributes++];
    dependent.id = cudaLaunchAttributeProgrammaticStreamSerialization;
    dependent.val.programmaticStreamSerializationAllowed = 1;
  }
  cudaLaunchConfig_t config{};
  config.gridDim = dim3(static_cast<unsigned>(shape.grid_x), static_cast<unsigned>(shape.grid_y),
                        static_cast<unsigned>(shape.grid_z));
  config.blockDim = dim3(static_cast<unsigned>(shape.threads));
  config.dynamicSmemBytes = static_cast<size_t>(shape.shared_bytes);
  config.stream = static_cast<cudaStream_t>(shape.stream);
  config.attrs = attributes;
  config.numAttrs = num_attributes;
  void* parameters[] = {const_cast<Arguments*>(&arguments)};
  if (const cudaError_t error = cudaLaunchKernelExC(&config, reinterpret_cast<const void*>(kernel), parameters))
    return cuda_failed(error, "kernel launch");
  return LOWBIT_OK;
}

}  // namespace lowbit::cuda
