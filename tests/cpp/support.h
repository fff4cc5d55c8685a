// What tests of weights and kernels share: random weights in canonical form, their values in double, threads, and
// memory that ends where its data ends.
#pragma once

#include <sys/mman.h>
#include <unistd.h>

#include <cmath>
#include <cstdint>
#include <cstring>
#include <memory>
#include <random>
#include <thread>
#include <vector>

#include "dispatch/cpu.h"
#include "layout/packed.h"
#include "test.h"

#if defined(__SANITIZE_ADDRESS__)
constexpr bool red_zones = true;
#else
constexpr bool red_zones = false;
#endif
#if defined(LOWBIT_EMULATED)
constexpr bool emulated = true;
#else
constexpr bool emulated = false;
#endif
constexpr bool sanitized = red_zones || emulated;  // either way slow: tests take some of the shapes

using lowbit::ceil_div;

// A sequence of its own for every test, the same on every machine.
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

// Bytes whose end is the end of what may be touched: a page that faults follows, or ASan's red zone. Reads and writes
// before the first byte are caught by ASan, else only where they leave the mapping.
class exact_bytes {
 public:
  explicit exact_bytes(size_t bytes = 0) : size_(bytes) {
    if (red_zones) {
      heap_.reset(new uint8_t[bytes]);
      data_ = heap_.get();
    } else {
      const size_t page = static_cast<size_t>(sysconf(_SC_PAGESIZE));
      const size_t body = (bytes + page - 1) / page * page;
      mapped_ = body + page;
      base_ = static_cast<uint8_t*>(mmap(nullptr, mapped_, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0));
      mprotect(base_ + body, page, PROT_NONE);
      data_ = base_ + body - bytes;
    }
  }
  exact_bytes(const void* from, size_t bytes) : exact_bytes(bytes) {
    if (bytes) std::memcpy(data_, from, bytes);
  }
  exact_bytes(exact_bytes&& other) noexcept { swap(other); }
  exact_bytes& operator=(exact_bytes&& other) noexcept {
    swap(other);
    return *this;
  }
  ~exact_bytes() {
    if (base_) munmap(base_, mapped_);
  }
  void* data() const { return data_; }
  uint8_t* bytes() const { return data_; }
  size_t size() const { return size_; }

 private:
  void swap(exact_bytes& other) {
    std::swap(heap_, other.heap_);
    std::swap(base_, other.base_);
    std::swap(data_, other.data_);
    std::swap(mapped_, other.mapped_);
    std::swap(size_, other.size_);
  }
  std::unique_ptr<uint8_t[]> heap_;
  uint8_t *base_ = nullptr, *data_ = nullptr;
  size_t mapped_ = 0, size_ = 0;
};

// Numbers in a dtype, exactly as long as they are.
inline exact_bytes numbers(const std::vector<float>& values, int dtype) {
  exact_bytes out(values.size() * static_cast<size_t>(lowbit::dtype_bytes(dtype)));
  for (size_t i = 0; i < values.size(); ++i) {
    if (dtype == LOWBIT_I8)
      out.bytes()[i] = static_cast<uint8_t>(static_cast<int8_t>(values[i]));
    else
      lowbit::store_from_f32(out.data(), static_cast<int64_t>(i), dtype, values[i]);
  }
  return out;
}

// New threads for every call: the ranges differ from those of one thread, and so do all thread-local buffers.
struct thread_pool {
  lowbit_parallel parallel;
  explicit thread_pool(int threads) : parallel{run, this, threads} {}
  static void run(void* context, int64_t count, void (*body)(void*, int64_t, int64_t), void* arg) {
    const int64_t threads = static_cast<thread_pool*>(context)->parallel.num_threads;
    std::vector<std::thread> running;
    for (int64_t t = 0; t < threads; ++t) {
      const int64_t begin = count * t / threads, end = count * (t + 1) / threads;
      if (begin < end) running.emplace_back([=] { body(arg, begin, end); });
    }
    for (std::thread& t : running) t.join();
  }
};

// A weight in canonical form, with its memory.
struct canonical_weight {
  lowbit_weight description{};
  std::vector<uint8_t> codes, scales, mins, super_scales, super_mins;
  std::vector<int8_t> zero_points;

