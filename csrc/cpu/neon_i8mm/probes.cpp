// Multiply peak of the int8 matrix extension: USMMLA, 2 x 8 by 8 x 2.
#include <arm_neon.h>

#include "cpu/generic/probe_loop.h"
#include "gemm/probe.h"

namespace lowbit::cpu::neon_i8mm {
namespace {

void int8(int64_t iterations) {
  const uint8x16_t a = vreinterpretq_u8_s32(vdupq_n_s32(0x51a37f0b));
  const int8x16_t b = vreinterpretq_s8_s32(vdupq_n_s32(0x0df2437c));
  probe_loop(iterations, vdupq_n_s32(0), [&](int32x4_t& sum) { sum = vusmmlaq_s32(sum, a, b); });
}

}  // namespace

extern const probe_row probes[] = {
    {"int8", "", probe_chains * 32 * 2.0, int8},
};
extern const int num_probes = sizeof probes / sizeof probes[0];

}  // namespace lowbit::cpu::neon_i8mm
