// One multiplication with all its choices, and the properties that every family must have.
#pragma once

#include <algorithm>

#include "support.h"

struct multiplication {
  const canonical_weight& w;
  exact_bytes packed;
  int64_t m;
  lowbit_dtype x_dtype, y_dtype, bias_dtype;
  int64_t x_stride, y_stride;
  bool has_bias;
  lowbit_activation activation = LOWBIT_DYNAMIC_SYMMETRIC;
  bool has_x_zero_point = false;
  int threads = 1;
  exact_bytes x, y, bias;
  lowbit::epilogue_terms epilogue{};
  std::vector<float> x_scale;
  std::vector<int32_t> x_zero_point;

  multiplication(const canonical_weight& weight, int64_t rows, lowbit_dtype activations, random_source& random)
      : w(weight),
        packed(weight.pack()),
        m(rows),
        x_dtype(activations),
        y_dtype(random.of({LOWBIT_F32, LOWBIT_F16, LOWBIT_BF16})),
        bias_dtype(random.of({LOWBIT_F32, LOWBIT_F16, LOWBIT_BF16})),
        x_stride(weight.k() + random.of({0, 0, 1, 13})),
        y_stride(weight.n() + random.of({0, 0, 1, 17})),
        has_bias(random.below(2)),
        threads(static_cast<int>(1 + random.below(2))) {
    std::vector<float> values(static_cast<size_t>((m - 1) * x_stride + w.k()));
    for (float& v : values)
      v = x_dtype == LOWBIT_I8 ? static_cast<float>(random.below(256) - 128) : random.uniform(-2, 2);
    set_x(values);
    std::vector<float> b(static_cast<size_t>(w.n()));
    for (float& v : b) v = random.uniform(-4, 4);
    bias = numbers(b, bias_dtype);
    if (x_dtype == LOWBIT_I8) activation = LOWBIT_STATIC;
  }

  void set_x(const std::vector<float>& values) { x = numbers(values, x_dtype); }

  double x_at(int64_t i, int64_t k) const {
    return static_cast<double>(lowbit::load_as_f32(x.data(), i * x_stride + k, x_dtype));
  }
  double y_at(int64_t i, int64_t n) const {
    return static_cast<double>(lowbit::load_as_f32(y.data(), i * y_stride + n, y_dtype));
  }
  float bias_f32(int64_t n) const { return has_bias ? lowbit::load_as_f32(bias.data(), n, bias_dtype) : 0.0f; }
  double bias_at(int64_t n) const { return static_cast<double>(bias_f32(n)); }

  bool same_bits(const exact_bytes& other, int64_t i, int64_t n) const {
    const size_t size = static_cast<size_t>(lowbit::dtype_bytes(y_dtype));
    const size_t at = static_cast<size_t>(i * y_stride + n) * size;
    return !std::memcmp(y.bytes() + at, other.bytes() + at, size);
  }

  // Through the C API where it selects this row, else the row itself.
  lowbit_status run(const lowbit::kernel_row& row, const lowbit_parallel* parallel = nullptr) {
    const thread_pool pool(threads);
    if (!parallel) parallel = &pool.parallel;
    y = exact_bytes(static_cast<size_t>(((m - 1) * y_stride + w.n()) * lowbit::dtype_bytes(y_dtype)));
    std::memset(y.data(), 0xa5, y.size());
    const void* const b = has_bias ? bias.data() : nullptr;
    const float* const scales = activation == LOWBIT_STATIC ? x_scale.data() : nullptr;
    const int32_t* const zeros = has_x_zero_point ? x_zero_point.data() : nullptr;
    const int64_t num_scales = static_cast<int64_t>(x_scale.size());
    lowbit_problem problem{};
    problem.family = row.family;
    problem.format = w.description.format;
    problem.m = m;
    problem.n = w.n();
    problem.k = w.k();
    problem.group_k = w.description.group_k;
    problem.x_dtype = x_dtype;
    if (lowbit::select_kernel(problem) == &row) {
      lowbit_gemm_args a{};
      a.family = row.family;
      a.m = m;
      a.x = x.data();
      a.x_dtype = x_dtype;
      a.x_stride = x_stride;
      a.packed = packed.data();
      a.packed_bytes = packed.size();
      a.bias = b;
      a.bias_dtype = bias_dtype;
      a.y = y.data();
      a.y_dtype = y_dtype;
      a.y_stride = y_stride;
      a.activation = activation;
      a.x_scale = scales;
      a.x_zero_point = zeros;
      a.num_x_scales = num_scales;
      a.parallel = parallel;
      a.function = epilogue.function;
      a.combination = epilogue.combination;
      a.other = epilogue.other;
      a.other_dtype = static_cast<lowbit_dtype>(epilogue.other_dtype);
      a.other_stride = epilogue.other_stride;
      return lowbit_gemm(&a);
    }
    lowbit::gemm_problem p{{},      m,        x.data(),   x_dtype, x_stride, b,          bias_dtype, y.data(),
                           y_dtype, y_stride, activation, scales,  zeros,    num_scales, parallel,   epilogue};
    if (const lowbit_status status = lowbit::view_packed(packed.data(), packed.size(), &p.w)) return status;
    return row.run(p);
  }

