// Every row of the integer table gives the bits of the contract (gemm/contract.h).
#include "fragments_support.h"

namespace lowbit::cuda::sm80 {
extern const kernel_row integer_rows[];
extern const int num_integer_rows;
}  // namespace lowbit::cuda::sm80
using lowbit::cuda::sm80::integer_rows, lowbit::cuda::sm80::num_integer_rows;

namespace {

lowbit::format_row integer_format(int bits) {
  lowbit::format_row f = lowbit::format_at(lowbit::find_format(bits == 8 ? "int8" : "int4"));
  if (bits == 2) {
    f.name = "2 bits";
    f.bits = 2;
    f.integer_offset = 2;
  }
  return f;
}

void scale_rows(product& p, random_source& random) {
  p.x_scale.resize(static_cast<size_t>(random.below(3) ? p.m : 1));
  for (float& v : p.x_scale) v = random.uniform(0.001f, 0.1f);
  p.has_x_zero = random.below(2);
  p.x_zero.clear();
  if (p.has_x_zero)
    for (size_t i = 0; i < p.x_scale.size(); ++i) p.x_zero.push_back(static_cast<int32_t>(random.below(256)) - 128);
}

// The equations of the contract, for the outputs (i, n) with (i n) % every == 0.
void check_bits(const lowbit::cuda::kernel_row& row, const product& p, int64_t every = 1) {
  const fragment_shape& s = p.w.shape;
  for (int64_t i = 0; i < p.m; ++i) {
    const size_t at = p.x_scale.size() == 1 ? 0 : static_cast<size_t>(i);
    const int x_zero = p.has_x_zero ? p.x_zero[at] : 0;
    for (int64_t n = 0; n < s.n; ++n) {
      if ((i + n) % every) continue;
      float y = 0;
      for (int64_t g = 0; g < s.groups; ++g) {
        const int64_t end = std::min((g + 1) * s.group_k, s.k);
        for (int64_t first = g * s.group_k; first < end; first += lowbit::integer_segment) {
          int32_t sum = 0;
          for (int64_t k = first; k < std::min(first + lowbit::integer_segment, end); ++k)
            sum += (static_cast<int8_t>(p.x[static_cast<size_t>(i * p.x_stride + k)]) - x_zero) *
                   (p.w.value(n, k) - p.w.zero(n, g));
          y = std::fma(static_cast<float>(sum), p.w.scale(n, g), y);
        }
      }
      y = std::fma(y, p.x_scale[at], p.bias_at(n));
      uint32_t bits = 0;
      lowbit::store_from_f32(&bits, 0, p.y_dtype, y);
      const float wanted = lowbit::load_as_f32(&bits, 0, p.y_dtype);
      CHECK(std::bit_cast<uint32_t>(wanted) == std::bit_cast<uint32_t>(p.y_at(i, n)),
            "%s: y[%lld][%lld] is %.9g, not %.9g: %s", row.name, static_cast<long long>(i), static_cast<long long>(n),
            static_cast<double>(p.y_at(i, n)), static_cast<double>(wanted), p.describe().c_str());
    }
  }
}

void check(const lowbit::cuda::kernel_row& row, int bits, int64_t m, int64_t n, int64_t k, int64_t group_k,
           uint32_t seed, int64_t every = 1) {
  random_source random(seed * 1000 + static_cast<uint64_t>(m * n + k));
  const fragment_weight w = random_fragments(integer_format(bits), n, k, group_k,
                                             random.of({LOWBIT_F32, LOWBIT_F16, LOWBIT_BF16}), random.below(2), random);
  product p(w, m, LOWBIT_I8, random);
  scale_rows(p, random);
  emulator::options options;
  options.seed = seed;
  const emulator::with with(options);
  if (p.run(row, p.describe())) check_bits(row, p, every);
  const bool any = std::strstr(row.name, "_64x128");
  CHECK(!(any && p.refused), "%s refuses %s", row.name, p.describe().c_str());
}

}  // namespace

// m and n around the tile, k around the step.
TEST(integer_tile_shapes) {
  for (int r = 0; r < num_integer_rows; ++r) {
    const auto& row = integer_rows[r];
    int turn = 0;
    for (const int64_t m : {int64_t{1}, int64_t{row.mr} - 1, int64_t{row.mr} + 1})
      for (const int64_t n : {int64_t{1}, int64_t{row.nr} - 3, int64_t{row.nr} + 35})
        for (const int bits : {2, 4, 8}) {
          const int64_t k = std::initializer_list<int64_t>{1, 100, 128, 130, 517}.begin()[turn++ % 5];
          check(row, bits, m, n, k, k, static_cast<uint32_t>(turn % 4));
        }
  }
}

