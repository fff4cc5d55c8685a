// Packing and unpacking: every thread gathers what it stores, so that stores are whole and in order. Once for each
// weight, so plain: about as fast as its reads, which come in runs of a few bytes.
#include <type_traits>

#include "cuda/common/launch.h"
#include "cuda/common/memory.h"
#include "cuda/sm80/weights.h"
#include "layout/canonical.h"

namespace lowbit::cuda::sm80 {
namespace {

constexpr int threads = 256;

// ---- codes ----

struct codes_arguments {
  fragment_shape shape;
  uint8_t* canonical;  // [n][row_bytes]
  uint8_t* packed;     // fragments
  int64_t row_bytes;
};

// Up to 16 packed columns that belong to one group: spans are whole 16s. Of these, `count` are columns k, k + 1, ... of
// W.
struct column_run {
  int64_t k;
  int count;
};

LOWBIT_DEVICE column_run run_at(const fragment_shape& s, int64_t column) {
  const int64_t group = column / s.span;
  if (group >= s.groups) return {0, 0};
  const int64_t inside = column - group * s.span, k = group * s.group_k + inside;
  const int64_t left_of_group = s.group_k - inside, left_of_row = s.k - k;
  const int64_t count = left_of_group < left_of_row ? left_of_group : left_of_row;
  return {k, static_cast<int>(count < 0 ? 0 : count < 16 ? count : 16)};
}

template <int bits>
LOWBIT_DEVICE uint32_t canonical_code(const codes_arguments& a, int64_t row, int64_t k) {
  const uint32_t byte = global_load<uint8_t>(a.canonical + row * a.row_bytes + k * bits / 8);
  return byte >> (k * bits % 8) & ((1u << bits) - 1);
}

// The word of packed codes that lane (g, t) holds as number `word` of its tile: layout/fragments.h has the table.
template <int bits>
LOWBIT_DEVICE uint32_t fragment_word(const codes_arguments& a, int64_t first_row, int64_t first_column, int word, int g,
                                     int t) {
  const auto code = [&](const column_run& run, int half, int column) -> uint32_t {  // column: of the 16
    const int64_t row = first_row + g + 8 * half;
    return row < a.shape.n && column < run.count ? canonical_code<bits>(a, row, run.k + column) : 0;
  };
  uint32_t packed = 0;
  if constexpr (bits == 8) {
    const column_run run = run_at(a.shape, first_column + word / 2 * 16);
    LOWBIT_UNROLL
    for (int b = 0; b < 4; ++b) packed |= code(run, word % 2, 4 * t + b) << (8 * b);
  } else {
    constexpr int runs = 4 / bits;  // of 16 columns, in a word
    LOWBIT_UNROLL
    for (int r = 0; r < runs; ++r) {
      const column_run run = run_at(a.shape, first_column + (word * runs + r) * 16);
      LOWBIT_UNROLL
      for (int i = 0; i < 4; ++i) {  // register a_i: its two halves
        const int column = i / 2 * 8 + 2 * t, shift = r * 8 + i * bits;
        packed |= code(run, i % 2, column) << shift | code(run, i % 2, column + 1) << (16 + shift);
      }
    }
  }
  return packed;
}

template <int bits>
LOWBIT_KERNEL(threads, 1)
void pack_codes_kernel(const codes_arguments a) {
  const int64_t chunk = static_cast<int64_t>(cta_index()) * threads + thread_index();  // 16 bytes: what one lane holds
  const int64_t tile = chunk / 32, row_tiles = strip_rows / fragment_rows;
  const int64_t strip = tile / row_tiles / a.shape.tiles, along_k = tile / row_tiles % a.shape.tiles;
  if (strip >= a.shape.strips) return;
  const int lane = static_cast<int>(chunk % 32), g = lane / 4, t = lane % 4;
  const int64_t row = strip * strip_rows + tile % row_tiles * fragment_rows, column = along_k * a.shape.tile_k;
  const u32x4 words{fragment_word<bits>(a, row, column, 0, g, t), fragment_word<bits>(a, row, column, 1, g, t),
                    fragment_word<bits>(a, row, column, 2, g, t), fragment_word<bits>(a, row, column, 3, g, t)};
  global_store<u32x4>(a.packed + chunk * 16, words);
}

template <int bits>
LOWBIT_KERNEL(threads, 1)
void unpack_codes_kernel(const codes_arguments a) {
  constexpr int codes = 8 / bits;  // of a byte
  for (int64_t row = cta_index(); row < a.shape.n; row += num_ctas()) {
    for (int64_t byte = thread_index(); byte < a.row_bytes; byte += threads) {
      uint32_t value = 0;
      LOWBIT_UNROLL
      for (int i = 0; i < codes; ++i) {
        const int64_t k = byte * codes + i;
        if (k >= a.shape.k) continue;
        const int64_t bit = a.shape.code_bit(row, a.shape.column(k));
        const uint32_t from = global_load<uint8_t>(a.packed + bit / 8);
        value |= (from >> (bit % 8) & ((1u << bits) - 1)) << (bits * i);
      }
      global_store<uint8_t>(a.canonical + row * a.row_bytes + byte, static_cast<uint8_t>(value));
    }
  }
}

// ---- column sums: a warp for each row and group ----

struct sums_arguments {
  codes_arguments codes;
  int32_t* sums;  // [strips][groups][64]
  int64_t count;  // numbers in it, and the padding behind them
  int offset;     // 4 bits: what codes have been raised by
};

template <int bits>
LOWBIT_KERNEL(threads, 1)
void column_sums_kernel(const sums_arguments a) {
  const fragment_shape& s = a.codes.shape;
  const int64_t index = static_cast<int64_t>(cta_index()) * (threads / 32) + warp_index();
  const int64_t row = index / strip_rows / s.groups * strip_rows + index % strip_rows;
  const int64_t group = index / strip_rows % s.groups;
  if (index >= a.count) return;  // the warp as a whole
  int32_t sum = 0;
  if (row < s.n && index < s.num_scales()) {
    const int64_t first = group * s.group_k, last = first + s.group_k < s.k ? first + s.group_k : s.k;
    for (int64_t k = first + lane_index(); k < last; k += 32) {
      const uint32_t code = canonical_code<bits>(a.codes, row, k);
      sum += bits == 8 ? static_cast<int32_t>(static_cast<int8_t>(code)) : static_cast<int32_t>(code) - a.offset;
    }
  }
  LOWBIT_UNROLL
  for (int lanes = 16; lanes; lanes /= 2) sum += shuffle_xor(sum, lanes);
  if (lane_index() == 0) global_store<int32_t>(a.sums + index, sum);
}

// ---- scales, zero points, minima, super scales: a number for each group, `block` rows side by side ----

struct numbers_arguments {
  uint8_t* canonical;  // [ceil(rows / group_n)][columns]
  uint8_t* packed;     // [rows / block][columns][block], and padding
  int64_t rows, columns, group_n, block;
  int64_t count;  // numbers to write
};

template <class T>
LOWBIT_KERNEL(threads, 1)
void pack_numbers_kernel(const numbers_arguments a) {
  const int64_t index = static_cast<int64_t>(cta_index()) * threads + thread_index();
  if (index >= a.count) return;
  const int64_t row = index / a.block / a.columns * a.block + index % a.block, column = index / a.block % a.columns;
  T number = 0;
  if (row < a.rows)
    number = global_load<T>(a.canonical + (row / a.group_n * a.columns + column) * static_cast<int64_t>(sizeof(T)));
  global_store<T>(a.packed + index * static_cast<int64_t>(sizeof(T)), number);
}

template <class T>
LOWBIT_KERNEL(threads, 1)
void unpack_numbers_kernel(const numbers_arguments a) {
  const int64_t index = static_cast<int64_t>(cta_index()) * threads + thread_index();
  if (index >= a.count) return;
  const int64_t row = index / a.columns * a.group_n, column = index % a.columns;
  const int64_t from = interleaved(row, column, a.columns, a.block);
  global_store<T>(a.canonical + index * static_cast<int64_t>(sizeof(T)),
                  global_load<T>(a.packed + from * static_cast<int64_t>(sizeof(T))));
}

// ---- the header: it comes with the launch ----

struct header_arguments {
  uint32_t words[packed_header_bytes / 4];
  uint8_t* packed;
};

LOWBIT_KERNEL(64, 1) void header_kernel(const header_arguments a) {
  const int i = thread_index();
  global_store<uint32_t>(a.packed + i * 4, a.words[i]);
}

// ---- the host's side ----

launch_shape grid_for(int64_t items, int64_t of_a_cta, void* stream) {
  launch_shape shape{};
  shape.grid_x = static_cast<int>(ceil_div(items, of_a_cta));
  shape.threads = threads;
  shape.stream = stream;
  return shape;
}

// f of the instance for 2, 4 or 8 bits.
template <class F>
lowbit_status for_bits(int bits, const F& f) {
  switch (bits) {
    case 2:
      return f(std::integral_constant<int, 2>());
    case 4:
      return f(std::integral_constant<int, 4>());
    default:
      return f(std::integral_constant<int, 8>());
  }
}

template <bool packing>
lowbit_status move_numbers(const numbers_arguments& a, int bytes, void* stream) {
  const launch_shape shape = grid_for(a.count, threads, stream);
  const auto move = [&]<class T>(T) {
    if constexpr (packing) return launch<pack_numbers_kernel<T>>(shape, a);
    return launch<unpack_numbers_kernel<T>>(shape, a);
  };
  return bytes == 1 ? move(uint8_t{}) : bytes == 2 ? move(uint16_t{}) : move(uint32_t{});
}

// The numbers of one region of the packed form. Where there is one array for all rows, it is one row of them.
struct region {
  const void* canonical;
  uint64_t begin, end;  // in the packed form
  int bytes;
  bool flat;
  int64_t columns;
};

template <bool packing>
lowbit_status move_regions(const packed_plan& plan, const lowbit_weight_arrays& arrays, uint8_t* packed, void* stream) {
  const format_row& f = *plan.format;
  const packed_regions r = plan.regions();
  const super_count supers(f, *plan.shape, plan.block);
  const int scale_bytes = dtype_bytes(plan.scale_dtype), super_bytes = dtype_bytes(f.super_dtype());
  const region regions[] = {
      {arrays.scales, r.scales, r.zero_points, scale_bytes, false, plan.shape->groups},
      {arrays.zero_points, r.zero_points, r.mins, 1, false, plan.shape->groups},
      {arrays.mins, r.mins, r.super_scales, scale_bytes, false, plan.shape->groups},
      {arrays.super_scales, r.super_scales, r.super_mins, super_bytes, f.super_flat(), supers.columns},
      {arrays.super_mins, r.super_mins, r.column_sums, super_bytes, f.super_flat(), supers.columns},
  };
  for (const region& region : regions) {
    if (region.begin == region.end) continue;
    numbers_arguments a{};
    a.canonical = static_cast<uint8_t*>(const_cast<void*>(region.canonical));
    a.packed = packed + region.begin;
    a.rows = region.flat ? 1 : plan.shape->n;
    a.columns = region.columns;
    a.group_n = region.begin < r.super_scales ? plan.shape->group_n : 1;
    a.block = region.flat ? 1 : plan.block;
    a.count = packing ? static_cast<int64_t>(region.end - region.begin) / region.bytes
                      : ceil_div(a.rows, a.group_n) * a.columns;
    if (const lowbit_status status = move_numbers<packing>(a, region.bytes, stream)) return status;
  }
  return LOWBIT_OK;
}

struct device_weight {
  fragment_shape shape;
  packed_plan plan;  // points to shape
  explicit device_weight(const lowbit_weight& w)
      : shape(fragment_shape_of(w)),
        plan{&format_at(w.format), &shape,        packed_layout::fragments, strip_rows,
             shape.code_bytes(),   w.scale_dtype, w.zero_points != nullptr, format_at(w.format).integer()} {}
  device_weight(const device_weight&) = delete;
};

codes_arguments codes_of(const device_weight& d, const void* canonical, const void* packed) {
  return {d.shape, static_cast<uint8_t*>(const_cast<void*>(canonical)),
          static_cast<uint8_t*>(const_cast<void*>(packed)) + d.plan.regions().codes,
          ceil_div(d.shape.k * d.shape.bits, 8)};
}

}  // namespace

lowbit_status pack(const lowbit_weight& w, void* packed, void* stream) {
  const device_weight d(w);
  const packed_regions r = d.plan.regions();
  uint8_t* const base = static_cast<uint8_t*>(packed);

  const codes_arguments codes = codes_of(d, w.codes, packed);
  const launch_shape chunks = grid_for(d.shape.code_bytes() / 16, threads, stream);
  const auto pack_codes = [&](auto bits) { return launch<pack_codes_kernel<bits()>>(chunks, codes); };
  if (const lowbit_status status = for_bits(d.shape.bits, pack_codes)) return status;

  if (r.column_sums != r.total) {
    const int64_t count = static_cast<int64_t>(r.total - r.column_sums) / 4;
    const sums_arguments sums{codes, reinterpret_cast<int32_t*>(base + r.column_sums), count,
                              d.plan.format->integer_offset};
    const launch_shape warps = grid_for(count, threads / 32, stream);
    const auto sum_up = [&](auto bits) { return launch<column_sums_kernel<bits()>>(warps, sums); };
    if (const lowbit_status status = for_bits(d.shape.bits, sum_up)) return status;
  }

  const lowbit_weight_arrays arrays{nullptr,
                                    const_cast<void*>(w.scales),
                                    const_cast<int8_t*>(w.zero_points),
                                    const_cast<void*>(w.mins),
                                    const_cast<void*>(w.super_scales),
                                    const_cast<void*>(w.super_mins)};
  if (const lowbit_status status = move_regions<true>(d.plan, arrays, base, stream)) return status;

  header_arguments header{};
  write_header(w, d.plan, reinterpret_cast<uint8_t*>(header.words));
  header.packed = base;
  launch_shape one{};
  one.grid_x = 1;
  one.threads = packed_header_bytes / 4;
  one.stream = stream;
  return launch<header_kernel>(one, header);
}

lowbit_status unpack(const lowbit_weight& w, const void* packed, const lowbit_weight_arrays& out, void* stream) {
  const device_weight d(w);
  const codes_arguments codes = codes_of(d, out.codes, packed);
  constexpr int64_t most = 1 << 20;  // CTAs; each takes a row after the other
  const launch_shape rows = grid_for(d.shape.n < most ? d.shape.n : most, 1, stream);
  const auto unpack_codes = [&](auto bits) { return launch<unpack_codes_kernel<bits()>>(rows, codes); };
  if (const lowbit_status status = for_bits(d.shape.bits, unpack_codes)) return status;
  uint8_t* const base = static_cast<uint8_t*>(const_cast<void*>(packed));
  return move_regions<false>(d.plan, out, base, stream);
}

}  // namespace lowbit::cuda::sm80
