#include "layout/fragments.h"

#include "layout/packing.h"

namespace lowbit {
namespace {

struct fragment_layout {
  using shape = fragment_shape;
  using view = fragment_view;
  static constexpr packed_layout id = packed_layout::fragments;
  static constexpr int64_t block = strip_rows;
  static constexpr bool column_sums = true;

  static bool holds(int bits) { return bits == 2 || bits == 4 || bits == 8; }
  static uint8_t flip(const format_row&) { return 0; }
  static uint8_t padding(const format_row&, int) { return 0; }

  static void write(const uint8_t* row, const fragment_shape& s, int64_t n, uint8_t* codes) {
    for_each_four(s, n, [&](int64_t word, const int64_t* columns, const int* shifts) {
      uint32_t bits;
      std::memcpy(&bits, codes + word, sizeof bits);
      for (int i = 0; i < 4; ++i) bits |= static_cast<uint32_t>(row[columns[i]]) << shifts[i];
      std::memcpy(codes + word, &bits, sizeof bits);
    });
  }

  static void read(const uint8_t* codes, const fragment_shape& s, int64_t n, uint8_t* row) {
    const uint32_t mask = (1u << s.bits) - 1;
    for_each_four(s, n, [&](int64_t word, const int64_t* columns, const int* shifts) {
      uint32_t bits;
      std::memcpy(&bits, codes + word, sizeof bits);
      for (int i = 0; i < 4; ++i) row[columns[i]] = static_cast<uint8_t>(bits >> shifts[i] & mask);
    });
  }

 private:
  // Visits (byte of the word, columns, shifts) of every four codes of row n that lie in one word: what a lane holds
  // of the row's next 16 columns.
  template <class Visit>
  static void for_each_four(const fragment_shape& s, int64_t n, const Visit& visit) {
    const int64_t r = n % fragment_rows, half = r / 8;
    for (int64_t column = 0; column < s.k_packed; column += 16) {
      const int64_t k16 = column % s.tile_k / 16;
      const int64_t word = s.bits == 8 ? 2 * k16 + half : s.bits == 4 ? k16 : k16 / 2;
      const int64_t lane =
          s.tile_offset(n / strip_rows, column / s.tile_k, n % strip_rows / fragment_rows) + r % 8 * 64 + word * 4;
      const int low = static_cast<int>(half * s.bits + (s.bits == 2 ? k16 % 2 * 8 : 0)), next = 2 * s.bits;
      for (int64_t t = 0; t < 4; ++t) {
        if (s.bits == 8) {
          const int64_t c = column + 4 * t, columns[4] = {c, c + 1, c + 2, c + 3};
          const int shifts[4] = {0, 8, 16, 24};
          visit(lane + t * 16, columns, shifts);
        } else {
          const int64_t c = column + 2 * t, columns[4] = {c, c + 1, c + 8, c + 9};
          const int shifts[4] = {low, low + 16, low + next, low + next + 16};
          visit(lane + t * 16, columns, shifts);
        }
      }
    }
  }
};

}  // namespace

fragment_shape fragment_shape_of(const lowbit_weight& w) { return shape_as<fragment_layout>(w); }

fragment_offsets fragment_offsets_of(const lowbit_weight& w) {
  const fragment_shape s = fragment_shape_of(w);
  const packed_plan plan = plan_as<fragment_layout>(w, s);
  const packed_regions r = plan.regions();
  const auto if_any = [](bool any, uint64_t offset) { return any ? static_cast<int64_t>(offset) : 0; };
  const format_row& f = *plan.format;
  return {static_cast<int64_t>(r.codes),           static_cast<int64_t>(r.scales),
          if_any(plan.zero_points, r.zero_points), if_any(f.minimum, r.mins),
          if_any(f.two_levels(), r.super_scales),  if_any(f.two_levels() && f.minimum, r.super_mins),
          if_any(plan.column_sums, r.column_sums), static_cast<int64_t>(r.total)};
}

lowbit_status fragments_bytes(const lowbit_weight& w, size_t* bytes) {
  return packed_bytes_as<fragment_layout>(w, bytes);
}

lowbit_status pack_fragments(const lowbit_weight& w, void* packed, size_t bytes, const lowbit_parallel* parallel) {
  return pack_as<fragment_layout>(w, packed, bytes, parallel);
}

lowbit_status view_fragments(const void* packed, size_t bytes, fragment_view* view) {
  packed_plan plan;
  if (const lowbit_status status = view_as<fragment_layout>(packed, bytes, view, &plan)) return status;
  const uint8_t* base = static_cast<const uint8_t*>(packed);
  view->column_sums = plan.column_sums ? reinterpret_cast<const int32_t*>(base + plan.regions().column_sums) : nullptr;
  return LOWBIT_OK;
}

lowbit_status unpack_fragments(const void* packed, size_t bytes, const lowbit_weight_arrays& out,
                               const lowbit_parallel* parallel) {
  return unpack_as<fragment_layout>(packed, bytes, out, parallel);
}

lowbit_status dequantize_fragments(const void* packed, size_t bytes, void* out, int dtype,
                                   const lowbit_parallel* parallel) {
  return dequantize_as<fragment_layout>(packed, bytes, out, dtype, parallel);
}

}  // namespace lowbit
