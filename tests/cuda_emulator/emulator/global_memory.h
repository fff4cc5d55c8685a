// Device memory: ranges that allocate() gave out, with what was written in each byte.
#pragma once

#include <cstdint>

#include "emulator/machine.h"

namespace emulator {

// Checks that the current lane may access these bytes; the caller then does.
void check_global(const void* address, int bytes, int alignment, bool write, const char* what, place where);
// The same for asynchronous reads, which need no lane.
bool global_is_readable(const void* address, int64_t bytes);

}  // namespace emulator
