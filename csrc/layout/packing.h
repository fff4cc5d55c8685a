// Packing and its inverse, written once for every layout:
//
//   struct Layout {
//     using shape, view;                   // of weight_shape, of scale_arrays with shape, codes and global_scale
//     static constexpr packed_layout id;
//     static constexpr int64_t block;      // rows that share bytes of codes, and whose scales lie side by side
//     static constexpr bool column_sums;   // of integer formats
//     static bool holds(int bits);         // codes of so many
//     static uint8_t flip(format);         // what turns a canonical 8-bit code into a packed one
//     static uint8_t padding(format, zero_point);  // the packed code of the columns that pad a group
//     static void write(row, shape, n, codes), read(codes, shape, n, row);   // row: a byte for each packed column
//   };
#pragma once

#include <cstddef>
#include <cstring>
#include <memory>
#include <new>

#include "gemm/status.h"
#include "layout/canonical.h"

namespace lowbit {

// A row of bytes for each thread that runs `body(row_buffer, n)` over rows [0, n); `block` of them stay together.
template <class Body>
lowbit_status for_each_row(int64_t n, int64_t block, int64_t row_bytes, const lowbit_parallel* parallel,
                           const Body& body) {
  bool out_of_memory = false;
  parallel_for(parallel, ceil_div(n, block), [&](int64_t begin, int64_t end) {
    const std::unique_ptr<uint8_t[]> row(new (std::nothrow) uint8_t[static_cast<size_t>(row_bytes)]);
    if (!row) {
      __atomic_store_n(&out_of_memory, true, __ATOMIC_RELAXED);
      return;
    }
    for (int64_t i = begin * block; i < end * block && i < n; ++i) body(row.get(), i);
  });
  if (out_of_memory)
    return fail(LOWBIT_OUT_OF_MEMORY, "no memory for a row of %lld bytes", static_cast<long long>(row_bytes));
  return LOWBIT_OK;
}

// Where the scale of a group lies, and its super scale.
struct scale_place {
  int64_t group, super;
};

// out[n][k] from rows of one-byte codes in packed order: `codes_of(n, row)` fills a row.
template <class CodesOf, class PlaceOf>
lowbit_status dequantize_rows(const weight_shape& s, const scale_arrays& scales, uint8_t flip, float global_scale,
                              void* out, int dtype, const lowbit_parallel* parallel, const CodesOf& codes_of,
                              const PlaceOf& place_of) {
  const format_row& format = *scales.format;
  if (!is_float_dtype(dtype))
    return fail(LOWBIT_INVALID_TYPE, "cannot dequantize to %s: float32, float16 or bfloat16", dtype_name(dtype));
  const int64_t row_bytes = s.k_packed + s.k_packed * static_cast<int64_t>(sizeof(float));
  return for_each_row(s.n, panel_rows, row_bytes, parallel, [&](uint8_t* buffer, int64_t n) {
    float* values = reinterpret_cast<float*>(buffer);  // (k)
    uint8_t* row = buffer + s.k_packed * static_cast<int64_t>(sizeof(float));
    codes_of(n, row);
    for (int64_t g = 0; g < s.groups; ++g) {
      const int64_t first = g * s.group_k, last = first + s.group_k < s.k ? first + s.group_k : s.k;
      const scale_place at = place_of(n, g);
      const float scale = scales.scale_at(at.group, at.super), zero = scales.zero_point_at(at.group);
      const float min = scales.min_at(at.group, at.super);
      float table[256];
      for (int c = 0; c < (1 << s.bits); ++c)
        table[c] = scales.weight(format.values[c], zero, scale, min) * global_scale;
      for (int64_t k = first; k < last; ++k) values[k] = table[row[g * s.span + (k - first)] ^ flip];
    }
    store_row(values, s.k, out, n * s.k, dtype);
  });
}

template <class Layout>
typename Layout::shape shape_as(const lowbit_weight& w) {
  return Layout::shape::of(w.n, w.k, w.group_n, w.group_k, format_at(w.format).bits);
}

template <class Layout>
packed_plan plan_as(const lowbit_weight& w, const typename Layout::shape& s) {
  const format_row& format = format_at(w.format);
  return {&format,
          &s,
          Layout::id,
          Layout::block,
          s.code_bytes(),
          w.scale_dtype,
          w.zero_points != nullptr,
          Layout::column_sums && format.integer()};
}

template <class Layout>
lowbit_status check_width(const lowbit_weight& w) {
  const format_row& format = format_at(w.format);
  if (Layout::holds(format.bits)) return LOWBIT_OK;
  return fail(LOWBIT_UNSUPPORTED, "%s has codes of %d bits: no kernel for this device reads them", format.name,
              format.bits);
}

template <class Layout>
lowbit_status packed_bytes_as(const lowbit_weight& w, size_t* bytes) {
  if (const lowbit_status status = check_weight_description(w)) return status;
  if (const lowbit_status status = check_width<Layout>(w)) return status;
  const auto s = shape_as<Layout>(w);
  *bytes = static_cast<size_t>(plan_as<Layout>(w, s).regions().total);
  return LOWBIT_OK;
}

template <class Layout>
lowbit_status pack_as(const lowbit_weight& w, void* packed, size_t bytes, const lowbit_parallel* parallel) {
  size_t needed = 0;
  if (const lowbit_status status = packed_bytes_as<Layout>(w, &needed)) return status;
  if (bytes != needed) return fail(LOWBIT_INVALID_VALUE, "packed buffer has %zu bytes: %zu are needed", bytes, needed);
  if (const lowbit_status status = check_contents(w)) return status;

  const format_row& format = format_at(w.format);
  const auto s = shape_as<Layout>(w);
  const packed_plan plan = plan_as<Layout>(w, s);
  const packed_regions r = plan.regions();
  uint8_t* base = static_cast<uint8_t*>(packed);
  const uint8_t flip = Layout::flip(format);
  const int64_t canonical_bytes = ceil_div(s.k * s.bits, 8);
  std::memset(base + r.codes, 0, needed - r.codes);
  const auto pack_row = [&](uint8_t* row, int64_t n) {
    for (int64_t g = 0; g < s.groups; ++g) {
      const int zero_point = w.zero_points ? w.zero_points[n / s.group_n * s.groups + g] : 0;
      const int64_t begin = g * s.span, end = g + 1 < s.groups ? begin + s.span : s.k_packed;
      std::memset(row + begin, Layout::padding(format, zero_point), static_cast<size_t>(end - begin));
    }
    expand_row(static_cast<const uint8_t*>(w.codes) + n * canonical_bytes, s, flip, row);
    Layout::write(row, s, n, base + r.codes);
    for (int64_t g = 0; plan.column_sums && g < s.groups; ++g) {
      const int64_t first = g * s.span, count = (g + 1) * s.group_k < s.k ? s.group_k : s.k - g * s.group_k;
      int32_t sum = 0;
      for (int64_t i = first; i < first + count; ++i) sum += static_cast<int32_t>(format.values[row[i] ^ flip]);
      std::memcpy(base + r.column_sums + interleaved(n, g, s.groups, Layout::block) * 4, &sum, sizeof sum);
    }
  };
  if (const lowbit_status status = for_each_row(s.n, Layout::block, s.k_packed, parallel, pack_row)) return status;
  write_scales(w, plan, base);
  write_header(w, plan, base);
  return LOWBIT_OK;
}

// What a header said, all of it checked. Every product asks, mostly of headers that it has seen: the same bytes say the
// same, and comparing them takes a tenth of the time.
template <class Layout>
struct read_before {
  packed_header header;
  size_t bytes;  // of the whole; 0: nothing is known
  lowbit_weight w;
  typename Layout::shape shape;

