// Conversions between dtypes, every 16-bit pattern and a great many of 32 bits, against arithmetic in double.
#include "formats/numeric.h"

#include <cmath>

#include "support.h"

namespace {

// The value of sign, exponent and mantissa bits, IEEE style, from the definition.
double ieee_value(uint32_t bits, int exponent_bits, int mantissa_bits) {
  const uint32_t mantissa = bits & ((1u << mantissa_bits) - 1);
  const uint32_t exponent = bits >> mantissa_bits & ((1u << exponent_bits) - 1);
  const int bias = (1 << (exponent_bits - 1)) - 1;
  double magnitude;
  if (exponent == (1u << exponent_bits) - 1)
    magnitude = mantissa ? NAN : INFINITY;
  else if (exponent == 0)
    magnitude = std::ldexp(mantissa, 1 - bias - mantissa_bits);
  else
    magnitude = std::ldexp(mantissa + (1u << mantissa_bits), static_cast<int>(exponent) - bias - mantissa_bits);
  return bits >> (exponent_bits + mantissa_bits) ? -magnitude : magnitude;
}

// Round to nearest even on the grid of `mantissa_bits`, by the grid's step at x.
uint16_t slow_round(float x, int exponent_bits, int mantissa_bits) {
  const uint16_t sign = std::signbit(x) ? 0x8000 : 0;
  const int bias = (1 << (exponent_bits - 1)) - 1, top = (1 << exponent_bits) - 1;
  const uint16_t inf = static_cast<uint16_t>(top << mantissa_bits);
  const double magnitude = std::fabs(static_cast<double>(x));
  if (std::isinf(magnitude)) return sign | inf;
  int exponent = magnitude == 0 ? 1 - bias : std::ilogb(magnitude);
  if (exponent < 1 - bias) exponent = 1 - bias;
  const double step = std::ldexp(1.0, exponent - mantissa_bits);
  double steps = std::floor(magnitude / step);
  const double rest = magnitude / step - steps;
  if (rest > 0.5 || (rest == 0.5 && std::fmod(steps, 2) == 1)) steps += 1;
  // steps counts from 0 below 2^(1 - bias), and carries into the exponent by itself
  const double first = std::ldexp(1.0, mantissa_bits);
  const double code = steps < first && exponent == 1 - bias ? steps : (exponent + bias - 1) * first + steps;
  return sign | (code >= inf ? inf : static_cast<uint16_t>(code));
}

bool is_nan16(uint16_t bits, int mantissa_bits) {
  const uint16_t inf = static_cast<uint16_t>(0x7fff >> mantissa_bits << mantissa_bits);
  return (bits & 0x7fff) > inf;
}

bool same(double a, double b) { return std::isnan(a) ? std::isnan(b) : a == b && std::signbit(a) == std::signbit(b); }

void check_rounding(float x) {
  if (std::isnan(x)) {
    CHECK(is_nan16(lowbit::f32_to_f16(x), 10), "f16 of NaN");
    CHECK(is_nan16(lowbit::f32_to_bf16(x), 7), "bf16 of NaN");
    return;
  }
  const uint16_t f16 = lowbit::f32_to_f16(x), bf16 = lowbit::f32_to_bf16(x);
  CHECK(f16 == slow_round(x, 5, 10), "f16 of %a is %04x, not %04x", static_cast<double>(x), f16, slow_round(x, 5, 10));
  CHECK(bf16 == slow_round(x, 8, 7), "bf16 of %a is %04x, not %04x", static_cast<double>(x), bf16, slow_round(x, 8, 7));
}

}  // namespace

TEST(every_half_has_its_value) {
  for (uint32_t bits = 0; bits < 65536; ++bits) {
    const double got = static_cast<double>(lowbit::f16_to_f32(static_cast<uint16_t>(bits)));
    CHECK(same(got, ieee_value(bits, 5, 10)), "%04x is %a", bits, got);
  }
}

TEST(every_bfloat_has_its_value) {
  for (uint32_t bits = 0; bits < 65536; ++bits) {
    const double got = static_cast<double>(lowbit::bf16_to_f32(static_cast<uint16_t>(bits)));
    CHECK(same(got, ieee_value(bits, 8, 7)), "%04x is %a", bits, got);
  }
}

TEST(sixteen_bits_survive_the_round_trip) {
  for (uint32_t bits = 0; bits < 65536; ++bits) {
    const uint16_t b = static_cast<uint16_t>(bits);
    if (!is_nan16(b, 10)) CHECK_EQ(lowbit::f32_to_f16(lowbit::f16_to_f32(b)), b);
    if (!is_nan16(b, 7)) CHECK_EQ(lowbit::f32_to_bf16(lowbit::bf16_to_f32(b)), b);
  }
}

// Each 16-bit number, the midpoint above it, and the neighbours of both.
TEST(rounding_to_sixteen_bits_is_to_nearest_even) {
  for (uint32_t bits = 0; bits < 65536; ++bits) {
    const uint16_t b = static_cast<uint16_t>(bits);
    for (const float here : {lowbit::f16_to_f32(b), lowbit::bf16_to_f32(b)}) {
      if (!std::isfinite(here)) {
        check_rounding(here);
        continue;
      }
      const uint32_t pattern = std::bit_cast<uint32_t>(here);
      for (const uint32_t half : {0u, 0x1000u, 0x8000u})
        for (const uint32_t at : {pattern + half, pattern + half + 1, pattern + half - 1})
          check_rounding(std::bit_cast<float>(at));
    }
  }
}

TEST(rounding_of_random_bits) {
  random_source random(1);
  for (int i = 0; i < (sanitized ? 200000 : 4000000); ++i)
    check_rounding(std::bit_cast<float>(static_cast<uint32_t>(random.engine())));
  for (int e = -30; e < 20; ++e)  // where fp16 is denormal, overflows, and between
    for (int i = 0; i < 20000; ++i) check_rounding(std::ldexp(random.uniform(-2, 2), e));
}

TEST(power_of_two_scales) {
  for (int bits = 0; bits < 255; ++bits)
    CHECK_EQ(static_cast<double>(lowbit::e8m0_to_f32(static_cast<uint8_t>(bits))), std::ldexp(1.0, bits - 127));
  CHECK(std::isnan(lowbit::e8m0_to_f32(255)));
}

TEST(numbers_are_loaded_and_stored_by_dtype) {
  const uint16_t half = 0x3e00;
  const float whole = 1.5f;
  const uint8_t e8m0 = 128, e4m3 = 0x3c;
  const int8_t integer = -5;
  CHECK_EQ(lowbit::load_as_f32(&whole, 0, LOWBIT_F32), 1.5f);
  CHECK_EQ(lowbit::load_as_f32(&half, 0, LOWBIT_F16), 1.5f);
  CHECK_EQ(lowbit::load_as_f32(&half, 0, LOWBIT_BF16), 0.125f);
  CHECK_EQ(lowbit::load_as_f32(&e8m0, 0, LOWBIT_E8M0), 2.0f);
  CHECK_EQ(lowbit::load_as_f32(&e4m3, 0, LOWBIT_E4M3), 1.5f);
  CHECK_EQ(lowbit::load_as_f32(&integer, 0, LOWBIT_I8), -5.0f);
}
