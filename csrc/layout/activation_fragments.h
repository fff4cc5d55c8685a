// 8-bit activations in the order in which lanes hold them as the MMA's B operand (PTX ISA 9.7.14.5.10, m16n8k32): with
// weights that lie as fragments (fragments.h), neither operand is moved between lanes on its way to the tensor core.
//
//   tiles    [8 rows of x][64 packed columns][lane][16 bytes]
//
// With g = lane / 4, t = lane % 4 the lane holds row g: words 0, 1 are registers b_0, b_1 of the first 32 columns,
// words 2, 3 those of the second. Which four columns a register holds follows from what a register of W holds when its
// codes are masked out of the packed words without any more work:
//
//   8 bits   b_i = columns 16 i + 4 t .. 4 t + 3 of 32
//   4 bits   b_i = columns 16 i + {2 t, 2 t + 8, 2 t + 1, 2 t + 9}
//   2 bits   b_i = columns  8 i + {2 t, 2 t + 16, 2 t + 1, 2 t + 17}
//
// Rows are padded to 8, with bytes of 0; so are the columns that W pads.
#pragma once

#include "layout/fragments.h"

namespace lowbit {

inline constexpr int64_t activation_tile_rows = 8;
inline constexpr int64_t activation_tile_columns = 64;
inline constexpr int64_t activation_tile_bytes = 512;

// Byte `i` (0 .. 3) of register `b` (0, 1) of lane t: its column of 32.
LOWBIT_INLINE constexpr int activation_column(int bits, int t, int b, int i) {
  return bits == 8 ? 16 * b + 4 * t + i : (bits == 4 ? 16 * b + i % 2 * 8 : 8 * b + i % 2 * 16) + 2 * t + i / 2;
}

LOWBIT_INLINE constexpr int64_t activation_fragment_bytes(int64_t m, int64_t k_packed) {
  return round_up(m, activation_tile_rows) * k_packed;
}

}  // namespace lowbit
