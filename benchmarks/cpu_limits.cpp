// The CPU kernels against the limits of the machine they run on, without Python, torch or peers:
//
//   cmake -S . -B build -DLOWBIT_BUILD_BENCHMARKS=ON && cmake --build build && build/cpu_limits --threads 2 --m 1,4
//
// Each cell is a scheme, a shape and m: the median time of calls on weights that are cold (512 MiB of copies in turn),
// and the percentage of the larger of two times, bytes over the read bandwidth and multiply-adds over the multiply
// peak. Both limits are measured before and after the cells. `growth` is how much faster time grew from the m before
// than that limit did. With --cached the weight is one panel of 128 rows that stays in L2, and the figure is cycles for
// a line of 64 bytes of codes.
#include <sys/mman.h>

#include <algorithm>
#include <atomic>
#include <chrono>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <memory>
#include <random>
#include <string>
#include <thread>
#include <vector>

#include "lowbit/lowbit.h"

namespace {

double now() { return std::chrono::duration<double>(std::chrono::steady_clock::now().time_since_epoch()).count(); }

void check(lowbit_status status) {
  if (status == LOWBIT_OK) return;
  std::fprintf(stderr, "%s\n", lowbit_last_error());
  std::exit(1);
}

double median(std::vector<double> v) {
  std::nth_element(v.begin(), v.begin() + static_cast<std::ptrdiff_t>(v.size() / 2), v.end());
  return v[v.size() / 2];
}

// Threads that wait by spinning: waking one takes as long as a small product.
class pool {
 public:
  explicit pool(int threads) : parallel_{run, this, threads} {
    for (int i = 1; i < threads; ++i) workers_.emplace_back([this, i] { serve(i); });
  }
  ~pool() {
    body_ = nullptr;
    generation_.fetch_add(1);
    for (std::thread& t : workers_) t.join();
  }
  const lowbit_parallel* get() const { return parallel_.num_threads > 1 ? &parallel_ : nullptr; }

 private:
  using body = void (*)(void*, int64_t, int64_t);

  static void run(void* context, int64_t count, body b, void* arg) {
    pool& p = *static_cast<pool*>(context);
    p.body_ = b, p.arg_ = arg, p.count_ = count;
    p.busy_.store(static_cast<int>(p.workers_.size()));
    p.generation_.fetch_add(1);
    b(arg, 0, count / p.parallel_.num_threads);
    while (p.busy_.load()) pause();
  }
  void serve(int i) {
    for (int seen = 0;; ++seen) {
      while (generation_.load() == seen) pause();
      if (!body_) return;
      const int64_t threads = parallel_.num_threads;
      body_(arg_, count_ * i / threads, count_ * (i + 1) / threads);
      busy_.fetch_sub(1);
    }
  }
  static void pause() {
#if defined(__x86_64__)
    __builtin_ia32_pause();
#endif
  }

  std::atomic<int> generation_{0}, busy_{0};
  body body_ = nullptr;
  void* arg_ = nullptr;
  int64_t count_ = 0;
  lowbit_parallel parallel_;
  std::vector<std::thread> workers_;
};

struct scheme {
  const char *name, *format;
  lowbit_family family;
  lowbit_dtype x_dtype;
  int64_t group;  // of columns; 0: a row
};

constexpr scheme schemes[] = {
    {"W4A16", "int4", LOWBIT_WEIGHT_ONLY, LOWBIT_BF16, 128},
    {"W8A16", "int8", LOWBIT_WEIGHT_ONLY, LOWBIT_BF16, 128},
    {"FP8", "fp8_e4m3", LOWBIT_WEIGHT_ONLY, LOWBIT_BF16, 0},
    {"FP8_BLOCK", "fp8_e4m3", LOWBIT_WEIGHT_ONLY, LOWBIT_BF16, 128},
    {"MXFP8A16", "mxfp8", LOWBIT_WEIGHT_ONLY, LOWBIT_BF16, 32},
    {"MXFP4A16", "mxfp4", LOWBIT_WEIGHT_ONLY, LOWBIT_BF16, 32},
    {"NVFP4A16", "nvfp4", LOWBIT_WEIGHT_ONLY, LOWBIT_BF16, 16},
    {"NF4", "nf4", LOWBIT_WEIGHT_ONLY, LOWBIT_BF16, 64},
    {"W4A32", "int4", LOWBIT_WEIGHT_ONLY, LOWBIT_F32, 128},
    {"W8A32", "int8", LOWBIT_WEIGHT_ONLY, LOWBIT_F32, 128},
    {"W4A8", "int4", LOWBIT_INTEGER, LOWBIT_BF16, 128},
    {"W8A8", "int8", LOWBIT_INTEGER, LOWBIT_BF16, 0},
};

struct options {
  int threads = 1;
  double seconds = 0.25;  // of a cell
  bool cached = false;
  std::vector<std::string> schemes;
  std::vector<std::pair<int64_t, int64_t>> shapes;
  std::vector<int64_t> rows;
};

struct limits {
  double bytes = 0, f32 = 0, bf16 = 0, int8 = 0;  // per second

