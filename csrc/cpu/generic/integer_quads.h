// Exact sums of few rows of x, straight from packed lines. V::lanes 32-bit numbers are quads of four, each a quarter of
// a line's 64 bytes: V::load_quads collects 16 columns of 2 or 4 rows of W to a register, and 16 columns of x meet all
// of them. Sums stay in quads, which are added up at the end of a segment: half the shuffles that transposing lines
// takes.
#pragma once

#include "cpu/generic/integer_operands.h"

namespace lowbit::cpu {
namespace {

constexpr int64_t quad = 16;  // columns
constexpr int quad_tile = 4;  // rows of x at most: 16 sums, 8 registers of codes

// Registers that hold a quad of each row of a panel; those that a tile of M rows of x multiplies at a time, so that
// their sums fit the registers.
template <class V>
constexpr int panel_registers = static_cast<int>(panel_rows) * 4 / V::lanes;
template <class V, int Bits, int M>
constexpr int registers_at_once = V::template integer_sums<Bits> / M >= panel_registers<V> ? panel_registers<V>
                                  : V::template integer_sums<Bits> / M >= 4                ? 4
                                  : V::template integer_sums<Bits> / M >= 2                ? 2
                                                                                           : 1;

// Rows of a register, a quad of each: one after the other, so that lines are read as they lie. Zen 4, 4096 x 4096, two
// threads, m = 1, every fourth row to a register: int8 534 us, now 432; int4 278, now 234.
template <class V>
constexpr int64_t register_rows = V::lanes / 4;

// Sums of M rows of x by Registers of a panel, in quads.
template <class V, int Bits, int M, int Registers>
class quad_sums {
 public:
  static constexpr int parts = V::template code_parts<Bits>;

  quad_sums(const int32_t* activations, int64_t stride) : q_(activations), stride_(stride) {
#pragma GCC unroll 8
    for (int m = 0; m < M; ++m)
#pragma GCC unroll 8
      for (int i = 0; i < Registers; ++i) sums_[m][i] = V::zero_i32();
  }

  // All of the 16 lines of a column, and of those behind. `lines` are from the registers' first row on.
  LOWBIT_INLINE void add_lines(const uint8_t* lines, int64_t column, int64_t count) {
    for (const int32_t* q = q_ + column / 4 * parts; count > 0;
         --count, lines += panel_rows * line_bytes, q += lines_k<Bits> / 4 * parts) {
      begin_words();
#pragma GCC unroll 2
      for (int pair = 0; pair < 2; ++pair) {
        typename V::i32 codes[Registers][2];
        load(lines, pair, codes);
#pragma GCC unroll 2
        for (int half = 0; half < (Bits == 4 ? 2 : 1); ++half)
#pragma GCC unroll 2
          for (int j = 0; j < 2; ++j)
            multiply(codes, j, q + (half * chunk / quad + 2 * pair + j) * 4 * parts,
                     [&](typename V::i32 bytes) __attribute__((always_inline)) {
                       if constexpr (Bits != 4) return bytes;
                       return half ? V::high_nibbles(bytes) : V::low_nibbles(bytes);
                     });
      }
      end_words();
    }
  }

  // Columns [column, end) of one chunk, whole quads.
  LOWBIT_INLINE void add_quads(const uint8_t* lines, int shift, int64_t column, int64_t end) {
    begin_words();
    for (int64_t at = column; at < end;) {
      typename V::i32 codes[Registers][2];
      load(lines, at % chunk / (2 * quad), codes);
      for (int64_t j = at / quad % 2; j < 2 && at < end; ++j, at += quad)
        multiply(codes, j, q_ + at / 4 * parts, [&](typename V::i32 bytes) __attribute__((always_inline)) {
          if constexpr (Bits != 4) return bytes;
          return V::low_nibbles(V::shift_right(bytes, shift));
        });
    }
    end_words();
  }

  const typename V::i32& at(int m, int i) const { return sums_[m][i]; }

 private:
  // Levels that add up products as words first have as many sums of these. A line has 8 products.
  static constexpr bool words = V::template word_products<Bits> > 0;
  static_assert(!words || V::template word_products<Bits> >= lines_k<Bits> / quad);

  LOWBIT_INLINE static void load(const uint8_t* lines, int64_t pair, typename V::i32 (*codes)[2]) {
#pragma GCC unroll 8
    for (int i = 0; i < Registers; ++i) {
      const uint8_t* line = lines + i * register_rows<V> * line_bytes;
      V::load_quads(line + pair * 2 * quad, codes[i]);
      if (Bits != joined && !pair)  // joined ones lie in a buffer
#pragma GCC unroll 4
        for (int row = 0; row < register_rows<V>; ++row) {
          prefetch_codes(line + row * line_bytes);
          __builtin_prefetch(line + (row + 2 * panel_rows) * line_bytes, 0, 3);
        }
    }
  }

  template <class F>
  LOWBIT_INLINE void multiply(const typename V::i32 (*codes)[2], int64_t j, const int32_t* q, const F& bytes_of) {
#pragma GCC unroll 2
    for (int part = 0; part < parts; ++part, q += 4) {
      typename V::i32 c[Registers];
#pragma GCC unroll 8
      for (int i = 0; i < Registers; ++i) c[i] = V::template code_part<Bits>(bytes_of(codes[i][j]), part);
#pragma GCC unroll 8
      for (int m = 0; m < M; ++m) {
        const typename V::i32 x = V::set1_quad(q + m * stride_);
#pragma GCC unroll 8
        for (int i = 0; i < Registers; ++i) {
          if constexpr (words)
            words_[m][i] = V::dot_words(words_[m][i], c[i], x);
          else
            sums_[m][i] = V::template dot_u8s8<Bits>(sums_[m][i], c[i], x);
        }
      }
    }
  }

  LOWBIT_INLINE void begin_words() {
    if constexpr (words)
#pragma GCC unroll 8
      for (int m = 0; m < M; ++m)
#pragma GCC unroll 8
        for (int i = 0; i < Registers; ++i) words_[m][i] = V::zero_i32();
  }
  LOWBIT_INLINE void end_words() {
    if constexpr (words)
#pragma GCC unroll 8
      for (int m = 0; m < M; ++m)
#pragma GCC unroll 8
        for (int i = 0; i < Registers; ++i) sums_[m][i] = V::add_words(sums_[m][i], words_[m][i]);
  }

  const int32_t* q_;
  const int64_t stride_;
  typename V::i32 sums_[M][Registers], words_[words ? M : 1][words ? Registers : 1];
};

}  // namespace
}  // namespace lowbit::cpu
