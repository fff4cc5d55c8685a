// Every row of sm90: TMA, mbarriers and wgmma, against the equations of the contract.
#include "fragments_support.h"

namespace lowbit::cuda::sm90 {
extern const kernel_row integer_rows[], fp8_rows[], fp8_lut16_rows[], weight_only_rows[];
extern const int num_integer_rows, num_fp8_rows, num_fp8_lut16_rows, num_weight_only_rows;
}  // namespace lowbit::cuda::sm90
using lowbit::cuda::kernel_row;
namespace sm90 = lowbit::cuda::sm90;

namespace {

lowbit::format_row format_called(const char* name) { return lowbit::format_at(lowbit::find_format(name)); }

bool says(const kernel_row& row, const char* part) { return std::strstr(row.name, part) != nullptr; }

// TMA takes rows that lie on 16 bytes, other strides are copied; what is between a row's end and the next row must not
// matter. Few SMs: a CTA has several tiles.
void align(product& p, int x_bytes, random_source& random) {
  p.x_stride = random.below(4) ? lowbit::round_up(p.w.shape.k, 16 / x_bytes) + random.of({0, 16})
                               : p.w.shape.k + random.of({0, 1, 3});
  p.sms = random.of({2, 2, 132});
  p.x.resize(static_cast<size_t>(((p.m - 1) * p.x_stride + p.w.shape.k) * x_bytes));
  for (size_t i = 0; i < p.x.size(); ++i) {
    p.x[i] = static_cast<uint8_t>(random.below(256));
    if (p.x_dtype == LOWBIT_E4M3 && (p.x[i] & 0x7f) == 0x7f) p.x[i] = 0x30;
  }
  if (x_bytes == 2)
    for (size_t i = 0; i < p.x.size() / 2; ++i)
      lowbit::store_from_f32(p.x.data(), static_cast<int64_t>(i), p.x_dtype, random.uniform(-2, 2));
}

void scale_rows(product& p, random_source& random, bool zeros) {
  p.x_scale.resize(static_cast<size_t>(random.below(2) ? p.m : 1));
  for (float& v : p.x_scale) v = random.uniform(0.001f, 0.1f);
  p.has_x_zero = zeros && random.below(2);
  if (p.has_x_zero)
    for (size_t i = 0; i < p.x_scale.size(); ++i) p.x_zero.push_back(static_cast<int32_t>(random.below(256)) - 128);
}

emulator::options seeded(uint32_t seed) {
  emulator::options options;
  options.seed = seed;
  return options;
}

int products_run;  // of the row that is tested

bool runs(product& p, const kernel_row& row) {
  if (!p.run(row, p.describe())) return false;
  ++products_run;
  return true;
}

// ---- integer: to the bit ----

void check_integer(const kernel_row& row, int64_t m, int64_t n, int64_t k, int64_t group_k, uint32_t seed) {
  random_source random(seed * 7919 + static_cast<uint64_t>(m * n + k));
  const fragment_weight w = random_fragments(format_called(says(row, "int8") ? "int8" : "int4"), n, k, group_k,
                                             random.of({LOWBIT_F32, LOWBIT_F16, LOWBIT_BF16}), false, random);
  product p(w, m, LOWBIT_I8, random);
  align(p, 1, random);
  scale_rows(p, random, true);
  const emulator::with with(seeded(seed));
  if (!runs(p, row)) return;
  const fragment_shape& s = w.shape;
  for (int64_t i = 0; i < m; ++i) {
    const size_t at = p.x_scale.size() == 1 ? 0 : static_cast<size_t>(i);
    const int x_zero = p.has_x_zero ? p.x_zero[at] : 0;
    for (int64_t j = 0; j < n; ++j) {
      float y = 0;
      for (int64_t g = 0; g < s.groups; ++g) {
        int32_t sum = 0;
        for (int64_t c = g * group_k; c < std::min((g + 1) * group_k, k); ++c)
          sum += (static_cast<int8_t>(p.x[static_cast<size_t>(i * p.x_stride + c)]) - x_zero) * w.value(j, c);
        y = std::fma(static_cast<float>(sum), w.scale(j, g), y);
      }
      y = std::fma(y, p.x_scale[at], p.bias_at(j));
      uint32_t bits = 0;
      lowbit::store_from_f32(&bits, 0, p.y_dtype, y);
      CHECK(lowbit::load_as_f32(&bits, 0, p.y_dtype) == p.y_at(i, j), "%s: y[%lld][%lld] is %.9g, not %.9g: %s",
            row.name, static_cast<long long>(i), static_cast<long long>(j), static_cast<double>(p.y_at(i, j)),
            static_cast<double>(lowbit::load_as_f32(&bits, 0, p.y_dtype)), p.describe().c_str());
    }
  }
}

// ---- floating point: within a bound ----

// |y - exact| <= bound sum |x W| + what the store to y rounds.
template <class X, class W, class Factor>
void check_sums(const kernel_row& row, const product& p, double bound, const X& x, const W& weight,
                const Factor& factor) {
  const fragment_shape& s = p.w.shape;
  const double store = p.y_dtype == LOWBIT_F32 ? 0x1p-23 : p.y_dtype == LOWBIT_F16 ? 0x1p-11 : 0x1p-8;
  for (int64_t i = 0; i < p.m; ++i)
    for (int64_t j = 0; j < s.n; ++j) {
      double sum = 0, size = 0;
      for (int64_t c = 0; c < s.k; ++c) {
        const double term = x(i, c) * weight(j, c);
        sum += term;
        size += std::fabs(term);
      }
      const double f = factor(i), bias = static_cast<double>(p.bias_at(j)), wanted = sum * f + bias;
      const double limit = bound * size * f + store * (std::fabs(wanted) + std::fabs(bias)) + 0x1p-24;
      const double got = static_cast<double>(p.y_at(i, j));
      if (p.y_dtype == LOWBIT_F16 && std::fabs(wanted) > 65000) continue;
      CHECK(std::fabs(got - wanted) <= limit, "%s: y[%lld][%lld] is %.9g, not %.9g within %.3g: %s", row.name,
            static_cast<long long>(i), static_cast<long long>(j), got, wanted, limit, p.describe().c_str());
    }
}

double group_scale(const fragment_weight& w, int64_t n, int64_t k) {
  return static_cast<double>(w.scale(n, w.shape.groups == 1 ? 0 : k / w.shape.group_k));
}

void check_fp8(const kernel_row& row, const char* format, int64_t m, int64_t n, int64_t k, int64_t group_k,
               int scale_dtype, int64_t x_group, uint32_t seed) {
  random_source random(seed * 104729 + static_cast<uint64_t>(m * n + k));
  const fragment_weight w = random_fragments(format_called(format), n, k, group_k, scale_dtype, false, random);
  product p(w, m, LOWBIT_E4M3, random);
  align(p, 1, random);
  scale_rows(p, random, false);
  p.x_group = x_group;
  p.accumulate = says(row, "fast") ? lowbit::cuda::accumulation::fast : lowbit::cuda::accumulation::promoted;
  const int64_t blocks = x_group ? lowbit::ceil_div(k, x_group) : 1;
  if (x_group) {
    p.x_scale.resize(static_cast<size_t>(m * blocks));
    for (float& v : p.x_scale) v = random.uniform(0.001f, 0.1f);
  }
  const emulator::with with(seeded(seed));
  if (!runs(p, row)) return;
  // tensor cores add products of 32 columns with 14 bits; then, where sums are promoted, fp32
  const auto in_the_core = static_cast<double>(says(row, "promoted") ? std::min<int64_t>(k, 128) : k);
  check_sums(
      row, p, (in_the_core / 32 + 1) * 0x1p-13 + static_cast<double>(k + 8) * 0x1p-23,
      [&](int64_t i, int64_t c) {
        const double x = static_cast<double>(lowbit::e4m3.value(p.x[static_cast<size_t>(i * p.x_stride + c)]));
        return x_group ? x * static_cast<double>(p.x_scale[static_cast<size_t>(i * blocks + c / x_group)]) : x;
      },
      [&](int64_t j, int64_t c) { return static_cast<double>(w.format.values[w.code(j, c)]) * group_scale(w, j, c); },
      [&](int64_t i) {
        return x_group ? 1.0 : static_cast<double>(p.x_scale[p.x_scale.size() == 1 ? 0 : static_cast<size_t>(i)]);
      });
}

void check_weight_only(const kernel_row& row, const char* format, int64_t m, int64_t n, int64_t k, int64_t group_k,
                       int scale_dtype, int x_dtype, uint32_t seed) {
  random_source random(seed * 65537 + static_cast<uint64_t>(m * n + k));
  lowbit::format_row f = format_called(format);
  const fragment_weight w = random_fragments(f, n, k, group_k, scale_dtype, f.zero_point && random.below(2), random);
  product p(w, m, x_dtype, random);
  align(p, 2, random);
  p.x_scale = {1};
  const emulator::with with(seeded(seed));
  if (!runs(p, row)) return;
  // W is rounded to x's type once its scale was: 2^-8 in bf16, 2^-10 in fp16, as gemm/contract.h has it
  const bool exact = w.shape.groups == 1 && std::strcmp(format, "nf4") != 0;
  const double rounding = exact ? 0 : x_dtype == LOWBIT_BF16 ? 0x1p-7 : 0x1p-10;
  check_sums(
      row, p, static_cast<double>(k + 8) * 0x1p-23 + rounding,
      [&](int64_t i, int64_t c) {
        return static_cast<double>(lowbit::load_as_f32(p.x.data(), i * p.x_stride + c, x_dtype));
      },
      [&](int64_t j, int64_t c) {
        const double zero = w.has_zero ? w.zero(j, w.shape.groups == 1 ? 0 : c / group_k) : 0;
        const double value = f.integer() ? w.value(j, c) : static_cast<double>(f.values[w.code(j, c)]);
        return (value - zero) * group_scale(w, j, c);
      },
      [](int64_t) { return 1.0; });
}

template <class Check>
void each(const kernel_row* rows, int count, const char* part, const Check& check) {
  for (int r = 0; r < count; ++r) {
    if (!says(rows[r], part)) continue;
    products_run = 0;
    check(rows[r]);
    CHECK(products_run > 1, "%s has refused what it is for", rows[r].name);
  }
}

}  // namespace

