// A number format: a value for every code, and how weights share scales. A format is one header beside this one
// and one line of formats.inc, the only list of them.
#pragma once

#include <array>
#include <cstdint>

#include "formats/numeric.h"

#ifndef LOWBIT_FORMAT
#define LOWBIT_FORMAT(F)  // formats.cpp makes it add F's row to the table
#endif

namespace lowbit {

// How a backend turns codes into numbers. Backends implement recipes, never formats.
enum class recipe : uint8_t {
  lut16,             // 4-bit code into a table of 16
  linear,            // 8-bit two's complement
  minifloat,         // 8-bit sign, exponent, mantissa: the bits of an fp16, shifted, times a power of two
  lut4,              // 2-bit code into a table of 4
  narrow_linear,     // 3, 5 or 6 bits, in two planes: value + integer_offset
  narrow_minifloat,  // 6 bits, in two planes: as minifloat, once the code is at the top of a byte
};

// One level: a scale is a number. Two levels: a scale is a small number times a super scale, which `super_groups`
// groups share. Minima, where a format has them, follow the rule of its scales.
enum class scale_rule : int8_t {
  any_float = -1,  // F32, F16 or BF16: the caller's choice
  f16 = LOWBIT_F16,
  e8m0 = LOWBIT_E8M0,
  e4m3 = LOWBIT_E4M3,
  i8 = LOWBIT_I8,  // two levels: an integer times an f16; each row begins a new super block
  u8 = LOWBIT_U8,  // two levels: F::scale_value(code) times an f32, plus an offset; super blocks go on from row to row
};

// The defaults that a format's header overrides.
struct format_defaults {
  static constexpr int block_n = 0;  // 0: the caller's choice
  static constexpr int block_k = 0;
  static constexpr scale_rule scale = scale_rule::any_float;
  static constexpr bool zero_point = false;
  static constexpr bool global_scale = false;
  static constexpr bool minimum = false;    // every group has one: W = value * scale + minimum
  static constexpr int super_groups = 0;    // of rules with two levels: groups that share a super scale
  static constexpr int integer_offset = 0;  // integer formats: value = code as stored in a panel - offset
  static constexpr int fp16_shift = 0;      // minifloats: the magnitude in a byte, so shifted, is an fp16 ...
  static constexpr float fp16_scale = 1;    // ... times this
};

struct format_row {
  const char* name;
  int bits;
  recipe decode;
  int block_n, block_k;
  scale_rule scale;
  bool zero_point, global_scale;
  int integer_offset;
  int fp16_shift;
  float fp16_scale;
  const float* values;  // [1 << bits]
  bool minimum;
  int super_groups;
  const float* scale_values;  // [256] of scale_rule::u8, else null

  bool integer() const { return integer_offset != 0; }
  // The range of an integer format. (Codes that stand for nothing are NaN.)
  int integer_low() const { return -integer_offset; }
  int integer_high() const {
    float high = values[0];
    for (int c = 1; c < 1 << bits; ++c) high = values[c] > high ? values[c] : high;
    return static_cast<int>(high);
  }
  // The code whose value has the least magnitude.
  unsigned least_code() const {
    unsigned least = 0;
    for (unsigned c = 1; c < 1u << bits; ++c)
      if (__builtin_fabsf(values[c]) < __builtin_fabsf(values[least])) least = c;
    return least;
  }
  bool two_levels() const { return super_groups != 0; }
  bool super_flat() const { return scale == scale_rule::u8; }
  int super_dtype() const { return super_flat() ? LOWBIT_F32 : LOWBIT_F16; }
  // A signed maximum makes a scale negative. Rules that no such format uses keep to the sign of theirs.
  bool signed_scales() const {
    return integer() || scale == scale_rule::f16 || scale == scale_rule::i8 || scale == scale_rule::u8;
  }
};

template <class F>
constexpr auto value_table() {
  std::array<float, size_t{1} << F::bits> values{};
  for (unsigned code = 0; code < values.size(); ++code) values[code] = F::value(code);
  return values;
}

template <class F>
constexpr auto scale_value_table() {
  std::array<float, 256> values{};
  for (unsigned code = 0; code < values.size(); ++code) values[code] = F::scale_value(code);
  return values;
}

int num_formats();
const format_row& format_at(int index);
int find_format(const char* name);  // -1: no such format
inline int index_of(const format_row& format) { return static_cast<int>(&format - &format_at(0)); }

// The finite values of a format, ascending, and where each two neighbours part.
struct encoder_table {
  int count;
  float value[256];
  float midpoint[256];  // between value[i] and value[i + 1]
  uint8_t code[256];
  bool tie_up[256];  // x == midpoint[i] goes to i + 1
};

// The code of `format` whose value is nearest to x: ties to the even code, saturating; NaN becomes 0.
struct encoder : private encoder_table {
  explicit encoder(const format_row& format);
  uint8_t operator()(float x) const;
  const encoder_table& table() const { return *this; }

 private:
  int search(float x) const;
  uint8_t first[4096];  // by the sign, exponent and 3 mantissa bits of x: the lowest answer there
};

}  // namespace lowbit
