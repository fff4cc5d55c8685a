// The packed weight: one layout for every CPU kernel and every M. See docs/packed_layout.md for pictures.
//
// Rows of W (output channels) go in panels of 16, K in blocks of one 64-byte line per row:
//
//   panel p    rows 16 p .. 16 p + 15
//   block b    lines of 64 bytes, one for each row: 64 8-bit codes, or 128 4-bit codes of which the low nibbles are
//              the first 64 and the high nibbles the second 64, or 256 2-bit codes, likewise
//
// Codes of 3, 5 and 6 bits lie in two planes: their low 2 or 4 bits as codes of 2 or 4 bits do, the rest (1 or 2 bits)
// in lines after those. A block is as deep as it takes to fill the lines of both.
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
inline constexpr int64_t chunk = 64;  // codes that kernels decode at a time: a line, or the same bits of its bytes

// a >= 0, b >= 1, both as large as they like.
LOWBIT_INLINE constexpr int64_t ceil_div(int64_t a, int64_t b) { return a / b + (a % b != 0); }
LOWBIT_INLINE constexpr int64_t round_up(int64_t a, int64_t b) { return ceil_div(a, b) * b; }

// How K is packed, whatever the layout: each group begins a new span of columns.
struct weight_shape {
  int64_t n, k;
  int64_t group_n, group_k;  // as the user said
  int bits;
  int64_t groups;    // along K
  int64_t span;      // packed columns of one group
  int64_t k_packed;  // all packed columns

  LOWBIT_INLINE constexpr bool k_in_order() const { return groups == 1 || span == group_k; }  // packed column == column
  // Column k of W in the packed order.
  LOWBIT_INLINE constexpr int64_t column(int64_t k_index) const { return k_index / group_k * span + k_index % group_k; }
  LOWBIT_INLINE constexpr int64_t group_of_column(int64_t column_index) const {
    const int64_t g = column_index / span;
    return g < groups ? g : groups - 1;
  }
};

// Numbers of rows by columns, `block` rows side by side: [row / block][column][row % block].
LOWBIT_INLINE constexpr int64_t interleaved(int64_t row, int64_t column, int64_t columns, int64_t block) {
  return (row / block * columns + column) * block + row % block;
}

// Some bits of every code, side by side.
struct code_plane {
  int bits;      // 1, 2, 4 or 8; 0: there is none, and what its offsets say may be read is the low plane
  int log2;      // of 8 / bits, the chunks in a line
  int64_t line;  // of a block: its first
};

// The shape of a packed weight, and the index functions that define the layout.
struct packed_shape : weight_shape {
  int64_t unit;     // 16, 32 or 64: consecutive packed columns that surely share a scale
  int64_t block_k;  // columns of a block: 64, 128, 256 or 512
  int64_t lines;    // of a block, for each row
  code_plane low, high;
  int64_t blocks;  // along K, whole
  int64_t panels;

  static packed_shape of(int64_t n, int64_t k, int64_t group_n, int64_t group_k, int bits);

  LOWBIT_INLINE int64_t chunks() const { return k_packed / chunk; }
  LOWBIT_INLINE int64_t block_offset(int64_t panel, int64_t block) const {
    return (panel * blocks + block) * lines * panel_rows * line_bytes;
  }
  // Byte of the code at (row, packed column), or of the part of it that a plane holds, and where in the byte.
  LOWBIT_INLINE int64_t plane_offset(const code_plane& plane, int64_t row, int64_t column_index) const {
    const int64_t block = column_index / block_k, line = plane.line + ((column_index % block_k / chunk) >> plane.log2);
    return block_offset(row / panel_rows, block) + (line * panel_rows + row % panel_rows) * line_bytes +
           column_index % chunk;
  }
  LOWBIT_INLINE int plane_shift(const code_plane& plane, int64_t column_index) const {
    return static_cast<int>(column_index / chunk & ((1 << plane.log2) - 1)) * plane.bits;
  }
  LOWBIT_INLINE int64_t code_offset(int64_t row, int64_t column_index) const {
    return plane_offset(low, row, column_index);
  }
  LOWBIT_INLINE bool high_nibble(int64_t column_index) const { return bits == 4 && plane_shift(low, column_index); }
  // Scales and zero points: [panels][groups][16].
  LOWBIT_INLINE int64_t scale_index(int64_t row, int64_t group) const {
    return interleaved(row, group, groups, panel_rows);
  }
  LOWBIT_INLINE int64_t code_bytes() const { return panels * blocks * lines * panel_rows * line_bytes; }
  LOWBIT_INLINE int64_t num_scales() const { return panels * groups * panel_rows; }
};

// What turns the values of codes into weights, W = (value - zero_point) * scale + min: of one level or two, wherever it
// lies. Index i is a group's, j its super block's.
struct scale_arrays {
  const format_row* format;
  int scale_dtype;
  const void* scales;
  const int8_t* zero_points;  // or null
  const void* mins;           // or null
  const void* super_scales;   // or null: one level
  const void* super_mins;
  float scale_offset;

