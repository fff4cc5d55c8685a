// The quantizers on the device give the bits of the plain reference (gemm/quantize.cpp), which tests/cpp judges.
#include <algorithm>
#include <cmath>

#include "cuda/sm80/quantize.h"
#include "emulator/emulator.h"
#include "fragments_support.h"

using lowbit::activation_format, lowbit::activation_source, lowbit::quantize_problem;

namespace {

struct quantize_case {
  activation_format format;
  activation_source source;
  int64_t m, k;
  int x_dtype;
  bool residual = false, in_place = false, weight = true, power_of_two = false, swizzled = false, whole = true;
};

enum class fill { usual, zeros, tiny, huge, nan, infinite };

std::vector<uint8_t> numbers(int64_t count, int dtype, fill how, random_source& random) {
  std::vector<uint8_t> bytes(static_cast<size_t>(count * lowbit::dtype_bytes(dtype)));
  for (int64_t i = 0; i < count; ++i) {
    float v = random.uniform(-3, 3) * (random.below(50) ? 1.0f : 30.0f);
    if (how == fill::zeros) v = 0;
    if (how == fill::tiny) v *= dtype == LOWBIT_F16 ? 0x1p-22f : 0x1p-140f;
    if (how == fill::huge) v *= dtype == LOWBIT_F16 ? 600.0f : 1e36f;
    if (how == fill::nan && random.below(40) == 0) v = NAN;
    if (how == fill::infinite && random.below(40) == 0) v = random.of({INFINITY, -INFINITY});
    lowbit::store_from_f32(bytes.data(), i, dtype, v);
  }
  return bytes;
}

std::string describe(const quantize_case& c) {
  char text[200];
  std::snprintf(text, sizeof text, "%s, source %d, %lld x %lld of %s%s%s%s%s%s%s", lowbit::describe(c.format).name,
                static_cast<int>(c.source), static_cast<long long>(c.m), static_cast<long long>(c.k),
                lowbit::dtype_name(c.x_dtype), c.residual ? ", residual" : "", c.in_place ? " in place" : "",
                c.weight ? ", weight" : "", c.power_of_two ? ", powers of two" : "", c.swizzled ? ", swizzled" : "",
                c.whole ? "" : ", odd strides");
  return text;
}

// NaN of any sign and payload are the same.
bool same(const std::vector<uint8_t>& a, const std::vector<uint8_t>& b, int dtype) {
  if (a == b) return true;
  if (a.size() != b.size() || !lowbit::is_float_dtype(dtype)) return false;
  for (size_t i = 0; i < a.size() / static_cast<size_t>(lowbit::dtype_bytes(dtype)); ++i) {
    const float x = lowbit::load_as_f32(a.data(), static_cast<int64_t>(i), dtype),
                y = lowbit::load_as_f32(b.data(), static_cast<int64_t>(i), dtype);
    if (std::bit_cast<uint32_t>(x) != std::bit_cast<uint32_t>(y) && !(std::isnan(x) && std::isnan(y))) return false;
  }
  return true;
}

void check(const quantize_case& c, fill how, uint32_t seed) {
  random_source random(seed);
  const lowbit::activation_format_row& format = lowbit::describe(c.format);
  const int64_t pad = c.whole ? 8 : 3, size = lowbit::dtype_bytes(c.x_dtype);
  const int64_t stride = lowbit::round_up(c.k, 8) + pad,
                blocks = format.block ? lowbit::ceil_div(c.k, format.block) : 1;
  const int64_t count = (c.m - 1) * stride + c.k;
  const auto x = numbers(count, c.x_dtype, how, random), other = numbers(count, c.x_dtype, fill::usual, random),
             weight = numbers(c.k, LOWBIT_F32, fill::usual, random);
  const std::vector<float> global{123.5f};
  const bool uses_other = c.residual || c.source == activation_source::silu_mul;

  quantize_problem p{};
  p.format = c.format;
  p.source = c.source;
  p.power_of_two = c.power_of_two;
  p.swizzled = c.swizzled;
  p.m = c.m;
  p.k = c.k;
  p.x_dtype = c.x_dtype;
  p.x_stride = p.other_stride = p.sum_stride = stride;
  p.weight_dtype = LOWBIT_F32;
  p.epsilon = 1e-5f;
  const int64_t q_width = lowbit::ceil_div(c.k * format.bits, 8);
  p.q_stride = lowbit::round_up(q_width, 8) + (c.whole ? 8 : 1);
  p.scale_stride = blocks + 1;
  const size_t q_bytes = static_cast<size_t>((c.m - 1) * p.q_stride + q_width);
  const size_t scale_size = format.scale_dtype == LOWBIT_F32 ? 4 : 1;
  const size_t scale_bytes =
      c.swizzled ? static_cast<size_t>(lowbit::swizzled_scale_bytes(c.m, blocks))
                 : static_cast<size_t>(format.block ? (c.m - 1) * p.scale_stride + blocks : c.m) * scale_size;
  const bool asymmetric = c.format == activation_format::int8_asymmetric;

  // the host, into memory that looks like what nobody wrote
  std::vector<uint8_t> q(q_bytes, 0xa5), scales(scale_bytes, 0xa5),
      sum = c.in_place ? other : std::vector<uint8_t>(other.size(), 0xa5);
  std::vector<int32_t> zeros(static_cast<size_t>(c.m), 77);
  p.x = x.data();
  p.other = uses_other ? (c.in_place ? sum.data() : other.data()) : nullptr;
  p.sum = c.residual ? sum.data() : nullptr;
  p.weight = c.source == activation_source::rms_norm && c.weight ? weight.data() : nullptr;
  p.global_scale = c.format == activation_format::nvfp4 ? global.data() : nullptr;
  p.q = q.data();
  p.scales = scales.data();
  p.zero_points = asymmetric ? zeros.data() : nullptr;
  CHECK(lowbit::check_quantize(p) == LOWBIT_OK, "%s: %s", describe(c).c_str(), lowbit::last_error());
  CHECK_EQ(lowbit::quantize(p, nullptr), LOWBIT_OK);

  emulator::buffer<uint8_t> x_device(x), other_device(other.size()), q_device(q_bytes), scale_device(scale_bytes),
      sum_device(other.size());
  emulator::buffer<uint8_t> weight_device(weight);
  emulator::buffer<float> global_device(global);
  emulator::buffer<int32_t> zero_device(static_cast<size_t>(c.m));
  other_device.set(other.data(), other.size());
  p.x = x_device.data();
  p.other = uses_other ? other_device.data() : nullptr;
  p.sum = c.residual ? (c.in_place ? other_device.data() : sum_device.data()) : nullptr;
  p.weight = p.weight ? weight_device.data() : nullptr;
  p.global_scale = p.global_scale ? global_device.data() : nullptr;
  p.q = q_device.data();
  p.scales = scale_device.data();
  p.zero_points = asymmetric ? zero_device.data() : nullptr;
  emulator::options options;
  options.seed = seed;
  const emulator::with with(options);
  const lowbit_status status = lowbit::cuda::sm80::quantize(p, nullptr);
  CHECK(status == LOWBIT_OK && emulator::failure().empty(), "%s: %s", describe(c).c_str(), emulator::failure().c_str());
  if (status) return;
  CHECK(q == q_device.values_or(0xa5), "%s: q", describe(c).c_str());
  CHECK(same(scales, scale_device.values_or(0xa5), format.scale_dtype), "%s: scales", describe(c).c_str());
  if (asymmetric) CHECK(zeros == zero_device.values_or(77), "%s: zero points", describe(c).c_str());
  if (c.residual)
    CHECK(same(sum, (c.in_place ? other_device : sum_device).values_or(0xa5), c.x_dtype) && size, "%s: sum",
          describe(c).c_str());
}

constexpr activation_format formats[] = {
    activation_format::int8,       activation_format::int8_asymmetric, activation_format::e4m3,
    activation_format::e4m3_block, activation_format::mxfp8,           activation_format::mxfp4,
    activation_format::nvfp4,
};

}  // namespace

