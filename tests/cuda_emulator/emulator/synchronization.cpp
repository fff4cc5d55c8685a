// How warps, CTAs and clusters wait for each other, and what they have seen when they go on.
#include <algorithm>
#include <bit>

#include "emulator/counts.h"
#include "emulator/machine.h"

namespace emulator {

// ---- what a warp does together ---------------------------------------------------------------------------------

void machine::flush_logs(warp& w) {
  if (w.owner->counted) count_accesses(w, request_.kernel);
}

void machine::collective(void (*execute)(warp&, void* const*), void* argument, const char* name, place where) {
  lane& me = *self;
  warp& w = *me.owner;
  if (w.arrived == 0) {
    w.doing = execute;
    w.doing_at = where;
  } else if (w.doing != execute || w.doing_at.line() != where.line() || w.doing_at.column() != where.column() ||
             w.doing_at.file_name() != where.file_name()) {
    error(where, "%s by lane %d, while other lanes of the warp wait at %s: all 32 must come to the same place", name,
          me.index, text_of(w.doing_at).c_str());
  }
  w.arguments[me.index] = argument;
  w.arrived |= 1u << me.index;
  w.ready &= ~(1u << me.index);
  me.waits_for = name;
  me.waits_at = where;
  if (w.arrived != ~0u) {
    leave();
    return;
  }
  flush_logs(w);
  w.arrived = 0;
  w.blocked = false;
  execute(w, w.arguments);
  if (w.blocked)
    leave();
  else
    w.ready = w.live;
}

void join(clock_vector& to, const clock_vector& from) {
  if (to.size() < from.size()) to.resize(from.size());
  for (size_t i = 0; i < from.size(); ++i) to[i].join(from[i]);
}

void warp::next_epoch() {
  for (lane& l : lanes)
    if (!l.clock.empty()) {
      join(clock, l.clock);
      l.clock.clear();
    }
  seen& own = clock[static_cast<size_t>(slot)];
  own = {own.epoch + 1, 0};
}

bool lane::saw(size_t slot, uint32_t epoch, unsigned other_lane, bool fenced) const {
  const warp& mine = *owner;
  if (slot == static_cast<size_t>(mine.slot) && !fenced)
    return epoch < mine.epoch() || other_lane == static_cast<unsigned>(index);
  if (fenced && slot == static_cast<size_t>(mine.slot) && other_lane == static_cast<unsigned>(index) &&
      epoch <= fence_epoch)
    return true;
  const size_t at = fenced ? mine.clock.size() / 2 + slot : slot;
  return mine.clock[at].covers(epoch, other_lane) || (!clock.empty() && clock[at].covers(epoch, other_lane));
}

// ---- barriers --------------------------------------------------------------------------------------------------

void machine::arrive(barrier_state& state, warp& w, bool wait, int expected) {
  if (w.live) {
    const uint32_t epoch = w.epoch();
    w.next_epoch();
    join(state.clock, w.clock);
    state.clock[static_cast<size_t>(w.slot)] = {epoch, 0};
    ++state.arrived;
    if (wait) {
      w.blocked = true;
      state.waiting.push_back(&w);
    }
  }
  int needed = expected;
  if (needed == 0)  // all that live
    for (int i = 0; i < w.owner->num_warps; ++i) needed += w.owner->warps[static_cast<size_t>(i)]->live != 0;
  if (state.arrived < needed) return;
  for (warp* other : state.waiting) {
    join(other->clock, state.clock);
    other->blocked = false;
    other->ready = other->live;
  }
  state.waiting.clear();
  state.clock.clear();
  state.arrived = 0;
  state.expected = 0;
  made_progress();
}

namespace {

struct barrier_request {
  int id, threads;
  bool wait;
  place where;
};

}  // namespace

void machine::barrier(int id, int threads, bool wait, place where) {
  barrier_request mine{id, threads, wait, where};
  const auto execute = [](warp& w, void* const* arguments) {
    const auto& first = *static_cast<const barrier_request*>(arguments[0]);
    for (int i = 1; i < 32; ++i) {
      const auto& other = *static_cast<const barrier_request*>(arguments[i]);
      if (other.id != first.id || other.threads != first.threads)
        error(first.where, "lanes of a warp wait at different barriers: %d of %d threads, %d of %d", first.id,
              first.threads, other.id, other.threads);
    }
    if (first.id < 0 || first.id > 15) error(first.where, "there is no barrier %d: 0 .. 15", first.id);
    if (first.threads % 32 || first.threads < 0 || first.threads > w.owner->num_warps * 32)
      error(first.where, "a barrier of %d threads in a CTA of %d: a multiple of 32, at most all", first.threads,
            w.owner->num_warps * 32);
    barrier_state& state = w.owner->barriers[first.id];
    if (state.arrived && state.expected != first.threads)
      error(first.where, "barrier %d of %d threads, while others wait at it for %d", first.id, first.threads,
            state.expected);
    state.expected = first.threads;
    running->arrive(state, w, first.wait, first.threads / 32);
  };
  collective(execute, &mine, wait ? "barrier" : "barrier_arrive", where);
}

void machine::cluster_barrier(place where) {
  int unused = 0;
  const auto execute = [](warp& w, void* const*) {
    cluster& group = *w.owner->owner;
    int expected = 0;
    for (int c = 0; c < group.num_ctas; ++c)
      for (int i = 0; i < group.ctas[static_cast<size_t>(c)]->num_warps; ++i)
        expected += group.ctas[static_cast<size_t>(c)]->warps[static_cast<size_t>(i)]->live != 0;
    running->arrive(group.barrier, w, true, expected);
  };
  collective(execute, &unused, "cluster_sync", where);
}

// ---- between CTAs ----------------------------------------------------------------------------------------------

namespace {

void unite(std::vector<bool>& to, const std::vector<bool>& from) {
  if (to.size() < from.size()) to.resize(from.size());
  for (size_t i = 0; i < from.size(); ++i)
    if (from[i]) to[i] = true;
}

}  // namespace

void machine::release_to(const void* address) {
  const uint32_t mine = self->owner->owner->linear;
  cta_set& set = released_[address];
  const auto known = seen_.find(mine);
  if (known != seen_.end()) unite(set, known->second);
  if (set.size() <= mine) set.resize(mine + 1);
  set[mine] = true;
}

void machine::acquire_from(const void* address) {
  const auto found = released_.find(address);
  if (found != released_.end()) unite(seen_[self->owner->owner->linear], found->second);
}

bool machine::has_seen(const cta& who, uint32_t other) const {
  const auto size = static_cast<uint32_t>(request_.cluster);
  if (who.linear / size == other / size) return true;  // of a cluster: cluster_sync orders them, which is not tracked
  const auto found = seen_.find(who.linear);
  return found != seen_.end() && other < found->second.size() && found->second[other];
}

}  // namespace emulator
