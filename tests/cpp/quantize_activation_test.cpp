// Activation quantizers on the CPU: scales and codes against the formats' own tables and arithmetic in double; what
// comes before (RMSNorm, SiLU) within its rounding; sizes that cannot be.
#include "gemm/quantize.h"

#include <algorithm>

#include "support.h"

using lowbit::activation_format, lowbit::activation_source, lowbit::quantize_problem;

namespace {

struct quantized {
  quantize_problem p{};
  std::vector<uint8_t> q, scales;
  std::vector<int32_t> zero_points;
  int64_t blocks = 1;

  const lowbit::activation_format_row& format() const { return lowbit::describe(p.format); }
  unsigned code(int64_t row, int64_t i) const {
    const uint8_t byte = q[static_cast<size_t>(row * p.q_stride + i * format().bits / 8)];
    return format().bits == 8 ? byte : byte >> i % 2 * 4 & 15u;
  }
  float scale(int64_t row, int64_t i) const {
    const int64_t block = format().block ? i / format().block : 0;
    const int64_t at = p.swizzled       ? lowbit::swizzled_scale(row, block, blocks)
                       : format().block ? row * p.scale_stride + block
                                        : row;
    return lowbit::load_as_f32(scales.data(), at, format().scale_dtype);
  }
  double value(int64_t row, int64_t i) const {  // as who reads it sees it, times the global scale
    const unsigned c = code(row, i);
    double v = 0;
    if (p.format == activation_format::int8 || p.format == activation_format::int8_asymmetric)
      v = static_cast<int8_t>(c) - (p.zero_points ? zero_points[static_cast<size_t>(row)] : 0);
    else
      v = static_cast<double>(format().bits == 8 ? lowbit::e4m3.value(c) : lowbit::e2m1.value(c));
    return v * static_cast<double>(scale(row, i));
  }
};

quantized run(quantize_problem p, const lowbit_parallel* parallel = nullptr) {
  quantized r;
  const lowbit::activation_format_row& format = lowbit::describe(p.format);
  r.blocks = format.block ? ceil_div(p.k, format.block) : 1;
  p.q_stride = ceil_div(p.k * format.bits, 8);
  p.scale_stride = r.blocks;
  r.q.resize(static_cast<size_t>(p.m * p.q_stride), 0xa5);
  r.scales.resize(static_cast<size_t>((p.swizzled ? lowbit::swizzled_scale_bytes(p.m, r.blocks) : p.m * r.blocks) *
                                      (format.scale_dtype == LOWBIT_F32 ? 4 : 1)),
                  0xa5);
  r.zero_points.resize(static_cast<size_t>(p.m));
  p.q = r.q.data();
  p.scales = r.scales.data();
  p.zero_points = p.format == activation_format::int8_asymmetric ? r.zero_points.data() : nullptr;
  CHECK(lowbit::check_quantize(p) == LOWBIT_OK, "%s", lowbit::last_error());
  CHECK_EQ(lowbit::quantize(p, parallel), LOWBIT_OK);
  r.p = p;
  return r;
}

quantize_problem plain(activation_format format, const std::vector<float>& x, int64_t m, int64_t k) {
  quantize_problem p{};
  p.format = format;
  p.m = m;
  p.k = k;
  p.x = x.data();
  p.x_dtype = LOWBIT_F32;
  p.x_stride = k;
  return p;
}

std::vector<float> random_values(int64_t count, random_source& random, float size = 3) {
  std::vector<float> x(static_cast<size_t>(count));
  for (float& v : x) v = random.uniform(-size, size) * (random.below(30) ? 1.0f : 16.0f);
  return x;
}

constexpr activation_format block_formats[] = {activation_format::e4m3, activation_format::e4m3_block,
                                               activation_format::mxfp8, activation_format::mxfp4,
                                               activation_format::nvfp4};

// The scale of a block by its definition, in double.
double scale_by_definition(activation_format format, double max, double global, bool power_of_two) {
  switch (format) {
    case activation_format::mxfp8:
      return std::exp2(std::clamp(std::floor(std::log2(max)) - 8, -127.0, 127.0));
    case activation_format::mxfp4:
      return std::exp2(std::clamp(std::floor(std::log2(max)) - 2, -127.0, 127.0));
    case activation_format::nvfp4:
      return max / 6 * global;  // before its own rounding
    default:
      return power_of_two ? std::exp2(std::ceil(std::log2(max / 448))) : max / 448;
  }
}

}  // namespace