  const lowbit::format_row& format() const { return lowbit::format_at(description.format); }
  int64_t n() const { return description.n; }
  int64_t k() const { return description.k; }
  int64_t row_bytes() const { return ceil_div(k() * format().bits, 8); }
  int64_t groups() const { return ceil_div(k(), description.group_k); }
  int64_t scale_index(int64_t row, int64_t column) const {
    return row / description.group_n * groups() + column / description.group_k;
  }
  unsigned code(int64_t row, int64_t column) const {
    unsigned code = 0;
    for (int i = 0; i < format().bits; ++i) code |= bit(row, column, i) << i;
    return code;
  }
  void set_code(int64_t row, int64_t column, unsigned code) {
    for (int i = 0; i < format().bits; ++i) {
      const int64_t at = column * format().bits + i;
      uint8_t& byte = codes[static_cast<size_t>(row * row_bytes() + at / 8)];
      byte = static_cast<uint8_t>((byte & ~(1u << at % 8)) | (code >> i & 1) << at % 8);
    }
  }
  // Exact, but for scales that are codes: their definition is fp32 arithmetic.
  double scale(int64_t row, int64_t column) const { return number(scales, super_scales, row, column); }
  double min(int64_t row, int64_t column) const { return mins.empty() ? 0.0 : number(mins, super_mins, row, column); }
  double number(const std::vector<uint8_t>& data, const std::vector<uint8_t>& supers, int64_t row,
                int64_t column) const {
    const int64_t i = scale_index(row, column), each = format().super_groups;
    if (supers.empty()) return static_cast<double>(lowbit::load_as_f32(data.data(), i, description.scale_dtype));
    if (format().scale_values)
      return static_cast<double>(format().scale_values[data[static_cast<size_t>(i)]] *
                                     lowbit::load_as_f32(supers.data(), i / each, LOWBIT_F32) +
                                 description.scale_offset);
    const int64_t super = row * ceil_div(groups(), each) + column / description.group_k / each;
    return static_cast<double>(static_cast<int8_t>(data[static_cast<size_t>(i)])) *
           static_cast<double>(lowbit::load_as_f32(supers.data(), super, LOWBIT_F16));
  }
  int64_t num_supers() const {
    const int64_t each = format().super_groups;
    if (!each) return 0;
    return format().super_flat() ? ceil_div(n() * groups(), each) : n() * ceil_div(groups(), each);
  }
  void set_scale(int64_t index, float value) {
    if (lowbit::is_float_dtype(description.scale_dtype))
      lowbit::store_from_f32(scales.data(), index, description.scale_dtype, value);
  }
  int zero_point(int64_t row, int64_t column) const {
    return zero_points.empty() ? 0 : zero_points[static_cast<size_t>(scale_index(row, column))];
  }
  int64_t num_scales() const { return ceil_div(n(), description.group_n) * groups(); }

  // Without the global scale. Exact: 8 significant bits times at most 24.
  double value(int64_t row, int64_t column) const {
    return (static_cast<double>(format().values[code(row, column)]) - zero_point(row, column)) * scale(row, column) +
           min(row, column);
  }
  int integer(int64_t row, int64_t column) const {
    return static_cast<int>(format().values[code(row, column)]) - zero_point(row, column);
  }

  // Bit i of a code. A row is a stream of bits, the low ones of its bytes first.
  unsigned bit(int64_t row, int64_t column, int i) const {
    const int64_t at = column * format().bits + i;
    return codes[static_cast<size_t>(row * row_bytes() + at / 8)] >> at % 8 & 1u;
  }

  exact_bytes pack(const lowbit_parallel* parallel = nullptr) const {
    size_t bytes = 0;
    CHECK_EQ(lowbit_packed_bytes(&description, &bytes), LOWBIT_OK);
    exact_bytes packed(bytes);
    CHECK(lowbit_pack(&description, packed.data(), bytes, parallel) == LOWBIT_OK, "%s", lowbit_last_error());
    return packed;
  }
};

struct weight_options {
  const char* format;
  int64_t n, k;
  int64_t group_n = 1, group_k = 128;  // of formats that leave it to the caller
  lowbit_dtype scale_dtype = LOWBIT_F32;
  bool zero_point = false;
};

