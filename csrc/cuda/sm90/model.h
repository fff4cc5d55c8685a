// Which tile a problem gets: the one with the fewest predicted clocks. Nothing is timed at run time, so the choice is
// the same on every machine of a kind, and lowbit_explain can say why.
//
// A stage of a tile takes the longest of four things, per SM and in SM clocks:
//   products       64 x columns x 32 bytes take columns / 2 clocks (8192 8-bit operations a clock), 16 at least
//   instructions   of a warp: 90 for a stage and its products, what decoding costs, and what promoting sums costs, by
//                  their SASS. Warpgroups share the four schedulers; one alone gets every other slot of them
//   shared memory  128 bytes a clock: x and W come in, each warpgroup's products read x, its warps W
//   L2             what comes in at 46 bytes a clock: 6 KB a clock for 132 SMs; what a cluster shares comes once
// A tile takes its stages and then its outputs, which nothing hides where warpgroups work together and the next tile's
// products hide where they take turns. Every byte of W comes once from HBM: 2700 bytes a clock for the chip (4.8 TB/s
// at 1.76 GHz). The first stage's latency comes on top.
#pragma once

#include "cuda/contract.h"

namespace lowbit::cuda::sm90 {

struct tile_traits {
  int strips, lots, columns, cluster, products_per_stage, stage_k;
  int strip_bytes, x_bytes;  // of a lot
  bool in_turns;
  int instructions;  // of a warp for a lot
  double promotion;  // instructions for each sum and lot
};

// A weight that is no product's operand as it is costs a thread 13 instructions for 8 where it becomes 16 bits, and 3 a
// stage; 1 where it becomes 8, 3.75 with scales in its exponent.
template <class T>
constexpr tile_traits traits_of(double promotion) {
  const int weights = T::stage_k / 2;  // of a thread
  const int bytes = T::w_bits == 8 ? 0 : T::scale_stage > 0 ? weights * 15 / 4 : weights;
  const int decode = T::x_bytes == 2 ? 3 + weights * 13 / 8 : bytes;
  return {T::strips,      T::lots,    T::columns,  T::cluster,  T::products, T::stage_k,
          T::strip_stage, T::x_stage, T::in_turns, 90 + decode, promotion};
}

inline constexpr double memory_bytes_per_clock = 2700, l2_bytes_per_clock = 46, shared_bytes_per_clock = 128,
                        first_latency = 1500, output_instructions = 6;

struct prediction {
  double clocks, stage, outputs;  // of all; of one stage; of a tile's outputs
  const char* bound;              // what a stage waits for
  int64_t tiles, waves;
};

// Rows of x behind the last are zeros that come from nowhere.
inline prediction predict(const tile_traits& t, int64_t m, int64_t strips, int64_t k, int sms) {
  prediction p{};
  p.tiles = ceil_div(strips, t.strips * t.cluster) * t.cluster * ceil_div(m, t.columns);
  p.waves = ceil_div(p.tiles, sms / t.cluster * t.cluster);
  const double stages = static_cast<double>(ceil_div(ceil_div(k, t.stage_k), t.lots));
  const double sums = t.columns / 2;
  const double own = t.strips * t.lots;        // strips of W in a stage
  const double warps = t.in_turns ? 1 : own;   // that multiply at a time, on each scheduler
  const double alone = warps < 2 ? 2 : warps;  // slots of a scheduler for an instruction of each
  const double x_bytes = t.x_bytes * t.lots, w_bytes = t.strip_bytes * own;
  const double x_read = t.products_per_stage * t.columns * 32 * own;
  const auto at_least = [&](double clocks, const char* bound) {
    if (clocks > p.stage) p.stage = clocks, p.bound = bound;
  };
  at_least((sums < 16 ? 16 : sums) * t.products_per_stage * own, "products");
  at_least((t.instructions + t.promotion * sums) * alone, "instructions");
  at_least((x_bytes + x_read + 2 * w_bytes) / shared_bytes_per_clock, "shared memory");
  const double x_loaded = m < t.columns ? x_bytes * static_cast<double>(m) / t.columns : x_bytes;
  at_least((x_loaded / t.cluster + w_bytes) / l2_bytes_per_clock, "L2");
  // A warpgroup's outputs; in turns, those are hidden by one tile of the other's.
  p.outputs = (400 + sums * output_instructions) * (t.lots > 1 ? 2 : alone);
  const double hidden = t.in_turns ? stages * p.stage : 0;
  const double exposed = p.outputs > hidden ? p.outputs - hidden : 0;
  const double compute = static_cast<double>(p.waves) * (stages * p.stage + exposed) + (t.in_turns ? p.outputs : 0);
  const double memory = static_cast<double>(strips) / t.strips * w_bytes * stages / memory_bytes_per_clock;
  if (memory > compute) p.bound = "memory";
  p.clocks = (compute > memory ? compute : memory) + first_latency;
  return p;
}

}  // namespace lowbit::cuda::sm90
