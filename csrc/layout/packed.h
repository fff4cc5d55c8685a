// The packed weight: one layout for every CPU kernel and every M. See docs/packed_layout.md for pictures.
//
// Rows of W (output channels) go in panels of 16, K in blocks of one 64-byte line per row:
//
//   panel p    rows 16 p .. 16 p + 15
//   block b    16 lines of 64 bytes, one for each row: 64 8-bit codes, or 128 4-bit codes of which the low
//              nibbles are the first 64 and the high nibbles the second 64
//
// A line is an AMX A-tile row, a zmm, two ymm or four NEON registers of one row's consecutive K: all kernels are dot
// products along K, so a scale is one number for a whole register and a 16-entry table of scaled values serves a
// whole line. K is padded per group to a `span`, so that no register mixes groups other than 16 or 32 wide.
#pragma once

#include <bit>
#include <cstddef>
#include <cstdint>

#include "formats/format.h"

namespace lowbit {

static_assert(std::endian::native == std::endian::little, "packed weights are little-endian, as checkpoints are");

inline constexpr int64_t panel_rows = 16;
inline constexpr int64_t line_bytes = 64;
inline constexpr int64_t chunk = 64;  // codes that kernels decode at a time: a line, or one nibble half of it

// a >= 0, b >= 1, both as large as they like.
LOWBIT_INLINE constexpr int64_t ceil_div(int64_t a, int64_t b) { return a / b + (a % b != 0); }
LOWBIT_INLINE constexpr int64_t round_up(int64_t a, int64_t b) { return ceil_div(a, b) * b; }

// The shape of a packed weight, and the index functions that define the layout.
struct packed_shape {
  int64_t n, k;
  int64_t group_n, group_k;  // as the user said
  int bits;
  int64_t groups;    // along K
  int64_t span;      // packed columns of one group
  int64_t unit;      // 16, 32 or 64: consecutive packed columns that surely share a scale
  int64_t block_k;   // columns of a block: 64 or 128
  int64_t blocks;    // along K
  int64_t k_packed;  // whole blocks
  int64_t panels;

  static packed_shape of(int64_t n, int64_t k, int64_t group_n, int64_t group_k, int bits);

  LOWBIT_INLINE int64_t chunks() const { return k_packed / chunk; }
  LOWBIT_INLINE bool k_in_order() const { return groups == 1 || span == group_k; }  // packed column == column

  // Column k of W in the packed order.
  LOWBIT_INLINE int64_t column(int64_t k_index) const { return k_index / group_k * span + k_index % group_k; }
  LOWBIT_INLINE int64_t group_of_column(int64_t column_index) const {
    const int64_t g = column_index / span;
    return g < groups ? g : groups - 1;
  }
  LOWBIT_INLINE int64_t block_offset(int64_t panel, int64_t block) const {
    return (panel * blocks + block) * panel_rows * line_bytes;
  }
  // Byte of the code at (row, packed column); the nibble is the high one if high_nibble(column).
  LOWBIT_INLINE int64_t code_offset(int64_t row, int64_t column_index) const {
    return block_offset(row / panel_rows, column_index / block_k) + row % panel_rows * line_bytes +
           column_index % chunk;
  }
  LOWBIT_INLINE bool high_nibble(int64_t column_index) const { return bits == 4 && column_index % 128 >= 64; }
  // Scales and zero points: [panels][groups][16].
  LOWBIT_INLINE int64_t scale_index(int64_t row, int64_t group) const {
    return (row / panel_rows * groups + group) * panel_rows + row % panel_rows;
  }
  LOWBIT_INLINE int64_t code_bytes() const { return panels * blocks * panel_rows * line_bytes; }
  LOWBIT_INLINE int64_t num_scales() const { return panels * groups * panel_rows; }
};

// A packed weight as kernels see it.
struct packed_view {
  packed_shape shape;
  const format_row* format;
  const uint8_t* codes;
  const void* scales;
  int scale_dtype;
  const int8_t* zero_points;  // or null
  float global_scale;

  LOWBIT_INLINE float scale(int64_t row, int64_t group) const {
    return load_as_f32(scales, shape.scale_index(row, group), scale_dtype);
  }
  LOWBIT_INLINE float zero_point(int64_t row, int64_t group) const {
    return zero_points ? zero_points[shape.scale_index(row, group)] : 0.0f;
  }
  // The code as the format numbers it.
  LOWBIT_INLINE unsigned code(int64_t row, int64_t column) const {
    const unsigned byte = codes[shape.code_offset(row, column)];
    if (shape.bits == 4) return shape.high_nibble(column) ? byte >> 4 : byte & 15u;
    return format->decode == recipe::linear ? byte ^ 0x80u : byte;
  }
  // One weight, without the global scale, rounded once.
  LOWBIT_INLINE float value(int64_t row, int64_t column) const {
    const int64_t g = shape.group_of_column(column);
    return (format->values[code(row, column)] - zero_point(row, g)) * scale(row, g);
  }
};

// The first bytes of a packed weight.
struct packed_header {
  char magic[8];  // "lowbit\0\1": the last byte is the version of the layout
  char format[16];
  int64_t n, k, group_n, group_k;
  int32_t scale_dtype, has_zero_points;
  float global_scale;
  uint32_t reserved;
  uint64_t codes_offset, scales_offset, zero_points_offset, total_bytes;
  uint64_t checksum;  // of everything before it
};
inline constexpr int64_t packed_header_bytes = 256;  // codes begin at a multiple of 64

// The description, its sizes checked; fills the status' sentence on an error.
lowbit_status check_weight_description(const lowbit_weight& weight);
lowbit_status packed_bytes(const lowbit_weight& weight, size_t* bytes);
lowbit_status pack(const lowbit_weight& weight, void* packed, size_t bytes, const lowbit_parallel* parallel);
lowbit_status unpack(const void* packed, size_t bytes, void* codes, void* scales, int8_t* zero_points,
                     const lowbit_parallel* parallel);
lowbit_status view_packed(const void* packed, size_t bytes, packed_view* view);
lowbit_status dequantize_packed(const void* packed, size_t bytes, void* out, int dtype,
                                const lowbit_parallel* parallel);
lowbit_status dequantize(const lowbit_weight& weight, void* out, int dtype, const lowbit_parallel* parallel);
lowbit_status encode(const lowbit_encode_args& args, const lowbit_parallel* parallel);

}  // namespace lowbit
