// Sizes that fit this level's caches (48 KB L1, 2 MB L2 a core), and what was measured for each.
#pragma once

#include <cstdint>

namespace lowbit::cpu {
namespace {

// The weights of a pair of panels over a slab's depth (16 KB in bf16) stay in L1 while the activations pass from L2.
// bf16, 4096 x 4096, two threads, M = 64, 256, 1024: 1.2, 3.3, 13.7 ms; slabs of 4 steps 1.3, 3.7, 16; of 16 steps,
// which fill L1, 1.6, 4.2, 17.8.
constexpr int64_t slab_steps = 8;
constexpr int64_t slab_tiles = 32;  // of activations: 512 rows

// Integer products have sums that leave the tiles at the end of a segment anyway, and weights that need little or no
// decoding: here x stays in L2, 1 MB of it, a slab of weights passes, and sums wait for another slab only where K is
// longer than 4096. Modelled, not measured: 14 ns a tile product at M = 1024, where slabs of 8 steps took 17.
constexpr int64_t integer_slab_steps = 64;
constexpr int64_t integer_slab_bytes = 1024 * 1024;

// Segments of so many steps leave the tiles panel by panel: the sums of one are stored and scaled beside the products
// of the other. Modelled.
constexpr int64_t short_segment = 4;

// Rows of x, at most, whose products with 4-bit codes are left to AVX512-VNNI: it multiplies a block of 1 KB in some
// 100 cycles from registers, where decoding, storing, loading and scaling tiles took 220 at M = 1. Modelled.
constexpr int64_t vector_rows = 4;

// Packed x of 33 to 64 rows that stays in L2 while all panels meet it.
constexpr int64_t small_bytes = 1024 * 1024;

// Tiles of sums (1 KB) that wait for the next slab in L2, beside its activations. M = 256 takes 3.3 ms with 512 of
// them, 3.8 with 256 or 1024.
constexpr int64_t waiting_sums = 512;

// How far ahead of the decoder packed bytes are asked for, into L2, and scales. A hint may lie past the weight: it
// reads nothing. One page ahead into L1, M = 1 of 4096 x 4096 in 4 bits took 0.46 ms, without any 0.62; but all kernels
// that ask so stay at 12 to 15 GB/s whatever they decode, and the one that asks for nothing, W8A8, reads 26. As other
// levels do (cpu/generic/chunks.h), two pages ahead into L2; not measured here.
constexpr int64_t small_prefetch_bytes = 8192;
constexpr int64_t scale_prefetch_bytes = 1024;

}  // namespace
}  // namespace lowbit::cpu
