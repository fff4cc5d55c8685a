#include "emulator/arithmetic.h"

#include <algorithm>
#include <array>
#include <bit>
#include <cmath>
#include <limits>
#include <vector>

#include "formats/numeric.h"

namespace emulator {

namespace {

const std::vector<double>& f16_values() {
  static const std::vector<double> values = [] {
    std::vector<double> v(65536);
    for (uint32_t i = 0; i < 65536; ++i) v[i] = static_cast<double>(lowbit::f16_to_f32(static_cast<uint16_t>(i)));
    return v;
  }();
  return values;
}

const std::array<double, 256>& e4m3_values() {
  static const std::array<double, 256> values = [] {
    std::array<double, 256> v{};
    for (uint32_t i = 0; i < 256; ++i) v[i] = static_cast<double>(lowbit::e4m3.value(i));
    return v;
  }();
  return values;
}

float rounded(double sum) { return sum != sum ? std::bit_cast<float>(0x7fffffffu) : static_cast<float>(sum); }

// Addends aligned to the largest exponent; 14 bits stay, the rest is cut.
float truncated_sum(float c, const double* a, const double* b, int depth) {
  int top = std::numeric_limits<int>::min();
  double plain = static_cast<double>(c);
  const auto look = [&](double x) {
    if (x == 0 || !std::isfinite(x)) return;
    top = std::max(top, std::ilogb(x));
  };
  look(static_cast<double>(c));
  for (int k = 0; k < depth; ++k) {
    plain += a[k] * b[k];
    look(a[k] * b[k]);
  }
  if (!std::isfinite(plain) || top == std::numeric_limits<int>::min()) return rounded(plain);
  const double step = std::ldexp(1.0, top - 13);
  double sum = std::trunc(static_cast<double>(c) / step);
  for (int k = 0; k < depth; ++k) sum += std::trunc(a[k] * b[k] / step);
  return static_cast<float>(sum * step);
}

}  // namespace

double value_of(element type, uint32_t bits) {
  switch (type) {
    case element::bf16:
      return static_cast<double>(lowbit::bf16_to_f32(static_cast<uint16_t>(bits)));
    case element::f16:
      return f16_values()[bits & 0xffff];
    case element::e4m3:
      return e4m3_values()[bits & 0xff];
    default:
      return static_cast<int8_t>(bits);
  }
}

void multiply_rows(float* c, const double* a, const double* b, int rows, int columns, int depth, bool truncated) {
  if (truncated) {
    for (int m = 0; m < rows; ++m)
      for (int n = 0; n < columns; ++n)
        c[m * columns + n] = truncated_sum(c[m * columns + n], a + m * depth, b + n * depth, depth);
    return;
  }
  // Eight columns at a time, so that the compiler has vectors.
  double columns_of_b[8 * 64];
  for (int first = 0; first < columns; first += 8) {
    for (int k = 0; k < depth; ++k)
      for (int n = 0; n < 8; ++n) columns_of_b[k * 8 + n] = b[(first + n) * depth + k];
    for (int m = 0; m < rows; ++m) {
      double sums[8];
      for (int n = 0; n < 8; ++n) sums[n] = static_cast<double>(c[m * columns + first + n]);
      for (int k = 0; k < depth; ++k)
        for (int n = 0; n < 8; ++n) sums[n] += a[m * depth + k] * columns_of_b[k * 8 + n];
      for (int n = 0; n < 8; ++n) c[m * columns + first + n] = rounded(sums[n]);
    }
  }
}

void multiply_rows(int32_t* c, const int8_t* a, const int8_t* b, int rows, int columns, int depth) {
  for (int m = 0; m < rows; ++m)
    for (int n = 0; n < columns; ++n) {
      int32_t sum = 0;  // 256 products of at most 2^14: no overflow
      for (int k = 0; k < depth; ++k) sum += a[m * depth + k] * b[n * depth + k];
      int32_t& to = c[m * columns + n];
      to = static_cast<int32_t>(static_cast<uint32_t>(to) + static_cast<uint32_t>(sum));
    }
}

// ---- mma.sync ----------------------------------------------------------------------------------------------------
//
// With g = lane / 4, t = lane % 4 [9.7.14.5.8, 9.7.14.5.10]: elements e = 0 .. of a register are consecutive along K.
//   a[i]   row g + 8 (i % 2), K = (t + 4 (i / 2)) * elements + e
//   b[i]   column g,          K = (t + 4 i) * elements + e
//   c[i]   row g + 8 (i / 2), column 2 t + i % 2

namespace {

template <class Sum>
struct product {
  Sum* c;
  const uint32_t *a, *b;
};

template <element type, class Sum>
void multiply_warp(warp&, product<Sum>* const* lanes) {
  using value = std::conditional_t<std::is_same_v<Sum, float>, double, int8_t>;
  constexpr int bits = type == element::bf16 || type == element::f16 ? 16 : 8;
  constexpr int elements = 32 / bits, depth = 8 * elements;
  value a[16 * depth], b[8 * depth];
  Sum c[16 * 8];
  const auto spread = [](uint32_t word, value* to) {
    for (int e = 0; e < elements; ++e) {
      const uint32_t one = word >> bits * e;
      if constexpr (type == element::bf16)
        to[e] = static_cast<double>(std::bit_cast<float>(one << 16));
      else
        to[e] = static_cast<value>(value_of(type, one));
    }
  };
  for (int lane = 0; lane < 32; ++lane) {
    const int g = lane / 4, t = lane % 4;
    const product<Sum>& mine = *lanes[lane];
    for (int i = 0; i < 4; ++i) spread(mine.a[i], &a[(g + 8 * (i % 2)) * depth + (t + 4 * (i / 2)) * elements]);
    for (int i = 0; i < 2; ++i) spread(mine.b[i], &b[g * depth + (t + 4 * i) * elements]);
    for (int i = 0; i < 4; ++i) c[(g + 8 * (i / 2)) * 8 + 2 * t + i % 2] = mine.c[i];
  }
  if constexpr (std::is_same_v<Sum, float>)
    multiply_rows(c, a, b, 16, 8, depth, type == element::e4m3 && running->wanted().fp8 == fp8_sums::truncated);
  else
    multiply_rows(c, a, b, 16, 8, depth);
  for (int lane = 0; lane < 32; ++lane) {
    const int g = lane / 4, t = lane % 4;
    for (int i = 0; i < 4; ++i) lanes[lane]->c[i] = c[(g + 8 * (i / 2)) * 8 + 2 * t + i % 2];
  }
}

}  // namespace

void multiply(float (&c)[4], const uint32_t (&a)[4], const uint32_t (&b)[2], element type, place where) {
  product<float> mine{c, a, b};
  if (type == element::bf16) return together<multiply_warp<element::bf16, float>>("mma", mine, where);
  if (type == element::f16) return together<multiply_warp<element::f16, float>>("mma", mine, where);
  if (running->wanted().arch < 89) error(where, "mma of e4m3 before sm_89");
  together<multiply_warp<element::e4m3, float>>("mma", mine, where);
}

void multiply(int32_t (&c)[4], const uint32_t (&a)[4], const uint32_t (&b)[2], element, place where) {
  product<int32_t> mine{c, a, b};
  together<multiply_warp<element::s8, int32_t>>("mma", mine, where);
}

}  // namespace emulator
