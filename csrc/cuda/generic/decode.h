// Codes of a fragment tile to the A registers of m16n8k16, in bf16 or fp16.
//
//   raw      the code's bits moved into a float: value * 2^-debt, or an exact integer plus `bias`
//   offset   integers: minus the bias, the format's offset and the zero point; exact
//
// decode_values() stops there: scales wait for sums of a group. decode() goes on:
//
//   scale    one rounding; every power of two that raw owes, as far as the type's range allows
//
// Instructions a weight of decode_values(), counted in the SASS of sm_90 (csrc/cuda/sm80's 16 x 256 tile, less its
// loads and products). 4 bits at 4.8 TB/s on 132 SMs of 1.755 GHz may cost 3.1 in all, 8 bits 6.2, 2 bits 1.55; the
// rest of a step of that tile costs 1.3 (weight_only_model.h).
//
//   codes              fp16   bf16
//   int4               1.4    1.4       shift, lop3; add
//   int2               1.4    1.4       the same: 2 bits at full memory speed would need half of it
//   fp4 (e2m1)         1.9    2.4       two shifts, two lop3; multiply in bf16
//   any table of 16    3.2    3.2       prmt looks up 4 codes at a time in 8 entries of one byte plane
//   int8               2.3    3.5       xor, prmt; add. bf16 has 7 mantissa bits: the sign apart
//   fp8 (e4m3, e5m2)   2.6    3.1       prmt, lop3, shift, lop3; multiply in bf16
#pragma once

#include "cuda/common/convert.h"

namespace lowbit::cuda {

template <class T>
inline constexpr bool is_bf16 = __is_same(T, bf16_t);

inline constexpr int lut_and = 0xc0, lut_and_or = 0xea;  // a & b; (a & b) | c, for logic3

// The numbers of a type that a pair of T is or-ed into, so that the low mantissa bits count in ones.
template <class T>
inline constexpr uint32_t ones_pair = is_bf16<T> ? 0x43004300u : 0x64006400u;
template <class T>
inline constexpr float ones_bias = is_bf16<T> ? 128.0f : 1024.0f;

// What a decoder needs to know at run time.
struct decode_constants {
  uint32_t table[8];  // table_codes: the low bytes of 16 values, then the high ones
  int shift;          // minifloat_codes: from the top of a half to T's exponent
};

// Each recipe: raw<T>(a, w, i, c): the raw values of A for the i-th 16 columns of w, one lane's 16 bytes of a tile.
//   offset   it has one: value = raw + offset
//   exponent_moved   an exponent's bits as they are, in T's place: in bf16 2^112 smaller than in fp16
//   bias<T>  what raw is too large by

template <int Bits>
struct integer_codes {  // 2 or 4 bits, unsigned
  static constexpr int bits = Bits;
  static constexpr bool offset = true, exponent_moved = false;
  template <class T>
  static constexpr float bias = ones_bias<T>;

  template <class T>
  static LOWBIT_DEVICE void raw(uint32_t (&a)[4], const u32x4& w, int i, const decode_constants&) {
    const uint32_t words[4] = {w.x, w.y, w.z, w.w};
    const uint32_t word = words[bits == 4 ? i : i / 2] >> (bits == 4 ? 0 : i % 2 * 8);
    constexpr uint32_t mask = bits == 4 ? 0x000f000fu : 0x00030003u;
    LOWBIT_UNROLL
    for (int r = 0; r < 4; ++r) a[r] = logic3<lut_and_or>(word >> r * bits, mask, ones_pair<T>);
  }
};

struct int8_codes {  // two's complement
  static constexpr int bits = 8;
  static constexpr bool offset = true, exponent_moved = false;
  template <class T>
  static constexpr float bias = is_bf16<T> ? 0.0f : 1152.0f;

  template <class T>
  static LOWBIT_DEVICE void raw(uint32_t (&a)[4], const u32x4& w, int i, const decode_constants&) {
    const uint32_t words[4] = {w.x, w.y, w.z, w.w};
    LOWBIT_UNROLL
    for (int r = 0; r < 4; ++r) {
      if constexpr (is_bf16<T>) {
        const uint32_t bytes = permute_bytes(words[r], 0x43434343u, i ? 0x4342 : 0x4140);
        // 128 + the low seven bits, minus 128 or 256 (0x4380) as the sign says
        a[r] = sub2<T>(logic3<lut_and>(bytes, 0xff7fff7fu, 0), logic3<lut_and>(bytes, 0xff80ff80u, 0));
      } else {
        a[r] = permute_bytes(words[r] ^ 0x80808080u, 0x64646464u, i ? 0x4342 : 0x4140);  // 1024 + value + 128
      }
    }
  }
};

// 8 bits: sign, exponent, mantissa, which fit into the top of T once the exponent is spread: c.shift.
struct minifloat_codes {
  static constexpr int bits = 8;
  static constexpr bool offset = false, exponent_moved = true;
  template <class T>
  static constexpr float bias = 0;