  LOWBIT_INLINE float scale_at(int64_t i, int64_t j) const { return number(scales, i, super_scales, j); }
  // -0 where there are none: adding it changes nothing, not even the sign of a zero.
  LOWBIT_INLINE float min_at(int64_t i, int64_t j) const { return mins ? number(mins, i, super_mins, j) : -0.0f; }
  LOWBIT_INLINE float zero_point_at(int64_t i) const { return zero_points ? zero_points[i] : 0.0f; }
  LOWBIT_INLINE float weight(float value, float zero, float scale, float min) const {  // rounded once
    return mins ? __builtin_fmaf(value, scale, min) : (value - zero) * scale;
  }

 private:
  LOWBIT_INLINE float number(const void* data, int64_t i, const void* super, int64_t j) const {
    if (!super) return load_as_f32(data, i, scale_dtype);
    if (format->scale_values)
      return format->scale_values[static_cast<const uint8_t*>(data)[i]] * static_cast<const float*>(super)[j] +
             scale_offset;
    return static_cast<float>(static_cast<const int8_t*>(data)[i]) * f16_to_f32(static_cast<const uint16_t*>(super)[j]);
  }
};

// A packed weight as kernels see it.
struct packed_view : scale_arrays {
  packed_shape shape;
  const uint8_t* codes;
  float global_scale;

  LOWBIT_INLINE float scale(int64_t row, int64_t group) const {
    return scale_at(shape.scale_index(row, group), super_index(row, group));
  }
  LOWBIT_INLINE float min(int64_t row, int64_t group) const {
    return min_at(shape.scale_index(row, group), super_index(row, group));
  }
  LOWBIT_INLINE float zero_point(int64_t row, int64_t group) const {
    return zero_point_at(shape.scale_index(row, group));
  }
  // Super scales: [panels][supers][16], or one after the other in the order of rows and groups.
  LOWBIT_INLINE int64_t super_index(int64_t row, int64_t group) const {
    if (!format->two_levels()) return 0;
    if (!format->super_flat()) return interleaved(row, group / format->super_groups, supers(), panel_rows);
    const int64_t at = row < shape.n ? row : shape.n - 1;  // a panel's last rows may be padding
    return (at * shape.groups + group) / format->super_groups;
  }
  LOWBIT_INLINE int64_t supers() const { return ceil_div(shape.groups, format->super_groups); }  // of a row
  // The code as the format numbers it.
  LOWBIT_INLINE unsigned code(int64_t row, int64_t column) const {
    const unsigned low = part(shape.low, row, column);
    if (shape.high.bits) return low | part(shape.high, row, column) << shape.low.bits;
    return format->decode == recipe::linear ? low ^ 0x80u : low;
  }
  // One weight, without the global scale, rounded once.
  LOWBIT_INLINE float value(int64_t row, int64_t column) const {
    const int64_t g = shape.group_of_column(column);
    return weight(format->values[code(row, column)], zero_point(row, g), scale(row, g), min(row, g));
  }

 private:
  LOWBIT_INLINE unsigned part(const code_plane& plane, int64_t row, int64_t column) const {
    const unsigned byte = codes[shape.plane_offset(plane, row, column)];
    return byte >> shape.plane_shift(plane, column) & ((1u << plane.bits) - 1);
  }
};

// The first bytes of a packed weight.
struct packed_header {
  char magic[8];  // "lowbit", the layout (0: panels, 1: fragments), the version of both
  char format[16];
  int64_t n, k, group_n, group_k;
  int32_t scale_dtype, has_zero_points;
  float global_scale;
  float scale_offset;
  uint64_t codes_offset, scales_offset, zero_points_offset, total_bytes;
  uint64_t checksum;  // of everything before it
};
inline constexpr int64_t packed_header_bytes = LOWBIT_PACKED_HEADER_BYTES;  // codes begin at a multiple of 64

// The description, its sizes checked; fills the status' sentence on an error.
lowbit_status check_weight_description(const lowbit_weight& weight);
lowbit_status weight_shapes(const lowbit_weight& weight, lowbit_array_shapes* shapes);
lowbit_status packed_bytes(const lowbit_weight& weight, size_t* bytes);
lowbit_status pack(const lowbit_weight& weight, void* packed, size_t bytes, const lowbit_parallel* parallel);
lowbit_status unpack(const void* packed, size_t bytes, const lowbit_weight_arrays& out,
                     const lowbit_parallel* parallel);
lowbit_status view_packed(const void* packed, size_t bytes, packed_view* view);
lowbit_status dequantize_packed(const void* packed, size_t bytes, void* out, int dtype,
                                const lowbit_parallel* parallel);
lowbit_status dequantize(const lowbit_weight& weight, void* out, int dtype, const lowbit_parallel* parallel);
lowbit_status check_encode(const lowbit_encode_args& args);
lowbit_status encode(const lowbit_encode_args& args, const lowbit_parallel* parallel);

}  // namespace lowbit
