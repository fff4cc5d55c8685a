// Bugs where lanes, warps and CTAs wait for each other, or do not.
#include "planted_bugs.h"

namespace lowbit::cuda {
namespace {

enum class bug {
  none,
  missing_barrier,
};

// ---- warps and barriers -----------------------------------------------------------------------------------------

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
  expect<divergent_shuffle_kernel>(shape, output{y.data()},
                                   "lanes 0 .. 15: waits for shuffle_xor at planted_synchronization");
  expect<two_shuffles_kernel>(shape, output{y.data()}, "all 32 must come to the same place");
  expect<divergent_barrier_kernel>(shape, output{y.data()}, "warp 1, lanes 8 .. 8: has returned");
}

TEST(barriers_that_never_complete) {
  emulator::buffer<uint32_t> y(64);
  const launch_shape shape{.grid_x = 1, .threads = 64};
  expect<barrier_count_kernel>(shape, output{y.data()}, "deadlock");
  expect<barrier_mismatch_kernel>(shape, output{y.data()}, "while others wait at it for 64");
  expect<crossed_barriers_kernel>(shape, output{y.data()},
                                  "warp 1, lanes 0 .. 31: waits for barrier at planted_synchronization");
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

}  // namespace
}  // namespace lowbit::cuda
