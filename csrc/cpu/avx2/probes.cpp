// Multiply peaks of AVX2: FMA, and int8 as VPMADDUBSW + VPMADDWD + VPADDD.
#include <immintrin.h>

#include "cpu/generic/probe_loop.h"
#include "gemm/probe.h"

namespace lowbit::cpu::avx2 {
namespace {

void f32(int64_t iterations) {
  const __m256 a = _mm256_set1_ps(0.75f), b = _mm256_set1_ps(-1.25f);
  probe_loop(iterations, _mm256_set1_ps(0.5f), [&](__m256& sum) { sum = _mm256_fmadd_ps(a, b, sum); });
}

void int8(int64_t iterations) {
  const __m256i a = _mm256_set1_epi32(0x51a37f0b), ones = _mm256_set1_epi16(1);
  __m256i b = _mm256_set1_epi32(0x0df2437c);
  probe_loop(iterations, _mm256_setzero_si256(), [&](__m256i& sum) {
    opaque(b);  // else the products are computed once
    sum = _mm256_add_epi32(sum, _mm256_madd_epi16(_mm256_maddubs_epi16(a, b), ones));
  });
}

}  // namespace

extern const probe_row probes[] = {
    {"f32", "", probe_chains * 8 * 2.0, f32},
    {"int8", "", probe_chains * 32 * 2.0, int8},
};
extern const int num_probes = sizeof probes / sizeof probes[0];

}  // namespace lowbit::cpu::avx2
