// The vocabulary of kernels, part 3: a warp multiplies, c += a b, with mma.sync.
//
// With g = lane / 4, t = lane % 4 a lane holds (16-bit: pairs of columns; 8-bit: four; the first in the low bits)
//   a[0 .. 3]   rows g, g + 8, g, g + 8; columns 2 t and 2 t + 8 of 16     8-bit: 4 t and 4 t + 16 of 32
//   b[0 .. 1]   column g; rows 2 t and 2 t + 8 of 16                       8-bit: 4 t and 4 t + 16 of 32
//   c[0 .. 3]   (g, 2 t), (g, 2 t + 1), (g + 8, 2 t), (g + 8, 2 t + 1) of 16 x 8
#pragma once

#include "cuda/common/device.h"

namespace lowbit::cuda {

struct bf16_t {};
struct f16_t {};

// [9.7.14.5.8: fragments of m16n8k16; 9.7.14.5.14: mma]
template <class T>
LOWBIT_DEVICE void mma_m16n8k16(float (&c)[4], const uint32_t (&a)[4], const uint32_t (&b)[2]) {
  if constexpr (__is_same(T, bf16_t))
    asm volatile(
        "mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, "
        "{%0, %1, %2, %3};"
        : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])
        : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]));
  else
    asm volatile(
        "mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, "
        "{%0, %1, %2, %3};"
        : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])
        : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]));
}

// Sums wrap.  [9.7.14.5.10: fragments of m16n8k32; 9.7.14.5.14: mma]
LOWBIT_DEVICE void mma_m16n8k32_s8(int32_t (&c)[4], const uint32_t (&a)[4], const uint32_t (&b)[2]) {
  asm volatile(
      "mma.sync.aligned.m16n8k32.row.col.s32.s8.s8.s32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, "
      "{%0, %1, %2, %3};"
      : "+r"(c[0]), "+r"(c[1]), "+r"(c[2]), "+r"(c[3])
      : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]));
}

#if LOWBIT_DEVICE_ARCH == 0 || LOWBIT_DEVICE_ARCH >= 890
LOWBIT_DEVICE void mma_m16n8k32_e4m3(float (&c)[4], const uint32_t (&a)[4], const uint32_t (&b)[2]) {
  asm volatile(
      "mma.sync.aligned.m16n8k32.row.col.f32.e4m3.e4m3.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, "
      "{%0, %1, %2, %3};"
      : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])
      : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]));
}
#endif

}  // namespace lowbit::cuda
