#include "emulator/bulk.h"

#include <algorithm>
#include <cstring>

#include "emulator/global_memory.h"

namespace emulator {

namespace {

mbarrier_state& find(cta& c, uint32_t address, bool fenced, const char* what, place where) {
  c.shared.check_range(address, 8, 8, what, where);
  const auto found = c.mbarriers.find(address);
  if (found == c.mbarriers.end())
    error(where, "%s: there is no mbarrier at shared offset %u of CTA %d of the cluster", what, address - shared_window,
          c.rank);
  c.shared.require_seen(*self, address, fenced, what, where);
  return found->second;
}

void complete_if_due(mbarrier_state& b) {
  if (b.pending || b.bytes) return;
  ++b.phase;
  b.pending = b.arrivals;
  join(b.completed, b.clock);
  b.clock.clear();
  running->made_progress();
  running->phase_completed();
}

void arrive(mbarrier_state& b, int64_t expected_bytes, const char* what, place where) {
  if (b.pending == 0)
    error(where, "%s: all %d arrivals of this phase have come already, and its bytes have not landed", what,
          b.arrivals);
  const warp& w = *self->owner;
  clock_vector mine = w.clock;
  // Of this warp, only what this lane did since the lanes last met.
  mine[static_cast<size_t>(w.slot)] = {w.epoch() - 1, 1u << self->index};
  join(b.clock, mine);
  join(b.clock, self->clock);
  b.bytes += expected_bytes;
  --b.pending;
  complete_if_due(b);
}

}  // namespace

void mbarrier_init(uint32_t address, int arrivals, place where) {
  cta& c = *self->owner->owner;
  c.shared.check_range(address, 8, 8, "mbarrier_init", where);
  c.shared.write(*self, address, 8, "mbarrier_init", where);
  if (arrivals < 1 || arrivals >= 1 << 20) error(where, "mbarrier_init for %d arrivals", arrivals);
  if (c.mbarriers.contains(address))
    error(where, "mbarrier_init at shared offset %u, where there is an mbarrier already", address - shared_window);
  mbarrier_state& b = c.mbarriers[address];
  b.arrivals = b.pending = arrivals;
}

void mbarrier_arrive(uint32_t address, int64_t expected_bytes, const char* what, place where) {
  arrive(find(*self->owner->owner, address, false, what, where), expected_bytes, what, where);
}

void mbarrier_arrive_remote(uint32_t address, int rank, place where) {
  cluster& group = running->current_cluster();
  if (rank < 0 || rank >= group.num_ctas)
    error(where, "mbarrier_arrive_cluster: CTA %d of a cluster of %d", rank, group.num_ctas);
  cta& c = *group.ctas[static_cast<size_t>(rank)];
  if (!c.live_threads) error(where, "mbarrier_arrive_cluster: CTA %d of the cluster has ended", rank);
  arrive(find(c, address, false, "mbarrier_arrive_cluster", where), 0, "mbarrier_arrive_cluster", where);
}

void mbarrier_wait(uint32_t address, uint32_t parity, place where) {
  if (parity > 1) error(where, "mbarrier_wait for parity %u: 0 or 1", parity);
  mbarrier_state& b = find(*self->owner->owner, address, false, "mbarrier_wait", where);
  while ((b.phase & 1) == parity) running->spin("mbarrier_wait", where);
  join(self->clock, b.completed);
}

void proxy_fence() {
  lane& me = *self;
  warp& w = *me.owner;
  const uint32_t epoch = w.epoch();
  me.fence_epoch = epoch;
  if (w.fence_epoch != epoch) w.fence_lanes = 0;
  w.fence_epoch = epoch;
  w.fence_lanes |= 1u << me.index;
  seen& fenced = w.clock[w.clock.size() / 2 + static_cast<size_t>(w.slot)];
  fenced.join(w.fence_lanes == ~0u ? seen{epoch, 0} : seen{epoch - 1, w.fence_lanes});
}

// ---- the bulk engine -------------------------------------------------------------------------------------------

namespace {

struct piece {
  uint32_t offset;     // physical, from the copy's address
  int bytes;           // of which the first `valid` come from `global`, the rest is zero
  int skipped, valid;  // zeros ahead of them
  const uint8_t* global;
};

struct copy final : in_flight {
  std::vector<cta*> to;
  uint32_t shared = 0, barrier = 0;
  int64_t bytes = 0;
  std::vector<piece> pieces;
  std::string where;

