// Rows of the fp8 table: within the contract's bound of the exact sums, and the same bits from every row, so for every
// m.
#include "fragments_support.h"

namespace lowbit::cuda::sm89 {
extern const kernel_row fp8_rows[];
extern const int num_fp8_rows;
}  // namespace lowbit::cuda::sm89
using lowbit::cuda::accumulation;
using lowbit::cuda::sm89::fp8_rows, lowbit::cuda::sm89::num_fp8_rows;

namespace {

const lowbit::format_row& e4m3_format() { return lowbit::format_at(lowbit::find_format("fp8_e4m3")); }

float e4m3(uint8_t bits) { return lowbit::e4m3.value(bits); }

void scale_rows(product& p, random_source& random) {
  const int64_t count = p.x_group ? p.m * lowbit::ceil_div(p.w.shape.k, p.x_group) : random.below(2) ? p.m : 1;
  p.x_scale.resize(static_cast<size_t>(count));
  for (float& v : p.x_scale) v = random.uniform(0.001f, 0.1f);
}

// `relative`: of sum |x W|, what the tensor core's own additions may lose.
void check_bound(const lowbit::cuda::kernel_row& row, const product& p, double relative) {
  const fragment_shape& s = p.w.shape;
  for (int64_t i = 0; i < p.m; ++i)
    for (int64_t n = 0; n < s.n; ++n) {
      double sum = 0, magnitude = 0;
      for (int64_t k = 0; k < s.k; ++k) {
        const float x_scale =
            p.x_scale[static_cast<size_t>(p.x_group               ? i * lowbit::ceil_div(s.k, p.x_group) + k / p.x_group
                                          : p.x_scale.size() == 1 ? 0
                                                                  : i)];
        const double term = static_cast<double>(e4m3(p.x[static_cast<size_t>(i * p.x_stride + k)])) *
                            static_cast<double>(e4m3(static_cast<uint8_t>(p.w.code(n, k)))) *
                            static_cast<double>(x_scale) * static_cast<double>(p.w.scale(n, k / s.group_k));
        sum += term;
        magnitude += std::fabs(term);
      }
      sum += static_cast<double>(p.bias_at(n));
      const double eps = p.y_dtype == LOWBIT_F32 ? 0x1p-23 : p.y_dtype == LOWBIT_F16 ? 0x1p-11 : 0x1p-8;
      const double bound = magnitude * relative + std::fabs(sum) * eps + 0x1p-24;
      const double got = static_cast<double>(p.y_at(i, n));
      if (p.y_dtype == LOWBIT_F16 && std::fabs(sum) > 65000) continue;  // may round to inf
      CHECK(std::fabs(got - sum) <= bound, "%s: y[%lld][%lld] is %.9g, exactly %.9g, may differ by %.3g: %s", row.name,
            static_cast<long long>(i), static_cast<long long>(n), got, sum, bound, p.describe().c_str());
    }
}

struct choice {
  int64_t group_k, x_group;
  accumulation accumulate;
};

std::vector<choice> choices(int64_t k) {
  return {{k, 0, accumulation::promoted}, {k, 0, accumulation::fast},       {128, 0, accumulation::promoted},
          {128, 128, accumulation::fast}, {k, 128, accumulation::promoted}, {256, 128, accumulation::promoted}};
}

product make(const fragment_weight& w, int64_t m, const choice& c, random_source& random) {
  product p(w, m, LOWBIT_E4M3, random);
  p.x_group = c.x_group;
  p.accumulate = c.accumulate;
  scale_rows(p, random);
  return p;
}

}  // namespace