  double multiply(const scheme& s) const {
    if (s.family == LOWBIT_INTEGER) return int8;
    return s.x_dtype == LOWBIT_F32 ? f32 : std::max(f32, bf16);
  }
};

limits probe(const lowbit_parallel* parallel) {
  const auto rate = [&](const char* what, double seconds) {
    double result = 0;
    return lowbit_probe(what, seconds, parallel, &result) == LOWBIT_OK ? result : 0;
  };
  return {rate("read_bandwidth", 0.4), rate("f32", 0.05), rate("bf16", 0.05), rate("int8", 0.05)};
}

// A packed weight of random codes, as often as keeps it cold.
class packed_copies {
 public:
  packed_copies(const scheme& s, int64_t n, int64_t k, size_t total) {
    lowbit_format format;
    lowbit_format_info info;
    check(lowbit_format_find(s.format, &format));
    check(lowbit_format_get(format, &info));
    const int64_t group = info.block_k ? info.block_k : s.group ? s.group : k, groups = (k + group - 1) / group;
    std::mt19937 random(1);
    std::vector<uint8_t> codes(static_cast<size_t>(n * k * info.bits / 8));
    const bool has_nan = info.bits == 8 && !info.is_integer;
    for (uint8_t& c : codes) c = static_cast<uint8_t>(random() & (has_nan ? 0xf7 : 0xff));
    const lowbit_dtype dtype = info.scale_dtype < 0 ? LOWBIT_BF16 : static_cast<lowbit_dtype>(info.scale_dtype);
    std::vector<uint8_t> scales;
    for (int64_t i = 0; i < n * groups; ++i) {
      const uint8_t small = static_cast<uint8_t>(random() & 7);
      if (dtype == LOWBIT_BF16) scales.push_back(static_cast<uint8_t>(random()));
      scales.push_back(dtype == LOWBIT_BF16 ? 0x3c : static_cast<uint8_t>((dtype == LOWBIT_E8M0 ? 116 : 0x30) + small));
    }
    lowbit_weight w{};
    w.format = format, w.n = n, w.k = k, w.group_n = 1, w.group_k = group;
    w.codes = codes.data(), w.scales = scales.data(), w.scale_dtype = dtype, w.global_scale = 1;
    check(lowbit_packed_bytes(&w, &bytes_));
    canonical_ = static_cast<double>(codes.size() + scales.size());
    lines_ = static_cast<double>(codes.size()) / 64;
    count_ = total ? std::max<size_t>(2, total / bytes_) : 1;
    stride_ = (bytes_ + 4095) / 4096 * 4096;
    data_.reset(static_cast<uint8_t*>(std::aligned_alloc(huge_page, (count_ * stride_ / huge_page + 1) * huge_page)));
    madvise(data_.get(), count_ * stride_, MADV_HUGEPAGE);
    check(lowbit_pack(&w, data_.get(), bytes_, nullptr));
    for (size_t i = 1; i < count_; ++i) std::memcpy(data_.get() + i * stride_, data_.get(), bytes_);
  }
  const void* next() { return data_.get() + next_++ % count_ * stride_; }
  size_t bytes() const { return bytes_; }
  double canonical_bytes() const { return canonical_; }
  double lines() const { return lines_; }

