// The vocabulary of kernels, part 2: global and shared memory, asynchronous copies, matrices in shared memory.
#pragma once

#include "cuda/common/device.h"

namespace lowbit::cuda {

// Words that move together. An address must be a multiple of the size moved.
struct u32x2 {
  uint32_t x, y;
};
struct u32x4 {
  uint32_t x, y, z, w;
};

LOWBIT_DEVICE float as_float(uint32_t bits) { return __uint_as_float(bits); }
LOWBIT_DEVICE uint32_t as_u32(float value) { return __float_as_uint(value); }

// What a load leaves in the caches. `streaming` and `keep` are for data that nobody writes while the kernel runs.
enum class cache {
  normal,
  streaming,  // read once: not into L1, the first to leave L2
  keep,       // read again by other CTAs: the last to leave L2
};

namespace detail {

// [9.7.9.18: createpolicy]
template <cache C>
LOWBIT_DEVICE uint64_t l2_policy() {
  uint64_t policy;
  if constexpr (C == cache::streaming)
    asm("createpolicy.fractional.L2::evict_first.b64 %0, 1.0;" : "=l"(policy));
  else
    asm("createpolicy.fractional.L2::evict_last.b64 %0, 1.0;" : "=l"(policy));
  return policy;
}

}  // namespace detail

// ---- global memory -------------------------------------------------------------------------------------------

// T: uint8_t, int8_t, uint16_t, uint32_t, int32_t, float, u32x2, u32x4.
// [9.7.9.8: ld.global; 9.7.9.9: ld.global.nc with L1::no_allocate and L2::cache_hint]
template <class T, cache C = cache::normal>
LOWBIT_DEVICE T global_load(const void* address) {
  static_assert(sizeof(T) == 1 || sizeof(T) == 2 || sizeof(T) == 4 || sizeof(T) == 8 || sizeof(T) == 16);
  if constexpr (C == cache::normal) {
    if constexpr (sizeof(T) == 16) {
      const uint4 v = *static_cast<const uint4*>(address);
      return T{v.x, v.y, v.z, v.w};
    } else if constexpr (sizeof(T) == 8) {
      const uint2 v = *static_cast<const uint2*>(address);
      return T{v.x, v.y};
    } else {
      return *static_cast<const T*>(address);
    }
  } else {
    const uint64_t policy = detail::l2_policy<C>();
    if constexpr (sizeof(T) == 16) {
      T v;
      if constexpr (C == cache::streaming)
        asm("ld.global.nc.L1::no_allocate.L2::cache_hint.v4.u32 {%0, %1, %2, %3}, [%4], %5;"
            : "=r"(v.x), "=r"(v.y), "=r"(v.z), "=r"(v.w)
            : "l"(address), "l"(policy));
      else
        asm("ld.global.nc.L2::cache_hint.v4.u32 {%0, %1, %2, %3}, [%4], %5;"
            : "=r"(v.x), "=r"(v.y), "=r"(v.z), "=r"(v.w)
            : "l"(address), "l"(policy));
      return v;
    } else if constexpr (sizeof(T) == 8) {
      T v;
      if constexpr (C == cache::streaming)
        asm("ld.global.nc.L1::no_allocate.L2::cache_hint.v2.u32 {%0, %1}, [%2], %3;"
            : "=r"(v.x), "=r"(v.y)
            : "l"(address), "l"(policy));
      else
        asm("ld.global.nc.L2::cache_hint.v2.u32 {%0, %1}, [%2], %3;"
            : "=r"(v.x), "=r"(v.y)
            : "l"(address), "l"(policy));
      return v;
    } else if constexpr (sizeof(T) == 4) {
      uint32_t v;
      if constexpr (C == cache::streaming)
        asm("ld.global.nc.L1::no_allocate.L2::cache_hint.u32 %0, [%1], %2;" : "=r"(v) : "l"(address), "l"(policy));
      else
        asm("ld.global.nc.L2::cache_hint.u32 %0, [%1], %2;" : "=r"(v) : "l"(address), "l"(policy));
      return *reinterpret_cast<T*>(&v);
    } else if constexpr (sizeof(T) == 2) {
      uint16_t v;
      if constexpr (C == cache::streaming)
        asm("ld.global.nc.L1::no_allocate.L2::cache_hint.u16 %0, [%1], %2;" : "=h"(v) : "l"(address), "l"(policy));
      else
        asm("ld.global.nc.L2::cache_hint.u16 %0, [%1], %2;" : "=h"(v) : "l"(address), "l"(policy));
      return static_cast<T>(v);
    } else {
      uint16_t v;
      if constexpr (C == cache::streaming)
        asm("ld.global.nc.L1::no_allocate.L2::cache_hint.u8 %0, [%1], %2;" : "=h"(v) : "l"(address), "l"(policy));
      else
        asm("ld.global.nc.L2::cache_hint.u8 %0, [%1], %2;" : "=h"(v) : "l"(address), "l"(policy));
      return static_cast<T>(v);
    }
  }
}

template <class T>
LOWBIT_DEVICE void global_store(void* address, T value) {  // [9.7.9.11: st.global]
  if constexpr (sizeof(T) == 16)
    *static_cast<uint4*>(address) = make_uint4(value.x, value.y, value.z, value.w);
  else if constexpr (sizeof(T) == 8)
    *static_cast<uint2*>(address) = make_uint2(value.x, value.y);
  else
    *static_cast<T*>(address) = value;
}

// Between CTAs: what a thread wrote before its release is there for who reads behind the acquire that saw it. Other
// threads of the CTA come before the release, or behind the acquire, by sync_threads().
// [9.7.9.8: ld.acquire.gpu; 9.7.13.5: atom.acq_rel.gpu; 9.7.13.4: fence.acq_rel.gpu]
LOWBIT_DEVICE uint32_t global_load_acquire(const uint32_t* address) {
  uint32_t value;
  asm volatile("ld.acquire.gpu.global.u32 %0, [%1];" : "=r"(value) : "l"(address) : "memory");
  return value;
}
LOWBIT_DEVICE void global_store_release(uint32_t* address, uint32_t value) {
  asm volatile("st.release.gpu.global.u32 [%0], %1;" ::"l"(address), "r"(value) : "memory");
}
// The value before. Acquires, too: the CTA that comes last reads what the others wrote.
LOWBIT_DEVICE uint32_t atomic_add_release(uint32_t* address, uint32_t value) {
  uint32_t before;
  asm volatile("atom.acq_rel.gpu.global.add.u32 %0, [%1], %2;" : "=r"(before) : "l"(address), "r"(value) : "memory");
  return before;
}
LOWBIT_DEVICE void memory_fence() { __threadfence(); }

// ---- shared memory -------------------------------------------------------------------------------------------

// Where the CTA's dynamic shared memory starts: a multiple of 1024. Addresses in shared memory are numbers.
LOWBIT_DEVICE uint32_t shared_base() {
  extern __shared__ __align__(1024) uint8_t lowbit_dynamic_shared[];
  return static_cast<uint32_t>(__cvta_generic_to_shared(lowbit_dynamic_shared));
}

template <class T>
LOWBIT_DEVICE T shared_load(uint32_t address) {  // [9.7.9.8: ld.shared]
  if constexpr (sizeof(T) == 16) {
    T v;
    asm volatile("ld.shared.v4.u32 {%0, %1, %2, %3}, [%4];"
                 : "=r"(v.x), "=r"(v.y), "=r"(v.z), "=r"(v.w)
                 : "r"(address)
                 : "memory");
    return v;
  } else if constexpr (sizeof(T) == 8) {
    T v;
    asm volatile("ld.shared.v2.u32 {%0, %1}, [%2];" : "=r"(v.x), "=r"(v.y) : "r"(address) : "memory");
    return v;
  } else if constexpr (sizeof(T) == 4) {
    uint32_t v;
    asm volatile("ld.shared.u32 %0, [%1];" : "=r"(v) : "r"(address) : "memory");
    return *reinterpret_cast<T*>(&v);
  } else if constexpr (sizeof(T) == 2) {
    uint16_t v;
    asm volatile("ld.shared.u16 %0, [%1];" : "=h"(v) : "r"(address) : "memory");
    return static_cast<T>(v);
  } else {
    static_assert(sizeof(T) == 1);
    uint16_t v;
    asm volatile("ld.shared.u8 %0, [%1];" : "=h"(v) : "r"(address) : "memory");
    return static_cast<T>(v);
  }
}

template <class T>
LOWBIT_DEVICE void shared_store(uint32_t address, T value) {  // [9.7.9.11: st.shared]
  if constexpr (sizeof(T) == 16)
    asm volatile("st.shared.v4.u32 [%0], {%1, %2, %3, %4};" ::"r"(address), "r"(value.x), "r"(value.y), "r"(value.z),
                 "r"(value.w)
                 : "memory");
  else if constexpr (sizeof(T) == 8)
    asm volatile("st.shared.v2.u32 [%0], {%1, %2};" ::"r"(address), "r"(value.x), "r"(value.y) : "memory");
  else if constexpr (sizeof(T) == 4)
    asm volatile("st.shared.u32 [%0], %1;" ::"r"(address), "r"(*reinterpret_cast<uint32_t*>(&value)) : "memory");
  else if constexpr (sizeof(T) == 2)
    asm volatile("st.shared.u16 [%0], %1;" ::"r"(address), "h"(static_cast<uint16_t>(value)) : "memory");
  else
    asm volatile("st.shared.u8 [%0], %1;" ::"r"(address), "h"(static_cast<uint16_t>(static_cast<uint8_t>(value)))
                 : "memory");
}

// ---- asynchronous copies, global to shared ---------------------------------------------------------------------

// 4, 8 or 16 bytes, of which the first `valid_bytes` are read and the others become zero. 16 bytes pass L1 by.
// [9.7.9.25.3.1: cp.async]
template <int bytes, cache C = cache::normal>
LOWBIT_DEVICE void async_copy(uint32_t shared, const void* global) {
  static_assert(bytes == 4 || bytes == 8 || bytes == 16);
  if constexpr (C != cache::normal) {
    const uint64_t policy = detail::l2_policy<C>();
    if constexpr (bytes == 16)
      asm volatile("cp.async.cg.shared.global.L2::cache_hint [%0], [%1], 16, %2;" ::"r"(shared), "l"(global),
                   "l"(policy)
                   : "memory");
    else
      asm volatile("cp.async.ca.shared.global.L2::cache_hint [%0], [%1], %2, %3;" ::"r"(shared), "l"(global),
                   "n"(bytes), "l"(policy)
                   : "memory");
  } else if constexpr (bytes == 16) {
    asm volatile("cp.async.cg.shared.global [%0], [%1], 16;" ::"r"(shared), "l"(global) : "memory");
  } else {
    asm volatile("cp.async.ca.shared.global [%0], [%1], %2;" ::"r"(shared), "l"(global), "n"(bytes) : "memory");
  }
}
template <int bytes, cache C = cache::normal>
LOWBIT_DEVICE void async_copy(uint32_t shared, const void* global, int valid_bytes) {
  static_assert(bytes == 4 || bytes == 8 || bytes == 16);
  if constexpr (C != cache::normal) {
    const uint64_t policy = detail::l2_policy<C>();
    if constexpr (bytes == 16)
      asm volatile("cp.async.cg.shared.global.L2::cache_hint [%0], [%1], 16, %2, %3;" ::"r"(shared), "l"(global),
                   "r"(valid_bytes), "l"(policy)
                   : "memory");
    else
      asm volatile("cp.async.ca.shared.global.L2::cache_hint [%0], [%1], %2, %3, %4;" ::"r"(shared), "l"(global),
                   "n"(bytes), "r"(valid_bytes), "l"(policy)
                   : "memory");
  } else if constexpr (bytes == 16) {
    asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;" ::"r"(shared), "l"(global), "r"(valid_bytes)
                 : "memory");
  } else {
    asm volatile("cp.async.ca.shared.global [%0], [%1], %2, %3;" ::"r"(shared), "l"(global), "n"(bytes),
                 "r"(valid_bytes)
                 : "memory");
  }
}