// Every midpoint between neighbours, what lies beside it, and what saturates: as the formats' tables say.
TEST(codes_are_the_nearest) {
  const auto check = [](const char* name, uint8_t (*convert)(float)) {
    const lowbit::format_row& format = lowbit::format_at(lowbit::find_format(name));
    const lowbit::encoder encode(format);
    std::vector<float> values(format.values, format.values + (size_t{1} << format.bits));
    values.erase(std::remove_if(values.begin(), values.end(), [](float v) { return !std::isfinite(v); }), values.end());
    std::sort(values.begin(), values.end());
    random_source random(1);
    std::vector<float> probes{0.0f, INFINITY, -INFINITY, 1e30f, -1e30f, 1e-40f, 1e-30f};
    for (size_t i = 0; i + 1 < values.size(); ++i) {
      const float middle = (values[i] + values[i + 1]) / 2;
      probes.insert(probes.end(), {values[i], middle, std::nextafterf(middle, -1e9f), std::nextafterf(middle, 1e9f),
                                   random.uniform(values[i], values[i + 1])});
    }
    for (const float v : probes) {
      const float got = format.values[convert(v)], wanted = format.values[encode(v)];
      CHECK(got == wanted, "%s of %.9g is %.9g, not %.9g", name, static_cast<double>(v), static_cast<double>(got),
            static_cast<double>(wanted));
    }
  };
  check("fp8_e4m3", [](float v) { return lowbit::f32_to_e4m3(v); });
  check("fp4_e2m1", [](float v) { return lowbit::f32_to_e2m1(v); });
  CHECK_EQ(lowbit::f32_to_e4m3(NAN), 0x7f);
  CHECK_EQ(lowbit::f32_to_e2m1(NAN), 0);
}

TEST(exponential) {
  random_source random(2);
  for (int i = 0; i < 200000; ++i) {
    const float x = random.uniform(-86, 88);
    const double wanted = std::exp(static_cast<double>(x)), got = static_cast<double>(lowbit::exp_of(x));
    CHECK(std::fabs(got - wanted) <= 4 * 0x1p-24 * wanted, "exp(%.9g) is %.9g", static_cast<double>(x), got);
  }
  for (const float x : {-87.5f, -95.0f, -103.0f, 88.5f, 88.8f})  // subnormal and nearly too large
    CHECK(std::fabs(static_cast<double>(lowbit::exp_of(x)) - std::fmin(std::exp(static_cast<double>(x)), 3.5e38)) <=
                  std::exp(static_cast<double>(x)) * 1e-6 + 0x1p-148 ||
              std::isinf(lowbit::exp_of(x)),
          "%g", static_cast<double>(x));
  CHECK_EQ(lowbit::exp_of(-INFINITY), 0.0f);
  CHECK(std::isinf(lowbit::exp_of(INFINITY)) && std::isnan(lowbit::exp_of(NAN)));
}

TEST(blocks_by_definition) {
  random_source random(3);
  for (const activation_format format : block_formats)
    for (const int64_t k : {1, 31, 128, 333})
      for (const bool power_of_two : {false, true}) {
        if (power_of_two && format != activation_format::e4m3_block) continue;
        const std::vector<float> x = random_values(5 * k, random, random.of({1e-3f, 3.0f, 1e4f}));
        const std::vector<float> global{format == activation_format::nvfp4 ? 7.25f : 1.0f};
        quantize_problem p = plain(format, x, 5, k);
        p.power_of_two = power_of_two;
        if (format == activation_format::nvfp4) p.global_scale = global.data();
        const quantized r = run(p);
        const int64_t block = r.format().block ? r.format().block : k;
        const lowbit::encoder encode(
            lowbit::format_at(lowbit::find_format(r.format().bits == 8 ? "fp8_e4m3" : "fp4_e2m1")));
        for (int64_t row = 0; row < 5; ++row)
          for (int64_t first = 0; first < k; first += block) {
            float max = 0;
            for (int64_t i = first; i < std::min(first + block, k); ++i)
              max = std::fmax(max, std::fabs(x[static_cast<size_t>(row * k + i)]));
            double wanted =
                scale_by_definition(format, static_cast<double>(max), static_cast<double>(global[0]), power_of_two);
            if (format == activation_format::nvfp4)
              wanted = static_cast<double>(lowbit::e4m3.value(lowbit::f32_to_e4m3(static_cast<float>(wanted))));
            const double scale = static_cast<double>(r.scale(row, first));
            const bool exact = r.format().scale_dtype != LOWBIT_F32 || power_of_two;
            CHECK(exact ? scale == wanted : std::fabs(scale - wanted) <= wanted * 0x1p-24,
                  "%s: scale %.9g, by definition %.9g", r.format().name, scale, wanted);
            for (int64_t i = first; i < std::min(first + block, k); ++i) {
              const double v = static_cast<double>(x[static_cast<size_t>(row * k + i)]);
              const double quotient = scale > 0 ? v * static_cast<double>(global[0]) / scale : 0;
              const float got =
                  r.format().bits == 8 ? lowbit::e4m3.value(r.code(row, i)) : lowbit::e2m1.value(r.code(row, i));
              // the nearest of the quotient, or of what rounding makes of it
              const auto near = [&](double q) {
                const unsigned c = encode(static_cast<float>(q));
                return r.format().bits == 8 ? lowbit::e4m3.value(c) : lowbit::e2m1.value(c);
              };
              CHECK(got == near(quotient) || got == near(quotient * (1 + 0x1p-22)) ||
                        got == near(quotient * (1 - 0x1p-22)),
                    "%s: %.9g / %.9g became %g", r.format().name, v, scale, static_cast<double>(got));
            }
          }
      }
}

