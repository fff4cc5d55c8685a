// Multiply peaks of Advanced SIMD: FMLA, and int8 as SMULL + SMULL2 + two SADALP.
#include <arm_neon.h>

#include "cpu/generic/probe_loop.h"
#include "gemm/probe.h"

namespace lowbit::cpu::neon {
namespace {

void f32(int64_t iterations) {
  const float32x4_t a = vdupq_n_f32(0.75f), b = vdupq_n_f32(-1.25f);
  probe_loop(iterations, vdupq_n_f32(0.5f), [&](float32x4_t& sum) { sum = vfmaq_f32(sum, a, b); });
}

void int8(int64_t iterations) {
  const int8x16_t a = vreinterpretq_s8_s32(vdupq_n_s32(0x51a37f0b));
  int8x16_t b = vreinterpretq_s8_s32(vdupq_n_s32(0x0df2437c));
  probe_loop(iterations, vdupq_n_s32(0), [&](int32x4_t& sum) {
    opaque(b);  // else the products are computed once
    sum = vpadalq_s16(vpadalq_s16(sum, vmull_s8(vget_low_s8(a), vget_low_s8(b))), vmull_high_s8(a, b));
  });
}

}  // namespace

extern const probe_row probes[] = {
    {"f32", "", probe_chains * 4 * 2.0, f32},
    {"int8", "", probe_chains * 16 * 2.0, int8},
};
extern const int num_probes = sizeof probes / sizeof probes[0];

}  // namespace lowbit::cpu::neon
