// The packed weight for GPUs: one layout for every CUDA kernel and every M. See docs/packed_layout.md for pictures.
//
// A tensor core reads A as fragments: 16 rows x 16 (16-bit) or 32 (8-bit) columns, spread over the 32 lanes of a warp
// (PTX ISA 9.7.14.5, mma.m16n8k16 and m16n8k32; wgmma m64 is four of them). Weights are that operand, and they lie in
// memory as the lanes hold them: a tile is 512 bytes, 16 for each lane, one vector load and no shuffle away from it.
// With g = lane / 4, t = lane % 4 the lane holds, of rows g and g + 8 of the tile:
//
//   8 bits   16 x 32    word i = byte columns 4 t .. 4 t + 3 (i < 2) or 16 + 4 t .. (i >= 2) of row g + 8 (i % 2):
//                       register a_i of m16n8k32 as it is (int8: two's complement, so that s8 MMAs take it)
//   4 bits   16 x 64    word j = columns of 16 j + {2 t, 2 t + 1, 2 t + 8, 2 t + 9}. Nibble i < 4 is the low half of
//                       register a_i of m16n8k16, nibble 4 + i its high half: a_i = (word >> 4 i) & 0x000f000f
//   2 bits   16 x 128   word j = columns of 32 j ..: of the m16n8k16 at 32 j + 16 b, crumb 4 b + i is the low half of
//                       a_i, crumb 8 + 4 b + i the high half: a_i = (word >> (8 b + 2 i)) & 0x00030003
//
//   tiles    [strip of 64 rows][tile along K][16-row tile 0 .. 3 of the strip][lane][16 bytes]
//
// K is padded for each group to a span of whole 16s, so that no MMA of 16 columns mixes groups, and at the end to whole
// steps of 128 columns: 128 bytes of 8-bit x, what kernels bring at a time. Rows are padded to the strip. Padding holds
// zero bytes, and scale 0 past n.
#pragma once

#include "layout/packed.h"

namespace lowbit {

inline constexpr int64_t strip_rows = 64;
inline constexpr int64_t fragment_rows = 16;
inline constexpr int64_t fragment_bytes = 512;
inline constexpr int64_t fragment_step = 128;  // columns: the packed K is a multiple

struct fragment_shape : weight_shape {
  int64_t tile_k;  // columns of a tile: 256 / bits
  int64_t tiles;   // along K, whole steps
  int64_t strips;

  static constexpr fragment_shape of(int64_t n, int64_t k, int64_t group_n, int64_t group_k, int bits) {
    fragment_shape s{};
    s.n = n;
    s.k = k;
    s.group_n = group_n;
    s.group_k = group_k;
    s.bits = bits;
    s.groups = ceil_div(k, group_k);
    s.tile_k = 256 / bits;
    s.span = s.groups == 1 ? round_up(k, fragment_step) : round_up(group_k, 16);
    s.k_packed = round_up(s.groups * s.span, fragment_step);
    s.tiles = s.k_packed / s.tile_k;
    s.strips = ceil_div(n, strip_rows);
    return s;
  }

  constexpr int64_t tile_offset(int64_t strip, int64_t tile, int64_t row_tile) const {
    return ((strip * tiles + tile) * (strip_rows / fragment_rows) + row_tile) * fragment_bytes;
  }
  // First bit of the code at (row, packed column), counted from the start of the codes.
  constexpr int64_t code_bit(int64_t row, int64_t column_index) const {
    const int64_t inside = column_index % tile_k, r = row % fragment_rows;
    const int64_t g = r % 8, half = r / 8;
    int64_t t = 0, word = 0, bit = 0;
    if (bits == 8) {
      t = inside % 16 / 4;
      word = inside / 16 * 2 + half;
      bit = inside % 4 * 8;
    } else {
      const int64_t c = inside % 16, k16 = inside / 16;
      t = c % 8 / 2;
      const int64_t i = c / 8 * 2 + half, high = c % 2;  // register a_i, its half
      word = bits == 4 ? k16 : k16 / 2;
      bit = high * 16 + (bits == 4 ? i * 4 : k16 % 2 * 8 + i * 2);
    }
    const int64_t lane = g * 4 + t;
    return (tile_offset(row / strip_rows, column_index / tile_k, row % strip_rows / fragment_rows) + lane * 16 +
            word * 4) *
               8 +
           bit;
  }
  // Scales, zero points and column sums: [strips][groups][64].
  constexpr int64_t scale_index(int64_t row, int64_t group) const {
    return interleaved(row, group, groups, strip_rows);
  }
  constexpr int64_t code_bytes() const { return strips * tiles * (strip_rows / fragment_rows) * fragment_bytes; }
  constexpr int64_t num_scales() const { return strips * groups * strip_rows; }
};

// A packed weight in host memory.
struct fragment_view : scale_arrays {
  fragment_shape shape;
  const uint8_t* codes;
  const int32_t* column_sums;  // of values over each group's columns, [strips][groups][64]; integer formats, else null
  float global_scale;
};

// Where the parts of packed bytes begin. The header comes first; 0: there is no such part.
struct fragment_offsets {
  int64_t codes, scales, zero_points, mins, super_scales, super_mins, column_sums, total;
};

// As pack() and its companions of packed.h, for this layout. Packed bytes must be 16-byte aligned where a kernel or
// view_fragments reads them.
fragment_shape fragment_shape_of(const lowbit_weight& weight);              // of a description that was checked
fragment_offsets fragment_offsets_of(const lowbit_weight& weight);          // likewise
lowbit_status fragments_bytes(const lowbit_weight& weight, size_t* bytes);  // refuses what GPUs do not hold
lowbit_status pack_fragments(const lowbit_weight& weight, void* packed, size_t bytes, const lowbit_parallel* parallel);
lowbit_status unpack_fragments(const void* packed, size_t bytes, const lowbit_weight_arrays& out,
                               const lowbit_parallel* parallel);
lowbit_status view_fragments(const void* packed, size_t bytes, fragment_view* view);
lowbit_status dequantize_fragments(const void* packed, size_t bytes, void* out, int dtype,
                                   const lowbit_parallel* parallel);

}  // namespace lowbit
