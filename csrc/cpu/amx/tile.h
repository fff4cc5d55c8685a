// Products of runs of tiles, over the instructions.
#pragma once

#include <immintrin.h>

#include <cstdint>

#include "cpu/amx/instructions.h"

namespace lowbit::cpu {
namespace {

// f(integral_constant<int, 0>) ... f(integral_constant<int, Count - 1>), for tile numbers.
template <int I>
struct tile_index {
  static constexpr int value = I;
};
template <int Count, int I = 0, class F>
inline void for_tiles(const F& f) {
  if constexpr (I < Count) {
    f(tile_index<I>{});
    for_tiles<Count, I + 1>(f);
  }
}

// On Sapphire Rapids the first tilestored after some 20 steps without one stalls for about 300 ns, however little it
// stores; one every 16 steps keeps them all at 14 ns. Measured for a 2 x 2 block of 64 steps from L2: 58 % of the peak
// without these, 69 % with them.
constexpr int64_t store_interval = 16;
inline void keep_stores_cheap() {
  alignas(64) uint8_t nowhere[1024];
  tile_store<weight_tile>(nowhere, 64);
}

// Lines asked for into L2 beside the multiplications. Of step s: so many of a run, one after another ...
struct lookahead {
  const uint8_t* data = nullptr;
  int64_t lines = 0;
  void step(int64_t s) const {
    for (int64_t i = s * lines; i < (s + 1) * lines; ++i) _mm_prefetch(data + i * 64, _MM_HINT_T1);
  }
  lookahead from(int64_t s) const { return {data + s * lines * 64, lines}; }
};
// ... or lines [first, last) of the 32 of two tiles.
struct pair_lookahead {
  const uint8_t* tiles[2] = {};
  int64_t first = 0, last = 0;
  void step(int64_t s) const {
    for (int64_t i = first; i < last; ++i) _mm_prefetch(tiles[i / 16] + s * 1024 + i % 16 * 64, _MM_HINT_T1);
  }
  pair_lookahead from(int64_t s) const { return {{tiles[0] + s * 1024, tiles[1] + s * 1024}, first, last}; }
};

// Sums of NT panels x MT activation tiles over `steps` steps of 64 bytes, in tiles C and up.
//   weights[i]       A tiles of panel i: step s at + s * 1024, 16 rows of 64 bytes
//   activations[j]   B tiles of activation tile j: step s at + s * activation_stride, 16 rows of `row_bytes`
template <class Dot, int C, int NT, int MT, class Ahead = lookahead>
inline void multiply(const uint8_t* const weights[NT], const uint8_t* const activations[MT], int64_t activation_stride,
                     int64_t row_bytes, int64_t steps, const Ahead& next = {}) {
  for (int64_t s = 0; s < steps; ++s) {
    next.step(s);
    if (s % store_interval == store_interval - 1) keep_stores_cheap();
    for_tiles<NT>([&](auto i) {
      constexpr int a = weight_tile + i.value % 2;
      tile_load<a>(weights[i.value] + s * 1024, 64);
      for_tiles<MT>([&](auto j) {
        constexpr int b = activation_tile + j.value % 2;
        if constexpr (i.value == 0 || MT > 2) tile_load<b>(activations[j.value] + s * activation_stride, row_bytes);
        Dot::template step<C + i.value * MT + j.value, a, b>();
      });
    });
  }
}

template <int Count, int C = 0>
inline void zero_sums() {
  for_tiles<Count>([](auto t) { tile_zero<C + t.value>(); });
}
// Sums lie in memory tile after tile, each 16 rows (outputs) of 64 bytes (activation rows), or of fewer.
template <int Count>
inline void load_sums(const void* sums) {
  for_tiles<Count>([&](auto t) { tile_load<t.value>(static_cast<const uint8_t*>(sums) + t.value * 1024, 64); });
}
template <int Count, int C = 0>
inline void store_sums(void* sums, int64_t row_bytes = 64) {
  for_tiles<Count>([&](auto t) { tile_store<C + t.value>(static_cast<uint8_t*>(sums) + t.value * 1024, row_bytes); });
}

}  // namespace
}  // namespace lowbit::cpu
