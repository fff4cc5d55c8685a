// csrc/cpu/avx_vnni/instructions.h in AVX2.
#pragma once

#include <immintrin.h>

namespace lowbit::cpu {
namespace {

inline __m256i dot_bytes(__m256i sums, __m256i u8, __m256i s8) {
  const __m256i even =
      _mm256_madd_epi16(_mm256_and_si256(u8, _mm256_set1_epi16(255)), _mm256_srai_epi16(_mm256_slli_epi16(s8, 8), 8));
  const __m256i odd = _mm256_madd_epi16(_mm256_srli_epi16(u8, 8), _mm256_srai_epi16(s8, 8));
  return _mm256_add_epi32(sums, _mm256_add_epi32(even, odd));
}

}  // namespace
}  // namespace lowbit::cpu
