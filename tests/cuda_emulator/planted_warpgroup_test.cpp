// Bugs in a ring of tensor copies and wgmma.
#include "cuda/common/tma.h"
#include "cuda/common/wgmma.h"
#include "planted_bugs.h"

namespace lowbit::cuda {
namespace {

enum class bug {
  none,
  missing_barrier,
  wrong_swizzle,
  missing_fence,
  missing_mbarrier_fence,
  missing_mbarrier_wait,
  missing_empty_wait,
  wrong_parity,
  wrong_bytes,
  missing_wgmma_fence,
  sums_touched,
  sums_read,
  missing_wgmma_wait,
  early_exit,
};

// ---- tensor copies and wgmma ------------------------------------------------------------------------------------

struct hopper_arguments {
  tensor_map x;  // 8 rows of `stages` x 128 bytes: s8
  int32_t* y;    // [stage][64][8]
  int stages;
};

// A is all ones: y = column sums of each stage's x, the same in every row.
template <bug planted>
LOWBIT_KERNEL(256, 1)
void hopper_kernel(const LOWBIT_GRID_CONSTANT hopper_arguments p) {
  constexpr uint32_t stage_bytes = 8 * 128;
  const uint32_t base = shared_base(), full = base + 2 * stage_bytes, empty = full + 16;
  if (thread_index() == 0) {
    for (uint32_t s = 0; s < 2; ++s) {
      mbarrier_init(full + s * 8, 1);
      mbarrier_init(empty + s * 8, 1);
    }
    if constexpr (planted != bug::missing_mbarrier_fence) fence_mbarrier_init();
  }
  sync_threads();
  if (thread_index() >= 128) {
    if (thread_index() == 128)
      for (int i = 0; i < p.stages; ++i) {
        const uint32_t s = static_cast<uint32_t>(i % 2), parity = static_cast<uint32_t>(i / 2 % 2);
        if constexpr (planted != bug::missing_empty_wait)
          mbarrier_wait(empty + s * 8, parity ^ (planted != bug::wrong_parity));
        mbarrier_expect_bytes(full + s * 8, stage_bytes + (planted == bug::wrong_bytes ? 16 : 0));
        tensor_copy(base + s * stage_bytes, p.x, i * 128, 0, full + s * 8);
      }
    return;
  }
  const int g = lane_index() / 4, t = lane_index() % 4;
  const uint32_t ones[4] = {0x01010101, 0x01010101, 0x01010101, 0x01010101};
  for (int i = 0; i < p.stages; ++i) {
    const uint32_t s = static_cast<uint32_t>(i % 2), parity = static_cast<uint32_t>(i / 2 % 2);
    if constexpr (planted != bug::missing_mbarrier_wait) mbarrier_wait(full + s * 8, parity);
    int32_t d[4];
    if constexpr (planted != bug::missing_wgmma_fence) wgmma_fence();
    for (uint32_t k = 0; k < 4; ++k)
      wgmma<s8_t, 8>::run(d, ones,
                          wgmma_descriptor(base + s * stage_bytes + (planted == bug::wrong_swizzle ? k * 256 : k * 32)),
                          k > 0);
    wgmma_commit();
    if constexpr (planted == bug::sums_touched) d[1] = 0;
    if constexpr (planted == bug::sums_read)
      global_store<int32_t>(p.y + (i * 64 + 16 * warp_index() + g) * 8 + 2 * t, d[0]);
    if constexpr (planted != bug::missing_wgmma_wait) wgmma_wait<0>();
    if (thread_index() == 0) mbarrier_arrive(empty + s * 8);
    for (int j = planted == bug::sums_read; j < 4; ++j)
      global_store<int32_t>(p.y + (i * 64 + 16 * warp_index() + g + 8 * (j / 2)) * 8 + 2 * t + j % 2, d[j]);
  }
}

template <bug planted>
void hopper(const char* text) {
  constexpr int stages = 5;
  std::vector<uint8_t> x(8 * stages * 128);
  for (size_t i = 0; i < x.size(); ++i) x[i] = static_cast<uint8_t>(i * 37 + i / 128);
  emulator::buffer<uint8_t> device_x(x);
  emulator::buffer<int32_t> y(stages * 64 * 8);
  hopper_arguments arguments{{}, y.data(), stages};
  CHECK_EQ(make_tensor_map(&arguments.x, 1, device_x.data(), stages * 128, 8, stages * 128, 8), LOWBIT_OK);
  const launch_shape shape{
      .grid_x = 1, .threads = planted == bug::early_exit ? 128 : 256, .shared_bytes = 2 * 1024 + 32};
  if (text) return expect<hopper_kernel<planted>>(shape, arguments, text);
  for (uint32_t seed = 0; seed < 8; ++seed) {
    y.clear();
    if (!passes<hopper_kernel<planted>>(shape, arguments, seed)) return;
    const std::vector<int32_t> got = y.values();
    int wrong = 0;
    for (size_t i = 0; i < got.size(); ++i) {
      int32_t sum = 0;
      for (size_t k = 0; k < 128; ++k) sum += static_cast<int8_t>(x[i % 8 * stages * 128 + i / 512 * 128 + k]);
      wrong += got[i] != sum;
    }
    if (planted == bug::none)
      CHECK_EQ(wrong, 0);
    else
      CHECK(wrong > 0, "the bug shows in no value");
  }
}

TEST(a_ring_without_bugs) { hopper<bug::none>(nullptr); }
TEST(a_missing_fence_of_mbarriers) { hopper<bug::missing_mbarrier_fence>("fence_mbarrier_init is missing"); }
TEST(a_missing_wait_for_a_full_stage) { hopper<bug::missing_mbarrier_wait>("wgmma of shared offset"); }
TEST(a_missing_wait_for_an_empty_stage) {
  hopper<bug::missing_empty_wait>("all 1 arrivals of this phase have come already");
}
TEST(a_wrong_parity) { hopper<bug::wrong_parity>("waits for mbarrier_wait"); }
TEST(wrong_bytes) { hopper<bug::wrong_bytes>("waits for mbarrier_wait"); }
TEST(a_wrong_descriptor) { hopper<bug::wrong_swizzle>("not in the first row of a 128-byte swizzle's block"); }
TEST(a_missing_wgmma_fence) { hopper<bug::missing_wgmma_fence>("wgmma_fence is missing"); }
TEST(sums_touched_before_the_wait) { hopper<bug::sums_touched>("was touched before its wait"); }
TEST(sums_read_before_the_wait_are_poison) { hopper<bug::sums_read>(nullptr); }
TEST(a_missing_wgmma_wait) {
  hopper<bug::missing_wgmma_wait>("which a product in flight still reads: a wait is missing");
}
TEST(a_ring_without_its_producer) { hopper<bug::early_exit>("waits for mbarrier_wait"); }

// Ordinary stores, then a product that reads them through the asynchronous proxy.
template <bug planted>
LOWBIT_KERNEL(128, 1)
void stored_kernel(const output p) {
  const uint32_t base = shared_base();
  for (uint32_t i = static_cast<uint32_t>(thread_index()); i < 256; i += 128)
    shared_store<uint32_t>(base + i * 4, 0x01010101);
  if constexpr (planted != bug::missing_fence) fence_async_proxy();
  if constexpr (planted != bug::missing_barrier) sync_threads();
  const uint32_t ones[4] = {0x01010101, 0x01010101, 0x01010101, 0x01010101};
  int32_t d[4];
  wgmma_fence();
  wgmma<s8_t, 8>::run(d, ones, wgmma_descriptor(base), false);
  wgmma_commit();
  wgmma_wait<0>();
  global_store<int32_t>(p.y + thread_index(), d[0]);
}

TEST(a_missing_proxy_fence) {
  emulator::buffer<uint32_t> y(128);
  const launch_shape shape{.grid_x = 1, .threads = 128, .shared_bytes = 1024};
  if (passes<stored_kernel<bug::none>>(shape, output{y.data()}))
    for (const uint32_t v : y.values()) CHECK_EQ(v, 32u);
  expect<stored_kernel<bug::missing_fence>>(shape, output{y.data()}, "fence_async_proxy is missing");
  expect<stored_kernel<bug::missing_barrier>>(shape, output{y.data()}, "wgmma of shared offset");
}

}  // namespace
}  // namespace lowbit::cuda
