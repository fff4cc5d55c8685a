// Products of 2 x 2: USMMLA and BFMMLA multiply two rows of W by two rows of x.
//
//   unit    16 bytes: 8 bytes of K of an even row, the same 8 bytes of the odd row below it
//   pair    two rows, unit after unit
//   sum     [w0 x0, w0 x1, w1 x0, w1 x1]
//
// A Multiply has `number` (of a sum), `sum` (the register of four), zero(), step(sum, w, x), and add4(out, even, odd).
#pragma once

#include <arm_neon.h>

#include <cstdint>

#include "cpu/neon/chunks.h"

namespace lowbit::cpu {
namespace {

constexpr int unit_bytes = 16;
constexpr int panel_pairs = static_cast<int>(panel_rows) / 2;
constexpr int x_pairs_at_once = 4, w_pairs_at_once = 4;  // 16 sums + 4 of x + 4 of W of 32 registers

// 16 bytes of an even row and of the odd row to two units.
inline void store_units(uint8_t* out, uint8x16_t even, uint8x16_t odd) {
  const uint64x2_t a = vreinterpretq_u64_u8(even), b = vreinterpretq_u64_u8(odd);
  vst1q_u8(out, vreinterpretq_u8_u64(vzip1q_u64(a, b)));
  vst1q_u8(out + unit_bytes, vreinterpretq_u8_u64(vzip2q_u64(a, b)));
}

// sums[row of x][row of W] += 2 MP rows of x by 2 NP rows of W over `units`.
template <class Multiply, int MP, int NP>
inline void multiply_tile(const uint8_t* x, int64_t x_stride, const uint8_t* w, int64_t w_stride, int64_t units,
                          typename Multiply::number* sums, int64_t sums_stride) {
  typename Multiply::sum partial[MP][NP];
  for (int i = 0; i < MP; ++i)
    for (int j = 0; j < NP; ++j) partial[i][j] = Multiply::zero();
  for (int64_t u = 0; u < units; ++u) {
    uint8x16_t a[NP];
    for (int j = 0; j < NP; ++j) a[j] = vld1q_u8(w + j * w_stride + u * unit_bytes);
    for (int i = 0; i < MP; ++i) {
      const uint8x16_t b = vld1q_u8(x + i * x_stride + u * unit_bytes);
      for (int j = 0; j < NP; ++j) partial[i][j] = Multiply::step(partial[i][j], a[j], b);
    }
  }
  for (int i = 0; i < MP; ++i)
    for (int j = 0; j < NP; j += 2)
      Multiply::add4(sums + 2 * i * sums_stride + 2 * j, sums_stride, partial[i][j], partial[i][j + 1]);
}

// All pairs of x by a panel.
template <class Multiply>
inline void multiply_panel(int64_t x_pairs, const uint8_t* x, int64_t x_stride, const uint8_t* w, int64_t w_stride,
                           int64_t units, typename Multiply::number* sums) {
  constexpr int MP = x_pairs_at_once, NP = w_pairs_at_once;
  int64_t i = 0;
  const auto rows = [&](auto tile, int count, int width) {
    for (; i + count <= x_pairs; i += count)
      for (int j = 0; j < panel_pairs; j += width)
        tile(x + i * x_stride, x_stride, w + j * w_stride, w_stride, units, sums + 2 * i * panel_rows + 2 * j,
             panel_rows);
  };
  rows(multiply_tile<Multiply, MP, NP>, MP, NP);
  rows(multiply_tile<Multiply, MP / 2, NP>, MP / 2, NP);
  rows(multiply_tile<Multiply, 1, panel_pairs>, 1, panel_pairs);  // eight sums hide the latency
}

}  // namespace
}  // namespace lowbit::cpu
