// The emulator's side of csrc/cuda/common/host.h: one device, of the compute capability that LOWBIT_EMULATED_ARCH names
// (90 without it). LOWBIT_EMULATED_HOST_MEMORY: arrays of the caller's are device memory.
#pragma once

#include <cstdio>
#include <cstdlib>

#include "cuda/device.h"
#include "emulator/emulator.h"

namespace lowbit::cuda {

inline const char* runtime_problem(int* num_devices) {
  if (std::getenv("LOWBIT_EMULATED_HOST_MEMORY")) emulator::accept_host_memory();
  *num_devices = 1;
  return nullptr;
}

inline bool read_device(int, device* d) {
  const char* wanted = std::getenv("LOWBIT_EMULATED_ARCH");
  const int arch = wanted ? std::atoi(wanted) : 90;
  std::snprintf(d->name, sizeof d->name, "emulated sm_%d", arch);
  d->info = {arch, 4, arch == 80 || arch == 87 ? 163 << 10 : arch >= 90 && arch < 120 ? 227 << 10 : 99 << 10, 1 << 20};
  d->memory_bytes = int64_t{1} << 30;
  return true;
}

inline int current_device_index() { return 0; }

}  // namespace lowbit::cuda