// A thread's copies since the last commit form a group; wait<N>: all but its last N groups have landed. Others see them
// behind a barrier.  [9.7.9.25.3.2: cp.async.commit_group; 9.7.9.25.3.3: cp.async.wait_group]
LOWBIT_DEVICE void async_commit() { asm volatile("cp.async.commit_group;" ::: "memory"); }
template <int N>
LOWBIT_DEVICE void async_wait() {
  asm volatile("cp.async.wait_group %0;" ::"n"(N) : "memory");
}

// ---- matrices of 8 rows of 16 bytes in shared memory -----------------------------------------------------------

// Lanes 8 i .. 8 i + 7 give the rows of matrix i (for N < 4 the other lanes' addresses are not read). Lane l gets
// columns 2 (l % 4), + 1 of row l / 4; transposed: rows 2 (l % 4), + 1 of column l / 4.
// [9.7.14.5.15: ldmatrix .m8n8 .b16; 9.7.14.5.16: stmatrix]
template <int N>
LOWBIT_DEVICE void ldmatrix(uint32_t (&r)[N], uint32_t address) {
  static_assert(N == 1 || N == 2 || N == 4);
  if constexpr (N == 4)
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0, %1, %2, %3}, [%4];"
                 : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3])
                 : "r"(address)
                 : "memory");
  else if constexpr (N == 2)
    asm volatile("ldmatrix.sync.aligned.m8n8.x2.shared.b16 {%0, %1}, [%2];"
                 : "=r"(r[0]), "=r"(r[1])
                 : "r"(address)
                 : "memory");
  else
    asm volatile("ldmatrix.sync.aligned.m8n8.x1.shared.b16 {%0}, [%1];" : "=r"(r[0]) : "r"(address) : "memory");
}
template <int N>
LOWBIT_DEVICE void ldmatrix_transposed(uint32_t (&r)[N], uint32_t address) {
  static_assert(N == 1 || N == 2 || N == 4);
  if constexpr (N == 4)
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0, %1, %2, %3}, [%4];"
                 : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3])
                 : "r"(address)
                 : "memory");
  else if constexpr (N == 2)
    asm volatile("ldmatrix.sync.aligned.m8n8.x2.trans.shared.b16 {%0, %1}, [%2];"
                 : "=r"(r[0]), "=r"(r[1])
                 : "r"(address)
                 : "memory");
  else
    asm volatile("ldmatrix.sync.aligned.m8n8.x1.trans.shared.b16 {%0}, [%1];" : "=r"(r[0]) : "r"(address) : "memory");
}

