#pragma once

#include "formats/nf4.h"

namespace lowbit::formats {

// NF4 with double quantization (Dettmers et al. 2023, QLoRA, section 3): a scale is an 8-bit
// dynamic code (Dettmers 2015, 8-Bit Approximations for Parallelism) of what is left of it after an offset, and 256 of
// those codes, counted through the whole tensor, an fp32 factor.
//
// The dynamic code, ascending, has 0, 1, and for e = 0 .. 6 the 2^e midpoints of as many steps from 0.1 to 1, times
// 10^(e - 6), and their negatives.
struct nf4_dq : nf4 {
  static constexpr const char* name = "nf4_dq";
  static constexpr int block_n = 1;
  static constexpr scale_rule scale = scale_rule::u8;
  static constexpr int super_groups = 256;
  static constexpr float scale_value(unsigned code) {
    if (code == 127) return 0;
    if (code == 255) return 1;
    if (code < 127) return -scale_value(254 - code);
    unsigned e = 0;
    while (code >= 127 + (2u << e)) ++e;
    constexpr float power[7] = {1e-6f, 1e-5f, 1e-4f, 1e-3f, 1e-2f, 1e-1f, 1};
    const unsigned i = code - 127 - (1u << e);
    return power[e] * ((boundary(i, e) + boundary(i + 1, e)) / 2);
  }

 private:
  // Step i of 2^e from 0.1 to 1, as torch.linspace rounds it: from the nearer end, once.
  static constexpr float boundary(unsigned i, unsigned e) {
    const unsigned steps = 1u << e;
    const double step = static_cast<double>((1.0f - 0.1f) / static_cast<float>(steps)), first = 0.1f;
    return static_cast<float>(i < (steps + 1) / 2 ? first + step * i : 1 - step * (steps - i));
  }
};

LOWBIT_FORMAT(nf4_dq)

}  // namespace lowbit::formats
