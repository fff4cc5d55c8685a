// Every format: the value of every code from its published definition, and the encoder.
#include "formats/format.h"

#include <cmath>

#include "support.h"

namespace {

// The definitions again, in other words than the formats' headers.
double minifloat_value(unsigned code, int exponent_bits, int mantissa_bits, int bias) {
  const unsigned mantissa = code & ((1u << mantissa_bits) - 1);
  const unsigned exponent = code >> mantissa_bits & ((1u << exponent_bits) - 1);
  const double magnitude = exponent
                               ? std::ldexp(1 + std::ldexp(mantissa, -mantissa_bits), static_cast<int>(exponent) - bias)
                               : std::ldexp(mantissa, 1 - bias - mantissa_bits);
  return code >> (exponent_bits + mantissa_bits) & 1 ? -magnitude : magnitude;
}

double defined_value(const std::string& name, unsigned code) {
  if (name == "int4") return static_cast<int>(code) - 8;
  if (name == "int2") return static_cast<int>(code) - 2;
  if (name == "int3") return static_cast<int>(code) - 4;
  if (name == "int5") return static_cast<int>(code) - 16;
  if (name == "int6") return static_cast<int>(code) - 32;
  if (name == "ternary") return code == 3 ? static_cast<double>(NAN) : static_cast<int>(code) - 1;
  if (name == "fp6_e2m3" || name == "mxfp6_e2m3") return minifloat_value(code, 2, 3, 1);
  if (name == "fp6_e3m2" || name == "mxfp6_e3m2") return minifloat_value(code, 3, 2, 3);
  if (name == "int8") return code < 128 ? static_cast<int>(code) : static_cast<int>(code) - 256;
  if (name == "fp8_e4m3" || name == "mxfp8") return (code & 0x7f) == 0x7f ? NAN : minifloat_value(code, 4, 3, 7);
  if (name == "fp8_e5m2") {
    if ((code & 0x7f) > 0x7c) return NAN;
    if ((code & 0x7f) == 0x7c) return code & 0x80 ? -INFINITY : INFINITY;
    return minifloat_value(code, 5, 2, 15);
  }
  if (name == "fp4_e2m1" || name == "mxfp4" || name == "nvfp4") {
    const double table[] = {0, 0.5, 1, 1.5, 2, 3, 4, 6};
    return code & 8 ? -table[code & 7] : table[code & 7];
  }
  if (name == "q3_k") return static_cast<int>(code) - 4;
  if (name == "q6_k") return static_cast<int>(code) - 32;
  if (name == "tq2_0") return static_cast<int>(code) - 1;
  if (name == "q4_1" || name == "q5_1" || name == "q2_k" || name == "q4_k" || name == "q5_k") return code;
  if (name == "iq4_nl") {
    const int table[] = {-127, -104, -83, -65, -49, -35, -22, -10, 1, 13, 25, 38, 53, 69, 89, 113};
    return table[code];
  }
  if (name == "nf4" || name == "nf4_dq") {
    // Normal quantiles of 8 negative and 9 positive evenly spaced probabilities that meet at 0, divided by the largest:
    // the table is their rounding, so a few 1e-7 is the agreement to expect of a quantile from erfc by bisection.
    const double offset = 0.9677083;
    const auto quantile = [](double p) {
      double low = -5, high = 5;
      for (int i = 0; i < 100; ++i)
        (0.5 * std::erfc(-(low + high) / 2 / std::sqrt(2.0)) < p ? low : high) = (low + high) / 2;
      return low;
    };
    const double largest = quantile(offset);
    if (code == 7) return 0;
    if (code > 7) return quantile(offset + (0.5 - offset) * (15 - code) / 8.0) / largest;
    return -quantile(offset + (0.5 - offset) * code / 7.0) / largest;
  }
  CHECK(false, "format %s is new: define its values here", name.c_str());
  return 0;
}

template <class Visit>
void for_each_format(const Visit& visit) {
  for (int i = 0; i < lowbit::num_formats(); ++i) visit(lowbit::format_at(i));
}

// By looking at every code: nearest value, ties to the even code, -0 for negative numbers that round to zero.
unsigned slow_encode(const lowbit::format_row& f, float x) {
  if (std::isnan(x)) x = 0;
  int best = -1;
  double best_distance = 0;
  double largest = 0;
  for (int c = 0; c < 1 << f.bits; ++c)
    if (std::isfinite(f.values[c])) largest = std::fmax(largest, std::fabs(static_cast<double>(f.values[c])));
  // so far out that all codes would be equally far, were it not for this
  const double wanted = std::fmax(std::fmin(static_cast<double>(x), 2 * largest), -2 * largest);
  for (int c = 0; c < 1 << f.bits; ++c) {
    const double value = static_cast<double>(f.values[c]);
    if (!std::isfinite(value)) continue;
    const double distance = std::fabs(value - wanted);
    bool better = best < 0 || distance < best_distance;
    if (best >= 0 && distance == best_distance) {
      if (static_cast<double>(f.values[best]) == value)  // +0 and -0
        better = std::signbit(value) == std::signbit(x);
      else
        better = c % 2 == 0;
    }
    if (better) {
      best = c;
      best_distance = distance;
    }
  }
  // A tie may have met the zero of the other sign first.
  for (int c = 0; c < 1 << f.bits; ++c)
    if (f.values[c] == 0 && f.values[best] == 0 && std::signbit(f.values[c]) == std::signbit(x)) best = c;
  return static_cast<unsigned>(best);
}

}  // namespace

