// What may follow a product (gemm/epilogue.h): the functions within their bounds over all of fp32, and every kernel's
// outputs, bit by bit, those of its sums put through them.
#include <cmath>
#include <cstdio>
#include <limits>

#include "kernels.h"

namespace {

constexpr lowbit_function functions[] = {LOWBIT_IDENTITY, LOWBIT_SILU, LOWBIT_GELU, LOWBIT_GELU_TANH, LOWBIT_RELU};

double two_u(double x) { return std::sqrt(8 / M_PI) * (x + 0.044715 * x * x * x); }

double exact(lowbit_function function, double x) {
  switch (function) {
    case LOWBIT_SILU:
      return x < -700 ? -0.0 : x / (1 + std::exp(-x));
    case LOWBIT_GELU:
      return x < -38 ? -0.0 : 0.5 * x * std::erfc(-x * std::sqrt(0.5));
    case LOWBIT_GELU_TANH:
      return x < -20 ? -0.0 : x / (1 + std::exp(-two_u(x)));
    case LOWBIT_RELU:
      return x > 0 ? x : 0;
    default:
      return x;
  }
}

// csrc/gemm/epilogue.h states them.
double ulps_allowed(lowbit_function function, double x) {
  switch (function) {
    case LOWBIT_SILU:
      return 3;
    case LOWBIT_GELU:
      return 6;
    case LOWBIT_GELU_TANH:
      return 4 + 2.5 * std::fmin(std::fabs(two_u(x)), 104);
    default:
      return 0;
  }
}

double ulp_at(double x) {
  int exponent;
  std::frexp(x, &exponent);
  return std::ldexp(1, std::max(exponent - 24, -149));
}

double other_at(const multiplication& c, int64_t i, int64_t n) {
  const lowbit::epilogue_terms& e = c.epilogue;
  return static_cast<double>(lowbit::load_as_f32(e.other, i * e.other_stride + n, e.other_dtype));
}

// The outputs of `c` are those that `sums`, fp32, give by the formula.
void check_outputs(const lowbit::kernel_row& row, const multiplication& c, const multiplication& sums) {
  const lowbit::epilogue_terms& e = c.epilogue;
  const size_t size = static_cast<size_t>(lowbit::dtype_bytes(c.y_dtype));
  for (int64_t i = 0; i < c.m; ++i)
    for (int64_t n = 0; n < c.w.n(); ++n) {
      const float value = lowbit::apply(e.function, static_cast<float>(sums.y_at(i, n)));
      const float other = e.combination ? static_cast<float>(other_at(c, i, n)) : 0;
      uint32_t wanted = 0, got = 0;
      lowbit::store_from_f32(&wanted, 0, c.y_dtype, lowbit::combine(e.combination, value, other));
      std::memcpy(&got, c.y.bytes() + static_cast<size_t>(i * c.y_stride + n) * size, size);
      const bool both_nan = std::isnan(c.y_at(i, n)) && std::isnan(lowbit::load_as_f32(&wanted, 0, c.y_dtype));
      CHECK(got == wanted || both_nan, "%s [%lld, %lld]: %g of the sum %g, function %d, combination %d: %s", row.name,
            static_cast<long long>(i), static_cast<long long>(n), c.y_at(i, n), sums.y_at(i, n), e.function,
            e.combination, describe(c.w, c).c_str());
    }
}

}  // namespace

TEST(functions_are_within_their_bounds) {
  for (const lowbit_function function : functions) {
    double worst = 0;
    float worst_at = 0;
    const uint64_t step = sanitized ? 100003 : 1009;
    for (uint64_t i = 0; i < uint64_t{1} << 32; i += step) {
      const float x = std::bit_cast<float>(static_cast<uint32_t>(i));
      if (!std::isfinite(x)) continue;
      const double wanted = exact(function, static_cast<double>(x));
      const double got = static_cast<double>(lowbit::apply(function, x));
      const double error = std::fabs(got - wanted) / ulp_at(wanted);
      CHECK(error <= ulps_allowed(function, static_cast<double>(x)), "function %d of %.9g is %.9g, not %.9g: %g ulp",
            function, static_cast<double>(x), got, wanted, error);
      if (error > worst) worst = error, worst_at = x;
    }
    std::printf("  function %d: %.2f ulp at %.9g\n", function, worst, static_cast<double>(worst_at));
  }
}

TEST(functions_at_their_ends) {
  constexpr float inf = std::numeric_limits<float>::infinity();
  for (const lowbit_function function : functions) {
    CHECK(std::isnan(lowbit::apply(function, NAN)) && std::isnan(lowbit::apply(function, -NAN)), "function %d",
          function);
    CHECK_EQ(lowbit::apply(function, inf), inf);
    CHECK_EQ(lowbit::apply(function, -inf), function == LOWBIT_IDENTITY ? -inf : 0.0f);
    for (const float zero : {0.0f, -0.0f}) {
      const float y = lowbit::apply(function, zero);
      CHECK(y == 0 && std::signbit(y) == std::signbit(zero), "function %d of %g is %g", function,
            static_cast<double>(zero), static_cast<double>(y));
    }
  }
}