#if LOWBIT_DEVICE_ARCH == 0 || LOWBIT_DEVICE_ARCH >= 900
template <int N>
LOWBIT_DEVICE void stmatrix(uint32_t address, const uint32_t (&r)[N]) {
  static_assert(N == 1 || N == 2 || N == 4);
  if constexpr (N == 4)
    asm volatile("stmatrix.sync.aligned.m8n8.x4.shared.b16 [%0], {%1, %2, %3, %4};" ::"r"(address), "r"(r[0]),
                 "r"(r[1]), "r"(r[2]), "r"(r[3])
                 : "memory");
  else if constexpr (N == 2)
    asm volatile("stmatrix.sync.aligned.m8n8.x2.shared.b16 [%0], {%1, %2};" ::"r"(address), "r"(r[0]), "r"(r[1])
                 : "memory");
  else
    asm volatile("stmatrix.sync.aligned.m8n8.x1.shared.b16 [%0], {%1};" ::"r"(address), "r"(r[0]) : "memory");
}
template <int N>
LOWBIT_DEVICE void stmatrix_transposed(uint32_t address, const uint32_t (&r)[N]) {
  static_assert(N == 1 || N == 2 || N == 4);
  if constexpr (N == 4)
    asm volatile("stmatrix.sync.aligned.m8n8.x4.trans.shared.b16 [%0], {%1, %2, %3, %4};" ::"r"(address), "r"(r[0]),
                 "r"(r[1]), "r"(r[2]), "r"(r[3])
                 : "memory");
  else if constexpr (N == 2)
    asm volatile("stmatrix.sync.aligned.m8n8.x2.trans.shared.b16 [%0], {%1, %2};" ::"r"(address), "r"(r[0]), "r"(r[1])
                 : "memory");
  else
    asm volatile("stmatrix.sync.aligned.m8n8.x1.trans.shared.b16 [%0], {%1};" ::"r"(address), "r"(r[0]) : "memory");
}
#endif

}  // namespace lowbit::cuda
