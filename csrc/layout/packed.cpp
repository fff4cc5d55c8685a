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

struct regions {
  uint64_t codes, scales, zero_points, total;
};

regions regions_of(const packed_shape& shape, int scale_dtype, bool zero_points) {
  regions r;
  r.codes = packed_header_bytes;
  r.scales = r.codes + static_cast<uint64_t>(shape.code_bytes());
  r.zero_points = r.scales + static_cast<uint64_t>(round_up(shape.num_scales() * dtype_bytes(scale_dtype), line_bytes));
  r.total = r.zero_points + static_cast<uint64_t>(zero_points ? round_up(shape.num_scales(), line_bytes) : 0);
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

lowbit_status check_scales(const lowbit_weight& w) {
  const format_row& format = format_at(w.format);
  const int64_t rows = ceil_div(w.n, w.group_n), columns = ceil_div(w.k, w.group_k);
  for (int64_t i = 0; i < rows * columns; ++i) {
    const float scale = load_as_f32(w.scales, i, w.scale_dtype);
    const char* problem = nullptr;
    if (!std::isfinite(scale)) problem = "every scale must be finite";
    // A signed maximum makes the scale of an integer format negative; nothing does that to the others.
    if (scale < 0 && !format.integer()) problem = "only integer formats may have negative scales";
    if (problem)
      return fail(LOWBIT_INVALID_VALUE, "scale[%lld, %lld] of %s is %g: %s", static_cast<long long>(i / columns),
                  static_cast<long long>(i % columns), format.name, static_cast<double>(scale), problem);
  }
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

// out[n][k] from rows of one-byte codes in packed order: `codes_of(n, row)` fills a row.
template <class CodesOf, class ScaleOf, class ZeroOf>
lowbit_status dequantize_rows(const packed_shape& s, const format_row& format, float global_scale, void* out, int dtype,
                              const lowbit_parallel* parallel, const CodesOf& codes_of, const ScaleOf& scale_of,
                              const ZeroOf& zero_of) {
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
      const float scale = scale_of(n, g), zero = zero_of(n, g);
      float table[256];
      for (int c = 0; c < (1 << s.bits); ++c) table[c] = (format.values[c] - zero) * scale * global_scale;
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
    return fail(LOWBIT_INVALID_VALUE, "group is %lld x %lld: %s has blocks of %d x %d",
                static_cast<long long>(w.group_n), static_cast<long long>(w.group_k), format.name, format.block_n,
                format.block_k);
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
  *bytes = static_cast<size_t>(regions_of(shape_of(w), w.scale_dtype, w.zero_points != nullptr).total);
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
  const regions r = regions_of(s, w.scale_dtype, w.zero_points != nullptr);
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
  const int64_t scale_bytes = dtype_bytes(w.scale_dtype);
  for (int64_t n = 0; n < s.n; ++n) {
    for (int64_t g = 0; g < s.groups; ++g) {
      const int64_t from = n / s.group_n * s.groups + g, to = s.scale_index(n, g);
      std::memcpy(base + r.scales + to * scale_bytes, static_cast<const uint8_t*>(w.scales) + from * scale_bytes,
                  static_cast<size_t>(scale_bytes));
      if (w.zero_points) base[r.zero_points + static_cast<uint64_t>(to)] = static_cast<uint8_t>(w.zero_points[from]);
    }
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
  if (header.scale_dtype < LOWBIT_F32 || header.scale_dtype > LOWBIT_E4M3)
    return fail(LOWBIT_INVALID_VALUE, "packed weight has scales of dtype %d: there is none", header.scale_dtype);
  w.scale_dtype = static_cast<lowbit_dtype>(header.scale_dtype);
  static constexpr int8_t some = 0;
  w.zero_points = header.has_zero_points ? &some : nullptr;
  if (const lowbit_status status = check_weight_description(w)) return status;
  const packed_shape s = shape_of(w);
  const regions r = regions_of(s, header.scale_dtype, header.has_zero_points != 0);
  if (bytes != r.total || header.total_bytes != r.total)
    return fail(LOWBIT_INVALID_VALUE, "packed weight has %zu bytes: a %lld x %lld %s weight has %llu", bytes,
                static_cast<long long>(w.n), static_cast<long long>(w.k), header.format,
                static_cast<unsigned long long>(r.total));
  const uint8_t* base = static_cast<const uint8_t*>(packed);
  *view = {s,
           &format_at(w.format),
           base + r.codes,
           base + r.scales,
           header.scale_dtype,
           header.has_zero_points ? reinterpret_cast<const int8_t*>(base + r.zero_points) : nullptr,
           header.global_scale};
  return LOWBIT_OK;
}

lowbit_status unpack(const void* packed, size_t bytes, void* codes, void* scales, int8_t* zero_points,
                     const lowbit_parallel* parallel) {
  packed_view v;
  if (const lowbit_status status = view_packed(packed, bytes, &v)) return status;
  const packed_shape& s = v.shape;
  if (v.zero_points && !zero_points)
    return fail(LOWBIT_INVALID_VALUE, "the packed weight has zero points: pass somewhere to put them");
  const uint8_t flip = v.format->decode == recipe::linear ? 0x80 : 0;
  const int64_t canonical_bytes = ceil_div(s.k * s.bits, 8);
  const lowbit_status status = for_each_row(s.n, s.k_packed, parallel, [&](uint8_t* row, int64_t n) {
    read_lines(v.codes, s, n, row);
    collapse_row(row, s, flip, static_cast<uint8_t*>(codes) + n * canonical_bytes);
  });
  if (status) return status;
  const int64_t scale_bytes = dtype_bytes(v.scale_dtype);
  for (int64_t n = 0; n < s.n; n += s.group_n) {
    for (int64_t g = 0; g < s.groups; ++g) {
      const int64_t to = n / s.group_n * s.groups + g, from = s.scale_index(n, g);
      std::memcpy(static_cast<uint8_t*>(scales) + to * scale_bytes,
                  static_cast<const uint8_t*>(v.scales) + from * scale_bytes, static_cast<size_t>(scale_bytes));
      if (v.zero_points) zero_points[to] = v.zero_points[from];
    }
  }
  return LOWBIT_OK;
}

lowbit_status dequantize_packed(const void* packed, size_t bytes, void* out, int dtype,
                                const lowbit_parallel* parallel) {
  packed_view v;
  if (const lowbit_status status = view_packed(packed, bytes, &v)) return status;
  return dequantize_rows(
      v.shape, *v.format, v.global_scale, out, dtype, parallel,
      [&](int64_t n, uint8_t* row) { read_lines(v.codes, v.shape, n, row); },
      [&](int64_t n, int64_t g) { return v.scale(n, g); }, [&](int64_t n, int64_t g) { return v.zero_point(n, g); });
}

lowbit_status dequantize(const lowbit_weight& w, void* out, int dtype, const lowbit_parallel* parallel) {
  if (const lowbit_status status = check_weight_description(w)) return status;
  if (const lowbit_status status = check_scales(w)) return status;
  const format_row& format = format_at(w.format);
  const packed_shape s = shape_of(w);
  const uint8_t flip = format.decode == recipe::linear ? 0x80 : 0;
  const int64_t canonical_bytes = ceil_div(s.k * s.bits, 8);
  const auto index = [&](int64_t n, int64_t g) { return n / s.group_n * s.groups + g; };
  return dequantize_rows(
      s, format, w.global_scale, out, dtype, parallel,
      [&](int64_t n, uint8_t* row) {
        expand_row(static_cast<const uint8_t*>(w.codes) + n * canonical_bytes, s, flip, row);
      },
      [&](int64_t n, int64_t g) { return load_as_f32(w.scales, index(n, g), w.scale_dtype); },
      [&](int64_t n, int64_t g) { return w.zero_points ? static_cast<float>(w.zero_points[index(n, g)]) : 0.0f; });
}

}  // namespace lowbit
