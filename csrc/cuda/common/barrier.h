// Barriers in shared memory that count arrivals and bytes (PTX ISA 9.7.13.15, mbarrier), clusters of CTAs, and the
// fence between ordinary and asynchronous accesses. sm_90 and later.
#pragma once

#include "cuda/common/device.h"

namespace lowbit::cuda {

// A barrier is 8 aligned bytes. Its phase completes when `arrivals` threads have arrived and all expected bytes have
// landed; phases alternate parity 0, 1, 0, ...
LOWBIT_DEVICE void mbarrier_init(uint32_t barrier, int arrivals) {
  asm volatile("mbarrier.init.shared::cta.b64 [%0], %1;" ::"r"(barrier), "r"(arrivals) : "memory");
}
// Makes initialised barriers visible to the cluster and to asynchronous copies.
LOWBIT_DEVICE void fence_mbarrier_init() { asm volatile("fence.mbarrier_init.release.cluster;" ::: "memory"); }
LOWBIT_DEVICE void mbarrier_arrive(uint32_t barrier) {
  asm volatile("mbarrier.arrive.shared::cta.b64 _, [%0];" ::"r"(barrier) : "memory");
}
// Arrives on the barrier at the same address of another CTA of the cluster. Release at CTA scope, the default: a wider
// one costs a MEMBAR.GPU, and who arrives here has only read.
LOWBIT_DEVICE void mbarrier_arrive_cluster(uint32_t barrier, int cta) {
  asm volatile(
      "{ .reg .b32 remote;\n"
      "mapa.shared::cluster.u32 remote, %0, %1;\n"
      "mbarrier.arrive.shared::cluster.b64 _, [remote]; }" ::"r"(barrier),
      "r"(cta)
      : "memory");
}
// Arrives, and adds to the bytes that the phase waits for.
LOWBIT_DEVICE void mbarrier_expect_bytes(uint32_t barrier, int bytes) {
  asm volatile("mbarrier.arrive.expect_tx.shared::cta.b64 _, [%0], %1;" ::"r"(barrier), "r"(bytes) : "memory");
}
// Waits until the phase of this parity has completed.
LOWBIT_DEVICE void mbarrier_wait(uint32_t barrier, uint32_t parity) {
  asm volatile(
      "{ .reg .pred done;\n"
      "again:\n"
      "mbarrier.try_wait.parity.shared::cta.b64 done, [%0], %1;\n"
      "@done bra complete;\n"
      "bra again;\n"
      "complete: }" ::"r"(barrier),
      "r"(parity)
      : "memory");
}

// Every thread of every CTA of the cluster.
LOWBIT_DEVICE void cluster_sync() {
  asm volatile("barrier.cluster.arrive.release.aligned;\nbarrier.cluster.wait.acquire.aligned;" ::: "memory");
}

// Orders this thread's shared memory accesses before asynchronous copies and MMAs that touch the same bytes.
LOWBIT_DEVICE void fence_async_proxy() { asm volatile("fence.proxy.async.shared::cta;" ::: "memory"); }

}  // namespace lowbit::cuda
