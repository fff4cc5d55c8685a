// Every row of the integer tables gives the bits of the contract: an independent quantization of x, exact sums, and the
// scales in the stated order. So all levels give the same bits, too.
#include <algorithm>

#include "kernels.h"

namespace {

struct quantized_row {
  std::vector<int> q;
  float scale = 0;
  int zero = 0;
};

// gemm/activation.h in words: symmetric, the largest magnitude becomes 127; asymmetric, the range with 0 in it becomes
// 255 steps from -128 on. Rows of what no scale fits are NaN; of numbers too small for a scale, 0.
quantized_row quantize(const multiplication& c, int64_t i, int64_t k) {
  quantized_row r;
  r.q.resize(static_cast<size_t>(k));
  if (c.activation == LOWBIT_STATIC) {
    const size_t at = c.x_scale.size() == 1 ? 0 : static_cast<size_t>(i);
    r.scale = c.x_scale[at];
    r.zero = c.has_x_zero_point ? c.x_zero_point[at] : 0;
  }
  float low = 0, high = 0;
  bool nan = false;
  for (int64_t j = 0; j < k; ++j) {
    const float x = lowbit::load_as_f32(c.x.data(), i * c.x_stride + j, c.x_dtype);
    nan |= std::isnan(x);
    low = std::fmin(low, x);
    high = std::fmax(high, x);
  }
  float inverse = 1.0f / r.scale;
  if (c.activation != LOWBIT_STATIC) {
    const bool symmetric = c.activation == LOWBIT_DYNAMIC_SYMMETRIC;
    const float range = symmetric ? std::fmax(high, -low) : high - low, steps = symmetric ? 127.0f : 255.0f;
    inverse = steps / range;
    r.scale = range / steps;
    nan |= !std::isfinite(range);
    if (!nan && !std::isfinite(inverse)) {
      r.scale = inverse = 0;
    } else if (!nan && !symmetric) {
      r.zero = static_cast<int>(std::nearbyint(-128.0f - low * inverse));
    }
  }
  if (nan) r.scale = NAN;
  for (int64_t j = 0; j < k; ++j) {
    const float x = lowbit::load_as_f32(c.x.data(), i * c.x_stride + j, c.x_dtype);
    int& q = r.q[static_cast<size_t>(j)];
    if (c.x_dtype == LOWBIT_I8)
      q = static_cast<int>(x);
    else
      q = static_cast<int>(
          std::fmin(std::fmax(std::nearbyintf(x * inverse) + static_cast<float>(r.zero), -128.0f), 127.0f));
  }
  return r;
}

void check_bits(const lowbit::kernel_row& row, const canonical_weight& w, const multiplication& c) {
  const int64_t k = w.k(), group_k = std::min(w.description.group_k, k);
  std::vector<quantized_row> x;
  for (int64_t i = 0; i < c.m; ++i) x.push_back(quantize(c, i, k));
  std::vector<int> weights(static_cast<size_t>(k));
  for (int64_t n = 0; n < w.n(); ++n) {
    for (int64_t j = 0; j < k; ++j) weights[static_cast<size_t>(j)] = w.integer(n, j);
    for (int64_t i = 0; i < c.m; ++i) {
      const quantized_row& r = x[static_cast<size_t>(i)];
      float y = 0;
      for (int64_t group = 0; group < k; group += group_k) {
        const int64_t end = std::min(group + group_k, k);
        for (int64_t first = group; first < end; first += 32768) {
          int64_t sum = 0;
          for (int64_t j = first; j < std::min(first + 32768, end); ++j)
            sum += static_cast<int64_t>(r.q[static_cast<size_t>(j)] - r.zero) * weights[static_cast<size_t>(j)];
          y = std::fma(static_cast<float>(sum), static_cast<float>(w.scale(n, group)), y);
        }
      }
      float wanted;
      lowbit::store_from_f32(&wanted, 0, c.y_dtype, std::fma(y, r.scale, c.bias_f32(n)));
      const float expected = lowbit::load_as_f32(&wanted, 0, c.y_dtype);
      const double got = c.y_at(i, n);
      const bool equal =
          std::isnan(expected)
              ? std::isnan(got)
              : !std::memcmp(&wanted, c.y.bytes() + (i * c.y_stride + n) * lowbit::dtype_bytes(c.y_dtype),
                             static_cast<size_t>(lowbit::dtype_bytes(c.y_dtype)));
      CHECK(equal, "%s [%lld, %lld] of %s, activation %d: %.9g, not %.9g", row.name, static_cast<long long>(i),
            static_cast<long long>(n), describe(w, c).c_str(), c.activation, got, static_cast<double>(expected));
    }
  }
}

constexpr const char* integer_formats[] = {"int4", "int8", "int2", "ternary", "int3", "int5", "int6"};
// Groups are their own affair, and scales of two levels.
constexpr const char* block_formats[] = {"q3_k", "q6_k", "tq2_0"};

lowbit_dtype any_dtype(const lowbit::kernel_row& row, random_source& random) {
  for (;;) {
    const lowbit_dtype dtype = random.of({LOWBIT_F32, LOWBIT_F16, LOWBIT_BF16, LOWBIT_I8});
    if (takes(row, dtype)) return dtype;
  }
}

// m rows of random x, quantized in any way: every bit of the product, and nothing else is written.
void check_product(const lowbit::kernel_row& row, const canonical_weight& w, int64_t m, random_source& random) {
  multiplication c(w, m, any_dtype(row, random), random);
  choose_activation(c, random);
  CHECK_EQ(c.run(row), LOWBIT_OK);
  check_bits(row, w, c);
  c.check_gaps(row);
}

}  // namespace

