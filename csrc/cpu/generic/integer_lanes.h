// Exact sums of more rows of x: 16 lines of W are transposed in registers, and every 4 columns of x, a dword, meet
// those of 16 rows of W.
#pragma once

#include "cpu/generic/integer_operands.h"

namespace lowbit::cpu {
namespace {

// Sums of M rows of x by a panel whose lines are transposed in registers: a lane is a row of W.
template <class V, int Bits, int M>
class lane_sums {
 public:
  lane_sums(const int32_t* activations, int64_t stride) : stride_(stride) {
#pragma GCC unroll 4
    for (int i = 0; i < bases; ++i) q_[i] = activations + 3 * i * stride;
  }

  LOWBIT_INLINE void add_lines(const uint8_t* lines, int64_t column, int64_t count) {
    for (int64_t at = column / 4; count > 0; --count, lines += panel_rows * line_bytes) {
      typename V::i32 bytes[V::lanes];
#pragma GCC unroll 16
      for (int i = 0; i < V::lanes; ++i) {
        const uint8_t* line = lines + i * line_bytes;
        bytes[i] = V::load_bytes(line);
        if constexpr (Bits != joined) prefetch_codes(line);  // joined ones lie in a buffer
      }
      V::transpose(bytes);
#pragma GCC unroll 2
      for (int half = 0; half < (Bits == 4 ? 2 : 1); ++half, at += V::lanes)
#pragma GCC unroll 16
        for (int i = 0; i < V::lanes; ++i) {
          const typename V::i32 codes = Bits != 4 ? bytes[i]
                                        : half    ? V::high_nibbles(bytes[i])
                                                  : V::low_nibbles(bytes[i]);
#pragma GCC unroll 16
          for (int m = 0; m < M; ++m) sums_[m] = V::dot_dword(sums_[m], codes, q_[m / 3] + m % 3 * stride_ + at + i);
        }
    }
  }

  typename V::i32& at(int m) { return sums_[m]; }

 private:
  static constexpr int bases = (M + 2) / 3;  // base + index, base + 2 index: 12 rows, 5 registers
  const int32_t* q_[bases];
  const int64_t stride_;
  typename V::i32 sums_[M];
};

}  // namespace
}  // namespace lowbit::cpu
