#define LOWBIT_FORMAT(F) const added F##_row{row_of<F>()};
#include "formats/format.h"

#include <algorithm>
#include <cmath>
#include <cstring>
#include <string_view>

namespace lowbit {
namespace formats {
namespace {

constexpr int max_formats = 256;
format_row table[max_formats];
int table_size = 0;

template <class F>
constexpr auto values_of = value_table<F>();

template <class F>
constexpr auto scale_values_of = scale_value_table<F>();

template <class F>
constexpr const float* scale_values() {
  if constexpr (F::scale == scale_rule::u8)
    return scale_values_of<F>.data();
  else
    return nullptr;
}

template <class F>
constexpr format_row row_of() {
  static_assert(std::string_view(F::name).size() < 16, "a packed header has 15 letters for the name");
  static_assert((F::super_groups > 0) == (F::scale == scale_rule::i8 || F::scale == scale_rule::u8));
  static_assert(F::super_groups == 0 || F::block_n == 1, "super scales belong to rows");
  static_assert(!F::minimum || (F::block_n == 1 && !F::zero_point && F::integer_offset == 0));
  static_assert(
      !F::minimum || F::decode == recipe::lut4 || F::decode == recipe::lut16 || F::decode == recipe::narrow_linear,
      "the recipes that decoders add minima to");
  return {F::name,       F::bits,         F::decode,         F::block_n,    F::block_k,    F::scale,
          F::zero_point, F::global_scale, F::integer_offset, F::fp16_shift, F::fp16_scale, values_of<F>.data(),
          F::minimum,    F::super_groups, scale_values<F>()};
}

struct added {
  explicit added(const format_row& row) {
    if (table_size < max_formats) table[table_size++] = row;
  }
};

}  // namespace
}  // namespace formats
}  // namespace lowbit

#include "formats/formats.inc"

namespace lowbit {

int num_formats() { return formats::table_size; }

const format_row& format_at(int index) { return formats::table[index]; }

int find_format(const char* name) {
  for (int i = 0; i < formats::table_size; ++i)
    if (std::strcmp(formats::table[i].name, name) == 0) return i;
  return -1;
}

const char* dtype_name(int dtype) {
  switch (dtype) {
    case LOWBIT_F32:
      return "float32";
    case LOWBIT_F16:
      return "float16";
    case LOWBIT_BF16:
      return "bfloat16";
    case LOWBIT_I8:
      return "int8";
    case LOWBIT_E8M0:
      return "float8_e8m0fnu";
    case LOWBIT_E4M3:
      return "float8_e4m3fn";
    case LOWBIT_U8:
      return "uint8";
    default:
      return "unknown dtype";
  }
}

// Sorted finite values with the midpoint between each two neighbours, halfway cases decided in advance.
encoder::encoder(const format_row& format) {
  int codes[256];
  int finite = 0;
  for (int c = 0; c < (1 << format.bits); ++c)
    if (std::isfinite(format.values[c])) codes[finite++] = c;
  // -0 sorts before +0, so that small negatives keep their sign where the format has one.
  const auto before = [&](int a, int b) {
    const float x = format.values[a], y = format.values[b];
    return x != y ? x < y : std::signbit(x) && !std::signbit(y);
  };
  std::sort(codes, codes + finite, before);
  count = finite;
  for (int i = 0; i < count; ++i) {
    code[i] = static_cast<uint8_t>(codes[i]);
    value[i] = format.values[codes[i]];
  }
  for (int i = 0; i + 1 < count; ++i) {
    midpoint[i] = value[i] + (value[i + 1] - value[i]) / 2;
    tie_up[i] = (code[i + 1] & 1) == 0;
  }
  for (uint32_t top = 0; top < 4096; ++top) {
    // The end of the bucket nearer to -inf: for negative x that is the largest magnitude.
    const uint32_t bits = top << 20 | (top >= 2048 ? 0xfffffu : 0u);
    const float x = std::bit_cast<float>(bits);
    first[top] = static_cast<uint8_t>(x == x ? search(x) : search(top >= 2048 ? -INFINITY : INFINITY));
  }
}

int encoder::search(float x) const {
  int i = 0;
  while (i + 1 < count && (x > midpoint[i] || (x == midpoint[i] && tie_up[i]))) ++i;
  // Both zeros have the same value: the sign of x decides.
  if (value[i] == 0 && i + 1 < count && value[i + 1] == 0 && !std::signbit(x)) ++i;
  if (value[i] == 0 && i > 0 && value[i - 1] == 0 && std::signbit(x)) --i;
  return i;
}

uint8_t encoder::operator()(float x) const {
  if (x != x) x = 0;
  int i = first[std::bit_cast<uint32_t>(x) >> 20];
  while (i + 1 < count && (x > midpoint[i] || (x == midpoint[i] && tie_up[i])) && value[i + 1] != value[i]) ++i;
  return code[i];
}

}  // namespace lowbit
