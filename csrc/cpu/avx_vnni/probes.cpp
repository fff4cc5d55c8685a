// Multiply peak of AVX-VNNI: VPDPBUSD on 32 bytes.
#include "cpu/avx_vnni/instructions.h"
#include "cpu/generic/probe_loop.h"
#include "gemm/probe.h"

namespace lowbit::cpu::avx_vnni {
namespace {

void int8(int64_t iterations) {
  const __m256i a = _mm256_set1_epi32(0x51a37f0b), b = _mm256_set1_epi32(0x0df2437c);
  probe_loop(iterations, _mm256_setzero_si256(), [&](__m256i& sum) { sum = dot_bytes(sum, a, b); });
}

}  // namespace

extern const probe_row probes[] = {
    {"int8", "", probe_chains * 32 * 2.0, int8},
};
extern const int num_probes = sizeof probes / sizeof probes[0];

}  // namespace lowbit::cpu::avx_vnni
