#include "emulator/machine.h"

#include <algorithm>
#include <atomic>
#include <bit>
#include <cstdarg>
#include <cstdio>
#include <cstdlib>
#include <cstring>

#include "emulator/counts.h"
#include "emulator/warpgroup.h"
#include "gemm/status.h"

namespace emulator {

thread_local lane* self = nullptr;
thread_local machine* running = nullptr;

namespace {

thread_local options wanted_options;
thread_local std::string last_failure;

const char* file_name(const char* path) {
  const char* const slash = std::strrchr(path, '/');
  return slash ? slash + 1 : path;
}

int shared_limit(int arch) {  // a CTA may have at most: CUDA C++ Programming Guide, Compute Capabilities
  if (arch == 80 || arch == 87) return 163 * 1024;
  if (arch == 86 || arch == 89 || arch >= 120) return 99 * 1024;
  return 227 * 1024;
}

}  // namespace

with::with(const options& wanted) : before_(wanted_options) { wanted_options = wanted; }
with::~with() { wanted_options = before_; }
const options& current_options() { return wanted_options; }
const std::string& failure() { return last_failure; }
void set_failure(std::string text) {
  std::fprintf(stderr, "emulator: %s\n", text.c_str());
  last_failure = std::move(text);
}

std::string text_of(place where) {
  return std::string(file_name(where.file_name())) + ':' + std::to_string(where.line());
}

// ---- errors ----------------------------------------------------------------------------------------------------

void error(place where, const char* format, ...) {
  char sentence[512];
  va_list arguments;
  va_start(arguments, format);
  std::vsnprintf(sentence, sizeof sentence, format, arguments);
  va_end(arguments);
  char position[128] = "";
  if (self) {
    const cta& c = *self->owner->owner;
    std::snprintf(position, sizeof position, "CTA (%d, %d, %d), thread %d: ", c.index[0], c.index[1], c.index[2],
                  self->owner->index * 32 + self->index);
  }
  running->stop(text_of(where) + ": " + position + sentence);
}

namespace {

struct stopped {};  // unwinds the lane that found the error

}  // namespace

void machine::stop(std::string text) {
  fail(std::move(text));
  if (!self) std::abort();  // stop() is for lanes
  throw stopped{};
}

// ---- lanes -----------------------------------------------------------------------------------------------------

void lane_main() {
  fiber::entered();
  lane& me = *self;
  try {
    running->request_.call(running->request_.arguments);
    running->finish_lane();
  } catch (const stopped&) {
  }
  self = nullptr;
  fiber::change(me.thread, running->home_);
  std::abort();
}

lane* machine::next_lane() {
  warp* const mine = self ? self->owner : nullptr;
  if (mine && mine->ready) {
    const uint32_t after = mine->ready & ~((2u << self->index) - 1);
    return &mine->lanes[std::countr_zero(self->index < 31 && after ? after : mine->ready)];
  }
  cluster& group = *active_;
  const int num_ctas = group.num_ctas;
  int total = 0;
  for (int c = 0; c < num_ctas; ++c) total += group.ctas[static_cast<size_t>(c)]->num_warps;
  int start = mine ? mine->slot : total - 1;
  if (seeded()) start = static_cast<int>(random_() % static_cast<unsigned>(total));
  for (int i = 1; i <= total; ++i) {
    const int slot = (start + i) % total;
    const int per_cta = group.ctas[0]->num_warps;
    warp& w = *group.ctas[static_cast<size_t>(slot / per_cta)]->warps[static_cast<size_t>(slot % per_cta)];
    if (w.ready) {
      const int first = seeded() ? static_cast<int>(random_() % 32) : 0;
      return &w.lanes[(std::countr_zero(std::rotr(w.ready, first)) + first) % 32];
    }
  }
  return nullptr;
}

void machine::leave() {
  lane* const me = self;
  if (seeded() && !active_->pending.empty() && coin(16)) land_one(*active_);
  lane* const next = next_lane();
  if (next == me) return;
  self = next;
  if (next) {
    if (!next->started) {
      next->started = true;
      next->thread.start(lane_main);
    }
    fiber::change(me->thread, next->thread);
  } else {
    fiber::change(me->thread, home_);
  }
  self = me;
}

void machine::spin(const char* what, place where) {
  lane& me = *self;
  warp& w = *me.owner;
  me.waits_for = what;
  me.waits_at = where;
  w.ready &= ~(1u << me.index);
  w.spinning |= 1u << me.index;
  leave();
}

void machine::finish_lane() {
  lane& me = *self;
  warp& w = *me.owner;
  me.groups.push_back(std::move(me.copies));
  for (const std::vector<copy_in_flight>& group : me.groups)
    if (!group.empty())
      error(group.front().where,
            "the thread ends with asynchronous copies in flight: nobody waited for the one issued here");
  me.copies.clear();
  me.groups.clear();
  if (has_products(w)) error(me.waits_at, "the thread ends with products in flight: nobody waited for them");
  me.gone = true;
  w.live &= ~(1u << me.index);
  w.ready &= w.live;
  --w.owner->live_threads;
  --w.owner->owner->live_threads;
  made_progress();
  if (!w.live) {
    flush_logs(w);
    barrier_state& state = w.owner->barriers[0];  // sync_threads waits for the warps that are left
    if (state.arrived && state.expected == 0) arrive(state, w, false, 0);
  }
  leave();
  std::abort();
}

// ---- grids -----------------------------------------------------------------------------------------------------

machine::machine(const launch_request& request, const options& wanted)
    : request_(request), options_(wanted), random_(wanted.seed) {
  static std::atomic<uint64_t> launches{0};
  id_ = ++launches;
  if (!options_.arch) options_.arch = request.compiled_arch / 10;
}

machine::~machine() = default;

void machine::prepare(cluster& group, int64_t index) {
  const int size = request_.cluster;
  group.num_ctas = size;
  while (group.ctas.size() < static_cast<size_t>(size)) group.ctas.push_back(std::make_unique<cta>());
  group.pending.clear();
  group.barrier = {};
  const int num_warps = request_.threads / 32;
  group.num_slots = num_warps * size;
  group.engine_epoch = 0;
  group.live_threads = static_cast<int64_t>(request_.threads) * size;
  for (int rank = 0; rank < size; ++rank) {
    cta& c = *group.ctas[static_cast<size_t>(rank)];
    const int64_t linear = index * size + rank;
    c.owner = &group;
    c.rank = rank;
    c.linear = static_cast<uint32_t>(linear);
    c.index[0] = static_cast<int>(linear % request_.grid[0]);
    c.index[1] = static_cast<int>(linear / request_.grid[0] % request_.grid[1]);
    c.index[2] = static_cast<int>(linear / request_.grid[0] / request_.grid[1]);
    c.num_warps = num_warps;
    c.live_threads = request_.threads;
    c.counted = options_.count && linear == 0;
    for (barrier_state& b : c.barriers) b = {};
    c.mbarriers.clear();
    c.products.clear();
    c.shared.reset(request_.shared_bytes, group.num_slots + 1);
    while (c.warps.size() < static_cast<size_t>(num_warps)) c.warps.push_back(std::make_unique<warp>());
    for (int i = 0; i < num_warps; ++i) {
      warp& w = *c.warps[static_cast<size_t>(i)];
      w.owner = &c;
      w.index = i;
      w.slot = rank * num_warps + i;
      w.live = w.ready = ~0u;
      w.spinning = w.arrived = 0;
      w.blocked = false;
      w.clock.assign(static_cast<size_t>(group.num_slots + 1) * 2, seen{});
      w.clock[static_cast<size_t>(w.slot)].epoch = 1;
      w.fence_epoch = w.fence_lanes = 0;
      for (int l = 0; l < 32; ++l) {
        lane& thread = w.lanes[l];
        thread.owner = &w;
        thread.index = l;
        thread.started = thread.gone = false;
        thread.copies.clear();
        thread.groups.clear();
        thread.log.clear();
        thread.clock.clear();
        thread.fence_epoch = 0;
      }
    }
  }
}

void machine::land_one(cluster& group) {
  const size_t which = seeded() ? random_() % group.pending.size() : group.pending.size() - 1;
  const std::unique_ptr<in_flight> work = std::move(group.pending[which]);
  group.pending.erase(group.pending.begin() + static_cast<std::ptrdiff_t>(which));
  const std::string wrong = work->land();
  made_progress();
  if (wrong.empty()) return;
  if (self)
    stop(wrong);
  else
    fail(wrong);
}

void machine::fail(std::string text) {
  report_ = "kernel " + request_.kernel + ": " + text;
  failed_ = true;
}

bool machine::run_cluster(cluster& group) {
  active_ = &group;
  for (;;) {
    self = nullptr;
    lane* const next = next_lane();
    if (next) {
      self = next;
      if (!next->started) {
        next->started = true;
        next->thread.start(lane_main);
      }
      fiber::change(home_, next->thread);
      if (failed_) return false;
      continue;
    }
    if (group.live_threads == 0 && group.pending.empty()) return true;
    const uint64_t before = phases_;
    while (!group.pending.empty() && phases_ == before) {
      land_one(group);
      if (failed_) return false;
    }
    bool woke = false;
    for (int c = 0; c < group.num_ctas; ++c)
      for (int i = 0; i < group.ctas[static_cast<size_t>(c)]->num_warps; ++i) {
        warp& w = *group.ctas[static_cast<size_t>(c)]->warps[static_cast<size_t>(i)];
        w.ready |= w.spinning;
        woke |= w.spinning != 0;
        w.spinning = 0;
      }
    if (!woke) {
      if (!group.pending.empty()) continue;
      if (group.live_threads == 0) return true;
      report_ = deadlock();
      failed_ = true;
      return false;
    }
    if (group.seen_progress == progress_) return false;  // only spinning: others' turn
    group.seen_progress = progress_;
  }
}

bool machine::run() {
  const int64_t total = static_cast<int64_t>(request_.grid[0]) * request_.grid[1] * request_.grid[2];
  const auto refuse = [&](const std::string& why) {
    report_ = "kernel " + request_.kernel + ": " + why;
    return false;
  };
  if (request_.threads < 1 || request_.threads > 1024) return refuse(std::to_string(request_.threads) + " threads");
  if (request_.threads % 32) return refuse(std::to_string(request_.threads) + " threads: not whole warps");
  if (total < 1 || request_.grid[0] < 1 || request_.grid[1] < 1 || request_.grid[2] < 1 || request_.grid[1] > 65535 ||
      request_.grid[2] > 65535)
    return refuse("a grid of " + std::to_string(request_.grid[0]) + " x " + std::to_string(request_.grid[1]) + " x " +
                  std::to_string(request_.grid[2]));
  if (request_.shared_bytes < 0 || request_.shared_bytes > shared_limit(options_.arch))
    return refuse(std::to_string(request_.shared_bytes) + " bytes of shared memory: sm_" +
                  std::to_string(options_.arch) + " has " + std::to_string(shared_limit(options_.arch)) + " for a CTA");
  if (request_.cluster < 1 || request_.cluster > 8 || request_.grid[0] % request_.cluster)
    return refuse("clusters of " + std::to_string(request_.cluster) + " CTAs in a grid of " +
                  std::to_string(request_.grid[0]));
  if (request_.cluster > 1 && options_.arch < 90) return refuse("clusters before sm_90");

  std::vector<int64_t> order(static_cast<size_t>(total / request_.cluster));
  for (size_t i = 0; i < order.size(); ++i) order[i] = static_cast<int64_t>(i);
  if (seeded()) std::shuffle(order.begin(), order.end(), random_);

  machine* const outer = running;
  lane* const outer_lane = self;
  running = this;
  size_t next = 0;
  uint64_t progress_before = ~uint64_t{0};
  while (!failed_ && (next < order.size() || !resident_.empty())) {
    for (size_t i = 0; i < resident_.size() && !failed_;) {
      resident_[i]->seen_progress = ~uint64_t{0};
      if (run_cluster(*resident_[i])) {
        pool_.push_back(std::move(resident_[i]));
        resident_.erase(resident_.begin() + static_cast<std::ptrdiff_t>(i));
      } else {
        ++i;
      }
    }
    if (failed_) break;
    if (next < order.size() &&
        static_cast<int>(resident_.size()) * request_.cluster < std::max(options_.resident, request_.cluster)) {
      std::unique_ptr<cluster> group;
      if (pool_.empty()) {
        group = std::make_unique<cluster>();
      } else {
        group = std::move(pool_.back());
        pool_.pop_back();
      }
      prepare(*group, order[next++]);
      group->seen_progress = ~uint64_t{0};
      if (run_cluster(*group))
        pool_.push_back(std::move(group));
      else
        resident_.push_back(std::move(group));
      progress_before = ~uint64_t{0};
    } else if (!resident_.empty()) {
      if (progress_before == progress_) {
        report_ = deadlock();
        failed_ = true;
      }
      progress_before = progress_;
    }
  }
  self = outer_lane;
  running = outer;
  return !failed_;
}

// ---- reports ---------------------------------------------------------------------------------------------------

std::string machine::where_everyone_is(cluster& group) {
  std::string text;
  for (int c = 0; c < group.num_ctas; ++c) {
    cta& block = *group.ctas[static_cast<size_t>(c)];
    for (int i = 0; i < block.num_warps; ++i) {
      warp& w = *block.warps[static_cast<size_t>(i)];
      for (int first = 0; first < 32;) {
        const auto state = [&](int l) {
          const lane& t = w.lanes[l];
          if (t.gone) return std::string("has returned");
          return std::string("waits for ") + (t.waits_for ? t.waits_for : "?") + " at " + text_of(t.waits_at);
        };
        int last = first;
        while (last + 1 < 32 && state(last + 1) == state(first)) ++last;
        text += "\n  CTA (" + std::to_string(block.index[0]) + ", " + std::to_string(block.index[1]) + ", " +
                std::to_string(block.index[2]) + "), warp " + std::to_string(i) + ", lanes " + std::to_string(first) +
                " .. " + std::to_string(last) + ": " + state(first);
        first = last + 1;
      }
    }
  }
  return text;
}

std::string machine::deadlock() {
  std::string text = "kernel " + request_.kernel + ": deadlock: nobody can go on";
  if (resident_.empty()) return text + where_everyone_is(*active_);
  for (const auto& group : resident_) text += where_everyone_is(*group);
  return text;
}

bool run(const launch_request& request) {
  machine m(request, wanted_options);
  last_failure.clear();
  if (m.run()) return true;
  last_failure = m.report();
  return false;
}

}  // namespace emulator
