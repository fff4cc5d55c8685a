#include "emulator/counts.h"

#include <algorithm>
#include <cstdio>
#include <cstdlib>
#include <map>
#include <mutex>
#include <tuple>

#include "emulator/emulator.h"
#include "emulator/machine.h"

namespace emulator {

namespace {

using key = std::tuple<std::string, std::string, uint32_t, uint32_t, int>;  // kernel, file, line, column, kind

std::mutex mutex;
std::map<key, access_count>& table() {
  static std::map<key, access_count> counts;
  return counts;
}

struct instruction {
  const access* lanes[32];  // null: does not take part
  int bytes;
};

// Shared memory has 32 banks of 4 bytes. A warp's access of 4 bytes a lane goes at once, of 8 in two halves, of 16 in
// four quarters; each takes as many wavefronts as the busiest bank has different words.
// ldmatrix takes 8 rows of 16 bytes at a time, which is the same.
void count_shared(const instruction& i, uint64_t& moved, uint64_t& needed) {
  const int lanes_at_once = i.bytes <= 4 ? 32 : 128 / i.bytes;
  for (int first = 0; first < 32; first += lanes_at_once) {
    uint32_t words[32][32];
    int in_bank[32] = {}, worst = 0;
    for (int n = first; n < first + lanes_at_once; ++n) {
      if (!i.lanes[n]) continue;
      const access& a = *i.lanes[n];
      for (uint64_t word = a.address / 4; word <= (a.address + static_cast<uint64_t>(a.bytes) - 1) / 4; ++word) {
        const auto bank = static_cast<size_t>(word % 32);
        uint32_t* const begin = words[bank];
        uint32_t* const end = begin + in_bank[bank];
        if (std::find(begin, end, static_cast<uint32_t>(word)) == end && in_bank[bank] < 32) {
          *end = static_cast<uint32_t>(word);
          worst = std::max(worst, ++in_bank[bank]);
        }
      }
    }
    if (!worst) continue;
    moved += static_cast<uint64_t>(worst);
    ++needed;
  }
}

// Global memory moves in sectors of 32 bytes.
void count_global(const instruction& i, uint64_t& moved, uint64_t& needed) {
  std::vector<uint64_t> sectors, bytes;
  for (const access* const lane_access : i.lanes) {
    if (!lane_access || lane_access->bytes == 0) continue;
    const access& a = *lane_access;
    const uint64_t last = a.address + static_cast<uint64_t>(a.bytes) - 1;
    for (uint64_t s = a.address / 32; s <= last / 32; ++s) sectors.push_back(s);
    for (uint64_t b = a.address; b <= last; ++b) bytes.push_back(b);
  }
  const auto distinct = [](std::vector<uint64_t>& v) {
    std::sort(v.begin(), v.end());
    return static_cast<uint64_t>(std::unique(v.begin(), v.end()) - v.begin());
  };
  moved += distinct(sectors);
  needed += (distinct(bytes) + 31) / 32;
}

struct at_exit {
  ~at_exit() {
    if (std::getenv("LOWBIT_EMULATOR_COUNTS")) print_access_counts();
  }
};

const char* const kind_names[num_access_kinds] = {"shared read",  "shared write", "global read",
                                                  "global write", "ldmatrix",     "stmatrix"};

}  // namespace

void count_accesses(warp& w, const std::string& kernel) {
  struct group {
    const access* first;
    int nth;
    instruction what;
  };
  static thread_local std::vector<group> groups;
  groups.clear();
  bool any = false;
  for (lane& l : w.lanes) {
    any |= !l.log.empty();
    for (size_t i = 0; i < l.log.size(); ++i) {
      const access& a = l.log[i];
      const auto same = [&](const access& b) {
        return a.kind == b.kind && a.where.line() == b.where.line() && a.where.column() == b.where.column() &&
               a.where.file_name() == b.where.file_name() && a.bytes == b.bytes;
      };
      int nth = 0;
      for (size_t j = 0; j < i; ++j) nth += same(l.log[j]);
      // Lanes mostly log alike: try the place the lane before used.
      size_t at = i < groups.size() && groups[i].nth == nth && same(*groups[i].first) ? i : groups.size();
      if (at == groups.size())
        at = static_cast<size_t>(
            std::find_if(groups.begin(), groups.end(), [&](const group& g) { return g.nth == nth && same(*g.first); }) -
            groups.begin());
      if (at == groups.size()) groups.push_back({&a, nth, {{}, a.bytes}});
      groups[at].what.lanes[l.index] = &a;
    }
  }
  if (!any) return;
  {
    const std::lock_guard lock(mutex);
    static const at_exit printer;
    for (const group& g : groups) {
      const access& a = *g.first;
      const auto found =
          table().try_emplace(key(kernel, a.where.file_name(), a.where.line(), a.where.column(), a.kind));
      access_count& c = found.first->second;
      if (found.second) {
        c.kernel = kernel;
        c.place = text_of(a.where);
        c.kind = static_cast<access_kind>(a.kind);
      }
      ++c.instructions;
      if (a.kind == global_read || a.kind == global_write)
        count_global(g.what, c.moved, c.needed);
      else
        count_shared(g.what, c.moved, c.needed);
    }
  }
  for (lane& l : w.lanes) l.log.clear();
}

std::vector<access_count> access_counts() {
  const std::lock_guard lock(mutex);
  std::vector<access_count> all;
  for (const auto& [site, count] : table()) all.push_back(count);
  return all;
}

void clear_access_counts() {
  const std::lock_guard lock(mutex);
  table().clear();
}

void print_access_counts() {
  std::string kernel;
  for (const access_count& c : access_counts()) {
    if (c.kernel != kernel) {
      kernel = c.kernel;
      std::printf("\n%s\n  %-28s %-13s %12s %12s %8s\n", kernel.c_str(), "place", "access", "instructions",
                  "wavefronts", "ratio");
    }
    std::printf("  %-28s %-13s %12llu %12llu %8.2f\n", c.place.c_str(), kind_names[c.kind],
                static_cast<unsigned long long>(c.instructions), static_cast<unsigned long long>(c.moved), c.ratio());
  }
}

std::string worse_than(double shared_bound, double global_bound, const char* kernel_contains) {
  for (const access_count& c : access_counts()) {
    if (c.kernel.find(kernel_contains) == std::string::npos) continue;
    const bool global = c.kind == global_read || c.kind == global_write;
    const double bound = global ? global_bound : shared_bound;
    if (c.ratio() > bound) {
      char text[512];
      std::snprintf(text, sizeof text, "%s: %s at %s moves %llu %s where %llu would do: %.2f times, more than %.2f",
                    c.kernel.c_str(), kind_names[c.kind], c.place.c_str(), static_cast<unsigned long long>(c.moved),
                    global ? "sectors" : "wavefronts", static_cast<unsigned long long>(c.needed), c.ratio(), bound);
      return text;
    }
  }
  return "";
}

}  // namespace emulator