  bool is(const void* packed, size_t size) const {
    return bytes && size == bytes && !std::memcmp(packed, &header, sizeof header);
  }
  lowbit_status read(const void* packed, size_t size) {
    bytes = 0;
    if (const lowbit_status status = read_header(packed, size, Layout::id, &w)) return status;
    const format_row& format = format_at(w.format);
    if (!Layout::holds(format.bits))
      return fail(LOWBIT_INVALID_VALUE, "corrupt packed header: its layout holds no codes of %d bits (%s)", format.bits,
                  format.name);
    shape = shape_as<Layout>(w);
    if (const lowbit_status status = check_length(plan_as<Layout>(w, shape), packed, size)) return status;
    std::memcpy(&header, packed, sizeof header);
    bytes = size;
    return LOWBIT_OK;
  }
};

template <class Layout>
lowbit_status view_as(const void* packed, size_t bytes, typename Layout::view* view, packed_plan* plan) {
  static thread_local read_before<Layout> headers[8];  // by their checksum
  size_t slot = 0;
  if (bytes >= sizeof(packed_header)) slot = static_cast<const uint8_t*>(packed)[offsetof(packed_header, checksum)] % 8;
  read_before<Layout>& known = headers[slot];
  if (!known.is(packed, bytes))
    if (const lowbit_status status = known.read(packed, bytes)) return status;
  view->shape = known.shape;
  *plan = plan_as<Layout>(known.w, view->shape);
  const uint8_t* base = static_cast<const uint8_t*>(packed);
  point_scales(known.w, *plan, base, view);
  view->codes = base + plan->regions().codes;
  view->global_scale = known.w.global_scale;
  return LOWBIT_OK;
}

template <class Layout>
lowbit_status unpack_as(const void* packed, size_t bytes, const lowbit_weight_arrays& out,
                        const lowbit_parallel* parallel) {
  typename Layout::view v;
  packed_plan plan;
  if (const lowbit_status status = view_as<Layout>(packed, bytes, &v, &plan)) return status;
  if (const lowbit_status status = read_scales(v, plan, out)) return status;
  const auto& s = v.shape;
  const uint8_t flip = Layout::flip(*v.format);
  const int64_t canonical_bytes = ceil_div(s.k * s.bits, 8);
  return for_each_row(s.n, Layout::block, s.k_packed, parallel, [&](uint8_t* row, int64_t n) {
    Layout::read(v.codes, s, n, row);
    collapse_row(row, s, flip, static_cast<uint8_t*>(out.codes) + n * canonical_bytes);
  });
}

template <class Layout>
lowbit_status dequantize_as(const void* packed, size_t bytes, void* out, int dtype, const lowbit_parallel* parallel) {
  typename Layout::view v;
  packed_plan plan;
  if (const lowbit_status status = view_as<Layout>(packed, bytes, &v, &plan)) return status;
  const auto& s = v.shape;
  const format_row& f = *v.format;
  const auto super = [&](int64_t n, int64_t g) {
    if (!f.two_levels()) return int64_t{0};
    if (f.super_flat()) return (n * s.groups + g) / f.super_groups;
    return interleaved(n, g / f.super_groups, ceil_div(s.groups, f.super_groups), Layout::block);
  };
  return dequantize_rows(
      s, v, Layout::flip(f), v.global_scale, out, dtype, parallel,
      [&](int64_t n, uint8_t* row) { Layout::read(v.codes, s, n, row); },
      [&](int64_t n, int64_t g) { return scale_place{interleaved(n, g, s.groups, Layout::block), super(n, g)}; });
}

}  // namespace lowbit
