#include "emulator/global_memory.h"

#include <algorithm>
#include <cstdlib>
#include <map>
#include <mutex>
#include <shared_mutex>

namespace emulator {

namespace {

struct range {
  uint8_t* data;
  size_t bytes;
  std::vector<uint8_t> written;
  bool read_only = false;
  uint64_t launch = 0;           // that `writer` is about
  std::vector<uint32_t> writer;  // 1 + CTA that wrote the byte in this launch
};

bool host_memory = false;
std::shared_mutex mutex;
std::map<uintptr_t, std::unique_ptr<range>>& ranges() {
  static std::map<uintptr_t, std::unique_ptr<range>> all;
  return all;
}
uint64_t generation = 0;  // of ranges(): what a thread remembers is good for one

range* find(const void* address) {
  struct remembered {
    uint64_t generation = ~uint64_t{0};
    range* last = nullptr;
  };
  static thread_local remembered memory;
  const auto at = reinterpret_cast<uintptr_t>(address);
  const std::shared_lock lock(mutex);
  if (memory.generation == generation && memory.last) {
    const auto first = reinterpret_cast<uintptr_t>(memory.last->data);
    if (at >= first && at < first + memory.last->bytes) return memory.last;
  }
  auto next = ranges().upper_bound(at);
  if (next == ranges().begin()) return nullptr;
  range& found = *std::prev(next)->second;
  if (at >= reinterpret_cast<uintptr_t>(found.data) + found.bytes) return nullptr;
  memory = {generation, &found};
  return &found;
}

range& require(const void* data) {
  range* const found = find(data);
  if (!found) {
    std::fprintf(stderr, "emulator: %p is no device memory\n", data);
    std::abort();
  }
  return *found;
}

}  // namespace

void accept_host_memory() { host_memory = true; }

void* allocate(size_t bytes) {
  auto made = std::make_unique<range>();
  const size_t padded = (std::max<size_t>(bytes, 1) + 255) / 256 * 256;
  made->data = static_cast<uint8_t*>(std::aligned_alloc(256, padded));
  if (!made->data) std::abort();
  std::memset(made->data, 0xcd, padded);
  made->bytes = bytes;
  made->written.assign(bytes, 0);
  uint8_t* const data = made->data;
  const std::unique_lock lock(mutex);
  ++generation;
  ranges()[reinterpret_cast<uintptr_t>(data)] = std::move(made);
  return data;
}

void release(void* data) {
  const std::unique_lock lock(mutex);
  ++generation;
  ranges().erase(reinterpret_cast<uintptr_t>(data));
  std::free(data);
}

void upload(void* device, const void* host, size_t bytes) {
  if (!bytes) return;
  range& r = require(device);
  const auto offset = static_cast<size_t>(static_cast<uint8_t*>(device) - r.data);
  if (offset + bytes > r.bytes) std::abort();
  std::memcpy(device, host, bytes);
  std::fill_n(r.written.begin() + static_cast<std::ptrdiff_t>(offset), bytes, uint8_t{1});
}

bool written(const void* device, size_t bytes) {
  range& r = require(device);
  const auto offset = static_cast<size_t>(static_cast<const uint8_t*>(device) - r.data);
  return std::all_of(r.written.begin() + static_cast<std::ptrdiff_t>(offset),
                     r.written.begin() + static_cast<std::ptrdiff_t>(offset + bytes), [](uint8_t w) { return w; });
}

void download(void* host, const void* device, size_t bytes) {
  if (!bytes) return;
  std::memcpy(host, device, bytes);
  if (written(device, bytes)) return;
  const range& r = require(device);
  const auto begin = r.written.begin() + (static_cast<const uint8_t*>(device) - r.data);
  const auto first = std::find(begin, begin + static_cast<std::ptrdiff_t>(bytes), uint8_t{0}) - begin;
  const auto missing = std::count(begin, begin + static_cast<std::ptrdiff_t>(bytes), uint8_t{0});
  set_failure(std::to_string(missing) + " of " + std::to_string(bytes) + " bytes were never written, the first is " +
              std::to_string(first));
}

void protect(const void* data, bool read_only) { require(data).read_only = read_only; }

void forget(void* data) {
  range& r = require(data);
  std::fill(r.written.begin(), r.written.end(), uint8_t{0});
  std::memset(r.data, 0xcd, r.bytes);
}

namespace {

// Names the buffer that the address is near to.
[[noreturn]] void outside(const void* address, int bytes, const char* what, place where) {
  const auto at = static_cast<long long>(reinterpret_cast<uintptr_t>(address));
  const range* nearest = nullptr;
  long long distance = 1 << 20;
  {
    const std::shared_lock lock(mutex);
    for (const auto& [start, r] : ranges()) {
      const auto first = static_cast<long long>(start), end = first + static_cast<long long>(r->bytes);
      const long long gap = at < first ? first - at : at - end;
      if (gap < distance) {
        nearest = r.get();
        distance = gap;
      }
    }
  }
  if (!nearest) error(where, "%s of %d bytes at %p: no device memory", what, bytes, address);
  error(where, "%s of %d bytes at byte %lld of a buffer of %zu: out of bounds", what, bytes,
        at - static_cast<long long>(reinterpret_cast<uintptr_t>(nearest->data)), nearest->bytes);
}

}  // namespace

void check_global(const void* address, int bytes, int alignment, use how, const char* what, place where) {
  if (reinterpret_cast<uintptr_t>(address) % static_cast<unsigned>(alignment))
    error(where, "%s: misaligned global address %p, should be a multiple of %d", what, address, alignment);
  if (bytes == 0) return;
  range* const r = find(address);
  if (!r && host_memory) {
    if (how == use::write) running->made_progress();
    return;
  }
  if (!r) outside(address, bytes, what, where);
  const auto offset = static_cast<size_t>(static_cast<const uint8_t*>(address) - r->data);
  if (offset + static_cast<size_t>(bytes) > r->bytes) outside(address, bytes, what, where);
  uint8_t* const state = &r->written[offset];
  if (how == use::write && r->read_only)
    error(where, "%s at byte %zu of a buffer that kernels may only read", what, offset);
  if (how != use::write)
    for (int i = 0; i < bytes; ++i)
      if (!state[i])
        error(where, "%s of byte %zu of a buffer of %zu, which nobody has written", what,
              offset + static_cast<size_t>(i), r->bytes);
  if (how == use::write) {
    std::memset(state, 1, static_cast<size_t>(bytes));
    running->made_progress();
  }
  if (how == use::atomic || !running->wanted().races) return;
  if (r->launch != running->id()) {
    if (how == use::read) return;
    r->launch = running->id();
    r->writer.assign(r->bytes, 0);
  }
  const cta& mine = *self->owner->owner;
  uint32_t* const writer = &r->writer[offset];
  for (int i = 0; i < bytes; ++i) {
    if (writer[i] && writer[i] != mine.linear + 1 && !running->has_seen(mine, writer[i] - 1))
      error(where,
            "race: %s at byte %zu of a buffer of %zu, which CTA %u has written; no release and acquire order the two",
            what, offset + static_cast<size_t>(i), r->bytes, writer[i] - 1);
    if (how == use::write) writer[i] = mine.linear + 1;
  }
}

bool global_is_readable(const void* address, int64_t bytes) {
  range* const r = find(address);
  if (!r) return host_memory;
  const auto offset = static_cast<size_t>(static_cast<const uint8_t*>(address) - r->data);
  if (offset + static_cast<size_t>(bytes) > r->bytes) return false;
  return std::all_of(r->written.begin() + static_cast<std::ptrdiff_t>(offset),
                     r->written.begin() + static_cast<std::ptrdiff_t>(offset) + bytes, [](uint8_t w) { return w; });
}

}  // namespace emulator
