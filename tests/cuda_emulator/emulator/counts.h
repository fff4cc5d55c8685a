// Bank conflicts and uncoalesced accesses: what each access site costs.
#pragma once

#include <string>

namespace emulator {

struct warp;

// Adds the warp's logged accesses and clears the log. The n-th access of each lane at a site since the last time
// belongs to one instruction of the warp.
void count_accesses(warp& w, const std::string& kernel);

}  // namespace emulator
