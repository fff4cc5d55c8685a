// Activations in the order that packed weights ask for: columns of x by chunks of 64 packed columns.
#pragma once

#include <cstring>

#include "cpu/generic/outputs.h"

namespace lowbit::cpu {
namespace {

// Asks for packed bytes two pages beyond a line: the hardware's own prefetch stops at the end of a 4 KB page. Into L2:
// L1 has room for fewer reads on the way (one core of Zen 4, int8 weights: 25 GB/s, into L1 12 GB/s). A hint may lie
// past the weight: it reads nothing.
LOWBIT_INLINE void prefetch_codes(const uint8_t* line) { __builtin_prefetch(line + 8192, 0, 2); }

// 64 activations of one row for packed columns [64 c, 64 c + 64): where they lie, or, when groups are padded or the
// row ends, a copy in `padded` with zeros between.
template <class T>
inline const T* chunk_of_row(const packed_shape& s, const T* row, int64_t c, T* padded) {
  const int64_t column = c * chunk;
  if (s.k_in_order()) {
    if (column + chunk <= s.k) return row + column;
    std::memset(padded, 0, chunk * sizeof(T));
    if (column < s.k) std::memcpy(padded, row + column, static_cast<size_t>(s.k - column) * sizeof(T));
    return padded;
  }
  std::memset(padded, 0, chunk * sizeof(T));
  for (int64_t i = 0; i < chunk; i += s.unit) {
    const int64_t g = (column + i) / s.span, inside = (column + i) % s.span, first = g * s.group_k + inside;
    int64_t count = s.unit;
    if (count > s.group_k - inside) count = s.group_k - inside;
    if (count > s.k - first) count = s.k - first;
    if (g < s.groups && count > 0) std::memcpy(padded + i, row + first, static_cast<size_t>(count) * sizeof(T));
  }
  return padded;
}

// Where in the bytes of its lines a chunk of narrow codes is, and how far up the byte of each code it goes.
struct plane_shifts {
  int low, low_bits, high, high_bits, up;

