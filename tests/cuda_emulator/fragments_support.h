// What tests of kernels on fragments share: a random weight packed by the layout's index functions alone, in device
// memory, and one product with all its choices.
#pragma once

#include <cmath>
#include <random>

#include "cuda/contract.h"
#include "emulator/emulator.h"
#include "test.h"

using lowbit::fragment_shape;

struct random_source {
  std::mt19937_64 engine;
  explicit random_source(uint64_t seed) : engine(seed) {}
  int64_t below(int64_t end) { return static_cast<int64_t>(engine() % static_cast<uint64_t>(end)); }
  float uniform(float low, float high) { return low + (high - low) * static_cast<float>(engine() >> 40) * 0x1p-24f; }
  template <class T>
  T of(std::initializer_list<T> list) {
    return list.begin()[below(static_cast<int64_t>(list.size()))];
  }
};

// [n][k] codes; scales and zero points [n][groups].
struct fragment_weight {
  lowbit::format_row format;
  fragment_shape shape;
  int scale_dtype;
  bool has_zero;
  std::vector<uint8_t> codes;  // as packed
  std::vector<float> scales;
  std::vector<int> zeros;
  lowbit::cuda::packed_weight packed;
  std::vector<uint8_t> bytes;

  unsigned code(int64_t n, int64_t k) const { return codes[static_cast<size_t>(n * shape.k + k)]; }
  int value(int64_t n, int64_t k) const {  // of an integer format
    return shape.bits == 8 ? static_cast<int8_t>(code(n, k)) : static_cast<int>(code(n, k)) - (1 << (shape.bits - 1));
  }
  float scale(int64_t n, int64_t g) const { return scales[static_cast<size_t>(n * shape.groups + g)]; }
  int zero(int64_t n, int64_t g) const { return has_zero ? zeros[static_cast<size_t>(n * shape.groups + g)] : 0; }
};

inline fragment_weight random_fragments(const lowbit::format_row& format, int64_t n, int64_t k, int64_t group_k,
                                        int scale_dtype, bool has_zero, random_source& random) {
  fragment_weight w{};
  w.format = format;
  w.shape = fragment_shape::of(n, k, 1, group_k, format.bits);
  const fragment_shape& s = w.shape;
  w.scale_dtype = scale_dtype;
  w.has_zero = has_zero;
  w.codes.resize(static_cast<size_t>(n * k));
  for (uint8_t& c : w.codes) c = static_cast<uint8_t>(random.below(int64_t{1} << format.bits));
  const int64_t size = lowbit::dtype_bytes(scale_dtype);
  auto& p = w.packed;
  p.codes_offset = lowbit::packed_header_bytes;
  p.scales_offset = p.codes_offset + s.code_bytes();
  p.zero_points_offset = has_zero ? p.scales_offset + s.num_scales() * size : 0;
  p.column_sums_offset = p.scales_offset + s.num_scales() * (size + has_zero);
  const int64_t total = p.column_sums_offset + s.num_scales() * 4;
  w.bytes.resize(static_cast<size_t>(total));
  const float global_scale = 1;
  std::memcpy(&w.bytes[offsetof(lowbit::packed_header, global_scale)], &global_scale, sizeof global_scale);
  for (int64_t i = 0; i < n; ++i) {
    for (int64_t j = 0; j < k; ++j) {
      if (!std::isfinite(format.values[w.code(i, j)])) w.codes[static_cast<size_t>(i * k + j)] = 0x30;
      const int64_t bit = s.code_bit(i, s.column(j));
      w.bytes[static_cast<size_t>(p.codes_offset + bit / 8)] |= static_cast<uint8_t>(w.code(i, j) << bit % 8);
    }
    for (int64_t g = 0; g < s.groups; ++g) {
      uint8_t* const scale = &w.bytes[static_cast<size_t>(p.scales_offset)];
      if (scale_dtype == LOWBIT_E8M0)  // rows whose scales span little, and others
        scale[s.scale_index(i, g)] =
            static_cast<uint8_t>(i % 64 < 60 || i < 64 ? 122 + random.below(12) : 100 + random.below(50));
      else if (scale_dtype == LOWBIT_E4M3)
        scale[s.scale_index(i, g)] = static_cast<uint8_t>(1 + random.below(0x7e));
      else
        lowbit::store_from_f32(scale, s.scale_index(i, g), scale_dtype, random.uniform(0.01f, 2.0f));
      w.scales.push_back(lowbit::load_as_f32(scale, s.scale_index(i, g), scale_dtype));
      w.zeros.push_back(static_cast<int>(random.below(int64_t{1} << s.bits)) - (1 << (s.bits - 1)));
      if (has_zero)
        w.bytes[static_cast<size_t>(p.zero_points_offset + s.scale_index(i, g))] = static_cast<uint8_t>(w.zeros.back());
      int32_t sum = 0;
      for (int64_t j = g * group_k; j < (g + 1) * group_k && j < k; ++j) sum += w.value(i, j);
      std::memcpy(&w.bytes[static_cast<size_t>(p.column_sums_offset + s.scale_index(i, g) * 4)], &sum, 4);
    }
  }
  p.shape = s;
  p.scale_dtype = scale_dtype;
  return w;
}

// x is [m][k] bytes, `stride` apart.
struct product {
  const fragment_weight& w;
  int64_t m, x_stride, y_stride;
  int x_dtype, y_dtype, bias_dtype;
  bool has_bias, has_x_zero = false;
  int64_t x_group = 0;
  lowbit::cuda::accumulation accumulate = lowbit::cuda::accumulation::promoted;
  std::vector<uint8_t> x, bias;
  std::vector<float> x_scale;
  std::vector<int32_t> x_zero;
  std::vector<uint8_t> y;
  bool refused = false;
  bool may_fail = false;  // of a kernel with a planted bug

