// mbarriers, the fences around them, and copies by the bulk engine (sm_90 and later). PTX ISA 9.0 sections in brackets.
//
// A copy lands when no thread can go on any more, the last one issued first; with a seed now and then, in any order.
// Its bytes belong to the engine from the issue on; who has waited for its mbarrier may touch them. The engine is a
// proxy of its own [8.x, proxies]: ordinary stores that it reads or overwrites need fence_async_proxy first.
#pragma once

#include "emulator/machine.h"

namespace emulator {

// [9.7.13.15: mbarrier.init, arrive, arrive.expect_tx, try_wait.parity]
void mbarrier_init(uint32_t address, int arrivals, place where);
void mbarrier_arrive(uint32_t address, int64_t expected_bytes, const char* what, place where);
void mbarrier_arrive_remote(uint32_t address, int rank, place where);
void mbarrier_wait(uint32_t address, uint32_t parity, place where);

// [9.7.13.4: fence.proxy.async, fence.mbarrier_init] Of the accesses of this lane.
void proxy_fence();

// What cuTensorMapEncodeTiled makes of two dimensions.
struct tensor {
  const uint8_t* data = nullptr;
  int64_t columns = 0, rows = 0, stride = 0;  // elements, rows, bytes
  int element_bytes = 0, box_columns = 0, box_rows = 0;
  int swizzle = 0;  // 0, 32, 64 or 128 bytes
};
// "" or why the driver would refuse it. [CUDA driver API: cuTensorMapEncodeTiled]
std::string check_tensor(const tensor& t);

// [5.5.5: swizzle] 16-byte pieces move within 2, 4 or 8 rows of 32, 64 or 128 bytes.
constexpr uint32_t swizzled(uint32_t address, int swizzle) {
  if (swizzle == 128) return address ^ (address >> 7 & 7) << 4;
  if (swizzle == 64) return address ^ (address >> 7 & 3) << 4;
  if (swizzle == 32) return address ^ (address >> 7 & 1) << 4;
  return address;
}

// [9.7.9.25.4.1: cp.async.bulk; 9.7.9.25.5.2: cp.async.bulk.tensor] `ctas`: bits of the ranks that get it; 0: this one.
void bulk_copy(uint32_t shared, const void* global, int bytes, uint32_t barrier, place where);
void tensor_copy(uint32_t shared, const tensor& map, int column, int row, uint32_t barrier, uint16_t ctas, place where);

}  // namespace emulator
