// How far fp8 sums are from exact ones as K grows, by accumulation policy: the emulated tensor core aligns the addends
// of an instruction to the largest and keeps 13 bits behind the point, as published measurements of Hopper say. The
// table that this prints is in docs/hardware.md; benchmarks/cuda_speed.py prints the same of a chip.
#include "fragments_support.h"

namespace lowbit::cuda {
namespace sm89 {
extern const kernel_row fp8_rows[];
}
namespace sm90 {
extern const kernel_row fp8_rows[];
extern const int num_fp8_rows;
}  // namespace sm90
}  // namespace lowbit::cuda
using lowbit::cuda::accumulation;
using lowbit::cuda::kernel_row;

namespace {

const kernel_row& sm90_row(const char* name) {
  for (int i = 0; i < lowbit::cuda::sm90::num_fp8_rows; ++i)
    if (std::strcmp(lowbit::cuda::sm90::fp8_rows[i].name, name) == 0) return lowbit::cuda::sm90::fp8_rows[i];
  test::fail(__FILE__, __LINE__, "there is no %s", name);
  return lowbit::cuda::sm90::fp8_rows[0];
}

// Standard normal numbers, as e4m3.
uint8_t normal(random_source& random) {
  float sum = 0;
  for (int i = 0; i < 12; ++i) sum += random.uniform(0, 1);
  static const lowbit::encoder encode(lowbit::format_at(lowbit::find_format("fp8_e4m3")));
  return static_cast<uint8_t>(encode(sum - 6));
}

struct product_of_normals {
  fragment_weight w;
  product p;
  std::vector<double> exact;

  static fragment_weight weight(int64_t k, random_source& random) {
    fragment_weight w =
        random_fragments(lowbit::format_at(lowbit::find_format("fp8_e4m3")), 64, k, k, LOWBIT_F32, false, random);
    std::fill(w.bytes.begin() + w.packed.codes_offset, w.bytes.begin() + w.packed.scales_offset, uint8_t{0});
    for (int64_t i = 0; i < 64; ++i)
      for (int64_t j = 0; j < k; ++j) {
        const uint8_t code = normal(random);
        w.codes[static_cast<size_t>(i * k + j)] = code;
        w.bytes[static_cast<size_t>(w.packed.codes_offset + w.shape.code_bit(i, w.shape.column(j)) / 8)] = code;
      }
    for (int64_t i = 0; i < 64; ++i)
      lowbit::store_from_f32(&w.bytes[static_cast<size_t>(w.packed.scales_offset)], w.shape.scale_index(i, 0),
                             LOWBIT_F32, 1);
    return w;
  }

  product_of_normals(int64_t k, random_source& random) : w(weight(k, random)), p(w, 8, LOWBIT_E4M3, random) {
    p.x_stride = k;
    p.x.resize(static_cast<size_t>(8 * k));
    for (uint8_t& x : p.x) x = normal(random);
    p.x_scale = {1};
    p.has_bias = false;
    p.y_dtype = LOWBIT_F32;
    for (int64_t i = 0; i < 8; ++i)
      for (int64_t n = 0; n < 64; ++n) {
        double sum = 0;
        for (int64_t c = 0; c < k; ++c)
          sum += static_cast<double>(lowbit::e4m3.value(p.x[static_cast<size_t>(i * k + c)])) *
                 static_cast<double>(lowbit::e4m3.value(w.code(n, c)));
        exact.push_back(sum);
      }
  }

  // Root mean square of the error over that of y.
  double error(const kernel_row& row, accumulation accumulate) {
    p.accumulate = accumulate;
    emulator::options options;
    options.fp8 = emulator::fp8_sums::truncated;
    options.races = options.count = false;
    const emulator::with with(options);
    CHECK(p.run(row, row.name), "%s refuses", row.name);
    double wrong = 0, size = 0;
    for (int64_t i = 0; i < 8; ++i)
      for (int64_t n = 0; n < 64; ++n) {
        const double wanted = exact[static_cast<size_t>(i * 64 + n)], got = static_cast<double>(p.y_at(i, n));
        wrong += (got - wanted) * (got - wanted);
        size += wanted * wanted;
      }
    return std::sqrt(wrong / size);
  }
};

}  // namespace

TEST(sm90_error_of_fp8_sums_as_k_grows) {
  random_source random(17);
  std::printf("      K   promoted   fast, every 512 (sm_89)   fast, never (sm_90)\n");
  double first = 0;
  for (const int64_t k : {128, 512, 2048, 8192, 16384}) {
    product_of_normals product(k, random);
    const double promoted = product.error(sm90_row("fp8_promoted_sm90_16x64"), accumulation::promoted);
    const double fast_512 = product.error(lowbit::cuda::sm89::fp8_rows[0], accumulation::fast);
    const double fast = product.error(sm90_row("fp8_fast_sm90_16x64"), accumulation::fast);
    std::printf("  %5lld   %.1e    %.1e                   %.1e\n", static_cast<long long>(k), promoted, fast_512, fast);
    if (k == 128) first = promoted;
    CHECK(promoted < 2 * first, "promoted sums lose bits with K: %.2e at %lld, %.2e at 128", promoted,
          static_cast<long long>(k), first);
    CHECK(k < 2048 || fast > 2 * promoted, "fast %.2e is as good as promoted %.2e at %lld", fast, promoted,
          static_cast<long long>(k));
    CHECK(fast < 1e-3 * static_cast<double>(k) / 128, "fast %.2e at %lld", fast, static_cast<long long>(k));
  }
}