TEST(every_code_has_its_published_value) {
  for_each_format([](const lowbit::format_row& f) {
    const double tolerance = std::strncmp(f.name, "nf4", 3) ? 0 : 2e-6;
    for (unsigned c = 0; c < 1u << f.bits; ++c) {
      const double got = static_cast<double>(f.values[c]), wanted = defined_value(f.name, c);
      const bool equal = std::isnan(wanted) ? std::isnan(got)
                         : tolerance > 0    ? std::fabs(got - wanted) <= tolerance
                                            : got == wanted && std::signbit(got) == std::signbit(wanted);
      CHECK(equal, "%s code %u is %.9g, not %.9g", f.name, c, got, wanted);
    }
  });
}

TEST(formats_are_found_by_name) {
  CHECK_EQ(lowbit_num_formats(), 28);
  for (int i = 0; i < lowbit_num_formats(); ++i) {
    lowbit_format_info info;
    lowbit_format found = -1;
    CHECK_EQ(lowbit_format_get(i, &info), LOWBIT_OK);
    CHECK_EQ(lowbit_format_find(info.name, &found), LOWBIT_OK);
    CHECK_EQ(found, i);
    CHECK(info.bits >= 2 && info.bits <= 8 && info.bits != 7);
  }
  lowbit_format_info info;
  lowbit_format found;
  CHECK_EQ(lowbit_format_get(-1, &info), LOWBIT_INVALID_VALUE);
  CHECK_EQ(lowbit_format_get(lowbit_num_formats(), &info), LOWBIT_INVALID_VALUE);
  CHECK_EQ(lowbit_format_find("int7", &found), LOWBIT_INVALID_VALUE);
  CHECK(std::strstr(lowbit_last_error(), "int7"), "%s", lowbit_last_error());
}

TEST(every_finite_code_encodes_to_itself) {
  for_each_format([](const lowbit::format_row& f) {
    const lowbit::encoder encode(f);
    for (unsigned c = 0; c < 1u << f.bits; ++c)
      if (std::isfinite(f.values[c]))
        CHECK(encode(f.values[c]) == c, "%s %u became %u", f.name, c, encode(f.values[c]));
  });
}

TEST(encoding_is_to_nearest_with_ties_to_even) {
  for_each_format([](const lowbit::format_row& f) {
    const lowbit::encoder encode(f);
    const auto check = [&](float x) {
      const unsigned got = encode(x), wanted = slow_encode(f, x);
      CHECK(got == wanted, "%s of %.9g is %u, not %u", f.name, static_cast<double>(x), got, wanted);
    };
    for (int a = 0; a < 1 << f.bits; ++a) {
      if (!std::isfinite(f.values[a])) continue;
      for (int b = 0; b < 1 << f.bits; ++b) {  // midpoints of neighbours are among these, and their own neighbours
        if (!std::isfinite(f.values[b])) continue;
        if (f.bits == 8 && std::abs(a - b) > 2) continue;
        const float middle = f.values[a] + (f.values[b] - f.values[a]) / 2;
        for (const float x : {std::nextafterf(middle, INFINITY), std::nextafterf(middle, -INFINITY)}) check(x);
        // a midpoint that fp32 rounds (nf4) is no tie, and may go to either
        if (2 * static_cast<double>(middle) == static_cast<double>(f.values[a]) + static_cast<double>(f.values[b]))
          check(middle);
      }
    }
    random_source random(2);
    for (int i = 0; i < (sanitized ? 2000 : 20000); ++i) {
      check(random.uniform(-1.2f, 1.2f) * (f.bits == 8 ? 500.0f : 8.0f));
      check(std::ldexp(random.uniform(-2, 2), static_cast<int>(random.below(40)) - 20));
      check(std::bit_cast<float>(static_cast<uint32_t>(random.engine())));
    }
  });
}

TEST(encoding_the_ends_of_floating_point) {
  for_each_format([](const lowbit::format_row& f) {
    const lowbit::encoder encode(f);
    float low = INFINITY, high = -INFINITY, nearest = INFINITY;
    bool negative_zero = false;
    for (int c = 0; c < 1 << f.bits; ++c) {
      if (!std::isfinite(f.values[c])) continue;
      low = std::fmin(low, f.values[c]);
      high = std::fmax(high, f.values[c]);
      if (std::fabs(f.values[c]) < std::fabs(nearest)) nearest = f.values[c];  // 0, but of IQ4_NL
      negative_zero |= f.values[c] == 0 && std::signbit(f.values[c]);
    }
    CHECK_EQ(f.values[encode(INFINITY)], high);
    CHECK_EQ(f.values[encode(-INFINITY)], low);
    CHECK_EQ(f.values[encode(lowbit::largest_f32)], high);
    CHECK_EQ(f.values[encode(-lowbit::largest_f32)], low);
    for (const float zero : {0.0f, -0.0f, NAN, -NAN, 0x1p-149f, -0x1p-149f, 0x1p-127f, -0x1p-127f})
      CHECK(f.values[encode(zero)] == nearest, "%s of %g", f.name, static_cast<double>(zero));
    if (negative_zero) {
      CHECK(std::signbit(f.values[encode(-0.0f)]) && !std::signbit(f.values[encode(0.0f)]), "%s keeps -0", f.name);
      CHECK(std::signbit(f.values[encode(-0x1p-149f)]), "%s keeps the sign of what underflows", f.name);
    }
  });
}
