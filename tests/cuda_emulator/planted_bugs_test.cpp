// Bugs that kernels have, planted: the emulator must name each. `bug::none` of the same kernel must pass, with any
// seed.
#include <string>
#include <vector>

#include "cuda/common/convert.h"
#include "cuda/common/launch.h"
#include "cuda/common/tma.h"
#include "cuda/common/wgmma.h"
#include "emulator/emulator.h"
#include "test.h"

namespace lowbit::cuda {
namespace {

enum class bug {
  none,
  missing_wait,
  wait_too_weak,
  missing_barrier,
  missing_second_barrier,
  wrong_swizzle,
  tail_read,
  tail_write,
  misaligned,
  unwritten,
  shared_overflow,
  forgotten_copy,
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

std::vector<uint32_t> counted(size_t count) {
  std::vector<uint32_t> v(count);
  for (size_t i = 0; i < count; ++i) v[i] = static_cast<uint32_t>(i * 2654435761u);
  return v;
}

template <auto kernel, class Arguments>
void expect(const launch_shape& shape, const Arguments& arguments, const char* text) {
  const lowbit_status status = launch<kernel>(shape, arguments);
  const std::string& failure = emulator::failure();
  CHECK_EQ(status, LOWBIT_UNSUPPORTED);
  CHECK(failure.find(text) != std::string::npos, "found \"%s\" instead of \"%s\"", failure.c_str(), text);
  // Every report names the kernel.
  CHECK(failure.find("kernel lowbit::cuda::") == 0, "%s", failure.c_str());
}

template <auto kernel, class Arguments>
bool passes(const launch_shape& shape, const Arguments& arguments, uint32_t seed = 0) {
  emulator::options options;
  options.seed = seed;
  const emulator::with with(options);
  CHECK_EQ(launch<kernel>(shape, arguments), LOWBIT_OK);
  CHECK(emulator::failure().empty(), "seed %u: %s", seed, emulator::failure().c_str());
  return emulator::failure().empty();
}

// ---- a pipeline of cp.async -------------------------------------------------------------------------------------

// y = x reversed within each stage of 64 words: every thread reads what another one of another warp brought.
struct pipeline_arguments {
  const uint32_t* x;
  uint32_t* y;
  int words;
};

constexpr uint32_t swizzle(uint32_t word) { return word ^ (word / 32 & 3) * 4; }

template <bug planted>
LOWBIT_KERNEL(64, 1)
void pipeline_kernel(const pipeline_arguments p) {
  constexpr int stages = 2, stage_words = 64;
  const uint32_t base = shared_base();
  const int thread = thread_index(), steps = (p.words + stage_words - 1) / stage_words;
  const auto stage = [&](int i) { return base + static_cast<uint32_t>(i % stages * stage_words * 4); };
  const auto fetch = [&](int i) {
    const int word = i * stage_words + thread;
    const bool inside = word < p.words + (planted == bug::tail_read);
    const uint32_t to = stage(i) + swizzle(static_cast<uint32_t>(thread)) * 4;
    async_copy<4>(planted == bug::misaligned ? to + 2 : to, p.x + (inside ? word : 0), inside ? 4 : 0);
  };
  if (steps > 0) fetch(0);
  async_commit();
  for (int i = 0; i < steps; ++i) {
    if (i + 1 < steps) fetch(i + 1);
    async_commit();
    if constexpr (planted == bug::wait_too_weak)
      async_wait<2>();
    else if constexpr (planted != bug::missing_wait)
      async_wait<1>();
    if constexpr (planted != bug::missing_barrier) sync_threads();
    const uint32_t other = static_cast<uint32_t>(63 - thread);
    const uint32_t value =
        shared_load<uint32_t>(stage(i) + (planted == bug::wrong_swizzle ? other : swizzle(other)) * 4);
    const int word = i * stage_words + thread;
    if (word < p.words + (planted == bug::tail_write)) global_store<uint32_t>(p.y + word, value);
    if constexpr (planted != bug::missing_second_barrier) sync_threads();
  }
  if constexpr (planted == bug::forgotten_copy) async_copy<4>(stage(0) + static_cast<uint32_t>(thread) * 4, p.x);
  if constexpr (planted == bug::unwritten) shared_load<uint32_t>(base + 512 + static_cast<uint32_t>(thread) * 4);
}

template <bug planted>
void pipeline(const char* text) {
  const std::vector<uint32_t> x = counted(200);
  emulator::buffer<uint32_t> device_x(x), y(200);
  const launch_shape shape{.grid_x = 1, .threads = 64, .shared_bytes = planted == bug::shared_overflow ? 500 : 1024};
  const pipeline_arguments arguments{device_x.data(), y.data(), 200};
  if (text) return expect<pipeline_kernel<planted>>(shape, arguments, text);
  for (uint32_t seed = 0; seed < 8; ++seed) {
    y.clear();
    if (!passes<pipeline_kernel<planted>>(shape, arguments, seed)) return;
    const std::vector<uint32_t> got = y.values();
    int wrong = 0;
    for (size_t i = 0; i < 200; ++i) {
      const size_t from = i / 64 * 64 + 63 - i % 64;
      wrong += got[i] != (from < 200 ? x[from] : 0);
    }
    if (planted == bug::none)
      CHECK_EQ(wrong, 0);
    else
      CHECK(wrong > 0, "the bug shows in no value");
  }
}

TEST(a_pipeline_without_bugs) { pipeline<bug::none>(nullptr); }
TEST(a_missing_wait) { pipeline<bug::missing_wait>("which an asynchronous copy in flight may write"); }
TEST(a_wait_too_weak) { pipeline<bug::wait_too_weak>("which an asynchronous copy in flight may write"); }
TEST(a_missing_barrier) { pipeline<bug::missing_barrier>("shared_load of shared offset"); }
TEST(a_missing_second_barrier) {
  pipeline<bug::missing_second_barrier>("which an asynchronous copy in flight may write");
}
TEST(a_wrong_swizzle_shows_in_the_values) { pipeline<bug::wrong_swizzle>(nullptr); }
TEST(an_off_by_one_tail_read) { pipeline<bug::tail_read>("byte 800 of a buffer of 800: out of bounds"); }
TEST(an_off_by_one_tail_write) { pipeline<bug::tail_write>("byte 800 of a buffer of 800: out of bounds"); }
TEST(a_misaligned_copy) { pipeline<bug::misaligned>("misaligned shared address"); }
TEST(unwritten_shared_memory) { pipeline<bug::unwritten>("which nobody has written"); }
TEST(more_shared_memory_than_asked_for) { pipeline<bug::shared_overflow>("of shared memory that has 500"); }
TEST(a_copy_that_nobody_waits_for) { pipeline<bug::forgotten_copy>("nobody waited for the one issued here"); }

TEST(reports_name_kernel_cta_thread_and_line) {
  pipeline<bug::tail_read>("planted_bugs_test.cpp:");
  pipeline<bug::tail_read>("CTA (0, 0, 0), thread 8: async_copy");
  pipeline<bug::tail_read>("pipeline_kernel");
}

// ---- warps and barriers -----------------------------------------------------------------------------------------

struct output {
  uint32_t* y;
};

LOWBIT_KERNEL(64, 1) void divergent_shuffle_kernel(const output p) {
  uint32_t v = static_cast<uint32_t>(thread_index());
  if (lane_index() < 16) v = shuffle_xor(v, 1);
  global_store<uint32_t>(p.y + thread_index(), v);
}
LOWBIT_KERNEL(64, 1) void two_shuffles_kernel(const output p) {
  uint32_t v = static_cast<uint32_t>(thread_index());
  if (lane_index() < 16)
    v = shuffle_xor(v, 1);
  else
    v = shuffle_xor(v, 2);
  global_store<uint32_t>(p.y + thread_index(), v);
}
LOWBIT_KERNEL(64, 1) void divergent_barrier_kernel(const output) {
  if (thread_index() != 40) sync_threads();
}
LOWBIT_KERNEL(64, 1) void barrier_count_kernel(const output) {
  if (warp_index() == 0) barrier_sync(1, 64);
}
LOWBIT_KERNEL(64, 1) void barrier_mismatch_kernel(const output) {
  if (warp_index() == 0)
    barrier_sync(1, 64);
  else
    barrier_arrive(1, 32);
}
LOWBIT_KERNEL(64, 1) void crossed_barriers_kernel(const output) {
  barrier_sync(warp_index() == 0 ? 1 : 2, 64);
  barrier_sync(warp_index() == 0 ? 2 : 1, 64);
}
template <bool synchronised>
LOWBIT_KERNEL(32, 1)
void neighbours_kernel(const output p) {
  const uint32_t base = shared_base(), lane = static_cast<uint32_t>(lane_index());
  shared_store<uint32_t>(base + lane * 4, lane);
  if constexpr (synchronised) sync_warp();
  global_store<uint32_t>(p.y + lane, shared_load<uint32_t>(base + (lane ^ 1) * 4));
}
LOWBIT_KERNEL(32, 1) void backwards_kernel(const output p) {  // each lane reads what the one before has written
  const uint32_t base = shared_base(), lane = static_cast<uint32_t>(lane_index());
  shared_store<uint32_t>(base + lane * 4, lane);
  if (lane > 0) global_store<uint32_t>(p.y + lane, shared_load<uint32_t>(base + (lane - 1) * 4));
}
LOWBIT_KERNEL(64, 1) void overwriting_kernel(const output) {  // warp 1, first behind the barrier, reads; warp 0 writes
  const uint32_t base = shared_base();
  if (thread_index() == 0) shared_store<uint32_t>(base, 1);
  sync_threads();
  if (warp_index() == 1) shared_load<uint32_t>(base);
  if (thread_index() == 0) shared_store<uint32_t>(base, 2);
}
LOWBIT_KERNEL(64, 1) void same_word_kernel(const output) { shared_store<uint32_t>(shared_base(), 1); }
LOWBIT_KERNEL(64, 1) void bytes_of_a_word_kernel(const output p) {
  const uint32_t base = shared_base();
  shared_store<uint8_t>(base + static_cast<uint32_t>(thread_index()), static_cast<uint8_t>(thread_index()));
  sync_threads();
  global_store<uint32_t>(p.y + thread_index(), shared_load<uint8_t>(base + static_cast<uint32_t>(63 - thread_index())));
}
LOWBIT_KERNEL(64, 1) void unwritten_global_kernel(const output p) { global_load<uint32_t>(p.y + thread_index()); }
// CTA 1 spins for CTA 0; with `backwards` CTA 0 for the last one.
template <bool forever>
LOWBIT_KERNEL(32, 1)
void spinning_kernel(const output p) {
  if (cta_index() > 0 || forever) {
    if (lane_index() == 0)
      while (global_load_acquire(p.y) == 0) {
      }
    sync_warp();
  } else if (lane_index() == 0) {
    atomic_add_release(p.y, 1);
  }
}

TEST(divergent_collectives) {
  emulator::buffer<uint32_t> y(64);
  const launch_shape shape{.grid_x = 1, .threads = 64};
  expect<divergent_shuffle_kernel>(shape, output{y.data()}, "lanes 0 .. 15: waits for shuffle_xor at planted_bugs");
  expect<two_shuffles_kernel>(shape, output{y.data()}, "all 32 must come to the same place");
  expect<divergent_barrier_kernel>(shape, output{y.data()}, "warp 1, lanes 8 .. 8: has returned");
}

TEST(barriers_that_never_complete) {
  emulator::buffer<uint32_t> y(64);
  const launch_shape shape{.grid_x = 1, .threads = 64};
  expect<barrier_count_kernel>(shape, output{y.data()}, "deadlock");
  expect<barrier_mismatch_kernel>(shape, output{y.data()}, "while others wait at it for 64");
  expect<crossed_barriers_kernel>(shape, output{y.data()}, "warp 1, lanes 0 .. 31: waits for barrier at planted_bugs");
}

TEST(races_within_a_warp_and_between_warps) {
  emulator::buffer<uint32_t> y(64);
  const launch_shape one{.grid_x = 1, .threads = 32, .shared_bytes = 256},
      two{.grid_x = 1, .threads = 64, .shared_bytes = 256};
  expect<neighbours_kernel<false>>(one, output{y.data()}, "shared_load of shared offset 4, which nobody has written");
  expect<backwards_kernel>(one, output{y.data()}, "race: shared_load of shared offset 0, which thread 0");
  expect<overwriting_kernel>(two, output{y.data()},
                             "race: shared_store of shared offset 0, which warp 1 of CTA 0 of the cluster has read");
  passes<neighbours_kernel<true>>(one, output{y.data()});
  expect<same_word_kernel>(two, output{y.data()}, "race: shared_store");
  passes<bytes_of_a_word_kernel>(two, output{y.data()}, 3);
}

TEST(global_memory_that_nobody_wrote_or_that_is_not_to_be_written) {
  emulator::buffer<uint32_t> y(64), constant(counted(64));
  expect<unwritten_global_kernel>(launch_shape{.grid_x = 1, .threads = 64}, output{y.data()},
                                  "which nobody has written");
  expect<neighbours_kernel<true>>(launch_shape{.grid_x = 1, .threads = 32, .shared_bytes = 128},
                                  output{constant.data()}, "that kernels may only read");
  uint32_t host[64];
  expect<neighbours_kernel<true>>(launch_shape{.grid_x = 1, .threads = 32, .shared_bytes = 128}, output{host},
                                  "no device memory");
}

TEST(ctas_that_wait_for_others) {
  emulator::buffer<uint32_t> y(1);
  for (uint32_t seed = 0; seed < 4; ++seed) {
    y.fill(0);
    passes<spinning_kernel<false>>(launch_shape{.grid_x = 8, .threads = 32}, output{y.data()}, seed);
  }
  y.fill(0);
  expect<spinning_kernel<true>>(launch_shape{.grid_x = 2, .threads = 32}, output{y.data()},
                                "waits for global_load_acquire");
}

TEST(shapes_that_no_chip_has) {
  emulator::buffer<uint32_t> y(64);
  expect<same_word_kernel>(launch_shape{.grid_x = 1, .threads = 64, .shared_bytes = 300000}, output{y.data()},
                           "sm_90 has 232448");
  expect<same_word_kernel>(launch_shape{.grid_x = 1, .threads = 48, .shared_bytes = 4}, output{y.data()},
                           "whole warps");
  emulator::options options;
  options.arch = 80;
  const emulator::with with(options);
  expect<same_word_kernel>(launch_shape{.grid_x = 1, .threads = 64, .shared_bytes = 200000}, output{y.data()},
                           "sm_80 has 166912");
}

// Split-K: each CTA leaves a part; the last to come, which the counter tells, adds them up. In order, whoever is last.
struct split_arguments {
  uint32_t *parts, *counter, *y;
};

template <bug planted>
LOWBIT_KERNEL(32, 1)
void split_kernel(const split_arguments p) {
  const int lane = lane_index();
  global_store<uint32_t>(p.parts + cta_index() * 32 + lane, static_cast<uint32_t>(cta_index() + lane));
  sync_warp();
  uint32_t before = 0;
  if (planted == bug::missing_barrier) {  // the last CTA takes itself for the last to come
    before = static_cast<uint32_t>(cta_index());
  } else {
    if (lane == 0) before = atomic_add_release(p.counter, 1);
    before = shuffle(before, 0);
  }
  if (before + 1 < static_cast<uint32_t>(num_ctas())) return;
  uint32_t sum = 0;
  for (int i = 0; i < num_ctas(); ++i) sum += global_load<uint32_t>(p.parts + i * 32 + lane);
  global_store<uint32_t>(p.y + lane, sum);
}

TEST(races_between_ctas) {
  emulator::buffer<uint32_t> parts(8 * 32), counter(1), y(32);
  const launch_shape shape{.grid_x = 8, .threads = 32};
  const split_arguments arguments{parts.data(), counter.data(), y.data()};
  for (uint32_t seed = 0; seed < 6; ++seed) {
    counter.fill(0);
    parts.clear();
    if (!passes<split_kernel<bug::none>>(shape, arguments, seed)) return;
    const std::vector<uint32_t> got = y.values();
    for (uint32_t lane = 0; lane < 32; ++lane) CHECK_EQ(got[lane], 28 + 8 * lane);
  }
  expect<split_kernel<bug::missing_barrier>>(shape, arguments, "race: global_load");
  emulator::options options;
  options.races = false;
  const emulator::with with(options);
  CHECK_EQ(launch<split_kernel<bug::missing_barrier>>(shape, arguments), LOWBIT_OK);
}

LOWBIT_KERNEL(32, 1) void same_output_kernel(const output p) { global_store<uint32_t>(p.y + lane_index(), 1); }

TEST(two_ctas_that_write_the_same_bytes) {
  emulator::buffer<uint32_t> y(32);
  expect<same_output_kernel>(launch_shape{.grid_x = 2, .threads = 32}, output{y.data()},
                             "race: global_store at byte 0");
  passes<same_output_kernel>(launch_shape{.grid_x = 1, .threads = 32}, output{y.data()});
  passes<same_output_kernel>(launch_shape{.grid_x = 1, .threads = 32}, output{y.data()});  // another launch may
}

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

// ---- what accesses cost -----------------------------------------------------------------------------------------

template <int pitch>  // words between the rows of a matrix that is read by columns of 16-byte rows
LOWBIT_KERNEL(32, 1) void conflicts_kernel(const pipeline_arguments p) {
  const uint32_t base = shared_base(), lane = static_cast<uint32_t>(lane_index());
  shared_store<u32x4>(base + lane * pitch * 4, global_load<u32x4>(p.x + lane * 4));
  sync_warp();
  uint32_t r[4];
  ldmatrix<4>(r, base + lane * pitch * 4);
  global_store<uint32_t>(p.y + lane * (pitch == 32 ? 8 : 1), r[0]);
}

TEST(conflicts_and_sectors_are_counted) {
  emulator::buffer<uint32_t> x(counted(128)), y(256);
  emulator::clear_access_counts();
  passes<conflicts_kernel<36>>(launch_shape{.grid_x = 1, .threads = 32, .shared_bytes = 32 * 36 * 4},
                               pipeline_arguments{x.data(), y.data(), 0});
  CHECK_EQ(emulator::worse_than(1, 1), "");
  passes<conflicts_kernel<32>>(launch_shape{.grid_x = 1, .threads = 32, .shared_bytes = 32 * 32 * 4},
                               pipeline_arguments{x.data(), y.data(), 0});
  int matrices = 0, stores = 0;
  for (const emulator::access_count& c : emulator::access_counts()) {
    if (c.kernel.find("<32>") == std::string::npos) continue;
    if (c.kind == emulator::matrix_read) CHECK(c.ratio() == 8, "%g", c.ratio());   // 8 rows in the same four banks
    if (c.kind == emulator::global_write) CHECK(c.ratio() == 8, "%g", c.ratio());  // 4 bytes of each sector
    matrices += c.kind == emulator::matrix_read;
    stores += c.kind == emulator::global_write;
  }
  CHECK(matrices == 1 && stores == 1, "%d, %d", matrices, stores);
  CHECK(!emulator::worse_than(2, 2).empty(), "the bound holds?");
}

}  // namespace
}  // namespace lowbit::cuda