// int8 is lowbit_quantize_rows, to the bit.
TEST(int8_is_that_of_the_integer_family) {
  random_source random(4);
  const std::vector<float> x = random_values(6 * 77, random);
  for (const activation_format format : {activation_format::int8, activation_format::int8_asymmetric}) {
    const quantized r = run(plain(format, x, 6, 77));
    std::vector<int8_t> q(6 * 77);
    std::vector<float> scale(6);
    std::vector<int32_t> zero(6);
    CHECK_EQ(
        lowbit_quantize_rows(x.data(), LOWBIT_F32, 6, 77, 77,
                             format == activation_format::int8 ? LOWBIT_DYNAMIC_SYMMETRIC : LOWBIT_DYNAMIC_ASYMMETRIC,
                             q.data(), scale.data(), zero.data(), nullptr),
        LOWBIT_OK);
    CHECK(!std::memcmp(q.data(), r.q.data(), q.size()) && !std::memcmp(scale.data(), r.scales.data(), 24));
    if (r.p.zero_points) CHECK(zero == r.zero_points);
  }
}

TEST(no_numbers) {
  for (const activation_format format : block_formats)
    for (const float bad : {NAN, INFINITY, -INFINITY}) {
      std::vector<float> x(256, 1.0f);
      x[200] = bad;
      const quantized r = run(plain(format, x, 1, 256));
      for (int64_t i = 0; i < 256; ++i) {
        const bool touched = !r.format().block || i / r.format().block == 200 / r.format().block;
        CHECK(std::isnan(r.scale(0, i)) == touched, "%s: column %lld", r.format().name, static_cast<long long>(i));
        if (touched) CHECK_EQ(r.code(0, i), 0u);
      }
    }
  for (const activation_format format : block_formats) {
    const std::vector<float> x(64, 0.0f);
    const quantized r = run(plain(format, x, 1, 64));
    for (int64_t i = 0; i < 64; ++i) CHECK(r.value(0, i) == 0, "%s", r.format().name);
  }
}

TEST(norm_and_silu) {
  random_source random(5);
  const int64_t m = 3, k = 5000;
  const std::vector<float> x = random_values(m * k, random), other = random_values(m * k, random),
                           weight = random_values(k, random, 1);
  for (const bool norm : {true, false}) {
    std::vector<float> sum(x.size());
    quantize_problem p = plain(activation_format::int8, x, m, k);
    p.source = norm ? activation_source::rms_norm : activation_source::silu_mul;
    p.other = other.data();
    p.other_stride = k;
    if (norm) {
      p.weight = weight.data();
      p.weight_dtype = LOWBIT_F32;
      p.epsilon = 1e-6f;
      p.sum = sum.data();
      p.sum_stride = k;
    }
    const quantized r = run(p);
    for (int64_t row = 0; row < m; ++row) {
      std::vector<double> v(static_cast<size_t>(k));
      double squares = 0;
      for (int64_t i = 0; i < k; ++i) {
        const size_t at = static_cast<size_t>(row * k + i);
        const double gate = static_cast<double>(x[at]), up = static_cast<double>(other[at]);
        v[static_cast<size_t>(i)] = norm ? static_cast<double>(x[at] + other[at]) : gate / (1 + std::exp(-gate)) * up;
        if (norm) CHECK_EQ(sum[at], x[at] + other[at]);
        squares += v[static_cast<size_t>(i)] * v[static_cast<size_t>(i)];
      }
      const double inverse = 1 / std::sqrt(squares / static_cast<double>(k) + 1e-6);
      double max = 0;
      for (int64_t i = 0; i < k; ++i) {
        if (norm) v[static_cast<size_t>(i)] *= inverse * static_cast<double>(weight[static_cast<size_t>(i)]);
        max = std::fmax(max, std::fabs(v[static_cast<size_t>(i)]));
      }
      const double scale = static_cast<double>(r.scale(row, 0));
      CHECK(std::fabs(scale - max / 127) <= 1e-5 * scale, "%.9g, %.9g", scale, max / 127);
      for (int64_t i = 0; i < k; ++i)
        CHECK(std::fabs(r.value(row, i) - v[static_cast<size_t>(i)]) <=
                  scale * 0.5001 + 1e-5 * std::fabs(v[static_cast<size_t>(i)]),
              "%lld", static_cast<long long>(i));
    }
  }
}

