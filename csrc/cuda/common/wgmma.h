// Matrix products of a warpgroup (PTX ISA 9.7.15, wgmma): 64 rows of A from registers by N columns of B from shared
// memory, asynchronous. sm_90a only.
//
//   d   sums: thread (warp w, g, t) of the four warps holds rows 16 w + g and + 8: d[4 j ..] = columns 8 j + 2 t, + 1
//   of
//       row g, then of row g + 8
//   a   16 rows of each warp as in mma.m16n8k16 (16-bit) or m16n8k32 (8-bit)
//   b   N rows of 128 bytes along K, 128B swizzle: what tma.h's boxes leave in shared memory
#pragma once

#include "cuda/common/device.h"
#include "cuda/common/mma.h"

namespace lowbit::cuda {

struct e4m3_t {};
struct s8_t {};

// Before the first product that follows an access to d or a by ordinary instructions.
LOWBIT_DEVICE void wgmma_fence() { asm volatile("wgmma.fence.sync.aligned;" ::: "memory"); }
LOWBIT_DEVICE void wgmma_commit() { asm volatile("wgmma.commit_group.sync.aligned;" ::: "memory"); }
// Until at most `pending` committed groups are not finished.
template <int pending>
LOWBIT_DEVICE void wgmma_wait() {
  asm volatile("wgmma.wait_group.sync.aligned %0;" ::"n"(pending) : "memory");
}
// Tells the compiler that products in flight own this register.
template <class T>
LOWBIT_DEVICE void wgmma_hold(T& x) {
  if constexpr (sizeof(T) == 4 && T(0.5) != T(0))
    asm volatile("" : "+f"(x)::"memory");
  else
    asm volatile("" : "+r"(x)::"memory");
}

// The descriptor of B at a 1024-byte aligned address plus 0, 32, 64 or 96 bytes along K: 8 rows are 1024 bytes apart
// (9.7.15.5.1, matrix-descriptor). `offset` is added to the low word, so that products of a stage share the rest; no
// shared memory is large enough for a carry.
LOWBIT_DEVICE uint64_t wgmma_descriptor(uint32_t address, int offset = 0) {
  constexpr uint32_t leading = 1, stride = 1024 >> 4, swizzle_128b_mode = 1;
  const uint32_t low = ((address >> 4 & 0x3fff) | leading << 16) + static_cast<uint32_t>(offset >> 4);
  return static_cast<uint64_t>(stride | swizzle_128b_mode << 30) << 32 | low;
}

// d (+)= a b. wgmma<T, N>::run(d, a, descriptor, accumulate): without `accumulate` d is overwritten.
template <class T, int N>
struct wgmma;

// The operands of d, by fours.
#define LOWBIT_D4(c, i) c(d[i]), c(d[i + 1]), c(d[i + 2]), c(d[i + 3])
#define LOWBIT_D8(c, i) LOWBIT_D4(c, i), LOWBIT_D4(c, i + 4)
#define LOWBIT_D16(c, i) LOWBIT_D8(c, i), LOWBIT_D8(c, i + 8)
#define LOWBIT_D32(c, i) LOWBIT_D16(c, i), LOWBIT_D16(c, i + 16)
#define LOWBIT_D64(c, i) LOWBIT_D32(c, i), LOWBIT_D32(c, i + 32)
#define LOWBIT_D128(c, i) LOWBIT_D64(c, i), LOWBIT_D64(c, i + 64)
#define LOWBIT_FLOAT_SUM(x) "+f"(x)
#define LOWBIT_INT_SUM(x) "+r"(x)

#define LOWBIT_R4 "%0, %1, %2, %3"
#define LOWBIT_R8 LOWBIT_R4 ", %4, %5, %6, %7"
#define LOWBIT_R16 LOWBIT_R8 ", %8, %9, %10, %11, %12, %13, %14, %15"
#define LOWBIT_R32 LOWBIT_R16 ", %16, %17, %18, %19, %20, %21, %22, %23, %24, %25, %26, %27, %28, %29, %30, %31"
#define LOWBIT_R64                                                                                              \
  LOWBIT_R32                                                                                                    \
  ", %32, %33, %34, %35, %36, %37, %38, %39, %40, %41, %42, %43, %44, %45, %46, %47, %48, %49, %50, %51, %52, " \
  "%53, %54, %55, %56, %57, %58, %59, %60, %61, %62, %63"
#define LOWBIT_R128                                                                                              \
  LOWBIT_R64                                                                                                     \
  ", %64, %65, %66, %67, %68, %69, %70, %71, %72, %73, %74, %75, %76, %77, %78, %79, %80, %81, %82, %83, %84, "  \
  "%85, %86, %87, %88, %89, %90, %91, %92, %93, %94, %95, %96, %97, %98, %99, %100, %101, %102, %103, %104, "    \
  "%105, %106, %107, %108, %109, %110, %111, %112, %113, %114, %115, %116, %117, %118, %119, %120, %121, %122, " \
  "%123, %124, %125, %126, %127"

#define LOWBIT_WGMMA(T, sum, constraint, shape, tail, N, R, a0, a1, a2, a3, b, p)                                 \
  template <>                                                                                                     \
  struct wgmma<T, N> {                                                                                            \
    LOWBIT_DEVICE static void run(sum (&d)[R], const uint32_t (&a)[4], uint64_t descriptor, bool accumulate) {    \
      asm volatile(                                                                                               \
          "{ .reg .pred accumulate;\n"                                                                            \
          "setp.ne.b32 accumulate, %" #p                                                                          \
          ", 0;\n"                                                                                                \
          "wgmma.mma_async.sync.aligned.m64n" #N shape " {" LOWBIT_R##R "}, {%" #a0 ", %" #a1 ", %" #a2 ", %" #a3 \
                                                                        "}, %" #b ", accumulate" tail "; }"       \
          : LOWBIT_D##R(constraint, 0)                                                                            \
          : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "l"(descriptor), "r"(static_cast<int>(accumulate)));      \
    }                                                                                                             \
  };
#define LOWBIT_WGMMA_ALL(T, sum, constraint, shape, tail)                        \
  LOWBIT_WGMMA(T, sum, constraint, shape, tail, 8, 4, 4, 5, 6, 7, 8, 9)          \
  LOWBIT_WGMMA(T, sum, constraint, shape, tail, 16, 8, 8, 9, 10, 11, 12, 13)     \
  LOWBIT_WGMMA(T, sum, constraint, shape, tail, 32, 16, 16, 17, 18, 19, 20, 21)  \
  LOWBIT_WGMMA(T, sum, constraint, shape, tail, 64, 32, 32, 33, 34, 35, 36, 37)  \
  LOWBIT_WGMMA(T, sum, constraint, shape, tail, 128, 64, 64, 65, 66, 67, 68, 69) \
  LOWBIT_WGMMA(T, sum, constraint, shape, tail, 256, 128, 128, 129, 130, 131, 132, 133)

LOWBIT_WGMMA_ALL(bf16_t, float, LOWBIT_FLOAT_SUM, "k16.f32.bf16.bf16", ", 1, 1, 0")
LOWBIT_WGMMA_ALL(f16_t, float, LOWBIT_FLOAT_SUM, "k16.f32.f16.f16", ", 1, 1, 0")
LOWBIT_WGMMA_ALL(e4m3_t, float, LOWBIT_FLOAT_SUM, "k32.f32.e4m3.e4m3", ", 1, 1")
LOWBIT_WGMMA_ALL(s8_t, int32_t, LOWBIT_INT_SUM, "k32.s32.s8.s8", "")

#undef LOWBIT_WGMMA_ALL
#undef LOWBIT_WGMMA

}  // namespace lowbit::cuda
