// Sizes that fit this level's caches (48 KB L1, 2 MB L2 a core), and what was measured for each.
#pragma once

#include <cstdint>

namespace lowbit::cpu {
namespace {

// A slab of decoded weights lies in L2 and is read once for each pair of activation tiles.
constexpr int64_t slab_panels = 16;
constexpr int64_t slab_columns = 1024;
constexpr int64_t slab_steps = 16;  // of 64 int8 columns

}  // namespace
}  // namespace lowbit::cpu
