// Scales of a panel, and the way that a weight is decoded.
#pragma once

#include <cstring>

#include "cpu/generic/columns.h"
#include "cpu/generic/outputs.h"

namespace lowbit::cpu {
namespace {

// Asks for packed bytes `ahead` of a line. Into L2: L1 has room for fewer reads on the way (one core of Zen 4, int8
// weights: 25 GB/s, into L1 12 GB/s). A hint may lie past the weight: it reads nothing.
//
// How far: as far as the loop comes before it is at the same rows again, in bytes of memory. Loops that read whole
// panels in memory order take two pages, since the hardware's own prefetch stops at the end of one. Loops that take
// some rows of a panel's lines and then come back for the others take all that lies between, a panel x their columns: 8
// KB were half of that for fp8 in bf16, and so for half of the lines 0.1 us, less than memory takes (m = 4, two
// threads: 620 us, with the whole 490). Hints are best spread between products: in a burst, they come as fast as memory
// does.
LOWBIT_INLINE void prefetch_codes(const uint8_t* line, int64_t ahead = 8192) { __builtin_prefetch(line + ahead, 0, 2); }

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
  if (s.span == Unit) {  // each unit is a group, one after the other
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

// Asks for what run_scales will read: a line or a few that no stream of codes brings along.
inline void prefetch_scales(const packed_view& w, int64_t panel, int64_t column, int64_t columns) {
  const packed_shape& s = w.shape;
  const int64_t first = s.group_of_column(column), last = s.group_of_column(column + columns - 1);
  const int64_t from = s.scale_index(panel * panel_rows, first), count = (last - first + 1) * panel_rows;
  const auto ask = [&](const void* data, int64_t size) {
    const uint8_t* bytes = static_cast<const uint8_t*>(data) + from * size;
    for (int64_t i = 0; data && i < count * size; i += line_bytes) __builtin_prefetch(bytes + i, 0, 2);
  };
  ask(w.scales, dtype_bytes(w.scale_dtype));
  ask(w.zero_points, 1);
  ask(w.mins, dtype_bytes(w.scale_dtype));
}

// f(recipe, unit, offset) as constants: what decides how a weight is decoded. Unit 128, where A asks for it: groups end
// at multiples of 128 columns. Minima go with tables and with narrow integers (formats.cpp).
template <class A, class F>
LOWBIT_INLINE void with_decoding(const packed_view& w, const F& f) {
  const packed_shape& s = w.shape;
  const auto by_unit = [&](auto decode, auto of) {
    if constexpr (A::has_unit_128(decode.value))
      if (s.groups == 1 || (A::scales_groups && s.span % 128 == 0)) return f(decode, constant<128>{}, of);
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

}  // namespace
}  // namespace lowbit::cpu