TEST(products_have_the_contracts_bits) {
  for_each_runnable_kernel(LOWBIT_INTEGER, [](const lowbit::kernel_row& row) {
    random_source random(31);
    int turn = 0;
    std::vector<const char*> formats(std::begin(integer_formats), std::end(integer_formats));
    formats.insert(formats.end(), std::begin(block_formats), std::end(block_formats));
    for (const char* format : formats) {
      if (!takes(row, format)) continue;
      const int rounds =
          lowbit::format_at(lowbit::find_format(format)).bits % 4 ? 1 : 3;  // narrow ones meet the same loops
      for (int round = 0; round < rounds; ++round) {
        for_each_tile_shape(row, [&](int64_t m, int64_t n, int64_t k) {
          ++turn;
          if (sanitized && turn % 7) return;
          const canonical_weight w = random_weight(options_of(format, n, k, random), random);
          check_product(row, w, m, random);
        });
      }
    }
  });
}

// Segments of one step to more than a slab, each with every way to quantize x.
TEST(products_of_slabs_have_the_contracts_bits) {
  for_each_runnable_kernel(LOWBIT_INTEGER, [](const lowbit::kernel_row& row) {
    if (row.mr < 16) return;  // these have no slabs of rows
    random_source random(37);
    int turn = 0;
    for_each_slab_shape([&](int64_t m, int64_t n, int64_t k) {
      for (const char* format : {"int4", "int8"}) {
        const int64_t group_k = random.of({int64_t{32}, int64_t{64}, int64_t{128}, int64_t{192}, int64_t{256},
                                           int64_t{320}, int64_t{4096}, int64_t{4160}, k});
        const canonical_weight w = random_weight({format, n, k, 1, group_k, LOWBIT_F16, ++turn % 2 == 0}, random);
        check_product(row, w, m, random);
      }
    });
  });
}

// Few rows of x and many are multiplied in two ways, in tiles of several sizes, in runs of columns and in pieces of
// these that segments cut.
TEST(any_number_of_rows_meets_any_groups) {
  for_each_runnable_kernel(LOWBIT_INTEGER, [](const lowbit::kernel_row& row) {
    random_source random(38);
    int turn = 0;
    for (const char* format : {"int4", "int8", "int3"}) {
      for (const int64_t group_k : {16, 32, 48, 80, 96, 128, 192, 320, 640, 1100}) {
        for (const int64_t m : {1, 2, 3, 4, 5, 6, 8, 15, 16, 17, 31, 32, 33, 34}) {
          if (!takes(row, format) || (sanitized && ++turn % 5)) continue;
          const int64_t k = 1094 + random.below(7);
          const canonical_weight w =
              random_weight({format, 17, k, 1, group_k, LOWBIT_F32, random.below(2) != 0}, random);
          check_product(row, w, m, random);
        }
      }
    }
  });
}

// Every number of rows that a tile takes, and how rows are shared out to more tiles than one; groups of whole lines, of
// all of K and of more than one run.
TEST(every_tile_of_rows) {
  for_each_runnable_kernel(LOWBIT_INTEGER, [](const lowbit::kernel_row& row) {
    random_source random(39);
    std::vector<int64_t> rows = {47, 48, 49, 127, 128, 129, 130};
    for (int64_t m = 1; m <= 38; ++m) rows.push_back(m);
    for (const char* format : {"int4", "int8", "int6"}) {
      if (!takes(row, format)) continue;
      for (const int64_t m : rows) {
        if (sanitized && m % 5 != 3) continue;
        const int64_t k = random.of({int64_t{384}, int64_t{640}, int64_t{1300}});
        const int64_t group_k = random.of({int64_t{64}, int64_t{128}, int64_t{256}, int64_t{640}, k});
        const canonical_weight w =
            random_weight({format, 33, k, 1, group_k, LOWBIT_BF16, random.below(2) != 0}, random);
        check_product(row, w, m, random);
      }
    }
  });
}