  plane_shifts() = default;
  plane_shifts(const packed_shape& s, int64_t column, int to)
      : low(s.plane_shift(s.low, column)),
        low_bits(s.low.bits),
        high(s.plane_shift(s.high, column)),
        high_bits(s.high.bits),
        up(to) {}
  uint8_t low_mask() const { return static_cast<uint8_t>((1u << low_bits) - 1); }
  uint8_t high_mask() const { return static_cast<uint8_t>((1u << high_bits) - 1); }
  uint8_t code(uint8_t low_byte, uint8_t high_byte) const {
    return static_cast<uint8_t>(((low_byte >> low & low_mask()) | (high_byte >> high & high_mask()) << low_bits) << up);
  }
};

template <auto Value>
struct constant {
  static constexpr auto value = Value;
};

// Scales that packing has found finite, without branches, so that 16 of them are a few vectors.
LOWBIT_INLINE float finite_e8m0(uint8_t bits) {
  const uint32_t exponent = bits;
  return __builtin_bit_cast(float, exponent << 23 | (exponent ? 0 : 0x400000u));  // 2^-127 is denormal
}
LOWBIT_INLINE float finite_e4m3(uint8_t bits) {
  const uint32_t magnitude = (bits & 0x7fu) << 20, sign = (bits & 0x80u) << 24;
  return __builtin_bit_cast(float, magnitude | sign) * 0x1p120f;
}

// Scales, or minima, of a panel's 16 rows for `groups` groups, as fp32: numbers of w.scale_dtype, times `super` where
// the rule has two levels. One switch for all of them.
template <class V>
inline void panel_numbers(const packed_view& w, const void* data, const void* super, int64_t panel, int64_t group,
                          int64_t groups, float (*out)[panel_rows]) {
  const int64_t first = w.shape.scale_index(panel * panel_rows, group), count = groups * panel_rows;
  float* flat = out[0];
  switch (w.scale_dtype) {
    case LOWBIT_F32:
      std::memcpy(flat, static_cast<const float*>(data) + first, static_cast<size_t>(count) * sizeof(float));
      break;
    case LOWBIT_F16:
      for (int64_t i = 0; i < count; i += V::lanes)
        V::store(flat + i, V::load_f16(static_cast<const uint16_t*>(data) + first + i));
      break;
    case LOWBIT_BF16:
      for (int64_t i = 0; i < count; ++i) flat[i] = bf16_to_f32(static_cast<const uint16_t*>(data)[first + i]);
      break;
    case LOWBIT_E8M0:
      for (int64_t i = 0; i < count; ++i) flat[i] = finite_e8m0(static_cast<const uint8_t*>(data)[first + i]);
      break;
    case LOWBIT_E4M3:
      for (int64_t i = 0; i < count; ++i) flat[i] = finite_e4m3(static_cast<const uint8_t*>(data)[first + i]);
      break;
    case LOWBIT_I8:
      for (int64_t g = 0; g < groups; ++g) {
        const int8_t* small = static_cast<const int8_t*>(data) + first + g * panel_rows;
        const uint16_t* half = static_cast<const uint16_t*>(super) + w.super_index(panel * panel_rows, group + g);
        for (int r = 0; r < panel_rows; ++r) out[g][r] = static_cast<float>(small[r]) * finite_f16_to_f32(half[r]);
      }
      break;
    case LOWBIT_U8:
      for (int64_t g = 0; g < groups; ++g) {
        const uint8_t* code = static_cast<const uint8_t*>(data) + first + g * panel_rows;
        for (int r = 0; r < panel_rows; ++r)
          out[g][r] = w.format->scale_values[code[r]] *
                          static_cast<const float*>(super)[w.super_index(panel * panel_rows + r, group + g)] +
                      w.scale_offset;
      }
      break;
    default:
      for (int64_t i = 0; i < count; ++i) flat[i] = load_as_f32(data, first + i, w.scale_dtype);
  }
}

template <class V>
inline void panel_scales(const packed_view& w, int64_t panel, int64_t group, int64_t groups, float (*out)[panel_rows]) {
  panel_numbers<V>(w, w.scales, w.super_scales, panel, group, groups, out);
}

// What is subtracted before the scale, or added after it. No format has both.
enum class offset { none, zero_point, min };

template <class V, offset Offset>
inline void panel_offsets(const packed_view& w, int64_t panel, int64_t group, int64_t groups,
                          float (*out)[panel_rows]) {
  if (Offset == offset::min) return panel_numbers<V>(w, w.mins, w.super_mins, panel, group, groups, out);
  const int64_t first = w.shape.scale_index(panel * panel_rows, group), count = groups * panel_rows;
  float* const flat = out[0];
  if (w.zero_points)
    for (int64_t i = 0; i < count; ++i) flat[i] = static_cast<float>(w.zero_points[first + i]);
  else
    std::memset(out, 0, static_cast<size_t>(count) * sizeof(float));
}

// Both for every `Unit` columns of a run: scale[unit][row], and offsets[unit][row] where there are any.
template <class V, int Unit, offset Offset>
inline void run_scales(const packed_view& w, int64_t panel, int64_t column, int64_t columns, float (*scale)[panel_rows],
                       float (*offsets)[panel_rows]) {
  const packed_shape& s = w.shape;
  const auto put = [&](int64_t group, int64_t unit, int64_t count) {
    panel_scales<V>(w, panel, group, count, scale + unit);
    if (Offset != offset::none) panel_offsets<V, Offset>(w, panel, group, count, offsets + unit);
  };
  const auto copy = [&](int64_t from, int64_t to) {
    std::memcpy(scale[to], scale[from], sizeof scale[to]);
    if (Offset != offset::none) std::memcpy(offsets[to], offsets[from], sizeof offsets[to]);
  };
  const int64_t units = (columns + Unit - 1) / Unit;
  int64_t group = s.group_of_column(column), i = 0;
  if (Unit < chunk) {  // each unit is a group, one after the other
    i = s.groups - group < units ? s.groups - group : units;
    put(group, 0, i);
  } else {
    for (int64_t end = (group + 1) * s.span; i < units && group < s.groups; ++group, end += s.span) {
      const int64_t first = i++;
      put(group, first, 1);
      for (; i < units && column + i * Unit < end; ++i) copy(first, i);
    }
  }
  for (; i < units; ++i) copy(i - 1, i);  // past K
}

// f(recipe, unit, offset) as constants: what decides how a weight is decoded. Unit 128, where A asks for it: groups end
// at multiples of 128 columns. Minima go with tables and with narrow integers (formats.cpp).
template <class A, class F>
LOWBIT_INLINE void with_decoding(const packed_view& w, const F& f) {
  const packed_shape& s = w.shape;
  const auto by_unit = [&](auto decode, auto of) {
    if constexpr (A::has_unit_128(decode.value))
      if (s.groups == 1 || s.span % 128 == 0) return f(decode, constant<128>{}, of);
    if (s.unit == 64)
      f(decode, constant<64>{}, of);
    else if (s.unit == 32)
      f(decode, constant<32>{}, of);
    else
      f(decode, constant<16>{}, of);
  };
  constexpr constant<offset::none> none;
  constexpr constant<offset::zero_point> zero_point;
  constexpr constant<offset::min> min;
  const auto with_min = [&](auto decode, auto otherwise) {
    if (w.mins)
      by_unit(decode, min);
    else
      by_unit(decode, otherwise);
  };
  switch (w.format->decode) {
    case recipe::lut4:
      return with_min(constant<recipe::lut4>{}, zero_point);
    case recipe::lut16: {
      constexpr constant<recipe::lut16> lut16;
      return w.zero_points ? by_unit(lut16, zero_point) : with_min(lut16, none);
    }
    case recipe::linear:
      return by_unit(constant<recipe::linear>{}, zero_point);
    case recipe::minifloat:
      return by_unit(constant<recipe::minifloat>{}, none);
    case recipe::narrow_linear:
      return with_min(constant<recipe::narrow_linear>{}, zero_point);
    case recipe::narrow_minifloat:
      return by_unit(constant<recipe::narrow_minifloat>{}, none);
  }
}

// The K axis of the integer family in steps of 64, for levels that multiply whole steps: segments of at most 32768
// columns, each inside one group. Groups of 16 and 32 take a whole step each.
struct integer_axis {
  int64_t groups, group_k, k;
  int64_t segments_per_group;
  int64_t segment_steps;  // of a whole segment
  int64_t group_steps;
  int64_t steps;  // in all

