// The emulator's side of csrc/cuda/common/wgmma.h.
#pragma once

#include "cuda/common/device.h"
#include "cuda/common/mma.h"
#include "emulator/warpgroup.h"

namespace lowbit::cuda {

struct e4m3_t {};
struct s8_t {};

inline void wgmma_fence(place where = place::current()) { emulator::wgmma_fence(where); }
inline void wgmma_commit(place where = place::current()) { emulator::wgmma_commit(where); }
template <int pending>
void wgmma_wait(place where = place::current()) {
  emulator::wgmma_wait(pending, where);
}
template <class T>
void wgmma_hold(T&) {}

inline uint64_t wgmma_descriptor(uint32_t address, int offset = 0) {
  constexpr uint64_t leading = 1, stride = 1024 >> 4, swizzle_128b_mode = 1;
  return ((address + static_cast<uint32_t>(offset)) >> 4 & 0x3fff) | leading << 16 | stride << 32 |
         swizzle_128b_mode << 62;
}

template <class T, int N>
struct wgmma {
  static_assert(N % 8 == 0 && N >= 8 && N <= 256);
  using sum = std::conditional_t<std::is_same_v<T, s8_t>, int32_t, float>;
  static constexpr emulator::element type = std::is_same_v<T, bf16_t>   ? emulator::element::bf16
                                            : std::is_same_v<T, f16_t>  ? emulator::element::f16
                                            : std::is_same_v<T, e4m3_t> ? emulator::element::e4m3
                                                                        : emulator::element::s8;
  static void run(sum (&d)[N / 2], const uint32_t (&a)[4], uint64_t descriptor, bool accumulate,
                  place where = place::current()) {
    emulator::wgmma(d, a, descriptor, N, type, accumulate, where);
  }
};

}  // namespace lowbit::cuda