  product(const fragment_weight& weight, int64_t rows, int dtype, random_source& random)
      : w(weight),
        m(rows),
        x_stride(weight.shape.k + random.of({0, 0, 3, 16})),
        y_stride(weight.shape.n + random.of({0, 0, 1, 24})),
        x_dtype(dtype),
        y_dtype(random.of({LOWBIT_F32, LOWBIT_F16, LOWBIT_BF16})),
        bias_dtype(random.of({LOWBIT_F32, LOWBIT_F16, LOWBIT_BF16})),
        has_bias(random.below(2)) {
    x.resize(static_cast<size_t>((m - 1) * x_stride + w.shape.k));
    for (uint8_t& v : x) {
      v = static_cast<uint8_t>(random.below(256));
      if (dtype == LOWBIT_E4M3 && (v & 0x7f) == 0x7f) v = 0x30;
    }
    bias.resize(static_cast<size_t>(w.shape.n * lowbit::dtype_bytes(bias_dtype)));
    for (int64_t i = 0; i < w.shape.n; ++i) lowbit::store_from_f32(bias.data(), i, bias_dtype, random.uniform(-4, 4));
  }
  size_t y_bytes() const {
    return static_cast<size_t>(((m - 1) * y_stride + w.shape.n) * lowbit::dtype_bytes(y_dtype));
  }
  float bias_at(int64_t n) const { return has_bias ? lowbit::load_as_f32(bias.data(), n, bias_dtype) : 0.0f; }

  int sms = 132;
  lowbit::cuda::device_info device() const { return {90, sms, 227 << 10, 50 << 20}; }

  // The row itself, unless it refuses more than m: that is for choosing among rows that give the same. What it may not
  // touch is an error of the emulator.
  bool run(const lowbit::cuda::kernel_row& row, const std::string& what) {
    emulator::buffer<uint8_t> weight(w.bytes.data(), w.bytes.size()), x_device(x.data(), x.size()),
        bias_device(bias.data(), bias.size()), y_device(y_bytes());
    emulator::buffer<float> scale_device(x_scale.data(), x_scale.size());
    emulator::buffer<int32_t> zero_device(x_zero.empty() ? std::vector<int32_t>{0} : x_zero);
    lowbit::cuda::gemm_problem p{};
    p.w = w.packed;
    p.w.format = &w.format;
    p.w.data = weight.data();
    p.m = m;
    p.x = x_device.data();
    p.x_dtype = x_dtype;
    p.x_stride = x_stride;
    p.bias = has_bias ? bias_device.data() : nullptr;
    p.bias_dtype = bias_dtype;
    p.y = y_device.data();
    p.y_dtype = y_dtype;
    p.y_stride = y_stride;
    p.activation = LOWBIT_STATIC;
    p.x_scale = scale_device.data();
    p.x_zero_point = has_x_zero ? zero_device.data() : nullptr;
    p.num_x_scales = static_cast<int64_t>(x_scale.size());
    p.x_group = x_group;
    p.accumulate = accumulate;
    if (const char* reason = row.refuses(p, device()))
      if (!std::strstr(reason, "rows of x")) return refused = true, false;
    emulator::buffer<uint8_t> workspace(static_cast<size_t>(row.workspace(p, device())) + 1);
    p.workspace = workspace.data();
    const bool done = row.run(p, device()) == LOWBIT_OK && emulator::failure().empty();
    if (may_fail && !done) return false;
    CHECK(done, "%s: %s: %s", row.name, what.c_str(), emulator::failure().c_str());
    if (done) {
      y = y_device.values_or(0xa5);
      for (int64_t i = 0; i < m; ++i)
        for (int64_t j = 0; j < w.shape.n; ++j)
          if (!emulator::written(y_device.data() + (i * y_stride + j) * lowbit::dtype_bytes(y_dtype),
                                 static_cast<size_t>(lowbit::dtype_bytes(y_dtype))))
            return test::fail(__FILE__, __LINE__, "%s: %s: y[%lld][%lld] was not written", row.name, what.c_str(),
                              static_cast<long long>(i), static_cast<long long>(j)),
                   false;
      const int64_t size = lowbit::dtype_bytes(y_dtype);
      for (int64_t i = 0; i + 1 < m; ++i)
        if (y_stride > w.shape.n)
          CHECK(!emulator::written(y_device.data() + (i * y_stride + w.shape.n) * size, 1),
                "%s: %s: wrote beyond row %lld", row.name, what.c_str(), static_cast<long long>(i));
    }
    return done;
  }
  float y_at(int64_t i, int64_t n) const { return lowbit::load_as_f32(y.data(), i * y_stride + n, y_dtype); }
  std::string describe() const {
    char text[256];
    std::snprintf(text, sizeof text, "%d bits %lld x %lld x %lld, groups of %lld, scales %s%s, y %s%s%s, x group %lld",
                  w.shape.bits, static_cast<long long>(m), static_cast<long long>(w.shape.n),
                  static_cast<long long>(w.shape.k), static_cast<long long>(w.shape.group_k),
                  lowbit::dtype_name(w.scale_dtype), w.has_zero ? ", zero points" : "", lowbit::dtype_name(y_dtype),
                  has_bias ? ", bias" : "", has_x_zero ? ", x zero points" : "", static_cast<long long>(x_group));
    return text;
  }
};
