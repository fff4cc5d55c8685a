// Slices of K, and which tile a problem gets: by arithmetic, so that a choice can be explained and never varies.
#pragma once

#include "cuda/contract.h"

namespace lowbit::cuda::sm80 {

// Slices of K: enough that blocks of 256 rows times slices are about 256 CTAs, two for each SM of a large GPU, at small
// m; none shorter than 4 steps of 128 columns (a pipeline's fill). Of n and k alone.
inline int slices_of(const fragment_shape& s) {
  const int64_t blocks = ceil_div(s.n, 256), steps = s.k_packed / fragment_step;
  const int64_t wanted = (256 + blocks / 2) / blocks, most = steps / 4;
  const int64_t slices = wanted < most ? wanted : most;
  return static_cast<int>(slices < 1 ? 1 : slices);
}

struct tile_traits {
  int rows, columns, warps;
};

// How a problem runs in a tile: `split` CTAs do one slice each, others all of them.
struct prediction {
  double clocks;
  bool split;
};

// Per SM and step of 128 columns, in SM clocks; the longest of three counts:
//   products      an m16n8k16 takes a quarter of the SM 8 clocks (512 multiply-adds a clock and SM; an H200 does 660)
//   instructions  2.7 for each weight that a warp decodes (warps along m decode the same ones), 1.5 for each product,
//                 130 for the step: counted in the SASS of int4, groups of 128; one a clock and quarter
//   L2            what the stage brings, at 46 bytes a clock and SM (6 KB a clock for 132)
// A CTA takes its steps and a constant; CTAs go in waves. Codes come from memory once, at 20.7 bytes a clock and SM
// (4.8 TB/s, 132 SMs, 1.755 GHz). Partial sums go to the L2 and back, and the second kernel costs its start.
//
// What it says of an H200 and N = K = 8192, groups of 128; nothing of it has been measured:
//   int4   m = 1: 12.1 us (2.9 TB/s), m = 16: 12.9 us, bound by instructions; m = 1024: 301 us (457 TFLOP/s)
//   int8   m = 1: 16.5 us (4.2 TB/s), m = 16: 17.2 us
inline prediction predict(const tile_traits& t, const fragment_shape& s, int64_t m, const device_info& device) {
  const double sms = device.sms, steps = static_cast<double>(s.k_packed / fragment_step);
  const int64_t w_blocks = ceil_div(s.n, t.rows), x_blocks = ceil_div(m, t.columns), tiles = w_blocks * x_blocks;
  const double products = t.rows / 16.0 * (t.columns / 8.0) * 8;
  const double multiply = products / 4 * 8;
  const double decoded = t.warps * 32 * 128.0 / 32;  // by all warps, lane by lane
  const double instructions = (decoded * 2.7 + products * 1.5 + t.warps * 130) / 4;
  const double l2 = (t.rows * 16.0 * s.bits + t.columns * 256.0) / 46;
  double step = multiply > instructions ? multiply : instructions;
  if (l2 > step) step = l2;
  const double memory = static_cast<double>(s.code_bytes()) / (20.7 * sms);
  const double outputs = static_cast<double>(m * s.strips * strip_rows);
  const auto total = [&](bool split) {
    const int slices = split ? slices_of(s) : 1;
    const int64_t ctas = tiles * slices;
    const double waves = static_cast<double>(ceil_div(ctas, device.sms));
    const double compute = waves * (steps / slices * step + t.rows * t.columns / 64.0) + 2500;
    double clocks = compute > memory + 2500 ? compute : memory + 2500;
    if (split) clocks += outputs * 4 * (slices + slices) / (46 * sms) + 1800;
    return clocks;
  };
  const double whole = total(false);
  if (slices_of(s) == 1) return {whole, false};
  const double split = total(true);
  return split < whole ? prediction{split, true} : prediction{whole, false};
}

}  // namespace lowbit::cuda::sm80
