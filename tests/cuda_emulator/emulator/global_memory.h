// Device memory: ranges that allocate() gave out, with what was written in each byte.
//
// Between CTAs of a launch order comes from release and acquire alone (PTX ISA 8): bytes that another CTA has written
// are a race, unless this CTA has acquired what that one released, be it by way of others. Whole CTAs are looked at:
// that a CTA's own threads meet before its release is not.
#pragma once

#include <cstdint>

#include "emulator/machine.h"

namespace emulator {

// Checks that the current lane may access these bytes; the caller then does.
enum class use { read, write, atomic };
void check_global(const void* address, int bytes, int alignment, use how, const char* what, place where);
// The same for asynchronous reads, which need no lane.
bool global_is_readable(const void* address, int64_t bytes);

}  // namespace emulator
