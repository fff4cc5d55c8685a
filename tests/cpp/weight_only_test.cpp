// Every row of the weight_only tables, its shapes made from its own tile, against sums in double from canonical codes.
#include <algorithm>

#include "kernels.h"

namespace {

// |y - exact| as gemm/contract.h bounds it, then the rounding to y.
struct bound {
  double sum;  // relative to sum |x W|

  bound(const lowbit::kernel_row& row, int64_t k, lowbit_dtype x) : sum(static_cast<double>(k + 2) * 0x1p-23) {
    if (rounds_to_bf16(row)) sum += x == LOWBIT_BF16 ? 0x1p-8 : 0x1.01p-7;  // W, and x too unless it is bf16
  }
};

double rounding(int dtype, double y) {
  const double magnitude = std::fabs(y);
  switch (dtype) {
    case LOWBIT_F16:
      return magnitude * 0x1p-11 + 0x1p-25;
    case LOWBIT_BF16:
      return magnitude * 0x1p-8 + 0x1p-133;
    default:
      return magnitude * 0x1p-23 + 0x1p-149;
  }
}

void check_against_double(const lowbit::kernel_row& row, const canonical_weight& w, const multiplication& c) {
  const double global = static_cast<double>(w.description.global_scale);
  const bound allowed(row, w.k(), c.x_dtype);
  // below fp32's normal range units may flush to zero
  const double smallest = static_cast<double>(w.k()) * 0x1p-126 * (rounds_to_bf16(row) ? 70000 : 1);
  std::vector<double> values(static_cast<size_t>(w.k()));
  for (int64_t n = 0; n < w.n(); ++n) {
    for (int64_t k = 0; k < w.k(); ++k) values[static_cast<size_t>(k)] = w.value(n, k);
    for (int64_t m = 0; m < c.m; ++m) {
      double sum = 0, absolute = 0;
      for (int64_t k = 0; k < w.k(); ++k) {
        const double product = c.x_at(m, k) * values[static_cast<size_t>(k)];
        sum += product;
        absolute += std::fabs(product);
      }
      const double exact = sum * global + c.bias_at(n), got = c.y_at(m, n);
      const double error = (allowed.sum * absolute + smallest) * global;
      const double most = error + 0x1p-23 * (std::fabs(exact) + error) + rounding(c.y_dtype, std::fabs(exact) + error);
      const bool overflows = c.y_dtype == LOWBIT_F16 && std::fabs(exact) + most >= 65504;
      CHECK((overflows && std::fabs(got) >= 65504 - most) || std::fabs(got - exact) <= most,
            "%s [%lld, %lld] of %s: %.9g, not %.9g +- %.3g", row.name, static_cast<long long>(m),
            static_cast<long long>(n), describe(w, c).c_str(), got, exact, most);
    }
  }
}

constexpr const char* all_formats[] = {
    "int4",    "int8", "fp8_e4m3", "fp8_e5m2", "fp4_e2m1", "mxfp4",    "mxfp8",      "nvfp4",      "nf4",    "int2",
    "ternary", "int3", "int5",     "int6",     "fp6_e2m3", "fp6_e3m2", "mxfp6_e2m3", "mxfp6_e3m2", "nf4_dq", "q4_1",
    "q5_1",    "q2_k", "q3_k",     "q4_k",     "q5_k",     "q6_k",     "iq4_nl",     "tq2_0"};
constexpr lowbit_dtype float_types[] = {LOWBIT_F32, LOWBIT_F16, LOWBIT_BF16};

float value_of(int dtype, float x) {
  float out;
  lowbit::store_from_f32(&out, 0, dtype, x);
  return lowbit::load_as_f32(&out, 0, dtype);
}

// m rows of random x: the product is within the bound, and nothing else is written.
void check_product(const lowbit::kernel_row& row, const canonical_weight& w, int64_t m, random_source& random) {
  multiplication c(w, m, random_float_dtype(row, random), random);
  CHECK_EQ(c.run(row), LOWBIT_OK);
  check_against_double(row, w, c);
  c.check_gaps(row);
}

}  // namespace

