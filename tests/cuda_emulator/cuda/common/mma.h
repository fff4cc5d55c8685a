// The emulator's side of csrc/cuda/common/mma.h.
#pragma once

#include "cuda/common/device.h"
#include "emulator/operations.h"

namespace lowbit::cuda {

struct bf16_t {};
struct f16_t {};

template <class T>
void mma_m16n8k16(float (&c)[4], const uint32_t (&a)[4], const uint32_t (&b)[2], place where = place::current()) {
  emulator::multiply(c, a, b, std::is_same_v<T, bf16_t> ? emulator::element::bf16 : emulator::element::f16, where);
}
inline void mma_m16n8k32_s8(int32_t (&c)[4], const uint32_t (&a)[4], const uint32_t (&b)[2],
                            place where = place::current()) {
  emulator::multiply(c, a, b, emulator::element::s8, where);
}
#if LOWBIT_DEVICE_ARCH >= 890
inline void mma_m16n8k32_e4m3(float (&c)[4], const uint32_t (&a)[4], const uint32_t (&b)[2],
                              place where = place::current()) {
  emulator::multiply(c, a, b, emulator::element::e4m3, where);
}
#endif

}  // namespace lowbit::cuda
