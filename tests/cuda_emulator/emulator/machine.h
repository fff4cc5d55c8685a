// The emulated machine: grids of CTAs (in clusters), warps of lanes, one fiber for a lane. One host thread runs a grid
// to its end; several host threads may each run one.
//
// A lane runs until it has to wait. What all lanes of a warp do together (PTX: .sync.aligned) happens when the last of
// them comes; a lane at another place by then, or gone, is an error. Barriers count warps. When nobody can go on,
// asynchronous work that is still in flight lands, the latest moment there is; when there is none, it is a deadlock.
//
// Who has seen whose accesses is kept in vector clocks, one entry for a warp: synchronisation releases the clock of who
// arrives and gives it to who waits. Accesses that no clock orders are races (shared_memory.h).
#pragma once

#include <cstdint>
#include <deque>
#include <map>
#include <memory>
#include <random>
#include <source_location>
#include <string>
#include <vector>

#include "emulator/emulator.h"
#include "emulator/fiber.h"
#include "emulator/shared_memory.h"

namespace emulator {

using place = std::source_location;

struct cta;
struct cluster;
struct warp;
class machine;

// What one has seen of a warp: all its accesses up to an epoch, and of the next epoch those of some lanes (who arrived
// at an mbarrier alone).
struct seen {
  uint32_t epoch = 0, lanes = 0;
  bool covers(uint32_t when, unsigned lane) const {  // lane >= 32: several
    return when <= epoch || (when == epoch + 1 && (lane < 32 ? lanes >> lane & 1 : lanes == ~0u));
  }
  void join(const seen& other) {
    if (other.epoch > epoch)
      *this = other;
    else if (other.epoch == epoch)
      lanes |= other.lanes;
  }
};
// [slot] of each warp of the cluster, and at the end of the engine; then the same again: what proxy fences have made
// visible to asynchronous work.
using clock_vector = std::vector<seen>;

void join(clock_vector& to, const clock_vector& from);

struct copy_in_flight {  // cp.async
  uint32_t shared;
  int bytes, valid;
  const uint8_t* global;
  place where;
};

struct access {  // one lane's, for the counters
  uint64_t address;
  int bytes;
  place where;
  int kind;
};

struct lane {
  fiber thread;
  warp* owner = nullptr;
  int index = 0;
  bool started = false, gone = false;
  const char* waits_for = nullptr;
  place waits_at;
  std::vector<copy_in_flight> copies;              // since the last commit
  std::deque<std::vector<copy_in_flight>> groups;  // committed, the oldest first
  std::vector<access> log;
  clock_vector clock;        // beyond the warp's: from an mbarrier that this lane alone waited for; mostly empty
  uint32_t fence_epoch = 0;  // its own accesses up to here are fenced

  bool saw(size_t slot, uint32_t epoch, unsigned other_lane, bool fenced) const;
};

struct warpgroup_products;  // warpgroup.h
struct mbarrier_state {
  int arrivals = 0, pending = 0;
  int64_t bytes = 0;              // expected and not landed
  uint32_t phase = 0;             // how many have completed
  clock_vector clock, completed;  // of this phase; of those before
};

struct warp {
  cta* owner = nullptr;
  int index = 0;  // in the CTA
  int slot = 0;   // in the cluster's clocks
  lane lanes[32];
  uint32_t live = 0, ready = 0, spinning = 0, arrived = 0;
  void (*doing)(warp&, void* const*) = nullptr;  // the collective that lanes have arrived at
  place doing_at;
  void* arguments[32] = {};
  bool blocked = false;  // the whole warp, at a barrier
  clock_vector clock;
  uint32_t fence_epoch = 0, fence_lanes = 0;  // lanes that have fenced their accesses of this epoch