TEST(one_hot_activations_give_decoded_weights) {
  for_each_runnable_kernel(LOWBIT_INTEGER, [](const lowbit::kernel_row& row) {
    random_source random(32);
    for (const char* format : integer_formats) {
      for (const int64_t group_k : {int64_t{16}, int64_t{32}, int64_t{100}, int64_t{128}, int64_t{1000}}) {
        if (!takes(row, format)) continue;
        const int64_t codes = int64_t{1} << lowbit::format_at(lowbit::find_format(format)).bits, k = 197, n = codes + 3;
        canonical_weight w = random_weight({format, n, k, 1, group_k, LOWBIT_F32, group_k != 128}, random);
        for (int64_t i = 0; i < n; ++i)
          for (int64_t j = 0; j < k; ++j)
            if (std::isfinite(w.format().values[(i + j) % codes]))
              w.set_code(i, j, static_cast<unsigned>((i + j) % codes));
        multiplication c(w, k, LOWBIT_I8, random);
        c.x_stride = k;
        c.y_dtype = LOWBIT_F32;
        c.has_bias = false;
        c.x_scale = {1.0f};
        std::vector<float> x(static_cast<size_t>(k * k));
        for (int64_t i = 0; i < k; ++i) x[static_cast<size_t>(i * k + i)] = 1;
        c.set_x(x);
        CHECK_EQ(c.run(row), LOWBIT_OK);
        for (int64_t j = 0; j < k; ++j)
          for (int64_t i = 0; i < n; ++i) {
            const float wanted = static_cast<float>(w.integer(i, j)) * static_cast<float>(w.scale(i, j));
            CHECK(c.y_at(j, i) == static_cast<double>(wanted), "%s: %s code %u is %.9g, not %.9g", row.name, format,
                  w.code(i, j), c.y_at(j, i), static_cast<double>(wanted));
          }
      }
    }
  });
}

// The largest sums there can be: every code, activation and zero point at an end of its range.
TEST(extremes_do_not_overflow) {
  for_each_runnable_kernel(LOWBIT_INTEGER, [](const lowbit::kernel_row& row) {
    random_source random(33);
    for (const char* format : integer_formats) {
      if (!takes(row, format)) continue;
      const lowbit::format_row& f = lowbit::format_at(lowbit::find_format(format));
      for (int kind = 0; kind < 16; ++kind) {
        for (const int64_t group_k : {int64_t{64}, int64_t{100000}}) {
          // two whole segments and a bit, where the group is long
          const int64_t k = group_k == 64 ? 320 : sanitized ? 33000 : 65600, n = 5;
          const int64_t m = kind % 3 == 2 ? 33 : kind % 3 + 1;
          canonical_weight w = random_weight({format, n, k, 1, group_k, LOWBIT_F32, true}, random);
          std::fill(w.zero_points.begin(), w.zero_points.end(),
                    static_cast<int8_t>(kind & 1 ? f.integer_low() : f.integer_high()));
          const unsigned flip = f.bits == 8 ? 0x80 : 0, low = flip;
          const unsigned high = static_cast<unsigned>(f.integer_high() + f.integer_offset) ^ flip;
          for (int64_t i = 0; i < n; ++i)
            for (int64_t j = 0; j < k; ++j) w.set_code(i, j, kind & 2 ? low : high);
          multiplication c(w, m, LOWBIT_I8, random);
          c.x_scale = {0.5f};
          c.x_zero_point = {kind & 4 ? -128 : 127};
          c.has_x_zero_point = true;
          c.y_dtype = LOWBIT_F32;
          c.set_x(std::vector<float>(static_cast<size_t>((m - 1) * c.x_stride + k), kind & 8 ? -128.0f : 127.0f));
          CHECK_EQ(c.run(row), LOWBIT_OK);
          check_bits(row, w, c);
        }
      }
    }
  });
}

TEST(long_groups_are_summed_in_segments) {
  for_each_runnable_kernel(LOWBIT_INTEGER, [](const lowbit::kernel_row& row) {
    random_source random(34);
    for (const char* format : {"int4", "int8", "int3"}) {
      for (const int64_t k : {32767, 32768, 32769, 70001}) {
        for (const int64_t m : {1, 18, 40}) {
          if (!takes(row, format) || (sanitized && (k == 32767 || k == 70001))) continue;
          const canonical_weight w =
              random_weight({format, 18, k, 1, k == 70001 ? 33000 : k, LOWBIT_F16, m == 1}, random);
          multiplication c(w, m, any_dtype(row, random), random);
          choose_activation(c, random);
          CHECK_EQ(c.run(row), LOWBIT_OK);
          check_bits(row, w, c);
        }
      }
    }
  });
}