  std::string land() override {
    for (cta* c : to) {
      if (!c->live_threads)
        return where + ": CTA " + std::to_string(c->rank) +
               " of the cluster has ended while a copy to it was in flight";
      cluster& group = *c->owner;
      const uint32_t epoch = ++group.engine_epoch;
      for (const piece& p : pieces) {
        const uint32_t at = shared + p.offset;
        uint8_t* const bytes_at = c->shared.bytes(at);
        std::memset(bytes_at, 0, static_cast<size_t>(p.bytes));
        if (p.valid) std::memcpy(bytes_at + p.skipped, p.global, static_cast<size_t>(p.valid));
        c->shared.engine_wrote(at, p.bytes, group.num_slots, epoch);
      }
      mbarrier_state& b = c->mbarriers[barrier];
      b.bytes -= bytes;
      if (b.clock.empty()) b.clock.resize(static_cast<size_t>(group.num_slots + 1) * 2);
      b.clock[static_cast<size_t>(group.num_slots)].join({epoch, 0});
      complete_if_due(b);
    }
    return "";
  }
};

void issue(std::unique_ptr<copy> work, uint16_t ctas, const char* what, place where) {
  cluster& group = running->current_cluster();
  if (running->wanted().arch < 90) error(where, "%s before sm_90", what);
  if (ctas >> group.num_ctas) error(where, "%s to CTAs %#x of a cluster of %d", what, ctas, group.num_ctas);
  for (int rank = 0; rank < group.num_ctas; ++rank) {
    cta& c = *group.ctas[static_cast<size_t>(rank)];
    if (ctas ? !(ctas >> rank & 1) : &c != self->owner->owner) continue;
    if (!c.live_threads) error(where, "%s: CTA %d of the cluster has ended", what, rank);
    find(c, work->barrier, true, what, where);
    for (const piece& p : work->pieces) {
      c.shared.check_range(work->shared + p.offset, p.bytes, 16, what, where);
      c.shared.begin_write(*self, work->shared + p.offset, p.bytes, true, what, where);
    }
    work->to.push_back(&c);
  }
  for (const piece& p : work->pieces) check_global(p.global, p.valid, 1, use::read, what, where);
  work->where = text_of(where);
  group.pending.push_back(std::move(work));
}

}  // namespace

void bulk_copy(uint32_t shared, const void* global, int bytes, uint32_t barrier, place where) {
  if (bytes < 0 || bytes % 16) error(where, "bulk_copy of %d bytes: a multiple of 16", bytes);
  if (reinterpret_cast<uintptr_t>(global) % 16) error(where, "bulk_copy from %p: should be a multiple of 16", global);
  auto work = std::make_unique<copy>();
  work->shared = shared;
  work->barrier = barrier;
  work->bytes = bytes;
  if (bytes) work->pieces.push_back({0, bytes, 0, bytes, static_cast<const uint8_t*>(global)});
  issue(std::move(work), 0, "bulk_copy", where);
}

std::string check_tensor(const tensor& t) {
  if (reinterpret_cast<uintptr_t>(t.data) % 16) return "the address is no multiple of 16";
  if (t.stride % 16 || t.stride <= 0 || t.stride >= int64_t{1} << 40) return "the stride is no multiple of 16";
  if (t.columns < 1 || t.rows < 1 || t.columns > int64_t{1} << 32 || t.rows > int64_t{1} << 32) return "sizes";
  if (t.element_bytes != 1 && t.element_bytes != 2 && t.element_bytes != 4) return "elements";
  if (t.box_rows < 1 || t.box_rows > 256 || t.box_columns < 1 || t.box_columns > 256) return "a box side is 1 .. 256";
  const int inner = t.box_columns * t.element_bytes;
  if (inner % 16) return "the box's rows are no multiple of 16 bytes";
  if (t.swizzle && inner > t.swizzle) return "the box's rows are wider than the swizzle";
  return "";
}

void tensor_copy(uint32_t shared, const tensor& map, int column, int row, uint32_t barrier, uint16_t ctas,
                 place where) {
  if (!map.data) error(where, "tensor_copy: the map was never made");
  if (shared % 128)
    error(where, "tensor_copy to shared offset %u: should be a multiple of 128", shared - shared_window);
  auto work = std::make_unique<copy>();
  const int inner = map.box_columns * map.element_bytes;
  work->shared = shared;
  work->barrier = barrier;
  work->bytes = int64_t{inner} * map.box_rows;
  const int64_t first = int64_t{column} * map.element_bytes, end = map.columns * map.element_bytes;
  for (int r = 0; r < map.box_rows; ++r)
    for (int c = 0; c < inner; c += 16) {
      const auto plain = static_cast<uint32_t>(r * inner + c);
      piece p{swizzled(shared + plain, map.swizzle) - shared, 16, 0, 0, nullptr};
      const int64_t y = int64_t{row} + r, x = first + c;
      const int64_t from = std::max<int64_t>(x, 0), to = std::min(x + 16, end);
      if (y >= 0 && y < map.rows && from < to) {
        p.skipped = static_cast<int>(from - x);
        p.valid = static_cast<int>(to - from);
        p.global = map.data + y * map.stride + from;
      }
      work->pieces.push_back(p);
    }
  issue(std::move(work), ctas, "tensor_copy", where);
}

}  // namespace emulator