TEST(products_are_within_the_stated_bound) {
  for_each_runnable_kernel(LOWBIT_WEIGHT_ONLY, [](const lowbit::kernel_row& row) {
    random_source random(11);
    int turn = 0;
    for (const char* format : all_formats) {
      if (!takes(row, format)) continue;
      for_each_tile_shape(row, [&](int64_t m, int64_t n, int64_t k) {
        ++turn;
        if (sanitized && turn % 9) return;
        const canonical_weight w = random_weight(options_of(format, n, k, random), random);
        check_product(row, w, m, random);
      });
    }
  });
}

TEST(products_of_slabs_are_within_the_stated_bound) {
  for_each_runnable_kernel(LOWBIT_WEIGHT_ONLY, [](const lowbit::kernel_row& row) {
    if (row.mr < 16) return;  // these have no slabs of rows
    random_source random(15);
    int turn = 0;
    for_each_slab_shape([&](int64_t m, int64_t n, int64_t k) {
      constexpr const char* formats[] = {"int4", "int8", "fp8_e4m3", "nvfp4"};
      const canonical_weight w = random_weight(options_of(formats[++turn % 4], n, k, random), random);
      check_product(row, w, m, random);
    });
  });
}

// Columns by which kernels go on to another depth of K, rows of W and of x by which to another few panels.
TEST(products_of_several_depths_are_within_the_stated_bound) {
  for_each_runnable_kernel(LOWBIT_WEIGHT_ONLY, [](const lowbit::kernel_row& row) {
    random_source random(18);
    int turn = 0;
    for (const char* format : all_formats) {
      if (!takes(row, format)) continue;
      for (const int64_t m : {1, 4, 8, 26}) {
        constexpr int64_t columns[] = {1024, 1090, 2048, 2250, 3100};
        if (++turn % 4 && sanitized) continue;
        const canonical_weight w =
            random_weight(options_of(format, turn % 3 ? 34 : 150, columns[turn % 5], random), random);
        check_product(row, w, m, random);
      }
    }
  });
}

// Rows of x by which kernels go over W once more.
TEST(products_of_hundreds_of_rows_are_within_the_stated_bound) {
  for_each_runnable_kernel(LOWBIT_WEIGHT_ONLY, [](const lowbit::kernel_row& row) {
    random_source random(19);
    for (const char* format : {"int4", "fp8_e4m3"}) {
      if (!takes(row, format)) continue;
      for (const int64_t m : {256, 257, 513}) {
        const canonical_weight w = random_weight(options_of(format, 18, 1090, random), random);
        check_product(row, w, m, random);
      }
    }
  });
}

// Weights that are finite under scales whose products with others of the format's values are not.
TEST(padding_is_finite_under_the_largest_scales) {
  for_each_runnable_kernel(LOWBIT_WEIGHT_ONLY, [](const lowbit::kernel_row& row) {
    random_source random(16);
    for (const char* format : all_formats) {
      const lowbit::format_row& f = lowbit::format_at(lowbit::find_format(format));
      if (!takes(row, format) || f.scale != lowbit::scale_rule::any_float || f.minimum) continue;
      for (const int64_t group_k : {int64_t{24}, int64_t{100}, int64_t{1000}})
        for (const int64_t m : {1, 3, 18, 40}) {
          canonical_weight w = random_weight({format, 18, 197, 1, group_k, LOWBIT_F32, m == 3}, random);
          for (int64_t i = 0; i < w.num_scales(); ++i) w.set_scale(i, 0x1.8p127f);
          for (int64_t n = 0; n < w.n(); ++n)
            for (int64_t k = 0; k < w.k(); ++k) {
              unsigned code = w.code(n, k);
              const auto magnitude = [&] { return std::fabs(f.values[code] - static_cast<float>(w.zero_point(n, k))); };
              while (!(magnitude() <= 1)) code = static_cast<unsigned>(random.below(int64_t{1} << f.bits));
              w.set_code(n, k, code);
            }
          multiplication c(w, m, random_float_dtype(row, random), random);
          std::vector<float> x(static_cast<size_t>((m - 1) * c.x_stride + w.k()));
          for (float& v : x) v = random.uniform(-0x1p-10f, 0x1p-10f);
          c.set_x(x);
          c.y_dtype = LOWBIT_F32;
          CHECK_EQ(c.run(row), LOWBIT_OK);
          check_against_double(row, w, c);
        }
    }
  });
}