// Zeros, rows too small for a scale, denormal and huge scales of W; NaN and inf make a row NaN, a static scale
// saturates.
TEST(odd_rows_and_scales) {
  for_each_runnable_kernel(LOWBIT_INTEGER, [](const lowbit::kernel_row& row) {
    random_source random(35);
    for (const char* format : integer_formats) {
      for (int activation = 0; activation < 3; ++activation) {
        for (const lowbit_dtype x_dtype : {LOWBIT_F32, LOWBIT_F16, LOWBIT_BF16}) {
          for (const float scale : {0x1p-149f, 0x1p-130f, 0.0f, 1.0f, 1e30f}) {
            if (!takes(row, format) || !takes(row, x_dtype)) continue;
            canonical_weight w = random_weight({format, 19, 130, 1, 64, LOWBIT_F32, true}, random);
            for (int64_t i = 0; i < w.num_scales(); ++i) w.set_scale(i, scale * static_cast<float>(1 + i % 3));
            multiplication c(w, 18, x_dtype, random);
            c.activation = static_cast<lowbit_activation>(activation);
            c.y_dtype = LOWBIT_F32;
            c.x_scale = {0.01f};
            const auto fill = [&](int64_t i, float value) {
              for (int64_t j = 0; j < 130; ++j) lowbit::store_from_f32(c.x.data(), i * c.x_stride + j, x_dtype, value);
            };
            const auto put = [&](int64_t i, int64_t j, float value) {
              lowbit::store_from_f32(c.x.data(), i * c.x_stride + j, x_dtype, value);
            };
            fill(0, 0.0f);
            fill(1, -0.0f);
            fill(2, 0x1p-140f);
            fill(3, 0x1p-120f);
            fill(4, 3e38f);
            put(4, 7, -3e38f);
            fill(5, -2.5f);
            put(6, 0, NAN);
            put(7, 129, NAN);
            put(8, 64, INFINITY);
            put(9, 63, -INFINITY);
            fill(10, INFINITY);
            CHECK_EQ(c.run(row), LOWBIT_OK);
            check_bits(row, w, c);
          }
        }
      }
    }
  });
}

TEST(rows_are_quantized_as_the_products_do) {
  random_source random(36);
  const canonical_weight w = random_weight({"int8", 1, 77, 1, 77, LOWBIT_F32, false}, random);
  for (const lowbit_dtype dtype : {LOWBIT_F32, LOWBIT_F16, LOWBIT_BF16}) {
    for (const lowbit_activation activation : {LOWBIT_DYNAMIC_SYMMETRIC, LOWBIT_DYNAMIC_ASYMMETRIC}) {
      multiplication c(w, 9, dtype, random);
      c.activation = activation;
      lowbit::store_from_f32(c.x.data(), 3 * c.x_stride + 5, dtype, INFINITY);
      exact_bytes q(9 * 77), scale(9 * 4), zero(9 * 4);
      thread_pool threads(2);
      CHECK_EQ(lowbit_quantize_rows(c.x.data(), dtype, 9, 77, c.x_stride, activation,
                                    reinterpret_cast<int8_t*>(q.data()), reinterpret_cast<float*>(scale.data()),
                                    reinterpret_cast<int32_t*>(zero.data()), &threads.parallel),
               LOWBIT_OK);
      for (int64_t i = 0; i < 9; ++i) {
        const quantized_row r = quantize(c, i, 77);
        float got_scale;
        int32_t got_zero;
        std::memcpy(&got_scale, scale.bytes() + i * 4, 4);
        std::memcpy(&got_zero, zero.bytes() + i * 4, 4);
        CHECK(got_scale == r.scale || (i == 3 && std::isnan(got_scale)));
        if (i == 3) continue;
        CHECK_EQ(got_zero, r.zero);
        for (int64_t j = 0; j < 77; ++j)
          CHECK_EQ(static_cast<int8_t>(q.bytes()[i * 77 + j]), r.q[static_cast<size_t>(j)]);
      }
    }
  }
}

TEST(any_number_of_threads_gives_the_same_bits) { check_thread_counts(LOWBIT_INTEGER, {"int4", "int8", "int3"}); }

TEST(a_row_does_not_depend_on_the_batch) {
  check_batch_invariance(LOWBIT_INTEGER, {"int4", "int8", "ternary", "int6"});
}

TEST(concurrent_calls_give_the_same_bits) { check_concurrent_calls(LOWBIT_INTEGER, "int4"); }