TEST(sm90_integer) {
  each(sm90::integer_rows, sm90::num_integer_rows, "", [](const kernel_row& row) {
    const bool grouped = says(row, "grouped");
    uint32_t seed = 0;
    for (const int64_t m : {int64_t{1}, int64_t{row.mr} + 1})
      for (const int64_t k : {130, 640}) {
        const int64_t group = grouped ? 128 : k;
        if (grouped && k == 130) check_integer(row, m, row.nr + 35, 512, 256, seed++ % 3);
        check_integer(row, m, row.nr + 35, k, group, seed++ % 3);
      }
    check_integer(row, row.mr + 1, 40, 2304, grouped ? 256 : 2304, 1);  // every slot of the ring twice
  });
}

TEST(sm90_fp8) {
  each(sm90::fp8_rows, sm90::num_fp8_rows, "", [](const kernel_row& row) {
    uint32_t seed = 0;
    for (const int64_t m : {int64_t{1}, int64_t{row.mr} + 1}) {
      check_fp8(row, "fp8_e4m3", m, row.nr + 35, 130, 130, LOWBIT_F32, 0, seed++ % 3);
      check_fp8(row, "fp8_e4m3", m, row.nr - 3, m > 1 ? 2304 : 640, m > 1 ? 2304 : 640, LOWBIT_BF16, 0, seed++ % 3);
      if (!says(row, "promoted")) continue;
      check_fp8(row, "fp8_e4m3", m, row.nr + 1, 330, 128, LOWBIT_F32, 128, seed++ % 3);
      check_fp8(row, "fp8_e4m3", m, row.nr + 1, 512, 256, LOWBIT_F32, 0, seed++ % 3);
    }
  });
}

