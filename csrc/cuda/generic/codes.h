// Which decoder of generic/decode.h takes a format's codes, and what it has to know.
#pragma once

#include "cuda/contract.h"
#include "cuda/generic/decode.h"
#include "formats/fp4_e2m1.h"

namespace lowbit::cuda {

// Which of generic/decode.h takes a format's codes.
enum class code_kind { int2, int4, int8, minifloat, e2m1, table, none };

inline code_kind kind_of(const format_row& f) {
  if (f.integer()) {
    if (f.bits == 8) return code_kind::int8;
    return f.bits == 4 ? code_kind::int4 : f.bits == 2 ? code_kind::int2 : code_kind::none;
  }
  if (f.decode == recipe::minifloat) return code_kind::minifloat;
  if (f.bits != 4) return code_kind::none;
  for (unsigned code = 0; code < 16; ++code)
    if (f.values[code] != e2m1.value(code)) return code_kind::table;
  return code_kind::e2m1;
}

// Decoded values are 2^-value_debt of a code's: its exponent's bits count as fp16's.
inline int value_debt(const format_row& f) {
  const code_kind kind = kind_of(f);
  int debt = kind == code_kind::e2m1 ? 14 : 0;
  if (kind == code_kind::minifloat)
    for (float scale = f.fp16_scale; scale > 1; scale /= 2) ++debt;
  return debt;
}

// The power of two that raw values owe (generic/decode.h), and how much of it the scale pays; the sums get the rest.
//
//   bf16   half: scales and weights may be 2^-60 .. 2^64
//   fp16   all and 2^4 more, so that scales and weights down to 2^-18 are no denormals; weights up to 4094 then fit.
//          e2m1 pays 7, so that e4m3 scales (nvfp4) fit. Where K is one group nothing is rounded: just the debt
struct power_debt {
  int all, in_scale;
};

template <class T>
power_debt debt_of(const format_row& f, bool grouped) {
  const code_kind kind = kind_of(f);
  int own = value_debt(f);
  if (!is_bf16<T>) return {own, kind == code_kind::e2m1 ? 7 : own + (grouped ? 4 : 0)};
  if (kind == code_kind::e2m1 || kind == code_kind::minifloat) own += 112;  // between the two types' exponent biases
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