  // What lies between the rows of y is not theirs.
  void check_gaps(const lowbit::kernel_row& row) const {
    const int64_t size = lowbit::dtype_bytes(y_dtype);
    for (int64_t i = 0; i + 1 < m; ++i)
      for (int64_t at = (i * y_stride + w.n()) * size; at < (i + 1) * y_stride * size; ++at)
        CHECK(y.bytes()[at] == 0xa5, "%s wrote beyond row %lld", row.name, static_cast<long long>(i));
  }
};

inline std::string describe(const canonical_weight& w, const multiplication& c) {
  char text[256];
  std::snprintf(text, sizeof text, "%s %lld x %lld x %lld, groups %lld x %lld of %s, %s x to %s y%s%s, %d threads",
                w.format().name, static_cast<long long>(c.m), static_cast<long long>(w.n()),
                static_cast<long long>(w.k()), static_cast<long long>(w.description.group_n),
                static_cast<long long>(w.description.group_k), lowbit::dtype_name(w.description.scale_dtype),
                lowbit::dtype_name(c.x_dtype), lowbit::dtype_name(c.y_dtype),
                w.zero_points.empty() ? "" : ", zero points", c.has_bias ? ", bias" : "", c.threads);
  return text;
}

// m, n and k around the row's tile, the layout's panels and lines, and the sizes at which kernels change their ways.
template <class Visit>
void for_each_tile_shape(const lowbit::kernel_row& row, const Visit& visit) {
  const auto around = [](int64_t tile, std::initializer_list<int64_t> more) {
    std::vector<int64_t> sizes{1, tile - 1, tile, tile + 1, 2 * tile - 1};
    sizes.insert(sizes.end(), more);
    std::sort(sizes.begin(), sizes.end());
    sizes.erase(std::unique(sizes.begin(), sizes.end()), sizes.end());
    if (sizes.front() == 0) sizes.erase(sizes.begin());
    return sizes;
  };
  int turn = 0;
  for (const int64_t m : around(row.mr, {33, 70}))
    for (const int64_t n : around(row.nr, {15, 16, 17, 33, 53}))
      for (const int64_t k : around(row.kr, {64, 127, 197, 600}))
        if (m < 33 || ++turn % 3 == 0) visit(m, n, k);
}

// The same around the sizes of what stays in a cache (csrc/cpu/amx/tuning.h): rows and columns by which a kernel goes
// on to another of its loops, or to another turn of one.
template <class Visit>
void for_each_slab_shape(const Visit& visit) {
  constexpr int64_t few[] = {33, 48, 49, 64, 65}, many[] = {256, 257, 290};
  int turn = 0;
  for (const int64_t k : {64, 256, 257, 2048, 4096, 4100, 8200})
    for (const int64_t n : {16, 33, 50}) {
      visit(few[++turn % 5], n, k);
      if (!sanitized || turn % 5 == 0) visit(many[turn % 3], n, k);
    }
  visit(1030, 18, 64);  // rows, where few columns leave room for them, and for their sums
  if (!sanitized) visit(530, 18, 600);
}

inline weight_options options_of(const char* format, int64_t n, int64_t k, random_source& random) {
  const lowbit::format_row& f = lowbit::format_at(lowbit::find_format(format));
  weight_options o{format, n, f.block_k ? lowbit::round_up(k, f.block_k) : k};
  o.group_n = random.of({1, 1, 3, 16, 128});
  o.group_k = random.of({int64_t{1}, int64_t{7}, int64_t{16}, int64_t{24}, int64_t{32}, int64_t{48}, int64_t{64},
                         int64_t{100}, int64_t{128}, k, k + 5});
  o.scale_dtype = random.of({LOWBIT_F32, LOWBIT_F16, LOWBIT_BF16});
  o.zero_point = random.below(2);
  return o;
}

// One of the three ways to quantize x, with scales for all rows or each.
inline void choose_activation(multiplication& c, random_source& random) {
  c.activation = static_cast<lowbit_activation>(random.below(3));
  if (c.x_dtype == LOWBIT_I8) c.activation = LOWBIT_STATIC;
  if (c.activation != LOWBIT_STATIC) return;
  const int64_t count = random.below(2) ? 1 : c.m;
  c.has_x_zero_point = random.below(2);
  for (int64_t i = 0; i < count; ++i) {
    c.x_scale.push_back(random.uniform(0.005f, 0.03f));
    c.x_zero_point.push_back(static_cast<int32_t>(random.below(256) - 128));
  }
}

inline lowbit_dtype random_float_dtype(const lowbit::kernel_row& row, random_source& random) {
  for (;;) {
    const lowbit_dtype dtype = random.of({LOWBIT_F32, LOWBIT_F16, LOWBIT_BF16});
    if (takes(row, dtype)) return dtype;
  }
}

