// The kernels of sm90 themselves with one synchronisation left out or made wrong: the emulator must say what is wrong.
// Their source is compiled once more, in a namespace of its own, with vocabulary that a bug can spoil.
#include "cuda/common/launch.h"
#include "cuda/common/tma.h"
#include "cuda/common/wgmma.h"
#include "cuda/generic/decode.h"
#include "cuda/generic/epilogue.h"
#include "fragments_support.h"

namespace {

enum class bug {
  none,
  missing_full_wait,
  missing_empty_wait,
  missing_empty_arrival,
  empty_arrival_of_own_cta_alone,
  too_many_bytes,
  too_few_bytes,
  missing_wgmma_fence,
  missing_wgmma_wait,
  missing_barrier_init_fence,
  missing_first_cluster_sync,
  missing_last_cluster_sync,
  multicast_to_one,
  missing_turn,
  missing_output_barrier,
};
bug planted = bug::none;

bool is_producer() { return lowbit::cuda::thread_index() < 128; }

}  // namespace

namespace lowbit::cuda {
namespace {

inline void spoiled_wait(uint32_t barrier, uint32_t parity, place where = place::current()) {
  if (planted == (is_producer() ? bug::missing_empty_wait : bug::missing_full_wait)) return;
  mbarrier_wait(barrier, parity, where);
}
inline void spoiled_arrive(uint32_t barrier, place where = place::current()) {
  if (planted != bug::missing_empty_arrival) mbarrier_arrive(barrier, where);
}
inline void spoiled_arrive_cluster(uint32_t barrier, int cta, place where = place::current()) {
  if (planted == bug::missing_empty_arrival) return;
  if (planted == bug::empty_arrival_of_own_cta_alone && cta != cluster_rank()) return;
  mbarrier_arrive_cluster(barrier, cta, where);
}
inline void spoiled_expect_bytes(uint32_t barrier, int bytes, place where = place::current()) {
  if (planted == bug::too_many_bytes) bytes += 16;
  if (planted == bug::too_few_bytes) bytes -= 2048;
  mbarrier_expect_bytes(barrier, bytes, where);
}
inline void spoiled_init_fence() {
  if (planted != bug::missing_barrier_init_fence) fence_mbarrier_init();
}
inline void spoiled_wgmma_fence(place where = place::current()) {
  if (planted != bug::missing_wgmma_fence) wgmma_fence(where);
}
template <int pending>
void spoiled_wgmma_wait(place where = place::current()) {
  if (planted != bug::missing_wgmma_wait) wgmma_wait<pending>(where);
}
inline void spoiled_first_cluster_sync(place where = place::current()) {
  if (planted != bug::missing_first_cluster_sync) cluster_sync(where);
}
inline void spoiled_last_cluster_sync(place where = place::current()) {
  if (planted != bug::missing_last_cluster_sync) cluster_sync(where);
}
template <cache hint = cache::normal>
void spoiled_multicast(uint32_t shared, const tensor_map& map, int column, int row, uint32_t barrier, uint16_t ctas,
                       place where = place::current()) {
  tensor_copy_multicast<hint>(shared, map, column, row, barrier, planted == bug::multicast_to_one ? 1 : ctas, where);
}
inline void spoiled_barrier_sync(int id, int threads, place where = place::current()) {
  if (planted == (threads == 256 ? bug::missing_turn : bug::missing_output_barrier)) return;
  barrier_sync(id, threads, where);
}
inline void spoiled_barrier_arrive(int id, int threads, place where = place::current()) {
  if (planted != bug::missing_turn) barrier_arrive(id, threads, where);
}

}  // namespace
}  // namespace lowbit::cuda

#define sm90 sm90_spoiled
#define mbarrier_wait spoiled_wait
#define mbarrier_arrive spoiled_arrive
#define mbarrier_arrive_cluster spoiled_arrive_cluster
#define mbarrier_expect_bytes spoiled_expect_bytes
#define fence_mbarrier_init spoiled_init_fence
#define wgmma_fence spoiled_wgmma_fence
#define wgmma_wait spoiled_wgmma_wait
#define tensor_copy_multicast spoiled_multicast
#define barrier_sync spoiled_barrier_sync
#define barrier_arrive spoiled_barrier_arrive
#define cluster_sync spoiled_first_cluster_sync
#include "cuda/sm90/pipeline.h"
#undef cluster_sync
#define cluster_sync spoiled_last_cluster_sync
#include "cuda/sm90/fp8.cu"
#undef sm90

