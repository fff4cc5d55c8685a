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
  int strips, columns, cluster, products_per_stage, stage_k;
  int strip_bytes, x_bytes;  // of a stage
  bool in_turns;
  int instructions;  // of a warp for a stage
  double promotion;  // instructions for each sum and stage
};

// Every fragment is read twice where 8-bit products take 4-bit codes, and decoded where it is not a product's operand.
template <class T>
constexpr tile_traits traits_of(double promotion) {
  const int weights = T::stage_k / 2;  // of a thread
  const int decode = T::w_bits == T::x_bytes * 8 ? 0 : T::x_bytes == 1 ? weights : 60 + weights * 5 / 2;
  return {T::strips,      T::columns, T::cluster,  T::products, T::stage_k,
          T::strip_stage, T::x_stage, T::in_turns, 90 + decode, promotion};
}

inline constexpr double memory_bytes_per_clock = 2700, l2_bytes_per_clock = 46, shared_bytes_per_clock = 128,
                        first_latency = 1500, output_instructions = 6;

struct prediction {
  double clocks, stage, outputs;  // of all; of one stage; of a tile's outputs
  const char* bound;              // what a stage waits for
  int64_t tiles, waves;
};

inline prediction predict(const tile_traits& t, int64_t m, int64_t strips, int64_t k, int sms) {
  prediction p{};
  const int64_t w_blocks = ceil_div(strips, t.strips * t.cluster) * t.cluster;
  p.tiles = w_blocks * ceil_div(m, t.columns);
  p.waves = ceil_div(p.tiles, sms / t.cluster * t.cluster);
  const double steps = static_cast<double>(ceil_div(k, t.stage_k));
  const double sums = t.columns / 2;
  const double warps = t.in_turns ? 1 : t.strips;  // that multiply at a time, on each scheduler
  const auto at_least = [&](double clocks, const char* bound) {
    if (clocks > p.stage) p.stage = clocks, p.bound = bound;
  };
  at_least((sums < 16 ? 16 : sums) * t.products_per_stage * t.strips, "products");
  at_least((t.instructions + t.promotion * sums) * (warps < 2 ? 2 : warps), "instructions");
  at_least(
      (t.x_bytes + t.strips * (t.strip_bytes * 2 + t.products_per_stage * t.columns * 32)) / shared_bytes_per_clock,
      "shared memory");
  at_least((t.strips * t.strip_bytes + static_cast<double>(t.x_bytes) / t.cluster) / l2_bytes_per_clock, "L2");
  p.outputs = (400 + sums * output_instructions) * (t.in_turns ? 2 : warps);
  // In turns, a warpgroup's outputs are hidden by one tile of the other's.
  const double hidden = t.in_turns ? steps * p.stage : 0;
  const double exposed = p.outputs > hidden ? p.outputs - hidden : 0;
  const double compute = static_cast<double>(p.waves) * (steps * p.stage + exposed) + (t.in_turns ? p.outputs : 0);
  const double memory = static_cast<double>(strips) * t.strip_bytes * steps / memory_bytes_per_clock;
  if (memory > compute) p.bound = "memory";
  p.clocks = (compute > memory ? compute : memory) + first_latency;
  return p;
}

}  // namespace lowbit::cuda::sm90