TEST(sm90_fp8_by_four_bits) {
  for (const char* format : {"fp4_e2m1", "int4"})
    for (const char* sums : {"fast", "promoted"})
      each(sm90::fp8_lut16_rows, sm90::num_fp8_lut16_rows, sums, [&](const kernel_row& row) {
        if (!says(row, format[0] == 'i' ? "int4" : "e2m1")) return products_run = 2, void();
        check_fp8(row, format, 3, row.nr + 35, 384, sums[0] == 'p' ? 128 : 384, LOWBIT_F16, 0, 1);
        check_fp8(row, format, row.mr + 1, 40, 160, 160, LOWBIT_F32, 0, 0);
      });
  each(sm90::fp8_lut16_rows, sm90::num_fp8_lut16_rows, "group32", [](const kernel_row& row) {
    check_fp8(row, "mxfp4", 3, row.nr + 35, 384, 32, LOWBIT_E8M0, 0, 1);
    check_fp8(row, "mxfp4", row.mr + 1, 40, 160, 32, LOWBIT_E8M0, 0, 0);
    check_fp8(row, "mxfp4", row.mr + 1, 100, 2304, 32, LOWBIT_E8M0, 0, 2);
  });
  each(sm90::fp8_lut16_rows, sm90::num_fp8_lut16_rows, "group16", [](const kernel_row& row) {
    check_fp8(row, "nvfp4", 3, row.nr + 35, 384, 16, LOWBIT_E4M3, 0, 1);
    check_fp8(row, "nvfp4", row.mr + 1, 40, 160, 16, LOWBIT_E4M3, 0, 0);
    check_fp8(row, "nvfp4", row.mr + 1, 100, 2304, 16, LOWBIT_E4M3, 0, 2);
  });
}