TEST(quantize_formats) {
  uint32_t seed = 0;
  for (const activation_format format : formats)
    for (const int dtype : {LOWBIT_F32, LOWBIT_F16, LOWBIT_BF16})
      for (const fill how : {fill::usual, fill::zeros, fill::tiny, fill::huge, fill::nan, fill::infinite}) {
        quantize_case c{format, activation_source::plain, 3, 200, dtype};
        c.whole = seed % 2;
        c.power_of_two = format == activation_format::e4m3_block && seed % 3 == 0;
        check(c, how, ++seed);
      }
}

TEST(quantize_widths) {
  uint32_t seed = 100;
  for (const activation_format format : formats)
    for (const int64_t k : {1, 7, 8, 15, 33, 127, 4096, 4105, 16384, 16391}) {
      quantize_case c{format, activation_source::plain, k > 4000 ? 1 : 4, k, LOWBIT_BF16};
      c.whole = k % 2 == 0;
      check(c, fill::usual, ++seed);
    }
}

TEST(quantize_swizzled) {
  for (const activation_format format : {activation_format::mxfp8, activation_format::mxfp4, activation_format::nvfp4})
    for (const int64_t m : {1, 33, 129}) {
      quantize_case c{format, activation_source::plain, m, 272, LOWBIT_F16};
      c.swizzled = true;
      check(c, fill::usual, static_cast<uint32_t>(m));
    }
}