  explicit integer_axis(const packed_shape& s)
      : groups(s.groups),
        group_k(s.groups == 1 ? s.k : s.group_k),
        k(s.k),
        segments_per_group(ceil_div(group_k, integer_segment)),
        segment_steps(segments_per_group == 1 ? ceil_div(group_k, chunk) : integer_segment / chunk),
        group_steps(ceil_div(group_k, chunk)),
        steps(groups * group_steps) {}

  int64_t segments() const { return groups * segments_per_group; }
  int64_t group_of_segment(int64_t segment) const { return segment / segments_per_group; }
  int64_t first_step(int64_t segment) const {
    return group_of_segment(segment) * group_steps + segment % segments_per_group * segment_steps;
  }
  int64_t steps_of(int64_t segment) const {
    const int64_t first = segment % segments_per_group * segment_steps, left = group_steps - first;
    return left < segment_steps ? left : segment_steps;
  }
  // Columns of x in a step: the first, and how many.
  int64_t first_column(int64_t step) const { return step / group_steps * group_k + step % group_steps * chunk; }
  int64_t columns_of(int64_t step) const {
    const int64_t inside = step % group_steps * chunk, first = first_column(step);
    int64_t count = group_k - inside < chunk ? group_k - inside : chunk;
    if (count > k - first) count = k - first;
    return count > 0 ? count : 0;
  }
  // The packed column where a step begins.
  int64_t packed_column(int64_t step, const packed_shape& s) const {
    return step / group_steps * (s.groups == 1 ? 0 : s.span) + step % group_steps * chunk;
  }
  int64_t packed_columns(int64_t step, const packed_shape& s) const {  // 64, or a unit of a narrower group
    const int64_t left = s.span - step % group_steps * chunk;
    return left < chunk ? left : chunk;
  }
};

}  // namespace
}  // namespace lowbit::cpu
