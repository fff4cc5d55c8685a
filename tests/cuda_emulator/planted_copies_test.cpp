// Bugs in a pipeline of cp.async; what accesses cost.
#include "planted_bugs.h"

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
};

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
  pipeline<bug::tail_read>("planted_copies_test.cpp:");
  pipeline<bug::tail_read>("CTA (0, 0, 0), thread 8: async_copy");
  pipeline<bug::tail_read>("pipeline_kernel");
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