TEST(sm90_weight_only) {
  each(sm90::weight_only_rows, sm90::num_weight_only_rows, "", [](const kernel_row& row) {
    uint32_t seed = 0;
    for (const int x_dtype : {LOWBIT_BF16, LOWBIT_F16})
      for (const char* format : {"int4", "int8", "fp8_e4m3", "fp8_e5m2", "fp4_e2m1", "nf4", "int2"}) {
        if (says(row, "128x128") && std::strcmp(format, "int2") == 0) continue;
        if (x_dtype == LOWBIT_F16 && std::strcmp(format, "fp8_e5m2") == 0) continue;  // twice 57344 is no fp16
        check_weight_only(row, format, seed % 2 ? 3 : row.mr + 1, row.nr + 35, 200, 200, LOWBIT_F32, x_dtype, seed % 3);
        check_weight_only(row, format, 5, 40, 384, std::initializer_list<int64_t>{16, 32, 48, 128}.begin()[seed % 4],
                          LOWBIT_F16, x_dtype, seed % 3);
        ++seed;
      }
    check_weight_only(row, "mxfp4", 3, row.nr + 1, 160, 32, LOWBIT_E8M0, LOWBIT_BF16, 1);
    check_weight_only(row, "nvfp4", 3, row.nr + 1, 160, 16, LOWBIT_E4M3, LOWBIT_BF16, 1);
    check_weight_only(row, "int4", row.mr + 1, row.nr + 1, 1280, 100, LOWBIT_BF16, LOWBIT_BF16, 1);  // padded groups
  });
}

// Row i of y is the same whatever tile it is in: rows differ in nothing but the tile.
void check_same_bits(const kernel_row* rows, int count, const char* part, const char* format, int64_t k,
                     int64_t group_k, int scale_dtype, int x_dtype) {
  std::vector<uint8_t> first;
  int compared = 0;
  for (int r = 0; r < count; ++r) {
    if (!says(rows[r], part)) continue;
    random_source random(5);  // the same numbers
    const fragment_weight w = random_fragments(format_called(format), 100, k, group_k, scale_dtype, false, random);
    product p(w, 5, x_dtype, random);
    align(p, static_cast<int>(lowbit::dtype_bytes(x_dtype)), random);
    p.sms = 2;
    p.x_scale = {1};
    p.accumulate = says(rows[r], "fast") ? lowbit::cuda::accumulation::fast : lowbit::cuda::accumulation::promoted;
    emulator::options options;
    options.fp8 = emulator::fp8_sums::truncated;
    const emulator::with with(options);
    if (!p.run(rows[r], p.describe())) continue;
    if (first.empty()) first = p.y;
    CHECK(p.y == first, "%s: other bits than the first tile's, %s", rows[r].name, p.describe().c_str());
    ++compared;
  }
  CHECK(compared > 1, "%s, %s: %d tiles compared", part, format, compared);
}

