#include "emulator/shared_memory.h"

#include <algorithm>

#include "emulator/machine.h"

namespace emulator {

namespace {

constexpr unsigned several = 63;

constexpr uint16_t id(const lane& who) { return static_cast<uint16_t>(who.owner->slot * 64 + who.index); }

// body(word index, mask of bytes)
template <class Body>
void for_words(uint32_t offset, int bytes, const Body& body) {
  uint32_t at = offset;
  const uint32_t end = offset + static_cast<uint32_t>(bytes);
  while (at < end) {
    const uint32_t first = at % 4, last = std::min(4u, end - (at - first));
    body(at / 4, (1u << last) - (1u << first));
    at += last - first;
  }
}

}  // namespace

void shared_memory::reset(int64_t bytes, int slots) {
  size_ = bytes;
  slots_ = static_cast<size_t>(slots);
  const auto words = static_cast<size_t>((bytes + 3) / 4);
  data_.assign(words * 4, 0xcd);
  words_.assign(words, word{});
  reads_.assign(words * slots_, 0);
}

void shared_memory::check_range(uint32_t address, int bytes, int alignment, const char* what,
                                std::source_location where) {
  if (address % static_cast<uint32_t>(alignment))
    error(where, "%s: misaligned shared address %u, should be a multiple of %d", what, address - shared_window,
          alignment);
  if (address < shared_window || static_cast<int64_t>(address - shared_window) + bytes > size_)
    error(where, "%s of %d bytes at offset %lld of shared memory that has %lld: out of bounds", what, bytes,
          static_cast<long long>(address) - shared_window, static_cast<long long>(size_));
}

bool shared_memory::saw_write(const lane& who, const word& w, bool fenced) const {
  return who.saw(w.writer / 64u, w.write_epoch, w.writer % 64u, fenced);
}

void shared_memory::race(uint32_t address, const char* what, const char* other, int slot, int other_lane,
                         std::source_location where) {
  const int warps = std::max(1, self->owner->owner->num_warps);
  char thread[32];
  if (other_lane < 32)
    std::snprintf(thread, sizeof thread, "thread %d", slot % warps * 32 + other_lane);
  else
    std::snprintf(thread, sizeof thread, "warp %d", slot % warps);
  if (slot >= static_cast<int>(slots_) - 1)
    error(where,
          "race: %s of shared offset %u, which an asynchronous copy %s; no barrier that this thread waited for "
          "tells that it has landed",
          what, address - shared_window, other);
  error(where, "race: %s of shared offset %u, which %s of CTA %d of the cluster has %s; no barrier orders the two",
        what, address - shared_window, thread, slot / warps, other);
}

void shared_memory::in_flight(uint32_t address, const char* what, std::source_location where) {
  error(where,
        "%s of shared offset %u, which an asynchronous copy in flight may write at any moment: a wait is missing", what,
        address - shared_window);
}

void shared_memory::check_reads(lane& who, const word& w, size_t index, unsigned mask, const char* what,
                                std::source_location where) {
  const warp& mine = *who.owner;
  const auto address = static_cast<uint32_t>(index * 4 + shared_window);
  const uint32_t* const reads = &reads_[index * slots_];
  if (w.reading)
    error(where, "%s of shared offset %u, which a product in flight still reads: a wait is missing", what,
          address - shared_window);
  if (!(w.read_mask & mask)) return;
  for (size_t slot = 0; slot + 1 < slots_; ++slot) {
    const unsigned reader = w.reader / 64u == slot                   ? w.reader % 64u
                            : slot == static_cast<size_t>(mine.slot) ? static_cast<unsigned>(who.index)
                                                                     : several;
    if (!who.saw(slot, reads[slot], reader, false))
      race(address, what, "read", static_cast<int>(slot), static_cast<int>(reader), where);
  }
}

void shared_memory::read(lane& who, uint32_t address, int bytes, const char* what, std::source_location where) {
  const warp& mine = *who.owner;
  const auto slot = static_cast<size_t>(mine.slot);
  const uint32_t epoch = mine.epoch();
  const bool races = running->wanted().races;
  for_words(address - shared_window, bytes, [&](uint32_t index, unsigned mask) {
    word& w = words_[index];
    const uint32_t at = index * 4 + shared_window;
    if (w.flight & mask) in_flight(at, what, where);
    if ((w.written & mask) != mask)
      error(where, "%s of shared offset %u, which nobody has written", what, at - shared_window);
    if (!races) return;
    if ((w.write_mask & mask) && !saw_write(who, w, false))
      race(at, what, "written", w.writer / 64, w.writer % 64, where);
    uint32_t& last = reads_[index * slots_ + slot];
    w.reader = last == epoch && w.reader / 64u == slot && w.reader != id(who)
                   ? static_cast<uint16_t>(slot * 64 + several)
                   : id(who);
    last = epoch;
    w.read_mask = static_cast<uint8_t>(w.read_mask | mask);
  });
}

void shared_memory::write(lane& who, uint32_t address, int bytes, const char* what, std::source_location where) {
  const bool races = running->wanted().races;
  for_words(address - shared_window, bytes, [&](uint32_t index, unsigned mask) {
    word& w = words_[index];
    const uint32_t at = index * 4 + shared_window;
    if (w.flight & mask) in_flight(at, what, where);
    if (races) {
      if ((w.write_mask & mask) && !saw_write(who, w, false))
        race(at, what, "written", w.writer / 64, w.writer % 64, where);
      check_reads(who, w, index, mask, what, where);
    }
    w.written = static_cast<uint8_t>(w.written | mask);
    w.write_mask =
        static_cast<uint8_t>(w.writer == id(who) && w.write_epoch == who.owner->epoch() ? w.write_mask | mask : mask);
    w.writer = id(who);
    w.write_epoch = who.owner->epoch();
    w.read_mask = static_cast<uint8_t>(w.read_mask & ~mask);
  });
}

void shared_memory::begin_write(lane& who, uint32_t address, int bytes, bool async_proxy, const char* what,
                                std::source_location where) {
  for_words(address - shared_window, bytes, [&](uint32_t index, unsigned mask) {
    word& w = words_[index];
    const uint32_t at = index * 4 + shared_window;
    if (w.flight & mask)
      error(where, "%s to shared offset %u, where another asynchronous copy in flight writes", what,
            at - shared_window);
    if (running->wanted().races) {
      if ((w.write_mask & mask) && !saw_write(who, w, false))
        race(at, what, "written", w.writer / 64, w.writer % 64, where);
      check_reads(who, w, index, mask, what, where);
      if (async_proxy && (w.write_mask & mask) && w.writer / 64u + 1 < slots_ && !saw_write(who, w, true))
        error(where, "%s to shared offset %u, which ordinary stores wrote before: fence_async_proxy is missing", what,
              at - shared_window);
    }
    w.flight = static_cast<uint8_t>(w.flight | mask);
  });
}

void shared_memory::cancel_write(uint32_t address, int bytes) {
  for_words(address - shared_window, bytes, [&](uint32_t index, unsigned mask) {
    words_[index].flight = static_cast<uint8_t>(words_[index].flight & ~mask);
  });
}

void shared_memory::engine_wrote(uint32_t address, int bytes, int engine_slot, uint32_t epoch) {
  for_words(address - shared_window, bytes, [&](uint32_t index, unsigned mask) {
    word& w = words_[index];
    w.flight = static_cast<uint8_t>(w.flight & ~mask);
    w.written = static_cast<uint8_t>(w.written | mask);
    w.write_mask = static_cast<uint8_t>(mask);
    w.read_mask = static_cast<uint8_t>(w.read_mask & ~mask);
    w.writer = static_cast<uint16_t>(engine_slot * 64);
    w.write_epoch = epoch;
  });
}

void shared_memory::begin_read(lane& who, uint32_t address, int bytes, bool first, const char* what,
                               std::source_location where) {
  for_words(address - shared_window, bytes, [&](uint32_t index, unsigned mask) {
    word& w = words_[index];
    const uint32_t at = index * 4 + shared_window;
    if (w.flight & mask) in_flight(at, what, where);
    if ((w.written & mask) != mask)
      error(where, "%s of shared offset %u, which nobody has written", what, at - shared_window);
    if (w.write_mask & mask) {
      if (!saw_write(who, w, false)) race(at, what, "written", w.writer / 64, w.writer % 64, where);
      if (w.writer / 64u + 1 < slots_ && !saw_write(who, w, true))
        error(where, "%s of shared offset %u, which ordinary stores wrote: fence_async_proxy is missing", what,
              at - shared_window);
    }
    w.reading += first;
  });
}

void shared_memory::end_read(warp& who, uint32_t address, int bytes) {
  for_words(address - shared_window, bytes, [&](uint32_t index, unsigned mask) {
    word& w = words_[index];
    --w.reading;
    w.read_mask = static_cast<uint8_t>(w.read_mask | mask);
    w.reader = static_cast<uint16_t>(who.slot * 64 + static_cast<int>(several));
    reads_[index * slots_ + static_cast<size_t>(who.slot)] = who.epoch();
  });
}

void shared_memory::require_seen(lane& who, uint32_t address, bool fenced, const char* what,
                                 std::source_location where) {
  const word& w = words_[(address - shared_window) / 4];
  if (!(w.write_mask)) return;
  if (!saw_write(who, w, false)) race(address, what, "initialised", w.writer / 64, w.writer % 64, where);
  if (fenced && !saw_write(who, w, true))
    error(where,
          "%s of the barrier at shared offset %u, whose initialisation was not fenced: fence_mbarrier_init is "
          "missing",
          what, address - shared_window);
}

}  // namespace emulator
