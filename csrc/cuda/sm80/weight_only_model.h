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

// Instructions in the SASS of sm_90, groups of 128. A warp's step in the 16 x 256 tile of int4 has 335: 176 that decode
// (1.4 for each of 128 weights a lane), 32 products with 28 loads of x and codes and ends of loops, 24 that end a
// group, 12 for its scales, 63 to begin and end the step. In the 128 x 128 tile it has 530, of which 128 products. So
//
//   1.4 for a weight of 4 bits, or 2 (mean of the others, generic/decode.h), that a warp decodes: warps along m decode
//   the same ones; 2 for a product; 95 for the step; 225 for the producer's step, all in one quarter of the SM
//
// Per SM and step the longest of three counts, in SM clocks, and a sixteenth of the others, as overlap is never whole:
//   products      an m16n8k16 takes a quarter of the SM 8 clocks: 1024 multiply-adds a clock and SM, sm_80's rate;
//   mma.sync
//                 was measured by others at 1.3 times that on an H200
//   instructions  one a clock and quarter
//   L2            what the stage brings, at 46 bytes a clock and SM (6 KB a clock for 132)
// A CTA takes its steps and a constant; CTAs go in waves. Codes come from memory once, at 20.7 bytes a clock and SM
// (4.8 TB/s, 132 SMs, 1.755 GHz). Partial sums go to the L2 and back, and the second kernel costs its start.
inline prediction predict(const tile_traits& t, const fragment_shape& s, int64_t m, const device_info& device) {
  const double sms = device.sms, steps = static_cast<double>(s.k_packed / fragment_step);
  const int64_t w_blocks = ceil_div(s.n, t.rows), x_blocks = ceil_div(m, t.columns), tiles = w_blocks * x_blocks;
  const double products = t.rows / 16.0 * (t.columns / 8.0) * 8;
  const double multiply = products / 4 * 8;
  const double decoded = t.warps * 32 * 128.0 / 32;  // by all warps, lane by lane
  const double instructions =
      (decoded * (s.bits == 4 ? 1.4 : 2) + products * 2 + t.warps * 95) / 4 + (t.columns <= 64 ? 225 : 0);
  const double l2 = (t.rows * 16.0 * s.bits + t.columns * 256.0) / 46;
  double longest = multiply > instructions ? multiply : instructions;
  if (l2 > longest) longest = l2;
  const double step = longest + (multiply + instructions + l2 - longest) / 16;
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