namespace {

namespace spoiled = lowbit::cuda::sm90_spoiled;

const lowbit::cuda::kernel_row& row_called(const char* name) {
  for (int i = 0; i < spoiled::num_fp8_rows; ++i)
    if (std::strcmp(spoiled::fp8_rows[i].name, name) == 0) return spoiled::fp8_rows[i];
  test::fail(__FILE__, __LINE__, "there is no %s", name);
  return spoiled::fp8_rows[0];
}

// Several tiles for each CTA, and more stages than there are slots. With any seed without a bug; with one, some seed
// tells.
void run(bug b, const char* name, const char* text, int64_t x_group = 0) {
  const lowbit::cuda::kernel_row& row = row_called(name);
  random_source random(7);
  const int64_t k = row.mr > 16 ? 1152 : 2176;
  const fragment_weight w = random_fragments(lowbit::format_at(lowbit::find_format("fp8_e4m3")), row.nr * 4, k,
                                             x_group ? x_group : k, LOWBIT_F32, false, random);
  product p(w, row.mr / 2 * 3, LOWBIT_E4M3, random);
  p.x_stride = k;
  p.x.resize(static_cast<size_t>(p.m * k), 0x30);
  p.y_dtype = LOWBIT_BF16;
  p.sms = 2;
  p.x_group = x_group;
  p.x_scale.assign(static_cast<size_t>(x_group ? p.m * lowbit::ceil_div(k, x_group) : 1), 0.5f);
  p.accumulate = std::strstr(name, "fast") ? lowbit::cuda::accumulation::fast : lowbit::cuda::accumulation::promoted;
  p.may_fail = b != bug::none;
  planted = b;
  std::string said;
  bool found = false;
  for (uint32_t seed = 0; seed < (b == bug::none ? 2u : 4u) && !found; ++seed) {
    emulator::options options;
    options.seed = seed;
    options.count = false;
    const emulator::with with(options);
    const bool done = p.run(row, name);
    CHECK(!p.refused, "%s refuses", name);
    if (b == bug::none) {
      CHECK(done, "%s", name);
    } else if (!done) {
      said = emulator::failure();
      found = said.find(text) != std::string::npos;
    }
  }
  planted = bug::none;
  CHECK(b == bug::none || found, "%s: \"%s\" instead of \"%s\"", name, said.c_str(), text);
}

constexpr const char* together = "fp8_fast_sm90_128x128";
constexpr const char* in_turns = "fp8_fast_sm90_256x64_in_turns";
constexpr const char* alone = "fp8_fast_sm90_16x64";
constexpr const char* blocks = "fp8_promoted_sm90_128x128";

}  // namespace

TEST(no_bug) {
  for (const char* name : {together, in_turns, alone}) run(bug::none, name, nullptr);
  run(bug::none, blocks, nullptr, 128);
}
TEST(a_full_barrier_is_not_waited_for) { run(bug::missing_full_wait, alone, "which an asynchronous copy"); }
TEST(an_empty_barrier_is_not_waited_for) { run(bug::missing_empty_wait, alone, "and its bytes have not landed"); }
TEST(a_stage_is_not_given_back) {
  run(bug::missing_empty_arrival, alone, "deadlock");
  run(bug::missing_empty_arrival, together, "deadlock");
}
TEST(a_stage_is_not_given_back_to_the_other_cta) { run(bug::empty_arrival_of_own_cta_alone, together, "deadlock"); }
TEST(more_bytes_are_expected_than_come) { run(bug::too_many_bytes, alone, "deadlock"); }
TEST(fewer_bytes_are_expected_than_come) {
  run(bug::too_few_bytes, alone, "no barrier that this thread waited for tells that it has landed");
}
TEST(products_without_a_fence) {
  run(bug::missing_wgmma_fence, alone,
      "wgmma_fence is missing between ordinary accesses to registers and this product");
}
TEST(products_are_not_waited_for) {
  run(bug::missing_wgmma_wait, alone, "which a product in flight still reads: a wait is missing");
}
TEST(barriers_are_not_shown_to_copies) {
  run(bug::missing_barrier_init_fence, alone, "whose initialisation was not fenced: fence_mbarrier_init is missing");
}
TEST(a_cluster_starts_before_its_barriers) {
  run(bug::missing_first_cluster_sync, together, "there is no mbarrier at shared offset");
}
TEST(a_cta_leaves_its_cluster_early) { run(bug::missing_last_cluster_sync, together, "of the cluster has ended"); }
TEST(rows_of_x_reach_one_cta_alone) { run(bug::multicast_to_one, together, "deadlock"); }
TEST(nobody_waits_for_its_turn) { run(bug::missing_turn, in_turns, "shared_load of shared offset"); }
TEST(outputs_are_stored_before_they_are_there) {
  run(bug::missing_output_barrier, together, "shared_load of shared offset");
}
