// The vocabulary of kernels, part 1: threads, barriers, warps. Only this folder says asm or names CUDA's builtins; the
// kernels are standard C++ written on it, and tests/cuda_emulator has the same names for the host compiler.
// Numbers in brackets are sections of the PTX ISA 9.0 manual.
#pragma once

#include <cstdint>

#define LOWBIT_KERNEL(threads, min_ctas) __global__ __launch_bounds__(threads, min_ctas)
#define LOWBIT_DEVICE __device__ __forceinline__
#define LOWBIT_PRAGMA(text) _Pragma(#text)
#define LOWBIT_UNROLL LOWBIT_PRAGMA(unroll)
#define LOWBIT_UNROLL_N(n) LOWBIT_PRAGMA(unroll n)

// The architecture that is being compiled (800, 890, 900, 1000, 1200); 0 in host code.
#ifdef __CUDA_ARCH__
#define LOWBIT_DEVICE_ARCH __CUDA_ARCH__
#else
#define LOWBIT_DEVICE_ARCH 0
#endif

namespace lowbit::cuda {

inline constexpr int warp_threads = 32;

// ---- where am I [10: special registers] ----------------------------------------------------------------------

LOWBIT_DEVICE int thread_index() { return static_cast<int>(threadIdx.x); }
LOWBIT_DEVICE int lane_index() { return static_cast<int>(threadIdx.x % 32); }
// The same in every lane, and the compiler knows it: what depends on it may use uniform registers.
LOWBIT_DEVICE int warp_index() { return __shfl_sync(0xffffffffu, static_cast<int>(threadIdx.x / 32), 0); }
// `value` is the same in every lane: now the compiler knows it, and keeps it in a uniform register.  [9.7.13.12: redux]
LOWBIT_DEVICE uint32_t warp_uniform(uint32_t value) {
#if LOWBIT_DEVICE_ARCH >= 800
  return __reduce_or_sync(0xffffffffu, value);
#else
  return value;
#endif
}
LOWBIT_DEVICE int cta_index() { return static_cast<int>(blockIdx.x); }
LOWBIT_DEVICE int cta_index_y() { return static_cast<int>(blockIdx.y); }
LOWBIT_DEVICE int cta_index_z() { return static_cast<int>(blockIdx.z); }
LOWBIT_DEVICE int num_ctas() { return static_cast<int>(gridDim.x); }
LOWBIT_DEVICE int num_ctas_y() { return static_cast<int>(gridDim.y); }
LOWBIT_DEVICE int num_ctas_z() { return static_cast<int>(gridDim.z); }
LOWBIT_DEVICE int num_threads() { return static_cast<int>(blockDim.x); }

// ---- barriers of a CTA and of a warp -------------------------------------------------------------------------

LOWBIT_DEVICE void sync_threads() { __syncthreads(); }  // [9.7.13.1: barrier.sync 0]
LOWBIT_DEVICE void sync_warp() { __syncwarp(); }        // [9.7.13.2: bar.warp.sync]

// Named barriers, 1 .. 15; `threads` take part, a multiple of 32.  [9.7.13.1: barrier.sync, barrier.arrive]
LOWBIT_DEVICE void barrier_sync(int id, int threads) {
  asm volatile("barrier.sync.aligned %0, %1;" ::"r"(id), "r"(threads) : "memory");
}
LOWBIT_DEVICE void barrier_arrive(int id, int threads) {
  asm volatile("barrier.arrive.aligned %0, %1;" ::"r"(id), "r"(threads) : "memory");
}

// ---- all 32 lanes together -----------------------------------------------------------------------------------

// T: int32_t, uint32_t, float.  [9.7.9.6: shfl.sync]
template <class T>
LOWBIT_DEVICE T shuffle(T value, int source) {
  return __shfl_sync(0xffffffffu, value, source);
}
template <class T>
LOWBIT_DEVICE T shuffle_xor(T value, int mask) {
  return __shfl_xor_sync(0xffffffffu, value, mask);
}
// The value `distance` lanes up; the last lanes keep their own.
template <class T>
LOWBIT_DEVICE T shuffle_down(T value, int distance) {
  return __shfl_down_sync(0xffffffffu, value, distance);
}
LOWBIT_DEVICE bool any(bool predicate) { return __any_sync(0xffffffffu, predicate); }  // [9.7.13.9: vote.sync]
LOWBIT_DEVICE bool all(bool predicate) { return __all_sync(0xffffffffu, predicate); }
LOWBIT_DEVICE uint32_t ballot(bool predicate) { return __ballot_sync(0xffffffffu, predicate); }

// True in one lane of the warp, always the same one.  [9.7.13.14: elect.sync]
LOWBIT_DEVICE bool elect_one() {
#if LOWBIT_DEVICE_ARCH >= 900
  uint32_t elected;
  asm volatile(
      "{\n"
      ".reg .pred p;\n"
      "elect.sync _|p, 0xffffffff;\n"
      "selp.u32 %0, 1, 0, p;\n"
      "}\n"
      : "=r"(elected));
  return elected != 0;
#else
  return lane_index() == 0;
#endif
}

// ---- sm_90 and later -----------------------------------------------------------------------------------------

// Rank of the CTA in its cluster, and the cluster's size: 0 and 1 where there are no clusters.  [10: %cluster_ctarank]
LOWBIT_DEVICE int cluster_rank() {
#if LOWBIT_DEVICE_ARCH >= 900
  int rank;
  asm volatile("mov.u32 %0, %%cluster_ctarank;" : "=r"(rank));
  return rank;
#else
  return 0;
#endif
}
LOWBIT_DEVICE int cluster_size() {
#if LOWBIT_DEVICE_ARCH >= 900
  int size;
  asm volatile("mov.u32 %0, %%cluster_nctarank;" : "=r"(size));
  return size;
#else
  return 1;
#endif
}

enum class registers { increase, decrease };

// Every warp of a warpgroup moves to N registers a thread, 24 .. 256 in steps of 8. Only sm_90a, 100a, ... have it.
// [9.7.19.5: setmaxnreg]
template <int N, registers change>
LOWBIT_DEVICE void set_max_registers() {
  static_assert(N >= 24 && N <= 256 && N % 8 == 0);
#if defined(__CUDA_ARCH_FEAT_SM90_ALL) || defined(__CUDA_ARCH_FEAT_SM100_ALL) || defined(__CUDA_ARCH_FEAT_SM120_ALL)
  if constexpr (change == registers::increase)
    asm volatile("setmaxnreg.inc.sync.aligned.u32 %0;" ::"n"(N));
  else
    asm volatile("setmaxnreg.dec.sync.aligned.u32 %0;" ::"n"(N));
#endif
}

// A kernel launched with `dependent` starts before the one ahead of it in the stream has ended: it may touch global
// memory that others write only behind wait(). launch() lets the next one start.  [9.7.13.13: griddepcontrol]
LOWBIT_DEVICE void grid_dependency_wait() {
#if LOWBIT_DEVICE_ARCH >= 900
  asm volatile("griddepcontrol.wait;" ::: "memory");
#endif
}
LOWBIT_DEVICE void grid_dependency_launch() {
#if LOWBIT_DEVICE_ARCH >= 900
  asm volatile("griddepcontrol.launch_dependents;" ::: "memory");
#endif
}

}  // namespace lowbit::cuda
