// Multiply peaks of AVX-512: FMA, VPDPBUSD, and VDPBF16PS where the processor has it.
#include <immintrin.h>

#include "cpu/generic/probe_loop.h"
#include "gemm/probe.h"

namespace lowbit::cpu::avx512_vnni {
namespace {

void f32(int64_t iterations) {
  const __m512 a = _mm512_set1_ps(0.75f), b = _mm512_set1_ps(-1.25f);
  probe_loop(iterations, _mm512_set1_ps(0.5f), [&](__m512& sum) { sum = _mm512_fmadd_ps(a, b, sum); });
}

void int8(int64_t iterations) {
  const __m512i a = _mm512_set1_epi32(0x51a37f0b), b = _mm512_set1_epi32(0x0df2437c);
  probe_loop(iterations, _mm512_setzero_si512(), [&](__m512i& sum) { sum = _mm512_dpbusd_epi32(sum, a, b); });
}

void bf16(int64_t iterations) {  // by name: the file is not compiled for AVX512-BF16, which the row asks for
  const __m512i a = _mm512_set1_epi32(0x3f40bfa0), b = _mm512_set1_epi32(0x3fc03f20);  // pairs of bf16 near 1
  probe_loop(iterations, _mm512_set1_ps(0.5f), [&](__m512& sum) {
    __asm__("vdpbf16ps %2, %1, %0" : "+v"(sum) : "v"(a), "v"(b));
  });
}

}  // namespace

extern const probe_row probes[] = {
    {"f32", "", probe_chains * 16 * 2.0, f32},
    {"bf16", "avx512_bf16", probe_chains * 32 * 2.0, bf16},
    {"int8", "", probe_chains * 64 * 2.0, int8},
};
extern const int num_probes = sizeof probes / sizeof probes[0];

}  // namespace lowbit::cpu::avx512_vnni