// One row of x picks one column of W: the decoded weight itself comes out, for every code under every kind of scale.
TEST(one_hot_activations_give_decoded_weights) {
  for_each_runnable_kernel(LOWBIT_WEIGHT_ONLY, [](const lowbit::kernel_row& row) {
    random_source random(12);
    int turn = 0;
    for (const char* format : all_formats) {
      if (!takes(row, format)) continue;
      for (const lowbit_dtype x_dtype : float_types) {
        if (!takes(row, x_dtype)) continue;
        for (const int64_t group_k : {int64_t{16}, int64_t{32}, int64_t{100}, int64_t{128}, int64_t{1000}}) {
          const lowbit::format_row& f = lowbit::format_at(lowbit::find_format(format));
          if ((f.block_k && group_k != 128) || (emulated && ++turn % 2)) continue;
          const int64_t codes = int64_t{1} << f.bits, k = f.block_k ? lowbit::round_up(192, f.block_k) : 197,
                        n = codes + 3;
          weight_options o{format, n, k, 1, group_k, LOWBIT_F32, group_k % 3 == 1};
          canonical_weight w = random_weight(o, random);
          for (int64_t i = 0; i < n; ++i)
            for (int64_t j = 0; j < k; ++j)
              if (std::isfinite(f.values[(i + j) % codes])) w.set_code(i, j, static_cast<unsigned>((i + j) % codes));
          multiplication c(w, k, x_dtype, random);
          c.x_stride = k;
          c.y_dtype = LOWBIT_F32;
          c.has_bias = false;
          std::vector<float> x(static_cast<size_t>(k * k));
          for (int64_t i = 0; i < k; ++i) x[static_cast<size_t>(i * k + i)] = 1;
          c.set_x(x);
          CHECK_EQ(c.run(row), LOWBIT_OK);
          for (int64_t j = 0; j < k; ++j) {
            for (int64_t i = 0; i < n; ++i) {
              const float weight = static_cast<float>(w.value(i, j)), global = w.description.global_scale;
              const float wanted = (rounds_to_bf16(row) ? value_of(LOWBIT_BF16, weight) : weight) * global;
              // where sums are scaled instead, W is not rounded
              const bool unrounded =
                  rounds_to_bf16(row) && f.bits == 8 && c.y_at(j, i) == static_cast<double>(weight * global);
              CHECK(unrounded || c.y_at(j, i) == static_cast<double>(wanted),
                    "%s: %s code %u by scale %g is %.9g, not %.9g", row.name, format, w.code(i, j), w.scale(i, j),
                    c.y_at(j, i), static_cast<double>(wanted));
            }
          }
        }
      }
    }
  });
}