inline canonical_weight random_weight(const weight_options& o, random_source& random) {
  canonical_weight w;
  lowbit_format format = -1;
  CHECK_EQ(lowbit_format_find(o.format, &format), LOWBIT_OK);
  const lowbit::format_row& f = lowbit::format_at(format);
  lowbit_weight& d = w.description;
  d = {};
  d.format = format;
  d.n = o.n;
  d.k = o.k;
  d.group_n = f.block_n ? f.block_n : o.group_n;
  d.group_k = f.block_k ? f.block_k : o.group_k;
  d.scale_dtype = f.scale == lowbit::scale_rule::any_float ? o.scale_dtype : static_cast<lowbit_dtype>(f.scale);
  d.global_scale = 1;
  w.codes.resize(static_cast<size_t>(o.n * w.row_bytes()));
  for (int64_t i = 0; i < o.n; ++i) {
    for (int64_t j = 0; j < o.k; ++j) {
      unsigned code;
      do code = static_cast<unsigned>(random.below(int64_t{1} << f.bits));
      while (!std::isfinite(f.values[code]));
      w.set_code(i, j, code);
    }
  }
  const int64_t count = w.num_scales();
  const auto fill = [&](std::vector<uint8_t>& data, int64_t size, int dtype) {
    data.resize(static_cast<size_t>(size * lowbit::dtype_bytes(dtype)));
    for (int64_t i = 0; i < size; ++i) {
      if (lowbit::is_float_dtype(dtype))
        lowbit::store_from_f32(data.data(), i, dtype, random.uniform(-2, 2));
      else
        data[static_cast<size_t>(i)] = static_cast<uint8_t>(random.below(256));
    }
  };
  fill(w.super_scales, w.num_supers(), f.super_dtype());
  if (f.minimum) {
    fill(w.mins, count, d.scale_dtype);
    fill(w.super_mins, w.num_supers(), f.super_dtype());
  }
  if (f.scale_values) d.scale_offset = random.uniform(0.5f, 1.5f);
  w.scales.resize(static_cast<size_t>(count * lowbit::dtype_bytes(d.scale_dtype)));
  for (int64_t i = 0; i < count; ++i) {
    if (d.scale_dtype == LOWBIT_E8M0)
      w.scales[static_cast<size_t>(i)] = static_cast<uint8_t>(117 + random.below(20));
    else if (d.scale_dtype == LOWBIT_E4M3)
      w.scales[static_cast<size_t>(i)] = static_cast<uint8_t>(random.below(0x7f));
    else if (f.two_levels())
      w.scales[static_cast<size_t>(i)] = static_cast<uint8_t>(random.below(256));
    else
      w.set_scale(i, random.uniform(0.01f, 2.0f) * (f.integer() && random.below(8) == 0 ? -1.0f : 1.0f));
  }
  if (o.zero_point && f.zero_point)
    for (int64_t i = 0; i < count; ++i)
      w.zero_points.push_back(
          static_cast<int8_t>(random.below(f.integer_high() - f.integer_low() + 1) + f.integer_low()));
  if (f.global_scale) d.global_scale = random.uniform(0.001f, 0.1f);
  d.codes = w.codes.data();
  d.scales = w.scales.data();
  d.zero_points = w.zero_points.empty() ? nullptr : w.zero_points.data();
  d.mins = w.mins.empty() ? nullptr : w.mins.data();
  d.super_scales = w.super_scales.empty() ? nullptr : w.super_scales.data();
  d.super_mins = w.super_mins.empty() ? nullptr : w.super_mins.data();
  return w;
}

// Every row of every level's table that runs here, its level set; says which levels do not.
template <class Visit>
void for_each_runnable_kernel(lowbit_family family, const Visit& visit) {
  const int before = lowbit_cpu_isa();
  for (int isa = 0; isa < lowbit::num_cpu_isas(); ++isa) {
    const lowbit::cpu_isa& level = lowbit::cpu_isa_at(isa);
    if (!lowbit::cpu_isa_supported(isa)) {
      std::printf("  skipped: this processor cannot run %s\n", level.name);
      continue;
    }
    CHECK_EQ(lowbit_set_cpu_isa(isa), LOWBIT_OK);
    for (int i = 0; i < level.num_kernels; ++i) {
      const lowbit::kernel_row& row = level.kernels[i];
      if (row.family != family) continue;
      if (lowbit::cpu_has(row.features))
        visit(row);
      else
        std::printf("  skipped: this processor cannot run %s\n", row.name);
    }
  }
  lowbit_set_cpu_isa(before);
}

inline bool takes(const lowbit::kernel_row& row, const char* format) {
  const lowbit::format_row& f = lowbit::format_at(lowbit::find_format(format));
  return row.recipes & lowbit::bit(f.decode) && (!f.minimum || row.recipes & lowbit::minima) &&
         (!f.two_levels() || row.recipes & lowbit::two_levels);
}
inline bool takes(const lowbit::kernel_row& row, lowbit_dtype x) { return row.x_dtypes & lowbit::bit(x); }
inline bool rounds_to_bf16(const lowbit::kernel_row& row) { return std::strstr(row.name, "_bf16_") != nullptr; }
