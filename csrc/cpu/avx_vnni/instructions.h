// The instruction that this level adds to AVX2. tests/cpu_emulator has the same name for processors without it.
#pragma once

#include <immintrin.h>

namespace lowbit::cpu {
namespace {

// Each int32 sum += four unsigned bytes times four signed ones (VPDPBUSD).
inline __m256i dot_bytes(__m256i sums, __m256i u8, __m256i s8) { return _mm256_dpbusd_avx_epi32(sums, u8, s8); }

}  // namespace
}  // namespace lowbit::cpu