// A scale of a power of two changes the exponent of a weight and nothing else, as far as bf16 and fp32 reach: all
// codes under all scales, those of a row alike or from both ends of the range.
TEST(powers_of_two_scale_exactly) {
  for_each_runnable_kernel(LOWBIT_WEIGHT_ONLY, [](const lowbit::kernel_row& row) {
    random_source random(15);
    for (const char* format : {"mxfp8", "mxfp4"}) {
      if (!takes(row, format)) continue;
      const bool bytes = lowbit::format_at(lowbit::find_format(format)).bits == 8;
      const int64_t codes = bytes ? 256 : 16, k = bytes ? 256 : 128, n = emulated ? 80 : 256;
      const int last = bytes ? 245 : 252;  // beyond, the largest code is infinite
      for (const bool mixed : {false, true}) {
        canonical_weight w = random_weight({format, n, k, 1, 32, LOWBIT_E8M0, false}, random);
        for (int64_t i = 0; i < n; ++i)
          for (int64_t j = 0; j < k; ++j)
            if (std::isfinite(w.format().values[j % codes])) w.set_code(i, j, static_cast<unsigned>(j % codes));
        for (int64_t i = 0; i < w.num_scales(); ++i) {
          const int64_t of_row = i / (k / 32), group = i % (k / 32);
          w.scales[static_cast<size_t>(i)] = static_cast<uint8_t>(
              std::min<int64_t>(mixed && group % 3 == 1 ? 255 - of_row : of_row * (emulated ? 3 : 1), last));
        }
        for (const lowbit_dtype x_dtype : float_types) {
          if (!takes(row, x_dtype)) continue;
          multiplication c(w, emulated ? 9 : k, x_dtype, random);
          c.x_stride = k;
          c.y_dtype = LOWBIT_F32;
          c.has_bias = false;
          std::vector<float> x(static_cast<size_t>(c.m * k));
          for (int64_t i = 0; i < c.m; ++i) x[static_cast<size_t>(i * k + i)] = 1;
          c.set_x(x);
          CHECK_EQ(c.run(row), LOWBIT_OK);
          for (int64_t j = 0; j < c.m; ++j)
            for (int64_t i = 0; i < n; ++i) {
              const double exact = w.value(i, j), got = c.y_at(j, i);
              CHECK(got == exact || (std::fabs(exact) < 0x1p-126 && got == 0),
                    "%s: %s code %u by 2^%d is %.9g, not %.9g", row.name, format, w.code(i, j),
                    static_cast<int>(std::log2(w.scale(i, j))), got, exact);
            }
        }
      }
    }
  });
}

TEST(extremes_stay_within_the_bound) {
  for_each_runnable_kernel(LOWBIT_WEIGHT_ONLY, [](const lowbit::kernel_row& row) {
    random_source random(13);
    for (const char* format : all_formats) {
      if (!takes(row, format)) continue;
      const int codes = 1 << lowbit::format_at(lowbit::find_format(format)).bits;
      // the lowest and the largest value, zeros; denormal and huge scales; the smallest value under the largest scales
      for (int turn = 0; turn < 12; ++turn) {
        const int kind = turn / 2;
        const int64_t n = 19, k = 256, m = 5, group_k = turn % 2 ? 128 : 64;
        weight_options o{format, n, k, 1, group_k, LOWBIT_F32, kind == 1};
        canonical_weight w = random_weight(o, random);
        const lowbit::format_row& f = w.format();
        unsigned low = 0, high = 0, zero = 0, smallest = 0;
        for (int i = 0; i < codes; ++i) {
          const unsigned code = static_cast<unsigned>(i);
          if (!std::isfinite(f.values[i])) continue;
          if (f.values[i] < f.values[low] || !std::isfinite(f.values[low])) low = code;
          if (f.values[i] > f.values[high]) high = code;
          if (f.values[i] == 0) zero = code;
          if (f.values[i] > 0 && !(f.values[smallest] > 0 && f.values[smallest] < f.values[i])) smallest = code;
        }
        for (int64_t i = 0; i < n && (kind < 3 || kind == 5); ++i)
          for (int64_t j = 0; j < k; ++j)
            w.set_code(i, j, kind == 0 ? low : kind == 1 ? high : kind == 2 ? zero : smallest);
        for (int64_t i = 0; i < w.num_scales(); ++i) {
          if (w.description.scale_dtype == LOWBIT_E8M0)
            w.scales[static_cast<size_t>(i)] = kind == 3   ? static_cast<uint8_t>(i % 4)
                                               : kind == 4 ? 220
                                               : kind == 5 ? 252
                                                           : 127;
          else if (kind >= 3)
            w.set_scale(i, kind == 3                                 ? 0x1p-149f * static_cast<float>(i + 1)
                           : w.description.scale_dtype == LOWBIT_F16 ? 65504.0f
                           : kind == 4                               ? 1e28f
                                                                     : 0x1p121f);
        }
        for (const lowbit_dtype x_dtype : float_types) {
          if (!takes(row, x_dtype)) continue;
          multiplication c(w, m, x_dtype, random);
          c.y_dtype = LOWBIT_F32;
          std::vector<float> x(static_cast<size_t>((m - 1) * c.x_stride + k));
          for (size_t i = 0; i < x.size(); ++i)
            x[i] = i % 7 == 0   ? 0.0f
                   : i % 7 == 1 ? -0.0f
                   : kind < 2   ? -60000.0f
                                : random.uniform(-2, 2) * (kind == 5 ? 0x1p-12f : 1);
          c.set_x(x);
          CHECK_EQ(c.run(row), LOWBIT_OK);
          check_against_double(row, w, c);
        }
      }
    }
  });
}

