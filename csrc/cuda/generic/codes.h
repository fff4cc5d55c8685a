// Which decoder of generic/decode.h takes a format's codes, and what it has to know.
#pragma once

#include "cuda/contract.h"
#include "cuda/generic/decode.h"
#include "formats/fp4_e2m1.h"

namespace lowbit::cuda {

// Which of generic/decode.h takes a format's codes.
enum class code_kind { int2, int4, int8, minifloat, e2m1, table, none };

inline code_kind kind_of(const format_row& f) {
  if (f.integer()) return f.bits == 2 ? code_kind::int2 : f.bits == 4 ? code_kind::int4 : code_kind::int8;
  if (f.decode == recipe::minifloat) return code_kind::minifloat;
  if (f.bits != 4) return code_kind::none;
  for (unsigned code = 0; code < 16; ++code)
    if (f.values[code] != e2m1.value(code)) return code_kind::table;
  return code_kind::e2m1;
}

// The power of two that raw values owe (generic/decode.h), and how much of it the scale pays: all in fp16 where a scale
// is small beside the value it stands for; 7 for e2m1, so that e4m3 scales (nvfp4) fit, too; half in bf16, whose range
// then is 2^-60 .. 2^64 for scale and weight alike. The sums get the rest.
struct power_debt {
  int all, in_scale;
};

template <class T>
power_debt debt_of(const format_row& f) {
  int own = 0;  // of the code's bits, as fp16 has them
  switch (kind_of(f)) {
    case code_kind::minifloat:
      for (float scale = f.fp16_scale; scale > 1; scale /= 2) ++own;
      break;
    case code_kind::e2m1:
      own = 14;
      break;
    default:
      return {0, 0};
  }
  if (!is_bf16<T>) return {own, kind_of(f) == code_kind::e2m1 ? 7 : own};
  own += 112;  // the two types' exponent biases are so far apart
  return {own, own / 2};
}

inline uint16_t round_value(float value, bool bf16) { return bf16 ? f32_to_bf16(value) : f32_to_f16(value); }

template <class T>
decode_constants decode_constants_of(const format_row& f) {
  decode_constants c{};
  const code_kind kind = kind_of(f);
  if (kind == code_kind::minifloat) c.shift = 8 - (f.fp16_shift - (is_bf16<T> ? 3 : 0));
  if (kind != code_kind::table) return c;
  for (unsigned code = 0; code < 16; ++code) {
    const uint32_t value = round_value(f.values[code], is_bf16<T>);
    c.table[code / 4] |= (value & 255) << code % 4 * 8;
    c.table[4 + code / 4] |= (value >> 8) << code % 4 * 8;
  }
  return c;
}

}  // namespace lowbit::cuda