TEST(fp8_tile_shapes) {
  for (int r = 0; r < num_fp8_rows; ++r) {
    const auto& row = fp8_rows[r];
    int turn = 0;
    for (const int64_t m : {int64_t{1}, int64_t{row.mr} - 1, int64_t{row.mr} + 1})
      for (const int64_t n : {int64_t{1}, int64_t{row.nr} - 3, int64_t{row.nr} + 35}) {
        const int64_t k = std::initializer_list<int64_t>{1, 100, 128, 130, 1117}.begin()[turn % 5];
        random_source random(static_cast<uint64_t>(turn));
        const choice c = choices(k)[static_cast<size_t>(turn % 6)];
        const fragment_weight w =
            random_fragments(e4m3_format(), n, k, c.group_k, random.of({LOWBIT_F32, LOWBIT_BF16}), false, random);
        product p = make(w, m, c, random);
        emulator::options options;
        options.seed = static_cast<uint32_t>(turn++ % 4);
        const emulator::with with(options);
        if (p.run(row, p.describe())) check_bound(row, p, (static_cast<double>(k) / 32 + 4) * 0x1p-23);
        CHECK(!(p.refused && std::strstr(row.name, "_64x128")), "%s", p.describe().c_str());
      }
  }
}

// As Hopper adds: products aligned to the largest, 13 bits behind the point, and then the same from all.
TEST(fp8_same_bits) {
  emulator::options options;
  options.fp8 = emulator::fp8_sums::truncated;
  const emulator::with with(options);
  for (const int64_t k : {700, 5000}) {
    for (const choice& c : choices(k)) {
      random_source random(11);
      const fragment_weight w = random_fragments(e4m3_format(), 37, k, c.group_k, LOWBIT_F32, false, random);
      product all = make(w, 35, c, random);
      bool first = true;
      std::vector<uint8_t> wanted;
      for (int r = 0; r < num_fp8_rows; ++r) {
        const auto& row = fp8_rows[r];
        if (!all.run(row, all.describe())) continue;
        check_bound(row, all, 0x1p-9);
        if (first) wanted = all.y;
        first = false;
        CHECK(all.y == wanted, "%s differs from %s: %s", row.name, fp8_rows[0].name, all.describe().c_str());
        if (k > 1000) continue;
        product one = all;  // its row 20 alone
        one.m = 1;
        one.x.assign(all.x.begin() + 20 * all.x_stride, all.x.begin() + 20 * all.x_stride + k);
        const int64_t scales = all.x_group ? lowbit::ceil_div(k, all.x_group) : 1;
        if (all.x_scale.size() > 1)
          one.x_scale.assign(all.x_scale.begin() + 20 * scales, all.x_scale.begin() + 21 * scales);
        if (one.run(row, one.describe()))
          for (int64_t n = 0; n < 37; ++n)
            CHECK(one.y_at(0, n) == all.y_at(20, n), "%s: y[20][%lld] alone: %s", row.name, static_cast<long long>(n),
                  all.describe().c_str());
      }
      CHECK(!first, "nobody ran %s", all.describe().c_str());
    }
  }
}

TEST(fp8_nan) {
  random_source random(5);
  const fragment_weight w = random_fragments(e4m3_format(), 20, 300, 300, LOWBIT_F32, false, random);
  for (int r = 0; r < num_fp8_rows; ++r) {
    product p = make(w, 3, {300, 0, accumulation::promoted}, random);
    p.x[static_cast<size_t>(p.x_stride + 150)] = 0x7f;
    if (!p.run(fp8_rows[r], p.describe())) continue;
    for (int64_t n = 0; n < 20; ++n) {
      CHECK(std::isnan(p.y_at(1, n)), "%s", fp8_rows[r].name);
      CHECK(!std::isnan(p.y_at(0, n)) && !std::isnan(p.y_at(2, n)), "%s", fp8_rows[r].name);
    }
  }
}

TEST(fp8_accesses) {
  emulator::clear_access_counts();
  for (int r = 0; r < num_fp8_rows; ++r) {
    random_source random(3);
    const bool blocks = r % 2;
    const fragment_weight w = random_fragments(e4m3_format(), 128, 512, blocks ? 128 : 512, LOWBIT_F32, false, random);
    product p = make(w, fp8_rows[r].mr, {0, blocks ? 128 : 0, accumulation::fast}, random);
    p.x_stride = 512;
    p.y_stride = 128;
    p.run(fp8_rows[r], p.describe());
  }
  emulator::print_access_counts();
  const std::string worst = emulator::worse_than(1.0, 4.0);
  CHECK(worst.empty(), "%s", worst.c_str());
}