TEST(integer_granularities) {
  for (int r = 0; r < num_integer_rows; ++r)
    for (const int64_t group_k : {1, 7, 16, 24, 32, 48, 64, 100, 128, 256, 1024, 1536})
      for (const int bits : {2, 4, 8}) {
        if (group_k < 16 && bits != 4) continue;
        const int64_t k = group_k < 16 ? 40 : group_k < 128 ? 333 : 1700;
        check(integer_rows[r], bits, 5, 40, k, group_k, static_cast<uint32_t>(group_k % 3));
      }
}

// Rounds in which the warps of a skinny CTA keep their sums, and those in which they do not.
TEST(integer_long_k) {
  for (int r = 0; r < num_integer_rows; ++r)
    for (const int64_t group_k : {1024, 2048, 2560, 5000}) check(integer_rows[r], 4, 3, 20, 4500, group_k, 1);
}

// A group of several segments; x with zero points needs their column sums.
TEST(integer_segments) {
  for (int r = 0; r < num_integer_rows; ++r) {
    random_source random(7);
    for (const int bits : {2, 4, 8})
      for (const int64_t group_k : {int64_t{1} << 20, int64_t{32768} + 72}) {
        if (r % 3 != bits / 4 && !std::strstr(integer_rows[r].name, "8x32")) continue;
        const int64_t k = group_k == 1 << 20 ? 32768 + 203 : 2 * group_k - 5;
        const fragment_weight w = random_fragments(integer_format(bits), 2, k, group_k, LOWBIT_F32, true, random);
        product p(w, 2, LOWBIT_I8, random);
        scale_rows(p, random);
        p.has_x_zero = true;
        if (p.x_zero.empty())
          for (size_t i = 0; i < p.x_scale.size(); ++i)
            p.x_zero.push_back(static_cast<int32_t>(random.below(256)) - 128);
        if (p.run(integer_rows[r], p.describe())) check_bits(integer_rows[r], p);
      }
  }
}

// Bank conflicts: none. Sectors: 4 columns' scale and bias to a lane, one at a time, are read from L1.
TEST(integer_accesses) {
  emulator::clear_access_counts();
  for (int r = 0; r < num_integer_rows; ++r) {
    random_source random(3);
    for (const int bits : {2, 4, 8}) {
      const bool grouped = std::strstr(integer_rows[r].name, "sm80_128x128") == nullptr;
      const fragment_weight w =
          random_fragments(integer_format(bits), 128, 512, grouped ? 128 : 512, LOWBIT_F32, grouped, random);
      product p(w, integer_rows[r].mr, LOWBIT_I8, random);
      p.x_stride = 512;
      p.y_stride = 128;
      scale_rows(p, random);
      p.run(integer_rows[r], p.describe());
    }
  }
  emulator::print_access_counts();
  const std::string worst = emulator::worse_than(1.0, 4.0);
  CHECK(worst.empty(), "%s", worst.c_str());
}

// Something takes every problem, on the smallest chip too, and few rows of x go to the kernel made for them.
TEST(integer_choice) {
  for (const lowbit::cuda::device_info& device :
       {lowbit::cuda::device_info{86, 84, 99 << 10, 6 << 20}, lowbit::cuda::device_info{90, 132, 227 << 10, 50 << 20}})
    for (const int64_t m : {1, 8, 9, 16, 17, 33, 64, 65, 500, 20000})
      for (const int64_t n : {1, 4096, 30000})
        for (const int64_t group_k : {16, 48, 128, 4096}) {
          const lowbit::format_row format = integer_format(4);
          float scale = 1;
          lowbit::cuda::gemm_problem p{};
          p.w.shape = fragment_shape::of(n, 4096, 1, group_k, 4);
          p.w.format = &format;
          p.m = m;
          p.x_dtype = LOWBIT_I8;
          p.x_scale = &scale;
          p.num_x_scales = 1;
          const lowbit::cuda::kernel_row* chosen = nullptr;
          for (int r = 0; r < num_integer_rows && !chosen; ++r)
            if (!integer_rows[r].refuses(p, device)) chosen = &integer_rows[r];
          CHECK(chosen, "nobody takes %lld x %lld, groups of %lld", static_cast<long long>(m),
                static_cast<long long>(n), static_cast<long long>(group_k));
          if (chosen && m <= 8) CHECK_EQ(chosen->mr, 8);
          if (chosen && m >= 500) CHECK(chosen->mr >= 64, "%s", chosen->name);
        }
}
