// Multiply peak of the dot product extension: SDOT.
#include <arm_neon.h>

#include "cpu/generic/probe_loop.h"
#include "gemm/probe.h"

namespace lowbit::cpu::neon_dotprod {
namespace {

void int8(int64_t iterations) {
  const int8x16_t a = vreinterpretq_s8_s32(vdupq_n_s32(0x51a37f0b)), b = vreinterpretq_s8_s32(vdupq_n_s32(0x0df2437c));
  probe_loop(iterations, vdupq_n_s32(0), [&](int32x4_t& sum) { sum = vdotq_s32(sum, a, b); });
}

}  // namespace

extern const probe_row probes[] = {
    {"int8", "", probe_chains * 16 * 2.0, int8},
};
extern const int num_probes = sizeof probes / sizeof probes[0];

}  // namespace lowbit::cpu::neon_dotprod
