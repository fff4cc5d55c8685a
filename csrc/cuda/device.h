// The CUDA devices of this machine, looked up when first asked for.
#pragma once

#include "cuda/contract.h"

namespace lowbit::cuda {

struct device {
  char name[64];
  device_info info;
  int64_t memory_bytes;
};

// Why no kernel can run here, or null.
const char* problem();
int num_devices();
const device& device_at(int index);  // index in [0, num_devices())
int current_device();                // of the calling thread; -1: there is none

}  // namespace lowbit::cuda
