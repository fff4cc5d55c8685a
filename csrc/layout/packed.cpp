#include "layout/packed.h"

#include <bit>

#include "layout/packing.h"

namespace lowbit {
namespace {

struct panel_layout {
  using shape = packed_shape;
  using view = packed_view;
  static constexpr packed_layout id = packed_layout::panels;
  static constexpr int64_t block = panel_rows;
  static constexpr bool column_sums = false;

  static bool holds(int) { return true; }
  static uint8_t flip(const format_row& format) { return format.decode == recipe::linear ? 0x80 : 0; }
  // What decodes to 0, or to the least there is: under the largest scales the product of a weight may be infinite, and
  // kernels multiply padding by activations of 0.
  static uint8_t padding(const format_row& format, int zero_point) {
    return static_cast<uint8_t>(format.integer() ? format.integer_offset + zero_point : format.least_code());
  }

  static void write(const uint8_t* row, const packed_shape& s, int64_t n, uint8_t* codes) {
    for (int64_t column = 0; column < s.k_packed; column += chunk) {
      write_part(row + column, 0, s, s.low, n, column, codes);
      if (s.high.bits) write_part(row + column, s.low.bits, s, s.high, n, column, codes);
    }
  }

  static void read(const uint8_t* codes, const packed_shape& s, int64_t n, uint8_t* row) {
    std::memset(row, 0, static_cast<size_t>(s.k_packed));
    for (int64_t column = 0; column < s.k_packed; column += chunk) {
      read_part(codes, s, s.low, n, column, 0, row + column);
      if (s.high.bits) read_part(codes, s, s.high, n, column, s.low.bits, row + column);
    }
  }

 private:
  // Bits [first, first + plane.bits) of 64 codes, to or from the plane's lines, which hold zeros before.
  static void write_part(const uint8_t* row, int first, const packed_shape& s, const code_plane& plane, int64_t n,
                         int64_t column, uint8_t* codes) {
    const unsigned mask = (1u << plane.bits) - 1;
    const int shift = s.plane_shift(plane, column);
    uint8_t* line = codes + s.plane_offset(plane, n, column);
    for (int64_t i = 0; i < chunk; ++i) line[i] |= static_cast<uint8_t>((row[i] >> first & mask) << shift);
  }
  static void read_part(const uint8_t* codes, const packed_shape& s, const code_plane& plane, int64_t n, int64_t column,
                        int first, uint8_t* row) {
    const unsigned mask = (1u << plane.bits) - 1;
    const int shift = s.plane_shift(plane, column);
    const uint8_t* line = codes + s.plane_offset(plane, n, column);
    for (int64_t i = 0; i < chunk; ++i) row[i] |= static_cast<uint8_t>((line[i] >> shift & mask) << first);
  }
};

}  // namespace

packed_shape packed_shape::of(int64_t n, int64_t k, int64_t group_n, int64_t group_k, int bits) {
  packed_shape s{};
  s.n = n;
  s.k = k;
  s.group_n = group_n;
  s.group_k = group_k;
  s.bits = bits;
  s.groups = ceil_div(k, group_k);
  s.panels = ceil_div(n, panel_rows);
  const int low = static_cast<int>(std::bit_floor(static_cast<unsigned>(bits))), high = bits - low;
  s.block_k = line_bytes * 8 / (high ? high : low);
  s.lines = s.block_k * bits / (line_bytes * 8);
  const auto log2 = [](int plane_bits) { return std::countr_zero(8u / static_cast<unsigned>(plane_bits)); };
  s.low = {low, log2(low), 0};
  s.high = high ? code_plane{high, log2(high), s.block_k * low / (line_bytes * 8)} : code_plane{0, s.low.log2, 0};
  if (s.groups == 1) {
    s.k_packed = round_up(k, s.block_k);
    s.span = s.k_packed;
    s.unit = chunk;
  } else {
    s.unit = group_k <= 16 ? 16 : group_k <= 32 ? 32 : 64;
    s.span = round_up(group_k, s.unit);
    s.k_packed = round_up(s.groups * s.span, s.block_k);
  }
  s.blocks = s.k_packed / s.block_k;
  return s;
}

lowbit_status packed_bytes(const lowbit_weight& w, size_t* bytes) { return packed_bytes_as<panel_layout>(w, bytes); }

lowbit_status pack(const lowbit_weight& w, void* packed, size_t bytes, const lowbit_parallel* parallel) {
  return pack_as<panel_layout>(w, packed, bytes, parallel);
}

lowbit_status view_packed(const void* packed, size_t bytes, packed_view* view) {
  packed_plan plan;
  return view_as<panel_layout>(packed, bytes, view, &plan);
}

lowbit_status unpack(const void* packed, size_t bytes, const lowbit_weight_arrays& out,
                     const lowbit_parallel* parallel) {
  return unpack_as<panel_layout>(packed, bytes, out, parallel);
}

lowbit_status dequantize_packed(const void* packed, size_t bytes, void* out, int dtype,
                                const lowbit_parallel* parallel) {
  return dequantize_as<panel_layout>(packed, bytes, out, dtype, parallel);
}

lowbit_status dequantize(const lowbit_weight& w, void* out, int dtype, const lowbit_parallel* parallel) {
  if (const lowbit_status status = check_weight_description(w)) return status;
  if (const lowbit_status status = check_scales(w)) return status;
  const format_row& format = format_at(w.format);
  const packed_shape s = shape_as<panel_layout>(w);
  const int64_t canonical_bytes = ceil_div(s.k * s.bits, 8);
  const scale_arrays scales{&format, w.scale_dtype,  w.scales,     w.zero_points,
                            w.mins,  w.super_scales, w.super_mins, w.scale_offset};
  const super_count supers(format, s, 1);
  const auto place = [&](int64_t n, int64_t g) {
    const int64_t i = n / s.group_n * s.groups + g;
    if (!format.two_levels()) return scale_place{i, 0};
    return scale_place{i, format.super_flat() ? i / format.super_groups : n * supers.columns + g / format.super_groups};
  };
  return dequantize_rows(
      s, scales, 0, w.global_scale, out, dtype, parallel,
      [&](int64_t n, uint8_t* row) {
        expand_row(static_cast<const uint8_t*>(w.codes) + n * canonical_bytes, s, 0, row);
      },
      place);
}

}  // namespace lowbit