// A NaN or inf spoils its own row of y and no other; rows of W with scale 0 or code 0 turn inf into NaN, as products
// do.
TEST(nonfinite_activations_stay_in_their_row) {
  for_each_runnable_kernel(LOWBIT_WEIGHT_ONLY, [](const lowbit::kernel_row& row) {
    random_source random(14);
    for (const char* format : {"int4", "int8", "fp8_e4m3", "nf4", "int2", "int5", "fp6_e3m2"}) {
      for (const lowbit_dtype x_dtype : float_types) {
        if (!takes(row, format) || !takes(row, x_dtype)) continue;
        for (const int64_t m : {3, 20, 40}) {
          const canonical_weight w = random_weight({format, 37, 197, 1, 100, LOWBIT_F32, false}, random);
          multiplication c(w, m, x_dtype, random);
          c.y_dtype = LOWBIT_F32;
          c.has_bias = false;
          CHECK_EQ(c.run(row), LOWBIT_OK);
          const exact_bytes before(c.y.data(), c.y.size());
          for (const int64_t at : {int64_t{0}, int64_t{99}, int64_t{196}}) {
            for (const float bad : {NAN, INFINITY, -INFINITY}) {
              const exact_bytes kept(c.x.data(), c.x.size());
              lowbit::store_from_f32(c.x.data(), 2 * c.x_stride + at, x_dtype, bad);
              CHECK_EQ(c.run(row), LOWBIT_OK);
              std::memcpy(c.x.data(), kept.data(), kept.size());
              for (int64_t i = 0; i < m; ++i) {
                for (int64_t n = 0; n < 37; ++n) {
                  const double got = c.y_at(i, n);
                  const bool right = i != 2 ? c.same_bits(before, i, n)
                                     : std::isnan(bad) || w.value(n, at) == 0
                                         ? std::isnan(got)
                                         : got == static_cast<double>(bad) * (w.value(n, at) < 0 ? -1 : 1);
                  CHECK(right, "%s, %s: y[%lld, %lld] is %g after x[2, %lld] = %g", row.name, format,
                        static_cast<long long>(i), static_cast<long long>(n), got, static_cast<long long>(at),
                        static_cast<double>(bad));
                }
              }
            }
          }
        }
      }
    }
  });
}

TEST(any_number_of_threads_gives_the_same_bits) {
  check_thread_counts(LOWBIT_WEIGHT_ONLY, {"int4", "fp8_e5m2", "mxfp4", "int2", "fp6_e2m3"});
}

TEST(a_row_does_not_depend_on_the_batch) {
  check_batch_invariance(LOWBIT_WEIGHT_ONLY, {"int4", "int8", "mxfp8", "nvfp4", "ternary", "int3"});
}

TEST(concurrent_calls_give_the_same_bits) { check_concurrent_calls(LOWBIT_WEIGHT_ONLY, "int4"); }
