// Packed codes to registers of bf16: what every decoder is made of, and which there are.
//
// The instructions stand by name: the files of this level are not compiled for AVX512-BF16 and AVX512-VBMI, which the
// kernel's row asks for.
//
// A decoder of a panel has
//
//   begin(panel, column, columns)   what those columns need of scales and zero points
//   with_rows(f)                    f(rows), `rows` the fastest way that these columns allow: rows.line(block, r) is
//                                   line r of a block of block_k columns, rows.row(block, r, out) decodes it to
//                                   block_k / 32 registers. What all lines need is in `rows` by value: registers, in a
//                                   loop that has a copy
//   order(i)                        which column of a chunk its i-th element is
//   direct_rows()                   rows of x up to which decoding again is faster than from memory (measured on Zen 4)
#pragma once

#include "cpu/avx512_vnni/vectors.h"

namespace lowbit::cpu {
namespace {

// sums += a[2 i] b[2 i] + a[2 i + 1] b[2 i + 1]; denormals are zero.
LOWBIT_INLINE __m512 dot_bf16(__m512 sums, __m512i a, __m512i b) {
  __asm__("vdpbf16ps %2, %1, %0" : "+v"(sums) : "v"(a), "v"(b));
  return sums;
}
LOWBIT_INLINE __m512i round_bf16(__m512 low, __m512 high) {  // 32 bf16: those of `low` first
  __m512i out;
  __asm__("vcvtne2ps2bf16 %2, %1, %0" : "=v"(out) : "v"(high), "v"(low));
  return out;
}

// In every byte, that of the 128 in two registers which its low 7 bits name.
LOWBIT_INLINE __m512i bytes_of_two(__m512i low, __m512i which, __m512i high) {
  __asm__("vpermi2b %2, %1, %0" : "+v"(which) : "v"(low), "v"(high));
  return which;
}

LOWBIT_INLINE __m512i bytes_of_two(__mmask64 kept, __m512i low, __m512i which, __m512i high) {  // others are zero
  __asm__("vpermi2b %2, %1, %0%{%3%}%{z%}" : "+v"(which) : "v"(low), "v"(high), "Yk"(kept));
  return which;
}

// The primary is empty: decode_bf16_nibbles.h and decode_bf16_bytes.h specialize it.
template <recipe Recipe, int Unit, offset Offset, int64_t Depth>
class bf16_decoder;

}  // namespace
}  // namespace lowbit::cpu
