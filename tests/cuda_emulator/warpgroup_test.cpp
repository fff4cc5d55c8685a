// Tensor maps, mbarriers, clusters and wgmma against plain loops.
#include <algorithm>
#include <random>
#include <vector>

#include "cuda/common/convert.h"
#include "cuda/common/launch.h"
#include "cuda/common/tma.h"
#include "cuda/common/wgmma.h"
#include "emulator/emulator.h"
#include "test.h"

namespace lowbit::cuda {
namespace {

std::mt19937 generator(11);

template <class T>
inline constexpr bool is_wide = std::is_same_v<T, bf16_t> || std::is_same_v<T, f16_t>;
template <class T>
using sum_of = std::conditional_t<std::is_same_v<T, s8_t>, int32_t, float>;

// y[64][N] = a[64][k] b[N][k]: four stages of 128 bytes of K, ring of two; warpgroup 0 brings B, warpgroup 1
// multiplies.
template <class T>
struct product_arguments {
  tensor_map b;
  const uint8_t* a;  // fragments of the warps: [step of 32 bytes][warp][lane][16 bytes]
  sum_of<T>* y;
  int stages;
};

template <class T, int N>
LOWBIT_KERNEL(256, 1)
void ring_kernel(const LOWBIT_GRID_CONSTANT product_arguments<T> p) {
  constexpr uint32_t stage_bytes = N * 128, ring = 2;
  const uint32_t base = shared_base(), barriers = base + ring * stage_bytes;
  const auto full = [&](uint32_t s) { return barriers + s * 16; };
  const auto empty = [&](uint32_t s) { return barriers + s * 16 + 8; };
  if (thread_index() == 0) {
    for (uint32_t s = 0; s < ring; ++s) {
      mbarrier_init(full(s), 1);
      mbarrier_init(empty(s), 1);
    }
    fence_mbarrier_init();
  }
  sync_threads();
  if (thread_index() / 128 == 0) {
    if (thread_index() == 0)
      for (int i = 0; i < p.stages; ++i) {
        const uint32_t s = static_cast<uint32_t>(i) % ring, parity = static_cast<uint32_t>(i) / ring % 2;
        mbarrier_wait(empty(s), parity ^ 1);
        mbarrier_expect_bytes(full(s), stage_bytes);
        tensor_copy(base + s * stage_bytes, p.b, i * (is_wide<T> ? 64 : 128), 0, full(s));
      }
    return;
  }
  const int thread = thread_index() % 128, warp = thread / 32, lane = thread % 32;
  sum_of<T> d[N / 2];
  for (int i = 0; i < p.stages; ++i) {
    const uint32_t s = static_cast<uint32_t>(i) % ring, parity = static_cast<uint32_t>(i) / ring % 2;
    uint32_t a[4][4];
    for (int step = 0; step < 4; ++step) {
      const u32x4 v = global_load<u32x4>(p.a + (((i * 4 + step) * 4 + warp) * 32 + lane) * 16);
      a[step][0] = v.x, a[step][1] = v.y, a[step][2] = v.z, a[step][3] = v.w;
    }
    mbarrier_wait(full(s), parity);
    wgmma_fence();
    for (int step = 0; step < 4; ++step)
      wgmma<T, N>::run(d, a[step], wgmma_descriptor(base + s * stage_bytes + static_cast<uint32_t>(step) * 32),
                       i > 0 || step > 0);
    wgmma_commit();
    wgmma_wait<0>();
    if (thread == 0) mbarrier_arrive(empty(s));
  }
  const int g = lane / 4, t = lane % 4;
  for (int j = 0; j < N / 8; ++j)
    for (int i = 0; i < 4; ++i)
      global_store<sum_of<T>>(p.y + (16 * warp + g + 8 * (i / 2)) * N + 8 * j + 2 * t + i % 2, d[4 * j + i]);
}

template <class T>
uint32_t random_element() {
  if constexpr (std::is_same_v<T, s8_t>) return generator() % 256;
  if constexpr (std::is_same_v<T, e4m3_t>) return generator() % 2 * 0x80 + 0x28 + generator() % 32;
  if constexpr (is_wide<T>) return detail::from_float<T>(static_cast<float>(generator() % 32) - 15.5f);
  return 0;
}
template <class T>
double number(uint32_t bits) {
  if constexpr (std::is_same_v<T, s8_t>) return static_cast<int8_t>(bits);
  if constexpr (std::is_same_v<T, e4m3_t>) return static_cast<double>(e4m3.value(bits));
  if constexpr (is_wide<T>) return static_cast<double>(to_float<T>(static_cast<uint16_t>(bits)));
  return 0;
}

// rows and columns of B that the tensor has: fewer than N and the stages have.
template <class T, int N>
void check_ring(size_t rows, size_t columns, uint32_t seed) {
  constexpr size_t bytes = is_wide<T> ? 2 : 1, stages = 4, k = stages * 128 / bytes, per_step = 32 / bytes;
  const size_t stride = (columns * bytes + 15) / 16 * 16;
  std::vector<uint32_t> a(64 * k), b(N * k);
  for (uint32_t& x : a) x = random_element<T>();
  for (size_t n = 0; n < rows; ++n)
    for (size_t c = 0; c < columns; ++c) b[n * k + c] = random_element<T>();
  std::vector<uint8_t> fragments(64 * k * bytes), matrix(rows * stride);
  for (size_t row = 0; row < 64; ++row)
    for (size_t c = 0; c < k; ++c) {
      // Independently of the emulator's loops: CuTe states the layout of A of m64k(256 bits) as
      // ((4, 8, 4), (2 or 4, 2, 2)) : ((per thread 4 bytes of K, one row, 16 rows), (one element, 8 rows, half of K)).
      const size_t inside = c % per_step, e = inside % (4 / bytes), t = inside / (4 / bytes) % 4,
                   half = inside / (16 / bytes);
      const size_t reg = row / 8 % 2 + 2 * half, lane = row % 8 * 4 + t;
      const size_t at = (((c / per_step) * 4 + row / 16) * 32 + lane) * 16 + reg * 4 + e * bytes;
      for (size_t i = 0; i < bytes; ++i) fragments[at + i] = static_cast<uint8_t>(a[row * k + c] >> 8 * i);
    }
  for (size_t n = 0; n < rows; ++n)
    for (size_t c = 0; c < columns; ++c)
      for (size_t i = 0; i < bytes; ++i)
        matrix[n * stride + c * bytes + i] = static_cast<uint8_t>(b[n * k + c] >> 8 * i);
  emulator::buffer<uint8_t> device_a(fragments), device_b(matrix);
  emulator::buffer<sum_of<T>> y(64 * N);
  product_arguments<T> arguments{{}, device_a.data(), y.data(), stages};
  CHECK_EQ(make_tensor_map(&arguments.b, bytes, device_b.data(), static_cast<int64_t>(columns),
                           static_cast<int64_t>(rows), static_cast<int64_t>(stride), N),
           LOWBIT_OK);
  emulator::options options;
  options.seed = seed;
  const emulator::with with(options);
  CHECK_EQ((launch<ring_kernel<T, N>>({.grid_x = 1, .threads = 256, .shared_bytes = 2 * N * 128 + 32}, arguments)),
           LOWBIT_OK);
  CHECK(emulator::failure().empty(), "%s", emulator::failure().c_str());
  if (!emulator::failure().empty()) return;
  const auto got = y.values();
  for (size_t row = 0; row < 64; ++row)
    for (size_t n = 0; n < N; ++n) {
      double sum = 0;
      for (size_t c = 0; c < k; ++c) sum += number<T>(a[row * k + c]) * number<T>(b[n * k + c]);
      CHECK(static_cast<double>(got[row * N + n]) == sum, "row %zu, column %zu: %g, should be %g", row, n,
            static_cast<double>(got[row * N + n]), sum);
    }
}

TEST(rings_of_stages_through_tensor_maps_and_wgmma) {
  for (const uint32_t seed : {0u, 1u, 2u}) {
    check_ring<bf16_t, 64>(64, 256, seed);
    check_ring<f16_t, 8>(8, 250, seed);
    check_ring<s8_t, 128>(100, 512, seed);
    check_ring<e4m3_t, 16>(13, 500, seed);
  }
  check_ring<s8_t, 256>(256, 512, 0);
  check_ring<bf16_t, 24>(20, 256, 0);
}

// ---- multicast: each CTA of a cluster brings its share of a box to all -------------------------------------------

struct multicast_arguments {
  tensor_map x;  // 16 rows of 128 bytes
  uint8_t* y;    // [cluster][16][128]
};

LOWBIT_KERNEL(32, 1) void multicast_kernel(const LOWBIT_GRID_CONSTANT multicast_arguments p) {
  const uint32_t base = shared_base(), barrier = base + 2048;
  const int rank = cluster_rank();
  if (thread_index() == 0) {
    mbarrier_init(barrier, 1);
    fence_mbarrier_init();
  }
  cluster_sync();
  if (thread_index() == 0) {
    mbarrier_expect_bytes(barrier, 2048);
    tensor_copy_multicast(base + static_cast<uint32_t>(rank) * 1024, p.x, 0, rank * 8, barrier, 3);
  }
  mbarrier_wait(barrier, 0);
  for (int row = 0; row < 16; ++row)
    global_store<uint32_t>(
        p.y + (cta_index() * 16 + row) * 128 + 4 * lane_index(),
        shared_load<uint32_t>(base + swizzle_128b(static_cast<uint32_t>(row * 128 + 4 * lane_index()))));
  cluster_sync();
}

TEST(multicast_brings_shares_to_all_ctas_of_a_cluster) {
  std::vector<uint8_t> x(2048);
  for (uint8_t& b : x) b = static_cast<uint8_t>(generator());
  emulator::buffer<uint8_t> device_x(x), y(2 * 4096);
  multicast_arguments arguments{{}, y.data()};
  CHECK_EQ(make_tensor_map(&arguments.x, 1, device_x.data(), 128, 16, 128, 8), LOWBIT_OK);
  for (const uint32_t seed : {0u, 1u, 2u, 3u}) {
    emulator::options options;
    options.seed = seed;
    const emulator::with with(options);
    y.clear();
    CHECK_EQ(launch<multicast_kernel>({.grid_x = 4, .threads = 32, .cluster = 2, .shared_bytes = 2064}, arguments),
             LOWBIT_OK);
    CHECK(emulator::failure().empty(), "%s", emulator::failure().c_str());
    if (!emulator::failure().empty()) return;
    const std::vector<uint8_t> got = y.values();
    for (size_t cta = 0; cta < 4; ++cta)
      CHECK(std::equal(x.begin(), x.end(), got.begin() + static_cast<std::ptrdiff_t>(cta * 2048)), "CTA %zu", cta);
  }
}

}  // namespace
}  // namespace lowbit::cuda
