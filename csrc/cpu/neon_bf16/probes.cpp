// Multiply peak of the bf16 extension: BFMMLA, 2 x 4 by 4 x 2.
#include <arm_neon.h>

#include "cpu/generic/probe_loop.h"
#include "gemm/probe.h"

namespace lowbit::cpu::neon_bf16 {
namespace {

void bf16(int64_t iterations) {  // pairs of bf16 near 1
  const bfloat16x8_t a = vreinterpretq_bf16_s32(vdupq_n_s32(0x3f40bfa0));
  const bfloat16x8_t b = vreinterpretq_bf16_s32(vdupq_n_s32(0x3fc03f20));
  probe_loop(iterations, vdupq_n_f32(0.5f), [&](float32x4_t& sum) { sum = vbfmmlaq_f32(sum, a, b); });
}

}  // namespace

extern const probe_row probes[] = {
    {"bf16", "", probe_chains * 16 * 2.0, bf16},
};
extern const int num_probes = sizeof probes / sizeof probes[0];

}  // namespace lowbit::cpu::neon_bf16