TEST(outputs_of_every_kernel) {
  for (const lowbit_family family : {LOWBIT_WEIGHT_ONLY, LOWBIT_INTEGER})
    for_each_runnable_kernel(family, [&](const lowbit::kernel_row& row) {
      random_source random(51);
      int turn = 0;
      for_each_tile_shape(row, [&](int64_t m, int64_t n, int64_t k) {
        if (++turn % (sanitized ? 9 : 2)) return;
        const canonical_weight w = random_weight(options_of("int8", n, k, random), random);
        multiplication c(w, m, random_float_dtype(row, random), random);
        if (family == LOWBIT_INTEGER) choose_activation(c, random);
        // Rows of x large and small: sums where the functions bend, and beyond.
        std::vector<float> x(static_cast<size_t>((m - 1) * c.x_stride + k));
        for (size_t i = 0; i < x.size(); ++i)
          x[i] =
              random.uniform(-1, 1) * std::ldexp(1.0f, static_cast<int>(i / static_cast<size_t>(c.x_stride)) % 9 - 6);
        if (turn % 5 == 0) x[static_cast<size_t>(k / 2)] = random.of({INFINITY, -INFINITY, NAN});
        c.set_x(x);

        multiplication sums(w, m, c.x_dtype, random);
        sums.y_dtype = LOWBIT_F32;
        sums.has_bias = c.has_bias;
        sums.bias_dtype = c.bias_dtype;
        sums.x_stride = c.x_stride;
        sums.activation = c.activation;
        sums.has_x_zero_point = c.has_x_zero_point;
        sums.x_scale = c.x_scale;
        sums.x_zero_point = c.x_zero_point;
        sums.x = exact_bytes(c.x.data(), c.x.size());
        sums.bias = exact_bytes(c.bias.data(), c.bias.size());
        CHECK_EQ(sums.run(row), LOWBIT_OK);

        for (const lowbit_function function : functions) {
          lowbit::epilogue_terms& e = c.epilogue;
          e.function = function;
          e.combination = static_cast<lowbit_combination>(random.below(3));
          e.other_dtype = random.of({LOWBIT_F32, LOWBIT_F16, LOWBIT_BF16});
          e.other_stride = n + random.of({0, 1, 19});
          std::vector<float> values(static_cast<size_t>((m - 1) * e.other_stride + n));
          for (float& v : values) v = random.uniform(-3, 3);
          const exact_bytes other = numbers(values, e.other_dtype);
          e.other = e.combination ? other.data() : nullptr;
          CHECK_EQ(c.run(row), LOWBIT_OK);
          check_outputs(row, c, sums);
          c.check_gaps(row);
        }
      });
    });
}

// A residual may be where y goes, and the halves of one matrix may be y and other.
TEST(other_in_the_place_of_y) {
  random_source random(52);
  constexpr int64_t n = 53, k = 192;
  const canonical_weight w = random_weight({"int8", n, k, 1, 64, LOWBIT_F32, false}, random);
  const exact_bytes packed = w.pack();
  for (int isa = 0; isa < lowbit::num_cpu_isas(); ++isa) {
    if (!lowbit::cpu_isa_supported(isa)) continue;
    CHECK_EQ(lowbit_set_cpu_isa(isa), LOWBIT_OK);
    for (const lowbit_family family : {LOWBIT_WEIGHT_ONLY, LOWBIT_INTEGER})
      for (const lowbit_dtype dtype : {LOWBIT_F32, LOWBIT_BF16})
        for (const int64_t m : {1, 5, 40}) {
          std::vector<float> x(static_cast<size_t>(m * k)), hidden(static_cast<size_t>(m * 2 * n));
          for (float& v : x) v = random.uniform(-1, 1);
          for (float& v : hidden) v = random.uniform(-1, 1);
          const exact_bytes x_bytes = numbers(x, LOWBIT_BF16);
          lowbit_gemm_args a{};
          a.family = family;
          a.m = m;
          a.x = x_bytes.data();
          a.x_dtype = LOWBIT_BF16;
          a.x_stride = k;
          a.packed = packed.data();
          a.packed_bytes = packed.size();
          a.y_dtype = a.other_dtype = dtype;
          a.y_stride = a.other_stride = 2 * n;
          a.function = LOWBIT_GELU;
          a.combination = LOWBIT_ADD;
          const exact_bytes there = numbers(hidden, dtype), apart = numbers(hidden, dtype),
                            half = numbers(hidden, dtype);
          const int64_t size = lowbit::dtype_bytes(dtype);
          exact_bytes y = numbers(hidden, dtype);
          a.other = there.data();
          a.y = apart.data();
          CHECK_EQ(lowbit_gemm(&a), LOWBIT_OK);
          a.other = a.y = y.data();
          CHECK_EQ(lowbit_gemm(&a), LOWBIT_OK);
          a.other = half.data();  // read on the left, written on the right
          a.y = half.bytes() + n * size;
          if (m == 1) a.y_stride = a.other_stride = n;  // of one row they mean nothing
          CHECK(lowbit_gemm(&a) == LOWBIT_OK, "%s", lowbit_last_error());
          CHECK(!std::memcmp(apart.data(), y.data(), y.size()), "%s, m = %lld", lowbit::cpu_isa_at(isa).name,
                static_cast<long long>(m));
          for (int64_t i = 0; i < m; ++i)
            CHECK(!std::memcmp(apart.bytes() + 2 * i * n * size, half.bytes() + (2 * i + 1) * n * size,
                               static_cast<size_t>(n * size)));
        }
  }
  lowbit_set_cpu_isa(lowbit::num_cpu_isas() - 1);
}
