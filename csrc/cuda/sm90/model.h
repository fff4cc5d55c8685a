// Which tile a problem gets: the one with the fewest predicted clocks. Nothing is timed at run time, so the choice is
// the same on every machine of a kind, and lowbit_explain can say why.
//
// A stage takes the longest of three things, per SM and in SM clocks:
//   products   64 x columns x 32 bytes take columns / 2 clocks (8192 8-bit operations a clock), 16 at least
//   L2         its bytes at 46 a clock: 6 KB a clock for 132 SMs; what a cluster shares comes once
//   memory     every byte of W comes once from HBM at 2700 bytes a clock for the chip (4.8 TB/s at 1.76 GHz)
// and a tile its stages, plus the first stage's latency and the stores of y.
#pragma once

#include "cuda/contract.h"

namespace lowbit::cuda::sm90 {

struct tile_traits {
  int consumers, columns, cluster, products_per_stage, stage_k;
  int strip_bytes, x_bytes;  // of a stage
};

template <class T>
constexpr tile_traits traits_of() {
  return {T::consumers, T::columns, T::cluster, T::products, T::stage_k, T::strip_stage, T::x_stage};
}

inline constexpr double memory_bytes_per_clock = 2700, l2_bytes_per_clock = 46, tile_latency = 1500,
                        store_bytes_per_clock = 32;

inline double predicted_clocks(const tile_traits& t, int64_t m, int64_t strips, int64_t k, int sms) {
  const int64_t w_blocks = ceil_div(strips, t.consumers * t.cluster) * t.cluster;
  const int64_t tiles = w_blocks * ceil_div(m, t.columns);
  const int64_t waves = ceil_div(tiles, sms / t.cluster * t.cluster);
  const double steps = static_cast<double>(ceil_div(k, t.stage_k));
  const double product = t.columns / 2 < 16 ? 16 : t.columns / 2;
  const double multiply = product * t.products_per_stage * t.consumers;
  const double l2 = (t.consumers * t.strip_bytes + static_cast<double>(t.x_bytes) / t.cluster) / l2_bytes_per_clock;
  const double tile = steps * (multiply > l2 ? multiply : l2) + tile_latency +
                      t.consumers * 64.0 * t.columns * 2 / store_bytes_per_clock;
  const double memory = static_cast<double>(strips) * t.strip_bytes * steps / memory_bytes_per_clock;
  const double compute = static_cast<double>(waves) * tile;
  return compute > memory ? compute : memory + tile_latency;
}

}  // namespace lowbit::cuda::sm90