 private:
  struct release {
    void operator()(uint8_t* p) const { std::free(p); }
  };
  static constexpr size_t huge_page = size_t{2} << 20;
  std::unique_ptr<uint8_t, release> data_;
  size_t bytes_ = 0, stride_ = 0, count_ = 0, next_ = 0;
  double canonical_ = 0, lines_ = 0;
};

struct cell {
  const scheme* of;
  int64_t n, k, m;
  double seconds, fast, bytes, operations, lines;
};

// Seconds of a call: the median, and the 10th percentile.
cell measure(const scheme& s, int64_t n, int64_t k, int64_t m, packed_copies& weights, const lowbit_parallel* parallel,
             double seconds) {
  const size_t size = s.x_dtype == LOWBIT_F32 ? 4 : 2;
  std::vector<uint8_t> x(static_cast<size_t>(m * k) * size), y(static_cast<size_t>(m * n) * size);
  std::mt19937 random(2);
  for (size_t i = 0; i < x.size(); i += size) {
    const float value = static_cast<float>(static_cast<int>(random() % 2001) - 1000) * 1e-3f;
    std::memcpy(&x[i], reinterpret_cast<const uint8_t*>(&value) + 4 - size, size);
  }
  lowbit_gemm_args args{};
  args.family = s.family, args.m = m;
  args.x = x.data(), args.x_dtype = s.x_dtype, args.x_stride = k;
  args.packed_bytes = weights.bytes();
  args.y = y.data(), args.y_dtype = s.x_dtype, args.y_stride = n;
  args.parallel = parallel;
  std::vector<double> times;
  const double begin = now();
  for (double end = 0; times.size() < 5 || end < begin + seconds;) {
    args.packed = weights.next();
    const double start = now();
    check(lowbit_gemm(&args));
    end = now();
    times.push_back(end - start);
  }
  times.erase(times.begin());
  const double mid = median(times);
  std::nth_element(times.begin(), times.begin() + static_cast<std::ptrdiff_t>(times.size() / 10), times.end());
  return {&s,
          n,
          k,
          m,
          mid,
          times[times.size() / 10],
          weights.canonical_bytes() + static_cast<double>(m * (n + k)) * static_cast<double>(size),
          2.0 * static_cast<double>(m) * static_cast<double>(n) * static_cast<double>(k),
          weights.lines()};
}

std::vector<std::string> split(const char* text) {
  std::vector<std::string> parts(1);
  for (; *text; ++text)
    if (*text == ',')
      parts.emplace_back();
    else
      parts.back() += *text;
  return parts;
}

options parse(int argc, char** argv) {
  options o;
  for (int i = 1; i < argc; ++i) {
    const std::string name = argv[i];
    if (name == "--cached") {
      o.cached = true;
    } else if (i + 1 == argc) {
      std::fprintf(stderr, "%s: [--threads N] [--seconds S] [--cached] [--schemes A,B] [--shapes NxK,..] [--m M,..]\n",
                   argv[0]);
      std::exit(2);
    } else if (name == "--threads") {
      o.threads = std::atoi(argv[++i]);
    } else if (name == "--seconds") {
      o.seconds = std::atof(argv[++i]);
    } else if (name == "--schemes") {
      o.schemes = split(argv[++i]);
    } else if (name == "--m") {
      for (const std::string& m : split(argv[++i])) o.rows.push_back(std::atoll(m.c_str()));
    } else if (name == "--shapes") {
      for (const std::string& shape : split(argv[++i]))
        o.shapes.emplace_back(std::atoll(shape.c_str()), std::atoll(shape.c_str() + shape.find('x') + 1));
    }
  }
  if (o.shapes.empty()) o.shapes = {{4096, 4096}};
  if (o.cached) o.shapes = {{128, 4096}};
  if (o.rows.empty()) o.rows = {1, 4};
  return o;
}

// Cycles of this core in a second: a chain of multiplications, 3 cycles each. The best of many short ones, which
// nothing interrupts.
double clock_rate() {
  constexpr int64_t count = 100000;
  uint64_t x = 1;
  double best = 0;
  for (int turn = 0; turn < 200; ++turn) {
    const double begin = now();
    for (int64_t i = 0; i < count; ++i)
#if defined(__x86_64__)
      __asm__ volatile("imul %0, %0\n imul %0, %0" : "+r"(x));
#else
      __asm__ volatile("mul %0, %0, %0\n mul %0, %0, %0" : "+r"(x));
#endif
    best = std::max(best, 6.0 * static_cast<double>(count) / (now() - begin));
  }
  return best;
}

}  // namespace