TEST(sm90_bits_are_the_same_in_every_tile) {
  using namespace sm90;
  for (const int64_t k : {64, 200, 1280}) {
    check_same_bits(weight_only_rows, num_weight_only_rows, "", "int4", k, k, LOWBIT_F32, LOWBIT_BF16);
    check_same_bits(weight_only_rows, num_weight_only_rows, "", "fp8_e4m3", k, k, LOWBIT_F32, LOWBIT_F16);
    check_same_bits(fp8_rows, num_fp8_rows, "fast", "fp8_e4m3", k, k, LOWBIT_F32, LOWBIT_E4M3);
    check_same_bits(fp8_rows, num_fp8_rows, "promoted", "fp8_e4m3", k, k, LOWBIT_F32, LOWBIT_E4M3);
  }
  check_same_bits(weight_only_rows, num_weight_only_rows, "", "int4", 1280, 128, LOWBIT_BF16, LOWBIT_BF16);
  check_same_bits(weight_only_rows, num_weight_only_rows, "", "int2", 1280, 128, LOWBIT_F16, LOWBIT_F16);
  check_same_bits(fp8_lut16_rows, num_fp8_lut16_rows, "group32", "mxfp4", 1280, 32, LOWBIT_E8M0, LOWBIT_E4M3);
}

// Bank conflicts and uncoalesced accesses of a product that fills its tiles: the worst access site of each row.
TEST(sm90_access_costs) {
  const auto run = [](const kernel_row& row, const char* format, int64_t group_k, int scale_dtype, int x_dtype) {
    emulator::clear_access_counts();
    random_source random(3);
    const fragment_weight w =
        random_fragments(format_called(format), row.nr * 2, 512, group_k, scale_dtype, false, random);
    product p(w, row.mr * 2, x_dtype, random);
    p.x_stride = 512;
    p.x.resize(static_cast<size_t>(p.m * 512 * lowbit::dtype_bytes(x_dtype)), 0x30);
    p.y_stride = w.shape.n;
    p.y_dtype = LOWBIT_BF16;
    p.x_scale = {1};
    p.sms = 2;
    p.accumulate = says(row, "fast") ? lowbit::cuda::accumulation::fast : lowbit::cuda::accumulation::promoted;
    if (!p.run(row, p.describe())) return;
    ++products_run;
    emulator::print_access_counts();
    const std::string worst = emulator::worse_than(2.0, 4.0);
    CHECK(worst.empty(), "%s: %s", row.name, worst.c_str());
  };
  products_run = 0;
  for (int r = 0; r < sm90::num_weight_only_rows; ++r)
    for (const char* format : {"int4", "int8", "fp8_e4m3"})
      run(sm90::weight_only_rows[r], format, 128, LOWBIT_F16, LOWBIT_BF16);
  for (int r = 0; r < sm90::num_fp8_rows; ++r) run(sm90::fp8_rows[r], "fp8_e4m3", 512, LOWBIT_F32, LOWBIT_E4M3);
  for (int r = 0; r < sm90::num_integer_rows; ++r)
    run(sm90::integer_rows[r], says(sm90::integer_rows[r], "int8") ? "int8" : "int4",
        says(sm90::integer_rows[r], "grouped") ? 128 : 512, LOWBIT_F32, LOWBIT_I8);
  for (int r = 0; r < sm90::num_fp8_lut16_rows; ++r) {
    const kernel_row& row = sm90::fp8_lut16_rows[r];
    if (says(row, "group32"))
      run(row, "mxfp4", 32, LOWBIT_E8M0, LOWBIT_E4M3);
    else if (says(row, "group16"))
      run(row, "nvfp4", 16, LOWBIT_E4M3, LOWBIT_E4M3);
    else
      run(row, says(row, "int4") ? "int4" : "fp4_e2m1", 512, LOWBIT_F32, LOWBIT_E4M3);
  }
  CHECK(products_run ==
            sm90::num_weight_only_rows * 3 + sm90::num_fp8_rows + sm90::num_integer_rows + sm90::num_fp8_lut16_rows,
        "%d products", products_run);
  emulator::clear_access_counts();
}