// Each scale once, the rest of the 512 bytes 0; threads change nothing.
TEST(swizzled_scales) {
  random_source random(6);
  const int64_t m = 200, k = 32 * 9;
  const std::vector<float> x = random_values(m * k, random);
  quantize_problem p = plain(activation_format::mxfp4, x, m, k);
  const quantized rows = run(p);
  p.swizzled = true;
  const thread_pool pool(3);
  const quantized swizzled = run(p, &pool.parallel);
  CHECK(rows.q == swizzled.q);
  CHECK_EQ(swizzled.scales.size(), size_t{2 * 3 * 512});
  std::vector<bool> used(swizzled.scales.size());
  for (int64_t row = 0; row < m; ++row)
    for (int64_t b = 0; b < 9; ++b) {
      const size_t at = static_cast<size_t>(lowbit::swizzled_scale(row, b, 9));
      CHECK(!used[at]);
      used[at] = true;
      CHECK_EQ(swizzled.scales[at], rows.scales[static_cast<size_t>(row * 9 + b)]);
    }
  for (size_t i = 0; i < used.size(); ++i)
    if (!used[i]) CHECK_EQ(swizzled.scales[i], 0);
}

TEST(what_cannot_be_quantized) {
  const std::vector<float> x(64);
  float scale[64];
  uint8_t q[64];
  quantize_problem good = plain(activation_format::mxfp8, x, 2, 32);
  good.q = q;
  good.q_stride = 32;
  good.scales = scale;
  good.scale_stride = 1;
  CHECK_EQ(lowbit::check_quantize(good), LOWBIT_OK);
  const auto bad = [&](lowbit_status wanted, const auto& change) {
    quantize_problem p = good;
    change(p);
    CHECK_EQ(lowbit::check_quantize(p), wanted);
  };
  bad(LOWBIT_INVALID_TYPE, [](quantize_problem& p) { p.x_dtype = LOWBIT_I8; });
  bad(LOWBIT_INVALID_VALUE, [](quantize_problem& p) { p.k = 0; });
  bad(LOWBIT_INVALID_VALUE, [](quantize_problem& p) { p.m = -1; });
  bad(LOWBIT_INVALID_VALUE, [](quantize_problem& p) { p.x_stride = 31; });
  bad(LOWBIT_INVALID_VALUE, [](quantize_problem& p) { p.q_stride = 31; });
  bad(LOWBIT_INVALID_VALUE, [](quantize_problem& p) { p.scale_stride = 0; });
  bad(LOWBIT_INVALID_VALUE, [](quantize_problem& p) { p.power_of_two = true; });
  bad(LOWBIT_INVALID_VALUE, [](quantize_problem& p) { p.format = static_cast<activation_format>(7); });
  bad(LOWBIT_INVALID_VALUE, [](quantize_problem& p) { p.source = activation_source::silu_mul; });
  bad(LOWBIT_INVALID_VALUE, [&](quantize_problem& p) { p.other = x.data(); });
  bad(LOWBIT_INVALID_VALUE, [&](quantize_problem& p) { p.weight = x.data(); });
  bad(LOWBIT_INVALID_VALUE, [&](quantize_problem& p) { p.global_scale = x.data(); });
  bad(LOWBIT_INVALID_VALUE, [](quantize_problem& p) { p.q = nullptr; });
  bad(LOWBIT_INVALID_VALUE, [](quantize_problem& p) {
    p.source = activation_source::rms_norm;
    p.epsilon = NAN;
  });
  bad(LOWBIT_INVALID_VALUE, [](quantize_problem& p) {
    p.format = activation_format::e4m3;
    p.swizzled = true;
  });
  bad(LOWBIT_INVALID_VALUE, [](quantize_problem& p) { p.format = activation_format::int8_asymmetric; });
}