  template <class T>
  static LOWBIT_DEVICE void raw(uint32_t (&a)[4], const u32x4& w, int i, const decode_constants& c) {
    const uint32_t words[4] = {w.x, w.y, w.z, w.w};
    LOWBIT_UNROLL
    for (int r = 0; r < 4; ++r) {
      const uint32_t bytes = permute_bytes(words[r], 0, i ? 0x3424 : 0x1404);  // each in the top of a half
      const uint32_t magnitude = logic3<lut_and>(bytes, 0x7f007f00u, 0) >> c.shift;
      a[r] = logic3<lut_and_or>(bytes, 0x80008000u, magnitude);
    }
  }
};

// 4 bits: sign, two of exponent, one of mantissa (e2m1).
struct e2m1_codes {
  static constexpr int bits = 4;
  static constexpr bool offset = false, exponent_moved = true;
  template <class T>
  static constexpr float bias = 0;

  template <class T>
  static LOWBIT_DEVICE void raw(uint32_t (&a)[4], const u32x4& w, int i, const decode_constants&) {
    const uint32_t words[4] = {w.x, w.y, w.z, w.w};
    const uint32_t word = words[i];
    constexpr int place = is_bf16<T> ? 6 : 9;  // of the mantissa's top bit
    LOWBIT_UNROLL
    for (int r = 0; r < 4; ++r) {
      const uint32_t sign = word << (12 - 4 * r);
      const uint32_t moved = place >= 4 * r ? word << ((place - 4 * r) & 31) : word >> ((4 * r - place) & 31);
      a[r] = logic3<lut_and_or>(sign, 0x80008000u, logic3<lut_and>(moved, 0x00070007u << place, 0));
    }
  }
};

// 4 bits into any 16 values.
struct table_codes {
  static constexpr int bits = 4;
  static constexpr bool offset = false, exponent_moved = false;
  template <class T>
  static constexpr float bias = 0;

  template <class T>
  static LOWBIT_DEVICE void raw(uint32_t (&a)[4], const u32x4& w, int i, const decode_constants& c) {
    const uint32_t words[4] = {w.x, w.y, w.z, w.w};
    const uint32_t word = words[i];
    const uint32_t entry = word & 0x77777777u;                                      // in the half of the table that ...
    const uint32_t half = logic3<lut_and_or>(word >> 1, 0x44444444u, 0x32103210u);  // ... byte j or j + 4 is from
    const auto look_up = [&](const uint32_t* plane, int shift) {
      return permute_bytes(permute_bytes(plane[0], plane[1], entry >> shift),
                           permute_bytes(plane[2], plane[3], entry >> shift), half >> shift);
    };
    const uint32_t low[2] = {look_up(c.table, 0), look_up(c.table, 16)};  // columns 2 t and 2 t + 1 of four registers
    const uint32_t high[2] = {look_up(c.table + 4, 0), look_up(c.table + 4, 16)};
    LOWBIT_UNROLL
    for (int r = 0; r < 4; r += 2) {
      const uint32_t even = permute_bytes(low[0], high[0], r ? 0x7362 : 0x5140);
      const uint32_t odd = permute_bytes(low[1], high[1], r ? 0x7362 : 0x5140);
      a[r] = permute_bytes(even, odd, 0x5410);
      a[r + 1] = permute_bytes(even, odd, 0x7632);
    }
  }
};

// a = values of the weights for the i-th product with w, too small by a power of two (value_debt() in codes.h): raw and
// `offset` of rows g and g + 8. Exact, but for tables whose values T cannot hold.
template <class T, class Codes>
LOWBIT_DEVICE void decode_values(uint32_t (&a)[4], const u32x4& w, int i, const uint32_t (&offset)[2],
                                 const decode_constants& c) {
  Codes::template raw<T>(a, w, i, c);
  LOWBIT_UNROLL
  for (int r = 0; r < 4; ++r) {
    if constexpr (Codes::offset) a[r] = add2<T>(a[r], offset[r % 2]);
    if constexpr (Codes::exponent_moved && is_bf16<T>) a[r] = mul2<T>(a[r], 0x77807780u);  // 2^112
  }
}

// Offsets and scales of a lane's two rows, g and g + 8, each twice in a word.
struct row_scales {
  uint32_t offset[2], scale[2];
};

template <class T>
LOWBIT_DEVICE uint32_t both_halves(uint32_t pair, int half) {
  return permute_bytes(pair, 0, half ? 0x3232 : 0x1010);
}

// a = weights for the i-th product with w: registers 0 and 1 by the scales of their columns, 2 and 3 by those of
// theirs. They differ in 8-bit tiles alone, where a product takes two columns of every four out of 32.
template <class T, class Codes>
LOWBIT_DEVICE void decode(uint32_t (&a)[4], const u32x4& w, int i, const row_scales& first, const row_scales& second,
                          const decode_constants& c) {
  Codes::template raw<T>(a, w, i, c);
  LOWBIT_UNROLL
  for (int r = 0; r < 4; ++r) {
    const row_scales& s = r < 2 ? first : second;
    if constexpr (Codes::offset) a[r] = add2<T>(a[r], s.offset[r % 2]);
    a[r] = mul2<T>(a[r], s.scale[r % 2]);
  }
}

}  // namespace lowbit::cuda
