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
  lut16,      // 4-bit code into a table of 16
  linear,     // 8-bit two's complement
  minifloat,  // 8-bit sign, exponent, mantissa: the bits of an fp16, shifted, times a power of two
};

enum class scale_rule : int8_t {
  any_float = -1,  // F32, F16 or BF16: the caller's choice
  e8m0 = LOWBIT_E8M0,
  e4m3 = LOWBIT_E4M3,
};

// The defaults that a format's header overrides.
struct format_defaults {
  static constexpr int block_n = 0;  // 0: the caller's choice
  static constexpr int block_k = 0;
  static constexpr scale_rule scale = scale_rule::any_float;
  static constexpr bool zero_point = false;
  static constexpr bool global_scale = false;
  static constexpr int integer_offset = 0;  // integer formats: value = code as stored in a panel - offset
  static constexpr int fp16_shift = 0;      // minifloat: the code's magnitude, so shifted, is an fp16 ...
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

  bool integer() const { return integer_offset != 0; }
};

template <class F>
constexpr auto value_table() {
  std::array<float, size_t{1} << F::bits> values{};
  for (unsigned code = 0; code < values.size(); ++code) values[code] = F::value(code);
  return values;
}

int num_formats();
const format_row& format_at(int index);
int find_format(const char* name);  // -1: no such format

// The code of `format` whose value is nearest to x: ties to the even code, saturating; NaN becomes 0.
struct encoder {
  explicit encoder(const format_row& format);
  uint8_t operator()(float x) const;

 private:
  int search(float x) const;
  int count;  // finite values, ascending
  float value[256];
  float midpoint[256];  // between value[i] and value[i + 1]
  uint8_t code[256];
  bool tie_up[256];     // x == midpoint[i] goes to i + 1
  uint8_t first[4096];  // by the sign, exponent and 3 mantissa bits of x: the lowest answer there
};

}  // namespace lowbit