  uint32_t epoch() const { return clock[static_cast<size_t>(slot)].epoch; }
  void next_epoch();  // all lanes see what each has seen, and what each did before is behind them
};

struct barrier_state {
  int arrived = 0, expected = 0;  // warps
  uint32_t warps = 0;             // that have arrived in this phase
  std::vector<warp*> waiting;
  clock_vector clock;
};

struct cta {
  cluster* owner = nullptr;
  int rank = 0;  // in the cluster
  int index[3] = {};
  uint32_t linear = 0;  // in the grid
  std::vector<std::unique_ptr<warp>> warps;
  int num_warps = 0;
  int live_threads = 0;
  barrier_state barriers[16];
  std::map<uint32_t, mbarrier_state> mbarriers;  // by address
  std::vector<std::shared_ptr<warpgroup_products>> products;
  shared_memory shared;
  bool counted = false;  // the counters look at this one
};

// Asynchronous work of the bulk engines and of wgmma: lands when it must, or earlier with a seed.
struct in_flight {
  virtual ~in_flight() = default;
  virtual std::string land() = 0;  // what went wrong, or ""
};

struct cluster {
  std::vector<std::unique_ptr<cta>> ctas;
  int num_ctas = 0;
  int64_t live_threads = 0;
  int num_slots = 0;  // warps of all CTAs
  std::deque<std::unique_ptr<in_flight>> pending;
  barrier_state barrier;      // barrier.cluster
  uint32_t engine_epoch = 0;  // of the last slot: a copy that lands is one
  uint64_t seen_progress = 0;
};

extern thread_local lane* self;
extern thread_local machine* running;

class machine {
 public:
  machine(const launch_request& request, const options& wanted);
  ~machine();

  bool run();  // false: report() tells
  const std::string& report() const { return report_; }

  const options& wanted() const { return options_; }
  const launch_request& request() const { return request_; }
  std::mt19937& random() { return random_; }
  bool seeded() const { return options_.seed != 0; }
  bool coin(unsigned of) { return seeded() && random_() % of == 0; }
  cluster& current_cluster() { return *self->owner->owner->owner; }

  uint64_t id() const { return id_; }  // of the launch

  // Between CTAs: release_to() leaves at an address what the current one has seen, acquire_from() takes it.
  void release_to(const void* address);
  void acquire_from(const void* address);
  bool has_seen(const cta& who, uint32_t other) const;

  void made_progress() { ++progress_; }
  void phase_completed() { ++phases_; }  // of an mbarrier: who waits for one looks again

  // The current lane stays until someone else makes it ready.
  void leave();
  // Back to the scheduler with every other lane first: someone spins.
  void spin(const char* what, place where);
  [[noreturn]] void finish_lane();
  [[noreturn]] void stop(std::string text);

  void collective(void (*execute)(warp&, void* const*), void* argument, const char* name, place where);
  void barrier(int id, int threads, bool wait, place where);
  void cluster_barrier(place where);
  void land_one(cluster& group);
  void fail(std::string text);  // outside of lanes

 private:
  lane* next_lane();
  void arrive(barrier_state& state, warp& w, bool wait, int expected);
  void prepare(cluster& group, int64_t index);
  bool run_cluster(cluster& group);  // false: only spinning lanes are left
  std::string deadlock();
  std::string where_everyone_is(cluster& group);
  void flush_logs(warp& w);
  friend void lane_main();

  launch_request request_;
  options options_;
  std::mt19937 random_;
  fiber home_;
  cluster* active_ = nullptr;
  std::vector<std::unique_ptr<cluster>> pool_, resident_;
  std::string report_;
  bool failed_ = false;
  uint64_t progress_ = 0, phases_ = 0;
  uint64_t id_;
  using cta_set = std::vector<bool>;
  std::map<uint32_t, cta_set> seen_;         // by each CTA that has acquired something
  std::map<const void*, cta_set> released_;  // at each address
};

// Ends the launch with an error at the current lane.
[[noreturn, gnu::format(printf, 2, 3)]] void error(place where, const char* format, ...);

std::string text_of(place where);  // file.h:12
void set_failure(std::string text);

// What lanes of a warp do together: op(warp&, Argument*[32]) is called once, by the last to come.
template <auto execute, class Argument>
void together(const char* name, Argument& argument, place where) {
  running->collective(
      [](warp& w, void* const* arguments) { execute(w, reinterpret_cast<Argument* const*>(arguments)); }, &argument,
      name, where);
}

}  // namespace emulator
