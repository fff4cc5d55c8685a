// wgmma: 64 rows of A in registers by N rows of B in shared memory, asynchronous (PTX ISA 9.0, 9.7.15; sm_90a).
//
// Between its issue and the wait, a product's sums hold a NaN that nobody else writes, and its bytes of B may not be
// written. B is read, and the sums appear, in the wait: the latest moment. A product begins when all four warps of the
// group have issued it, and who has waited for it has seen what they did before: a kernel may let one thread of the
// group give the stage back.
#pragma once

#include "emulator/machine.h"
#include "emulator/operations.h"

namespace emulator {

// d: columns / 2 registers, 4 bytes each. [9.7.15.5.2: wgmma.mma_async]
void wgmma(void* d, const uint32_t (&a)[4], uint64_t descriptor, int columns, element type, bool accumulate,
           place where);
void wgmma_fence(place where);              // [9.7.15.7.1]
void wgmma_commit(place where);             // [9.7.15.7.2]
void wgmma_wait(int pending, place where);  // [9.7.15.7.3]
bool has_products(const warp& w);           // that it has not waited for

}  // namespace emulator
