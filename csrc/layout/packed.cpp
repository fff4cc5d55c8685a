#include "layout/packed.h"

#include <cmath>
#include <cstring>
#include <memory>
#include <new>

#include "gemm/status.h"

namespace lowbit {
namespace {

constexpr char layout_magic[8] = {'l', 'o', 'w', 'b', 'i', 't', 0, 1};

constexpr int64_t largest_dimension = int64_t{1} << 31;
constexpr int64_t largest_weight = int64_t{1} << 48;  // so that no size below overflows, groups of 1 included

uint64_t fnv1a(const void* data, size_t bytes) {
  uint64_t hash = 14695981039346656037u;
  for (size_t i = 0; i < bytes; ++i) hash = (hash ^ static_cast<const uint8_t*>(data)[i]) * 1099511628211u;
  return hash;
}

// How many super scales there are, in canonical and in packed form.
struct super_count {
  int64_t rows, columns;  // canonical; flat ones are one row
  int64_t packed;

  super_count(const format_row& format, const packed_shape& s) : rows(0), columns(0), packed(0) {
    if (!format.two_levels()) return;
    rows = format.super_flat() ? 1 : s.n;
    columns = ceil_div(format.super_flat() ? s.n * s.groups : s.groups, format.super_groups);
    packed = format.super_flat() ? columns : s.panels * columns * panel_rows;
  }
  int64_t canonical() const { return rows * columns; }
};

struct regions {
  uint64_t codes, scales, zero_points, mins, super_scales, super_mins, total;
};

regions regions_of(const format_row& format, const packed_shape& shape, int scale_dtype, bool zero_points) {
  uint64_t end = packed_header_bytes;
  const auto next = [&](int64_t bytes) {
    const uint64_t begin = end;
    end += static_cast<uint64_t>(round_up(bytes, line_bytes));
    return begin;
  };
  const int64_t scale_bytes = shape.num_scales() * dtype_bytes(scale_dtype);
  const int64_t super_bytes = super_count(format, shape).packed * dtype_bytes(format.super_dtype());
  regions r;
  r.codes = next(shape.code_bytes());
  r.scales = next(scale_bytes);
  r.zero_points = next(zero_points ? shape.num_scales() : 0);
  r.mins = next(format.minimum ? scale_bytes : 0);
  r.super_scales = next(super_bytes);
  r.super_mins = next(format.minimum ? super_bytes : 0);
  r.total = end;
  return r;
}

packed_shape shape_of(const lowbit_weight& w) {
  return packed_shape::of(w.n, w.k, w.group_n, w.group_k, format_at(w.format).bits);
}

// ---- one row of codes, one byte each, in the packed order ----

void expand_row(const uint8_t* canonical, const packed_shape& s, uint8_t flip, uint8_t* row) {
  std::memset(row, 0, static_cast<size_t>(s.k_packed));
  for (int64_t g = 0; g < s.groups; ++g) {
    const int64_t first = g * s.group_k, count = first + s.group_k < s.k ? s.group_k : s.k - first;
    uint8_t* out = row + g * s.span;
    if (s.bits == 8) {
      for (int64_t i = 0; i < count; ++i) out[i] = canonical[first + i] ^ flip;
    } else if (first % 2 == 0) {
      const uint8_t* in = canonical + first / 2;
      for (int64_t i = 0; i < count / 2; ++i) {
        out[2 * i] = in[i] & 15;
        out[2 * i + 1] = in[i] >> 4;
      }
      if (count % 2) out[count - 1] = in[count / 2] & 15;
    } else {
      for (int64_t i = 0; i < count; ++i) out[i] = canonical[(first + i) / 2] >> ((first + i) % 2 * 4) & 15;
    }
  }
}

void collapse_row(const uint8_t* row, const packed_shape& s, uint8_t flip, uint8_t* canonical) {
  if (s.bits == 4) std::memset(canonical, 0, static_cast<size_t>(ceil_div(s.k, 2)));
  for (int64_t g = 0; g < s.groups; ++g) {
    const int64_t first = g * s.group_k, count = first + s.group_k < s.k ? s.group_k : s.k - first;
    const uint8_t* in = row + g * s.span;
    if (s.bits == 8)
      for (int64_t i = 0; i < count; ++i) canonical[first + i] = in[i] ^ flip;
    else
      for (int64_t i = 0; i < count; ++i)
        canonical[(first + i) / 2] |= static_cast<uint8_t>(in[i] << ((first + i) % 2 * 4));
  }
}

void write_lines(const uint8_t* row, const packed_shape& s, int64_t n, uint8_t* codes) {
  for (int64_t column = 0; column < s.k_packed; column += s.block_k) {
    uint8_t* line = codes + s.code_offset(n, column);
    if (s.bits == 8)
      std::memcpy(line, row + column, line_bytes);
    else
      for (int64_t i = 0; i < line_bytes; ++i)
        line[i] = static_cast<uint8_t>(row[column + i] | row[column + line_bytes + i] << 4);
  }
}

void read_lines(const uint8_t* codes, const packed_shape& s, int64_t n, uint8_t* row) {
  for (int64_t column = 0; column < s.k_packed; column += s.block_k) {
    const uint8_t* line = codes + s.code_offset(n, column);
    if (s.bits == 8) {
      std::memcpy(row + column, line, line_bytes);
    } else {
      for (int64_t i = 0; i < line_bytes; ++i) row[column + i] = line[i] & 15;
      for (int64_t i = 0; i < line_bytes; ++i) row[column + line_bytes + i] = line[i] >> 4;
    }
  }
}

// ---- checks ----

// `name`[i, j] of rows x columns numbers: finite, and of the sign that the format's rule allows.
lowbit_status check_numbers(const char* name, const void* data, int dtype, int64_t rows, int64_t columns,
                            const format_row& format, bool sign) {
  if (!data) return fail(LOWBIT_INVALID_VALUE, "%s has a %s for each block: none are given", format.name, name);
  for (int64_t i = 0; i < rows * columns; ++i) {
    const float number = load_as_f32(data, i, dtype);
    const char* problem = nullptr;
    if (!std::isfinite(number)) problem = "every scale must be finite";
    if (number < 0 && !sign) problem = "only integer formats may have negative scales";
    if (problem)
      return fail(LOWBIT_INVALID_VALUE, "%s[%lld, %lld] of %s is %g: %s", name, static_cast<long long>(i / columns),
                  static_cast<long long>(i % columns), format.name, static_cast<double>(number), problem);
  }
  return LOWBIT_OK;
}

lowbit_status check_scales(const lowbit_weight& w) {
  const format_row& format = format_at(w.format);
  const int64_t rows = ceil_div(w.n, w.group_n), columns = ceil_div(w.k, w.group_k);
  if (const lowbit_status status =
          check_numbers("scale", w.scales, w.scale_dtype, rows, columns, format, format.signed_scales()))
    return status;
  if (format.minimum)
    if (const lowbit_status status = check_numbers("min", w.mins, w.scale_dtype, rows, columns, format, true))
      return status;
  if (format.two_levels()) {
    const super_count supers(format, shape_of(w));
    const auto check = [&](const char* name, const void* data) {
      return check_numbers(name, data, format.super_dtype(), supers.rows, supers.columns, format, true);
    };
    if (const lowbit_status status = check("super_scale", w.super_scales)) return status;
    if (format.minimum)
      if (const lowbit_status status = check("super_min", w.super_mins)) return status;
  }
  if (format.scale_values ? !std::isfinite(w.scale_offset) : w.scale_offset != 0)
    return fail(LOWBIT_INVALID_VALUE, "scale offset is %g: %s", static_cast<double>(w.scale_offset),
                format.scale_values ? "it must be finite" : "this format has none, pass 0");
  if (w.zero_points) {
    const int low = -format.integer_offset, high = format.integer_offset - 1;
    for (int64_t i = 0; i < rows * columns; ++i)
      if (w.zero_points[i] < low || w.zero_points[i] > high)
        return fail(LOWBIT_INVALID_VALUE, "zero point [%lld, %lld] is %d: %s allows %d to %d",
                    static_cast<long long>(i / columns), static_cast<long long>(i % columns), w.zero_points[i],
                    format.name, low, high);
  }
  if (!std::isfinite(w.global_scale) || w.global_scale < 0)
    return fail(LOWBIT_INVALID_VALUE, "global scale is %g: it must be finite and not negative",
                static_cast<double>(w.global_scale));
  if (!format.global_scale && w.global_scale != 1)
    return fail(LOWBIT_INVALID_VALUE, "global scale is %g: %s has none, pass 1", static_cast<double>(w.global_scale),
                format.name);
  return LOWBIT_OK;
}

// Only 8-bit minifloats have codes that are no finite number.
lowbit_status check_codes(const lowbit_weight& w) {
  const format_row& format = format_at(w.format);
  if (format.decode != recipe::minifloat) return LOWBIT_OK;
  bool bad[256];
  for (int c = 0; c < 256; ++c) bad[c] = !std::isfinite(format.values[c]);
  const uint8_t* codes = static_cast<const uint8_t*>(w.codes);
  for (int64_t i = 0; i < w.n * w.k; ++i)
    if (bad[codes[i]])
      return fail(LOWBIT_INVALID_VALUE, "code [%lld, %lld] of %s is 0x%02x (%g): every weight must be finite",
                  static_cast<long long>(i / w.k), static_cast<long long>(i % w.k), format.name, codes[i],
                  static_cast<double>(format.values[codes[i]]));
  return LOWBIT_OK;
}

// A row of bytes for each thread that runs `body(row_buffer, n)` over rows [0, n).
template <class Body>
lowbit_status for_each_row(int64_t n, int64_t row_bytes, const lowbit_parallel* parallel, const Body& body) {
  bool out_of_memory = false;
  parallel_for(parallel, ceil_div(n, panel_rows), [&](int64_t begin, int64_t end) {
    const std::unique_ptr<uint8_t[]> row(new (std::nothrow) uint8_t[static_cast<size_t>(row_bytes)]);
    if (!row) {
      __atomic_store_n(&out_of_memory, true, __ATOMIC_RELAXED);
      return;
    }
    for (int64_t i = begin * panel_rows; i < end * panel_rows && i < n; ++i) body(row.get(), i);
  });
  if (out_of_memory)
    return fail(LOWBIT_OUT_OF_MEMORY, "no memory for a row of %lld bytes", static_cast<long long>(row_bytes));
  return LOWBIT_OK;
}

void store_row(const float* values, int64_t count, void* out, int64_t offset, int dtype) {
  switch (dtype) {
    case LOWBIT_F32:
      std::memcpy(static_cast<float*>(out) + offset, values, static_cast<size_t>(count) * sizeof(float));
      break;
    case LOWBIT_BF16:
      for (int64_t i = 0; i < count; ++i) static_cast<uint16_t*>(out)[offset + i] = f32_to_bf16(values[i]);
      break;
    default:
      for (int64_t i = 0; i < count; ++i) static_cast<uint16_t*>(out)[offset + i] = f32_to_f16(values[i]);
  }
}

// Where the scale of a group lies, and its super scale.
struct scale_place {
  int64_t group, super;
};

// out[n][k] from rows of one-byte codes in packed order: `codes_of(n, row)` fills a row.
template <class CodesOf, class PlaceOf>
lowbit_status dequantize_rows(const packed_shape& s, const scale_arrays& scales, float global_scale, void* out,
                              int dtype, const lowbit_parallel* parallel, const CodesOf& codes_of,
                              const PlaceOf& place_of) {
  const format_row& format = *scales.format;
  if (!is_float_dtype(dtype))
    return fail(LOWBIT_INVALID_TYPE, "cannot dequantize to %s: float32, float16 or bfloat16", dtype_name(dtype));
  const uint8_t flip = format.decode == recipe::linear ? 0x80 : 0;
  const int64_t row_bytes = s.k_packed + s.k_packed * static_cast<int64_t>(sizeof(float));
  return for_each_row(s.n, row_bytes, parallel, [&](uint8_t* buffer, int64_t n) {
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
  s.block_k = line_bytes * 8 / bits;
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

lowbit_status check_weight_description(const lowbit_weight& w) {
  if (w.format < 0 || w.format >= num_formats())
    return fail(LOWBIT_INVALID_VALUE, "format %d: there are %d", w.format, num_formats());
  const format_row& format = format_at(w.format);
  if (w.n < 1 || w.k < 1 || w.n >= largest_dimension || w.k >= largest_dimension)
    return fail(LOWBIT_INVALID_VALUE, "weight is %lld x %lld: each must be in [1, 2^31)", static_cast<long long>(w.n),
                static_cast<long long>(w.k));
  if (w.n * w.k > largest_weight)
    return fail(LOWBIT_INVALID_VALUE, "weight is %lld x %lld: more than 2^48 elements", static_cast<long long>(w.n),
                static_cast<long long>(w.k));
  if (w.group_n < 1 || w.group_k < 1)
    return fail(LOWBIT_INVALID_VALUE, "group is %lld x %lld: each must be at least 1",
                static_cast<long long>(w.group_n), static_cast<long long>(w.group_k));
  if ((format.block_n && w.group_n != format.block_n) || (format.block_k && w.group_k != format.block_k))
    return format.block_k ? fail(LOWBIT_INVALID_VALUE, "group is %lld x %lld: %s has blocks of %d x %d",
                                 static_cast<long long>(w.group_n), static_cast<long long>(w.group_k), format.name,
                                 format.block_n, format.block_k)
                          : fail(LOWBIT_INVALID_VALUE, "group is %lld x %lld: %s has groups of %d row",
                                 static_cast<long long>(w.group_n), static_cast<long long>(w.group_k), format.name,
                                 format.block_n);
  if (format.block_k && w.k % format.block_k)
    return fail(LOWBIT_INVALID_VALUE, "k = %lld is not a multiple of block %d (%s)", static_cast<long long>(w.k),
                format.block_k, format.name);
  const bool scale_dtype_fits = format.scale == scale_rule::any_float ? is_float_dtype(w.scale_dtype)
                                                                      : w.scale_dtype == static_cast<int>(format.scale);
  if (!scale_dtype_fits)
    return fail(LOWBIT_INVALID_TYPE, "scales are %s: %s takes %s", dtype_name(w.scale_dtype), format.name,
                format.scale == scale_rule::any_float ? "float32, float16 or bfloat16"
                                                      : dtype_name(static_cast<int>(format.scale)));
  if (w.zero_points && !format.zero_point) return fail(LOWBIT_INVALID_VALUE, "%s has no zero points", format.name);
  return LOWBIT_OK;
}

lowbit_status packed_bytes(const lowbit_weight& w, size_t* bytes) {
  if (const lowbit_status status = check_weight_description(w)) return status;
  const format_row& format = format_at(w.format);
  *bytes = static_cast<size_t>(regions_of(format, shape_of(w), w.scale_dtype, w.zero_points != nullptr).total);
  return LOWBIT_OK;
}

lowbit_status pack(const lowbit_weight& w, void* packed, size_t bytes, const lowbit_parallel* parallel) {
  size_t needed = 0;
  if (const lowbit_status status = packed_bytes(w, &needed)) return status;
  if (bytes != needed) return fail(LOWBIT_INVALID_VALUE, "packed buffer has %zu bytes: %zu are needed", bytes, needed);
  if (const lowbit_status status = check_scales(w)) return status;
  if (const lowbit_status status = check_codes(w)) return status;

  const format_row& format = format_at(w.format);
  const packed_shape s = shape_of(w);
  const regions r = regions_of(format, s, w.scale_dtype, w.zero_points != nullptr);
  uint8_t* base = static_cast<uint8_t*>(packed);

  const uint8_t flip = format.decode == recipe::linear ? 0x80 : 0;
  const int64_t canonical_bytes = ceil_div(s.k * s.bits, 8);
  uint8_t* codes = base + r.codes;
  const lowbit_status rows_packed = for_each_row(s.n, s.k_packed, parallel, [&](uint8_t* row, int64_t n) {
    expand_row(static_cast<const uint8_t*>(w.codes) + n * canonical_bytes, s, flip, row);
    write_lines(row, s, n, codes);
  });
  if (rows_packed) return rows_packed;
  for (int64_t n = s.n; n < s.panels * panel_rows; ++n)  // rows that fill the last panel
    for (int64_t column = 0; column < s.k_packed; column += s.block_k)
      std::memset(codes + s.code_offset(n, column), 0, line_bytes);

  std::memset(base + r.scales, 0, r.total - r.scales);
  // [n / group_n][columns] to [panel][column][16]
  const auto interleave = [&](const void* from, uint64_t to, int64_t columns, int dtype) {
    const int64_t size = dtype_bytes(dtype);
    for (int64_t n = 0; n < s.n && from; ++n)
      for (int64_t g = 0; g < columns; ++g)
        std::memcpy(base + to + ((n / panel_rows * columns + g) * panel_rows + n % panel_rows) * size,
                    static_cast<const uint8_t*>(from) + (n / s.group_n * columns + g) * size,
                    static_cast<size_t>(size));
  };
  interleave(w.scales, r.scales, s.groups, w.scale_dtype);
  interleave(w.zero_points, r.zero_points, s.groups, LOWBIT_I8);
  if (format.minimum) interleave(w.mins, r.mins, s.groups, w.scale_dtype);
  if (format.super_flat()) {
    std::memcpy(base + r.super_scales, w.super_scales,
                static_cast<size_t>(super_count(format, s).packed * dtype_bytes(format.super_dtype())));
  } else if (format.two_levels()) {
    interleave(w.super_scales, r.super_scales, super_count(format, s).columns, format.super_dtype());
    if (format.minimum) interleave(w.super_mins, r.super_mins, super_count(format, s).columns, format.super_dtype());
  }

  packed_header header{};
  std::memcpy(header.magic, layout_magic, sizeof layout_magic);
  std::strncpy(header.format, format.name, sizeof header.format - 1);
  header.n = w.n;
  header.k = w.k;
  header.group_n = w.group_n;
  header.group_k = w.group_k;
  header.scale_dtype = w.scale_dtype;
  header.has_zero_points = w.zero_points != nullptr;
  header.global_scale = w.global_scale;
  header.scale_offset = w.scale_offset;
  header.codes_offset = r.codes;
  header.scales_offset = r.scales;
  header.zero_points_offset = r.zero_points;
  header.total_bytes = r.total;
  header.checksum = fnv1a(&header, offsetof(packed_header, checksum));
  std::memset(base, 0, packed_header_bytes);
  std::memcpy(base, &header, sizeof header);
  return LOWBIT_OK;
}

lowbit_status view_packed(const void* packed, size_t bytes, packed_view* view) {
  if (bytes < packed_header_bytes)
    return fail(LOWBIT_INVALID_VALUE, "packed weight has %zu bytes: its header alone has %lld", bytes,
                static_cast<long long>(packed_header_bytes));
  packed_header header;
  std::memcpy(&header, packed, sizeof header);
  if (std::memcmp(header.magic, layout_magic, sizeof layout_magic) != 0)
    return fail(LOWBIT_INVALID_VALUE, "not a packed weight of this version: the header does not begin with its mark");
  if (header.checksum != fnv1a(&header, offsetof(packed_header, checksum)))
    return fail(LOWBIT_INVALID_VALUE, "corrupt packed header: checksum %016llx, expected %016llx",
                static_cast<unsigned long long>(header.checksum),
                static_cast<unsigned long long>(fnv1a(&header, offsetof(packed_header, checksum))));
  header.format[sizeof header.format - 1] = 0;
  lowbit_weight w{};
  w.format = find_format(header.format);
  if (w.format < 0) return fail(LOWBIT_INVALID_VALUE, "packed weight has the unknown format '%s'", header.format);
  w.n = header.n;
  w.k = header.k;
  w.group_n = header.group_n;
  w.group_k = header.group_k;
  if (header.scale_dtype < LOWBIT_F32 || header.scale_dtype > LOWBIT_U8)
    return fail(LOWBIT_INVALID_VALUE, "packed weight has scales of dtype %d: there is none", header.scale_dtype);
  w.scale_dtype = static_cast<lowbit_dtype>(header.scale_dtype);
  static constexpr int8_t some = 0;
  w.zero_points = header.has_zero_points ? &some : nullptr;
  if (const lowbit_status status = check_weight_description(w)) return status;
  const packed_shape s = shape_of(w);
  const format_row& format = format_at(w.format);
  const regions r = regions_of(format, s, header.scale_dtype, header.has_zero_points != 0);
  if (bytes != r.total || header.total_bytes != r.total)
    return fail(LOWBIT_INVALID_VALUE, "packed weight has %zu bytes: a %lld x %lld %s weight has %llu", bytes,
                static_cast<long long>(w.n), static_cast<long long>(w.k), header.format,
                static_cast<unsigned long long>(r.total));
  const uint8_t* base = static_cast<const uint8_t*>(packed);
  const auto if_any = [&](bool any, uint64_t offset) { return any ? base + offset : nullptr; };
  view->format = &format;
  view->scale_dtype = header.scale_dtype;
  view->scales = base + r.scales;
  view->zero_points = reinterpret_cast<const int8_t*>(if_any(header.has_zero_points, r.zero_points));
  view->mins = if_any(format.minimum, r.mins);
  view->super_scales = if_any(format.two_levels(), r.super_scales);
  view->super_mins = if_any(format.two_levels() && format.minimum, r.super_mins);
  view->scale_offset = header.scale_offset;
  view->shape = s;
  view->codes = base + r.codes;
  view->global_scale = header.global_scale;
  return LOWBIT_OK;
}

lowbit_status unpack(const void* packed, size_t bytes, const lowbit_weight_arrays& out,
                     const lowbit_parallel* parallel) {
  packed_view v;
  if (const lowbit_status status = view_packed(packed, bytes, &v)) return status;
  const packed_shape& s = v.shape;
  const char* homeless = !out.codes                            ? "codes"
                         : !out.scales                         ? "scales"
                         : v.zero_points && !out.zero_points   ? "zero points"
                         : v.mins && !out.mins                 ? "mins"
                         : v.super_scales && !out.super_scales ? "super scales"
                         : v.super_mins && !out.super_mins     ? "super mins"
                                                               : nullptr;
  if (homeless) return fail(LOWBIT_INVALID_VALUE, "the packed weight has %s: pass somewhere to put them", homeless);
  const uint8_t flip = v.format->decode == recipe::linear ? 0x80 : 0;
  const int64_t canonical_bytes = ceil_div(s.k * s.bits, 8);
  const lowbit_status status = for_each_row(s.n, s.k_packed, parallel, [&](uint8_t* row, int64_t n) {
    read_lines(v.codes, s, n, row);
    collapse_row(row, s, flip, static_cast<uint8_t*>(out.codes) + n * canonical_bytes);
  });
  if (status) return status;
  const auto collect = [&](const void* from, void* to, int64_t columns, int dtype) {
    const int64_t size = dtype_bytes(dtype);
    for (int64_t n = 0; n < s.n && from; n += s.group_n)
      for (int64_t g = 0; g < columns; ++g)
        std::memcpy(
            static_cast<uint8_t*>(to) + (n / s.group_n * columns + g) * size,
            static_cast<const uint8_t*>(from) + ((n / panel_rows * columns + g) * panel_rows + n % panel_rows) * size,
            static_cast<size_t>(size));
  };
  const super_count supers(*v.format, s);
  const int super_dtype = v.format->super_dtype();
  collect(v.scales, out.scales, s.groups, v.scale_dtype);
  collect(v.zero_points, out.zero_points, s.groups, LOWBIT_I8);
  collect(v.mins, out.mins, s.groups, v.scale_dtype);
  if (v.format->super_flat()) {
    std::memcpy(out.super_scales, v.super_scales, static_cast<size_t>(supers.packed * dtype_bytes(super_dtype)));
  } else {
    collect(v.super_scales, out.super_scales, supers.columns, super_dtype);
    collect(v.super_mins, out.super_mins, supers.columns, super_dtype);
  }
  return LOWBIT_OK;
}

lowbit_status dequantize_packed(const void* packed, size_t bytes, void* out, int dtype,
                                const lowbit_parallel* parallel) {
  packed_view v;
  if (const lowbit_status status = view_packed(packed, bytes, &v)) return status;
  return dequantize_rows(
      v.shape, v, v.global_scale, out, dtype, parallel,
      [&](int64_t n, uint8_t* row) { read_lines(v.codes, v.shape, n, row); },
      [&](int64_t n, int64_t g) { return scale_place{v.shape.scale_index(n, g), v.super_index(n, g)}; });
}

lowbit_status dequantize(const lowbit_weight& w, void* out, int dtype, const lowbit_parallel* parallel) {
  if (const lowbit_status status = check_weight_description(w)) return status;
  if (const lowbit_status status = check_scales(w)) return status;
  const format_row& format = format_at(w.format);
  const packed_shape s = shape_of(w);
  const uint8_t flip = format.decode == recipe::linear ? 0x80 : 0;
  const int64_t canonical_bytes = ceil_div(s.k * s.bits, 8);
  const scale_arrays scales{&format, w.scale_dtype,  w.scales,     w.zero_points,
                            w.mins,  w.super_scales, w.super_mins, w.scale_offset};
  const super_count supers(format, s);
  const auto place = [&](int64_t n, int64_t g) {
    const int64_t i = n / s.group_n * s.groups + g;
    if (!format.two_levels()) return scale_place{i, 0};
    return scale_place{i, format.super_flat() ? i / format.super_groups : n * supers.columns + g / format.super_groups};
  };
  return dequantize_rows(
      s, scales, w.global_scale, out, dtype, parallel,
      [&](int64_t n, uint8_t* row) {
        expand_row(static_cast<const uint8_t*>(w.codes) + n * canonical_bytes, s, flip, row);
      },
      place);
}

}  // namespace lowbit
