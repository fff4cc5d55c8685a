// Sizes that fit this level's caches (48 KB L1, 2 MB L2 a core), and what was measured for each.
#pragma once

#include <cstdint>

namespace lowbit::cpu {
namespace {

// One pair of activation tiles over a slab's depth (16 KB) stays in L1 while the slab's weights (128 KB) pass from L2:
// with random data 5.6 ns a tile product, against 7.3 where both come from L2 (slabs of 32 steps and more). Storing and
// loading the sums between slabs costs 1.5 ns of it back.
constexpr int64_t slab_steps = 8;
constexpr int64_t slab_panels = 16;
constexpr int64_t slab_tiles = 32;  // of activations: 512 rows, so that their sums (512 KB) stay in L2

// How far ahead of the decoder packed bytes are asked for. A hint may lie past the weight: it reads nothing.
constexpr int64_t prefetch_bytes = 4096;

}  // namespace
}  // namespace lowbit::cpu
