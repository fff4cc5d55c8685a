// The canonical form, row by row, and what the packed bytes of every layout share: checks, header, scales.
#pragma once

#include "layout/packed.h"

namespace lowbit {

enum class packed_layout : char { panels = 0, fragments = 1 };

// Every scale, zero point and code.
lowbit_status check_contents(const lowbit_weight& weight);
lowbit_status check_scales(const lowbit_weight& weight);

// Code i of a canonical row: a little-endian bit stream, code 0 in the low bits of the first byte.
LOWBIT_INLINE unsigned canonical_code(const uint8_t* row, int bits, int64_t i) {
  const int64_t first = i * bits, byte = first / 8;
  const int shift = static_cast<int>(first % 8);
  const unsigned next = shift + bits > 8 ? row[byte + 1] : 0u;  // it may lie past the row's end else
  return (row[byte] | next << 8) >> shift & ((1u << bits) - 1);
}
LOWBIT_INLINE void add_canonical_code(uint8_t* row, int bits, int64_t i, unsigned code) {  // to zeros
  const int64_t first = i * bits, byte = first / 8;
  const int shift = static_cast<int>(first % 8);
  row[byte] = static_cast<uint8_t>(row[byte] | code << shift);
  if (shift + bits > 8) row[byte + 1] = static_cast<uint8_t>(row[byte + 1] | code >> (8 - shift));
}

// One row of codes, a byte each, in the packed order; `flip` is xored to 8-bit codes. Of `row`, expanding leaves the
// columns that pad groups as they are.
void expand_row(const uint8_t* canonical, const weight_shape& shape, uint8_t flip, uint8_t* row);
void collapse_row(const uint8_t* row, const weight_shape& shape, uint8_t flip, uint8_t* canonical);
void store_row(const float* values, int64_t count, void* out, int64_t offset, int dtype);

// How many super scales there are, in canonical and in packed form, `block` rows side by side.
struct super_count {
  int64_t rows, columns;  // canonical; flat ones are one row
  int64_t packed;

  super_count(const format_row& format, const weight_shape& s, int64_t block) : rows(0), columns(0), packed(0) {
    if (!format.two_levels()) return;
    rows = format.super_flat() ? 1 : s.n;
    columns = ceil_div(format.super_flat() ? s.n * s.groups : s.groups, format.super_groups);
    packed = format.super_flat() ? columns : round_up(s.n, block) * columns;
  }
  int64_t canonical() const { return rows * columns; }
};

// Where the parts of packed bytes begin; absent ones are empty.
struct packed_regions {
  uint64_t codes, scales, zero_points, mins, super_scales, super_mins, column_sums, total;
};

// A layout's side of it: `block` rows of scales lie side by side.
struct packed_plan {
  const format_row* format;
  const weight_shape* shape;
  packed_layout layout;
  int64_t block, code_bytes;
  int scale_dtype;
  bool zero_points, column_sums;

  packed_regions regions() const;
};

// All but the codes; `base` holds zeros after the header.
void write_scales(const lowbit_weight& weight, const packed_plan& plan, uint8_t* base);
void write_header(const lowbit_weight& weight, const packed_plan& plan, uint8_t* base);
// The layout that the header names, whose reader says what else is wrong with it.
packed_layout layout_of(const void* packed, size_t bytes);
// The description in the header, checked but for the length of the whole.
lowbit_status read_header(const void* packed, size_t bytes, packed_layout layout, lowbit_weight* weight);
lowbit_status check_length(const packed_plan& plan, const void* packed, size_t bytes);
void point_scales(const lowbit_weight& description, const packed_plan& plan, const uint8_t* base, scale_arrays* arrays);
lowbit_status read_scales(const scale_arrays& arrays, const packed_plan& plan, const lowbit_weight_arrays& out);

}  // namespace lowbit