TEST(quantize_rms_norm) {
  uint32_t seed = 200;
  for (const activation_format format : formats)
    for (const int64_t k : {5, 264, 4104, 16392}) {
      for (const int kind : {0, 1, 2}) {
        if (k > 4000 && (static_cast<int>(format) + kind) % 3) continue;
        quantize_case c{format, activation_source::rms_norm, 2, k,
                        std::initializer_list<int>{LOWBIT_F32, LOWBIT_F16, LOWBIT_BF16}.begin()[seed % 3]};
        c.residual = kind > 0;
        c.in_place = kind == 2;
        c.weight = seed % 4 != 0;
        c.whole = seed % 5 != 0;
        check(c, fill::usual, ++seed);
      }
    }
}

TEST(quantize_silu_mul) {
  uint32_t seed = 300;
  for (const activation_format format : formats)
    for (const int64_t k : {5, 264, 16392}) {
      if (k > 4000 && static_cast<int>(format) % 3) continue;
      quantize_case c{format, activation_source::silu_mul, 2, k,
                      std::initializer_list<int>{LOWBIT_F32, LOWBIT_F16, LOWBIT_BF16}.begin()[seed % 3]};
      c.whole = seed % 2;
      ++seed;
      check(c, seed % 7 == 0 ? fill::huge : fill::usual, seed);
    }
}

TEST(quantize_accesses) {
  emulator::clear_access_counts();
  for (const activation_format format : formats)
    for (const activation_source source :
         {activation_source::plain, activation_source::rms_norm, activation_source::silu_mul}) {
      quantize_case c{format, source, 1, 8192, LOWBIT_BF16};
      c.residual = source == activation_source::rms_norm;
      c.swizzled = lowbit::describe(format).block == 16 || lowbit::describe(format).block == 32;
      check(c, fill::usual, 1);
    }
  emulator::print_access_counts();
  // Weights of fp32 are two loads of half of the sectors; swizzled scales are 4 neighbours, 512 bytes apart.
  const std::string worst = emulator::worse_than(1.0, 4.0);
  CHECK(worst.empty(), "%s", worst.c_str());
}