int main(int argc, char** argv) {
  const options o = parse(argc, argv);
  pool threads(o.threads);
  const lowbit_parallel* parallel = threads.get();
  std::printf("level %s, %d threads\n", lowbit_cpu_isa_name(lowbit_cpu_isa()), o.threads);
  const limits before = o.cached ? limits{} : probe(parallel);
  std::vector<cell> cells;
  for (const scheme& s : schemes) {
    if (!o.schemes.empty() && std::find(o.schemes.begin(), o.schemes.end(), s.name) == o.schemes.end()) continue;
    for (const auto& [n, k] : o.shapes) {
      packed_copies weights(s, n, k, o.cached ? 0 : size_t{512} << 20);
      for (int64_t m : o.rows) cells.push_back(measure(s, n, k, m, weights, parallel, o.seconds));
    }
  }
  if (o.cached) {
    const double rate = clock_rate();
    std::printf("%.2f GHz\n%-10s %5s %12s\n", rate * 1e-9, "scheme", "m", "cycles/line");
    for (const cell& c : cells)
      std::printf("%-10s %5lld %12.1f\n", c.of->name, static_cast<long long>(c.m), c.fast * rate / c.lines);
    return 0;
  }
  const limits after = probe(parallel);
  const limits l{(before.bytes + after.bytes) / 2, (before.f32 + after.f32) / 2, (before.bf16 + after.bf16) / 2,
                 (before.int8 + after.int8) / 2};
  std::printf("read %.1f GB/s (%.1f, %.1f), f32 %.3f, bf16 %.3f, int8 %.3f TOPS\n", l.bytes * 1e-9, before.bytes * 1e-9,
              after.bytes * 1e-9, l.f32 * 1e-12, l.bf16 * 1e-12, l.int8 * 1e-12);
  std::printf("%-10s %12s %5s %9s %9s %7s %7s %9s %s\n", "scheme", "n x k", "m", "us", "p10", "GB/s", "TOPS", "% limit",
              "growth");
  const auto limit = [&](const cell& c) { return std::max(c.bytes / l.bytes, c.operations / l.multiply(*c.of)); };
  for (size_t i = 0; i < cells.size(); ++i) {
    const cell& c = cells[i];
    char shape[32];
    std::snprintf(shape, sizeof shape, "%lldx%lld", static_cast<long long>(c.n), static_cast<long long>(c.k));
    std::printf("%-10s %12s %5lld %9.1f %9.1f %7.1f %7.3f %7.0f %c", c.of->name, shape, static_cast<long long>(c.m),
                c.seconds * 1e6, c.fast * 1e6, c.bytes / c.seconds * 1e-9, c.operations / c.seconds * 1e-12,
                100 * limit(c) / c.seconds, c.bytes / l.bytes > c.operations / l.multiply(*c.of) ? 'm' : 'x');
    if (i && cells[i - 1].of == c.of && cells[i - 1].n == c.n && cells[i - 1].k == c.k)
      std::printf(" %6.2f", c.seconds / cells[i - 1].seconds / (limit(c) / limit(cells[i - 1])));
    std::printf("\n");
  }
}