inline void check_thread_counts(lowbit_family family, std::initializer_list<const char*> formats) {
  for_each_runnable_kernel(family, [&](const lowbit::kernel_row& row) {
    random_source random(21);
    for (const char* format : formats) {
      if (!takes(row, format)) continue;
      for (const int64_t m : {1, 7, 16, 40, 70}) {
        const canonical_weight w = random_weight({format, 150, 640, 1, 128, LOWBIT_F32, false}, random);
        multiplication c(w, m, random_float_dtype(row, random), random);
        c.threads = 1;
        CHECK_EQ(c.run(row), LOWBIT_OK);
        const exact_bytes one = std::move(c.y);
        for (const int threads : {2, 3, 5}) {
          c.threads = threads;
          CHECK_EQ(c.run(row), LOWBIT_OK);
          CHECK(!std::memcmp(one.data(), c.y.data(), one.size()), "%s: %s", row.name, describe(w, c).c_str());
        }
      }
    }
  });
}

// Rows of y alone and in batches of several sizes, past every size at which a kernel changes its ways; the other rows
// of x differ from batch to batch by their position.
inline void check_batch_invariance(lowbit_family family, std::initializer_list<const char*> formats) {
  for_each_runnable_kernel(family, [&](const lowbit::kernel_row& row) {
    if (!row.batch_invariant) {
      std::printf("  %s does not promise it\n", row.name);
      return;
    }
    random_source random(22);
    const int64_t rows = std::max<int64_t>(70, 17 * row.mr + 2);
    int turn = 0;
    for (const char* format : formats) {
      if (!takes(row, format)) continue;
      for (const int64_t group_k : {int64_t{48}, int64_t{128}, int64_t{2000}}) {
        const canonical_weight w = random_weight({format, 53, 1184, 1, group_k, LOWBIT_F32, group_k == 48}, random);
        multiplication all(w, rows, random_float_dtype(row, random), random);
        CHECK_EQ(all.run(row), LOWBIT_OK);
        for (const int64_t m : {1, 2, 4, 5, 7, 8, 16, 17, 33, 49, 65}) {
          for (const int64_t first : {int64_t{0}, int64_t{3}, int64_t{15}, int64_t{16}, int64_t{37}, rows - m}) {
            if (first + m > rows || (emulated && ++turn % 5)) continue;
            multiplication some(w, m, all.x_dtype, random);
            some.x_stride = all.x_stride;
            some.y_stride = all.y_stride;
            some.y_dtype = all.y_dtype;
            some.has_bias = all.has_bias;
            some.bias_dtype = all.bias_dtype;
            some.bias = exact_bytes(all.bias.data(), all.bias.size());
            const int64_t size = lowbit::dtype_bytes(all.x_dtype);
            some.x = exact_bytes(all.x.bytes() + first * all.x_stride * size,
                                 static_cast<size_t>(((m - 1) * all.x_stride + w.k()) * size));
            CHECK_EQ(some.run(row), LOWBIT_OK);
            const int64_t y_size = lowbit::dtype_bytes(all.y_dtype);
            for (int64_t i = 0; i < m; ++i)
              CHECK(!std::memcmp(some.y.bytes() + i * all.y_stride * y_size,
                                 all.y.bytes() + (first + i) * all.y_stride * y_size,
                                 static_cast<size_t>(w.n() * y_size)),
                    "%s: row %lld of %lld, among %lld: %s", row.name, static_cast<long long>(first + i),
                    static_cast<long long>(rows), static_cast<long long>(m), describe(w, some).c_str());
          }
        }
      }
    }
  });
}

// Several threads of the caller multiply at a time, each with its own sizes.
inline void check_concurrent_calls(lowbit_family family, const char* format) {
  for_each_runnable_kernel(family, [&](const lowbit::kernel_row& row) {
    random_source random(23);
    const canonical_weight w = random_weight({format, 70, 384, 1, 64, LOWBIT_F32, false}, random);
    std::vector<multiplication> calls;
    std::vector<exact_bytes> serial;
    for (const int64_t m : {1, 5, 16, 35, 70, 2}) {
      calls.emplace_back(w, m, random_float_dtype(row, random), random);
      CHECK_EQ(calls.back().run(row), LOWBIT_OK);
      serial.push_back(std::move(calls.back().y));
    }
    std::vector<std::thread> running;
    std::vector<int> wrong(calls.size());
    for (size_t i = 0; i < calls.size(); ++i)
      running.emplace_back([&, i] {
        for (int times = 0; times < 5; ++times) {
          wrong[i] += calls[i].run(row) != LOWBIT_OK;
          wrong[i] += std::memcmp(calls[i].y.data(), serial[i].data(), serial[i].size()) != 0;
        }
      });
    for (std::thread& t : running) t.join();
    for (size_t i = 0; i < calls.size(); ++i) CHECK(!wrong[i], "%s: %s", row.name, describe(w, calls[i]).c_str());
  });
}
