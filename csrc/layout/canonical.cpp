#include "layout/canonical.h"

#include <cmath>
#include <cstring>

#include "gemm/status.h"

namespace lowbit {
namespace {

constexpr char magic[8] = {'l', 'o', 'w', 'b', 'i', 't', 0, 1};  // byte 6: the layout
constexpr size_t magic_layout = 6;

constexpr int64_t largest_dimension = int64_t{1} << 31;
constexpr int64_t largest_weight = int64_t{1} << 48;  // so that no size below overflows, groups of 1 included

uint64_t fnv1a(const void* data, size_t bytes) {
  uint64_t hash = 14695981039346656037u;
  for (size_t i = 0; i < bytes; ++i) hash = (hash ^ static_cast<const uint8_t*>(data)[i]) * 1099511628211u;
  return hash;
}

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

lowbit_status check_codes(const lowbit_weight& w) {
  const format_row& format = format_at(w.format);
  bool bad[256] = {}, any = false;
  for (int c = 0; c < 1 << format.bits; ++c) any |= bad[c] = !std::isfinite(format.values[c]);
  if (!any) return LOWBIT_OK;
  const int64_t row_bytes = ceil_div(w.k * format.bits, 8);
  for (int64_t n = 0; n < w.n; ++n) {
    const uint8_t* row = static_cast<const uint8_t*>(w.codes) + n * row_bytes;
    for (int64_t k = 0; k < w.k; ++k) {
      const unsigned code = format.bits == 8 ? row[k] : canonical_code(row, format.bits, k);
      if (bad[code])
        return fail(LOWBIT_INVALID_VALUE, "code [%lld, %lld] of %s is 0x%02x (%g): every weight must be finite",
                    static_cast<long long>(n), static_cast<long long>(k), format.name, code,
                    static_cast<double>(format.values[code]));
    }
  }
  return LOWBIT_OK;
}

}  // namespace

// ---- rows ----

void expand_row(const uint8_t* canonical, const weight_shape& s, uint8_t flip, uint8_t* row) {
  for (int64_t g = 0; g < s.groups; ++g) {
    const int64_t first = g * s.group_k, count = first + s.group_k < s.k ? s.group_k : s.k - first;
    uint8_t* out = row + g * s.span;
    if (s.bits == 8) {
      for (int64_t i = 0; i < count; ++i) out[i] = canonical[first + i] ^ flip;
    } else if (s.bits == 4 && first % 2 == 0) {
      const uint8_t* in = canonical + first / 2;
      for (int64_t i = 0; i < count / 2; ++i) {
        out[2 * i] = in[i] & 15;
        out[2 * i + 1] = in[i] >> 4;
      }
      if (count % 2) out[count - 1] = in[count / 2] & 15;
    } else {
      for (int64_t i = 0; i < count; ++i) out[i] = static_cast<uint8_t>(canonical_code(canonical, s.bits, first + i));
    }
  }
}

void collapse_row(const uint8_t* row, const weight_shape& s, uint8_t flip, uint8_t* canonical) {
  if (s.bits < 8) std::memset(canonical, 0, static_cast<size_t>(ceil_div(s.k * s.bits, 8)));
  for (int64_t g = 0; g < s.groups; ++g) {
    const int64_t first = g * s.group_k, count = first + s.group_k < s.k ? s.group_k : s.k - first;
    const uint8_t* in = row + g * s.span;
    if (s.bits == 8)
      for (int64_t i = 0; i < count; ++i) canonical[first + i] = in[i] ^ flip;
    else
      for (int64_t i = 0; i < count; ++i) add_canonical_code(canonical, s.bits, first + i, in[i]);
  }
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

// ---- checks ----

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
    const weight_shape s = packed_shape::of(w.n, w.k, w.group_n, w.group_k, format.bits);
    const super_count supers(format, s, 1);
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
    const int low = format.integer_low(), high = format.integer_high();
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

lowbit_status check_contents(const lowbit_weight& w) {
  if (const lowbit_status status = check_scales(w)) return status;
  return check_codes(w);
}

namespace {

lowbit_status check_sizes(const lowbit_weight& w) {
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
  return LOWBIT_OK;
}

}  // namespace

lowbit_status weight_shapes(const lowbit_weight& w, lowbit_array_shapes* shapes) {
  if (const lowbit_status status = check_sizes(w)) return status;
  const format_row& format = format_at(w.format);
  const packed_shape s = packed_shape::of(w.n, w.k, w.group_n, w.group_k, format.bits);
  const super_count supers(format, s, 1);
  *shapes = {{w.n, ceil_div(w.k * format.bits, 8)}, {ceil_div(w.n, w.group_n), s.groups}, 0, {0, 0}};
  if (format.super_flat()) {
    shapes->super_dimensions = 1;
    shapes->supers[0] = supers.columns;
  } else if (format.two_levels()) {
    shapes->super_dimensions = 2;
    shapes->supers[0] = supers.rows;
    shapes->supers[1] = supers.columns;
  }
  return LOWBIT_OK;
}

lowbit_status check_weight_description(const lowbit_weight& w) {
  if (const lowbit_status status = check_sizes(w)) return status;
  const format_row& format = format_at(w.format);
  const bool scale_dtype_fits = format.scale == scale_rule::any_float ? is_float_dtype(w.scale_dtype)
                                                                      : w.scale_dtype == static_cast<int>(format.scale);
  if (!scale_dtype_fits)
    return fail(LOWBIT_INVALID_TYPE, "scales are %s: %s takes %s", dtype_name(w.scale_dtype), format.name,
                format.scale == scale_rule::any_float ? "float32, float16 or bfloat16"
                                                      : dtype_name(static_cast<int>(format.scale)));
  if (w.zero_points && !format.zero_point) return fail(LOWBIT_INVALID_VALUE, "%s has no zero points", format.name);
  return LOWBIT_OK;
}

// ---- packed bytes ----

packed_regions packed_plan::regions() const {
  uint64_t end = packed_header_bytes;
  const auto next = [&](int64_t bytes) {
    const uint64_t begin = end;
    end += static_cast<uint64_t>(round_up(bytes, line_bytes));
    return begin;
  };
  const int64_t groups = round_up(shape->n, block) * shape->groups;
  const int64_t scale_bytes = groups * dtype_bytes(scale_dtype);
  const int64_t super_bytes = super_count(*format, *shape, block).packed * dtype_bytes(format->super_dtype());
  packed_regions r;
  r.codes = next(code_bytes);
  r.scales = next(scale_bytes);
  r.zero_points = next(zero_points ? groups : 0);
  r.mins = next(format->minimum ? scale_bytes : 0);
  r.super_scales = next(super_bytes);
  r.super_mins = next(format->minimum ? super_bytes : 0);
  r.column_sums = next(column_sums ? groups * static_cast<int64_t>(sizeof(int32_t)) : 0);
  r.total = end;
  return r;
}

void write_scales(const lowbit_weight& w, const packed_plan& plan, uint8_t* base) {
  const format_row& format = *plan.format;
  const weight_shape& s = *plan.shape;
  const packed_regions r = plan.regions();
  const auto interleave = [&](const void* from, uint64_t to, int64_t columns, int dtype) {
    const int64_t size = dtype_bytes(dtype);
    for (int64_t n = 0; n < s.n && from; ++n)
      for (int64_t g = 0; g < columns; ++g)
        std::memcpy(base + to + interleaved(n, g, columns, plan.block) * size,
                    static_cast<const uint8_t*>(from) + (n / s.group_n * columns + g) * size,
                    static_cast<size_t>(size));
  };
  interleave(w.scales, r.scales, s.groups, w.scale_dtype);
  interleave(w.zero_points, r.zero_points, s.groups, LOWBIT_I8);
  if (format.minimum) interleave(w.mins, r.mins, s.groups, w.scale_dtype);
  const super_count supers(format, s, plan.block);
  if (format.super_flat()) {
    std::memcpy(base + r.super_scales, w.super_scales,
                static_cast<size_t>(supers.packed * dtype_bytes(format.super_dtype())));
  } else if (format.two_levels()) {
    interleave(w.super_scales, r.super_scales, supers.columns, format.super_dtype());
    if (format.minimum) interleave(w.super_mins, r.super_mins, supers.columns, format.super_dtype());
  }
}

void write_header(const lowbit_weight& w, const packed_plan& plan, uint8_t* base) {
  const packed_regions r = plan.regions();
  packed_header header{};
  std::memcpy(header.magic, magic, sizeof magic);
  header.magic[magic_layout] = static_cast<char>(plan.layout);
  std::strncpy(header.format, plan.format->name, sizeof header.format - 1);
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
}

packed_layout layout_of(const void* packed, size_t bytes) {
  if (bytes < packed_header_bytes) return packed_layout::panels;
  return static_cast<const char*>(packed)[magic_layout] == static_cast<char>(packed_layout::fragments)
             ? packed_layout::fragments
             : packed_layout::panels;
}

lowbit_status read_header(const void* packed, size_t bytes, packed_layout layout, lowbit_weight* weight) {
  if (bytes < packed_header_bytes)
    return fail(LOWBIT_INVALID_VALUE, "packed weight has %zu bytes: its header alone has %lld", bytes,
                static_cast<long long>(packed_header_bytes));
  packed_header header;
  std::memcpy(&header, packed, sizeof header);
  const auto found = static_cast<unsigned char>(header.magic[magic_layout]);
  header.magic[magic_layout] = magic[magic_layout];
  if (std::memcmp(header.magic, magic, sizeof magic) != 0 ||
      found > static_cast<unsigned char>(packed_layout::fragments))
    return fail(LOWBIT_INVALID_VALUE, "not a packed weight of this version: the header does not begin with its mark");
  header.magic[magic_layout] = static_cast<char>(found);
  if (header.checksum != fnv1a(&header, offsetof(packed_header, checksum)))
    return fail(LOWBIT_INVALID_VALUE, "corrupt packed header: checksum %016llx, expected %016llx",
                static_cast<unsigned long long>(header.checksum),
                static_cast<unsigned long long>(fnv1a(&header, offsetof(packed_header, checksum))));
  if (found != static_cast<char>(layout))
    return fail(LOWBIT_INVALID_VALUE, "the weight is packed for %s: this reads those for %s", found ? "GPUs" : "CPUs",
                found ? "CPUs" : "GPUs");
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
  w.global_scale = header.global_scale;
  w.scale_offset = header.scale_offset;
  if (const lowbit_status status = check_weight_description(w)) return status;
  *weight = w;
  return LOWBIT_OK;
}

lowbit_status check_length(const packed_plan& plan, const void* packed, size_t bytes) {
  packed_header header;
  std::memcpy(&header, packed, sizeof header);
  const uint64_t needed = plan.regions().total;
  if (bytes != needed || header.total_bytes != needed)
    return fail(LOWBIT_INVALID_VALUE, "packed weight has %zu bytes: a %lld x %lld %s weight has %llu", bytes,
                static_cast<long long>(plan.shape->n), static_cast<long long>(plan.shape->k), plan.format->name,
                static_cast<unsigned long long>(needed));
  return LOWBIT_OK;
}

void point_scales(const lowbit_weight& w, const packed_plan& plan, const uint8_t* base, scale_arrays* arrays) {
  const format_row& format = *plan.format;
  const packed_regions r = plan.regions();
  const auto if_any = [&](bool any, uint64_t offset) { return any ? base + offset : nullptr; };
  arrays->format = &format;
  arrays->scale_dtype = plan.scale_dtype;
  arrays->scales = base + r.scales;
  arrays->zero_points = reinterpret_cast<const int8_t*>(if_any(plan.zero_points, r.zero_points));
  arrays->mins = if_any(format.minimum, r.mins);
  arrays->super_scales = if_any(format.two_levels(), r.super_scales);
  arrays->super_mins = if_any(format.two_levels() && format.minimum, r.super_mins);
  arrays->scale_offset = w.scale_offset;
}

lowbit_status read_scales(const scale_arrays& v, const packed_plan& plan, const lowbit_weight_arrays& out) {
  const weight_shape& s = *plan.shape;
  const char* homeless = !out.codes                            ? "codes"
                         : !out.scales                         ? "scales"
                         : v.zero_points && !out.zero_points   ? "zero points"
                         : v.mins && !out.mins                 ? "mins"
                         : v.super_scales && !out.super_scales ? "super scales"
                         : v.super_mins && !out.super_mins     ? "super mins"
                                                               : nullptr;
  if (homeless) return fail(LOWBIT_INVALID_VALUE, "the packed weight has %s: pass somewhere to put them", homeless);
  const auto collect = [&](const void* from, void* to, int64_t columns, int dtype) {
    const int64_t size = dtype_bytes(dtype);
    for (int64_t n = 0; n < s.n && from; n += s.group_n)
      for (int64_t g = 0; g < columns; ++g)
        std::memcpy(static_cast<uint8_t*>(to) + (n / s.group_n * columns + g) * size,
                    static_cast<const uint8_t*>(from) + interleaved(n, g, columns, plan.block) * size,
                    static_cast<size_t>(size));
  };
  const super_count supers(*v.format, s, plan.block);
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

}  // namespace lowbit
