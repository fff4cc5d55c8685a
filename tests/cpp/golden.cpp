// Multiplications whose results travel between machines: written where one processor runs, read where another does.
//
//   golden write FILE    the best kernel's y for a list of problems made from fixed seeds
//   golden read FILE     every kernel here against it: integer the same bits, weight_only within both bounds
//
// With each problem goes a checksum of its packed weight: the bytes of a layer are the same on every machine.
#include <algorithm>
#include <cstdio>
#include <string>

#define LOWBIT_OWN_MAIN
#include "kernels.h"

namespace {

uint64_t fnv1a(const void* data, size_t bytes) {
  uint64_t hash = 0xcbf29ce484222325u;
  for (size_t i = 0; i < bytes; ++i) hash = (hash ^ static_cast<const uint8_t*>(data)[i]) * 0x100000001b3u;
  return hash;
}

// All formats, activations, dtypes and ways to quantize, with sizes on and off every tile; of integers, what follows
// the sums, too. y is fp32.
template <class Visit>
void for_each_golden_problem(const Visit& visit) {
  random_source random(41);
  for (const lowbit_family family : {LOWBIT_WEIGHT_ONLY, LOWBIT_INTEGER})
    for (lowbit_format format = 0; format < lowbit_num_formats(); ++format)
      for (const lowbit_dtype x : {LOWBIT_F32, LOWBIT_F16, LOWBIT_BF16, LOWBIT_I8})
        for (const int64_t m : {1, 2, 7, 18}) {
          const lowbit::format_row& f = lowbit::format_at(format);
          if (family == LOWBIT_INTEGER ? !f.integer() : x == LOWBIT_I8) continue;
          const int64_t n = random.of({16, 37, 64}), k = random.of({48, 320, 700});
          const canonical_weight w = random_weight(options_of(f.name, n, k, random), random);
          multiplication c(w, m, x, random);
          c.y_dtype = LOWBIT_F32;
          if (family == LOWBIT_INTEGER) {
            choose_activation(c, random);
            c.epilogue.function = static_cast<lowbit_function>(random.below(5));
          }
          visit(family, w, c);
        }
}

// What |y - exact| may be in units of sum |x W|, beside the rounding to y: gemm/contract.h.
double bound_of(const char* kernel, int64_t k, int x_dtype) {
  double bound = static_cast<double>(k + 2) * 0x1p-23;
  if (std::strstr(kernel, "_bf16_")) bound += x_dtype == LOWBIT_BF16 ? 0x1p-8 : 0x1.01p-7;
  return bound;
}

struct record {  // of one problem; then y, m rows of n fp32
  uint64_t packed;
  int64_t family, m, n, k;
  char kernel[64];
};

std::vector<float> dense(const multiplication& c) {
  std::vector<float> y;
  for (int64_t i = 0; i < c.m; ++i)
    for (int64_t n = 0; n < c.w.n(); ++n) y.push_back(static_cast<float>(c.y_at(i, n)));
  return y;
}

int write(std::FILE* file) {
  int64_t count = 0;
  for_each_golden_problem([&](lowbit_family family, const canonical_weight& w, multiplication& c) {
    lowbit_problem problem{};
    problem.family = family;
    problem.format = w.description.format;
    problem.m = c.m;
    problem.n = w.n();
    problem.k = w.k();
    problem.group_k = w.description.group_k;
    problem.x_dtype = c.x_dtype;
    const lowbit::kernel_row* row = lowbit::select_kernel(problem);
    CHECK(row && c.run(*row) == LOWBIT_OK);
    record r{fnv1a(c.packed.data(), c.packed.size()), family, c.m, w.n(), w.k(), {}};
    std::snprintf(r.kernel, sizeof r.kernel, "%s", row->name);
    const std::vector<float> y = dense(c);
    CHECK(std::fwrite(&r, sizeof r, 1, file) == 1 && std::fwrite(y.data(), sizeof(float), y.size(), file) == y.size());
    ++count;
  });
  std::printf("%lld results\n", static_cast<long long>(count));
  return test::failures || !count;
}

void compare(const lowbit::kernel_row& row, const record& r, const canonical_weight& w, const multiplication& c,
             const std::vector<float>& wanted) {
  const std::vector<float> y = dense(c);
  if (row.family == LOWBIT_INTEGER) {
    CHECK(!std::memcmp(y.data(), wanted.data(), y.size() * sizeof(float)), "%s is not %s: %s", row.name, r.kernel,
          describe(w, c).c_str());
    return;
  }
  const double factor = bound_of(row.name, r.k, c.x_dtype) + bound_of(r.kernel, r.k, c.x_dtype);
  std::vector<double> values(static_cast<size_t>(r.k));
  for (int64_t n = 0; n < r.n; ++n) {
    for (int64_t k = 0; k < r.k; ++k) values[static_cast<size_t>(k)] = w.value(n, k);
    for (int64_t i = 0; i < r.m; ++i) {
      double absolute = 0;
      for (int64_t k = 0; k < r.k; ++k) absolute += std::fabs(c.x_at(i, k) * values[static_cast<size_t>(k)]);
      const double here = static_cast<double>(y[static_cast<size_t>(i * r.n + n)]);
      const double there = static_cast<double>(wanted[static_cast<size_t>(i * r.n + n)]);
      const double most = factor * absolute * static_cast<double>(w.description.global_scale) +
                          0x1p-22 * std::max(std::fabs(here), std::fabs(there));
      CHECK(std::fabs(here - there) <= most, "%s %.9g, %s %.9g: %s", row.name, here, r.kernel, there,
            describe(w, c).c_str());
    }
  }
}

int read(std::FILE* file) {
  std::vector<std::pair<record, std::vector<float>>> all;
  std::string kernels;
  for_each_golden_problem([&](lowbit_family family, const canonical_weight& w, multiplication& c) {
    record r{};
    CHECK(std::fread(&r, sizeof r, 1, file) == 1 && r.family == family && r.m == c.m && r.n == w.n() && r.k == w.k(),
          "the file is of other problems: %s", describe(w, c).c_str());
    CHECK_EQ(fnv1a(c.packed.data(), c.packed.size()), r.packed);
    std::vector<float> y(static_cast<size_t>(c.m * w.n()));
    CHECK(std::fread(y.data(), sizeof(float), y.size(), file) == y.size());
    r.kernel[sizeof r.kernel - 1] = 0;
    if (kernels.find(r.kernel) == std::string::npos) kernels += std::string(" ") + r.kernel;
    all.emplace_back(r, std::move(y));
  });
  CHECK(std::fgetc(file) == EOF, "the file holds more problems");
  if (test::failures) return 1;

  int64_t results = 0;
  for (const lowbit_family family : {LOWBIT_WEIGHT_ONLY, LOWBIT_INTEGER})
    for_each_runnable_kernel(family, [&](const lowbit::kernel_row& row) {
      size_t i = 0;
      for_each_golden_problem([&](lowbit_family of, const canonical_weight& w, multiplication& c) {
        const auto& [r, y] = all[i++];
        if (of != row.family || !takes(row, w.format().name) || !takes(row, c.x_dtype)) return;
        CHECK_EQ(c.run(row), LOWBIT_OK);
        compare(row, r, w, c, y);
        ++results;
      });
    });
  std::printf("%lld results of %zu problems %s with those of%s\n", static_cast<long long>(results), all.size(),
              test::failures ? "do not all agree" : "agree", kernels.c_str());
  return test::failures || !results;
}

}  // namespace

int main(int argc, char** argv) {
  const bool writes = argc == 3 && !std::strcmp(argv[1], "write"), reads = argc == 3 && !std::strcmp(argv[1], "read");
  if (!writes && !reads) {
    std::fprintf(stderr, "usage: golden write|read FILE\n");
    return 2;
  }
  std::FILE* file = std::fopen(argv[2], writes ? "wb" : "rb");
  if (!file) {
    std::perror(argv[2]);
    return 2;
  }
  const int failed = writes ? write(file) : read(file);
  return std::fclose(file) || failed;
}
