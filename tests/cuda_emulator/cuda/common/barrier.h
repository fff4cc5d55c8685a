// The emulator's side of csrc/cuda/common/barrier.h.
#pragma once

#include "cuda/common/device.h"
#include "emulator/bulk.h"

namespace lowbit::cuda {

inline void mbarrier_init(uint32_t barrier, int arrivals, place where = place::current()) {
  emulator::mbarrier_init(barrier, arrivals, where);
}
inline void fence_mbarrier_init() { emulator::proxy_fence(); }
inline void mbarrier_arrive(uint32_t barrier, place where = place::current()) {
  emulator::mbarrier_arrive(barrier, 0, "mbarrier_arrive", where);
}
inline void mbarrier_arrive_cluster(uint32_t barrier, int cta, place where = place::current()) {
  emulator::mbarrier_arrive_remote(barrier, cta, where);
}
inline void mbarrier_expect_bytes(uint32_t barrier, int bytes, place where = place::current()) {
  emulator::mbarrier_arrive(barrier, bytes, "mbarrier_expect_bytes", where);
}
inline void mbarrier_wait(uint32_t barrier, uint32_t parity, place where = place::current()) {
  emulator::mbarrier_wait(barrier, parity, where);
}
inline void cluster_sync(place where = place::current()) { emulator::running->cluster_barrier(where); }
inline void fence_async_proxy() { emulator::proxy_fence(); }

}  // namespace lowbit::cuda
